"""Trials 17 (checkpoint side), 20, 22, 24, 27, 28: hostile model files are refused before they can do anything."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from fledge.engine.config import EngineConfig
from fledge.engine.runner import load_runner
from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.families import family
from fledge.model.folder import load_model, save_model
from fledge.model.generation import stop_ids
from fledge.model.init import initialise
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.transformer import build
from fledge.text.tokenizer import Tokenizer, characters


def tiny_folder(folder: Path, name: str = "llama", tokenizer: Tokenizer | None = None) -> Path:
    shape = ShapeConfig(name, width=16, layers=2, heads=2, context_tokens=32, vocab_size=20)
    save_model(initialise(build(family(name).build(shape), "cpu"), 1), folder, tokenizer)
    return folder


# ---- trial 17: export -> import is bitwise, and the reference library reads our files


def test_trial_17_a_file_of_ours_reads_back_bit_for_bit_and_opens_in_the_reference_library(tmp_path):
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(4, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "whole": torch.arange(7),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors)
    theirs = safetensors.torch.load_file(path)
    with SafetensorsFile(path) as file:
        assert file.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            assert torch.equal(file.read(name), tensor) and torch.equal(theirs[name], tensor)
    again = tmp_path / "y.safetensors"
    write_safetensors(again, dict(reversed(tensors.items())))
    assert again.read_bytes() == path.read_bytes()


def test_trial_17_files_of_the_reference_library_are_read(tmp_path, data_file):
    for path in sorted(data_file("conf_safetensors").glob("*.safetensors")):
        expected = safetensors.torch.load_file(path)
        with SafetensorsFile(path) as file:
            assert set(file.entries) == set(expected)
            assert all(torch.equal(file.read(name), tensor) for name, tensor in expected.items())


# ---- trial 20: pickles


class Payload:
    def __init__(self, canary: str):
        self.canary = canary

    def __reduce__(self):
        return (open, (self.canary, "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_trial_20_a_pickle_is_refused_with_the_way_to_convert_and_never_run(tmp_path, name):
    folder, canary = tiny_folder(tmp_path / "m"), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(str(canary))))
    with pytest.raises(CheckpointError, match="safetensors") as caught:
        load_model(folder)
    assert name in str(caught.value) and not canary.exists()
    with pytest.raises(CheckpointError):
        convert(ConvertConfig(str(folder / name), str(tmp_path / "out")))
    with pytest.raises(CheckpointError):
        convert(ConvertConfig(str(folder), str(tmp_path / "out")))
    assert not canary.exists() and not (tmp_path / "out").exists()
    if name == "pytorch_model.bin":  # asked for: still tensors only
        with pytest.raises(CheckpointError, match="plain tensors"):
            convert(ConvertConfig(str(folder), str(tmp_path / "out"), trust_pickle=True))
        assert not canary.exists()
        pickle.loads((folder / name).read_bytes()).close()  # the control: the payload is real
        assert canary.exists()


def test_a_run_that_has_not_ended_is_told_from_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="config.json, found none"):
        load_model(tmp_path)
    (tmp_path / "run.yaml").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match="got a run that has not come to its end; the same command goes on"):
        load_model(tmp_path)


def test_trial_20_what_is_no_pickle_is_not_called_one_and_the_way_to_load_it_is_told(data_file):
    """A llama2.c checkpoint ends in .bin too; RETSim's weights come without a config.json."""
    folder = data_file("ckpt_stories260K")
    with pytest.raises(CheckpointError, match="with config.json, found none; fledge convert makes one"):
        load_model(folder)
    with pytest.raises(
        CheckpointError, match="got a file; fledge convert makes one of a .gguf or a llama2.c .bin file"
    ):
        load_model(folder / "stories260K.bin")
    with pytest.raises(CheckpointError, match="weights alone don't say what a model computes"):
        load_model(data_file("ckpt_retsim"))


def test_trial_20_plain_pickled_tensors_convert_when_asked(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    convert(ConvertConfig(str(folder), str(tmp_path / "out"), trust_pickle=True))
    got = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(got[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ([torch.ones(2)], "tensors by name"),
        ({1: torch.ones(2)}, "tensors by name"),
        ({"a": 3}, "'a': expected a tensor, got int"),
        ({"model": {"a": torch.ones(2)}}, "'model': expected a tensor, got"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a common type, got torch.complex64"),
        ({"a": torch.eye(2).to_sparse()}, "a dense tensor"),
        ({"a": torch.ones(1).expand(10**13)}, "claims more values than the file holds"),
    ],
)
def test_trial_20_a_pickle_of_anything_but_plain_tensors_is_a_typed_error(tmp_path, state, part):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=part):
        convert(ConvertConfig(str(folder), str(tmp_path / "out"), trust_pickle=True))
    assert not (tmp_path / "out").exists()


# ---- trial 22: lying headers


def file_of(path: Path, header: bytes | dict, data: bytes = b"", length: int | None = None) -> Path:
    raw = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "too short": (b"", b"", None),
    "longer than the file": ({"a": entry([1], 0, 4)}, b"0000", 10_000),
    "above the cap": (b"{}", b"", 2**40),
    "length 2^63": (b"{}", b"", 2**63),
    "not utf-8": (b'{"\xff\xfe": 1}', b"", None),
    "not json": (b"{nope", b"", None),
    "not an object": (b"[1, 2]", b"", None),
    "deep nest": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"0" * 12, None),
    "hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12, None),
    "trailing bytes": ({"a": entry([1], 0, 4)}, b"0" * 9, None),
    "cut data": ({"a": entry([4], 0, 16)}, b"0" * 7, None),
    "shape times dtype": ({"a": entry([3], 0, 8)}, b"0" * 8, None),
    "2^63 shape": ({"a": entry([2**63], 0, 8)}, b"0" * 8, None),
    "overflowing shape": ({"a": entry([2**40, 2**40], 0, 8)}, b"0" * 8, None),
    "negative shape": ({"a": entry([-1], 0, 4)}, b"0" * 4, None),
    "true as shape": ({"a": entry([True], 0, 4)}, b"0" * 4, None),
    "duplicate name": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                       b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0000", None),
    "unknown dtype": ({"a": entry([1], 0, 4, "F13")}, b"0000", None),
    "offsets reversed": ({"a": entry([1], 4, 0)}, b"0000", None),
    "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, b"0000", None),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None),
    "nothing but brackets": (b'{"a":[' + b"[]," * 3_000_000 + b"[]]}", b"", None),
    "brackets in an entry": (b'{"a":{"b":[' + b"[]," * 3_000_000 + b"[]]}}", b"", None),
    "brackets in the metadata": (b'{"__metadata__":{"b":[' + b"[]," * 3_000_000 + b"[]]}}", b"", None),
    "a name of 5,000 letters": ({"a" * 5000: entry([1], 0, 4)}, b"0000", None),
    "a comma too many": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}', b"0000", None),
    "no comma": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"b":{"dtype":"F32","shape":[0],'
                 b'"data_offsets":[0,0]}}', b"", None),
    "text after the end": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} x', b"0000", None),
    "never ending": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', b"0000", None),
    "half a character": (b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0000", None),
    "nothing of 2^62 by 2^62": ({"a": entry([0, 2**62, 2**62], 0, 0)}, b"", None),
    "100,001 tensors": ({f"t{i}": entry([0], 0, 0) for i in range(100_001)}, b"", None),
    "offsets of points": ({"a": entry([1], 0.0, 4.0)}, b"0000", None),
    "offsets of truth": ({"a": entry([1], False, True, "I8")}, b"0", None),
    "offsets below zero": ({"a": entry([1], -4, 0)}, b"0000", None),
    "a dtype of 8 bits": ({"a": entry([4], 0, 4, "F8_E4M3")}, b"0000", None),
    "one range twice": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"0" * 8, None),
    "a name twice, once in escapes": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                      b'"\\u0061":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0000", None),
    "a key twice": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0000", None),
    "metadata of 2 MB": ({"__metadata__": {"a": "x" * 2_000_000}}, b"", None),
    "huge number": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', b"0000", None),
}  # fmt: skip


def lying(path: Path, name: str) -> Path:
    header, data, length = HEADERS[name]
    file_of(path, header, data, length)
    if name == "too short":
        path.write_bytes(b"123")
    return path


@pytest.mark.parametrize("name", list(HEADERS))
def test_trial_22_a_lying_header_is_a_typed_error_within_a_second(tmp_path, name):
    path = lying(tmp_path / "bad.safetensors", name)
    began = time.process_time()
    with pytest.raises(CheckpointError, match="bad.safetensors"):
        SafetensorsFile(path)
    assert time.process_time() - began < 1


def test_trial_22_the_control_a_truthful_header_is_read(tmp_path):
    data = np.arange(3, dtype="<f4").tobytes()
    with SafetensorsFile(file_of(tmp_path / "good.safetensors", {"a": entry([3], 0, 12)}, data)) as file:
        assert file.read("a").tolist() == [0.0, 1.0, 2.0]


def test_a_file_cut_after_opening_is_an_error_and_not_zeros(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.ones(100_000)})
    with SafetensorsFile(path) as file:
        os.truncate(path, 1000)
        with pytest.raises(CheckpointError, match="ended early"):
            file.read("a")


# ---- trial 24: shard indexes


def with_index(folder: Path, shard: str) -> Path:
    names = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "model.bin",
                                   "..\\outside.safetensors", "absent.safetensors"])  # fmt: skip
def test_trial_24_a_shard_outside_the_folder_is_refused_and_never_opened(tmp_path, shard, monkeypatch):
    tiny_folder(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    tiny_folder(tmp_path / "m")
    folder = with_index(tmp_path / "m", shard)
    opened = []
    monkeypatch.setattr(SafetensorsFile, "__init__", lambda self, path: opened.append(path))
    with pytest.raises(CheckpointError):
        load_model(folder)
    assert opened == []


def test_trial_24_a_link_out_of_the_folder_is_refused_and_a_hub_cache_link_is_not(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="link"):
        load_model(folder)
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    (repository / "blobs").mkdir()
    folder.rename(snapshot)
    (snapshot / "model.safetensors").unlink()
    (tmp_path / "outside.safetensors").rename(repository / "blobs" / "deadbeef")
    (snapshot / "model.safetensors").symlink_to("../../blobs/deadbeef")
    assert load_model(snapshot).config.vocab_size == 20


def test_trial_24_the_control_a_good_index_loads(tmp_path):
    folder = with_index(tiny_folder(tmp_path / "m"), "model-00001-of-00001.safetensors")
    assert load_model(folder).config.vocab_size == 20


# ---- trial 27: hostile numbers in config.json

NUMBERS = {
    "num_hidden_layers": ["1000000000", "-1", "NaN", "1e999", '"7"', "2.5", "true", "9" * 5000, "[1]"],
    "vocab_size": ["1000000000000", "0", "-5", "null"],
    "hidden_size": ["1000000000000", "0", "17", "-16"],
    "num_attention_heads": ["0", "3", "1000000000000"],
    "num_key_value_heads": ["0", "5"],
    "head_dim": ["1000000000000", "7"],
    "intermediate_size": ["1000000000000000", "0"],
    "max_position_embeddings": ["1000000000000", "0"],
    "rms_norm_eps": ["NaN", "-1", '"x"'],
    "rope_parameters": ['{"rope_theta": 1e999}', '{"rope_theta": 0}', '"x"', '{"rope_type": "evil"}', "[" * 100000],
    "tie_word_embeddings": ['"yes"', "3"],
    "model_type": ['"evil"', "3", "null"],
}
CASES = [(key, value) for key, values in NUMBERS.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{k}={v[:20]}" for k, v in CASES])
def test_trial_27_a_hostile_number_is_an_error_before_any_allocation(tmp_path, key, value):
    folder = hostile(tmp_path / "m", key, value)
    began = time.process_time()
    with pytest.raises((ConfigError, CheckpointError)):
        load_model(folder)
    assert time.process_time() - began < 1


def hostile(folder: Path, key: str, value: str) -> Path:
    config = json.loads((tiny_folder(folder) / "config.json").read_text())
    config.pop("rope_theta", None)
    config[key] = "@@"
    (folder / "config.json").write_text(json.dumps(config).replace('"@@"', value))
    return folder


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[]", '{"eos_token_id": true}', '{"eos_token_id": "2"}', '{"eos_token_id": [[2]]}'])
def test_trial_27_stop_ids_that_are_none_are_a_typed_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        stop_ids(tmp_path, characters("abc"))
    (tmp_path / name).write_text('{"eos_token_id": [2, 5]}')  # the control
    assert stop_ids(tmp_path, characters("abc")) >= {2, 5}


def test_trial_27_a_context_that_memory_cannot_hold_is_refused_before_the_cache_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr("fledge.model.transformer.available_bytes", lambda device: 1 << 30)
    folder = tiny_folder(tmp_path / "m", tokenizer=characters("abc"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 60_000_000}))
    with pytest.raises(ConfigError, match=r"cache: expected .* 60000000 tokens; .*context_tokens"):
        load_runner(folder)
    with pytest.raises(ConfigError, match=r"cache: expected .* tokens; .*cache_tokens"):
        load_runner(folder, EngineConfig(context_tokens=8, cache_tokens=10**12))
    runner, _, _ = load_runner(folder, EngineConfig(context_tokens=8))  # the control: the same model, a short context
    assert runner.context_tokens == 8


# ---- trial 28: code through config


def test_trial_28_code_named_by_a_config_is_never_imported(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"},
        "trust_remote_code": True,
        "_attn_implementation_internal": "evil/kernel",
        "custom_pipelines": {"x": {"impl": "evil.P"}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    other = tiny_folder(tmp_path / "other")
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["EvilForCausalLM"]}))
    with pytest.raises(ConfigError, match="architectures: expected one of"):
        load_model(other)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    program = (
        "import sys, socket\n"
        "def no_network(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = no_network\n"
        "from fledge.model.folder import load_model\n"
        "import fledge.engine.loaded\n"
        "before = set(sys.modules)\n"
        f"load_model({str(folder)!r})\n"
        "new = {m for m in set(sys.modules) - before if not m.startswith(('torch', 'fledge', 'numpy', '_', 'sympy'))}\n"
        "print('evil' in sys.modules, sorted(m for m in new if 'evil' in m or 'transformers' in m))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "False []", done.stderr
    assert not (tmp_path / "canary").exists()
    subprocess.run([sys.executable, "-c", "import evil"], env=environment, check=True)
    assert (tmp_path / "canary").exists()  # the control: importing it would have shown
