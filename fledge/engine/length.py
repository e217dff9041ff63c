"""The one rule about lengths: prompt tokens + max_tokens must fit in the model's context. Imports no torch."""

from __future__ import annotations

from fledge.errors import RequestError


def answer_room(prompt_tokens: int, max_tokens: int | None, context_tokens: int) -> int:
    """Tokens the answer may have: `max_tokens` when given and it fits, else all that the prompt leaves.

    Raises RequestError (code context_length_exceeded, both numbers in the message) when prompt and answer don't fit, or
    when the prompt leaves no room for a single token. Nothing is ever cut off silently.
    """
    room = context_tokens - prompt_tokens
    if room < 1 or (max_tokens is not None and max_tokens > room):
        answer = max_tokens or 1
        raise RequestError(
            f"context: expected at most {context_tokens} tokens, got {prompt_tokens + answer} "
            f"({prompt_tokens} in the prompt, {answer} for the answer); shorten the prompt or max_tokens",
            param="max_tokens" if room >= 1 else "prompt",
            code="context_length_exceeded",
        )
    return room if max_tokens is None else max_tokens
