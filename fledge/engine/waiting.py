"""The line of answers that wait for a cache slot: first in, first out inside a tenant, round robin between tenants."""

from __future__ import annotations

from collections import OrderedDict, deque

from fledge.engine.choice import Choice


class WaitingLine:
    """A flood from one tenant delays its own answers, not another's: each tenant's turn gives one answer."""

    def __init__(self) -> None:
        self.tenants: OrderedDict[str, deque[Choice]] = OrderedDict()
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def push(self, choice: Choice) -> None:
        self.tenants.setdefault(choice.request.tenant, deque()).append(choice)
        self.length += 1

    def pop(self) -> Choice:
        """The next answer; its tenant goes to the end of the round. The line must not be empty."""
        tenant, choices = self.tenants.popitem(last=False)
        choice = choices.popleft()
        if choices:
            self.tenants[tenant] = choices
        self.length -= 1
        return choice

    def remove(self, choice: Choice) -> None:
        """Take a cancelled answer out. Raises ValueError if it does not wait here."""
        tenant = choice.request.tenant
        choices = self.tenants.get(tenant, deque())
        choices.remove(choice)
        if not choices:
            self.tenants.pop(tenant, None)
        self.length -= 1
