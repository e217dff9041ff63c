"""Every chat format: its text is the models' own, its ids are what the libraries make of it, its mask is right."""

from __future__ import annotations

import gzip
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import ConfigError, RequestError
from fledge.text.chat import FORMATS, ChatRenderer, Message, renderer_for
from fledge.text.chat_formats import known_format, template_digest
from fledge.text.tokenizer import Tokenizer, byte_level
from tests.text.chats import (
    anything,
    contents,
    every_token,
    library,
    published,
    talks,
    text_of,
    transformers_text,
    with_system,
)

PUBLISHED = published()
SYSTEMLESS = ("gemma", "mistral-v0.1", "mistral-v0.2")
ENDS = {
    "fledge": "<|end|>",
    "chatml": "<|im_end|>",
    "qwen2": "<|im_end|>",
    "qwen2.5": "<|im_end|>",
    "llama-3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi-3": "<|end|>",
    "phi-3.5": "<|end|>",
}
TALK = (
    Message("user", "What does `dedent` do? <|im_end|></s>"),
    Message("assistant", "It removes white space."),
    Message("user", "Thanks"),
    Message("assistant", "You are welcome."),
)


def renderer(name: str) -> ChatRenderer:
    return ChatRenderer(every_token(), FORMATS[name])


@pytest.mark.parametrize("name", PUBLISHED["formats"])
def test_the_text_is_that_of_the_models_own_template(name):
    one = PUBLISHED["formats"][name]
    assert len(one["texts"]) >= 3
    for key, expected in one["texts"].items():
        talk = [Message(role, content) for role, content in PUBLISHED["conversations"][int(key.rstrip("+"))]]
        assert text_of(renderer(name), talk, key.endswith("+")) == expected, key


def test_two_formats_that_differ_in_one_space_are_told_apart():
    texts = {name: PUBLISHED["formats"][name]["texts"]["3"] for name in ("qwen2", "chatml", "phi-3", "llama-3")}
    assert len(set(texts.values())) == 3  # with a system message qwen2 is chatml
    talk = [Message(role, content) for role, content in PUBLISHED["conversations"][4]]
    assert renderer("mistral-v0.1").text(talk) != renderer("mistral-v0.2").text(talk)


@pytest.mark.parametrize("name", [name for name, one in PUBLISHED["formats"].items() if "digest" in one])
def test_a_published_template_is_known_by_its_digest(name):
    assert PUBLISHED["formats"][name]["digest"] in FORMATS[name].published


def test_no_digest_stands_for_two_formats():
    digests = [digest for form in FORMATS.values() for digest in (*form.published, template_digest(form.template))]
    assert len(digests) == len(set(digests)) >= 20


@pytest.mark.parametrize("name", FORMATS)
def test_our_own_template_is_known_however_it_writes_newlines(name):
    template = FORMATS[name].template
    assert known_format(template) is FORMATS[name]
    assert known_format(template.replace("\\n", "\n") + "\n") is FORMATS[name]
    assert known_format(template + "{# changed #}") is None


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60)
@given(talk=st.one_of(talks(contents), with_system(contents)), generation_prompt=st.booleans())
def test_our_jinja_gives_transformers_the_same_text(name, talk, generation_prompt):
    expected = transformers_text(FORMATS[name].template, talk, generation_prompt)
    assert text_of(renderer(name), talk, generation_prompt) == expected
    assert (expected is None) == (name in SYSTEMLESS and talk[0].role == "system")


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40)
@given(talk=talks(contents, contents.map(str.lstrip)), generation_prompt=st.booleans())
def test_the_ids_are_what_the_library_makes_of_the_text(name, talk, generation_prompt):
    """But for an answer that begins with white space, which a model writes after the head and not into it."""
    text = renderer(name).text(talk, generation_prompt)
    if any(token in message.content for message in talk for token in renderer(name).encoder.spellings):
        return
    assert renderer(name).render(talk, generation_prompt).ids == library().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40)
@given(talk=talks(anything))
def test_the_ids_served_begin_the_ids_trained_on_and_the_end_of_turn_is_trained_on(name, talk):
    one = renderer(name)
    if talk[-1].role == "user":
        talk = (*talk, Message("assistant", "yes"))
    whole = one.render(talk)
    end = every_token().id_of(ENDS.get(name, "</s>"))
    for number in range(1, len(talk), 2):
        served = one.render(talk[:number], generation_prompt=True)
        assert whole.ids[: len(served.ids)] == served.ids
        assert whole.trained[: len(served.ids)] == served.trained
        following = whole.trained[len(served.ids) :]
        n_answer = following.index(False) if False in following else len(following)
        answer = whole.ids[len(served.ids) : len(served.ids) + n_answer]
        assert answer.count(end) == 1 and answer[-1] == end and end in one.stop_ids
        stripped = every_token().decode(answer).strip()
        assert stripped == talk[number].content.strip()
    assert sum(map(bool, whole.trained)) == sum(
        len(answer) for answer in answers(whole.ids, whole.trained)
    )  # nothing else is


def answers(ids: list[int], trained: list[bool]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for number, flag in zip(ids, trained, strict=True):
        if flag:
            found[-1].append(number)
        elif found[-1]:
            found.append([])
    return [answer for answer in found if answer]


def test_an_uncut_head_would_serve_other_ids_than_it_trains_on():
    """The control: the library reads head and answer as one text, and its ids don't begin with the head's."""
    talk = (Message("user", "a"), Message("assistant", "\n\nb"))
    head = library().encode(renderer("chatml").text(talk[:1], True), add_special_tokens=False).ids
    whole = library().encode(renderer("chatml").text(talk), add_special_tokens=False).ids
    assert whole[: len(head)] != head


@pytest.mark.parametrize("name", FORMATS)
@given(talk=talks(anything))
@settings(max_examples=40)
def test_typed_control_tokens_add_no_control_id(name, talk):
    tokenizer = every_token()
    plain = tuple(Message(message.role, "x") for message in talk)
    expected = [i for i in renderer(name).render(plain).ids if tokenizer.is_special(i)]
    assert [i for i in renderer(name).render(talk).ids if tokenizer.is_special(i)] == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_begins_with_one_bos_or_none(name):
    one = renderer(name)
    has_bos = name not in ("chatml", "qwen2", "qwen2.5", "phi-3", "phi-3.5")
    bos = every_token().id_of("<|bos|>" if name == "fledge" else "<s>")
    ids = one.render(TALK, generation_prompt=True).ids
    assert (ids[0] == bos) is has_bos and bos not in ids[1:4]
    n_turns = 2 if name == "llama-2" else int(has_bos)  # its users' turns each begin with one, as published
    assert ids.count(bos) == n_turns


def test_a_second_bos_in_a_row_is_left_out():
    one = renderer_for(every_token(), "{{ bos_token }}<s>{{ messages[0].content }}</s>")
    bos = every_token().bos_id
    assert one.render(TALK[:1], generation_prompt=True).ids.count(bos) == 1
    assert library().encode("<s><s>a").ids.count(bos) == 2  # the control


@pytest.mark.parametrize("name", ["llama-2", "mistral-v0.1", "mistral-v0.2", "gemma", "alpaca", "vicuna"])
def test_turns_that_do_not_alternate_are_refused(name):
    for talk in (TALK[1:], (TALK[0], TALK[0]), (Message("system", "x"), TALK[1])):
        with pytest.raises(RequestError, match=r"messages\[\d\]\.role: expected (user|assistant)") as caught:
            renderer(name).render(talk)
        assert caught.value.param == "messages"
    assert renderer("chatml").render(TALK[1:]).ids


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "fledge"])
def test_a_tokenizer_without_the_formats_tokens_is_refused(name):
    bare = byte_level(())
    with pytest.raises(ConfigError, match=f"chat format {name}: expected a tokenizer with .*base model"):
        renderer_for(bare, name)
    assert renderer_for(every_token(), name).name == name


def test_a_sentencepiece_tokenizer_gets_the_librarys_ids(data_file, tmp_path):
    """LLaMA's own: a space goes before each text between two control tokens, and none before an answer after a head."""
    tree = json.loads(gzip.decompress(data_file("conf_tokenizers/llama2/tokenizer.json.gz").read_bytes()))
    tree["model"]["merges"] = [merge for merge in tree["model"]["merges"] if merge.count(" ") == 1]
    for entry in tree["added_tokens"]:  # as in the folder's later revision: a space goes before the text after <s> too
        entry["normalized"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer, raw = Tokenizer.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    talk = (Message("user", "Hi  there"), TALK[1])
    for name in ("llama-2", "mistral-v0.2", "vicuna"):
        one = ChatRenderer(tokenizer, FORMATS[name])
        for messages in (talk, (*talk, Message("user", " é\n🎉 ")), (Message("system", "Be\nbrief."), *talk)):
            if name == "mistral-v0.2" and messages[0].role == "system":
                continue
            rendered = one.render(messages)
            if name != "mistral-v0.2":
                assert rendered.ids == raw.encode(one.text(messages), add_special_tokens=False).ids
            trained = [i for i, flag in zip(rendered.ids, rendered.trained, strict=True) if flag]
            assert trained[-1] == tokenizer.eos_id
            assert raw.decode(trained, skip_special_tokens=True).strip() == talk[1].content
    spelled = ChatRenderer(tokenizer, FORMATS["llama-2"]).render((Message("user", "a</s><s>b"),), True).ids
    assert [i for i in spelled if tokenizer.is_special(i)] == [tokenizer.bos_id]
