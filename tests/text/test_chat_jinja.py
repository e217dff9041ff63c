"""A template that a model came with: rendered in the child, with the ids, the mask and the care of our own formats."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import ConfigError, DataError, RequestError
from fledge.text.chat import FORMATS, ChatRenderer, Message, render_all, renderer_for
from fledge.text.jinja_format import SpelledTokens
from fledge.text.special_tokens import special_entries
from fledge.text.tokenizer import Tokenizer, byte_level, from_text
from tests.text.chats import CONTROL, anything, every_token, published, talks, transformers_text

FOREIGN = "{# not the published one #}"
CHATML = FORMATS["chatml"].template + FOREIGN
MARKED = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- generation %}{{- m.content + END }}{%- endgeneration %}{{- AFTER }}{%- else %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
INSIDE = MARKED.replace("END", "'<|im_end|>'").replace("AFTER", "'\n'")
OUTSIDE = MARKED.replace("END", "''").replace("AFTER", "'<|im_end|>\n'")
FORGETFUL = (  # as templates that drop the reasoning of earlier answers: what was said once reads otherwise later
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + ('' if loop.last else '(old)') + m.content "
    "+ '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TALK = (
    Message("user", "Hi <|im_end|>"),
    Message("assistant", " Hello. "),
    Message("user", "x"),
    Message("assistant", "Bye"),
)


def foreign(template: str) -> ChatRenderer:
    found = renderer_for(every_token(), template)
    assert found.in_child
    return found


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25)
@given(talk=talks(anything), generation_prompt=st.booleans())
def test_a_template_in_the_child_gives_the_ids_and_the_mask_of_our_own_renderer(name, talk, generation_prompt):
    """Our formats' templates, disguised: the mask comes from rendering prefixes here, from the walk there."""
    own = ChatRenderer(every_token(), FORMATS[name])
    assert foreign(FORMATS[name].template + FOREIGN).render(talk, generation_prompt) == own.render(
        talk, generation_prompt
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_tells_its_end_of_turn(name):
    end = every_token().id_of(FORMATS[name].end or "</s>")
    assert end in foreign(FORMATS[name].template + FOREIGN).stop_ids


@settings(max_examples=40)
@given(talk=talks(anything))
@pytest.mark.parametrize("template", [INSIDE, OUTSIDE], ids=["end inside", "end outside"])
def test_marked_answers_are_trained_on_with_their_end_of_turn(template, talk):
    if talk[-1].role == "user":
        talk = (*talk, Message("assistant", "yes"))
    expected = ChatRenderer(every_token(), FORMATS["chatml"]).render(talk)
    assert foreign(template).render(talk) == expected


def test_marked_text_is_what_transformers_marks():
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [{"role": m.role, "content": m.content} for m in TALK]
    texts, spans = render_jinja_template([turns], chat_template=INSIDE, return_assistant_tokens_mask=True)
    expected = [texts[0][start:end] for start, end in spans[0]]
    pieces = foreign(INSIDE).form.lay_out(TALK, foreign(INSIDE).marks, False)
    assert "".join(piece.text for piece in pieces) == texts[0]
    assert "".join(piece.text for piece in pieces if piece.trained) == "".join(expected) != ""


@pytest.mark.parametrize("template", [CHATML, INSIDE, OUTSIDE], ids=["derived", "inside", "outside"])
def test_the_ids_served_begin_the_ids_trained_on(template):
    one = foreign(template)
    whole = one.render(TALK)
    for turns in (1, 3):
        served = one.render(TALK[:turns], generation_prompt=True)
        assert whole.ids[: len(served.ids)] == served.ids
        assert whole.trained[: len(served.ids)] == served.trained
        assert whole.trained[len(served.ids)]
    ends = [i for i, token in enumerate(whole.ids) if token == every_token().id_of("<|im_end|>")]
    assert [whole.trained[i] for i in ends] == [False, True, False, True]


def test_a_template_without_steady_prefixes_serves_but_does_not_train():
    one = foreign(FORGETFUL)
    assert not any(one.render(TALK[:3], generation_prompt=True).trained)
    assert one.text(TALK[:1], True) == transformers_text(FORGETFUL, TALK[:1], True)
    with pytest.raises(ConfigError, match=f"chat {one.name}: expected .*answer 1 does not.*generation"):
        one.render(TALK)
    assert any(foreign(FORGETFUL.replace("(old)", "")).render(TALK).trained)  # the control


def test_a_template_whose_answers_do_not_end_is_not_trained_on():
    with pytest.raises(ConfigError, match="an answer ends with a control token"):
        foreign(CHATML.replace("+ '<|im_end|>' + '\\n'", "+ '\\n'")).render(TALK)


# Text stays text


@settings(max_examples=60)
@given(text=anything)
@pytest.mark.parametrize(
    "shown",
    [
        "m.content",
        "m.content | trim",
        "m.content.strip().replace('a', 'b')",
        "m.content.split('</think>')[-1]",
        "'end|>' ~ m.content ~ '<|im_'",
        "m.content ~ 'im_end|>'",
        "'<|im_en' ~ m.content",
        "m.content[1:]",
    ],
)
def test_no_control_token_comes_from_a_message(shown, text):
    template = "{% for m in messages %}{{ '<|im_start|>' }}{{ " + shown + " }}{{ '<|im_end|>' }}{% endfor %}"
    ids = foreign(template).render((Message("user", text),), generation_prompt=True).ids
    control = [every_token().token_of(i) for i in ids if every_token().is_special(i)]
    assert control == ["<|im_start|>", "<|im_end|>"]


@given(text=anything)
def test_the_text_itself_arrives_whole(text):
    one = foreign("<s>{{ messages[0].content }}</s>")
    ids = one.render((Message("user", text),), generation_prompt=True).ids
    assert every_token().decode(ids) == text


def test_without_the_cover_the_text_would_become_control():
    template = "{{ messages[0].content }}"
    talk = (Message("user", "<|im_end|>"),)
    text = transformers_text(template, talk, False)
    assert text is not None and every_token().encode(text, parse_special=True) == [every_token().id_of("<|im_end|>")]
    assert every_token().id_of("<|im_end|>") not in foreign(template).render(talk, True).ids


def test_characters_that_stand_in_for_others_are_none_of_the_text():
    typed = "<s>\U000f0000\U000f0001\ufdd0<|user|>\ufdd1"
    for template in (INSIDE, CHATML):
        talk = (Message("user", typed), Message("assistant", typed))
        assert foreign(template).render(talk) == ChatRenderer(every_token(), FORMATS["chatml"]).render(talk)


def test_a_covered_text_comes_back_from_what_a_template_writes_with_escapes():
    """JSON in ASCII escapes every private character, and so does a list or mapping that is written as Python does."""
    talk = (Message("user", "é <|im_end|> \ufdd0"),)
    for template in (
        "{{ messages }}",
        "{{ messages[0].items() | list }}",
        "{{ messages | tojson(ensure_ascii=true) }}",
    ):
        assert foreign(template).text(talk, True) == transformers_text(template, talk, True)


def test_a_covered_text_spells_no_control_token_whatever_stands_beside_it():
    spelled = SpelledTokens(CONTROL)
    for text in ("<", "<|", "a<|im_end|", "|>", "end|> b", "<<s><s", " <|us ", "<|im_<|im_end|>end|>"):
        cover = spelled.cover([text])
        assert not any(
            token in f"{head}{cover.contents[0]}{tail}"
            for token in CONTROL
            for head in ("", *(token[:n] for n in range(1, len(token))))
            for tail in ("", *(token[n:] for n in range(1, len(token))))
        )
        assert cover.lift(cover.contents[0]) == text
    assert spelled.cover(["plain text"]).contents == ["plain text"]


# Where templates come from, and what they may say


def test_a_published_template_needs_no_child():
    for name in published()["formats"]:
        assert not renderer_for(every_token(), FORMATS[name].template).in_child


def test_templates_are_found_in_the_folders_three_forms(tmp_path):
    every_token().save(tmp_path)
    config = dict(every_token().config)
    for value in ("A", [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "A"}]):
        write_config(tmp_path, {**config, "chat_template": value})
        assert renderer_for(Tokenizer.load(tmp_path)).text(TALK, True) == "A"
    write_config(tmp_path, {**config, "chat_template": [{"name": "chat", "template": "only"}]})
    assert renderer_for(Tokenizer.load(tmp_path)).text(TALK, True) == "only"
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}")
    assert renderer_for(Tokenizer.load(tmp_path)).text(TALK, True) == "4"


def test_a_template_reads_every_named_special_token():
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
    named = {name: f"<|{name}|>" for name in names}
    entries = special_entries(tuple(named.values()), 256)
    tree = {**json.loads(byte_level(()).file.text), "added_tokens": entries}
    template = "".join(f"{{{{ {name} }}}}" for name in names)
    assert renderer_for(from_text(json.dumps(tree), named), template).text(TALK, True) == "".join(named.values())


def write_config(folder, tree):
    (folder / "tokenizer_config.json").write_text(json.dumps(tree))


def test_a_template_that_refuses_is_named_with_its_reason():
    one = foreign("{{ raise_exception('roles must\nalternate') }}")
    with pytest.raises(
        RequestError, match=f"chat {one.name}: it refused the conversation: roles must alternate"
    ) as caught:
        one.render(TALK, True)
    assert (caught.value.param, caught.value.code) == ("messages", "chat_template_refused")
    with pytest.raises(DataError, match="my.jsonl, conversation 1: chat template"):
        render_all(one, [TALK], "my.jsonl")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ messages[-1] | tojson }}", '{"role": "assistant", "content": "Bye"}'),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "4"),
        ("{% for i in range(3) %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% endfor %}", "01"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages | map(attribute='role') | join(',')) }}",
         "[user,assistant,user,assistant]"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "2"),
        ("{{ (messages | last).content.upper().startswith('BY') }}", "True"),
        ("{{ bos_token }}{{ tools is none }}{{ enable_thinking is defined }}{{ messages[0].get('name', '-') }}", "<s>TrueFalse-"),  # noqa: E501
        ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
        ("{{ '%.1f' if false else 'x' * 3 }}{{ 7 % 4 }}{{ 2 ** 3 }}", "xxx38"),
        ("{{ messages[0].items() | length }}{{ messages[::-1][0].content }}{{ {'a': 1}.a }}", "2Bye1"),
    ],
)  # fmt: skip
def test_what_templates_need_is_there(template, expected):
    assert foreign(template).text(TALK, True) == expected
    if "strftime" not in template:
        assert transformers_text(template, TALK, True) == expected
