"""What the tokens on both sides say of the one between them, by counting: the baseline of masked language models.
Imports no torch.
"""

from __future__ import annotations

import numpy as np

from fledge.evals.bigram import Bigram, counted, distinct, same_document

METHOD = (
    "Witten-Bell: (count(l,x,r) + kinds(l,r)·q) / (count(l,r) + kinds(l,r)), q the mean of the bigram after l and of "
    "that before r"
)


class Neighbours:
    """p(token | the one before it, the one after it), from counts of a shard's documents.

    Smoothed as `Bigram` is: a pair of neighbours gives what was never seen between them as much weight as it has seen
    distinct tokens, shared out by the mean of p(token | left) and p(token | right).
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, vocab_size: int):
        """`tokens` [N] and the documents' offsets `starts` [documents + 1]; at most 2^21 ids."""
        ids, starts = np.asarray(tokens).astype(np.int64), np.asarray(starts)
        self.vocab_size = vocab_size
        self.after = Bigram(ids, starts, vocab_size)
        self.before = Bigram(ids[::-1], len(ids) - starts[::-1], vocab_size)
        inside = same_document(len(ids), starts)
        triples = (self.place(ids[:-2], ids[2:]) * vocab_size + ids[1:-1])[inside[:-1] & inside[1:]]
        self.triples, self.counts = distinct(triples)
        places = self.triples // vocab_size
        self.places, first = np.unique(places, return_index=True)
        self.kinds = np.diff(first, append=len(places))
        self.met = np.add.reduceat(self.counts, first) if len(first) else np.zeros(0, np.int64)
        order = np.lexsort((-self.counts, places))  # the most frequent token first, the smallest id where two are
        self.most = (self.triples % vocab_size)[order[first]] if len(first) else np.zeros(0, np.int64)

    def place(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left * self.vocab_size + right

    def probability(self, left: np.ndarray, token: np.ndarray, right: np.ndarray) -> np.ndarray:
        """p(token | left, right) of ids [N] each, float64 [N]."""
        mean = (self.after.probability(left, token) + self.before.probability(right, token)) / 2
        place = self.place(left, right)
        kinds, met = counted(self.places, self.kinds, place), counted(self.places, self.met, place)
        count = counted(self.triples, self.counts, place * self.vocab_size + token)
        weight = np.maximum(kinds, 1e-12)
        probability: np.ndarray = (count + weight * mean) / (met + weight)
        return probability

    def guess(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The token met most often between two neighbours, after the left one where there was none, or at all; [N]."""
        at_all = int(self.after.frequency.argmax())
        after = self.after.most_frequent()
        place = self.place(left, right)
        backed_off = np.where(after[left] >= 0, after[left], at_all)
        return np.where(counted(self.places, self.met, place) > 0, counted(self.places, self.most, place), backed_off)
