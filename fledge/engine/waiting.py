"""The line of answers that wait for a place: the most important first, round robin between tenants, then by arrival."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from fledge.engine.choice import Choice

Round = OrderedDict[str, deque[Choice]]


class WaitingLine:
    """A flood from one tenant delays its own answers, not another's of the same priority: each tenant's turn gives one
    answer. Answers of a higher priority come before all others."""

    def __init__(self) -> None:
        self.rounds: dict[int, Round] = {}  # by priority
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Choice]:
        """Every answer in the line, in no order."""
        return (choice for one in self.rounds.values() for choices in one.values() for choice in choices)

    def push(self, choice: Choice) -> None:
        """To the end of its tenant's line."""
        self.round_of(choice).setdefault(choice.request.tenant, deque()).append(choice)
        self.length += 1

    def push_front(self, choice: Choice) -> None:
        """To the front of its tenant's line: an answer that had its turn before."""
        self.round_of(choice).setdefault(choice.request.tenant, deque()).appendleft(choice)
        self.length += 1

    def round_of(self, choice: Choice) -> Round:
        return self.rounds.setdefault(choice.request.priority, OrderedDict())

    def first(self) -> Choice:
        """The next answer, which stays in the line. The line must not be empty."""
        most = max(priority for priority, turns in self.rounds.items() if turns)
        return next(iter(self.rounds[most].values()))[0]

    def firsts(self) -> list[Choice]:
        """The next answer of each tenant among the most important, in the order of their turns."""
        most = max(priority for priority, turns in self.rounds.items() if turns)
        return [choices[0] for choices in self.rounds[most].values()]

    def pop(self) -> Choice:
        """The next answer; its tenant goes to the end of the round. The line must not be empty."""
        choice = self.first()
        self.take(choice)
        return choice

    def take(self, choice: Choice) -> None:
        """Take an answer out because it is its turn: its tenant goes to the end of the round."""
        self.remove(choice)
        if choice.request.tenant in self.round_of(choice):
            self.round_of(choice).move_to_end(choice.request.tenant)

    def remove(self, choice: Choice) -> None:
        """Take an answer out. Raises ValueError if it does not wait here."""
        turns = self.round_of(choice)
        choices = turns.get(choice.request.tenant, deque())
        choices.remove(choice)
        self.length -= 1
        if not choices:
            del turns[choice.request.tenant]
