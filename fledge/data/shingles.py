"""Near-duplicates by word 5-shingles: how much of a held-out document stands in the training text.

Exact, not sketched: the held-out shingles (a sixteenth of the corpus) are kept as sorted 64-bit hashes and every
training document is looked up in them. Containment in the training text as a whole is at least the containment in any
one training document, which is at least their Jaccard similarity (Broder 1997, "On the resemblance and containment of
documents"): one threshold on it bounds all three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fledge.data.word_hashes import word_hashes

SHINGLE_WORDS = 5
MULTIPLIER = np.uint64(0x5851F42D4C957F2D)
SHIFT = np.uint64(29)
LARGEST_SIEVE = 26  # bits: 64 MB


@dataclass(frozen=True)
class Containment:
    """`share` of a document's distinct shingles that stand in the training text; `closest` training document (path),
    which alone holds `closest_share` of them."""

    share: float
    closest: str
    closest_share: float


class HeldOutShingles:
    """Looks training documents up in the shingles of the held-out ones: `see` each of them, then ask `containment`.
    `find`, the costly half of `see`, changes nothing and may run in several threads."""

    def __init__(self, held_out: dict[str, str]):
        self.paths = list(held_out)
        own = [distinct(shingles(text)) for text in held_out.values()]
        self.known = distinct(np.concatenate([np.zeros(0, np.uint64), *own]))
        self.places = {path: np.searchsorted(self.known, mine) for path, mine in zip(self.paths, own, strict=True)}
        self.seen = np.zeros(len(self.known), bool)
        self.closest = {path: (0, "") for path in self.paths}
        # The documents that hold known[i] are owners[first_owner[i] : first_owner[i + 1]].
        places = np.concatenate([np.zeros(0, np.int64), *self.places.values()])
        documents = np.repeat(np.arange(len(own)), [len(mine) for mine in own])
        self.owners = documents[np.argsort(places, kind="stable")]
        self.first_owner = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=len(self.known)))])
        # Most shingles are known to none: their first bits tell, and only the others are searched for.
        bits = min(LARGEST_SIEVE, max(8, (8 * len(self.known)).bit_length()))
        self.sieve_shift = np.uint64(64 - bits)
        self.sieve = np.zeros(1 << bits, bool)
        self.sieve[self.known >> self.sieve_shift] = True

    def see(self, path: str, text: str) -> None:
        """Mark the held-out shingles that this training document holds."""
        self.mark(path, self.find(text))

    def find(self, text: str) -> np.ndarray:
        """The places in `known` of the held-out shingles that a text holds, each once, int64 [n]."""
        own = shingles(text)
        own = distinct(own[self.sieve[own >> self.sieve_shift]])
        if not len(own):
            return np.zeros(0, np.int64)
        place = np.minimum(np.searchsorted(self.known, own), len(self.known) - 1)
        return place[self.known[place] == own]

    def mark(self, path: str, hits: np.ndarray) -> None:
        """Note what `find` found in the training document of that path."""
        self.seen[hits] = True
        counts = self.first_owner[hits + 1] - self.first_owner[hits]
        before = np.cumsum(counts) - counts
        rows = np.arange(counts.sum()) + np.repeat(self.first_owner[hits] - before, counts)
        shared = np.bincount(self.owners[rows], minlength=0)
        for document in np.flatnonzero(shared):
            held_out = self.paths[document]
            if shared[document] > self.closest[held_out][0]:
                self.closest[held_out] = (int(shared[document]), path)

    def containment(self, path: str) -> Containment:
        """How much of a held-out document was seen. A document too short for a shingle counts as not contained."""
        places = self.places[path]
        if not len(places):
            return Containment(0.0, "", 0.0)
        shared, closest = self.closest[path]
        return Containment(float(self.seen[places].mean()), closest, shared / len(places))


def shingles(text: str) -> np.ndarray:
    """64-bit hashes of the text's word 5-shingles (lower case), in their order, uint64 [n].

    Equal hashes of different shingles are the only error: about n²/2^65, one in a million for four million words.
    """
    words = word_hashes(text)
    n = max(0, len(words) - SHINGLE_WORDS + 1)
    mixed = np.zeros(n, np.uint64)
    for offset in range(SHINGLE_WORDS if n else 0):
        mixed = (mixed + words[offset : offset + n]) * MULTIPLIER  # wraps around: arithmetic modulo 2^64
        mixed ^= mixed >> SHIFT
    return mixed


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted distinct values. np.unique's hash table takes a hundred times longer on such hashes (numpy 2.4)."""
    values = np.sort(values)
    return values[np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])]
