"""Vocabularies inside GGUF files give llama.cpp's ids."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from fledge.errors import TokenizerError
from fledge.text.gguf_write import write_gguf
from fledge.text.sentencepiece_model import read_model
from fledge.text.tokenizer import Tokenizer
from tests.conftest import data_root
from tests.text.damaged_gguf import is_damaged, mended
from tests.text.published import llamacpp_cases, loaded

VOCABULARIES = sorted(path.name for path in (data_root() / "conf_llamacpp_vocab").glob("*.gguf"))


@pytest.fixture(scope="module")
def whole_gguf(data_file, tmp_path_factory):
    """A function from a vocabulary's name to a GGUF file that is not damaged: the data set's, or a mended copy."""
    folder = tmp_path_factory.mktemp("gguf")

    @functools.cache
    def find(name: str) -> Path:
        path = data_file(f"conf_llamacpp_vocab/{name}")
        if not is_damaged(path):
            return path
        metadata = mended(path)
        if metadata["tokenizer.ggml.model"] == "llama":
            pieces = read_model(data_file("conf_tokenizers/llama2/tokenizer.model")).pieces
            scores = {piece.text: piece.score for piece in pieces}
            told = [scores.get(token, -10_000.0) for token in metadata["tokenizer.ggml.tokens"]]
            metadata["tokenizer.ggml.scores"] = np.array(told, "<f4")
        write_gguf(folder / name, metadata)
        return folder / name

    return find


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_damaged_copy_of_a_gguf_file_is_refused(name, data_file):
    path = data_file(f"conf_llamacpp_vocab/{name}")
    if is_damaged(path):
        with pytest.raises(TokenizerError, match=f"{name}, byte [0-9]+: .*damaged"):
            Tokenizer.load(path)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_gguf_vocabulary_gives_llama_cpp_s_ids(name, whole_gguf, data_file):
    tokenizer = loaded(whole_gguf(name))
    cases = llamacpp_cases(data_file(f"conf_llamacpp_vocab/{name}"))
    assert len(cases) == 47
    for text, ids in cases:
        assert tokenizer.encode(text) == ids, text
        if tokenizer.kind != "wordpiece":
            assert tokenizer.decode(ids) == text


def test_another_vocabulary_s_ids_differ(whole_gguf, data_file):
    wrong = llamacpp_cases(data_file("conf_llamacpp_vocab/ggml-vocab-starcoder.gguf"))
    tokenizer = loaded(whole_gguf("ggml-vocab-deepseek-coder.gguf"))
    assert sum(tokenizer.encode(text) == ids for text, ids in wrong) < 5
