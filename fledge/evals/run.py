"""`evaluate`: bits per byte of held-out text beside compressors and a bigram, and held-out questions. With torch."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fledge
from fledge import device as devices
from fledge.config import read_json, to_dict
from fledge.data.document import Document
from fledge.engine.loaded import Model, load
from fledge.errors import ConfigError, DataError, FledgeError
from fledge.evals import bigram as bigrams
from fledge.evals import score as scores
from fledge.evals.answers import Question, answer_bits, greedy_answers, questions_of, same
from fledge.evals.bits import NORMALISER, DocumentBits, document_bits, document_ids, first_token
from fledge.evals.compressors import COMPRESSORS
from fledge.evals.config import EvaluateConfig
from fledge.evals.documents import evaluation_text
from fledge.evals.score import Score, change_score, mean_score, ratio_score
from fledge.evals.summary import summary
from fledge.evals.task_scores import word_f1
from fledge.lineage import check_output_file, read_card, sha256_file, sha256_json, write_text_durably
from fledge.log import json_safe, say
from fledge.text.chat import read_conversations
from fledge.tune.load import find_served

SHOWN_ANSWERS = 8


def evaluate(config: EvaluateConfig, json: bool = False) -> dict[str, Any]:
    """Every figure as a plain number under its name and with n and interval under `scores`; how each was taken under
    `method`. With `compare`, the same of the model before (`before`) and the change. Prints a summary unless `json`."""
    inputs = inputs_digest(config)
    known = earlier_result(config, inputs)
    if known is not None:
        say(f"{config.out}: already evaluated, nothing to do")
        if not json:
            print(summary(known))
        return known
    if config.out is not None:
        check_output(config.out)
    began = time.monotonic()
    device = devices.pick(config.device, threads=config.threads)
    model = load(config.model, str(device.device))
    before = None if config.compare is None else load(config.compare, str(device.device))
    for name, one in (("model", model), ("compare", before)):
        if one is not None:
            check_measurable(name, one, config)
    result: dict[str, Any] = {"model": str(config.model)}
    if config.compare is not None:
        result["compare"] = str(config.compare)
    if config.text is not None:
        result |= text_figures(config, model, before)
    if config.questions is not None:
        result["questions"] = question_figures(config, model, before)
    result["seconds"] = round(time.monotonic() - began, 2)
    result = json_safe({**result, "inputs": inputs})
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_text_durably(config.out, json_format.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if not json:
        print(summary(result))
    return result


def check_measurable(name: str, model: Model, config: EvaluateConfig) -> None:
    """Raises ConfigError for a model without a loss of the next token. An encoder sees the token that it would say."""
    shape = model.transformer.config
    if shape.decoder is None or not shape.lm:
        raise ConfigError(
            f"{name}: expected a model that writes text, got {shape.family} in {model.folder}; name another"
        )
    if config.text is not None and shape.encoder is not None:
        raise ConfigError(
            f"{name}: expected a decoder, whose loss on text is measured, got {shape.family} in {model.folder}, which "
            "writes a text for a source; fledge finetune task=text2text scores what it writes"
        )


def inputs_digest(config: EvaluateConfig) -> str | None:
    """Digest of everything the result depends on; None when an input has no card and is not a file."""
    parts: dict[str, Any] = {"config": to_dict(replace(config, out=None, threads=0)), "fledge": fledge.__version__}
    try:
        for name in ("model", "compare"):
            path = getattr(config, name)
            parts[name] = None if path is None else read_card(find_served(path))["digest"]
        for name in ("text", "questions"):
            path = getattr(config, name)
            if path is not None:
                parts[name] = sha256_file(path) if path.is_file() else read_card(path)["digest"]
    except FledgeError:
        return None
    return sha256_json(parts)


def earlier_result(config: EvaluateConfig, inputs: str | None) -> dict[str, Any] | None:
    """What `out` already holds, if it was made of the same inputs."""
    if config.out is None or inputs is None or not config.out.is_file():
        return None
    try:
        found = read_json(config.out)
    except FledgeError:
        return None
    return found if isinstance(found, dict) and found.get("inputs") == inputs else None


def check_output(path: Path) -> None:
    """Raises ConfigError for a file that can't be written, and for one that is no earlier result."""
    check_output_file(path)
    try:
        earlier = not path.exists() or "inputs" in read_json(path)
    except (FledgeError, TypeError):
        earlier = False
    if not earlier:
        raise ConfigError(f"out: expected a new file or an earlier result, got {path}; choose another, or remove it")


def text_figures(config: EvaluateConfig, model: Model, before: Model | None) -> dict[str, Any]:
    """Bits per byte of the model, of the one before, of gzip, xz and the bigram, on the same documents."""
    assert config.text is not None
    text = evaluation_text(config.text, model.tokenizer.digest)
    own = document_bits(model, text.documents, stride_of(config, model))
    bits: dict[str, Sequence[float]] = {"": own.bits}
    if before is not None:
        bits["before_"] = document_bits(before, text.documents, stride_of(config, before), "before").bits
    for name, compressed in COMPRESSORS.items():
        bits[f"{name}_"] = [float(compressed(document.text)) for document in text.documents]
    if text.train is not None:
        bits["bigram_"] = bigram_bits(model, text.train, text.documents)
    found = {f"{name}bits_per_byte": ratio_score(values, own.n_bytes, config.seed) for name, values in bits.items()}
    for name in COMPRESSORS:
        for prefix in ("", "before_") if before is not None else ("",):
            found[f"{prefix}ratio_to_{name}"] = ratio_score(bits[prefix], bits[f"{name}_"], config.seed)
    if before is not None:
        found["change_bits_per_byte"] = change_score(own.bits, bits["before_"], own.n_bytes, config.seed)
    return {
        "text": str(config.text),
        "split": text.split,
        "documents": len(text.documents),
        "bytes": sum(own.n_bytes),
        "tokens": sum(own.n_tokens),
        "perplexity_per_token": own.perplexity,
        **{name: score.value for name, score in found.items()},
        "scores": {name: score.as_dict() for name, score in found.items()},
        "method": text_method(config, model, text.why_no_train),
        "per_document": per_document(text.documents, own, bits),
    }


def text_method(config: EvaluateConfig, model: Model, why_no_bigram: str) -> dict[str, Any]:
    return {
        "normaliser": NORMALISER,
        "context_tokens": model.transformer.document_tokens,
        "stride": stride_of(config, model),
        "first_token": first_token(model.tokenizer),
        "compressors": "gzip -9 and xz -9, each document compressed alone, headers counted",
        "bigram": f"left out: {why_no_bigram}" if why_no_bigram else bigrams.METHOD,
        "interval": f"{scores.METHOD}, seed {config.seed}",
    }


def per_document(
    documents: Sequence[Document], own: DocumentBits, bits: dict[str, Sequence[float]]
) -> list[dict[str, Any]]:
    return [
        {"path": document.path, "bytes": own.n_bytes[i], "tokens": own.n_tokens[i]}
        | {f"{name}bits_per_byte": round(values[i] / own.n_bytes[i], 4) for name, values in bits.items()}
        for i, document in enumerate(documents)
    ]


def stride_of(config: EvaluateConfig, model: Model) -> int:
    """New tokens a window. Raises ConfigError when windows would leave tokens out."""
    context_tokens = model.transformer.document_tokens
    if config.stride > context_tokens:
        raise ConfigError(f"stride: expected at most the context of {context_tokens} tokens, got {config.stride}")
    return config.stride or max(1, context_tokens // 2)


def bigram_bits(model: Model, train: Any, documents: Sequence[Document]) -> list[float]:
    """Bits of each document under a bigram model of the training shard, counted as for the model."""
    counted = bigrams.Bigram(train.tokens[:], train.starts, model.tokenizer.vocab_size)
    bits = []
    for document in documents:
        ids = document_ids(model.tokenizer, document.text)
        first = counted.first_bits(ids[0]) if model.tokenizer.bos_id is None else 0.0
        bits.append(first + counted.bits(ids))
    return bits


def question_figures(config: EvaluateConfig, model: Model, before: Model | None) -> dict[str, Any]:
    """Answer bits per byte, exact answers and word F1 of the model and of the one before."""
    assert config.questions is not None
    questions = questions_of(list(read_conversations(config.questions)))
    questions = questions[: config.limit_questions] if config.limit_questions else questions
    if not questions:
        raise DataError(f"{config.questions}: expected conversations that end with an answer, found none")
    form = "plain" if model.renderer is None else "chat"
    bits, answers = asked(config, model, questions, form)
    found = answer_scores(questions, bits, answers, config.seed)
    samples = [
        {"question": question.asked, "reference": question.reference, "answer": answer}
        for question, answer in zip(questions[:SHOWN_ANSWERS], answers, strict=False)
    ]
    result: dict[str, Any] = {"file": str(config.questions), "form": form, "left_out_too_long": bits.count(None)}
    if before is not None:
        earlier, form, answers = before_figures(config, before, questions)
        result["before_form"] = form
        for sample, answer in zip(samples, answers, strict=False):
            sample["before"] = answer
        found |= {f"before_{k}": score for k, score in answer_scores(questions, earlier, answers, config.seed).items()}
        pairs = [
            (a, b, len(q.reference.encode()))
            for a, b, q in zip(bits, earlier, questions, strict=True)
            if a is not None and b is not None
        ]
        if pairs:
            after, then, sizes = ([pair[i] for pair in pairs] for i in range(3))
            found["change_answer_bits_per_byte"] = change_score(after, then, sizes, config.seed)
    return result | {
        **{name: score.value for name, score in found.items()},
        "scores": {name: score.as_dict() for name, score in found.items()},
        "method": "bits of the reference answer given its question, over its UTF-8 bytes, the end-of-turn token left "
        "out; answers at temperature 0; exact and word F1 compare words. The names asked about were held out "
        "of tuning; their docstrings may stand in the text of pre-training",
        "samples": samples,
    }


def before_figures(
    config: EvaluateConfig, before: Model, questions: list[Question]
) -> tuple[list[float | None], str, list[str]]:
    """A base model has never seen the chat format: it is asked in plain text too, and its better form counts."""
    forms = ["plain"] if before.renderer is None else ["plain", "chat"]
    tried = {form: answer_bits(before, questions, form) for form in forms}
    best = min(forms, key=lambda form: (tried[form].count(None), sum(bits or 0.0 for bits in tried[form])))
    return tried[best], best, greedy_answers(before, questions, best, config.max_answer_tokens)


def asked(
    config: EvaluateConfig, model: Model, questions: list[Question], form: str
) -> tuple[list[float | None], list[str]]:
    return answer_bits(model, questions, form), greedy_answers(model, questions, form, config.max_answer_tokens)


def answer_scores(
    questions: list[Question], bits: list[float | None], answers: list[str], seed: int
) -> dict[str, Score]:
    """Raises ConfigError when no question fits into the context."""
    scored = [(b, len(q.reference.encode())) for b, q in zip(bits, questions, strict=True) if b is not None]
    if not scored:
        raise ConfigError("questions: expected some that fit into the model's context, found none; ask shorter ones")
    pairs = list(zip(answers, (question.reference for question in questions), strict=True))
    return {
        "answer_bits_per_byte": ratio_score([b for b, _ in scored], [size for _, size in scored], seed),
        "exact": mean_score([float(same(*pair)) for pair in pairs], seed),
        "word_f1": mean_score([word_f1(*pair) for pair in pairs], seed),
    }
