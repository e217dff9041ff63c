"""Near-duplicates by word 5-shingles: how much of a held-out document stands in the training text.

Exact, not sketched: the held-out shingles (a sixteenth of the corpus) are kept as sorted 64-bit hashes and every
training document is looked up in them. Containment in the training text as a whole is at least the containment in any
one training document, which is at least their Jaccard similarity (Broder 1997, "On the resemblance and containment of
documents"): one threshold on it bounds all three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fledge.data.overlap import Overlap
from fledge.data.word_hashes import word_hashes
from fledge.data.words import shingles

SHINGLE_WORDS = 5


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
        self.numbers = {path: number for number, path in enumerate(self.paths)}
        self.overlap = Overlap([shingles_of(text) for text in held_out.values()])
        self.seen = np.zeros(len(self.overlap.known), bool)
        self.closest = {path: (0, "") for path in self.paths}

    def see(self, path: str, text: str) -> None:
        """Mark the held-out shingles that this training document holds."""
        self.mark(path, self.find(text))

    def find(self, text: str) -> np.ndarray:
        """The held-out shingles that a text holds, each once, int64 [n]."""
        return self.overlap.find(shingles_of(text))[1]

    def mark(self, path: str, hits: np.ndarray) -> None:
        """Note what `find` found in the training document of that path."""
        self.seen[hits] = True
        for document, shared in zip(*self.overlap.shared(hits), strict=True):
            held_out = self.paths[document]
            if shared > self.closest[held_out][0]:
                self.closest[held_out] = (int(shared), path)

    def containment(self, path: str) -> Containment:
        """How much of a held-out document was seen. A document too short for a shingle counts as not contained."""
        places = self.overlap.places[self.numbers[path]]
        if not len(places):
            return Containment(0.0, "", 0.0)
        shared, closest = self.closest[path]
        return Containment(float(self.seen[places].mean()), closest, shared / len(places))


def shingles_of(text: str) -> np.ndarray:
    """Sorted distinct hashes of the text's word 5-shingles (lower case), uint64 [n]."""
    return shingles(word_hashes(text), SHINGLE_WORDS)
