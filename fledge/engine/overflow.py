"""What is done with a prompt that, with its answer, is longer than the context. Imports no torch.

`refuse` is an error, `truncate` cuts the prompt, `window` goes on past the context with the last tokens visible
(fledge/model/stretch.py). What is cut is counted and told; nothing is cut that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fledge.errors import RequestError

Policy = Literal["refuse", "truncate", "window", "sinks"]
Side = Literal["left", "right"]

OPEN_SHARE = 4  # an answer of open length gets this part of the context where a prompt has to be cut
NO_SINKS = (
    "overflow: sinks is not supported: keys lie in the cache turned to their place in the text, and attention sinks "
    "read them at their place in the cache, which moves with every token; use window or truncate"
)
NO_REACH = "overflow: window needs an engine that reaches past the context; start it with reach_tokens, or truncate"


@dataclass(frozen=True)
class LongInput:
    """A policy. `side`: where `truncate` cuts; left keeps the end, and a BOS token before it. `most`: longer prompts
    are cut to so many tokens even where the context holds more; 0: they are not."""

    policy: Policy = "refuse"
    side: Side = "left"
    most: int = 0

    def validated(self) -> LongInput:
        """This. Raises RequestError naming the field."""
        for name, value, known in (
            ("overflow", self.policy, get_args(Policy)),
            ("truncation_side", self.side, get_args(Side)),
        ):
            if value not in known:
                raise RequestError(f"{name}: expected one of {', '.join(known)}, got {value!r:.40}", name)
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 0:
            raise RequestError(f"truncate_prompt_tokens: expected at least 1, got {self.most!r:.40}")
        if self.policy == "sinks":
            raise RequestError(NO_SINKS, "overflow", "unsupported_parameter")
        return self

    def longest(self, context_tokens: int, reach_tokens: int) -> int:
        """Prompt and answer have at most so many tokens together. Raises RequestError for a window where the engine
        has none."""
        if self.policy != "window":
            return context_tokens
        if not reach_tokens:
            raise RequestError(NO_REACH, "overflow", "unsupported_parameter")
        return reach_tokens

    def room(self, max_tokens: int | None, context_tokens: int, open_tokens: int | None = None) -> tuple[int, int]:
        """(longest prompt that stays whole, what a longer one is cut to). An answer without `max_tokens` is left
        `open_tokens`, or a quarter of the context."""
        whole = cut_to = context_tokens if self.most == 0 else self.most
        if self.policy == "truncate":
            answer = max_tokens or min(context_tokens - 1, open_tokens or max(1, context_tokens // OPEN_SHARE))
            whole = min(whole, context_tokens - (max_tokens or 1))
            cut_to = min(cut_to, context_tokens - answer)
        elif self.most == 0:
            whole = cut_to = 2**63  # the rule about lengths has its say
        return whole, cut_to

    def cut(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        context_tokens: int,
        bos_id: int | None = None,
        open_tokens: int | None = None,
    ) -> tuple[int, ...]:
        """A prompt's ids, cut as this says; whole where no prompt leaves room for the answer."""
        whole, cut_to = self.room(max_tokens, context_tokens, open_tokens)
        return cut(ids, cut_to, self.side, bos_id) if len(ids) > whole and cut_to > 0 else tuple(ids)


def cut(ids: Sequence[int], n: int, side: Side, bos_id: int | None = None) -> tuple[int, ...]:
    """`n` of the ids, n > 0: the last ones, a BOS token before them counted, or the first ones."""
    if len(ids) <= n:
        return tuple(ids)
    if side == "right":
        return tuple(ids[:n])
    begins = n > 1 and ids[0] == bos_id
    return (ids[0], *ids[len(ids) - n + 1 :]) if begins else tuple(ids[len(ids) - n :])
