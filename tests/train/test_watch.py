"""What a watched step says of each layer, against figures computed by hand; watching changes no bit."""

from __future__ import annotations

import math

import pytest
import torch

from fledge.batch import slice_rows
from fledge.log import read_log
from fledge.train.watch import group_of
from tests.train.test_loop import go, settings, toy
from tests.train.test_precision import no_measuring  # noqa: F401 (a fixture)


def watched(folder) -> list[dict]:
    return [event for event in read_log(folder / "log.jsonl") if event["kind"] == "watch"]


def test_norms_and_the_share_moved_are_those_of_the_weights_before_and_after(tmp_path):
    recipe, before, after = toy(), toy(), toy()
    go(tmp_path / "run", recipe, settings(steps=1, watch_every_steps=1))
    go(tmp_path / "after", after, settings(steps=1))
    batch = before.batch(0)
    loss = before.loss(batch).terms["nats"]
    (loss.total / loss.weight).backward()
    layers = watched(tmp_path / "run")[0]["layers"]
    assert set(layers) == {"embedding", "decoder.layers.0", "decoder.norm", "output"}
    for layer, found in layers.items():
        old = [p for n, p in before.model.named_parameters() if group_of(n) == layer]
        new = [p for n, p in after.model.named_parameters() if group_of(n) == layer]

        def norm(tensors) -> float:
            return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))

        assert found["gradient_norm"] == pytest.approx(norm([p.grad for p in old]), rel=1e-5)
        assert found["weight_norm"] == pytest.approx(norm(old), rel=1e-5)
        moved = norm([a - b for a, b in zip(new, old, strict=True)])
        assert found["update_share"] == pytest.approx(moved / norm(old), rel=1e-3)


def test_watching_changes_no_bit_and_only_asked_steps_are_written(tmp_path):
    plain, seen = toy(), toy()
    go(tmp_path / "plain", plain, settings(steps=5))
    go(tmp_path / "seen", seen, settings(steps=5, watch_every_steps=2, micro_rows=1))
    go(tmp_path / "apart", toy_apart := toy(), settings(steps=5, micro_rows=1))
    assert [event["step"] for event in watched(tmp_path / "seen")] == [2, 4] and watched(tmp_path / "plain") == []
    pairs = zip(toy_apart.model.parameters(), seen.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not seen.model.decoder.layers[0].ffn.down._forward_pre_hooks  # type: ignore[union-attr]


def test_units_that_say_nothing_are_counted_over_all_micro_batches(tmp_path):
    recipe = toy()
    ffn = recipe.model.decoder.layers[0].ffn  # type: ignore[union-attr]
    hidden = ffn.down.weight.shape[1]
    with torch.no_grad():
        ffn.inward.up.weight[: hidden // 4] = 0.0
    go(tmp_path, recipe, settings(steps=1, watch_every_steps=1, micro_rows=1))
    found = watched(tmp_path)[0]["layers"]["decoder.layers.0"]
    assert found["dead"] == pytest.approx((hidden // 4) / hidden) and found["largest"] > 1
    kept: list[torch.Tensor] = []
    fresh = toy()
    with torch.no_grad():
        fresh.model.decoder.layers[0].ffn.inward.up.weight[: hidden // 4] = 0.0  # type: ignore[union-attr]
    fresh.model.decoder.layers[0].ffn.down.register_forward_pre_hook(lambda _, given: kept.append(given[0]))  # type: ignore
    batch = fresh.batch(0)
    for row in range(2):
        fresh.loss(slice_rows(batch, row, row + 1))
    whole = torch.cat([one.detach().flatten(0, -2) for one in kept])
    assert found["largest"] == pytest.approx(float(whole.abs().max() / whole.square().mean().sqrt()), rel=1e-5)


def test_a_step_that_was_left_out_is_not_written(tmp_path):
    recipe = toy()
    recipe.during_loss = lambda index: math.nan if index == 1 else 0.0
    go(tmp_path, recipe, settings(steps=3, watch_every_steps=1, non_finite="skip"))
    assert [event["step"] for event in watched(tmp_path)] == [1, 2, 3]
