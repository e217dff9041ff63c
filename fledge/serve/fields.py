"""Typed reading of a request's fields, and the rule for fields that are not known.

No coercion: a boolean is not a number, "0.7" is not a number, 16.0 is not an integer. null means absent, as in
OpenAI's schema. Unknown fields are ignored and counted, since real clients send vendors' extras; a field that is one or
two edits away from a standard field that is missing is a misspelling, and a 400 that names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fledge.errors import RequestError
from fledge.serve.body import shown

MAX_FIELDS = 256


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VENDOR_FIELDS = words(
    "top_a tfs tfs_z mirostat mirostat_tau mirostat_eta epsilon_cutoff eta_cutoff min_length max_length "
    "repeat_penalty repeat_last_n n_predict n_keep cache_prompt id_slot "
    "samplers keep_alive options format think transforms route provider models plugins "
    "guided_decoding_backend chat_template chat_template_kwargs "
    "add_generation_prompt continue_final_message skip_special_tokens spaces_between_special_tokens documents "
    "include_stop_str_in_output prompt_logprobs allowed_token_ids bad_words priority request_id "
    "return_tokens_as_token_ids cache_salt kv_transfer_params vllm_xargs mm_processor_kwargs "
    "include_reasoning reasoning thinking extra_body extra_headers timeout api_key num_retries tags"
)


class Fields:
    """The fields of one JSON object. Every reader gives the default when the field is absent or null."""

    def __init__(self, tree: dict[str, Any]):
        self.tree = tree

    def has(self, name: str) -> bool:
        return self.tree.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int | None:
        return self.typed(name, (int,), "an integer", default)

    def number(self, name: str, default: float) -> float:
        return self.typed(name, (int, float), "a number", default)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.tree.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(name, "true or false", value)
        return default if value is None else value

    def text(self, name: str, default: str | None = None) -> str | None:
        return self.typed(name, (str,), "a string", default)

    def array(self, name: str) -> list[Any]:
        return self.typed(name, (list,), "an array", [])

    def mapping(self, name: str) -> dict[str, Any]:
        return self.typed(name, (dict,), "an object", {})

    def typed(self, name: str, types: tuple[type, ...], expected: str, default: Any) -> Any:
        value = self.tree.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, types):
            raise wrong(name, expected, value)
        return value


def wrong(place: str, expected: str, value: object) -> RequestError:
    param = place.partition(".")[0].partition("[")[0]
    return RequestError(f"{place}: expected {expected}, got {shown(value)}", param)


def count_unknown(tree: dict[str, Any], known: frozenset[str], strict: bool = False) -> int:
    """How many fields are ignored. Raises RequestError for a misspelt standard field, and if `strict` for any."""
    if len(tree) > MAX_FIELDS:
        raise RequestError(f"The body has {len(tree)} fields; expected at most {MAX_FIELDS}.")
    unknown = [name for name in tree if name not in known]
    missing = [name for name in known if name not in tree] if unknown else []
    for name in unknown:
        meant = None if name in VENDOR_FIELDS else nearest(name, missing)
        if meant is not None:
            raise RequestError(f"{name[:64]}: unknown field; did you mean {meant}?", name[:64], "unknown_field")
        if strict:
            raise RequestError(f"{name[:64]}: unknown field, and this server is strict", name[:64], "unknown_field")
    return len(unknown)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` misspells: other case or punctuation, or two edits away (one for short names)."""
    if len(name) > 64:
        return None
    best: tuple[int, str] | None = None
    plain = name.lower().replace("_", "").replace("-", "")
    for candidate in candidates:
        if len(candidate) < 4:  # everything short is near "n"
            continue
        if plain == candidate.replace("_", ""):
            return candidate
        distance = edit_distance(name.lower(), candidate, 2)
        if distance <= (2 if len(candidate) > 5 else 1) and (best is None or (distance, candidate) < best):
            best = (distance, candidate)
    return best[1] if best else None


def edit_distance(left: str, right: str, limit: int) -> int:
    """Insertions, deletions, replacements and swaps of neighbours (optimal string alignment); more than `limit` is
    `limit` + 1."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    before: list[int] = []
    above = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        row = [i]
        for j, b in enumerate(right, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, above = above, row
    return min(above[-1], limit + 1)
