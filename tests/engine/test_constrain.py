"""Answers under a constraint: whatever the model's logits say, a finished answer matches, a cut one is a beginning."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest

from fledge.engine import constrain
from fledge.engine.constrain import Constrainer
from fledge.engine.constraint import Constraint
from fledge.engine.request import Request, Sampling
from fledge.engine.stub import StubRunner
from fledge.errors import EngineError, RequestError
from fledge.text.llama2c import from_llama2c
from fledge.text.tokenizer import Tokenizer, byte_level, characters
from fledge.text.train import train_bpe
from tests.engine.stub_engine import TOKENIZER, stub_engine

SCHEMAS = {
    "record": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", 1, None, "y z"]}, "c": {"const": {"k": [1]}}},
        "additionalProperties": False,
    },
    "numbers": {"type": "array", "items": {"type": "number", "exclusiveMinimum": -2, "maximum": 2.5}, "maxItems": 3},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "integer", "multipleOf": 7}, {"type": "null"}],
        "items": False,
        "minItems": 2,
    },
    "any_of": {"anyOf": [{"type": "string", "pattern": "^[a-c]{2,4}$"}, {"type": "integer", "maximum": 9}]},
    "date": {"type": "string", "format": "date"},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"v": {"type": "integer", "minimum": 0, "maximum": 9}, "n": {"$ref": "#/$defs/node"}},
                "required": ["v"],
                "additionalProperties": False,
            }
        },
    },
}  # fmt: skip
REGEXES = [r"[a-z]{3}-\d{2}", r"(foo|ba[rz])+!", r"a/b\n?[é日]{1,3}", r"[^\n]{0,5};", r"\$\d+\.\d\d", r"^x?y$"]
TEXTS = ("yes", "no", "yesterday", "no way/\n", "日本", "%|\\[")


@pytest.fixture(scope="module")
def tokenizers(data_file) -> dict[str, Tokenizer]:
    text = '{"name": "foo", "age": 12} yes yesterday no way null true false [1, 2, 3] abc \n' * 20
    letters = "".join(map(chr, range(32, 127))) + "\n\r\té日本"
    return {
        "bytes": TOKENIZER,
        "byte BPE": train_bpe([text], 400),
        "characters": characters(letters, special=["<eos>"]),
        "SentencePiece": from_llama2c(data_file("ckpt_stories260K/tok512.bin")),
    }


KINDS = ("bytes", "byte BPE", "characters", "SentencePiece")


def answers(tokenizer: Tokenizer, constraint: Constraint, n: int = 6, max_tokens: int = 300, **settings):
    """Completions under random logits, from a prompt with text."""
    engine = stub_engine(tokenizer=tokenizer, n_slots=n, context_tokens=1024)
    ids = tuple(tokenizer.encode("a"))
    return engine.complete([Request("r", ids, Sampling(max_tokens, constraint=constraint, n=n, **settings))])


def matches_schema(text: str, schema: object) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("kind", KINDS)
def test_every_finished_answer_matches_its_schema(tokenizers, kind):
    n_finished = 0
    for schema in SCHEMAS.values():
        for one in answers(tokenizers[kind], Constraint("json_schema", json.dumps(schema))):
            if one.finish_reason == "stop":
                matches_schema(one.text, schema)
                n_finished += 1
    assert n_finished > 25


@pytest.mark.parametrize("kind", KINDS)
def test_every_finished_answer_matches_its_regex_or_is_one_of_the_choices(tokenizers, kind):
    for pattern in REGEXES:
        for one in answers(tokenizers[kind], Constraint("regex", pattern)):
            assert one.finish_reason == "stop" or "+" in pattern
            assert one.finish_reason != "stop" or re.fullmatch(pattern, one.text), (pattern, one.text)
    said = {one.text for one in answers(tokenizers[kind], Constraint("choice", TEXTS), n=16)}
    assert said <= set(TEXTS) and len(said) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_any_object_is_an_object_and_a_grammar_is_obeyed(tokenizers, kind):
    tokenizer = tokenizers[kind]
    for one in answers(tokenizer, Constraint("json_object"), logit_bias=biased(tokenizer, b'}"')):
        assert one.finish_reason == "length" or isinstance(json.loads(one.text), dict)
    nested = Constraint("grammar", 'start: "(" start ")" | "x"')
    for one in answers(tokenizer, nested, logit_bias=biased(tokenizer, b"x")):
        depth = one.text.count("(")
        assert one.text == "(" * depth + "x" + ")" * depth


def biased(tokenizer: Tokenizer, wanted: bytes) -> tuple[tuple[int, float], ...]:
    """Likelier tokens: answers under random logits would hardly ever end."""
    return tuple(
        (i, 6.0) for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) and tokenizer.token_bytes(i) in wanted
    )


def test_without_the_constraint_the_same_logits_give_no_match():
    # the control
    engine = stub_engine(n_slots=6, context_tokens=1024)
    for one in engine.complete([Request("r", (1,), Sampling(300, n=6))]):
        with pytest.raises(ValueError):
            json.loads(one.text)


def test_an_answer_cut_short_is_a_beginning_of_the_whole_one():
    constraint = Constraint("json_schema", json.dumps(SCHEMAS["record"]))
    whole = answers(TOKENIZER, constraint, n=3, temperature=0.7)
    for n_tokens in (1, 3, 7):
        for one, cut in zip(
            whole, answers(TOKENIZER, constraint, n=3, max_tokens=n_tokens, temperature=0.7), strict=True
        ):
            assert cut.finish_reason == "length"
            assert one.text.startswith(cut.text) and one.token_ids[:n_tokens] == cut.token_ids


def test_the_mask_keeps_the_meaning_of_seed_and_log_probabilities():
    # what the constraint allows all the time is sampled as if it were not there, and figures are the raw logits'
    ascii_only = tuple((byte, 40.0) for byte in range(128))
    plain, bound = (
        stub_engine().complete(
            [
                Request(
                    "r",
                    (1, 2),
                    Sampling(40, seed=5, logprobs=2, logit_bias=ascii_only, constraint=one, ignore_eos=True),
                )
            ]
        )[0]
        for one in (None, Constraint("regex", r"(.|\n)*"))
    )
    assert plain == bound and len(set(plain.token_ids)) > 10
    (other,) = stub_engine().complete(
        [Request("r", (1, 2), Sampling(40, seed=5, logit_bias=ascii_only, constraint=Constraint("regex", "[a-y]*")))]
    )
    assert other.token_ids != plain.token_ids


def test_company_does_not_change_a_constrained_answer():
    constraint = Constraint("json_schema", json.dumps(SCHEMAS["optional"]))
    request = Request("a", (1, 2), Sampling(60, seed=3, constraint=constraint))
    (alone,) = stub_engine().complete([request])
    others = [Request(f"o{i}", (3, i), Sampling(60, constraint=Constraint("json_object"))) for i in range(3)]
    assert stub_engine().complete([*others, request])[-1] == alone


def test_special_tokens_are_never_allowed_inside_and_stop_tokens_only_at_an_end():
    constrainer = Constrainer(TOKENIZER, TOKENIZER.vocab_size)
    automaton = constrainer.automaton(Constraint("regex", r"(.|\n)*"))
    special = [i for i in range(TOKENIZER.vocab_size) if TOKENIZER.is_special(i)]
    assert special and not automaton.allowed[special].any() and automaton.accepting
    (one,) = answers(TOKENIZER, Constraint("regex", "ab"), n=1)
    assert one.token_ids == tuple(TOKENIZER.encode("ab"))  # it ends where nothing can follow, without a stop token
    (one,) = answers(TOKENIZER, Constraint("regex", "a?b*"), n=1, logit_bias=((TOKENIZER.eos_id, 100.0),))
    assert one.token_ids == (TOKENIZER.eos_id,)
    (one,) = answers(TOKENIZER, Constraint("regex", "aab*"), n=1, logit_bias=((TOKENIZER.eos_id, 100.0),))
    assert one.token_ids == (*TOKENIZER.encode("aa"), TOKENIZER.eos_id)
    (one,) = answers(TOKENIZER, Constraint("regex", "ab?"), n=1, min_tokens=20, max_tokens=30)
    assert one.text in ("a", "ab")  # the constraint is stronger than min_tokens


def test_a_space_that_decoding_drops_is_not_what_the_constraint_began_with(tokenizers):
    tokenizer = tokenizers["SentencePiece"]
    engine = stub_engine(tokenizer=tokenizer, n_slots=8)
    for one in engine.complete(
        [Request("r", (tokenizer.bos_id,), Sampling(8, constraint=Constraint("regex", " ?[a-c]{2}"), n=8))]
    ):
        assert one.text == tokenizer.decode(
            one.token_ids[:-1] if one.token_ids[-1] == tokenizer.eos_id else one.token_ids
        )
        assert re.fullmatch(" ?[a-c]{2}", one.text), one


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        (Constraint("regex", "a" * 20_000), "at most 16384 characters"),
        (Constraint("regex", "(" * 3000 + ")" * 3000), "can't be used"),
        (Constraint("regex", "a(?=b)"), "can't be used"),
        (Constraint("regex", "["), "can't be used"),
        (Constraint("choice", tuple(map(str, range(10**6)))), "1 to 4096 texts"),
        (Constraint("choice", ()), "1 to 4096 texts"),
        (Constraint("choice", ("",)), "not empty"),
        (Constraint("json_schema", json.dumps({"enum": ["x" * 100] * 40_000})), "at most 131072 bytes"),
        (Constraint("json_schema", '{"type": '), "not JSON"),
        (Constraint("json_schema", "[" * 5000 + "]" * 5000), "not JSON|expected a schema"),
        (Constraint("json_schema", '{"items":' * 100 + "{}" + "}" * 100), "deeper than 64"),
        (Constraint("json_schema", '{"$ref": "https://example.org/schema.json"}'), r"into the schema itself \(#…\)"),
        (Constraint("json_schema", '{"$ref": "file:///etc/passwd"}'), "into the schema itself"),
        (Constraint("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'), "used|can begin"),
        (Constraint("json_schema", '{"type": "integer", "multipleOf": 99999989}'), "more than 1 s|more than 48 MiB"),
        (Constraint("json_schema", json.dumps({"not": {"type": "string"}})), "can't be used"),
        (Constraint("grammar", "start: start"), "can begin"),
        (Constraint("grammar", "start: nothing"), "can't be used"),
        (Constraint("grammar", '%llguidance {}\nstart: "a"'), "options are ours"),
        (Constraint("json", "{}"), "one of json_schema"),  # type: ignore[arg-type]
        (Constraint("regex", "\ud800"), "lone surrogate"),
    ],
    ids=lambda value: f"{value.kind}-{len(str(value.source))}" if isinstance(value, Constraint) else "",
)  # fmt: skip
def test_a_hostile_or_broken_constraint_is_refused_and_the_engine_goes_on(constraint, says):
    engine = ENGINE
    with pytest.raises(RequestError, match=says) as caught:
        engine.submit(Request("bad", (1,), Sampling(8, constraint=constraint)))
    assert caught.value.param == "constraint" and len(str(caught.value)) < 400
    assert not engine.has_work
    (one,) = engine.complete([Request("good", (1,), Sampling(8, constraint=Constraint("choice", ("ok",))))])
    assert one.text == "ok"


ENGINE = stub_engine()


def test_a_constraint_that_fails_on_the_way_fails_its_request_alone(monkeypatch):
    monkeypatch.setitem(constrain.LIMITS, "step_max_items", 40)
    engine = stub_engine()
    ambiguous = Constraint("grammar", 'start: s\ns: s s s | "a" | s s | "b"')
    good = Request("good", (1,), Sampling(200, constraint=Constraint("json_object")))
    (alone,) = engine.complete([good])
    engine.submit(Request("bad", (1,), Sampling(200, constraint=ambiguous, ignore_eos=True)))
    engine.submit(good)
    events = []
    while engine.has_work:
        events += engine.step()
    (error,) = [event.error for event in events if event.error]
    assert error.startswith("constraint: the automaton gave up")
    assert "".join(event.text for event in events if event.request_id == "good") == alone.text


def test_a_text_the_vocabulary_cannot_spell_is_refused_or_fails_its_request():
    tokenizer = characters("abc", special=["<eos>"])
    engine = stub_engine(tokenizer=tokenizer)
    with pytest.raises(RequestError, match="can begin"):
        engine.submit(Request("r", (1,), Sampling(8, constraint=Constraint("choice", ("xyz",)))))
    with pytest.raises(EngineError, match="no token of this model's vocabulary"):
        engine.complete([Request("r", (1,), Sampling(8, constraint=Constraint("choice", ("abx",))))])
    (one,) = engine.complete([Request("r", (1,), Sampling(8, constraint=Constraint("regex", "abx?"), ignore_eos=True))])
    assert (one.text, one.finish_reason) == ("ab", "stop")


def test_automata_are_kept_up_to_a_bound_and_copies_are_independent():
    constrainer = Constrainer(TOKENIZER, TOKENIZER.vocab_size)
    first = constrainer.automaton(Constraint("regex", "ab|ac"))
    first.accept(TOKENIZER.encode("a")[0])
    second = constrainer.automaton(Constraint("regex", "ab|ac", name="other"))
    assert np.flatnonzero(second.allowed).tolist() == TOKENIZER.encode("a") and second.name == "other"
    assert np.flatnonzero(first.allowed).tolist() == sorted([*TOKENIZER.encode("b"), *TOKENIZER.encode("c")])
    for i in range(constrain.MAX_COMPILED):
        constrainer.automaton(Constraint("choice", (f"{i}",)))
    assert len(constrainer.compiled) == constrain.MAX_COMPILED
    assert not constrainer.has(Constraint("regex", "ab|ac"))
    for i in range(6):
        constrainer.automaton(Constraint("choice", tuple(f"{i} {k} {'x' * 90}" for k in range(1100))))
    assert constrainer.source_bytes <= constrain.MAX_COMPILED_BYTES


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install 'fledge\[structured\]'"):
        stub_engine().submit(Request("r", (1,), Sampling(8, constraint=Constraint("json_object"))))


def test_stub_logits_reach_every_allowed_token():
    # the control of the random walks: all of three choices come up
    runner = StubRunner(byte_level().vocab_size, 4)
    engine = stub_engine(runner=runner)
    texts = {
        engine.complete([Request("r", (1,), Sampling(8, seed=s, constraint=Constraint("choice", ("a", "b", "c"))))])[
            0
        ].text
        for s in range(40)
    }
    assert texts == {"a", "b", "c"}
