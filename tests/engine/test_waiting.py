"""Who comes next."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fledge.engine.waiting import WaitingLine


def line_of(*tenants: str) -> tuple[WaitingLine, list]:
    line = WaitingLine()
    choices = [
        SimpleNamespace(request=SimpleNamespace(tenant=tenant, priority=0), number=i)
        for i, tenant in enumerate(tenants)
    ]
    for choice in choices:
        line.push(choice)
    return line, choices


def order(line: WaitingLine) -> list[int]:
    return [line.pop().number for _ in range(len(line))]


def test_inside_a_tenant_the_first_come_is_the_first_served():
    assert order(line_of("a", "a", "a")[0]) == [0, 1, 2]


def test_a_flood_from_one_tenant_delays_another_by_one_turn_at_most():
    assert order(line_of("flood", "flood", "flood", "flood", "other")[0]) == [0, 4, 1, 2, 3]


def test_three_tenants_take_turns():
    assert order(line_of("a", "a", "a", "b", "b", "c")[0]) == [0, 3, 5, 1, 4, 2]


def test_a_removed_choice_is_gone_and_its_tenant_keeps_its_turn():
    line, choices = line_of("a", "a", "b")
    line.remove(choices[0])
    assert len(line) == 2 and order(line) == [1, 2]
    with pytest.raises(ValueError):
        line.remove(choices[0])
