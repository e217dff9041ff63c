"""FLOPs of attention: pairs counted one by one in the mask, and products counted by torch as they run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fledge.batch import OneDocument, one_document
from fledge.model.config import ShapeConfig
from fledge.model.count import flops_per_token
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.pairs import keys_per_query, visible_pairs
from fledge.model.transformer import build
from fledge.nn.config import BigBird, Dense, Fixed, Heads, LayerConfig, Longformer, Strided
from fledge.nn.visibility import Sight, visible

HEADS = LayerConfig(Heads(4, 4, 8), Dense(32, "gelu"))
DECODERS = [
    {}, {"window": 1}, {"window": 7}, {"window": 500}, {"pattern": Strided(5)}, {"pattern": Strided(1)},
    {"pattern": Fixed(5)}, {"pattern": Fixed(6, 2)}, {"pattern": Fixed(4, 9)},
]  # fmt: skip
ENCODERS = [
    {}, {"window": 1}, {"window": 8}, {"window": 9}, {"window": 500}, {"pattern": Longformer(6)},
    {"pattern": Longformer(300)}, {"pattern": BigBird(4, 2)}, {"pattern": BigBird(4, 3, fixed=True)},
    {"pattern": BigBird(3, 1, full_tokens=40)},
]  # fmt: skip


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 17, 40, 63])
@pytest.mark.parametrize(
    ("fields", "causal"), [*((f, True) for f in DECODERS), *((f, False) for f in ENCODERS)], ids=str
)
def test_visible_pairs_are_those_of_the_mask(fields, causal, n_tokens):
    layer = replace(HEADS, **fields)
    tokens = one_document(torch.zeros(1, n_tokens, dtype=torch.int64))
    mask = visible(tokens, tokens, Sight(1.0, causal, layer.window, layer.pattern))[0]
    assert visible_pairs(layer, n_tokens, causal) == int(mask.sum())
    # mirrored: what is seen one way or the other
    both = (mask | mask.T) if causal else mask
    assert keys_per_query(layer, n_tokens, causal) * n_tokens == pytest.approx(int(both.sum()))


def test_a_pattern_costs_less_than_full_attention_and_full_attention_the_published_formula():
    for causal, some in ((True, DECODERS), (False, ENCODERS)):
        assert keys_per_query(HEADS, 1024, causal) == 1024
        sparse = [replace(HEADS, **fields) for fields in some if "pattern" in fields]
        assert sparse and all(keys_per_query(layer, 1024, causal) < 1024 for layer in sparse if layer.pattern.__class__
                              is not Fixed and layer.pattern != Strided(1))  # fmt: skip


# torch's counter knows the fused kernels of GPUs alone
FUSED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
RUN = {
    "full": ("bert", {}),
    "linear": ("bert", {"attention": "linear"}),
    "causal linear": ("gpt2", {"attention": "linear"}),
    "linformer": ("bert", {"attention": "linformer", "rank": 8}),
}


def counted_and_run(name: str, fields: dict, n_tokens: int) -> tuple[float, float]:
    """FLOPs of a forward pass: from the config, and as torch counts its products."""
    shape = ShapeConfig(name, width=128, layers=2, heads=4, vocab_size=64, context_tokens=256, **fields)
    config = family(name).new_config(shape)
    model = initialise(build(config, "cpu"), 1).eval()
    tokens = one_document(torch.zeros(1, n_tokens, dtype=torch.int64))
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        model(tokens, OneDocument())
    return flops_per_token(config, n_tokens) / 3 * n_tokens, counter.get_total_flops()


@pytest.mark.parametrize("case", RUN)
def test_flops_are_those_that_run(case):
    name, fields = RUN[case]
    for n_tokens in (64, 256):
        counted, run = counted_and_run(name, fields, n_tokens)
        # norms and biases are in N and no products; a kernelised denominator is a product and not in the count
        assert counted == pytest.approx(run, rel=0.03)
    as_if_full = counted_and_run(name, {}, 256)[0]
    assert case == "full" or as_if_full > 1.1 * run  # the control
