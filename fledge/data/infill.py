"""Fill-in-the-middle (Bavarian et al. 2022, arXiv 2207.14255, §3): a document's middle is moved to its end, so that a
causal model learns to fill gaps. Imports no torch.

PSM  <prefix> prefix <suffix> suffix <middle> middle
SPM  <prefix> <suffix> suffix <middle> prefix middle
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fledge.data.keyed import uniforms
from fledge.data.objectives import InfillConfig
from fledge.data.permutation import KeyedPermutation
from fledge.data.shards import Shard
from fledge.errors import ConfigError
from fledge.text.tokenizer import Tokenizer

SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
"""Sentinels of Qwen, StarCoder, SantaCoder and Code Llama."""


@dataclass(frozen=True)
class InfillSentinels:
    """Ids of the three sentinels."""

    prefix: int
    suffix: int
    middle: int


def infill_sentinels(tokenizer: Tokenizer) -> InfillSentinels:
    """The tokenizer's own. Raises ConfigError if it has none."""
    for names in SPELLINGS:
        ids = [tokenizer.id_of(name) for name in names]
        if all(number is not None for number in ids):
            return InfillSentinels(*ids)  # type: ignore[arg-type]
    raise ConfigError(f"tokenizer: expected sentinels {', '.join(SPELLINGS[0])}, got none; add them to it")


def middle_of(n_tokens: int, *key: object) -> tuple[int, int]:
    """Where the middle begins and ends: two places of 0..n in order, each as likely, so any part may be empty."""
    a, b = (uniforms(2, *key, "middle") * (n_tokens + 1)).astype(np.int64).tolist()
    return min(a, b), max(a, b)


def pieces(n_tokens: int, spm: bool, sentinels: InfillSentinels, *key: object) -> list[int | tuple[int, int]]:
    """What a document of `n_tokens` becomes: ids of sentinels, and (from, to) of its own tokens, in order."""
    a, b = middle_of(n_tokens, *key)
    if spm:
        return [sentinels.prefix, sentinels.suffix, (b, n_tokens), sentinels.middle, (0, a), (a, b)]
    return [sentinels.prefix, (0, a), sentinels.suffix, (b, n_tokens), sentinels.middle, (a, b)]


@dataclass(frozen=True)
class InfilledShard(Shard):
    """A shard as one epoch sees it: of some documents the middle stands at the end. `tokens` and `own_starts` are the
    shard's own, `starts` those of what is seen; `moved` bool [documents], `key` decides the middles."""

    own_starts: np.ndarray
    moved: np.ndarray
    sentinels: InfillSentinels
    spm: float
    ends: tuple[int | None, int | None]
    key: tuple[object, ...]

    def document(self, index: int) -> np.ndarray:
        """The ids of one document, as it is seen."""
        return self.read(int(self.starts[index]), int(self.starts[index + 1] - self.starts[index]))

    def rows(self, starts: np.ndarray, n: int) -> np.ndarray:
        """The `n` ids from each of `starts` on, int64 [len(starts), n]."""
        return np.stack([self.read(start, n) for start in starts.tolist()])

    def read(self, start: int, n: int) -> np.ndarray:
        found: list[np.ndarray] = []
        document = int(np.searchsorted(self.starts, start, "right")) - 1
        skip, wanted = start - int(self.starts[document]), n
        while wanted:
            for part in self.parts(document):
                length = 1 if isinstance(part, int) else part[1] - part[0]
                if skip >= length:
                    skip -= length
                    continue
                taken = min(length - skip, wanted)
                found.append(self.ids(part, document, skip, taken))
                skip, wanted = 0, wanted - taken
                if not wanted:
                    break
            document += 1
        return np.concatenate([np.zeros(0, np.int64), *found])

    def ids(self, part: int | tuple[int, int], document: int, skip: int, n: int) -> np.ndarray:
        if isinstance(part, int):
            return np.array([part])
        first = int(self.own_starts[document]) + part[0] + skip
        return self.tokens[first : first + n].astype(np.int64)

    def parts(self, document: int) -> list[int | tuple[int, int]]:
        """What a document is seen as: ids of sentinels, and (from, to) of its own tokens. bos and eos stay outside."""
        n = int(self.own_starts[document + 1] - self.own_starts[document])
        if not self.moved[document]:
            return [(0, n)]
        begin = int(self.own_starts[document])
        first, last = (int(self.tokens[at : at + 1][0]) for at in (begin, begin + n - 1))
        low = int(first == self.ends[0])
        high = n - int(last == self.ends[1] and n > low)
        key = (*self.key, document)
        inner = pieces(high - low, bool(uniforms(1, *key, "order")[0] < self.spm), self.sentinels, *key)
        moved = [part if isinstance(part, int) else (part[0] + low, part[1] + low) for part in inner]
        return [(0, low), *moved, (high, n)]


def infilled_shard(shard: Shard, tokenizer: Tokenizer, config: InfillConfig, seed: int, epoch: int) -> InfilledShard:
    """`shard` in `epoch`: of round(rate · documents) the middle stands at the end. Their number is that of every epoch,
    so that every epoch has as many tokens, and which ones they are is keyed by (seed, epoch)."""
    there = np.flatnonzero(np.diff(shard.starts) > 0)
    moved = np.zeros(shard.n_documents, bool)
    count = round(config.rate * len(there))
    if count:
        moved[there[KeyedPermutation(len(there), seed, epoch, "infill").at(np.arange(count))]] = True
    starts = shard.starts + np.concatenate([[0], np.cumsum(3 * moved)])
    return InfilledShard(shard.name, shard.tokens, starts, shard.starts, moved, infill_sentinels(tokenizer), config.spm,
                         (tokenizer.bos_id, tokenizer.eos_id), ("infill", seed, epoch))  # fmt: skip
