"""More special tokens for a tokenizer, and a frame: text is encoded as before, the new ids come after the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fledge.text.special_tokens import SPELLINGS, special_entries
from fledge.text.tokenizer import Tokenizer, from_text

SENTINELS = 100  # as many as T5 has


def extended(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer with those of `tokens` that it lacks, in this order, as special tokens. One that is spelt as a role
    is (`[MASK]`, `<pad>` …) takes that role if nothing has it."""
    new = [token for token in dict.fromkeys(tokens) if tokenizer.id_of(token) is None]
    if not new:
        return tokenizer
    tree = json.loads(tokenizer.file.text)
    tree["added_tokens"] = [*(tree.get("added_tokens") or []), *special_entries(tuple(new), tokenizer.vocab_size)]
    config = dict(tokenizer.config)
    if any(f"{role}_token" in config for role in SPELLINGS):  # else spelling decides
        for role, spellings in SPELLINGS.items():
            for token in spellings:
                if token in new and role not in tokenizer.special:
                    config[f"{role}_token"] = token
    return from_text(json.dumps(tree, ensure_ascii=False, indent=1), config, tokenizer.template)


def with_frame(tokenizer: Tokenizer, before: Sequence[int], after: Sequence[int]) -> Tokenizer:
    """The tokenizer whose own file puts these special tokens around a text, the last ones after a second text too;
    itself where its file has a frame."""
    if tokenizer.frame(()).ids or not (before or after):
        return tokenizer
    names = {number: tokenizer.token_of(number) for number in (*before, *after)}

    def around(text: str, first: Sequence[int], type_id: int) -> list[dict[str, Any]]:
        opening, closing = (
            [{"SpecialToken": {"id": names[number], "type_id": type_id}} for number in ids] for ids in (first, after)
        )
        return [*opening, {"Sequence": {"id": text, "type_id": type_id}}, *closing]

    frame = {
        "type": "TemplateProcessing",
        "single": around("A", before, 0),
        "pair": [*around("A", before, 0), *around("B", (), 1)],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()},
    }
    tree = json.loads(tokenizer.file.text)
    own = tree.get("post_processor")
    tree["post_processor"] = frame if own is None else {"type": "Sequence", "processors": [own, frame]}
    return from_text(json.dumps(tree, ensure_ascii=False, indent=1), dict(tokenizer.config), tokenizer.template)


def sentinels(count: int = SENTINELS) -> tuple[str, ...]:
    """T5's sentinels in the order of their ids: `<extra_id_0>` is the last."""
    return tuple(f"<extra_id_{number}>" for number in reversed(range(count)))
