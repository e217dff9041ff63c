"""Each name of a GGUF split pattern gives llama.cpp's ids; what is refused says why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fledge.errors import TokenizerError
from fledge.text import regex_check
from fledge.text.gguf_patterns import REFUSED, SPACES_MARKED, SPLITS, pre_tokenizer_of
from fledge.text.gguf_write import write_gguf
from fledge.text.tokenizer import Tokenizer
from tests.text.gguf_splits import write_vocabulary
from tests.text.samples import random_texts

# Ids that llama.cpp (the copy in llama-cpp-python 0.3.36) gives for `texts` under the vocabulary of gguf_splits.py.
RECORDED = json.loads((Path(__file__).parent / "gguf_splits.json").read_text(encoding="utf-8"))
GROUPS = [names.split(",") for names in RECORDED["ids"]]
# In llama.cpp's form of these patterns case is that of A-Z alone, and some forms leave out marks or case altogether: of
# the recorded texts so many come out otherwise than under the models' own patterns, which are checked below.
OTHERWISE = {"gpt-4o": 3, "granite-embed-multi-97m": 1, "kimi-k2": 4, "tekken": 3, "youtu": 2}


@pytest.fixture(scope="module")
def of_pattern(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")

    def load(pre: str) -> Tokenizer:
        write_vocabulary(folder / f"{pre}.gguf", pre, RECORDED["texts"])
        return Tokenizer.load(folder / f"{pre}.gguf")

    return load


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_a_split_pattern_s_name_gives_llama_cpp_s_ids(names, of_pattern):
    tokenizer = of_pattern(names[0])
    recorded = list(zip(RECORDED["texts"], RECORDED["ids"][",".join(names)], strict=True))
    unlike = [text for text, ids in recorded if tokenizer.encode(text) != ids]
    assert len(unlike) == OTHERWISE.get(names[0], 0), unlike
    assert all(tokenizer.decode(ids) == text for text, ids in recorded)


@pytest.mark.parametrize("split", sorted(set(SPLITS.values()), key=str), ids=lambda split: split.regexes[-1][:20])
def test_texts_are_split_as_the_regular_expressions_say(split):
    """The oracle: the `regex` package, one expression after the other over what the one before left."""
    import regex
    import tokenizers

    tree = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer_of(split)}
    tree["model"] = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    library = tokenizers.Tokenizer.from_str(json.dumps(tree)).pre_tokenizer
    expressions = [regex.compile(text, regex.V1) for text in split.regexes]
    for text in [*RECORDED["texts"], *filter(assigned, random_texts(400, seed=12))]:
        pieces = [text]
        for expression in expressions:
            pieces = [part for piece in pieces for part in around(expression, piece)]
        assert [text[slice(*place)] for _, place in library.pre_tokenize_str(text)] == pieces


@pytest.mark.slow
@pytest.mark.parametrize("split", sorted(set(SPLITS.values()), key=str), ids=lambda split: split.regexes[-1][:20])
def test_every_split_takes_linear_time(split):
    """Loading trusts them; here they are tried out, whatever their shape, as unknown ones are."""
    import tokenizers

    tree = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer_of(split)}
    tree["model"] = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    library = tokenizers.Tokenizer.from_str(json.dumps(tree))
    letters = sorted({letter for regex in split.regexes for letter in regex} | set("aA1 !\n\u4e2d"))
    for letter in letters[:128]:
        regex_check.try_out(letter, "\0" + "".join(letters), library.encode)


def around(expression, text: str) -> list[str]:
    """The matches in `text` and what stands between them."""
    places = [0, *(place for found in expression.finditer(text) for place in found.span()), len(text)]
    return [text[start:end] for start, end in zip(places, places[1:], strict=False) if start < end]


def assigned(text: str) -> bool:
    """Whether every table of Unicode agrees on the characters: newly assigned ones differ between libraries."""
    import unicodedata

    return all(unicodedata.category(character) not in ("Cn", "Co") for character in text)


def test_names_that_llama_cpp_splits_alike_are_split_alike_by_us():
    alike = {"minicpm5", "bailingmoe", "bailingmoe2", "llada-moe"}  # the recorded texts don't tell these from others
    for names in GROUPS:
        assert len({SPLITS[name] for name in names if name not in alike}) == 1, names


def test_every_recorded_pattern_differs_from_the_others(of_pattern):
    """The control: the texts tell the patterns apart."""
    assert len({json.dumps(rows) for rows in RECORDED["ids"].values()}) == len(GROUPS) > 20
    wrong = of_pattern("gpt-2").encode_batch(RECORDED["texts"])
    assert wrong != RECORDED["ids"][next(key for key in RECORDED["ids"] if "llama-bpe" in key)]


def test_all_names_are_recorded():
    assert {name for names in GROUPS for name in names} == set(SPLITS) - {"gpt2"}


@pytest.mark.parametrize("pre", sorted(REFUSED))
def test_a_pattern_that_is_not_supported_says_why(pre, of_pattern):
    with pytest.raises(TokenizerError, match=f"{pre}.*not supported: "):
        of_pattern(pre)


def test_an_unknown_pattern_is_refused_and_a_missing_one_is_warned_of(of_pattern, tmp_path, capsys):
    with pytest.raises(TokenizerError, match="expected one of .*gpt-4o.*; got 'gpt9'; use the model's tokenizer.json"):
        of_pattern("gpt9")
    tokens = [chr(33 + i) for i in range(4)]
    old = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["! !"]}
    write_gguf(tmp_path / "old.gguf", {**old, "tokenizer.ggml.tokens": [*tokens, "!!"]})
    assert Tokenizer.load(tmp_path / "old.gguf").encode("!!#") == [4, 2]
    assert "found none; texts are split as llama.cpp does" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("says", "template", "begins"),
    [(False, None, False), (True, None, True), (None, None, True),
     (False, "{{ bos_token }}{{ messages[0].content }}", True), (False, "{{ messages[0].content }}", False)],
)  # fmt: skip
def test_a_text_begins_with_bos_unless_the_file_says_no(says, template, begins, tmp_path):
    """Qwen's files name a token for the beginning and say that none is added; in transformers it has none."""
    facts = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["! !"],
             "tokenizer.ggml.tokens": [*(chr(33 + i) for i in range(4)), "!!", "<s>"],
             "tokenizer.ggml.token_type": np.array([1, 1, 1, 1, 1, 3], "<i4"),
             "tokenizer.ggml.bos_token_id": 5, "tokenizer.ggml.eos_token_id": 5}  # fmt: skip
    facts |= {} if says is None else {"tokenizer.ggml.add_bos_token": says}
    facts |= {} if template is None else {"tokenizer.chat_template": template}
    write_gguf(tmp_path / "a.gguf", facts)
    tokenizer = Tokenizer.load(tmp_path / "a.gguf")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (5 if begins else None, 5)
    assert tokenizer.is_special(5)


@pytest.mark.parametrize("kind", ["rwkv", "plamo2", "hybriddna"])
def test_a_kind_of_vocabulary_that_is_not_supported_says_why(kind, tmp_path):
    write_gguf(tmp_path / "v.gguf", {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": ["a"]})
    with pytest.raises(TokenizerError, match=f"expected one of gpt2, gemma4, llama, t5, bert, got '{kind}'; it "):
        Tokenizer.load(tmp_path / "v.gguf")


@pytest.mark.parametrize("pre", SPACES_MARKED)
def test_gemma_4_s_vocabulary_is_that_of_the_library(pre, tmp_path):
    """BPE over characters with marked spaces; the oracle is the `tokenizers` library, put together by hand."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Library

    joined = ["\u2581a", "\u2581b", "\n\n", "ab", "\u2581ab", "\u2581\u2581"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"ab\u2581\n", *joined]
    merges = ["\u2581 a", "\u2581 b", "\n \n", "a b", "\u2581a b", "\u2581 \u2581"]
    metadata = {
        "tokenizer.ggml.model": "gemma4" if pre == "gemma4" else "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([2] + [6] * 256 + [1] * (len(tokens) - 257), "<i4"),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    write_gguf(tmp_path / "v.gguf", metadata)
    ours = Tokenizer.load(tmp_path / "v.gguf")
    vocab = {token: number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    library = Library(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.add_special_tokens([AddedToken("<unk>", special=True)])
    library.encode_special_tokens = True
    library.normalizer = normalizers.Replace(" ", "\u2581")
    library.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = ["ab  a\n\n b", "\u4e2d ab\n", " a", *random_texts(300, seed=4)]
    for text in texts:
        ids = ours.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ids) == text.replace("\u2581", " "), text
