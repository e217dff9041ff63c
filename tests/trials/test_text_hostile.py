"""Trial 33: a hostile tokenizer is refused or bounded; a megabyte of `a` is encoded in at most two seconds."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import pytest

from fledge.errors import TokenizerError
from fledge.text.llama2c import from_llama2c
from fledge.text.regex_check import refuse_slow
from fledge.text.tokenizer import Tokenizer, byte_level, characters, from_text
from fledge.text.tokenizer_file import regexes
from tests.text.samples import PATTERNS, small_bpe

SECONDS = 2.0
MEGABYTE = 1_000_000


def tree() -> dict:
    return json.loads(byte_level().file.text)


def with_model(**changes) -> str:
    changed = tree()
    changed["model"].update(changes)
    return json.dumps(changed)


def vocab(**more) -> dict:
    return {**tree()["model"]["vocab"], **more}


HOSTILE = {
    "negative id": (with_model(vocab=vocab(evil=-1)), "expected an id of 0 or more, got -1"),
    "duplicate id": (with_model(vocab=vocab(evil=5)), "id 5 stands for"),
    "id far out of range": (with_model(vocab=vocab(evil=2**31)), "expected an id below"),
    "id beyond 64 bits": (with_model(vocab=vocab(evil=2**200)), "expected an id below"),
    "id of 5,000 digits": (
        with_model(vocab=vocab(evil=0)).replace('"evil": 0', '"evil": ' + "9" * 5000),
        "not usable JSON",
    ),
    "id that is a fraction": (with_model(vocab=vocab(evil=1.5)), "expected an id of 0 or more, got 1.5"),
    "id that is true": (with_model(vocab=vocab(evil=True)), "expected an id of 0 or more, got True"),
    "token twice": (with_model(vocab=vocab(evil=0)).replace('"evil": 0', '"x": 0'), "each key once"),
    "merge of unknown tokens": (with_model(merges=[["a", "zz"]]), "not all in the vocabulary"),
    "merge that makes nothing new": (with_model(merges=[["a", ""]]), "expected two tokens"),
    "merge that shrinks": (with_model(continuing_subword_prefix="b"), "continuing_subword_prefix"),
    "random ids": (with_model(dropout=0.5), "dropout"),
    "no vocabulary": (json.dumps({"model": {"type": "BPE"}}), "model.vocab"),
    "nothing": ("", "not usable JSON"),
    "not an object": ("[1]", "expected a JSON object"),
    "not a number": (with_model(vocab=vocab(evil=float("nan"))), "NaN is not a JSON number"),
    "deep": ('{"model":' * 100_000, "not usable JSON"),
    "unknown model": (with_model(type="Secret"), "expected byte-level BPE"),
    "empty vocabulary": (
        json.dumps({"model": {"type": "BPE", "vocab": {}}, "decoder": {"type": "ByteLevel"}}),
        "at least one",
    ),
    "added token with a taken id": (
        json.dumps({**tree(), "added_tokens": [{"id": 5, "content": "x", "special": True}]}),
        "id 5 stands for",
    ),
    "added token with two ids": (
        json.dumps({**tree(), "added_tokens": [{"id": 300, "content": "a", "special": True}]}),
        "'a' has id 300 and 97",
    ),
    "normalizer that doubles fifteen times": (
        json.dumps(
            {
                **tree(),
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 15,
                },
            }
        ),
        "times longer",
    ),
    "characters of two letters": (
        json.dumps(
            {
                "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated"},
                "model": {"type": "WordLevel", "vocab": {"ab": 0, "<|unk|>": 1}, "unk_token": "<|unk|>"},
            }
        ),
        "expected tokens of one character",
    ),
    "regular expression with exponential time": (
        json.dumps({**tree(), "pre_tokenizer": None}).replace(
            '"pre_tokenizer": null',
            '"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(q+)+$"}, '
            '"behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "add_prefix_space": false, '
            '"trim_offsets": true, "use_regex": false}]}',
        ),
        "catastrophic",
    ),
    "regular expression with quadratic time": (
        json.dumps({**tree(), "pre_tokenizer": None}).replace(
            '"pre_tokenizer": null',
            '"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "q+[xy]"}, '
            '"behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "add_prefix_space": false, '
            '"trim_offsets": true, "use_regex": false}]}',
        ),
        "catastrophic",
    ),
}


def with_regex(regex: str) -> str:
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return json.dumps({**tree(), "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, plain]}})


def with_added(*entries: dict) -> str:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps({**tree(), "added_tokens": [{**flags, **entry} for entry in entries]})


def with_normalizer(pattern: dict, content: str) -> str:
    return json.dumps({**tree(), "normalizer": {"type": "Replace", "pattern": pattern, "content": content}})


REGEXES = {  # each holds the engine up on a text of which the pump is the unit, and many of them on no run of a letter
    "a repeated word": (r"(?:ab)+[cd]", "group that repeats"),
    "a repeated word of classes": (r"(?:\p{Lu}\p{Ll}\d)+!", "group that repeats"),
    "nested loops": (r"(?:\w+\s?)*$", "group that repeats"),
    "alternatives that overlap": (r"(?:a|b|ab)*c", "group that repeats"),
    "a look back": (r"(a+)\1+b", "look back"),
    "a look back by name": (r"(?<x>a+)\k<x>b", "look back"),
    "recursion": (r"(?<x>a\g<x>?b)", "look back"),
    "a look ahead without end": (r"xy(?=.*z)|.", "loop within a look-around"),
    "counts of counts": (r"(?:a{0,200}){0,200}b", "200} times a group"),
    "a count without use": (r"a{1,10000}b", "times a character"),
    "an absent group": (r"(?~z)b", "a group"),
    "many loops": (r"a*a*a*a*a*a*b", "loops in a row"),
    "three loops": (r"a*a*a*b", "a run of 'a'"),
    "commas": (r".*,.*,.*,x", "a run of"),
    "a prefix of two": (r"ab[ab]*c", "a run of"),
    "a prefix of classes": (r"[A-F][0-9]\w*!", "a run of"),
    "another script": (r"\p{Arabic}+x", "a run of"),
    "an escape": (r"\x71+[xy]", "a run of 'q'"),
    "a wide escape": (r"[\x{3b1}-\x{3c9}]+x", "a run of"),
    "marks": (r"\p{M}+z", "a run of"),
    "posix": (r"[[:punct:]]+z", "a run of"),
    "possessive": (r"a++b|a", "a run of 'a'"),
}
PUBLISHED_REGEXES = (  # of models whose patterns have no name here; the longest is cut
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|\s+",
    r"[\p{Han}]+|[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+(?i:'s|'t)?|[\p{Lu}\p{M}]+|\p{N}{1,3}|\s+",
    r"(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)
HOSTILE |= {f"regular expression: {name}": (with_regex(regex), message) for name, (regex, message) in REGEXES.items()}
HOSTILE |= {
    "normalizer that grows a megabyte": (with_normalizer({"String": "a"}, "b" * 64), "times longer"),
    "normalizer that replaces nothing": (with_normalizer({"String": ""}, "x"), "empty pattern"),
    "added token under two ids": (
        with_added({"id": 300, "content": "<x>"}, {"id": 301, "content": "<x>"}),
        "expected one id, got 300 and 301",
    ),
    "added token that is special by word": (
        with_added({"id": 300, "content": "<x>", "special": "yes"}),
        "true or false",
    ),
    "added token that strips by number": (with_added({"id": 300, "content": "<x>", "lstrip": 1}), "true or false"),
}


@pytest.mark.parametrize("regex", PUBLISHED_REGEXES)
def test_patterns_of_models_are_linear(regex):
    """The control: what is refused is not all that is unknown."""
    assert from_text(with_regex(regex)).encode("ab 12") == list(b"ab 12")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_time(name):
    text, message = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(TokenizerError, match=message):
        from_text(text)
    assert time.process_time() - began < SECONDS


def test_the_file_without_the_evil_loads():
    assert from_text(with_model()).encode("evil") == list(b"evil")
    assert from_text(with_model(vocab=vocab(evil=300))).vocab_size == 301


def test_a_configuration_that_makes_every_character_special_is_refused():
    file = characters("a").file
    with pytest.raises(TokenizerError, match="only special tokens"):
        from_text(file.text, {"bos_token": "a"}).encode("a")


def test_our_own_regular_expressions_are_known_and_not_timed():
    """Timing them would refuse our own files on a machine slow enough."""

    def refuse(text):
        raise AssertionError("timed")

    ours = (byte_level(), characters("abc"), *(small_bpe(name) for name in PATTERNS))
    for tokenizer in ours:
        refuse_slow(regexes(tokenizer.file.tree), refuse)
    with pytest.raises(AssertionError, match="timed"):
        refuse_slow(["a+"], refuse)  # the control


SCRIPT = """
import resource, sys, time
from fledge.errors import TokenizerError
from fledge.text.tokenizer import Tokenizer
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
try:
    Tokenizer.load(sys.argv[1])
except TokenizerError as error:
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(time.process_time() - began, (after - before) / 1024, error)
"""


@pytest.mark.parametrize("layout", ["vocabulary", "merges", "unigram"])
def test_ten_million_entries_are_refused_without_reading_them_all(layout, tmp_path):
    path = tmp_path / "tokenizer.json"
    with open(path, "w") as file:
        if layout == "vocabulary":
            file.write('{"model":{"type":"BPE","merges":[],"vocab":{"x":0')
            thousand = ",".join(f'"%d-{i}":{i}' for i in range(1000))
            file.writelines("," + thousand.replace("%d", str(i)) for i in range(10_000))
            file.write("}}}")
        elif layout == "merges":
            file.write('{"model":{"type":"BPE","vocab":{"a":0,"aa":1},"merges":["a a"' + ',"a a"' * 10_000_000 + "]}}")
        else:
            file.write('{"model":{"type":"Unigram","vocab":[["a",0]' + ',["a",0]' * 5_000_000 + "]}}")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True)
    seconds, mebibytes, message = done.stdout.split(maxsplit=2)
    path.unlink()
    assert float(seconds) < SECONDS and float(mebibytes) < 300 and "expected at most" in message


@pytest.mark.parametrize("merges", [[["a", "b"], ["b", "a"], ["ab", "a"], ["ba", "b"], ["aba", "b"], ["a", "ba"]]])
def test_merges_in_a_circle_end(merges):
    """Every merge makes a longer token, so no circle can turn for ever; time stays within bounds."""
    words = {left + right for left, right in merges}
    more = {word: 300 + i for i, word in enumerate(sorted(words))}
    tokenizer = from_text(with_model(vocab=vocab(**more), merges=merges))
    began = time.process_time()
    assert tokenizer.decode(tokenizer.encode("ab" * (MEGABYTE // 2))) == "ab" * (MEGABYTE // 2)
    assert time.process_time() - began < 2 * SECONDS


def makers(data_file) -> dict:
    return {
        **{f"bpe {name}": lambda name=name: small_bpe(name) for name in PATTERNS},
        "bytes": byte_level,
        "characters": lambda: characters("abc"),
        "llama2.c": lambda: from_llama2c(data_file("ckpt_stories260K/tok512.bin")),
    }


@pytest.mark.parametrize("name", [*(f"bpe {name}" for name in PATTERNS), "bytes", "characters", "llama2.c"])
def test_a_megabyte_of_a_takes_at_most_two_seconds(name, data_file):
    tokenizer: Tokenizer = makers(data_file)[name]()
    text = "a" * MEGABYTE
    for encode in (tokenizer.encode, tokenizer.encode_array):
        began = time.process_time()
        ids = encode(text)
        assert time.process_time() - began < SECONDS
        assert tokenizer.decode(list(ids)) == text


def test_the_memory_measure_of_this_platform_is_kibibytes():
    assert 1_000 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 100_000_000
