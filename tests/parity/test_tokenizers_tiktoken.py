"""tiktoken's files, and Llama 3's, give tiktoken's ids: its published cases, llama.cpp's, and random text."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from fledge.text import pattern
from tests.text.published import llamacpp_cases, loaded
from tests.text.samples import random_texts, spelling_texts

TIKTOKEN = {"r50k_base": "tiktoken/r50k_base.tiktoken", "cl100k_base": "tiktoken/cl100k_base.tiktoken"}


def test_llama3_s_tokenizer_model_gives_llama_cpp_s_ids(data_file):
    tokenizer = loaded(data_file("conf_tokenizers/llama3/tokenizer.model"))
    assert tokenizer.vocab_size == 128_256 and (tokenizer.bos_id, tokenizer.eos_id) == (128_000, 128_001)
    cases = llamacpp_cases(data_file("conf_llamacpp_vocab/ggml-vocab-llama-bpe.gguf.inp").with_suffix(""))
    assert len(cases) == 47
    for text, ids in cases:
        assert tokenizer.encode(text) == tokenizer.encode_array(text).tolist() == ids, text
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", TIKTOKEN)
def test_a_tiktoken_file_gives_tiktoken_s_published_cases(name, data_file):
    tokenizer = loaded(data_file(f"conf_tokenizers/{TIKTOKEN[name]}"))
    text = data_file("conf_tiktoken_cases/TestPlans.txt").read_text(encoding="utf-8")
    found = re.findall(r"EncodingName: (\w+)\nSample: (.*?)\nEncoded: (\[.*?\])", text, flags=re.DOTALL)
    assert len(found) == 128
    for encoding, sample, ids in found:
        if encoding == name:
            assert tokenizer.encode(sample) == tokenizer.encode_array(sample).tolist() == ast.literal_eval(ids), sample


@functools.cache
def theirs_tiktoken(path: Path, split: str):
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    return tiktoken.Encoding("oracle", pat_str=split, mergeable_ranks=load_tiktoken_bpe(str(path)), special_tokens={})


FILES = (*TIKTOKEN.values(), "llama3/tokenizer.model", "whisper/gpt2.tiktoken")


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *((name, 1000) for name in FILES[:3]),
        *(pytest.param(name, 10_000, marks=pytest.mark.slow) for name in FILES),
    ],
)
def test_a_tiktoken_file_gives_tiktoken_s_ids_on_random_text(name, n, data_file):
    path = data_file(f"conf_tokenizers/{name}")
    tokenizer = loaded(path)
    theirs = theirs_tiktoken(path, pattern.PATTERNS[str(tokenizer.file.pattern)])
    assert tokenizer.quick is not None
    for text in [*random_texts(n, seed=20), *spelling_texts(n // 5, seed=20)]:
        ids = theirs.encode_ordinary(text)
        assert tokenizer.encode(text) == tokenizer.encode_array(text).tolist() == ids, text
        assert tokenizer.decode(ids) == text
