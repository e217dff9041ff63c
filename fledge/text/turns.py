"""Conversations that are too long: the oldest whole turns are left out, the template is never cut."""

from __future__ import annotations

from collections.abc import Sequence

from fledge.errors import RequestError
from fledge.text.chat import ChatRenderer
from fledge.text.conversation import Message


def render_fitted(
    renderer: ChatRenderer, messages: Sequence[Message], whole: int, cut_to: int
) -> tuple[list[int], int]:
    """(ids of a conversation up to where the answer begins, how many tokens were left out).

    More than `whole` tokens are too many: system messages at the head stay, and the oldest turns are left out, as few
    as bring it to `cut_to` tokens. A turn is a user's message and what follows it up to the next. The last turn stays.
    Found by halving, so a long conversation is rendered some ten times. Raises RequestError where that is not enough.
    """
    ids = renderer.render(messages, generation_prompt=True).ids
    n_whole = len(ids)
    if n_whole <= whole:
        return ids, 0
    shorter = shortened(messages)
    low, high = 0, len(shorter)  # the first that fits is at low..high
    found: dict[int, list[int]] = {}
    while low < high:
        middle = (low + high) // 2
        found[middle] = renderer.render(shorter[middle], generation_prompt=True).ids
        low, high = (low, middle) if len(found[middle]) <= cut_to else (middle + 1, high)
    if low == len(shorter):
        least = len(found[low - 1]) if low - 1 in found else n_whole
        raise RequestError(
            f"context: expected a last turn of at most {cut_to} tokens, got {least} without the turns before it; "
            "shorten the last message",
            "messages",
            "context_length_exceeded",
        )
    return found[low], n_whole - len(found[low])


def shortened(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """The conversation without its oldest turn, its two oldest…, down to the last turn alone; each with the system
    messages at its head."""
    n_head = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    begins = [n for n in range(n_head, len(messages)) if messages[n].role == "user"]
    return [(*messages[:n_head], *messages[begin:]) for begin in begins if begin > n_head]
