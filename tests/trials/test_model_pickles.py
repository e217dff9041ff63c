"""Trial 20 in every guise: protocols, archives, names, indexes of pickles; and the way to convert, which works."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fledge.errors import CheckpointError
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.folder import load_model
from fledge.model.weight_files import is_pickle
from tests.trials.test_model_files import Payload, tiny_folder


def archive_of(inside: bytes, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("archive/data.pkl", inside)
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as file:
            info = tarfile.TarInfo("pickle")
            info.size = len(inside)
            file.addfile(info, io.BytesIO(inside))
    elif kind == "gzip":
        return gzip.compress(inside)
    return buffer.getvalue() or inside


KINDS = ("protocol 0", "protocol 1", "protocol 2", "protocol 5", "zip", "tar", "gzip")
NAMES = ("pytorch_model.bin", "adapter_model.bin", "consolidated.00.pth", "model.ckpt", "model.PT", "model.pickle",
         "model.joblib", "model.th", "pytorch_model-00001-of-00002.bin")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_trial_20_a_pickle_of_any_kind_under_any_name_is_told_as_one_and_never_run(tmp_path, name, kind):
    folder, canary = tiny_folder(tmp_path / "m"), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    protocol = int(kind[-1]) if kind.startswith("protocol") else 2
    (folder / name).write_bytes(archive_of(pickle.dumps(Payload(str(canary)), protocol), kind))
    for attempt in (
        lambda: load_model(folder),
        lambda: load_model(folder / name),
        lambda: convert(ConvertConfig(str(folder / name), str(tmp_path / "out"))),
    ):
        with pytest.raises(CheckpointError, match=r"pickled .* safetensors .* fledge convert .* trust_pickle=true"):
            attempt()
    with pytest.raises(CheckpointError):
        convert(ConvertConfig(str(folder), str(tmp_path / "out"), trust_pickle=True))
    assert not canary.exists() and not (tmp_path / "out").exists()


def test_trial_20_a_llama2c_model_of_any_width_is_no_pickle(tmp_path, data_file):
    """The control: widths whose byte begins a pickle of protocol 0 or 1."""
    whole = (data_file("ckpt_stories260K") / "stories260K.bin").read_bytes()
    for first in (b"(", b"]", b"c", b"}", b"\x80"):
        (tmp_path / "model.bin").write_bytes(first + whole[1:])
        assert not is_pickle(tmp_path / "model.bin")


def with_pickled_shards(folder: Path) -> dict[str, torch.Tensor]:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(state)
    halves = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
    for file, own in halves.items():
        torch.save({name: state[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in halves.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return state


def test_trial_20_pickled_tensors_in_several_files_convert_when_asked(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    state = with_pickled_shards(folder)
    with pytest.raises(CheckpointError, match="pickled"):
        load_model(folder)
    convert(ConvertConfig(str(folder), str(tmp_path / "out"), trust_pickle=True))
    got = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert got.keys() == state.keys() and all(torch.equal(got[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("shard", ["../outside.bin", "/etc/passwd", "absent.bin", "model.safetensors", "a\0.bin"])
def test_trial_20_an_index_of_pickles_leads_to_no_other_file(tmp_path, shard):
    folder = tiny_folder(tmp_path / "m")
    torch.save({"a": torch.ones(1)}, tmp_path / "outside.bin")
    names = with_pickled_shards(folder)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(CheckpointError, match="missing file|is not the name"):
        convert(ConvertConfig(str(folder), str(tmp_path / "out"), trust_pickle=True))
    assert not (tmp_path / "out").exists()


def test_trial_20_an_index_of_pickles_alone_is_told_as_pickled_weights(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="pickled weights can run code"):
        load_model(folder)


def test_trial_20_a_zip_file_that_unpacks_to_more_than_it_holds_is_not_unpacked(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * 30_000_000)
    with pytest.raises(CheckpointError, match="expected at most the file's .* bytes in it, got 30000000"):
        convert(ConvertConfig(str(folder), str(tmp_path / "out"), trust_pickle=True))
