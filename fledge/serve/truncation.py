"""What a request says about a prompt that is too long, in OpenAI's, vLLM's and our own words. Imports no torch."""

from __future__ import annotations

from typing import Any

from fledge.engine.overflow import LongInput
from fledge.errors import RequestError
from fledge.serve.fields import Fields, words, wrong

TRUNCATION_FIELDS = words("truncation overflow truncation_side truncate_prompt_tokens")
POLICIES = {"auto": "truncate", "disabled": "refuse"}


def read_long_input(fields: Fields) -> dict[str, Any]:
    """The fields of LongInput that a body sets; the server's own word holds for the others. Raises RequestError."""
    if not any(map(fields.has, TRUNCATION_FIELDS)):
        return {}
    given: dict[str, Any] = {}
    truncation, overflow = fields.text("truncation"), fields.text("overflow")
    if truncation is not None and truncation not in POLICIES:
        raise wrong("truncation", '"auto" or "disabled"', truncation)
    n = fields.integer("truncate_prompt_tokens")
    if n is not None and n != -1 and n < 1:
        raise wrong("truncate_prompt_tokens", "at least 1, or -1 for what the context holds", n)
    policies = {
        "truncation": POLICIES.get(truncation or ""), "overflow": overflow,
        "truncate_prompt_tokens": "truncate" if n == -1 else None,
    }  # fmt: skip
    said = {name: policy for name, policy in policies.items() if policy is not None}
    if len(set(said.values())) > 1:
        first, second = list(said)[:2]
        raise RequestError(f"{second}: differs from {first}; send one of them", second)
    if said:
        given["policy"] = next(iter(said.values()))
    if n is not None and n > 0:
        given["most"] = n
    if (side := fields.text("truncation_side")) is not None:
        given["side"] = side
    LongInput(**given).validated()
    return given
