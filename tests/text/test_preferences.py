"""Preferences from the files people have: every form, every real file, and errors that name file and line."""

from __future__ import annotations

import gzip
import json

import pytest

from fledge.errors import DataError
from fledge.text.chat import FORMATS, Message, renderer_for
from fledge.text.preferences import Preference, read_judged, read_preferences, render_answer
from fledge.text.tokenizer import byte_level
from tests.text.chats import every_token

USER, GOOD, BAD = Message("user", "Hi"), Message("assistant", "Hello!"), Message("assistant", "What?")
SYSTEM = Message("system", "Be kind.")
OPENAI = {
    "system": {"role": "system", "content": "Be kind."},
    "user": {"role": "user", "content": "Hi"},
    "good": {"role": "assistant", "content": "Hello!"},
    "bad": {"role": "assistant", "content": "What?"},
}
SHAREGPT = {"user": {"from": "human", "value": "Hi"}, "good": {"from": "gpt", "value": "Hello!"},
            "bad": {"from": "gpt", "value": "What?"}}  # fmt: skip
HEAD = "\n\nHuman: Hi\n\nAssistant:"
PLAIN, WITH_SYSTEM = ((USER,), (GOOD,), (BAD,)), ((SYSTEM, USER), (GOOD,), (BAD,))
FORMS = {
    "texts": ({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, PLAIN),
    "messages": (
        {"prompt": [OPENAI["system"], OPENAI["user"]], "chosen": [OPENAI["good"]], "rejected": [OPENAI["bad"]]},
        WITH_SYSTEM,
    ),
    "a prompt that the answers repeat": (
        {"prompt": "Hi", "chosen": [OPENAI["user"], OPENAI["good"]], "rejected": [OPENAI["user"], OPENAI["bad"]]},
        PLAIN,
    ),
    "implicit prompt": (
        {"chosen": [OPENAI[k] for k in ("system", "user", "good")],
         "rejected": [OPENAI[k] for k in ("system", "user", "bad")]},
        WITH_SYSTEM,
    ),
    "transcripts": ({"chosen": f"{HEAD} Hello!", "rejected": f"{HEAD} What?"}, PLAIN),
    "a transcript as prompt": ({"prompt": HEAD, "chosen": " Hello!", "rejected": " What?"},
                               ((USER,), (Message("assistant", " Hello!"),), (Message("assistant", " What?"),))),
    "LLaMA-Factory's ShareGPT": (
        {"conversations": [SHAREGPT["user"]], "system": "Be kind.", "chosen": SHAREGPT["good"],
         "rejected": SHAREGPT["bad"]},
        WITH_SYSTEM,
    ),
    "a text beside a system": ({**{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, "system": "Be kind."},
                               WITH_SYSTEM),
    "a transcript beside a system": ({"prompt": HEAD, "system": "Be kind.", "chosen": "Hello!", "rejected": "What?"},
                                     WITH_SYSTEM),
    "Alpaca": ({"instruction": "H", "input": "i", "chosen": "Hello!", "rejected": "What?"},
               ((Message("user", "H\n\ni"),), (GOOD,), (BAD,))),
    "transcripts that part before the last turn": (
        {"chosen": f"{HEAD} Hello!\n\nHuman: And?\n\nAssistant: Yes", "rejected": f"{HEAD} What?"},
        ((USER,), (GOOD, Message("user", "And?"), Message("assistant", "Yes")), (BAD,)),
    ),
    "conversations that part in a user's turn": (
        {"chosen": f"{HEAD} Hello!\n\nHuman: A\n\nAssistant: Yes",
         "rejected": f"{HEAD} Hello!\n\nHuman: B\n\nAssistant: No"},
        ((USER,), (GOOD, Message("user", "A"), Message("assistant", "Yes")),
         (GOOD, Message("user", "B"), Message("assistant", "No"))),
    ),
}  # fmt: skip


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_read(name, tmp_path):
    row, (prompt, chosen, rejected) = FORMS[name]
    path = write(tmp_path / "a.jsonl", row, {**row, "margin": 2})
    first, second = read_preferences(path)
    assert first == Preference(prompt, chosen, rejected, None, f"{path}, line 1")
    assert second.margin == 2.0 and second.at == f"{path}, line 2"


def test_judged_answers_are_read_in_their_forms_and_out_of_pairs(tmp_path):
    turns = [OPENAI["user"], OPENAI["good"]]
    rows = [
        {"prompt": "Hi", "completion": "Hello!", "label": True}, {"messages": turns, "label": False},
        {"prompt": [OPENAI["user"]], "completion": [OPENAI["good"]], "label": False},
        {"completion": turns, "label": True}, FORMS["texts"][0],
    ]  # fmt: skip
    found = list(read_judged(write(tmp_path / "a.jsonl", *rows)))
    assert [one.good for one in found] == [True, False, False, True, True, False]
    assert all(one.prompt == (USER,) for one in found)
    assert [one.answer for one in found] == [(GOOD,)] * 5 + [(BAD,)]


TEXTS = FORMS["texts"][0]
REFUSED = {
    "no rejected": ({"prompt": "Hi", "chosen": "a"}, "line 2: expected chosen and rejected, got 'prompt', 'chosen'"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "line 2: expected a prompt, or two conversations that begin alike"),
    "a number": ({**TEXTS, "chosen": 3}, "line 2, chosen: expected a list of turns, got int"),
    "no text": ({**TEXTS, "prompt": None}, "line 2, prompt: expected a list of turns"),
    "margin": ({**TEXTS, "margin": "big"}, "line 2, margin: expected a finite number, got 'big'"),
    "margin beyond floats": ({**TEXTS, "margin": 10**400}, "line 2, margin: expected a finite number, got 1000"),
    "no history": ({"instruction": "H", "history": 5, "chosen": "a", "rejected": "b"},
                   "line 2, history: expected a list of pairs, got int"),
    "two systems": ({**TEXTS, "system": "x", "prompt": [OPENAI["system"], OPENAI["user"]]},
                    "line 2, system: expected the text of the first turn"),
    "infinite margin": ({**TEXTS, "margin": float("inf")}, "line 2, margin: expected a finite number"),
    "role": ({**TEXTS, "chosen": [{"role": "cat", "content": "x"}]}, r"line 2, chosen\[0\].role: expected one of"),
    "the user's": ({**TEXTS, "rejected": [OPENAI["user"]]}, "line 2, rejected: expected an answer that begins"),
    "surrogate": ({**TEXTS, "chosen": "\ud800"}, "line 2, chosen: expected Unicode"),
    "a list": ([1], "line 2: expected an object, got list"),
    "other conversations": ({"chosen": [OPENAI["user"], OPENAI["good"]], "rejected": [OPENAI["system"], OPENAI["bad"]]},
                            "line 2: expected a prompt, or two conversations"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair_is_refused_with_its_line(name, tmp_path):
    row, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        list(read_preferences(write(tmp_path / "a.jsonl", TEXTS, row)))


@pytest.mark.parametrize(
    ("row", "message"),
    [({"prompt": "Hi", "completion": "a", "label": "yes"}, "label: expected true or false, got 'yes'"),
     ({"prompt": "Hi", "label": True}, "expected a completion, or messages that end with the assistant's"),
     ({"completion": "a", "label": True}, "expected a prompt before the answer")],
)  # fmt: skip
def test_what_is_no_judged_answer_is_refused(row, message, tmp_path):
    with pytest.raises(DataError, match=f"line 1.*{message}"):
        list(read_judged(write(tmp_path / "a.jsonl", row)))


def test_a_file_that_is_not_there_or_not_json_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.*found none"):
        list(read_preferences(tmp_path / "nowhere"))
    (tmp_path / "a.jsonl").write_text(json.dumps(TEXTS) + "\n{nonsense\n")
    with pytest.raises(DataError, match="line 2: not JSON"):
        list(read_preferences(tmp_path / "a.jsonl"))


def test_a_compressed_file_is_read_as_what_is_in_it_and_a_damaged_one_is_refused(tmp_path):
    plain = write(tmp_path / "a.jsonl", *[TEXTS] * 300)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(json.dumps([TEXTS] * 300).encode()))
    wanted = [one.chosen for one in read_preferences(plain)]
    for name in ("a.jsonl.gz", "array.json.gz"):
        path = tmp_path / name
        assert [one.chosen for one in read_preferences(path)] == wanted
        path.write_bytes(path.read_bytes()[:-12])
        with pytest.raises(DataError, match=r"gz, byte \d+: cut off gzip; get the file again"):
            list(read_preferences(path))


@pytest.mark.parametrize("name", FORMATS)
def test_the_mask_of_an_answer_is_the_answer_alone_after_the_prompt_that_is_served(name):
    renderer = renderer_for(every_token(), name)
    prompt = (USER, Message("assistant", "Yes?"), Message("user", "Well"))
    found = render_answer(renderer, prompt, (GOOD,), "here")
    served = renderer.render(prompt, generation_prompt=True).ids
    assert found.ids[: len(served)] == served and not any(found.trained[: len(served)])
    whole = renderer.render((*prompt, GOOD))
    assert whole.ids == found.ids and sum(whole.trained) > sum(found.trained) > 0  # the earlier answer is not counted
    text = renderer.tokenizer.decode([i for i, flag in zip(found.ids, found.trained, strict=True) if flag])
    assert "Hello!" in text and "Yes" not in text


def test_what_the_format_cannot_hold_names_the_row():
    with pytest.raises(DataError, match="line 7, chosen"):
        render_answer(renderer_for(every_token(), "gemma"), (USER, USER), (GOOD,), "line 7, chosen")


REAL = {
    "pref_hh_harmless/test_first1500.jsonl.gz": 1500,
    "pref_llamafactory/dpo_en_demo.jsonl.gz": 300,
    "pref_llamafactory/dpo_zh_demo.jsonl.gz": 300,
    "pref_rasbt/instruction-data-with-preference.jsonl": 550,
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_of_pairs_is_read_whole_and_rendered(name, data_file):
    found = list(read_preferences(data_file(name)))
    assert len(found) == REAL[name]
    assert all(one.prompt[-1].role == "user" for one in found)
    renderer = renderer_for(byte_level())
    for one in found[::25]:
        for side in (one.chosen, one.rejected):
            rendered = render_answer(renderer, one.prompt, side, one.at)
            said = [i for i, flag in zip(rendered.ids, rendered.trained, strict=True) if flag]
            answers = [message.content for message in side if message.role == "assistant"]
            assert renderer.tokenizer.decode(said) == "".join(answers)


def test_a_real_file_of_judged_answers_is_read_whole(data_file):
    found = list(read_judged(data_file("pref_llamafactory/kto_en_demo.jsonl.gz")))
    assert len(found) == 300 and sum(one.good for one in found) == 150
    assert all(one.prompt[-1].role == "user" and len(one.answer) == 1 for one in found)
