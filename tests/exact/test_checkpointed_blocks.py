"""Blocks that are computed again in the backward pass: the same bits of every gradient, in less memory."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from fledge.batch import OneDocument, one_document
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn import bias, block
from fledge.nn.feedforward import Experts, load_balance
from fledge.nn.live_bytes import LiveBytes

MIXTURE = {"experts": 4, "experts_per_token": 2, "hidden": 64}
CASES = {
    "llama": ("llama", {}, 48),
    "gpt2, dropout": ("gpt2", {"dropout": 0.1}, 48),
    "bert, dropout": ("bert", {"dropout": 0.1}, 48),
    "deberta-v2, dropout and convolution": ("deberta-v2", {"dropout": 0.1, "conv_kernel": 3}, 48),
    "albert, one block for all layers": ("albert", {"dropout": 0.1}, 48),
    "t5, dropout": ("t5", {"dropout": 0.2}, 48),
    "bart": ("bart", {}, 48),
    "bloom": ("bloom", {}, 48),
    "qwen3_moe": ("qwen3_moe", MIXTURE, 48),
    "qwen3_moe, sandwich": ("qwen3_moe", MIXTURE | {"norm_at": "sandwich"}, 48),
    "longformer, block by block": ("longformer", {"window": 64}, 600),
    "linear": ("llama", {"attention": "linear"}, 80),
}


def model_of(name: str, fields: dict) -> Transformer:
    shape = ShapeConfig(name, width=32, layers=4, heads=4, vocab_size=64, context_tokens=1024, **fields)
    return initialise(build(family(name).new_config(shape), "cpu"), 1).train()


def one_pass(model: Transformer, n_tokens: int, seed: int = 3) -> tuple[torch.Tensor, dict, int, int]:
    """Loss, gradients, bytes of tensors after the forward pass, and after the backward pass."""
    generator = torch.Generator().manual_seed(5)
    tokens = one_document(torch.randint(0, 50, (3, n_tokens), generator=generator))
    source = (tokens, OneDocument()) if len(model.config.stacks) == 2 else None
    torch.manual_seed(seed)
    with LiveBytes() as live:
        loss = model.loss_sum(tokens, OneDocument(), tokens.ids, torch.ones(3, n_tokens), source)
        for part in model.modules():
            if isinstance(part, Experts):
                loss = loss + load_balance(part)
        kept = live.now
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, kept, live.now


def equal(a: dict, b: dict) -> bool:
    return all((x is None) == (b[n] is None) and (x is None or torch.equal(x, b[n])) for n, x in a.items())


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_bits_and_the_forward_pass_keeps_less(case):
    name, fields, n_tokens = CASES[case]
    plain = one_pass(model_of(name, fields), n_tokens)
    again = one_pass(model_of(name, fields).checkpoint_blocks(), n_tokens)
    assert torch.equal(plain[0], again[0]) and equal(plain[1], again[1])
    assert again[2] < 0.6 * plain[2]
    assert again[3] < 1.02 * plain[3]  # nothing that was computed again outlives its gradient


def test_another_draw_of_dropout_gives_other_gradients():
    """The control: equality is not that of a model without dropout."""
    model = model_of("gpt2", {"dropout": 0.1}).checkpoint_blocks()
    assert not equal(one_pass(model, 48)[1], one_pass(model_of("gpt2", {"dropout": 0.1}), 48, seed=4)[1])


def test_without_the_state_of_the_generator_dropout_would_differ(monkeypatch):
    real = block.checkpoint
    monkeypatch.setattr(block, "checkpoint", lambda *a, **k: real(*a, **k | {"preserve_rng_state": False}))
    plain, again = model_of("gpt2", {"dropout": 0.1}), model_of("gpt2", {"dropout": 0.1}).checkpoint_blocks()
    assert not equal(one_pass(plain, 48)[1], one_pass(again, 48)[1])


def test_a_bias_that_all_layers_share_must_not_count_as_the_first_blocks_own(monkeypatch):
    monkeypatch.setattr(bias, "as_it_is", nullcontext)
    with pytest.raises(CheckpointError):
        one_pass(model_of("t5", {}).checkpoint_blocks(), 48)


def test_what_experts_noted_would_keep_what_was_computed_again(monkeypatch):
    name, fields, n_tokens = CASES["qwen3_moe, sandwich"]
    plain = one_pass(model_of(name, fields), n_tokens)[3]
    monkeypatch.setattr(block, "noting_nothing", lambda block: nullcontext())
    assert one_pass(model_of(name, fields).checkpoint_blocks(), n_tokens)[3] > 1.02 * plain


def test_nothing_is_computed_again_outside_training():
    model = model_of("gpt2", {}).checkpoint_blocks()
    calls = []
    model.decoder.layers[0].register_forward_pre_hook(lambda *given: calls.append(1))
    one_pass(model, 8)
    assert len(calls) == 2
    model.eval()
    one_pass(model, 8)
    assert len(calls) == 3
    with torch.no_grad():
        tokens = one_document(torch.zeros(1, 8, dtype=torch.int64))
        model.train()(tokens, OneDocument())
    assert len(calls) == 4


def test_batch_norm_is_refused():
    with pytest.raises(ConfigError, match="would move twice"):
        model_of("bert", {"norm": "batch"}).checkpoint_blocks()
    model_of("bert", {"norm": "batch"}).checkpoint_blocks(False)
