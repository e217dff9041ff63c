"""A config read is the config that was written: strict about names, types and what YAML makes of text."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge import config
from fledge.config import convert, from_dict, load, parse_yaml, read_json, read_yaml, set_dotted, to_dict, to_yaml
from fledge.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    """An inner group."""

    rate: float = 0.5
    """How fast."""
    n_steps: int = 3


@dataclass(frozen=True)
class Outer:
    """What the tests read."""

    name: str
    """What it is called."""
    inner: Inner = field(default_factory=Inner)
    path: Path | None = None
    words: tuple[str, ...] = ()
    mode: Literal["on", "off"] = "on"
    sizes: dict[str, int] = field(default_factory=dict)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_written_is_read_back(text, rate):
    chosen = Outer(text, Inner(rate), Path("a/b"), (text, "x"), "off", {"a": 1})
    assert from_dict(Outer, parse_yaml(to_yaml(chosen))) == chosen
    assert from_dict(Outer, to_dict(chosen)) == chosen


@pytest.mark.parametrize(
    "text", ["3e4", "1E-5", "010", "1:30", "no", "null", "~", "2026-11-22", ".5", "1_000", "<<", ""]
)
def test_text_that_looks_like_something_else_is_read_back(text):
    assert from_dict(Outer, parse_yaml(to_yaml(Outer(text)))).name == text


@pytest.mark.parametrize("value", ["0123456", "12", "no", "3e4", "2026-11-22", "1:30", ".inf"])
@pytest.mark.parametrize("hint", [str, Path])
def test_yaml_that_is_no_text_is_not_made_text(value, hint):
    """An api_key of 0123456 used to become 42798."""
    with pytest.raises(ConfigError, match="in quotes"):
        convert(hint, parse_yaml(value), "api_key")
    assert convert(hint, parse_yaml(f'"{value}"'), "api_key") == hint(value)


def test_a_choice_that_yaml_reads_as_a_truth_value_says_so():
    with pytest.raises(ConfigError, match="mode: expected one of 'on', 'off', got False; if text is meant, put it in"):
        from_dict(Outer, parse_yaml("{name: x, mode: off}"))


@pytest.mark.parametrize("text", ["010", "-007", "1:30", "1:30.5"])
def test_numbers_of_base_8_and_60_are_refused(text):
    with pytest.raises(ConfigError, match="steps, line 1: .*expected a number without a leading 0 or a colon"):
        parse_yaml(text, at="steps")


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("-0", 0), ("10", 10), ("1_000", 1000), ("0x1F", 31), ("3e-4", 3e-4), ("0.5", 0.5)]
)
def test_other_numbers_are_read(text, number):
    found = parse_yaml(text)
    assert found == number and type(found) is type(number)


@pytest.mark.parametrize(
    "text",
    ["name: a\nname: b", "name: x\ninner:\n  rate: 1\n  rate: 2", "name: x\nwords: [a]\n'name': y"],
)
def test_a_key_that_comes_twice_is_refused(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a.yaml, line \d: .*expected each key once"):
        load(Outer, tmp_path / "a.yaml")


def test_a_key_that_comes_in_both_spellings_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("name: x\ninner:\n  n-steps: 1\n  n_steps: 2\n")
    with pytest.raises(ConfigError, match="inner.n_steps: expected each key once"):
        load(Outer, tmp_path / "a.yaml")


def test_a_file_of_many_keys_is_read():
    text = "\n".join(f"k{number}: {number % 10}" for number in range(20_000))
    assert len(parse_yaml(text)) == 20_000


def test_changes_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("name: x\ninner:\n  n-steps: 7\n  rate: 1\n")
    chosen = load(Outer, tmp_path / "a.yaml", {"inner.n_steps": 9, "words": ("a",)})
    assert chosen == Outer("x", Inner(1.0, 9), words=("a",))
    assert load(Outer, None, {"name": "y"}) == Outer("y")


def test_set_dotted_makes_groups_and_keeps_what_else_is_there():
    tree: dict = {"a-b": {"c": 1}, "d": None}
    set_dotted(tree, "a_b.e-f", 2)
    set_dotted(tree, "d.g", 3)
    assert tree == {"a-b": {"c": 1, "e_f": 2}, "d": {"g": 3}}
    with pytest.raises(ConfigError, match="a_b.c: expected a group of keys, got 1"):
        set_dotted(tree, "a_b.c.d", 4)


GOOD = [
    (int, 3, 3),
    (int, 3.0, 3),
    (float, 3, 3.0),
    (bool, True, True),
    (int | None, None, None),
    (str | None, "a", "a"),
    (tuple[int, ...], [1, 2], (1, 2)),
    (list[str], ["a"], ["a"]),
    (dict[str, float], {"a": 1}, {"a": 1.0}),
    (Path, "a", Path("a")),
    (Literal[1, 2], 2, 2),
]
BAD = [
    (int, True, "expected integer"),
    (int, 3.5, "expected integer"),
    (int, "3", "expected integer"),
    (int, 2**63, "below 2.63"),
    pytest.param(int, 10**5000, "an integer of 16610 bits", id="huge"),
    (float, True, "expected number"),
    (float, float("nan"), "finite"),
    (bool, 1, "expected true/false"),
    (str, None, "expected text"),
    (str, [1], "expected text"),
    (int | None, "x", "expected integer"),
    (int, None, "expected integer"),
    (str | int, None, "expected a value, got nothing"),
    (tuple[int, ...], "12", "expected a list"),
    (tuple[int, ...], [1, "x"], r"at\[1\]: expected integer"),
    (dict[str, int], [1], "expected a mapping"),
    (dict[str, int], {"a": "x"}, "at.a: expected integer"),
    (Literal[1, 2], True, "expected one of 1, 2"),
    (Path, "", "expected a path, got an empty text"),
    (Path | None, "", "expected a path, got an empty text"),
    (Inner, 3, "expected a mapping"),
]


@pytest.mark.parametrize(("hint", "value", "wanted"), GOOD)
def test_a_value_of_the_right_type_is_taken(hint, value, wanted):
    found = convert(hint, value, "at")
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(("hint", "value", "message"), BAD)
def test_a_value_of_the_wrong_type_is_named(hint, value, message):
    with pytest.raises(ConfigError, match=message):
        convert(hint, value, "at")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: x", "nam: unknown key; did you mean name?"),
        ("inner: {rate: 1}", "name: expected a value, found none"),
        ("name: x\ninner: {rat: 1}", "inner.rat: unknown key; did you mean rate?"),
        ("- a", "expected a mapping of keys to values, got list"),
        ("name: [", "line 1: not valid YAML"),
        ("name: !!python/object:os.system x", "not valid YAML"),
        ("[" * 2000, "not"),
        ('name: x\npath: "a\\0b"', "path: expected a path without NUL, got 'a.x00b'"),
        ('name: "\\ud800x"', "name: expected text without half characters"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_place(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load(Outer, tmp_path / "a.yaml")
    assert "a.yaml" in str(raised.value)


def test_a_value_of_many_aliases_is_named_at_once(tmp_path):
    """Ten to the ninth copies of one list, as a message would write them out."""
    lists = [f"&a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 10)}]" for n in range(9)]
    (tmp_path / "a.yaml").write_text(f"name: [{', '.join(lists)}]")
    began = time.monotonic()
    with pytest.raises(ConfigError, match="name: expected text, got .*list"):
        load(Outer, tmp_path / "a.yaml")
    assert time.monotonic() - began < 5


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff")
    for name, message in (("none.yaml", "found none"), ("bad.yaml", "UTF-8"), (".", "can't be read")):
        with pytest.raises(ConfigError, match=message):
            read_yaml(tmp_path / name)
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize("text", ["{", "NaN", "1e999", "9" * 5000, "[" * 100_000])
def test_hostile_json_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match="a.json: not usable JSON"):
        read_json(tmp_path / "a.json")


def test_help_and_schema_say_what_the_class_says():
    assert config.flatten(Inner) == [("rate", "number", 0.5, "How fast."), ("n_steps", "integer", 3, "")]
    schema = config.schema(Outer)
    assert schema["required"] == ["name"] and schema["additionalProperties"] is False
    assert schema["properties"]["name"] == {"type": "string", "description": "What it is called."}
    assert schema["properties"]["inner"]["properties"]["rate"]["default"] == 0.5
