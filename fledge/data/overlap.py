"""`Overlap`: which of many small texts' n-grams stand in a document, and whose they are."""

from __future__ import annotations

import numpy as np

from fledge.data.words import distinct

LARGEST_TABLE = 26  # bits: 64 MB


class Overlap:
    """The n-gram hashes of `texts` (for each its sorted distinct hashes, uint64), to look documents up in."""

    def __init__(self, texts: list[np.ndarray]):
        self.known = distinct(np.concatenate([np.zeros(0, np.uint64), *texts]))
        self.places = [np.searchsorted(self.known, mine) for mine in texts]
        # The texts that hold known[i] are owners[first_owner[i] : first_owner[i + 1]].
        places = np.concatenate([np.zeros(0, np.int64), *self.places])
        texts_of_places = np.repeat(np.arange(len(texts)), [len(mine) for mine in texts])
        self.owners = texts_of_places[np.argsort(places, kind="stable")]
        self.first_owner = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=len(self.known)))])
        # Most hashes are known to none: their first bits tell, and only the others are searched for.
        bits = min(LARGEST_TABLE, max(8, (8 * len(self.known)).bit_length()))
        self.shift = np.uint64(64 - bits)
        self.possible = np.zeros(1 << bits, bool)
        self.possible[self.known >> self.shift] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index in `hashes`, index in `known`) of each hash that is known, int64 each."""
        at = np.flatnonzero(self.possible[hashes >> self.shift])
        if not len(at):
            return at, at
        place = np.minimum(np.searchsorted(self.known, hashes[at]), len(self.known) - 1)
        right = self.known[place] == hashes[at]
        return at[right], place[right]

    def shared(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The texts that hold any of `places` (distinct indices in `known`), in order, and how many each, int64."""
        counts = self.first_owner[places + 1] - self.first_owner[places]
        before = np.cumsum(counts) - counts
        rows = np.arange(counts.sum()) + np.repeat(self.first_owner[places] - before, counts)
        return np.unique(self.owners[rows], return_counts=True)
