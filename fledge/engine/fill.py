"""`fledge fill`: the likeliest tokens for each mask in a text, by an encoder that was trained to say them.

T tokens of a row, D the width, V the vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.batch import padded
from fledge.engine.config import FillConfig
from fledge.errors import ConfigError, DataError
from fledge.model.folder import find_model, load_model
from fledge.model.transformer import Transformer
from fledge.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Guess:
    """One token for one mask: as the vocabulary spells it, as text, and its probability among all."""

    token: str
    token_str: str
    token_id: int
    probability: float


@dataclass(frozen=True)
class Filled:
    """A text, each of its masks' guesses, likeliest first, and the text with the likeliest in their places."""

    text: str
    masks: tuple[tuple[Guess, ...], ...]
    filled: str


def fill(config: FillConfig, json: bool = False) -> dict[str, Any]:
    """Guesses for every mask of every text: printed, and as `texts` of the result.

    Raises ConfigError (no text, a text without a mask or too long, a model that fills no masks), DataError for a file,
    and what loading the model raises.
    """
    texts, places = read_texts(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = find_model(config.model)
    tokenizer = Tokenizer.load(folder)
    found = fill_texts(load_model(folder), tokenizer, texts, config.top_k, places)
    if not json:
        for one in found:
            print(shown(one))
    return {"model": config.model, "texts": [asdict(one) for one in found]}


def fill_texts(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], top_k: int = 5, places: Sequence[str] = ()
) -> list[Filled]:
    """The `top_k` likeliest tokens of each mask of each text; `places` is where each stands, for messages. Raises
    ConfigError as `fill`."""
    mask_id = mask_of(model, tokenizer)
    at = places or ["text"] * len(texts)
    rows = [row_of(model, tokenizer, text, mask_id, place) for text, place in zip(texts, at, strict=True)]
    found: list[Filled] = []
    for batch in batches(rows):
        guesses = iter(guessed(model, tokenizer, batch, mask_id, top_k))
        for row in batch:
            masks = tuple(next(guesses) for id in row if id == mask_id)
            best = iter(masks)
            ids = [next(best)[0].token_id if id == mask_id else id for id in row]
            found.append(Filled(texts[len(found)], masks, tokenizer.decode(ids, cleaned=True).strip()))
    return found


def mask_of(model: Transformer, tokenizer: Tokenizer) -> int:
    """The mask token's id. Raises ConfigError for a model or a tokenizer without masks."""
    if model.decoder is not None or not model.config.lm:
        lacks = "which has a decoder" if model.decoder is not None else "without one"
        raise ConfigError(
            f"fill: expected an encoder with a masked-language-model output, got {model.config.family}, {lacks}; "
            "fledge generate continues texts"
        )
    mask_id = tokenizer.special.get("mask")
    if mask_id is None:
        raise ConfigError("fill: expected a tokenizer with a mask token ([MASK] or <mask>), got one without")
    return mask_id


def row_of(model: Transformer, tokenizer: Tokenizer, text: str, mask_id: int, place: str) -> list[int]:
    """A text's ids between the special tokens that the model wants. Raises ConfigError."""
    row = list(tokenizer.frame(tokenizer.encode(text, parse_special=True)).ids)
    if mask_id not in row:
        raise ConfigError(f"{place}: expected {tokenizer.token_of(mask_id)} in it, found none in {text[:60]!r}")
    if len(row) > model.config.context_tokens:
        raise ConfigError(
            f"{place}: expected at most {model.config.context_tokens} tokens, got {len(row)} in {text[:60]!r}; shorten "
            "it"
        )
    return row


def batches(rows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Rows in their order, so many together that the padded batch has at most `BATCH_TOKENS` tokens (or one row)."""
    batch: list[list[int]] = []
    longest = 0
    for row in rows:
        if batch and max(longest, len(row)) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch, longest = [], 0
        batch.append(row)
        longest = max(longest, len(row))
    if batch:
        yield batch


@torch.no_grad()
def guessed(
    model: Transformer, tokenizer: Tokenizer, rows: list[list[int]], mask_id: int, top_k: int
) -> Iterator[tuple[Guess, ...]]:
    """Each mask's guesses, row by row."""
    tokens, layout = padded(rows)
    shares, ids = likeliest(model, model.hidden(tokens, layout)[tokens.ids == mask_id], tokenizer.vocab_size, top_k)
    for some, their in zip(ids.tolist(), shares.tolist(), strict=True):
        yield tuple(guess_of(tokenizer, id, share) for id, share in zip(some, their, strict=True))


def guess_of(tokenizer: Tokenizer, token_id: int, share: float) -> Guess:
    token = tokenizer.token_of(token_id)
    return Guess(token, tokenizer.written([token]), token_id, share)


def likeliest(model: Transformer, states_MD: Tensor, vocab_size: int, top_k: int) -> tuple[Tensor, Tensor]:
    """(probabilities, ids) [M, top_k] of the likeliest tokens for M masks' states; the output goes over them alone."""
    logits_MV = model.logits(states_MD)[:, :vocab_size]
    shares, ids = logits_MV.float().softmax(-1).topk(min(top_k, logits_MV.shape[1]))
    return shares, ids


def read_texts(config: FillConfig) -> tuple[list[str], list[str]]:
    """(texts, where each stands): the one text, or a file's lines but empty ones. Raises ConfigError or DataError."""
    if (config.text is None) == (config.file is None):
        raise ConfigError("text: expected one of a text and --file FILE (- is standard input), a text a line")
    if config.file is None:
        return [config.text or ""], ["text"]
    try:
        data = sys.stdin.buffer.read() if config.file == "-" else Path(config.file).read_bytes()
        lines = [line.removesuffix("\r") for line in data.decode("utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{config.file}: can't be read as UTF-8 text ({type(error).__name__})") from None
    found = [(line, f"{config.file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{config.file}: expected a text a line, got none")
    return [text for text, _ in found], [place for _, place in found]


def shown(found: Filled) -> str:
    """For people: the filled text, then a line a mask."""
    lines = ["  " + "  ".join(map(told, mask)) for mask in found.masks]
    return "\n".join([found.filled, *lines])


def told(guess: Guess) -> str:
    return f"{guess.token_str.strip() or guess.token} {guess.probability:.1%}"
