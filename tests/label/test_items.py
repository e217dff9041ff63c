"""What is to be compared: every form of row, and errors that name file and line."""

from __future__ import annotations

import gzip
import json

import pytest

from fledge.errors import DataError
from fledge.label.items import packed, read_items, shortest, unpacked
from fledge.text.conversation import Message
from fledge.text.preferences import read_preferences
from tests.label.samples import pairs, write_rows

USER, GOOD, BAD = Message("user", "Hi"), Message("assistant", "Hello!"), Message("assistant", "What?")
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
FORMS = {
    "ranked texts": ({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, True, (USER,)),
    "neutral texts": ({"prompt": "Hi", "answers": ["Hello!", "What?"]}, False, (USER,)),
    "neutral chat": (
        {"messages": CHAT, "answers": [{"role": "assistant", "content": "Hello!"}, "What?"]},
        False,
        (Message("system", "Be kind."), USER),
    ),
    "transcripts": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
            "rejected": "\n\nHuman: Hi\n\nAssistant: What?",
        },
        True,
        (USER,),
    ),
    "alpaca": ({"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "What?"}, True, (USER,)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_in_every_form(tmp_path, form):
    row, ranked, prompt = FORMS[form]
    (item,) = read_items(write_rows(tmp_path / "a.jsonl", [row])).found
    assert (item.prompt, item.first, item.second, item.ranked) == (prompt, (GOOD,), (BAD,), ranked)


def test_of_three_answers_every_two_are_compared(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "Hi", "answers": ["x", "y", "z"]}])
    found = read_items(path).found
    assert [item.first[0].content + item.second[0].content for item in found] == ["xy", "xz", "yz"]
    assert found[1].at == f"{path}, line 1, answers[0] and [2]"


def test_one_answer_twice_is_left_out_and_counted(tmp_path):
    found = read_items(write_rows(tmp_path / "a.jsonl", [{"prompt": "Hi", "answers": ["x", "x", "z"]}]))
    assert (len(found.found), found.n_same) == (2, 1)
    with pytest.raises(DataError, match="found none .1 pairs of one answer twice"):
        read_items(write_rows(tmp_path / "b.jsonl", [{"prompt": "Hi", "answers": ["x", "x"]}]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi"}, "line 2: expected chosen and rejected, or a prompt with answers, got 'prompt'"),
        ({"prompt": "Hi", "chosen": "x"}, "line 2: expected chosen and rejected, got 'prompt', 'chosen'"),
        ({"prompt": "Hi", "answers": ["x"]}, r"line 2, answers: expected a list of 2..16, got 1"),
        ({"prompt": "Hi", "answers": "xy"}, r"line 2, answers: expected a list of 2..16, got str"),
        ({"prompt": "Hi", "answers": [str(i) for i in range(17)]}, r"answers: expected a list of 2..16, got 17"),
        ({"prompt": "Hi", "answers": ["x", 3]}, r"line 2, answers\[1\]: expected a list of turns, got int"),
        ({"answers": ["x", "y"]}, r"line 2, answers\[0\]: expected a prompt before the answer, got none"),
        ({"prompt": "Hi", "answers": ["x", "y"], "chosen": "x"}, "line 2: expected answers, or chosen and rejected"),
        ({"prompt": "Hi", "answers": ["x", "\ud800"]}, r"line 2, answers\[1\]: expected Unicode"),
        ({"prompt": "Hi", "answers": ["x", [{"role": "user", "content": "y"}]]}, "begins and ends with the assistant"),
        ([1], "line 2: expected an object, got list"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path, row, said):
    path = write_rows(tmp_path / "a.jsonl", [*pairs(1), row])
    with pytest.raises(DataError, match=said) as caught:
        read_items(path)
    assert str(path) in str(caught.value)


def test_the_digest_is_of_what_is_compared_and_of_its_order(tmp_path):
    rows = pairs(3)
    plain = read_items(write_rows(tmp_path / "a.jsonl", rows)).digest()
    zipped = tmp_path / "b.jsonl.gz"
    zipped.write_bytes(gzip.compress("".join(json.dumps(row, indent=None) + "\n\n" for row in rows).encode()))
    assert read_items(zipped).digest() == plain
    assert read_items(write_rows(tmp_path / "c.jsonl", rows[::-1])).digest() != plain
    assert read_items(write_rows(tmp_path / "d.jsonl", rows[:2])).digest() != plain


@pytest.mark.parametrize(
    "said",
    [(USER, GOOD), (GOOD,), (Message("assistant", "\n\nHuman: x"),), (Message("assistant", "\0 \u2028 ü"),)],
    ids=["chat", "text", "what looks like a transcript", "odd characters"],
)
def test_a_conversation_is_read_back_as_it_was(tmp_path, said):
    assert unpacked(packed(said)) == said
    assert "\0" not in packed(said) and packed(said).isascii()
    said = said if said[0].role == "assistant" else (*said[1:],)
    row = {"prompt": shortest((USER,), "user"), "chosen": shortest(said, "assistant"), "rejected": "No."}
    (pair,) = read_preferences(write_rows(tmp_path / "a.jsonl", [row]))
    assert (pair.prompt, pair.chosen) == ((USER,), said)


@pytest.mark.parametrize(
    ("name", "n"),
    [("pref_rasbt/instruction-data-with-preference.jsonl", 550), ("pref_hh_harmless/test_first1500.jsonl.gz", 1500)],
)
def test_real_files_of_preferences_are_read(data_file, name, n):
    found = read_items(data_file(name))
    assert all(item.ranked and item.first != item.second for item in found.found)
    assert len(found.found) + found.n_same == n
