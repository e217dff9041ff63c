"""Frames and their contents: everything arrives as it was sent."""

from __future__ import annotations

import dataclasses
import math
import socket

import pytest

from fledge import errors
from fledge.engine import wire
from fledge.engine.constraint import Constraint
from fledge.engine.overflow import LongInput
from fledge.engine.request import BeamSearch, Event, Request, Sampling, TokenLogprob


def through(frame: wire.Frame) -> wire.Frame | None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(wire.pack(frame))
        return wire.receive(right)


def test_a_request_with_every_field_set_arrives_equal():
    sampling = Sampling(
        max_tokens=3,
        min_tokens=1,
        temperature=0.1,
        top_k=5,
        top_p=0.9,
        min_p=0.05,
        typical_p=0.8,
        repetition_penalty=1.1,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias=((3, -1.5), (9, 2.0)),
        seed=-(2**63),
        n=2,
        stop=("\ud83d", "é\n"),
        stop_token_ids=(4,),
        ignore_eos=True,
        logprobs=2,
        constraint=Constraint("choice", ("a", "é")),
    )
    defaults = Sampling()
    assert all(getattr(sampling, f.name) != getattr(defaults, f.name) for f in dataclasses.fields(Sampling))
    cut = LongInput("truncate", "right", 9)
    more = {
        "source_ids": (7, 8),
        "long_input": cut,
        "adapter": "tuned",
        "search": BeamSearch(3, early_stopping="never"),
    }
    request = Request("id", (1, 2, 3), sampling, "tenant", True, 4, 2.5, 1.5, **more)
    empty = Request("", ())
    assert all(getattr(request, f.name) != getattr(empty, f.name) for f in dataclasses.fields(Request))
    frame = through({"kind": "submit", "request": wire.request_to_plain(request)})
    assert wire.request_from_plain(frame["request"]) == request


def test_an_event_with_every_field_set_arrives_equal():
    one = TokenLogprob(3, -0.1 / 3, ((3, -0.1 / 3), (4, -math.inf)))
    event = Event("id", 1, (3, 4), "\ud83d é", (one, one), "error", "why", (None, one), -1.5)
    assert None not in vars(event).values()
    frame = through({"kind": "events", "events": [wire.event_to_plain(event)]})
    assert wire.event_from_plain(frame["events"][0]) == event


@pytest.mark.parametrize(
    "error", [errors.RequestError("m", "p", "c"), errors.CapacityError("m"), errors.DataError("d")]
)
def test_an_error_keeps_its_class_and_fields(error):
    got = wire.error_from_plain(wire.error_to_plain(error))
    assert type(got) is type(error) and got.args == error.args and vars(got) == vars(error)


@pytest.mark.parametrize("name", ["SystemExit", "annotations", "EXIT_OK", "__builtins__"])
def test_only_classes_of_ours_are_made(name):
    assert type(wire.error_from_plain({"class": name, "message": "m"})) is errors.EngineError


def test_a_frame_over_the_cap_is_refused_on_both_sides(monkeypatch):
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 100)
    with pytest.raises(errors.EngineError, match="at most 100 bytes"):
        wire.pack({"kind": "x" * 200})
    left, right = socket.socketpair()
    with left, right:
        left.sendall(wire.HEADER.pack(101))
        with pytest.raises(errors.EngineError, match="got 101"):
            wire.receive(right)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"kind":1}', b"\xff", b"{"])
def test_bytes_that_are_no_frame_are_an_error(body):
    with pytest.raises(errors.EngineError, match="frame"):
        wire.unpack(body)


@pytest.mark.parametrize("cut", [0, 3, 4, 8])
def test_a_line_that_ends_in_mid_frame_is_the_end(cut):
    data = wire.pack({"kind": "events", "events": []})[:cut]
    left, right = socket.socketpair()
    with right:
        left.sendall(data)
        left.close()
        assert wire.receive(right) is None
