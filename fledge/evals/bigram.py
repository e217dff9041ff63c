"""A token-bigram model: what counting pairs of tokens gives, beside the language model. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

METHOD = "Witten-Bell: (count(a,b) + followers(a)·p(b)) / (count(a) + followers(a)), p(b) = (count(b) + 1) / (N + V)"


class Bigram:
    """Counts of a shard's documents, smoothed after Witten & Bell 1991 ("The zero-frequency problem", method C): a
    context gives its unseen followers as much weight as it has distinct followers, shared out by token frequency, which
    is smoothed by one (Laplace). No constant is tuned.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, vocab_size: int):
        """`tokens` [N] and the documents' offsets `starts` [documents + 1]; pairs across documents are not counted."""
        ids = np.asarray(tokens).astype(np.int64)
        self.vocab_size = vocab_size
        self.frequency = (np.bincount(ids, minlength=vocab_size) + 1.0) / (len(ids) + vocab_size)
        inside = np.ones(max(0, len(ids) - 1), bool)
        ends = np.asarray(starts)[1:-1]
        inside[ends[(ends > 0) & (ends < len(ids))] - 1] = False
        pairs = np.sort((ids[:-1] * vocab_size + ids[1:])[inside])
        first = np.flatnonzero(np.diff(pairs, prepend=-1))
        self.pairs = pairs[first]  # distinct pairs a·V + b, rising, and how often each was met
        self.counts = np.diff(first, append=len(pairs))
        contexts = self.pairs // vocab_size
        self.met = np.bincount(contexts, self.counts, minlength=vocab_size)
        self.followers = np.bincount(contexts, minlength=vocab_size).astype(float)

    def bits(self, tokens: Sequence[int] | np.ndarray) -> float:
        """Bits of tokens[1:], each given the one before it."""
        ids = np.asarray(tokens, np.int64)
        context, follower = ids[:-1], ids[1:]
        wanted = context * self.vocab_size + follower
        place = np.minimum(np.searchsorted(self.pairs, wanted), max(0, len(self.pairs) - 1))
        found = self.pairs[place] == wanted if len(self.pairs) else np.zeros(len(wanted), bool)
        count = np.where(found, self.counts[place], 0) if len(self.pairs) else np.zeros(len(wanted))
        weight = np.maximum(self.followers[context], 1e-12)  # a context never met leaves token frequency alone
        probability = (count + weight * self.frequency[follower]) / (self.met[context] + weight)
        return float(-np.log2(probability).sum())

    def first_bits(self, token: int) -> float:
        """Bits of a token without a context: by frequency."""
        return float(-np.log2(self.frequency[token]))
