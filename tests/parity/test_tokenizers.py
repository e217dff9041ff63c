"""Our ids are those of transformers, tiktoken, llama.cpp, SentencePiece and of merging by the book."""

from __future__ import annotations

import ast
import functools
import gzip
import json
import re
from pathlib import Path

import pytest

from fledge.text import pattern
from fledge.text.byte_alphabet import to_bytes
from fledge.text.llama2c import from_llama2c
from fledge.text.special_tokens import SPECIAL_TOKENS
from fledge.text.tokenizer import Tokenizer, byte_level, characters
from tests.text.samples import PATTERNS, random_texts, small_bpe, source_text

N_RANDOM = 10_000  # the number the trial names


def ours(name: str, data_file) -> Tokenizer:
    makers = {
        **{p: functools.partial(small_bpe, p) for p in PATTERNS},
        "bytes": byte_level,
        "characters": lambda: characters(source_text(), SPECIAL_TOKENS),
        "llama2.c": lambda: from_llama2c(data_file("ckpt_stories260K/tok512.bin")),
    }
    return makers[name]()


KINDS = [(name, None) for name in (*PATTERNS, "bytes", "characters", "llama2.c")]


@pytest.mark.parametrize(("name", "model_type"), [*KINDS, ("gpt2", "llama"), ("gpt2", "gpt2"), ("llama2.c", "llama")])
def test_transformers_reads_our_folder_and_gives_equal_ids(name, model_type, data_file, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = ours(name, data_file)
    tokenizer.save(tmp_path)
    if model_type:
        config = {"model_type": model_type, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0}
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    n = N_RANDOM if model_type is None else 200
    texts = [text for text in random_texts(n, seed=10) if text]
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert tokenizer.encode(text) == ids, text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    for text in texts[:200]:
        ids = tokenizer.encode(text)
        if tokenizer.special.get("unk") not in ids:
            assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_another_split_pattern_gives_other_ids():
    texts = random_texts(500, seed=10)
    assert any(small_bpe("gpt2").encode(text) != small_bpe("llama3").encode(text) for text in texts)


@pytest.mark.parametrize("name", PATTERNS)
def test_merging_by_the_book_gives_the_same_ids(name):
    """The oracle: split with the `regex` package, then merge the lowest-ranked pair again and again."""
    import regex

    tokenizer = small_bpe(name)
    model = tokenizer.file.tree["model"]
    ranks = {tuple(merge): rank for rank, merge in enumerate(model["merges"])}
    spelling = {bytes([byte]): token for token in model["vocab"] if len(token) == 1 for byte in to_bytes(token) or b""}

    def merged(word: bytes) -> list[int]:
        parts = [spelling[word[i : i + 1]] for i in range(len(word))]
        while True:
            pairs = [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks]
            if not pairs:
                return [model["vocab"][part] for part in parts]
            _, place = min(pairs)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]

    split = regex.compile(pattern.PATTERNS[name])
    for text in [*random_texts(1500, seed=11), source_text()[:5000]]:
        if all(assigned(character) for character in text):
            assert tokenizer.encode(text) == [i for word in split.findall(text) for i in merged(word.encode())], text


def assigned(character: str) -> bool:
    """Whether every table of Unicode agrees on a character's class: newly assigned ones differ between libraries."""
    import unicodedata

    return unicodedata.category(character) != "Cn"


@pytest.fixture(scope="module")
def gpt2_folder(data_file, tmp_path_factory) -> Path:
    """GPT-2's published vocabulary as transformers saves it."""
    from transformers import GPT2TokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    raw = data_file("conf_tokenizers/gpt2/encoder.json"), data_file("conf_tokenizers/gpt2/vocab.bpe")
    vocab = json.loads(raw[0].read_text(encoding="utf-8"))
    merges = [tuple(line.split()) for line in raw[1].read_text(encoding="utf-8").splitlines()[1:] if line]
    GPT2TokenizerFast(vocab=vocab, merges=merges).save_pretrained(folder)
    return folder


def test_a_gpt2_folder_gives_the_published_ids(gpt2_folder, data_file, tmp_path):
    tokenizer = Tokenizer.load(gpt2_folder)
    assert tokenizer.kind == "bpe" and tokenizer.vocab_size == 50257 and tokenizer.stop_ids == (50256,)
    assert tokenizer.file.pattern == "gpt2"
    case = json.loads(data_file("conf_hf_tokenizer_cases/gpt2_encoded_tokens.json").read_text(encoding="utf-8"))
    cases = [(case["text"], case["token_ids"]), *tiktoken_cases(data_file), *llamacpp_cases(data_file, "gpt-2")]
    assert len(cases) > 100
    tokenizer.save(tmp_path)
    for one in (tokenizer, Tokenizer.load(tmp_path)):
        for text, ids in cases:
            assert one.encode(text) == one.encode_array(text).tolist() == ids, text
            assert one.decode(ids) == text
    assert tokenizer.quick is not None


def test_a_gpt2_folder_gives_tiktoken_s_ids_on_random_text(gpt2_folder):
    tokenizer = Tokenizer.load(gpt2_folder)
    for text in random_texts(3000, seed=12):
        assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text), text


def tiktoken_cases(data_file) -> list[tuple[str, list[int]]]:
    text = data_file("conf_tiktoken_cases/TestPlans.txt").read_text(encoding="utf-8")
    found = re.findall(r"EncodingName: r50k_base\nSample: (.*?)\nEncoded: (\[.*?\])", text, flags=re.DOTALL)
    return [(sample, ast.literal_eval(ids)) for sample, ids in found]


def llamacpp_cases(data_file, name: str) -> list[tuple[str, list[int]]]:
    path = f"conf_llamacpp_vocab/ggml-vocab-{name}.gguf"
    inputs = data_file(path + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    outputs = data_file(path + ".out").read_text(encoding="utf-8").splitlines()
    return [(text, [int(i) for i in line.split()]) for text, line in zip(inputs, outputs, strict=False)]


@pytest.fixture(scope="module")
def llama2(data_file, tmp_path_factory) -> Tokenizer:
    """Llama 2's tokenizer.json as Hugging Face wrote it, with an ordinary configuration."""
    folder = tmp_path_factory.mktemp("llama2")
    tree = json.loads(gzip.decompress(data_file("conf_tokenizers/llama2/tokenizer.json.gz").read_bytes()))
    model, hard = tree["model"], "\u00a0"  # this copy has lost its hard spaces: Rust refuses the file as it is
    model["vocab"] = {token.replace(" ", hard): i for token, i in model["vocab"].items()}
    broken = {"   ": (hard, hard), "     ": (hard * 2, hard * 2), "\u2581  ": ("\u2581", hard)}
    model["merges"] = [" ".join(broken.get(merge, merge.split(" "))) for merge in model["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    token = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": True}
    config = {"bos_token": token, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


def test_a_llama2_folder_gives_the_published_ids(llama2, data_file):
    assert llama2.kind == "sentencepiece-bpe" and (llama2.bos_id, llama2.eos_id, llama2.vocab_size) == (1, 2, 32000)
    case = json.loads(data_file("conf_hf_tokenizer_cases/llama_encoded.json").read_text(encoding="utf-8"))
    assert [llama2.bos_id, *llama2.encode(case["text"])] == case["token_ids"]
    for text, ids in llamacpp_cases(data_file, "llama-spm"):
        assert llama2.encode(text) == ids, text
        assert llama2.decode(ids) == text


def test_a_llama2_folder_gives_sentencepiece_s_ids(llama2, data_file):
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(data_file("conf_tokenizers/llama2/tokenizer.model")))
    for text in random_texts(2000, seed=13):
        if text and "\0" not in text:
            assert llama2.encode(text) == theirs.encode(text), text


def test_llama2_with_its_bos_would_differ(llama2):
    assert llama2.plain.encode("hi").ids == llama2.encode("hi")
    assert llama2.encode("<s>hi", parse_special=True)[0] == 1
