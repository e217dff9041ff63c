"""What a student loses beside its teacher inside the layers: maps of attention (MiniLM, Wang et al. 2020, arXiv
2002.10957; TinyBERT, Jiao et al. 2020, arXiv 1909.10351), relations of values (MiniLM), states (TinyBERT).

Hooks that live as long as one pass hear what the layers do, so other passes pay nothing for them.
B rows, T tokens, D width, H heads, C head channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fledge.batch import PADDING, Tokens
from fledge.errors import ConfigError
from fledge.model.attention_maps import self_weights
from fledge.model.transformer import Transformer
from fledge.nn.attention import Attention, Context
from fledge.nn.kernels import probabilities
from fledge.nn.visibility import Sight, visible

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

TINY = torch.finfo(torch.float32).tiny


@dataclass
class Heard:
    """Of one pass, by layer: `maps` and `relations` [B, H, T, T], `states` [B, T, D], as far as they were asked for."""

    maps: dict[int, Tensor] = field(default_factory=dict)
    relations: dict[int, Tensor] = field(default_factory=dict)
    states: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class InnerLessons:
    """`pairs`: a layer of the student and the teacher's that it learns from. `maps` ("" for none), `relations` and
    `states` say what is looked at; `relation_heads`: how many heads all values are parted into anew, or 0."""

    pairs: tuple[tuple[int, int], ...]
    maps: str = ""
    relations: bool = False
    relation_heads: int = 0
    states: bool = False

    @contextmanager
    def listening(self, model: Transformer, side: int) -> Iterator[Heard]:
        """What the layers of the student (side 0) or the teacher (1) do in a pass made inside."""
        heard, layers = Heard(), {pair[side] for pair in self.pairs}
        handles: list[RemovableHandle] = []

        def attends(owner: Any, given: tuple[Any, ...]) -> None:
            x, context, index = given
            if index in layers and self.maps:
                heard.maps[index] = self_weights(owner, x, context)
            if index in layers and self.relations:
                heard.relations[index] = value_relation(owner, x, context, self.relation_heads)

        def gives(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            if given[2] in layers and self.states:
                heard.states[given[2]] = output

        stack = model.encoder if model.decoder is None else model.decoder
        for block in stack.blocks() if stack is not None else ():
            handles += [block.attention.register_forward_pre_hook(attends), block.register_forward_hook(gives)]
        try:
            yield heard
        finally:
            for handle in handles:
                handle.remove()

    def terms(
        self, student: Heard, teacher: Heard, tokens: Tokens, widened: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Each term's sum over the tokens that are there, the mean over layers. `widened` takes the student's states
        to the teacher's width."""
        found: dict[str, list[Tensor]] = {}
        distance = map_nats if self.maps == "kl" else map_squares
        for ours, theirs in self.pairs:
            if self.maps:
                found.setdefault("attention", []).append(distance(student.maps[ours], teacher.maps[theirs], tokens))
            if self.relations:
                nats = map_nats(student.relations[ours], teacher.relations[theirs], tokens)
                found.setdefault("values", []).append(nats)
            if self.states:
                squares = state_squares(widened(student.states[ours]), teacher.states[theirs], tokens)
                found.setdefault("states", []).append(squares)
        return {name: torch.stack(each).mean() for name, each in found.items()}


def layer_pairs(n_student: int, n_teacher: int, how: str, named: Sequence[int] = ()) -> tuple[tuple[int, int], ...]:
    """Which layer of the student learns from which of the teacher: `last` the last from the last (MiniLM), `every` the
    m-th of M from the teacher's m·N/M-th (TinyBERT's uniform map); `named`: for each the teacher's, or -1 for none.
    Raises ConfigError for layers that aren't there."""
    if named:
        if len(named) != n_student or not all(-1 <= layer < n_teacher for layer in named) or max(named) < 0:
            raise ConfigError(
                f"teacher.layers: expected a layer of the teacher's {n_teacher}, from 0, or -1 for none, for each of "
                f"the student's {n_student}, got {list(named)}"
            )
        return tuple((ours, theirs) for ours, theirs in enumerate(named) if theirs >= 0)
    if how == "last":
        return ((n_student - 1, n_teacher - 1),)
    if n_teacher % n_student:
        raise ConfigError(
            f"teacher.layer_map: expected a teacher whose layers are a multiple of the student's {n_student} for "
            f"every, got {n_teacher}; name one for each with teacher.layers, or take layer_map=last"
        )
    step = n_teacher // n_student
    return tuple((ours, (ours + 1) * step - 1) for ours in range(n_student))


def value_relation(module: Attention, x: Tensor, context: Context, heads: int) -> Tensor:
    """softmax(V Vᵀ / √C) of each value head, over what a query sees: [B, H, T, T]. Source: MiniLM, §3.2; `heads` > 0
    parts all channels into so many (MiniLM v2, Wang et al. 2021, arXiv 2012.15828, §3.1)."""
    v = module.project(x, context, module.qkv)[2]
    v = v.flatten(2).unflatten(-1, (heads, -1)) if heads else v
    sight = Sight(1 / math.sqrt(v.shape[-1]), module.sight.causal)
    return probabilities(v, v, visible(context.tokens, context.tokens, module.sight), sight, None)


def map_nats(student_BHTT: Tensor, teacher_BHTT: Tensor, tokens: Tokens) -> Tensor:
    """Σ over tokens of the mean over heads of KL(teacher ‖ student) of their rows (MiniLM, §3.1). A share of the
    student's below 1e-38 counts as that."""
    logs = teacher_BHTT.clamp(min=TINY).log() - student_BHTT.clamp(min=TINY).log()
    return (teacher_BHTT * logs).sum(-1).mean(1)[there(tokens)].sum()


def map_squares(student_BHTT: Tensor, teacher_BHTT: Tensor, tokens: Tokens) -> Tensor:
    """Σ over tokens of the mean over heads and over the keys of the token's document of the squared difference of
    their rows (TinyBERT, eq. 7; which takes scores where these are shares of attention)."""
    same = tokens.doc[:, :, None] == tokens.doc[:, None, :]
    each = (student_BHTT - teacher_BHTT).square().sum(-1).mean(1) / same.sum(-1)
    return each[there(tokens)].sum()


def state_squares(student_BTD: Tensor, teacher_BTD: Tensor, tokens: Tokens) -> Tensor:
    """Σ over tokens of the mean over channels of the squared difference (TinyBERT, eq. 8)."""
    exact = torch.promote_types(student_BTD.dtype, torch.float32)
    return (student_BTD.to(exact) - teacher_BTD.to(exact)).square().mean(-1)[there(tokens)].sum()


def there(tokens: Tokens) -> Tensor:
    """bool [B, T]: no padding."""
    return tokens.doc != PADDING
