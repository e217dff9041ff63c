"""`Overlap`: which of many small texts' n-grams stand in a document, and whose they are."""

from __future__ import annotations

import numpy as np

LARGEST_FILTER = 26  # bits: 8 MB
LARGEST_TABLE = 24  # bits: 64 MB
THREE, SEVEN, ONE = np.uint64(3), np.uint64(7), np.uint8(1)


class Filter:
    """Tells which hashes can't be among some: a bit for each beginning that one of them has."""

    def __init__(self, hashes: np.ndarray):
        bits = min(LARGEST_FILTER, max(8, (8 * len(hashes)).bit_length()))
        self.shift = np.uint64(64 - bits)
        possible = np.zeros(1 << bits, bool)
        possible[hashes >> self.shift] = True
        self.possible = np.packbits(possible, bitorder="little")

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Which of `hashes` may be among them, int64: all that are, and of the others one in eight or fewer."""
        beginning = hashes >> self.shift
        bits = self.possible.take((beginning >> THREE).view(np.int64)) >> (beginning & SEVEN).astype(np.uint8)
        return np.flatnonzero(bits & ONE)


class Overlap:
    """The n-gram hashes of `texts` (for each its sorted distinct hashes, uint64), to look documents up in."""

    def __init__(self, texts: list[np.ndarray]):
        hashes = np.concatenate([np.zeros(0, np.uint64), *texts])
        lengths = [len(mine) for mine in texts]
        order = np.argsort(hashes, kind="stable")  # which merges what is sorted
        hashes = hashes[order]
        first = np.ones(len(hashes), bool)
        first[1:] = hashes[1:] != hashes[:-1]
        self.known = hashes[first]
        # The texts that hold known[i] are owners[first_owner[i] : first_owner[i + 1]].
        self.owners = np.repeat(np.arange(len(texts)), lengths)[order]
        self.first_owner = np.append(np.flatnonzero(first), len(hashes))
        places = np.empty(len(hashes), np.int64)
        places[order] = np.cumsum(first) - 1
        self.places = np.split(places, np.cumsum(lengths)[:-1]) if texts else []
        self.filter = Filter(self.known)  # most hashes are known to none
        # Those that begin with the same few bits stand from known[begins[those bits]] on.
        table_bits = min(LARGEST_TABLE, max(8, len(self.known).bit_length()))
        self.table_shift = np.uint64(64 - table_bits)
        counts = np.bincount((self.known >> self.table_shift).view(np.int64), minlength=1 << table_bits)
        self.begins = np.zeros(len(counts), np.int32)
        np.cumsum(counts[:-1], out=self.begins[1:])

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index in `hashes`, index in `known`) of each hash that is known, int64 each."""
        at = self.filter.find(hashes)
        if not len(at):
            return at, at
        wanted, last = hashes[at], len(self.known) - 1
        place = self.begins.take((wanted >> self.table_shift).view(np.int64)).astype(np.int64)
        left = np.flatnonzero(self.known.take(place, mode="clip") < wanted)
        while len(left):
            place[left] += 1
            left = left[self.known.take(place[left], mode="clip") < wanted[left]]
            left = left[place[left] < last]
        right = self.known.take(place, mode="clip") == wanted
        return at[right], place[right]

    def owners_of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index in `places`, text that holds it) for all of them in order, int64 each."""
        first = self.first_owner[places]
        counts = self.first_owner[places + 1] - first
        before = np.cumsum(counts) - counts
        at = np.repeat(np.arange(len(places)), counts)
        return at, self.owners[np.arange(len(at)) + (first - before)[at]]

    def shared(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The texts that hold any of `places` (distinct indices in `known`), in order, and how many each, int64."""
        return np.unique(self.owners_of(places)[1], return_counts=True)
