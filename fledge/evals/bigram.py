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
        pairs = (ids[:-1] * vocab_size + ids[1:])[same_document(len(ids), starts)]
        self.pairs, self.counts = distinct(pairs)  # a·V + b, rising, and how often each was met
        contexts = self.pairs // vocab_size
        self.met = np.bincount(contexts, self.counts, minlength=vocab_size)
        self.followers = np.bincount(contexts, minlength=vocab_size).astype(float)

    def probability(self, context: np.ndarray, follower: np.ndarray) -> np.ndarray:
        """p(follower | context) of ids [N] each, float64 [N]."""
        weight = np.maximum(self.followers[context], 1e-12)  # a context never met leaves token frequency alone
        mixed = self.count(context, follower) + weight * self.frequency[follower]
        probability: np.ndarray = mixed / (self.met[context] + weight)
        return probability

    def count(self, context: np.ndarray, follower: np.ndarray) -> np.ndarray:
        """How often each pair was met, [N]."""
        return counted(self.pairs, self.counts, context * self.vocab_size + follower)

    def most_frequent(self) -> np.ndarray:
        """The most frequent follower of each token, -1 for one that was never followed; [V]."""
        contexts = self.pairs // self.vocab_size
        order = np.lexsort((-self.counts, contexts))
        known, first = np.unique(contexts, return_index=True)
        found = np.full(self.vocab_size, -1)
        found[known] = (self.pairs % self.vocab_size)[order[first]]
        return found

    def bits(self, tokens: Sequence[int] | np.ndarray) -> float:
        """Bits of tokens[1:], each given the one before it."""
        ids = np.asarray(tokens, np.int64)
        return float(-np.log2(self.probability(ids[:-1], ids[1:])).sum())

    def first_bits(self, token: int) -> float:
        """Bits of a token without a context: by frequency."""
        return float(-np.log2(self.frequency[token]))


def counted(keys: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The count of each wanted key, 0 for one that isn't among the rising `keys`; [N]."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, counts[place], 0)


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ones of `keys`, rising, and how often each comes."""
    ordered = np.sort(keys)
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[first], np.diff(first, append=len(ordered))


def same_document(n_tokens: int, starts: np.ndarray) -> np.ndarray:
    """Whether a token and the next one are of one document, bool [N - 1]."""
    inside = np.ones(max(0, n_tokens - 1), bool)
    ends = np.asarray(starts)[1:-1]
    inside[ends[(ends > 0) & (ends < n_tokens)] - 1] = False
    return inside
