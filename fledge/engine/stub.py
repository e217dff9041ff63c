"""`StubRunner`: the runner's face without a model. Its logits are a pure function of the context in the cache.

It keeps tokens in blocks as a cache keeps keys and values, so a wrong table, start or chunk gives a wrong answer.
Imports no torch, so that a stub's process is there in half a second.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fledge.engine.config import EngineConfig
from fledge.engine.noise import GOLDEN, WORD, gumbel, mix
from fledge.engine.row import Row, copies
from fledge.engine.stub_spec import StubSpec
from fledge.errors import ConfigError, EngineError
from fledge.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from fledge.tune.changes import Changes

NOTHING = -1  # no token
FORCED = 50.0  # logit of a scripted token above all others: its probability is 1 within float32
READABLE = 6.0  # added to letters and spaces, so that a stub's text can be looked at


class StubRunner:
    """Logits from a hash of the context, or `script`: ids to answer with, whatever the prompt.

    A script goes on from its longest beginning that ends the context, and starts over after its end. Tokens in `poison`
    raise, tokens in `crash` kill the process. `readable` ids get a bonus. `n_blocks` 0: contexts for all slots.
    """

    block_tokens = 16
    window: int | None = None
    shares = True
    source_tokens = start_id = reach_tokens = 0

    def __init__(
        self,
        vocab_size: int,
        n_slots: int = 8,
        context_tokens: int = 512,
        n_blocks: int = 0,
        script: Sequence[int] = (),
        delay_seconds: float = 0.0,
        token_seconds: float = 0.0,
        poison: frozenset[int] = frozenset(),
        crash: frozenset[int] = frozenset(),
        readable: Sequence[int] = (),
    ):
        self.vocab_size = vocab_size
        self.n_slots = n_slots
        self.context_tokens = context_tokens
        self.script = tuple(script)
        self.delay_seconds, self.token_seconds = delay_seconds, token_seconds
        self.poison = poison
        self.crash = crash
        self.bonus = np.zeros(vocab_size)
        self.bonus[list(readable)] = READABLE
        self.n_blocks = n_blocks or n_slots * -(-context_tokens // self.block_tokens)
        self.tokens = np.full((self.n_blocks, self.block_tokens), NOTHING)
        self.n_calls = 0

    def forward(self, rows: list[Row]) -> list[np.ndarray]:
        """float32 logits [k, V] for each row, where the real runner gives tensors."""
        self.n_calls += 1
        if self.delay_seconds or self.token_seconds:
            time.sleep(self.delay_seconds + self.token_seconds * sum(len(row.ids) - 1 for row in rows))
        for given, taking in copies(rows):
            self.tokens[taking] = self.tokens[given]
        return [self.row_logits(row) for row in rows]

    def row_logits(self, row: Row) -> np.ndarray:
        if self.crash.intersection(row.ids):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.poison.intersection(row.ids):
            raise RuntimeError("poison in the row")
        end = row.start + len(row.ids)
        if end > self.context_tokens or not row.ids:
            raise EngineError(f"stub: expected 1..{self.context_tokens} tokens, got {end}")
        places = np.arange(row.start, end)
        blocks = np.array(row.blocks)
        self.tokens[blocks[places // self.block_tokens], places % self.block_tokens] = row.ids
        context = self.tokens[blocks].flatten()[:end].tolist()
        if NOTHING in context:
            raise EngineError(f"stub: expected a row that goes on from written tokens, got start {row.start}")
        first = len(row.ids) if not row.all_logits else 1
        return np.stack([self.logits_after(context[:n]) for n in range(row.start + first, end + 1)])

    def forget(self, source_name: bytes) -> None:
        """It has no encoder, and keeps nothing."""

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        raise EngineError("stub: expected a model to give weights to, got a stub")

    def read_adapter(self, folder: str) -> Changes:
        raise ConfigError("stub: expected a model to stand an adapter beside, got a stub")

    def add_adapter(self, key: str, changes: Changes) -> None:
        """There is none to add: `read_adapter` gives none."""

    def remove_adapter(self, key: str) -> None:
        """It has none."""

    def logits_after(self, context: list[int]) -> np.ndarray:
        """float32 [V] for one context."""
        key = 0
        for token in context:
            key = mix((key + token + 1) * GOLDEN & WORD)
        scores = gumbel(key, np.arange(self.vocab_size)) + self.bonus
        if self.script:
            scores[self.scripted(context)] = FORCED
        return scores.astype(np.float32)

    def scripted(self, context: list[int]) -> int:
        for n in range(min(len(self.script) - 1, len(context)), 0, -1):
            if tuple(context[-n:]) == self.script[:n]:
                return self.script[n]
        return self.script[0]


def load_stub(spec: StubSpec, config: EngineConfig) -> tuple[StubRunner, Tokenizer, frozenset[int]]:
    """What `load_runner` gives for a folder: runner, tokenizer, the model's stop ids."""
    time.sleep(spec.load_ms / 1000)
    tokenizer = spec.tokenizer()
    script: list[int] = []
    if spec.text is not None:
        end = tokenizer.end_id if tokenizer.end_id is not None else tokenizer.eos_id
        script = tokenizer.encode(spec.text) + ([] if end is None else [end])
    pieces = {token: tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
    runner = StubRunner(
        tokenizer.vocab_size,
        config.n_slots,
        spec.context_tokens,
        -(-config.cache_tokens // StubRunner.block_tokens),
        script,
        spec.delay_ms / 1000,
        spec.token_ms / 1000,
        poison=frozenset(tokenizer.encode(spec.poison or "")),
        crash=frozenset(tokenizer.encode(spec.crash or "")),
        readable=[token for token, piece in pieces.items() if piece.isalpha() or piece == b" "],
    )
    return runner, tokenizer, frozenset()
