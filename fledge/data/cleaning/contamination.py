"""`contamination`: items of evaluation sets that stand in the text, by n-grams of words.

With n of 13 and any one n-gram enough, cutting 200 characters around each, this is GPT-3's rule (Brown et al. 2020,
arXiv 2005.14165, appendix C); with n of 8 and 70 % of an item's n-grams, PaLM's (Chowdhery et al. 2022, arXiv
2204.02311, section 8). The closest document of an item is the one that holds the most of its n-grams.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.cleaning.config import ContaminationConfig, MatchConfig
from fledge.data.cleaning.evaluation import Item, read_items
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document
from fledge.data.overlap import Overlap
from fledge.data.words import WORD, WordHashes, distinct, ngrams, remembered_hashes
from fledge.errors import DataError


@dataclass(frozen=True)
class Found:
    """n-grams of items in one document: `starts` and `ends` of each in words (one past the last) and its place in the
    index; the distinct `places`; the `items` that hold some of them, and how many (`shared`). All int64."""

    starts: np.ndarray
    ends: np.ndarray
    place_of_each: np.ndarray
    places: np.ndarray
    items: np.ndarray
    shared: np.ndarray


class EvaluationSets:
    """The n-grams of every item of some sets, and what was seen of them."""

    def __init__(self, paths: tuple[Path, ...], match: MatchConfig):
        self.match = match
        self.words = WordHashes()
        self.sets: list[tuple[str, int]] = []  # name, items
        self.items: list[tuple[int, int]] = []  # set, number of the item in it
        grams: list[np.ndarray] = []
        sizes: set[int] = set()
        for path in paths:
            n_items = 0
            for item in read_items(path, match):
                n_items += 1
                own, of_sizes = self.item_grams(item)
                if len(own):
                    grams.append(own)
                    sizes |= of_sizes
                    self.items.append((len(self.sets), item.number))
            if not n_items:
                raise DataError(f"{path}: expected an evaluation set, got a file without items")
            self.sets.append((str(path), n_items))
        self.sizes = sorted(sizes) or [match.words]
        self.overlap = Overlap(grams)
        self.n_grams = np.array([len(own) for own in grams], np.int64)
        self.seen = np.zeros(len(self.overlap.known), bool)
        self.counts = np.zeros(len(self.overlap.known), np.int64)
        self.counted = np.ones(len(self.overlap.known), bool)
        self.most = np.zeros(len(grams), np.int64)
        self.closest = [""] * len(grams)

    def item_grams(self, item: Item) -> tuple[np.ndarray, set[int]]:
        """Distinct n-grams of an item's texts (a short text is one n-gram as a whole), and their sizes."""
        found, sizes = [np.zeros(0, np.uint64)], set()
        for text in item.texts:
            words = remembered_hashes(text, self.words)
            size = min(len(words), self.match.words)
            if size >= self.match.least_words:
                sizes.add(size)
                found += [grams for _, grams in ngrams(words, (size,))]
        return distinct(np.concatenate(found)), sizes

    def find(self, text: str) -> Found:
        """What of the items stands in a text."""
        nothing = np.zeros(0, np.int64)
        starts, ends, places = [nothing], [nothing], [nothing]
        for size, grams in ngrams(remembered_hashes(text, self.words), self.sizes):
            at, place = self.overlap.find(grams)
            right = self.counted[place]
            starts.append(at[right])
            ends.append(at[right] + size)
            places.append(place[right])
        each = np.concatenate(places)
        own = distinct(each)
        return Found(np.concatenate(starts), np.concatenate(ends), each, own, *self.overlap.shared(own))

    def contaminating(self, found: Found) -> np.ndarray:
        """The items of which this document holds enough, int64."""
        return found.items[found.shared >= self.match.least_share * self.n_grams[found.items]]

    def see(self, path: str, found: Found) -> None:
        """Remember what a document holds, for the report."""
        self.seen[found.places] = True
        better = found.shared > self.most[found.items]
        self.most[found.items[better]] = found.shared[better]
        for item in found.items[better]:
            self.closest[item] = path

    def report(self, shown: int) -> list[dict[str, Any]]:
        """For each set: its items, how many could be looked for and were found in one document, and the first `shown`
        of them, largest share first, each with its closest document and the share that all documents hold."""
        shares = self.most / np.maximum(1, self.n_grams)
        found = (self.most > 0) & (shares >= self.match.least_share)
        rows = []
        for number, (name, n_items) in enumerate(self.sets):
            own = [at for at, (of_set, _) in enumerate(self.items) if of_set == number]
            hits = sorted((at for at in own if found[at]), key=lambda at: (-shares[at], self.items[at][1]))
            rows.append(
                {
                    "set": name,
                    "items": n_items,
                    "too_short": n_items - len(own),
                    "found": len(hits),
                    "closest": [
                        {
                            "item": self.items[at][1],
                            "document": self.closest[at],
                            "share": round(float(shares[at]), 4),
                            "share_in_all": round(float(self.seen[self.overlap.places[at]].mean()), 4),
                        }
                        for at in hits[:shown]
                    ],
                }
            )
        return rows


SHOWN_ITEMS = 10


class Contamination:
    """Drops or cuts documents with items of evaluation sets in them, or only reports. `found` counts documents."""

    def __init__(self, config: ContaminationConfig):
        self.config = config
        self.sets = EvaluationSets(config.evaluations, config.match)
        self.observes = config.frequent > 0
        self.found: Counter[str] = Counter()

    def observe(self, document: Document) -> None:
        self.sets.counts[self.sets.find(document.text).places] += 1

    def settle(self) -> None:
        """Phrases that many documents hold don't count."""
        self.sets.counted = self.sets.counts <= self.config.frequent

    def __call__(self, document: Document) -> Document | Dropped:
        found = self.sets.find(document.text)
        self.sets.see(document.path, found)
        items = self.sets.contaminating(found)
        if not len(items):
            return document
        names = sorted({Path(self.sets.sets[self.sets.items[at][0]][0]).name for at in items})
        self.found.update(names)
        if self.config.action == "drop":
            return Dropped(f"holds items of {', '.join(names)}")
        return document if self.config.action == "report" else self.cut(document, found, items)

    def report(self) -> dict[str, Any]:
        return {"evaluations": self.sets.report(SHOWN_ITEMS)}

    def cut(self, document: Document, found: Found, items: np.ndarray) -> Document | Dropped:
        """The document without the n-grams of these items and `window` characters around each, the pieces parted by a
        blank line."""
        text, window = document.text, self.config.window
        spans = [match.span() for match in WORD.finditer(text)]
        own = np.isin(found.place_of_each, np.concatenate([self.sets.overlap.places[item] for item in items]))
        pieces, at = [], 0
        for start, end in sorted(zip(found.starts[own].tolist(), found.ends[own].tolist(), strict=True)):
            first, last = spans[start][0] - window, spans[end - 1][1] + window
            if first > at:
                pieces.append(text[at:first])
            at = max(at, last)
        kept = [piece.strip() for piece in [*pieces, text[at:]] if len(piece.strip()) >= max(1, window)]
        if not kept:
            return Dropped("nothing left beside items of evaluation sets")
        if len(kept) > self.config.most_pieces:
            return Dropped(f"items of evaluation sets part it into more than {self.config.most_pieces} pieces")
        return replace(document, text="\n\n".join(kept))
