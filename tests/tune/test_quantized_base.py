"""Adapters beside whole numbers (QLoRA): what is trained is what is served, and gradients are those of the matrix that
the numbers stand for."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.cli.main import main
from fledge.compress.quantize import quantize, quantize_output, uniform
from fledge.config import from_dict
from fledge.engine.loaded import load
from fledge.engine.row import Row
from fledge.engine.runner import Runner, copied
from fledge.errors import ConfigError, Interrupted
from fledge.model.folder import load_model, save_model
from fledge.model.quantization import INT8, int4
from fledge.model.quantized_files import quantized_maps
from fledge.nn.native.library import library
from fledge.nn.quantized import Int4Linear, shape_of
from fledge.recipes.sft import sft
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import tune
from fledge.tune.config import ShowTunedConfig, TuneConfig
from fledge.tune.folder import load_adapter, save_adapter
from fledge.tune.merge import merge, served
from fledge.tune.show import show
from tests.compress.tiny import ids, logits, tiny
from tests.nn.test_quantized import int4_map, int8_map
from tests.tune.running import config_for, made_place
from tests.tune.theirs import random_adapters

SCHEMES = {"int8": INT8, "int4": int4(32)}
MAPS = {"int8": int8_map, "int4": int4_map}


def quantized(name: str, scheme: str, output: bool = False, **more):
    model = tiny(name, **more)
    quantize(model, uniform(model, SCHEMES[scheme]))
    if output:
        quantize_output(model)
    return model


def dequantized(model):
    """A model in floating point of the matrices that a quantized one's numbers stand for."""
    plain = tiny(model.config.family, context_tokens=model.config.context_tokens)
    state = {name: t for name, t in model.state_dict().items() if name in plain.state_dict() and t.is_floating_point()}
    state |= {name: one.dequantized() for name, one in quantized_maps(model).items()}
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("kind", list(MAPS))
def test_the_gradient_of_the_input_is_that_of_the_matrix_in_float64_and_weights_have_none(kind):
    one, x = MAPS[kind](), torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
    upstream = torch.randn(3, 5, one.scale.shape[0], generator=torch.Generator().manual_seed(2))
    (one(x) * upstream).sum().backward()
    exact = x.detach().double().requires_grad_()
    (exact @ one.dequantized().double().t() * upstream.double()).sum().backward()
    assert (x.grad - exact.grad).abs().max() <= 1e-5 * exact.grad.abs().max()
    assert not any(parameter.requires_grad for parameter in one.parameters())
    other = MAPS[kind](seed=9)  # the control: of another matrix
    assert (x.grad - upstream @ other.dequantized()).abs().max() > 0.1 * exact.grad.abs().max()


@pytest.mark.parametrize("kind", list(MAPS))
def test_with_a_gradient_the_map_gives_the_bits_that_it_gives_without_one(kind):
    one, x = MAPS[kind](), torch.randn(7, 128)
    with torch.no_grad():
        wanted = one(x)
    trained = one(x.clone().requires_grad_())
    assert torch.equal(trained.detach(), wanted) and trained.requires_grad
    assert not torch.equal(wanted, x @ one.dequantized().t() + one.bias)  # the control: rows in int8 are other numbers


CASES = [
    ("llama", "int8", TuneConfig("lora", 4, targets=("all-linear",))),
    ("llama", "int4", TuneConfig("lora", 4, targets=("q", "v", "down", "embed_tokens", "lm_head"))),
    ("gpt2", "int8", TuneConfig("lora", 4, targets=("c_attn", "mlp.c_proj"), dora=True)),
    ("gemma2", "int4", TuneConfig("ia3")),
]


@pytest.mark.parametrize(("name", "scheme", "config"), CASES, ids=[f"{n}-{s}" for n, s, _ in CASES])
def test_what_was_trained_is_what_is_served_from_the_folder(name, scheme, config, tmp_path):
    """The pass of training, its folder read again, and the engine's rows over its cache."""
    save_model(quantized(name, scheme, output=name == "llama"), tmp_path / "base", byte_level())
    model = random_adapters(tune(load_model(tmp_path / "base"), config))
    rows = ids(1)
    trained = model.train()(one_document(rows), OneDocument())
    assert trained.requires_grad
    wanted = trained.detach()[0]
    save_adapter(model, tmp_path / "adapter", config, tmp_path / "base", byte_level())
    again = load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter", tmp_path / "base")
    assert torch.equal(logits(again, rows)[0], wanted)
    runner = Runner(load(tmp_path / "adapter").transformer, 1)
    assert library() is None or "adapters" in runner.why_torch
    found = runner.forward([Row(tuple(range(4)), 0, tuple(rows[0].tolist()), True)])[0]
    assert (found - wanted).abs().max() <= 1e-5 * max(1, float(wanted.abs().max()))
    base = logits(load_model(tmp_path / "base"), rows)[0]
    assert (base - wanted).abs().max() > 1e-2  # the control


def test_only_adapters_have_gradients_and_they_are_those_beside_the_dequantized_weights():
    """Rows of activations are rounded here and not there, which moves gradients by a few hundredths."""
    config = TuneConfig("lora", 4, targets=("q", "v", "down"))
    grads = []
    for base in (quantized("llama", "int8"), dequantized(quantized("llama", "int8")), tiny("llama", noise=0.3)):
        model = random_adapters(tune(base, config)).train()
        rows = ids()
        model.loss_sum(one_document(rows[:, :-1]), OneDocument(), rows[:, 1:], torch.ones(4, 23)).backward()
        named = dict(model.named_parameters())
        assert {name for name, p in named.items() if p.grad is not None} == {n for n in named if "adapter." in n}
        grads.append(torch.cat([p.grad.flatten() for p in named.values() if p.grad is not None]))
    ours, exact, other = grads
    assert (ours - exact).norm() <= 0.08 * exact.norm()
    assert (ours - other).norm() > 0.3 * exact.norm()  # the control


@pytest.fixture(scope="module", params=["int8", pytest.param("int4", marks=pytest.mark.slow)])
def place(request, tmp_path_factory):
    """Conversations, a quantized base, and a base in floating point of the same matrices."""
    folder = made_place(tmp_path_factory.mktemp("qlora"))
    model = load_model(folder / "base")
    quantize(model, uniform(model, SCHEMES[request.param]))
    save_model(dequantized(model), folder / "plain", byte_level())
    shutil.rmtree(folder / "base")
    save_model(model, folder / "base", byte_level())
    return folder


def losses(run) -> list[float]:
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["kind"] == "step"]


def test_it_learns_as_lora_beside_the_dequantized_weights_does_goes_on_to_the_same_bits_and_answers(place, tmp_path):
    config = config_for(place, tmp_path / "run")
    sft(config)
    found = losses(tmp_path / "run")
    assert found[-1] < found[0] - 0.3
    plain = config_for(place, tmp_path / "plain")
    object.__setattr__(plain.model, "path", str(place / "plain"))
    sft(plain)
    wanted = losses(tmp_path / "plain")
    apart = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    assert 0 < apart < 0.02  # nats a token; they differ by the rounding of activations alone
    with pytest.raises(Interrupted):
        sft(config_for(place, tmp_path / "stopped", stop_after_steps=7))
    sft(config_for(place, tmp_path / "stopped"))
    files = [(tmp_path / run / "model/adapter_model.safetensors").read_bytes() for run in ("run", "stopped", "plain")]
    assert files[0] == files[1] != files[2]
    assert main(["generate", str(tmp_path / "run"), "--prompt", "say 2", "--max-tokens", "4"]) == 0


def test_merging_into_whole_numbers_is_refused_with_the_reason(place, tmp_path, capsys):
    config = TuneConfig("lora", 4)
    model = random_adapters(tune(load_model(place / "base"), config))
    with pytest.raises(ConfigError, match="whole numbers in .*, which would round a change"):
        merge(model)
    assert served(model) is model
    save_adapter(model, tmp_path / "adapter", config, place / "base")
    assert main(["merge", str(place / "base"), str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]) == 2
    assert "would round the change" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    beside = served(random_adapters(tune(load_model(place / "plain"), config)))  # the control: weights that can be
    assert not any("adapter" in name for name, _ in beside.named_parameters())


def test_all_weights_of_a_quantized_base_are_not_trained(place, tmp_path):
    with pytest.raises(ConfigError, match="tune an adapter beside them"):
        sft(config_for(place, tmp_path / "run", {"method": "full"}))


def test_its_memory_is_counted_from_the_folder_with_whole_numbers_as_they_are_stored(place):
    asked = {"tune": {"method": "lora", "rank": 4}, "rows": 2}
    found, plain = (
        show(from_dict(ShowTunedConfig, {"path": str(place / name), **asked}), json=True)["tuning"]
        for name in ("base", "plain")
    )
    assert found["trainable"] == plain["trainable"] and found["frozen"] == plain["frozen"]
    model = load_model(place / "base")
    whole = sum(buffer.nbytes for one in quantized_maps(model).values() for buffer in one.buffers())
    weights = whole + sum(parameter.nbytes for parameter in model.parameters())
    assert found["training_bytes"] == weights + 16 * found["trainable"]
    assert found["memory"]["weights"] == weights + 4 * found["trainable"]
    assert found["memory"]["gradients"] == plain["memory"]["gradients"] == 4 * found["trainable"]
    n = sum(math.prod(shape_of(one)) for one in quantized_maps(model).values())
    assert plain["memory"]["weights"] - found["memory"]["weights"] == 4 * n - whole > 2 * n


def test_a_packed_copy_keeps_4_bit_weights_unpacked_beside_their_adapter():
    model = random_adapters(tune(quantized("llama", "int4"), TuneConfig("lora", targets=("q",))))
    wanted = logits(model)
    packed = Runner(copied(model), 1).model
    maps = [one for one in packed.modules() if isinstance(one, Int4Linear)]
    assert maps and all(one.unpacked is not None for one in maps)
    assert (logits(packed) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
