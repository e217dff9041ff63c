"""Near-duplicates by word 5-shingles: how much of a held-out document stands in the training text.

Exact, not sketched: the held-out shingles (a sixteenth of the corpus) are kept as sorted 64-bit hashes and every
training document is looked up in them. Containment in the training text as a whole is at least the containment in any
one training document, which is at least their Jaccard similarity (Broder 1997, "On the resemblance and containment of
documents"): one threshold on it bounds all three.

Five words in a row hold four of which the first stands at an even place. So only these are made for the whole text,
and only where they may be known are the shingles around them looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fledge.data.overlap import Filter, Overlap
from fledge.data.utf8_words import utf8_word_hashes
from fledge.data.words import MULTIPLIER, distinct, ngrams_at, shingles

SHINGLE_WORDS = 5
OTHER_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Containment:
    """`share` of a document's distinct shingles that stand in the training text; `closest` training document (path),
    which alone holds `closest_share` of them."""

    share: float
    closest: str
    closest_share: float


@dataclass(frozen=True)
class Hits:
    """What texts hold: the number of the text and the index of a known shingle, each pair once, in order; int64 [n]."""

    texts: np.ndarray
    places: np.ndarray


class HeldOutShingles:
    """Looks training documents up in the shingles of the held-out ones: `see` them, then ask `containment`. Texts are
    UTF-8. `find`, the costly half of `see`, changes nothing and may run in several threads."""

    def __init__(self, held_out: dict[str, bytes]):
        self.paths = list(held_out)
        self.numbers = {path: number for number, path in enumerate(self.paths)}
        own, inner = [], [np.zeros(0, np.uint64)]
        for text in held_out.values():
            words, _ = utf8_word_hashes([text])
            own.append(shingles(words, SHINGLE_WORDS))
            inner.append(four(two(words[:-1], words[1:])[:-2], two(words[2:-1], words[3:])))
        self.overlap = Overlap(own)
        self.inner = Filter(np.concatenate(inner))
        self.seen = np.zeros(len(self.overlap.known), bool)
        self.most = np.zeros(len(self.paths), np.int64)
        self.closest = [""] * len(self.paths)

    def see(self, path: str, text: bytes) -> None:
        """Mark the held-out shingles that this training document holds."""
        self.mark([path], self.find([text]))

    def find(self, texts: list[bytes]) -> Hits:
        """The held-out shingles that each of the texts holds."""
        words, first = utf8_word_hashes(texts)
        pairs = two(words[: len(words) & ~1 : 2], words[1::2])
        even = 2 * self.inner.find(four(pairs[:-1], pairs[1:]))
        starts = np.stack([even - 1, even], 1).ravel()
        of = np.searchsorted(first, starts, side="right") - 1
        inside = np.flatnonzero((starts >= 0) & (starts + SHINGLE_WORDS <= first[of + 1]))
        at, places = self.overlap.find(ngrams_at(words, starts[inside], SHINGLE_WORDS))
        n_known = max(1, len(self.overlap.known))
        return Hits(*np.divmod(distinct(of[inside[at]] * n_known + places), n_known))

    def mark(self, paths: list[str], hits: Hits) -> None:
        """Note what `find` found in the training documents of these paths."""
        self.seen[hits.places] = True
        at, held_out = self.overlap.owners_of(hits.places)
        pairs, shared = counted(held_out * len(paths) + hits.texts[at], len(self.paths) * len(paths))
        held_out, texts = np.divmod(pairs, len(paths))
        better = np.flatnonzero(shared > self.most[held_out])
        for number, text, n in zip(
            held_out[better].tolist(), texts[better].tolist(), shared[better].tolist(), strict=True
        ):
            if n > self.most[number]:  # the first of equals: they come in the order of the paths
                self.most[number], self.closest[number] = n, paths[text]

    def containment(self, path: str) -> Containment:
        """How much of a held-out document was seen. A document too short for a shingle counts as not contained."""
        number = self.numbers[path]
        places = self.overlap.places[number]
        if not len(places):
            return Containment(0.0, "", 0.0)
        return Containment(float(self.seen[places].mean()), self.closest[number], self.most[number] / len(places))


def counted(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, which are below `most`, in order, and how many there are of each."""
    if most > 4 * len(values):
        return np.unique(values, return_counts=True)
    counts = np.bincount(values)
    found = np.flatnonzero(counts)
    return found, counts[found]


def two(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A hash of two words from their hashes."""
    return first * MULTIPLIER + second


def four(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A hash of four words from those of two and two."""
    return first * OTHER_MULTIPLIER + second
