"""The command line becomes the config that was typed: forms, literal text, precedence, errors with suggestions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.cli import parse
from fledge.cli.parse import find_verb, read_config
from fledge.cli.verbs import VERBS, Verb
from fledge.errors import ConfigError


@dataclass(frozen=True)
class Train:
    learning_rate: float = 1e-3
    steps: int = 10
    compile: bool = False
    keep: bool = True
    bias: float = 0.0


@dataclass(frozen=True)
class Example:
    model: Path | None = None
    prompt: str = ""
    system: str | None = None
    stop: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    mode: Literal["on", "off", "3"] = "on"
    train: Train = Train()
    extra: dict[str, int] | None = None


ALIASES = (("out", "model"), ("lr", "train.learning_rate"))
VERB = Verb("example", "an example", "-:-", "-:-", ("[model]", "[prompt]"), aliases=ALIASES)


def typed(*words: str) -> Example:
    return read_config(VERB, Example, list(words))[0]


def test_every_form_of_a_key_gives_the_same_config():
    forms = [
        ["train.learning_rate=0.5"],
        ["--train.learning_rate", "0.5"],
        ["--train.learning-rate=0.5"],
        ["train.learning-rate=5e-1"],
        ["--lr", "0.5"],
        ["lr=0.5"],
    ]
    assert {typed(*form) for form in forms} == {Example(train=Train(learning_rate=0.5))}
    assert typed() != typed(*forms[0])  # the control: the key is not ignored


@pytest.mark.parametrize(
    "text",
    ["3", "0123456", "3e4", "no", "", "a: b", "[x]", "null", "true", "- 1", "# no comment", "x=1", "-5", "-dash"],
)
def test_text_fields_take_what_was_typed(text):
    assert typed("--prompt", text).prompt == text
    assert typed(f"--prompt={text}").prompt == text
    assert typed("--system", text).system == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_text_survives_the_command_line(text):
    assert typed(f"--prompt={text}").prompt == text
    assert typed(f"prompt={text}").prompt == text


def test_null_in_the_yaml_form_unsets_an_optional_text():
    assert typed("system=null").system is None
    assert [typed(f"system={word}").system for word in ("none", "~", "")] == ["none", "~", ""]
    assert typed("--system", "null").system == "null"


def test_negative_numbers_are_values():
    assert typed("--train.bias", "-1.5").train.bias == -1.5
    assert typed("train.bias=-2").train.bias == -2
    assert typed("--ids", "-1", "--ids", "-2").ids == (-1, -2)


def test_booleans_take_flag_no_flag_and_a_word():
    assert typed("--train.compile").train.compile is True
    assert typed("--no-train.keep").train.keep is False
    assert typed("--train.keep", "false").train.keep is False
    assert typed("--train.keep=false", "weights").model == Path("weights")
    assert typed("--train.compile", "weights") == Example(model=Path("weights"), train=Train(compile=True))


def test_lists_grow_by_flags_and_are_set_by_yaml():
    assert typed("--stop", "[END]", "--stop", "a, b").stop == ("[END]", "a, b")
    assert typed("stop=[a, b]").stop == ("a", "b")
    assert typed("stop=a").stop == ("a",)
    assert typed("ids=[1, 2]").ids == (1, 2)
    assert typed("--ids", "1", "--ids", "2").ids == (1, 2)


def test_choices_stay_text():
    assert typed("mode=off").mode == "off"
    assert typed("--mode", "3").mode == "3"


def test_command_line_beats_yaml_beats_default(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("prompt: from file\ntrain:\n  learning-rate: 0.25\n  steps: 7\n")
    config = typed(str(file), "train.learning_rate=0.5")
    assert (config.prompt, config.train.learning_rate, config.train.steps) == ("from file", 0.5, 7)
    assert typed("--train.steps=8", str(file)).train.steps == 8


def test_positionals_fill_their_keys_in_order():
    config = typed("--train.compile", "--", "folder", "--prompt")
    assert (config.model, config.prompt) == (Path("folder"), "--prompt")
    with pytest.raises(ConfigError, match="unexpected word 'c'"):
        typed("a", "b", "c")


def test_entries_of_a_mapping_can_be_set():
    assert typed("extra.x=3", "extra.y=4").extra == {"x": 3, "y": 4}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lerning-rate", "1"], "did you mean train.learning_rate"),
        (["train.step=1"], "did you mean train.steps"),
        (["--promt", "x"], "did you mean prompt"),
        (["--train.steps"], "expected a value, found none"),
        (["--prompt", "--train.compile"], "--prompt: expected a value"),
        (["train.steps=many"], "train.steps: expected integer, got 'many'"),
        (["--train.steps", "nan"], "train.steps: expected integer"),
        (["--mode", "sideways"], "expected one of 'on', 'off', '3'"),
        (["-x"], "flags have two dashes"),
        (["a.yaml", "b.yaml"], "expected one YAML file"),
        (["train.steps=010"], "without a leading 0"),
        (["extra={a: 1, a: 2}"], "each key once"),
        (["stop=[3]"], "put it in quotes"),
        (["--prompt", "\udcff"], "expected UTF-8"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(words, message):
    with pytest.raises(ConfigError, match=message):
        typed(*words)


def test_verbs_of_two_words_and_typos():
    assert find_verb(["data", "build", "x"])[0].name == "data build"
    assert find_verb(["data", "build", "x"])[1] == ["x"]
    mistakes = {
        "pretrian": "did you mean pretrain",
        "data": "build, contamination, inspect, stats, preview, qa",
        "dta build": "data build",
    }
    for words, message in mistakes.items():
        with pytest.raises(ConfigError, match=message):
            find_verb(words.split())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["x", "--help"], True),
        (["-h"], True),
        (["--pek", "--help"], True),
        (["--train.compile", "--help"], True),
        (["--prompt=x", "--help"], True),
        (["prompt", "--help"], True),
        (["--", "--help"], False),
        (["--prompt", "--help"], False),
        (["--lr", "-h"], False),
        (["--prompt", "--", "--help"], True),
        (["--prompt", "x"], False),
    ],
)
def test_help_is_asked_for_where_a_flag_may_stand(words, wanted):
    assert parse.wants_help(VERB, Example, words) is wanted


def test_the_value_of_an_option_is_the_value():
    assert typed("--prompt", "--help").prompt == "--help"
    assert typed("--stop", "-h").stop == ("-h",)


def test_a_group_of_keys_does_not_silently_replace_a_value(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: fast\n")
    with pytest.raises(ConfigError, match="train: expected a group of keys, got 'fast'"):
        typed(str(file), "train.steps=3")


def test_the_table_of_verbs_has_no_name_twice():
    names = [verb.name for verb in VERBS]
    assert len(names) == len(set(names))
