"""Compiled training: the losses of the plain run, few compilations whatever the rows hold, plain names in checkpoints.

The quick tests compile without generating code (aot_eager); the slow ones with the real compiler.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from fledge.batch import Batch, OneDocument, Packed, Tokens, one_document, slice_rows
from fledge.errors import ConfigError
from fledge.log import read_log
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.recipes.dropout import with_dropout
from fledge.train import compiled, loop
from fledge.train.compiled import check_compiler, compile_training
from fledge.train.config import DropoutConfig, TrainConfig
from tests.train.test_loop import Toy, go, settings
from tests.train.test_precision import no_measuring  # noqa: F401 (a fixture)

CPU = torch.device("cpu")
# torch's own, while it traces; not shown outside of tests
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
ROW = 24


class PackedToy(Toy):
    """Two rows of documents whose number and lengths change with every batch."""

    def batch(self, index: int) -> Batch:
        self.drawn = index
        ids = torch.randint(0, 20, (2, ROW), generator=torch.Generator().manual_seed(index))
        first, second = 3 + 2 * (index % 5), 5 + 3 * (index % 3)
        cuts = [0, first, ROW, *([ROW + second] if index % 2 else [ROW + second, ROW + second + 2]), 2 * ROW]
        sizes = [b - a for a, b in zip(cuts, cuts[1:], strict=False)]
        pos = torch.cat([torch.arange(n) for n in sizes]).view(2, ROW)
        doc = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)]).view(2, ROW)
        return Batch(Tokens(ids, pos, doc), ids.roll(-1, 1), torch.ones(2, ROW), Packed(tuple(cuts), max(sizes)))


def packed_toy(name: str = "llama", **fields: object) -> PackedToy:
    fields = {"width": 16, "layers": 3, "heads": 2, "context_tokens": ROW, "vocab_size": 20} | fields
    shape = ShapeConfig(name, **fields)  # type: ignore[arg-type]
    return PackedToy(initialise(build(family(name).new_config(shape), "cpu"), 1))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_log(folder / "log.jsonl") if event["kind"] == "step"]


def compared(folder: Path, name: str, fields: dict, steps: int, **keys: object) -> PackedToy:
    """Losses of a plain and of a compiled run are the same; gives the compiled one."""
    plain, fast = packed_toy(name, **fields), packed_toy(name, **fields)
    go(folder / "plain", plain, settings(steps=steps, learning_rate=1e-3))
    go(folder / "fast", fast, settings(steps=steps, learning_rate=1e-3, **keys))
    assert losses(folder / "fast") == pytest.approx(losses(folder / "plain"), rel=1e-5)
    assert len(set(losses(folder / "plain"))) == steps
    return fast


def test_compiled_blocks_give_the_losses_of_plain_ones_and_compile_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "compile_training", partial(compile_training, backend="aot_eager"))
    keys = {"compile": "blocks", "checkpoint_blocks": True, "micro_rows": 1}
    recipe = compared(tmp_path, "llama", {"dropout": 0.0}, 6, **keys)
    said = capsys.readouterr().err
    assert "compiling one of each kind of block: the first step takes about" in said
    assert "compiled: the first step took" in said
    # one for each piece of a block between its graph breaks, not one for each layer or each batch's lengths
    assert 0 < counters["stats"]["unique_graphs"] <= 8
    before = counters["stats"]["unique_graphs"]
    recipe.model.train()
    batch = recipe.batch(99)
    recipe.loss(slice_rows(batch, 0, 1))
    recipe.model.eval()
    recipe.model(batch.tokens, batch.layout)
    assert counters["stats"]["unique_graphs"] == before  # further batches and validations compile nothing
    names = set(load_model(tmp_path / "fast" / "checkpoints" / "step-00000006").state_dict())
    assert names == set(packed_toy().model.state_dict())


@pytest.mark.slow
def test_lengths_inside_what_is_compiled_would_compile_again_for_each_batch(monkeypatch):
    """The control: what leaving attention out saves."""
    monkeypatch.setattr(compiled, "leave_out_changing", lambda attention: None)
    recipe = packed_toy(layers=1)
    recipe.model.train()
    compile_training(recipe.model, "blocks", CPU, "aot_eager")
    for index in range(2):
        recipe.loss(recipe.batch(index))
    assert counters["stats"]["unique_graphs"] == 2


def test_without_a_compiler_the_message_names_one(monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"train.compile: expected a C\+\+ compiler .* found none; install g\+\+"):
        check_compiler(CPU)
    monkeypatch.setenv("CXX", "mycc")
    with pytest.raises(ConfigError, match=r"compiler \(mycc\)"):
        compile_training(packed_toy().model, "blocks", CPU)


def test_what_can_not_be_computed_again_is_refused():
    with pytest.raises(ConfigError, match="train.compile: expected blocks or off with train.checkpoint_blocks"):
        TrainConfig(compile="model", checkpoint_blocks=True)
    shape = ShapeConfig("t5", width=16, layers=1, heads=2, context_tokens=ROW, vocab_size=20)
    model = initialise(build(family("t5").new_config(shape), "cpu"), 1).checkpoint_blocks()
    with pytest.raises(ConfigError, match=r"learn one bias together \(t5\)"):
        compile_training(model, "blocks", CPU, "aot_eager")


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights():
    """As samples on the way do."""
    recipe = packed_toy(layers=1)
    compile_training(recipe.model, "blocks", CPU, "aot_eager")
    compile_training(recipe.model, "model", CPU, "aot_eager")
    twin = copy.deepcopy(recipe.model).eval()
    with torch.no_grad():
        for parameter in recipe.model.parameters():
            parameter.zero_()
        batch = recipe.batch(0)
        assert twin(batch.tokens, batch.layout).abs().sum() > 0
        assert recipe.model.eval()(batch.tokens, batch.layout).abs().sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocks", "model"])
@pytest.mark.parametrize(("name", "fields"), [("llama", {}), ("gpt2", {"dropout": 0.1}), ("gemma2", {"window": 8})])
def test_what_the_real_compiler_makes_gives_the_losses_of_the_plain_run(tmp_path, name, fields, mode):
    compared(tmp_path, name, fields, 6, compile=mode)
    assert counters["stats"]["unique_graphs"] <= 14


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocks", "model"])
def test_every_kind_of_dropout_is_that_of_the_plain_pass(mode):
    kinds = DropoutConfig(0.1, 0.1, 0.1, 0.1, layers=0.3)
    tokens, layout = one_document(torch.arange(ROW)[None] % 20), OneDocument()

    def losses_of(compiled: bool) -> list[float]:
        model = with_dropout(packed_toy("gpt2").model, 0.0, kinds).train()
        if compiled:
            compile_training(model, mode, CPU, "aot_eager")
        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            found.append(float(model.loss_sum(tokens, layout, tokens.ids, torch.ones(1, ROW)).detach()))
        return found

    assert losses_of(True) == pytest.approx(losses_of(False), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_compiled_blocks_learn_in_lower_precision_too(tmp_path, precision):
    plain, fast = packed_toy(), packed_toy()
    go(tmp_path / "plain", plain, settings(steps=6, learning_rate=1e-3, precision=precision))
    go(tmp_path / "fast", fast, settings(steps=6, learning_rate=1e-3, precision=precision, compile="blocks"))
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "plain"), rel=2e-3)
    assert all(bool(torch.isfinite(p).all()) for p in fast.model.parameters())
