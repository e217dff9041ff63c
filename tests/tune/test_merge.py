"""Adapters into weights and out again; what answers otherwise is not written."""

from __future__ import annotations

import pytest
import torch

from fledge.cli.main import main
from fledge.engine.loaded import load
from fledge.errors import CheckpointError, QualityError
from fledge.lineage import verify
from fledge.model.folder import load_model, save_model
from fledge.recipes import merge as merging
from fledge.recipes.merge import merge_adapter
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import tune
from fledge.tune.config import MergeConfig, TuneConfig
from fledge.tune.folder import save_adapter
from fledge.tune.merge import merge
from tests.compress.tiny import logits, tiny
from tests.parity.reference import limit
from tests.tune.theirs import random_adapters

EVERYWHERE = ("all-linear", "embedding", "output")
METHODS = {
    "lora": TuneConfig("lora", targets=EVERYWHERE),
    "tied-embedding": TuneConfig("lora", targets=("embedding",)),
    "tied-output": TuneConfig("lora", targets=("output",)),
    "dora": TuneConfig("lora", targets=("all-linear",), dora=True),
    "ia3": TuneConfig("ia3"),
    "maps": TuneConfig("lora", targets=("q", "v", "down")),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])  # gpt2: embedding and output are one matrix
def test_merging_keeps_the_logits_and_unmerging_gives_back_every_bit(name, method):
    model = random_adapters(tune(tiny(name), METHODS[method]))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted, config = logits(model), model.config
    undo = merge(model)
    assert (logits(model) - wanted).abs().max() <= limit(wanted)
    base = dict(tiny(name).named_parameters())
    now = dict(model.named_parameters())
    assert any(not torch.equal(now[key], base[key]) for key in base if key in now) or method == "tied-output"
    assert not any("adapter" in key for key in now)
    undo()
    assert model.config == config and torch.equal(logits(model), wanted)
    assert {key: torch.equal(value, state[key]) for key, value in model.state_dict().items()} == dict.fromkeys(
        state, True
    )


def test_merging_an_embedding_into_tied_weights_without_a_second_matrix_differs():
    """The control: one matrix for both, as other tools merge it, answers otherwise."""
    model = random_adapters(tune(tiny("gpt2"), METHODS["tied-embedding"]))
    wanted = logits(model)
    with torch.no_grad():
        model.embedding.weight.copy_(model.embedding_adapter.merged(model.embedding.weight, None)[0])
    model.embedding_adapter = None
    assert (logits(model) - wanted).abs().max() > 100 * limit(wanted)


@pytest.fixture
def place(tmp_path):
    """A base with its tokenizer and an adapter of it."""
    save_model(tiny("gpt2"), tmp_path / "base", byte_level())
    config = TuneConfig("lora", targets=("q", "v", "down", "embedding"))
    model = random_adapters(tune(load_model(tmp_path / "base"), config))
    save_adapter(model, tmp_path / "adapter", config, tmp_path / "base")
    return tmp_path, logits(model)


def test_the_verb_writes_a_model_with_the_logits_of_base_and_adapter(place, capsys):
    folder, wanted = place
    out = folder / "out"
    assert main(["merge", str(folder / "base"), str(folder / "adapter"), "--out", str(out)]) == 0
    assert "100.0% of the likeliest tokens the same" in capsys.readouterr().out
    assert (logits(load_model(out)) - wanted).abs().max() <= limit(wanted)
    card = verify(out)
    assert (
        set(card["parents"]) == {"base", "adapter"} and card["facts"]["result"]["adapters"] == 5
    )  # q and v are one module there
    served = {name: load(folder / name).generate("the cat", max_tokens=8, temperature=0) for name in ("out", "adapter")}
    assert served["out"] == served["adapter"]
    assert (logits(load_model(folder / "base")) - wanted).abs().max() > 100 * limit(wanted)  # the control


def test_weights_that_answer_otherwise_are_not_written(place, monkeypatch):
    folder, _ = place
    config = MergeConfig(folder / "base", folder / "adapter", folder / "out")

    def forgetful(model):
        merge(model)
        model.decoder.layers[0].ffn.down.weight.data.mul_(1.001)

    with monkeypatch.context() as patch:
        patch.setattr(merging, "merge", forgetful)
        with pytest.raises(
            QualityError, match=r"expected logits within 1e-05 of the largest, got .*nothing was written"
        ):
            merge_adapter(config, json=True)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "base"]
    assert merge_adapter(config, json=True)["logit_difference"] < 1e-5  # the control


def test_a_narrow_type_is_held_to_its_own_tolerance_and_can_be_held_to_another(place):
    folder, _ = place
    config = {"base": folder / "base", "adapter": folder / "adapter", "dtype": "bfloat16"}
    with pytest.raises(QualityError, match="merge into a wider dtype"):
        merge_adapter(MergeConfig(**config, out=folder / "strict", tolerance=1e-6), json=True)
    found = merge_adapter(MergeConfig(**config, out=folder / "out"), json=True)
    assert 1e-5 < found["logit_difference"] <= 2e-2 and found["dtype"] == "bfloat16"


def test_an_adapter_of_other_weights_is_refused(place):
    folder, _ = place
    model = load_model(folder / "base")
    with torch.no_grad():
        model.embedding.weight[0, 0] += 1e-3
    save_model(model, folder / "other", byte_level())
    with pytest.raises(CheckpointError, match="trained beside other weights"):
        merge_adapter(MergeConfig(folder / "other", folder / "adapter", folder / "out"), json=True)
