"""The one rule about lengths: prompt tokens + max_tokens must fit in the model's context. Imports no torch."""

from __future__ import annotations

from fledge.errors import RequestError


def answer_room(
    prompt_tokens: int,
    max_tokens: int | None,
    context_tokens: int,
    prompt_name: str = "prompt",
    limit_name: str = "max_tokens",
) -> int:
    """Tokens the answer may have: `max_tokens` when given and it fits, else all that the prompt leaves.

    Raises RequestError (code context_length_exceeded, both numbers in the message) when prompt and answer don't fit, or
    when the prompt leaves no room for a single token. Nothing is ever cut off silently. `prompt_name` and `limit_name`
    are what the caller calls the two.
    """
    room = context_tokens - prompt_tokens
    if room < 1 or (max_tokens is not None and max_tokens > room):
        answer = max_tokens or 1
        raise RequestError(
            f"context: expected at most {context_tokens} tokens, got {prompt_tokens + answer} "
            f"({prompt_tokens} in the prompt, {answer} for the answer); shorten the prompt or {limit_name}",
            param=limit_name if room >= 1 else prompt_name,
            code="context_length_exceeded",
        )
    return room if max_tokens is None else max_tokens
