"""Special tokens: ours, the roles they play, and which tokens of a foreign file are control rather than text."""

from __future__ import annotations

import re
from typing import Any

from fledge.text.tokenizer_file import TokenizerFile

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
UNKNOWN = "<|unk|>"  # of character tokenizers only: bytes know no unknown
SPECIAL_TOKENS = (BOS, EOS, PAD, SYSTEM, USER, ASSISTANT, END)

# Role -> spellings, best first. A bare tokenizer.json doesn't say what its tokens are for.
SPELLINGS = {
    "bos": (BOS, "<s>", "<|begin_of_text|>", "<bos>"),
    "eos": (EOS, "</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"),
    "pad": (PAD, "<pad>", "[PAD]"),
    "unk": (UNKNOWN, "<unk>", "[UNK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
}
ROLE_SPELLINGS = {"system": (SYSTEM,), "user": (USER,), "assistant": (ASSISTANT,)}
ENDS_OF_TURN = (END, "<|im_end|>", "<|eot_id|>", "<end_of_turn>")

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# Tokens that steer a model even where its file calls them text: <|fim_prefix|>, <tool_call>, <think>, [INST]. HTML's
# tags, which some vocabularies hold as tokens of text, are not among them.
MARKUP = re.compile(r"<\|[^\s<>]+\|>|</?[a-z]+_[a-z_]+>|</?think>|\[/?[A-Z_]+\]")


def special_entries(tokens: tuple[str, ...], first_id: int) -> list[dict[str, Any]]:
    """`added_tokens` entries of tokenizer.json for our special tokens, ids from `first_id`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": first_id + place, "content": token, **flags} for place, token in enumerate(tokens)]


def token_text(entry: Any) -> str | None:
    """The text of a special token as tokenizer_config.json spells it: a string, or an object with `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) and content else None


def roles(file: TokenizerFile, config: dict[str, Any], ids: dict[str, int]) -> dict[str, int]:
    """Role -> id. tokenizer_config.json decides on bos, eos, pad and unk; where it says nothing of any, their
    spelling does. A role whose token is not in the vocabulary is left out."""
    found: dict[str, int] = {}
    told = any(f"{role}_token" in config for role in SPELLINGS)
    for role, spellings in SPELLINGS.items():
        named = token_text(config.get(f"{role}_token"))
        candidates = (named,) if told else spellings
        known = [ids[token] for token in candidates if token in ids and (told or ids[token] in file.added)]
        found.update({role: known[0]} if known else {})
    for role, spellings in {**ROLE_SPELLINGS, "end": ENDS_OF_TURN}.items():
        known = [ids[token] for token in spellings if ids.get(token) in file.added]
        found.update({role: known[0]} if known else {})
    return found


def control_ids(file: TokenizerFile, config: dict[str, Any], ids: dict[str, int]) -> frozenset[int]:
    """Ids that no text typed by a user may become: tokens flagged special, in the file or in the configuration, named
    there, or markup. The bytes of a model that falls back to them are text, though trainers list them as special."""
    named = [token_text(value) for key, value in config.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = config.get(key)
        listed = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
        named += [token_text(value) for value in listed]
    told = config.get("added_tokens_decoder")
    for entry in told.values() if isinstance(told, dict) else ():
        if isinstance(entry, dict) and entry.get("special") is True:
            named.append(token_text(entry))
    found = {ids[token] for token in named if token in ids}
    for number, entry in file.added.items():
        if entry.get("special") is True or MARKUP.fullmatch(entry["content"]):
            found.add(number)
    if file.tree["model"].get("byte_fallback"):
        found = {number for number in found if not BYTE_TOKEN.fullmatch(file.tokens[number] or "")}
    return frozenset(found)
