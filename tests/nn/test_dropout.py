"""Dropout stands where torch's encoder layer has it, drops as much as it says and nothing in use; layers are left out
whole; a seed decides all of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fledge.batch import OneDocument, one_document
from fledge.errors import ConfigError, Interrupted
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn.attention import Context
from fledge.nn.block import Block
from fledge.nn.kernels import attend, dense
from fledge.nn.visibility import Sight
from fledge.recipes.dropout import with_dropout
from fledge.train.config import DropoutConfig
from fledge.train.resume import changes
from tests.train import test_loop
from tests.train.test_loop import Toy, go, settings
from tests.train.test_precision import no_measuring  # noqa: F401 (a fixture)

WIDTH, HEADS, TOKENS = 32, 4, 12
ALL = DropoutConfig(embedding=0.1, residual=0.2, attention=0.3, feed_forward=0.25)


def model_of(
    name: str, kinds: DropoutConfig, everywhere: float = 0.0, layers: int = 2, **fields: object
) -> Transformer:
    shape = ShapeConfig(name, width=WIDTH, layers=layers, heads=HEADS, vocab_size=50, context_tokens=64, **fields)  # type: ignore
    model = initialise(build(family(name).new_config(shape), "cpu"), 1).train()
    return with_dropout(model, everywhere, kinds)


def torchs(block: Block, kinds: DropoutConfig) -> nn.TransformerEncoderLayer:
    """torch's post-norm layer with the weights and the dropout of ours."""
    hidden = block.ffn.down.weight.shape[1]  # type: ignore[union-attr]
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, hidden, 0.0, "gelu", 1e-12, batch_first=True).train()
    layer.self_attn.dropout = kinds.attention
    layer.dropout1.p = layer.dropout2.p = kinds.residual or 0.0
    layer.dropout.p = kinds.feed_forward
    maps = {part: getattr(block.attention.qkv, part) for part in "qkv"}
    pairs = [
        (layer.self_attn.in_proj_weight, torch.cat([m.weight for m in maps.values()])),
        (layer.self_attn.in_proj_bias, torch.cat([m.bias for m in maps.values()])),
        (layer.self_attn.out_proj.weight, block.attention.out.weight),
        (layer.self_attn.out_proj.bias, block.attention.out.bias),
        (layer.linear1.weight, block.ffn.inward.up.weight), (layer.linear1.bias, block.ffn.inward.up.bias),  # type: ignore
        (layer.linear2.weight, block.ffn.down.weight), (layer.linear2.bias, block.ffn.down.bias),  # type: ignore
    ]  # fmt: skip
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    return layer


KINDS = {
    "none": DropoutConfig(),
    "residual": DropoutConfig(residual=0.2),
    "attention": DropoutConfig(attention=0.3),
    "feed_forward": DropoutConfig(feed_forward=0.25),
    "all": replace(ALL, embedding=None),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_stands_where_torchs_encoder_layer_has_it(name):
    """One row: torch's attention gives rows transposed, and masks are drawn in the order of memory."""
    kinds = KINDS[name]
    block = model_of("bert", kinds, layers=1).encoder.blocks()[0]  # type: ignore[union-attr]
    layer = torchs(block, kinds)
    x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
    context = Context(one_document(torch.zeros(1, TOKENS, dtype=torch.int64)), OneDocument(), {})

    def ours(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return block(x, context, 0)

    torch.manual_seed(4)
    theirs = layer(x)
    assert torch.allclose(ours(4), theirs, atol=1e-5)
    assert torch.equal(ours(4), ours(4))
    assert torch.allclose(ours(4), ours(5)) == (name == "none")  # the control


@pytest.mark.parametrize("path", ["fused", "masked", "dense"])
def test_a_share_of_attention_weights_is_dropped_and_their_sum_is_kept_on_average(path):
    n, share = 64, 0.3
    q = torch.zeros(4, n, 2, n)
    v = torch.eye(n)[None, :, None, :].expand(4, n, 2, n).contiguous()  # what comes out are the weights
    tokens, sight = one_document(torch.zeros(4, n, dtype=torch.int64)), Sight(1.0, causal=False, dropout=share)
    torch.manual_seed(3)
    if path == "dense":
        weights = dense(q, q, v, torch.ones(1, n, n, dtype=torch.bool), sight)
    else:
        layout_sight = sight if path == "fused" else replace(sight, window=2 * n)
        weights = attend(q, q, v, tokens, OneDocument(), layout_sight, None)
    total = weights.numel()
    dropped = int((weights == 0).sum())
    assert abs(dropped - share * total) < 5 * math.sqrt(total * share * (1 - share))
    assert torch.allclose(weights[weights > 0], torch.tensor(1 / n / (1 - share)))
    assert weights.sum(-1).mean() == pytest.approx(1.0, rel=0.01)


def test_nothing_is_dropped_in_use():
    plain = model_of("gpt2", DropoutConfig()).eval()
    dropping = model_of("gpt2", replace(ALL, layers=0.5)).eval()
    tokens = one_document(torch.arange(TOKENS)[None])
    assert torch.equal(plain(tokens, OneDocument()), dropping(tokens, OneDocument()))
    assert not torch.equal(plain(tokens, OneDocument()), dropping.train()(tokens, OneDocument()))  # the control


def test_a_share_of_layers_is_left_out_whole_and_nothing_is_scaled():
    layers, share, passes = 8, 0.25, 150
    model = model_of("llama", DropoutConfig(layers=share), layers=layers)
    plain = model_of("llama", DropoutConfig(), layers=layers)
    tokens = one_document(torch.arange(4)[None])
    entered: list[int] = []
    blocks = model.decoder.blocks()  # type: ignore[union-attr]
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, index=index: entered.append(index))
    counts, whole = torch.zeros(layers), 0
    with torch.no_grad():
        expected = plain(tokens, OneDocument())
        for seed in range(passes):
            entered.clear()
            torch.manual_seed(seed)
            found = model(tokens, OneDocument())
            counts[entered] += 1
            left = nn.ModuleList(plain.decoder.layers[i] for i in entered)  # type: ignore[union-attr]
            if seed < 10:  # the pass is that of a model which has only the layers that were entered
                shorter = model_of("llama", DropoutConfig(), layers=layers)
                shorter.decoder.layers = left  # type: ignore[union-attr]
                shorter.decoder.config = replace(
                    shorter.decoder.config, layers=shorter.decoder.config.layers[: len(left)]
                )  # type: ignore
                assert torch.equal(found, shorter(tokens, OneDocument()))
            whole += torch.equal(found, expected)
    spread = math.sqrt(passes * share * (1 - share))
    assert all(abs(float(n) - (1 - share) * passes) < 4.5 * spread for n in counts)
    assert 0 < whole < 0.4 * passes  # 0.75^8 = 0.10 of the passes


@pytest.mark.parametrize("name", ["gpt2", "t5", "llama"])
def test_what_is_computed_again_drops_the_same(name):
    def gradients(again: bool) -> list[torch.Tensor]:
        model = model_of(name, replace(ALL, layers=0.3), layers=3).checkpoint_blocks(again)
        tokens = one_document(torch.arange(TOKENS)[None] % 50)
        source = (tokens, OneDocument()) if len(model.config.stacks) == 2 else None
        torch.manual_seed(6)
        model.loss_sum(tokens, OneDocument(), tokens.ids, torch.ones(1, TOKENS), source).backward()
        return [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def toy() -> Toy:
    shape = ShapeConfig("llama", width=16, layers=3, heads=2, context_tokens=8, vocab_size=20)
    model = initialise(build(family("llama").new_config(shape), "cpu"), 1)
    return Toy(with_dropout(model, 0.0, replace(ALL, layers=0.3)))


def test_seed_batch_and_micro_batch_decide_what_is_dropped(tmp_path, monkeypatch):
    def ends(name: str, stop: int = 0, **keys: object) -> torch.Tensor:
        recipe = toy()
        more = settings(dropout=replace(ALL, layers=0.3), **keys)
        if stop:
            with pytest.raises(Interrupted):
                go(tmp_path / name, toy(), replace(more, stop_after_steps=stop))
            torch.manual_seed(99)
            again = toy()
            with monkeypatch.context() as patch:
                patch.setattr(test_loop, "load_model", lambda path: with_dropout(load_model(path), 0.0, more.dropout))
                go(tmp_path / name, again, more)
            return again.model.embedding.weight.detach()
        go(tmp_path / name, recipe, more)
        return recipe.model.embedding.weight.detach()

    whole = ends("a")
    torch.manual_seed(98)  # whatever was drawn before
    assert torch.equal(whole, ends("b")) and torch.equal(whole, ends("stopped", stop=2))
    assert not torch.equal(whole, ends("seed", seed=2)) and not torch.equal(whole, ends("rows", micro_rows=1))


def test_other_rows_at_once_are_a_change_where_anything_is_dropped():
    def config(micro_rows: int, share: float) -> dict:
        return {"model": {}, "train": {"rows": 4, "micro_rows": micro_rows, "dropout": {"attention": share}}}

    assert changes(config(2, 0.0), config(4, 0.0)) == []
    assert "dropout is drawn by micro-batch" in changes(config(2, 0.1), config(4, 0.1))[0]


def test_embedding_and_residual_follow_the_models_one_number_unless_they_say_otherwise():
    model = model_of("gpt2", DropoutConfig(embedding=0.0), everywhere=0.1)
    assert model.decoder.inputs.dropout == 0.0 and model.decoder.blocks()[0].dropout == 0.1  # type: ignore[union-attr]
    assert model.config.stack.dropout == 0.1


def test_attention_without_weights_for_each_key_refuses_to_drop_them():
    with pytest.raises(ConfigError, match="train.dropout.attention: expected 0 for attention without weights"):
        model_of("llama", DropoutConfig(attention=0.1), attention="linear")
    model = model_of("bert", DropoutConfig(attention=0.1), attention="bigbird", block=4)
    with pytest.raises(ConfigError, match="attended block by block"):
        model.hidden(one_document(torch.zeros(1, 64, dtype=torch.int64)), OneDocument())
    with pytest.raises(ConfigError, match="train.dropout.layers: expected a share"):
        DropoutConfig(layers=1.0)
