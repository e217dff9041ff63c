"""Adapters beside a base: nothing changes at first, the base stays frozen, targets mean what they say."""

from __future__ import annotations

import math

import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.errors import ConfigError
from fledge.model.folder import save_model
from fledge.nn.adapter import LowRank
from fledge.nn.linear import pack
from fledge.optim.config import GroupConfig
from fledge.optim.groups import members
from fledge.tune.attach import adapters, trained_parameters, tune
from fledge.tune.config import TuneConfig
from tests.compress.tiny import ids, logits, tiny

FAMILIES = ("llama", "gpt2", "gpt_neox", "phi3")
METHODS = {
    "lora": TuneConfig("lora"),
    "everywhere": TuneConfig("lora", targets=("all-linear", "embedding", "output")),
    "rslora": TuneConfig("lora", rslora=True, dropout=0.5),
    "dora": TuneConfig("lora", dora=True, targets=("all-linear",)),
    "ia3": TuneConfig("ia3"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_adapter_leaves_every_logit_as_it_was_bit_by_bit(name, method):
    model = tiny(name)
    before = logits(model)
    tune(model, METHODS[method])
    assert torch.equal(logits(model), before)
    with torch.no_grad():  # the control: any other value of what begins as zero or one shows
        for _, adapter in adapters(model):
            parameter = adapter.vector if method == "ia3" else adapter.up
            parameter.add_(0.1)
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapters_get_gradients_and_all_of_them_do(method):
    model = tune(tiny("llama"), METHODS[method]).train()
    with torch.no_grad():
        for _, adapter in adapters(model):
            if method != "ia3":  # B is zero at first, so that A has no gradient yet
                adapter.up.add_(0.1)
                adapter.down.add_(0.1)
    rows = ids()
    model.loss_sum(one_document(rows[:, :-1]), OneDocument(), rows[:, 1:], torch.ones(4, 23)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == ("adapter." in name), name
        assert parameter.requires_grad == ("adapter." in name)


def test_the_gradient_of_an_update_is_the_one_of_the_formula():
    """d loss / d B = scale · G (A x)ᵀ and d loss / d A = scale · Bᵀ G xᵀ, from the gradient G of the output."""
    torch.manual_seed(0)
    one, x, weight = LowRank(5, 7, 2, 1.5), torch.randn(3, 5), torch.randn(7, 5)
    with torch.no_grad():
        one.down.normal_(), one.up.normal_()
    upstream = torch.randn(3, 7)
    (one(x, x @ weight.t(), lambda: weight, None) * upstream).sum().backward()
    torch.testing.assert_close(one.up.grad, 1.5 * upstream.t() @ (x @ one.down.t()))
    torch.testing.assert_close(one.down.grad, 1.5 * one.up.t() @ upstream.t() @ x)


def test_a_begins_kaiming_uniform_as_peft_has_it_and_a_seed_decides_it():
    first, again, other = (tune(tiny("llama"), TuneConfig("lora", 32), seed) for seed in (1, 1, 2))
    drawn = torch.cat([adapter.down.detach().flatten() for _, adapter in adapters(first)])
    bound = 1 / math.sqrt(64)  # √(6 / ((1 + 5) · inputs))
    assert drawn.abs().max() <= bound and drawn.abs().max() > 0.99 * bound
    assert float(drawn.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    pairs = zip(adapters(first), adapters(again), adapters(other), strict=True)
    for (_, one), (_, two), (_, three) in pairs:
        assert torch.equal(one.down, two.down) and not torch.equal(one.down, three.down)
        assert not one.up.any()


def placed(name: str, **more) -> dict[str, LowRank]:
    return {place.path: one for place, one in adapters(tune(tiny(name), TuneConfig("lora", **more)))}


def test_targets_are_told_by_their_names_by_ours_and_by_expressions():
    theirs, own = placed("llama", targets=("q_proj", "v_proj")), placed("llama")
    assert list(theirs) == list(own) and len(own) == 4
    assert list(placed("llama", targets=(r"model\.layers\.1\.self_attn\.[qk]_proj",))) == [
        "decoder.layers.1.attention.qkv.q", "decoder.layers.1.attention.qkv.k",
    ]  # fmt: skip
    assert list(placed("gpt2", targets=("c_attn",))) == [f"decoder.layers.{i}.attention.qkv" for i in (0, 1)]
    assert len(placed("gpt2", targets=("q", "v"))) == 4
    assert len(placed("llama", targets=("all-linear",), exclude=("lm_head", "layers.0.mlp.up_proj"))) == 13


def test_patterns_give_modules_ranks_and_alphas_of_their_own():
    found = placed(
        "llama", rank=4, alpha=8.0, rank_pattern={"v_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 4}
    )
    by_end = {path[15:].replace(".attention.qkv", ""): (one.rank, one.scale) for path, one in found.items()}
    assert by_end == {"0.q": (4, 2.0), "0.v": (2, 4.0), "1.q": (4, 1.0), "1.v": (2, 4.0)}
    rooted = placed("llama", rank=4, alpha=8.0, rslora=True)
    assert {one.scale for one in rooted.values()} == {4.0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"targets": ("qproj",)}, r"tune\.targets: expected names of linear maps .*, got 'qproj'.*q_proj"),
        ({"exclude": ("q", "v")}, "expected to leave something to tune"),
        ({"targets": ("embed_tokens",), "dora": True}, "embed_tokens, an embedding"),
    ],
)
def test_targets_that_a_model_does_not_have_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        placed("llama", **config)


def test_a_module_and_a_map_in_it_are_not_tuned_twice():
    with pytest.raises(ConfigError, match=r"expected transformer\.h\.0\.attn\.c_attn or maps in it, got both"):
        placed("gpt2", targets=("c_attn", "q"))
    with pytest.raises(ConfigError, match="one scale for the maps"):
        placed("gpt2", targets=("q", "v"), alpha_pattern={"q": 3.0})


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0}, {"alpha": 0.0}, {"alpha": math.inf}, {"dropout": 1.0}, {"rank_pattern": {"q": 0}},
        {"targets": ("(",)}, {"targets": ("(a+)+b",)}, {"method": "ia3", "dora": True},
    ],
)  # fmt: skip
def test_numbers_and_patterns_out_of_range_are_refused(wrong):
    TuneConfig("lora")  # the control
    with pytest.raises(ConfigError, match="tune"):
        TuneConfig(**{"method": "lora", **wrong})


def test_what_has_adapters_is_neither_tuned_again_nor_saved_and_packed_as_it_is(tmp_path):
    model = tune(tiny("llama"), TuneConfig("lora", targets=("o_proj",)))
    with pytest.raises(ConfigError, match="merge them first"):
        tune(model, TuneConfig("lora"))
    with pytest.raises(ConfigError, match="adapters beside them"):
        save_model(model, tmp_path)
    attention = model.decoder.layers[0].attention
    assert pack(attention.out) is attention.out and pack(attention.qkv) is not attention.qkv
    save_model(tiny("llama"), tmp_path)  # the control
    assert trained_parameters(tune(tiny("llama"), TuneConfig("full"))) == trained_parameters(tiny("llama"))


def test_muon_leaves_adapters_to_adamw_unless_a_group_gives_it_matrices():
    model = tune(tiny("llama"), TuneConfig("lora", targets=("q", "down"), dora=True))
    assert {one.method for one in members(model, "muon", 0.1)} == {"adamw"}
    found = members(model, "muon", 0.1, [GroupConfig("*.adapter.down", optimizer="muon")])
    assert {one.name.endswith("adapter.down") for one in found if one.method == "muon"} == {True}
    with pytest.raises(ConfigError, match="expected matrices for muon, got .*magnitude"):
        members(model, "muon", 0.1, [GroupConfig("*.adapter.*", optimizer="muon")])
    assert "muon" in {one.method for one in members(tiny("llama"), "muon", 0.1)}  # the control


@pytest.mark.parametrize(
    ("family", "target"),
    [("mixtral", "w1"), ("mixtral", "experts.0.w1"), ("gpt2", "wpe"), ("bert", "position_embeddings"),
     ("llama", "input_layernorm")],
)  # fmt: skip
def test_experts_tables_of_positions_and_norms_are_refused_by_name(family, target):
    with pytest.raises(ConfigError, match="experts, tables of positions and norms can have no adapter"):
        tune(tiny(family), TuneConfig("lora", targets=(target,)))
