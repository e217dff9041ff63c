"""What several annotators said of one item, and when that is a preference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from fledge.label.blind import FIRST, SECOND, SKIP, TIE
from fledge.label.store import Vote

WINNER, TIED, TOO_FEW, SKIPPED, UNSEEN = "winner", "no winner", "too few", "skipped", "not labelled"


@dataclass(frozen=True)
class Tally:
    """Votes by what they say."""

    first: int = 0
    second: int = 0
    ties: int = 0
    skips: int = 0

    @property
    def judgements(self) -> int:
        return self.first + self.second + self.ties

    def outcome(self, rule: str, min_votes: int) -> str:
        """Whether there is a winner, and why not. "majority": more than half of the judgements are for one answer;
        "unanimous": all are."""
        if not self.judgements:
            return SKIPPED if self.skips else UNSEEN
        if self.judgements < min_votes:
            return TOO_FEW
        most = max(self.first, self.second)
        won = most == self.judgements if rule == "unanimous" else 2 * most > self.judgements
        return WINNER if won else TIED


def tallies(votes: Iterable[Vote]) -> dict[int, Tally]:
    """Of each item that has votes."""
    said: dict[int, list[str]] = defaultdict(list)
    for vote in votes:
        said[vote.item].append(vote.choice)
    return {
        item: Tally(choices.count(FIRST), choices.count(SECOND), choices.count(TIE), choices.count(SKIP))
        for item, choices in said.items()
    }
