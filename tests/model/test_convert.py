"""`fledge convert` keeps the type of the weights, or gives another, in files of a size; `fledge show` of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.folder import load_model
from fledge.model.show import show
from fledge.model.show_config import ShowConfig
from tests.parity.decoder_cases import CASES


def published(folder: Path, dtype: torch.dtype) -> Path:
    """A folder as transformers writes it, its weights of `dtype` but for the norms, which are float32."""
    model = CASES["llama"].model().to(dtype)
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.to(torch.float32)
    model.save_pretrained(folder)
    return folder


def types(folder: Path) -> set[torch.dtype]:
    return {t.dtype for path in folder.glob("*.safetensors") for t in safetensors.torch.load_file(path).values()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_folder_keeps_the_type_that_most_of_its_values_have(dtype, tmp_path):
    folder = published(tmp_path / "theirs", dtype)
    convert(ConvertConfig(str(folder), str(tmp_path / "ours")))
    assert types(tmp_path / "ours") == {dtype}
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == dtype
    whole = load_model(folder, dtype=None).state_dict()
    assert all(
        torch.equal(value, whole[name])
        for name, value in load_model(tmp_path / "ours", dtype=None).state_dict().items()
    )
    assert {p.dtype for p in load_model(folder).parameters()} == {torch.float32}  # the control


def test_another_type_is_written_when_asked_for(tmp_path):
    folder = published(tmp_path / "theirs", torch.float32)
    convert(ConvertConfig(str(folder), str(tmp_path / "ours"), dtype="bfloat16"))
    assert types(tmp_path / "ours") == {torch.bfloat16}
    for one, other in zip(load_model(folder).parameters(), load_model(tmp_path / "ours").parameters(), strict=True):
        assert torch.equal(one.bfloat16().float(), other)


def test_files_are_of_the_size_asked_for_and_transformers_opens_them(tmp_path):
    folder = published(tmp_path / "theirs", torch.float32)
    convert(ConvertConfig(str(folder), str(tmp_path / "ours"), shard_bytes=40_000))
    files = sorted((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(files) > 2 and all(path.stat().st_size < 45_000 for path in files)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mine = load_model(folder)
    assert torch.equal(again.get_input_embeddings().weight, mine.embedding.weight)
    with pytest.raises(ConfigError, match="shard_bytes: expected 1 to"):
        ConvertConfig("a", "b", shard_bytes=0)


def test_show_answers_for_a_folder_and_refuses_what_a_folder_cannot_be_told(tmp_path):
    folder = published(tmp_path / "theirs", torch.float32)
    n_parameters = sum(p.numel() for p in load_model(folder).parameters())
    assert show(ShowConfig(str(folder)), json=True)["parameters"] == n_parameters
    with pytest.raises(ConfigError, match=r"model\.position: a folder's model is what its config.json says"):
        show(ShowConfig(str(folder), ShapeConfig(position="alibi")), json=True)
