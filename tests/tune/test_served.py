"""`fledge serve` of adapter folders: the answers of `load`, over HTTP."""

from __future__ import annotations

import json

import pytest

from fledge.cli.main import main
from fledge.compress.quantize import quantize, uniform
from fledge.engine.loaded import load
from fledge.model.folder import load_model, save_model
from fledge.model.quantization import INT8
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import tune
from fledge.tune.config import TuneConfig
from fledge.tune.folder import save_adapter
from tests.compress.tiny import tiny
from tests.serve.running import running
from tests.tune.theirs import random_adapters

METHODS = {"prefix": TuneConfig("prefix", virtual_tokens=5), "lora": TuneConfig("lora", 4, 16)}


@pytest.mark.parametrize("method", ["prefix", pytest.param("lora", marks=pytest.mark.slow)])
def test_an_adapter_folder_is_served_as_it_is(method, tmp_path, capsys):
    """A prefix of a model, and LoRA beside whole numbers: neither can be merged."""
    model = tiny("llama")
    if method == "lora":
        quantize(model, uniform(model, INT8))
    save_model(model, tmp_path / "base", byte_level())
    tuned = random_adapters(tune(load_model(tmp_path / "base"), METHODS[method], 1))
    folder = tmp_path / "tuned"
    save_adapter(tuned, folder, METHODS[method], tmp_path / "base", byte_level())
    asked = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    wanted = load(folder).generate("say 2", **asked)
    with running(str(folder)) as server:
        answer = server.complete("say 2", **asked).json()["choices"][0]["text"]
        (card,) = server.client.get("/v1/models").json()["data"]
    assert answer == wanted and card["id"] == "tuned"
    assert card["max_model_len"] == 64 - (5 if method == "prefix" else 0)
    assert wanted != load(tmp_path / "base").generate("say 2", **asked)  # the control
    (folder / "tokenizer.json").unlink()
    assert main(["serve", str(folder)]) == 1
    assert "with the tokenizer that it was trained with" in json.dumps(capsys.readouterr().err)
