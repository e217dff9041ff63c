"""The documents say what the program does: commands, keys, names and links that they show exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import fledge
from fledge import config, errors
from fledge.cli.main import named
from fledge.cli.page import page
from fledge.cli.parse import find_verb, parse, read_config
from fledge.cli.verbs import VERBS
from fledge.errors import ConfigError
from fledge.recipes.pretrain import shaped
from tests.house.source import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_page_of_the_command_line_is_current():
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page(), "run: make docs"


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_key_of_a_verb_is_documented(verb):
    assert [key for key, _, _, doc in config.flatten(named(verb.config)) if not doc] == []


def test_a_key_without_documentation_is_found(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Planted:\n    a: int = 1\n    'said'\n    b: int = 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    planted = named("planted:Planted")
    assert [key for key, _, _, doc in config.flatten(planted) if not doc] == ["b"]


def commands(text: str) -> list[str]:
    """The command lines of a page: in shell blocks, every line that begins with fledge or make."""
    found = []
    for language, body in BLOCK.findall(text):
        if language in ("sh", "bash", "console", "shell"):
            lines = body.replace("\\\n", " ").splitlines()
            found += [line.lstrip("$ ") for line in lines if re.match(r"^(\$ )?(\.venv/bin/)?(fledge|make)\b", line)]
    return found


def broken(line: str) -> str:
    """Why a command of a page can't be run as written, or ''."""
    words = shlex.split(re.split(r"[|&;>]", line)[0], comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return "".join(f"no target {word}; " for word in words[1:] if "=" not in word and word not in targets)
    if words[1:] in (["--help"], ["--version"], ["VERB", "--help"]):
        return ""
    try:
        verb, rest = find_verb(words[1:])
        asked = [word for word in rest if word != "--help"]
        if parse(verb, named(verb.config), asked).yaml is None and asked == rest:
            read = read_config(verb, named(verb.config), rest)[0]
            if verb.name in ("pretrain", "distill") and not read.init_from:
                shaped(read.model, 1000)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_of_a_page_exists(path):
    found = commands(path.read_text(encoding="utf-8"))
    assert [(line, broken(line)) for line in found if broken(line)] == []


def test_the_readme_shows_commands():
    assert len(commands((ROOT / "README.md").read_text(encoding="utf-8"))) >= 5


def test_a_planted_command_that_does_not_exist_is_found():
    text = (
        "```sh\nmake quickstart ARGS=--no-serve  # two words\nmake nothing\nfledge env --pek | head\nfledge fly\n"
        "fledge pretrain model.preset=gpt2 data.path=a\nfledge pretrain model.family=gpt2 data.path=a\n```\n"
    )
    assert [bool(broken(line)) for line in commands(text)] == [False, True, True, True, False, True]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_names_of_the_package_in_python_blocks_exist(path):
    text = path.read_text(encoding="utf-8")
    assert unknown_names(text) == []


def unknown_names(text: str) -> list[str]:
    """Names `fledge.X` of Python blocks that the package doesn't have; a block that isn't Python is named too."""
    wrong = []
    for language, body in BLOCK.findall(text):
        if language == "python":
            compile(body, "block", "exec")
            names = set(re.findall(r"(?<![\w.])fledge\.(\w+)", body))
            modules = {p.stem for p in (ROOT / "fledge").iterdir()}
            wrong += sorted(names - set(fledge.__all__) - modules)
    return wrong


def test_a_planted_name_that_does_not_exist_is_found():
    assert unknown_names("```python\nimport fledge\nfledge.load('x')\nfledge.fly()\n```\n") == ["fly"]


def test_the_page_of_exit_codes_names_them_all():
    text = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")} | {130, 141, 143}
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == codes


def links(path: Path) -> list[str]:
    """Relative links of a page whose target isn't there."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    return [link for link in found if "://" not in link and not (path.parent / link).exists()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path):
    assert links(path) == []


def test_a_planted_dead_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text("[here](a.md#x) [there](b.md) [outside](https://example.org)")
    assert links(tmp_path / "a.md") == ["b.md"]


TRIALS = ROOT / "tests" / "trials"


def numbered(text: str) -> set[int]:
    """The trials that a test file says it holds: `Trials 39-42, 44 and 54` in its first line, `test_55_…`,
    `test_trial_2_…`, `trial 17` in a heading."""
    first = text.partition("\n\n")[0]
    found: set[int] = set()
    for words in re.findall(r"[Tt]rials? ((?:\d+(?:-\d+)?(?: \([^)]*\))?(?:, | and )?)+)", first):
        for low, high in re.findall(r"(\d+)(?:-(\d+))?", re.sub(r"\([^)]*\)", "", words)):
            found |= set(range(int(low), int(high or low) + 1))
    return found | {int(number) for number in re.findall(r"(?:def test_(?:trial_)?|# ---- trial )(\d+)", text)}


def test_the_page_of_trials_names_every_trial_with_its_files():
    rows = re.findall(r"^\| (\d+) \|(.*)$", (ROOT / "docs" / "trials.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = {(int(number), name) for number, text in rows for name in re.findall(r"tests/trials/(\w+\.py)", text)}
    held = {(n, p.name) for p in TRIALS.glob("test_*.py") for n in numbered(p.read_text(encoding="utf-8"))}
    assert told == held


def test_a_trial_is_found_wherever_its_file_names_it():
    text = '"""Trials 1-3, 7 (a part), 9 and 12: of kills."""\n\n# ---- trial 20: x\ndef test_trial_21_a(): ...\n'
    assert numbered(text + "def test_22_b(): ...\n# 99 bottles, trial 98\n") == {1, 2, 3, 7, 9, 12, 20, 21, 22}
