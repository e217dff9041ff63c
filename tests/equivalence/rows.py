"""The table of configurations that must train alike: what is changed, and what would break it.

`variant` and `wrong` take (monkeypatch, config) and give the config to train with; `wrong` is the row's control, the
same change with a mistake in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pytest import MonkeyPatch

from fledge.batch import PADDING, Batch, Layout, Packed, Tokens, padded, slice_rows
from fledge.model import transformer
from fledge.nn import block
from fledge.nn.losses import cross_entropy_sum, fused_cross_entropy_sum
from fledge.optim.adamw import AdamW
from fledge.recipes import masked
from fledge.recipes.config import PretrainConfig
from fledge.recipes.language import LanguageRecipe
from fledge.train.loop import Loop

Change = Callable[[MonkeyPatch, PretrainConfig], PretrainConfig]
OBJECTIVES = ("causal", "masked+next", "spans")


@dataclass(frozen=True)
class Row:
    """One class of equal configurations: `says` what equals what, `breaks` what the control does wrong."""

    name: str
    says: str
    variant: Change
    breaks: str
    wrong: Change
    plain: dict[str, Any] = field(default_factory=dict)
    objectives: tuple[str, ...] = OBJECTIVES


def unchanged(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    return config


def with_train(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    return replace(config, train=replace(config.train, **changes))


def micro(rows: int) -> Change:
    return lambda patch, config: with_train(config, micro_rows=rows)


def mean_of_means(rows: int) -> Change:
    """Each micro-batch by its own weights, and the mean of these losses."""

    def change(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
        def accumulate(self: Loop, batch: Batch, weights: dict[str, float]) -> dict[str, float]:
            terms: dict[str, float] = {}
            for start in range(0, config.train.rows, rows):
                part = slice_rows(batch, start, start + rows)
                own = self.run.recipe.weights(part)
                loss = self.run.recipe.loss(part)
                share = rows / config.train.rows
                values = {n: term.coefficient * term.total * share / own[n] for n, term in loss.terms.items()}
                torch.stack(list(values.values())).sum().backward()
                for name, value in values.items():
                    terms[name] = terms.get(name, 0.0) + float(value.detach())
            return terms

        patch.setattr(Loop, "accumulate", accumulate)
        return config

    return change


def documents(tokens: Tokens, layout: Packed) -> list[slice]:
    """Where each document of packed rows lies in the flattened batch."""
    doc = tokens.doc.flatten()
    bounds = zip(layout.cu_seqlens, layout.cu_seqlens[1:], strict=False)
    return [slice(a, b) for a, b in bounds if doc[a] != PADDING]


def apart(batch: Batch) -> Batch:
    """Each document of a packed batch in a padded row of its own."""
    if not isinstance(batch.layout, Packed):
        return batch
    places = documents(batch.tokens, batch.layout)
    tokens, layout = padded([batch.tokens.ids.flatten()[place].tolist() for place in places])
    targets, weight = torch.zeros_like(tokens.ids), torch.zeros(tokens.ids.shape)
    for row, place in enumerate(places):
        n = place.stop - place.start
        targets[row, :n], weight[row, :n] = batch.targets.flatten()[place], batch.weight.flatten()[place]
    source = batch.source
    if source is not None:
        assert isinstance(source[1], Packed)
        read = documents(source[0], source[1])
        source = padded([source[0].ids.flatten()[place].tolist() for place in read])
    return Batch(tokens, targets, weight, layout, batch.sample_ids, source)


def each_apart(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    drawn = LanguageRecipe.batch
    patch.setattr(LanguageRecipe, "batch", lambda self, index: apart(drawn(self, index)))
    return config


def two_as_one(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    """The first two documents of each batch taken for one, each of which then sees the other."""
    drawn = LanguageRecipe.batch

    def together(self: LanguageRecipe, index: int) -> Batch:
        batch = drawn(self, index)
        if not isinstance(batch.layout, Packed):
            return batch
        source = batch.source and (batch.source[0], joined(batch.source[1]))
        return replace(batch, layout=joined(batch.layout), source=source)

    patch.setattr(LanguageRecipe, "batch", together)
    return config


def joined(layout: Layout) -> Packed:
    """The first two documents of a batch as one."""
    assert isinstance(layout, Packed)
    bounds = (layout.cu_seqlens[0], *layout.cu_seqlens[2:])
    return Packed(bounds, max(b - a for a, b in zip(bounds, bounds[1:], strict=False)))


def recomputed(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    return with_train(config, checkpoint_blocks=True)


def recomputed_with_other_dropout(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    real = block.checkpoint
    patch.setattr(block, "checkpoint", lambda *a, **k: real(*a, **k | {"preserve_rng_state": False}))
    return with_train(config, checkpoint_blocks=True)


def compiled(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    """Every block by torch's real compiler."""
    return with_train(config, compile="blocks")


def compiled_with_other_dropout(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    """The compiler's own random numbers in place of the plain pass's."""
    real = torch.compile
    patch.setattr(torch, "compile", lambda function, backend, options: real(function, backend=backend))
    torch._dynamo.reset()
    return compiled(patch, config)


def in_chunks(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    def chunks(hidden, matrix, targets, weight, bias=None):  # type: ignore[no-untyped-def]
        return fused_cross_entropy_sum(hidden, matrix, targets, weight, bias, chunk_rows=7)

    set_loss(patch, chunks)
    return config


def all_logits(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    def whole(hidden, matrix, targets, weight, bias=None):  # type: ignore[no-untyped-def]
        return cross_entropy_sum(torch.nn.functional.linear(hidden, matrix, bias), targets, weight)

    set_loss(patch, whole)
    return config


def the_last_chunk_left_out(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    def chunks(hidden, matrix, targets, weight, bias=None):  # type: ignore[no-untyped-def]
        kept = targets.numel() // 7 * 7
        flat = hidden.flatten(0, -2)[:kept], targets.flatten()[:kept], weight.flatten()[:kept]
        return fused_cross_entropy_sum(flat[0], matrix, flat[1], flat[2], bias, chunk_rows=7)

    set_loss(patch, chunks)
    return config


def set_loss(patch: MonkeyPatch, function: Callable[..., torch.Tensor]) -> None:
    patch.setattr(transformer, "fused_cross_entropy_sum", function)
    patch.setattr(masked, "fused_cross_entropy_sum", function)


def stopped_after_every_step(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    """Save, stop and go on from the checkpoint after each step."""
    real = Loop.leave_if_asked

    def leave(self: Loop) -> None:
        if self.saver.saved_step != self.state.step and 0 < self.state.step < self.config.steps:
            self.stop.asked = True  # type: ignore[misc]
        real(self)

    patch.setattr(Loop, "leave_if_asked", leave)
    return config


def moments_forgotten(patch: MonkeyPatch, config: PretrainConfig) -> PretrainConfig:
    patch.setattr(AdamW, "load", lambda self, saved: None)
    return stopped_after_every_step(patch, config)


WIDE = {"model": {"context_tokens": 160}, "train": {"row_tokens": 48}}


DROPOUT = {"model": {"dropout": 0.1}}
ROWS = [
    Row("accumulate 2", "one batch, two micro-batches", micro(4), "the mean of two means", mean_of_means(4)),
    Row("accumulate 8", "one batch, eight micro-batches", micro(1), "the mean of eight means", mean_of_means(1)),
    Row(
        "packed", "short documents side by side, each in a padded row of its own", each_apart,
        "two documents of a batch taken for one", two_as_one, WIDE, ("causal", "masked", "spans"),
    ),
    Row(
        "checkpointing", "activations kept, blocks computed again, dropout 0.1", recomputed,
        "another dropout in the second pass", recomputed_with_other_dropout, DROPOUT,
    ),
    Row(
        "compiled", "eager, blocks compiled, dropout 0.1", compiled,
        "another dropout in the compiled pass", compiled_with_other_dropout, DROPOUT,
    ),
    Row(
        "chunked cross-entropy", "one product for the logits, chunks of seven targets", in_chunks,
        "the last chunk left out", the_last_chunk_left_out,
    ),
    Row(
        "full cross-entropy", "the fused loss, torch's over all logits", all_logits,
        "the last chunk left out", the_last_chunk_left_out,
    ),
    Row(
        "resume", "one process, stopped and resumed after every step", stopped_after_every_step,
        "the optimizer begins anew", moments_forgotten,
    ),
]  # fmt: skip
