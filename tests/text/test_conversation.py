"""read_conversations: the files people have, and errors that name file and line."""

from __future__ import annotations

import json

import pytest

from fledge.errors import DataError
from fledge.text.chat import Message, read_conversations

ROWS = {
    "openai": (
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "a"},
            ]
        },
        (Message("system", "s"), Message("user", "u"), Message("assistant", "a")),
    ),
    "sharegpt": (
        {"system": "s", "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        (Message("system", "s"), Message("user", "u"), Message("assistant", "a")),
    ),
    "alpaca": (
        {"instruction": "i", "input": "x", "output": "a", "history": [["u", "b"]]},
        (Message("user", "u"), Message("assistant", "b"), Message("user", "i\n\nx"), Message("assistant", "a")),
    ),
    "alpaca without input": (
        {"instruction": "i", "input": "", "output": "a"},
        (Message("user", "i"), Message("assistant", "a")),
    ),
    "openai with a system beside": (
        {"system": "s", "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
        (Message("system", "s"), Message("user", "u"), Message("assistant", "a")),
    ),
    "a system twice": (
        {"system": "s", "conversations": [{"from": "system", "value": "s"}, {"from": "gpt", "value": "a"}]},
        (Message("system", "s"), Message("assistant", "a")),
    ),
    "pairs with a system": (
        {"system": "s", "prompt": "u", "response": "a"},
        (Message("system", "s"), Message("user", "u"), Message("assistant", "a")),
    ),
    "pairs": ({"prompt": "u", "completion": "a"}, (Message("user", "u"), Message("assistant", "a"))),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_form_is_read_from_lines_and_from_an_array(name, tmp_path):
    row, expected = ROWS[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps(row), encoding="utf-8")
    (tmp_path / "b.json").write_text(" \n" + json.dumps([row, row], indent=1), encoding="utf-8")
    for file in ("a.jsonl", "b.json"):
        assert list(read_conversations(tmp_path / file)) == [expected, expected]


@pytest.mark.parametrize(
    ("name", "n_rows"),
    [("sft_rasbt/instruction-data.jsonl", 1100), ("sft_llamafactory/alpaca_zh_demo.jsonl.gz", 1000)],
)
def test_real_files_are_read_whole(name, n_rows, data_file, tmp_path):
    import gzip

    raw = data_file(name).read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(gzip.decompress(raw) if name.endswith(".gz") else raw)
    found = list(read_conversations(tmp_path / "rows.jsonl"))
    assert len(found) == n_rows and all(talk[-1].role == "assistant" for talk in found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [', "line 2: not JSON in UTF-8 .Expecting value at character 15.; mend or remove it"),
        ('{"a": 1,\t"b": "c"', "line 2: not JSON in UTF-8 .Expecting ',' delimiter at character 18"),
        ("[" * 100_000, "line 2: not JSON"),
        ("7", "line 2: expected an object, got int"),
        ("{}", "line 2: expected messages, conversations, instruction or prompt"),
        ('{"messages": []}', r"line 2, messages: expected a list of turns"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', r"line 2, messages\[0\]\.role: expected one of"),
        ('{"messages": [{"role": "user", "content": null}]}', r"line 2, messages\[0\], content: expected text"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "line 2: expected an answer of the assistant"),
        ('{"prompt": "x"}', "line 2, completion: expected text, got none"),
        ('{"prompt": "\\ud800", "response": "x"}', "line 2, prompt: expected Unicode"),
        ('{"instruction": "x", "output": "y", "history": [["a"]]}', "line 2, history: expected pairs"),
        ('{"instruction": "x", "output": "y", "history": 5}', "line 2, history: expected a list of pairs, got int"),
        ('{"system": 5, "prompt": "x", "response": "y"}', "line 2, system: expected text, got int"),
        (
            '{"system": "s", "messages": [{"role": "system", "content": "t"}, {"role": "assistant", "content": "a"}]}',
            "line 2, system: expected the text of the first turn",
        ),
    ],
)
def test_a_wrong_line_is_named(line, message, tmp_path):
    good = json.dumps(ROWS["pairs"][0])
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        list(read_conversations(tmp_path / "rows.jsonl"))
    assert "rows.jsonl" in str(caught.value)


def test_a_file_that_is_not_utf8_or_missing_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "\xff", "response": "x"}')
    with pytest.raises(DataError, match="line 1: not JSON in UTF-8"):
        list(read_conversations(tmp_path / "rows.jsonl"))
    with pytest.raises(DataError, match="found none"):
        list(read_conversations(tmp_path / "no.jsonl"))
