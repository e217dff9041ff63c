"""A real llama2.c checkpoint, converted, gives llama2.c's own greedy text byte for byte."""

from __future__ import annotations

import struct

import pytest

from fledge.errors import CheckpointError
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.llama2c import load_llama2c
from tests.trials.tiny import fledge


@pytest.fixture(scope="module")
def stories(data_file, tmp_path_factory):
    source = data_file("ckpt_stories260K")
    target = tmp_path_factory.mktemp("stories") / "model"
    convert(ConvertConfig(str(source / "stories260K.bin"), str(target), str(source / "tok512.bin")))
    return source, target


def test_greedy_text_equals_llama2cs_byte_for_byte(stories):
    source, target = stories
    done = fledge("generate", str(target), "--prompt", "", "--temperature", "0", "--max-tokens", "256")
    assert done.returncode == 0, done.stderr
    assert done.stdout.encode() == (source / "greedy_expected.txt").read_bytes()


def test_the_converted_folder_opens_in_transformers_with_the_same_logits(stories):
    import torch
    import transformers

    from fledge.batch import OneDocument, one_document
    from fledge.model.folder import load_model

    _, target = stories
    theirs = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    ids = torch.randint(3, 512, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = theirs(ids).logits, load_model(target)(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()


def test_a_file_of_another_size_than_its_header_says_is_refused(stories, tmp_path):
    data = (stories[0] / "stories260K.bin").read_bytes()
    for name, content in {
        "cut": data[:-4],
        "longer": data + b"0000",
        "layers": data[:8] + struct.pack("<i", 6) + data[12:],
        "negative": data[:8] + struct.pack("<i", -5) + data[12:],
        "huge": data[:8] + struct.pack("<i", 2**31 - 1) + data[12:],
        "empty": b"",
    }.items():
        path = tmp_path / f"{name}.bin"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.bin"):
            load_llama2c(path)
