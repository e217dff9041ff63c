"""Questions come from real signatures and docstrings, are held out by name, and are the same each time."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import re
import textwrap
from pathlib import Path

import pytest

from fledge.data.build import build
from fledge.data.config import BuildConfig, QaConfig
from fledge.data.definitions import definitions, first_sentences
from fledge.data.document import Document
from fledge.data.qa import build_qa
from fledge.data.questions import about_definitions
from fledge.errors import ConfigError, DataError
from fledge.lineage import verify
from tests.data.folders import make

MODULE = '''"""Tools for birds. And more.

Details."""

def fly(height, /, speed=3, *routes, wings: int = 2, **rest):
    """Take off and
    fly. Then land."""

async def glide(*, far): "Glide without a beat."

def _hidden(): "Not for the public at all."

def undocumented(a): pass

def example(): """>>> example() gives nothing"""

class Nest:
    """A place for eggs to be kept."""
    def __init__(self, eggs=(), *, warm): ...
    def add(self, egg):
        """Put one more egg in."""
    @staticmethod
    def of(twigs):
        """Build one out of twigs."""
    @classmethod
    def empty(cls): "Return one without eggs."
    class Inner:
        "Not asked about at all."

class Bare:
    "Has no constructor of its own."
'''


def found(text: str = MODULE, path: str = "sources/birds/tools.py") -> dict:
    return {one.name.removeprefix("birds.tools"): one for one in definitions(Document(path, text), 300)}


def test_public_documented_names_are_found_with_their_parameters():
    by_name = {name: (one.kind, one.parameters) for name, one in found().items()}
    assert by_name == {
        "": ("module", None),
        ".fly": ("function", ("height", "speed=3", "*routes", "wings=2", "**rest")),
        ".glide": ("function", ("*", "far")),
        ".Nest": ("class", ("eggs=()", "*", "warm")),
        ".Nest.add": ("method", ("egg",)),
        ".Nest.of": ("method", ("twigs",)),
        ".Nest.empty": ("method", ()),
        ".Bare": ("class", None),
    }


def test_a_summary_is_the_docstring_s_first_paragraph_on_one_line():
    assert found()[".fly"].summary == "Take off and fly. Then land."
    assert found()[""].summary == "Tools for birds. And more."
    assert first_sentences("One two three. Four five six.", 20) == "One two three."
    assert first_sentences("One two three four five.", 20) == ""
    assert first_sentences("No full stop here:", 50) == "No full stop here."
    assert [first_sentences(t, 99) for t in ("f(x) -> the value", "Two words", ">>> a b c d", "", None)] == [""] * 5


def test_sources_are_never_run(tmp_path):
    canary = tmp_path / "canary"
    text = f'import pathlib\npathlib.Path({str(canary)!r}).touch()\n\ndef f():\n    """Do nothing at all."""\n'
    assert [one.name for one in definitions(Document("evil.py", text), 300)] == ["evil.f"]
    assert not canary.exists()
    exec(text, {})  # the control: running it would have left a trace
    assert canary.exists()


@pytest.mark.parametrize("text", ["def broken(:", "x = '\0'", "(" * 500, "a" * 10 + "\n  b"])
def test_a_source_that_is_no_python_gives_nothing(text):
    assert list(definitions(Document("a.py", text), 300)) == []


def test_private_modules_and_bundled_programs_are_not_asked_about():
    for path in ("sources/_pydecimal.py", "sources/idlelib/run.py", "topics/if.txt", "sources/a-b.py"):
        assert found(path=path) == {}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def python_qa(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("qa")
    build_qa(QaConfig(out), json=True)
    return out


def test_the_standard_library_gives_thousands_of_conversations(python_qa):
    train, val = rows(python_qa / "train.jsonl"), rows(python_qa / "val.jsonl")
    assert 4000 <= len(train) <= 6000
    assert len(val) >= 300
    for row in train + val:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in row["messages"])
    questions = [row["messages"][0]["content"] for row in train + val]
    assert len(set(questions)) == len(questions)
    assert any(len(row["messages"]) == 4 for row in train)


def test_names_and_answers_asked_about_in_val_are_not_asked_about_in_train(python_qa):
    train, val = rows(python_qa / "train.jsonl"), rows(python_qa / "val.jsonl")

    def digit(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[0]

    assert all(digit(row["name"]) != "0" and digit(row["document"]) != "0" for row in train)
    assert all(digit(row["name"]) == "0" or digit(row["document"]) == "0" for row in val)
    assert {row["name"] for row in train}.isdisjoint(row["name"] for row in val)
    answers = {m["content"] for row in train for m in row["messages"] if m["role"] == "assistant"}
    assert answers.isdisjoint(row["messages"][-1]["content"] for row in val)
    assert {row["document_trained"] for row in val} == {True, False}
    assert all(row["document_trained"] is (digit(row["document"]) != "0") for row in val)


def test_answers_say_what_python_itself_says(python_qa):
    """Every name of textwrap, json and heapq that was asked about, against the running interpreter."""
    import heapq
    import json as json_module

    modules = {"textwrap": textwrap, "json": json_module, "heapq": heapq}
    checked = 0
    for row in rows(python_qa / "train.jsonl") + rows(python_qa / "val.jsonl"):
        module, _, name = row["name"].partition(".")
        if module not in modules or "." in name or not inspect.isfunction(getattr(modules[module], name, None)):
            continue
        function = getattr(modules[module], name)
        question, answer = (message["content"] for message in row["messages"][:2])
        if "parameters" in question:
            assert re.findall(r"`\**(\w+)", answer)[1:] == [*inspect.signature(function).parameters]
        elif "signature" in question or "called" in question:
            assert answer == f"`{row['name']}{inspect.signature(function)}`"
        elif "module" in question:
            assert answer == f"`{name}` is in the module `{module}`."
        else:
            assert " ".join(inspect.getdoc(function).split()).startswith(answer.rstrip("."))
        checked += 1
    assert checked >= 10


def test_the_same_sources_give_the_same_bytes_and_a_second_run_reuses_them(python_qa, tmp_path):
    again = build_qa(QaConfig(tmp_path), json=True)
    assert again["digest"] == verify(python_qa)["digest"]
    assert again["reused"] is False
    assert build_qa(QaConfig(tmp_path), json=True)["reused"] is True
    assert build_qa(QaConfig(tmp_path, max_conversations=50), json=True)["train_conversations"] == 50
    (tmp_path / "val.jsonl").write_text("damaged")
    assert build_qa(QaConfig(tmp_path, max_conversations=50), json=True)["reused"] is False
    verify(tmp_path)


def test_one_name_is_asked_about_in_several_ways():
    made = list(about_definitions([one for n in range(200) for one in found(path=f"birds{n}.py").values()]))
    wordings = {re.sub(r"`?birds\d+[\w.]*`?|`?\b(fly|glide|Nest|Bare)\b`?", "X", c.turns[0][0]) for c in made}
    assert len(wordings) > 12
    assert any(c.turns[0][0].count("`") == 0 for c in made)


def test_the_split_of_a_corpus_folder_is_kept(tmp_path):
    source = make(tmp_path / "in", {"birds.py": MODULE * 1, "prose.txt": "word " * 2000})
    build(BuildConfig(tmp_path / "corpus", source), json=True)
    result = build_qa(QaConfig(tmp_path / "qa", str(tmp_path / "corpus")), json=True)
    assert verify(tmp_path / "qa")["parents"].keys() == {"corpus"}
    assert result["train_conversations"] > 0


def story(seed: int, sentences: int) -> str:
    chosen = random.Random(seed)
    return " ".join(
        f"The {chosen.choice(['old', 'new', 'odd'])} bird number {chosen.randrange(10**6)} went to the {n}th tree."
        for n in range(sentences)
    )


def test_text_without_python_is_asked_how_it_goes_on(tmp_path):
    text = story(1, 400)
    source = make(tmp_path / "in", {"story.txt": text})
    build(BuildConfig(tmp_path / "corpus", source), json=True)
    result = build_qa(QaConfig(tmp_path / "qa", str(tmp_path / "corpus")), json=True)
    assert result["from_text"] > 100
    for name in ("train", "val"):
        for row in rows(tmp_path / "qa" / f"{name}.jsonl"):
            passage = row["messages"][0]["content"].removeprefix("Continue: ").removeprefix("What comes after this? ")
            assert f"{passage} {row['messages'][1]['content']}" in text
    held_out = text[int(len(text) * 0.9) :]
    trained = (tmp_path / "qa" / "train.jsonl").read_text()
    assert not [row for row in rows(tmp_path / "qa" / "val.jsonl") if row["messages"][1]["content"] in trained]
    assert held_out[-40:] not in trained


def test_a_source_without_anything_to_ask_is_refused(tmp_path):
    source = make(tmp_path / "in", {"a.txt": "x"})
    with pytest.raises(DataError, match="documented Python or sentences"):
        build_qa(QaConfig(tmp_path / "qa", source), json=True)


@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl"])
def test_rows_of_a_strangers_are_not_written_over(name, tmp_path):
    source = make(tmp_path / "in", {"birds.py": 'def fly():\n    """Take off and fly."""\n'})
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / name).write_text('{"messages": []}\n')
    with pytest.raises(ConfigError, match=f"got one with {name} that data qa did not write; choose another"):
        build_qa(QaConfig(tmp_path / "qa", source), json=True)
    assert (tmp_path / "qa" / name).read_text() == '{"messages": []}\n'
    (tmp_path / "qa" / name).unlink()
    build_qa(QaConfig(tmp_path / "qa", source), json=True)
    (tmp_path / "qa" / "card.json").unlink()  # the control: as a killed run leaves it
    assert build_qa(QaConfig(tmp_path / "qa", source), json=True)["reused"] is False


@pytest.mark.parametrize("wrong", [{"max_conversations": 0}, {"max_answer_characters": 5}])
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        QaConfig(Path("x"), **wrong)
