"""Mixtures of experts in the compiled decoder: transformers' logits, torch's choices, the same bits in any company."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fledge.compress.quantize import quantize, uniform
from fledge.engine.native import NativeDecoder, why_not
from fledge.engine.row import Row
from fledge.engine.runner import Runner, copied, pack_in_place
from fledge.errors import ConfigError
from fledge.model.folder import load_model, save_model
from fledge.model.quantization import INT8, int4
from fledge.nn.feedforward import Experts
from fledge.nn.native import library
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import tune
from fledge.tune.config import TuneConfig
from fledge.tune.folder import load_adapter, save_adapter
from tests.compress import tiny
from tests.exact.test_native_decoder import new_caches, run
from tests.parity.decoder_cases import CASES
from tests.parity.reference import limit, some_ids
from tests.tune.theirs import random_adapters

MIXTURES = ("mixtral", "mixtral-window", "qwen3-moe", "qwen3-moe-window", "olmoe")
SCHEMES = {"float32": None, "int8": INT8, "int4": int4(32)}
N_ROWS = 64


@pytest.fixture(autouse=True, scope="module")
def kernels():
    assert library.build() is not None, "a C++ compiler is needed here"


def mixture(scheme=None, **more):
    model = tiny.tiny("mixtral", **{"kv_heads": 2, "experts": 6, "experts_per_token": 2, **more})
    if scheme is not None:
        quantize(model, uniform(model, scheme))
    return model


def step(model, ids, caches=None):
    """Logits [M, V] of the first tokens of as many documents, all in one step."""
    caches = caches or new_caches(model, 16 * N_ROWS)
    decoder = NativeDecoder(model, caches, 16)
    tables = [np.array([n], np.int32) for n in range(len(ids))]
    arrays = np.array(ids, np.int32), np.zeros(len(ids), np.int32)
    return torch.from_numpy(decoder.step(*arrays, tables, np.arange(len(ids), dtype=np.int32)))


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_its_logits_are_those_of_transformers(name, tmp_path, monkeypatch):
    theirs, ids = CASES[name].model(), some_ids()
    theirs.save_pretrained(tmp_path)
    model = pack_in_place(load_model(tmp_path).eval())
    assert why_not(model) == ""
    wanted = theirs(input_ids=ids).logits
    caches = new_caches(model, 64 * len(ids))
    assert (run(model, ids, caches, seed=1) - wanted).abs().max() <= limit(wanted)
    for change in ({"top_k": 1}, {"renormalise": not model.config.stack.layers[0].ffn.renormalise}):
        if name == "mixtral-window" and "renormalise" in change:
            continue  # all experts: their weights sum to 1 anyway
        make = NativeDecoder.mixture

        def wrong(self, ffn, make=make, change=change):
            made = make(self, ffn)
            for key, value in change.items():
                setattr(made, key, value)
            return made

        monkeypatch.setattr(NativeDecoder, "mixture", wrong)
        assert (run(model, ids, caches, seed=1) - wanted).abs().max() > 100 * limit(wanted), change
        monkeypatch.undo()


@pytest.mark.parametrize("scheme", list(SCHEMES))
@torch.no_grad()
def test_a_row_has_the_same_bits_in_every_company_on_any_number_of_threads(scheme):
    model = pack_in_place(mixture(SCHEMES[scheme]))
    ids = torch.randint(256, (N_ROWS,), generator=torch.Generator().manual_seed(3)).tolist()
    alone = torch.cat([step(model, [one]) for one in ids])
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            for n in range(1, N_ROWS + 1) if n_threads == 1 else (1, 2, 5, 33, N_ROWS):
                assert torch.equal(step(model, ids[:n]), alone[:n]), (n, n_threads)
            assert torch.equal(step(model, ids[::-1]), alone.flip(0))
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(step(model, [ids[0] + 1, *ids[1:]])[0], alone[0])  # the control


@pytest.mark.parametrize("scheme", list(SCHEMES))
@torch.no_grad()
def test_chunks_and_blocks_leave_every_bit_alone(scheme):
    model, ids = pack_in_place(mixture(SCHEMES[scheme])), some_ids()
    first = run(model, ids, new_caches(model, 64 * len(ids)), seed=1)
    for seed in (2, 3):
        assert torch.equal(run(model, ids, new_caches(model, 64 * len(ids)), seed=seed), first)
    alone = run(model, ids, new_caches(model, 64 * len(ids)), seed=4, rows=[1])
    assert torch.equal(alone[1], first[1])


def rows_apart(got, wanted):
    """Rows [M, V] that differ by more than rounding in float32."""
    return int(((got - wanted).abs().amax(-1) > limit(wanted)).sum())


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@torch.no_grad()
def test_quantized_experts_give_what_torch_gives_of_the_same_numbers(scheme):
    """Documents of one token: a number on the edge between two, which may go either way, changes its own row alone."""
    model, ids = mixture(SCHEMES[scheme]), tiny.ids(1, N_ROWS)[0]
    wanted = tiny.logits(model, ids[:, None])[:, 0]
    plain = tiny.logits(mixture(), ids[:, None])[:, 0]
    assert rows_apart(step(pack_in_place(model), ids.tolist()), wanted) <= 1
    assert rows_apart(plain, wanted) == N_ROWS  # the control


@torch.no_grad()
def test_experts_of_different_bits_and_groups_stand_side_by_side():
    model, ids = mixture(experts_per_token=4, hidden=128), tiny.ids(1, N_ROWS)[0]
    plan = {}
    for unit in uniform(model, INT8):
        if ".experts." in unit:
            expert = int(unit.split(".experts.")[1].split(".")[0])
            plan[unit] = (None, INT8, int4(32), int4(64), int4(32), int4(64))[expert]
    quantize(model, plan)
    wanted = tiny.logits(model, ids[:, None])[:, 0]
    pack_in_place(model)
    got = step(model, ids.tolist())
    assert rows_apart(got, wanted) <= 1
    alone = torch.cat([step(model, [one]) for one in ids.tolist()])
    assert torch.equal(alone, got)


@pytest.mark.parametrize(
    ("n_experts", "top_k"), [(2, 1), (4, 2), (8, 2), (8, 5), (8, 8), (16, 4), (17, 16), (64, 1), (128, 1), (128, 8)]
)
@torch.no_grad()
def test_equal_scores_are_ranked_as_torch_ranks_them(n_experts, top_k):
    """Some experts' scores are all 0: those of them that are taken make the logits what they are."""
    model = mixture(layers=1, width=32, hidden=8, experts=n_experts, experts_per_token=top_k)
    (layer,) = [one for one in model.modules() if isinstance(one, Experts)]
    ids = tiny.ids(1, 48)[0]
    generator = torch.Generator().manual_seed(top_k)
    for n_loud in (0, 1, n_experts // 2):
        layer.router.weight.zero_()
        loud = torch.randperm(n_experts, generator=generator)[:n_loud]
        layer.router.weight[loud] = torch.randn(n_loud, 32, generator=generator)
        wanted = tiny.logits(model, ids[:, None])[:, 0]
        packed = pack_in_place(copied(model))
        got = step(packed, ids.tolist())
        assert (got - wanted).abs().max() <= limit(wanted), n_loud
        if n_loud == 0 and top_k < n_experts:  # the control: the order of the experts is seen
            (own,) = [one for one in packed.modules() if isinstance(one, Experts)]
            own.experts = torch.nn.ModuleList(list(own.experts)[::-1])
            assert (step(packed, ids.tolist()) - wanted).abs().max() > 100 * limit(wanted)


@torch.no_grad()
def test_broken_weights_are_seen_by_those_who_use_them():
    ids = tiny.ids(1, 48)[0].tolist()
    model = mixture(layers=1)
    (layer,) = [one for one in model.modules() if isinstance(one, Experts)]
    taken = []
    layer.router.register_forward_hook(lambda _, __, y: taken.append(y.topk(2).indices))
    tiny.logits(model, torch.tensor(ids)[:, None])
    uses = (taken[0] == 3).any(-1)
    whole = step(pack_in_place(copied(model)), ids)
    layer.experts[3].down.weight[5, 2] = float("nan")
    broken = step(pack_in_place(copied(model)), ids)
    assert uses.any() and not uses.all()
    assert not torch.isfinite(broken[uses]).any() and torch.equal(broken[~uses], whole[~uses])
    layer.router.weight[1, 1] = float("nan")
    assert not torch.isfinite(step(pack_in_place(copied(model)), ids)).any()


def rows_of(runner, ids, adapters):
    each = -(-ids.shape[1] // runner.block_tokens)
    return [
        Row(tuple(range(n * each, n * each + each)), 0, tuple(ids[n].tolist()), True, n, None, adapter)
        for n, adapter in enumerate(adapters)
    ]


@torch.no_grad()
def test_adapters_of_attention_and_router_stand_beside_it_and_others_are_refused_by_name(tmp_path):
    save_model(mixture(), tmp_path / "base", byte_level())
    how = TuneConfig("lora", 3, 5, targets=("router", "q", "out"))
    tuned = random_adapters(tune(load_model(tmp_path / "base"), how, 1), 1)
    save_adapter(tuned, tmp_path / "one", how, tmp_path / "base", byte_level())
    ids = tiny.ids(2, 24)
    base, beside = (
        tiny.logits(mixture(), ids),
        tiny.logits(load_adapter(load_model(tmp_path / "base"), tmp_path / "one", tmp_path / "base"), ids),
    )
    runner = Runner(load_model(tmp_path / "base"), 2, folder=tmp_path / "base")
    assert runner.compiled is not None
    changes = runner.read_adapter(str(tmp_path / "one"))
    assert any(change.path.endswith("ffn.router") for change in changes.maps)
    runner.add_adapter("one", changes)
    got = [torch.as_tensor(one) for one in runner.forward(rows_of(runner, ids, ["", "one"]))]
    assert (got[0] - base[0]).abs().max() <= limit(base) and (got[1] - beside[1]).abs().max() <= limit(beside)
    assert (beside - base).abs().max() > 100 * limit(base)  # the control
    at = {"decoder.layers.0.ffn.experts.1.inward": list(changes.maps)}
    with pytest.raises(ConfigError, match=r"got a change of decoder\.layers\.0\.ffn\.experts\.1\.inward"):
        runner.compiled.add_adapter("two", at, None)


@torch.no_grad()
def test_without_the_kernels_torch_computes_it(monkeypatch):
    model, ids = mixture(), tiny.ids(2, 24)
    wanted = tiny.logits(model, ids)
    compiled = Runner(copied(model), 2)
    assert compiled.compiled is not None
    monkeypatch.setenv("FLEDGE_NATIVE", "0")
    runner = Runner(copied(model), 2)
    assert runner.compiled is None and runner.why_torch == "the kernels aren't built"
    got = torch.stack([torch.as_tensor(one) for one in runner.forward(rows_of(runner, ids, ["", ""]))])
    assert (got - wanted).abs().max() <= limit(wanted)


STARVED = """
import resource, sys, numpy as np, torch
from fledge.engine.native import NativeDecoder
from fledge.engine.runner import pack_in_place
from tests.exact.test_native_experts import mixture, new_caches
with torch.inference_mode():
    model = pack_in_place(mixture(experts_per_token=6))
    decoder = NativeDecoder(model, new_caches(model, 16), 16)
    def step(n):
        table, first = np.zeros(1, np.int32), np.zeros(n, np.int32)
        return decoder.step(first, first, [table] * n, first[:1])
    expected = step(3)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
    try:
        step(200_000)
    except MemoryError as error:
        print(error)
    print(np.array_equal(step(3), expected))
"""


def test_too_little_memory_is_an_error_and_the_next_step_is_whole():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["a step of 200000 tokens: expected memory for them, got none", "True"]
