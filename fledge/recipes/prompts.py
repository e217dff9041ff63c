"""Prompts with what their rewards read: from JSON lines to ids; those of a rollout by seed and number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.permutation import KeyedPermutation
from fledge.errors import DataError, RequestError
from fledge.text.chat import ChatRenderer, Message, renderer_for
from fledge.text.conversation import ROLE_NAMES, read_rows
from fledge.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """`ids` as the model reads them; `row`: what stands in the file, for rewards; `at`: where, for messages."""

    ids: tuple[int, ...]
    row: Mapping[str, Any]
    at: str


def read_prompts(path: str | Path, tokenizer: Tokenizer, room: int) -> list[Prompt]:
    """Every prompt of a file, of at most `room` tokens. Raises DataError naming file and line."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a file of prompts, found none; check the path")
    renderer: ChatRenderer | None = None
    prompts = []
    for row, at in read_rows(path):
        if not isinstance(row, dict):
            raise DataError(f"{at}: expected an object with prompt or messages, got {type(row).__name__}")
        if "messages" in row:
            renderer = renderer or renderer_for(tokenizer)
            ids = rendered(row["messages"], renderer, at)
        elif isinstance(row.get("prompt"), str):
            start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            ids = [*start, *tokenizer.encode(row["prompt"])]
        else:
            raise DataError(f"{at}: expected prompt (a text) or messages, got {', '.join(map(str, row)) or 'nothing'}")
        if not 1 <= len(ids) <= room:
            raise DataError(
                f"{at}: expected a prompt of 1 to {room} tokens (the context less rollout.max_tokens), got {len(ids)}"
            )
        prompts.append(Prompt(tuple(ids), row, at))
    if not prompts:
        raise DataError(f"{path}: expected prompts, found none; add some")
    return prompts


def rendered(messages: Any, renderer: ChatRenderer, at: str) -> list[int]:
    try:
        turns = tuple(Message(ROLE_NAMES[turn["role"]], turn["content"]) for turn in messages)
        return renderer.render(turns, generation_prompt=True).ids
    except (KeyError, TypeError):
        raise DataError(f"{at}: expected messages with role and content") from None
    except RequestError as error:
        raise DataError(f"{at}: {error}") from None


def of_rollout(prompts: Sequence[Prompt], n: int, seed: int, rollout: int) -> list[Prompt]:
    """The `n` prompts of a rollout: all of them in a keyed order, epoch after epoch."""
    chosen = []
    for place in range(rollout * n, (rollout + 1) * n):
        epoch, within = divmod(place, len(prompts))
        order = KeyedPermutation(len(prompts), seed, "prompts", epoch)
        chosen.append(prompts[int(order.at(np.array([within]))[0])])
    return chosen
