"""What is done with a prompt that, with its answer, is longer than the context. Imports no torch.

`refuse` is an error, `truncate` cuts the prompt, `window` goes on past the context with the last tokens visible
(fledge/model/stretch.py), `sinks` with the first few and the last. What is cut is counted and told; nothing is cut that
fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fledge.errors import RequestError

Policy = Literal["refuse", "truncate", "window", "sinks"]
Side = Literal["left", "right"]

OPEN_SHARE = 4  # an answer of open length gets this part of the context where a prompt has to be cut
SINKS_REACH = 2**24  # longest prompt and answer with sinks: a bound against mistakes
NO_REACH = "overflow: window needs an engine that reaches past the context; start it with reach_tokens, or use sinks"


@dataclass(frozen=True)
class LongInput:
    """A policy. `side`: where `truncate` cuts; left keeps the end, and a BOS token before it. `most`: longer prompts
    are cut to so many tokens even where the context holds more; 0: they are not. `sinks`: how many tokens at the
    beginning the policy of that name keeps."""

    policy: Policy = "refuse"
    side: Side = "left"
    most: int = 0
    sinks: int = 4

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
        return self

    def longest(self, context_tokens: int, reach_tokens: int) -> int:
        """Prompt and answer have at most so many tokens together. Raises RequestError for a window where the engine
        has none."""
        if self.policy == "sinks":
            return SINKS_REACH
        if self.policy != "window":
            return context_tokens
        if not reach_tokens:
            raise RequestError(NO_REACH, "overflow", "unsupported_parameter")
        return reach_tokens

    def open_tokens(self, context_tokens: int, open_tokens: int | None = None) -> int | None:
        """The most that an answer without `max_tokens` has, None: all that is left. With sinks something is always
        left, so it is a context."""
        return context_tokens if open_tokens is None and self.policy == "sinks" else open_tokens

    def sliding(self, context_tokens: int) -> Sliding | None:
        """How a document moves past the context under `sinks`."""
        return Sliding(context_tokens, min(self.sinks, context_tokens // 2)) if self.policy == "sinks" else None

    def hidden(self, n_tokens: int, context_tokens: int) -> int:
        """How many of the first `n_tokens` tokens of a text the next one doesn't see under `sinks`."""
        sliding = self.sliding(context_tokens)
        return 0 if sliding is None else sliding.hidden(n_tokens)

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


@dataclass(frozen=True)
class Sliding:
    """A text of any length in a context: its first `sinks` tokens and its last ones, read as one document from position
    0 on. When that is full, half of what stands behind the sinks leaves it at once, so what is visible follows from the
    number of tokens alone and is read again once in so many tokens.

    Source: attention sinks, Xiao et al. 2023 (arXiv 2309.17453), as their sliding window with re-computation; what
    leaves is that of llama.cpp's context shift.
    """

    context_tokens: int
    sinks: int

    def hidden(self, n_tokens: int) -> int:
        """How many tokens behind the sinks are hidden when the text has `n_tokens`."""
        step = max(1, (self.context_tokens - self.sinks) // 2)
        return max(0, -(-(n_tokens - self.context_tokens) // step)) * step


def cut(ids: Sequence[int], n: int, side: Side, bos_id: int | None = None) -> tuple[int, ...]:
    """`n` of the ids, n > 0: the last ones, a BOS token before them counted, or the first ones."""
    if len(ids) <= n:
        return tuple(ids)
    if side == "right":
        return tuple(ids[:n])
    begins = n > 1 and ids[0] == bos_id
    return (ids[0], *ids[len(ids) - n + 1 :]) if begins else tuple(ids[len(ids) - n :])
