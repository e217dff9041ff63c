"""What `evaluate` prints for people. Imports no torch."""

from __future__ import annotations

from typing import Any

TEXT_ROWS = (
    ("", "the model"),
    ("before_", "before"),
    ("bigram_", "token bigram"),
    ("gzip_", "gzip -9"),
    ("xz_", "xz -9"),
)
RATIO_ROWS = (("ratio_to_gzip", "over gzip's"), ("ratio_to_xz", "over xz's"), ("change_bits_per_byte", "change"))
ANSWER_ROWS = (("answer_bits_per_byte", "bits per byte"), ("exact", "exact answers"), ("word_f1", "word F1"))


def summary(result: dict[str, Any]) -> str:
    """The figures as aligned lines, with n and interval."""
    lines = []
    if "bits_per_byte" in result:
        lines += text_lines(result)
    if "questions" in result:
        lines += question_lines(result["questions"])
    return "\n".join(lines)


def text_lines(result: dict[str, Any]) -> list[str]:
    method, scores = result["method"], result["scores"]
    lines = [
        f"bits per byte on {result['text']} ({result['split']}: {result['documents']:,} documents, "
        f"{result['bytes']:,} bytes; {method['normaliser']})"
    ]
    for prefix, name in TEXT_ROWS:
        if f"{prefix}bits_per_byte" in scores:
            lines.append(f"  {name:<14} {shown(scores[f'{prefix}bits_per_byte'])}")
    for key, name in RATIO_ROWS:
        if key in scores:
            earlier = f"   before {shown(scores[f'before_{key}'])}" if f"before_{key}" in scores else ""
            lines.append(f"  {name:<14} {shown(scores[key])}{earlier}")
    lines.append(
        f"  {'perplexity':<14} {float(result['perplexity_per_token']):.3f} per token of {result['tokens']:,} "
        f"(context {method['context_tokens']}, stride {method['stride']}, first token {method['first_token']})"
    )
    return lines


def question_lines(found: dict[str, Any]) -> list[str]:
    scores = found["scores"]
    lines = [f"answers to {found['file']} ({scores['exact']['n']} held-out questions, asked as {found['form']})"]
    for key, name in ANSWER_ROWS:
        earlier = f"   before {shown(scores[f'before_{key}'])}" if f"before_{key}" in scores else ""
        lines.append(f"  {name:<14} {shown(scores[key])}{earlier}")
    for sample in found["samples"][:3]:
        lines += [f"  Q: {sample['question']}", f"     reference: {sample['reference']}"]
        if "before" in sample:
            lines.append(f"     before:    {one_line(sample['before'])}")
        lines.append(f"     answer:    {one_line(sample['answer'])}")
    return lines


def shown(score: dict[str, Any]) -> str:
    text = f"{score['value']:.4f}"
    if score["interval"] is not None:
        low, high = score["interval"]
        text += f"  [{low:.4f}, {high:.4f}]"
    return text


def one_line(text: str) -> str:
    return " ".join(text.split())[:160]
