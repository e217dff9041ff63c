"""`fledge.load`: one engine behind a model, whoever reads from it and in whatever order."""

from __future__ import annotations

from itertools import zip_longest

import pytest
import torch

from fledge.engine.loaded import Model, load
from fledge.errors import EngineError
from tests.evals.tiny import save_tiny

PROMPTS = ("One", "Another", "A third")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save_tiny(tmp_path_factory.mktemp("model")))


def streamed(model: Model, prompt: str, **sampling: object) -> list[str]:
    return list(model.stream(prompt, max_tokens=20, ignore_eos=True, **sampling))


def test_a_stream_is_the_answer_piece_by_piece(model):
    pieces = streamed(model, "One", seed=3)
    assert "".join(pieces) == model.generate("One", max_tokens=20, ignore_eos=True, seed=3)
    assert len(pieces) > 3
    assert not model.engine.has_work


def test_streams_read_in_turn_and_answers_between_them_do_not_mix(model):
    alone = [streamed(model, prompt) for prompt in PROMPTS]
    assert len({"".join(pieces) for pieces in alone}) == 3
    streams = [model.stream(prompt, max_tokens=20, ignore_eos=True) for prompt in PROMPTS]
    together: list[list[str]] = [[], [], []]
    for round_of in zip_longest(*streams, fillvalue=""):
        for pieces, piece in zip(together, round_of, strict=True):
            pieces.append(piece)
        assert model.generate("One", max_tokens=20, ignore_eos=True) == "".join(alone[0])
    assert ["".join(pieces) for pieces in together] == ["".join(pieces) for pieces in alone]
    assert not model.engine.has_work


def test_a_stream_that_is_left_frees_its_slot_and_leaves_nothing_to_tell(model):
    stream = model.stream("One", max_tokens=20, ignore_eos=True)
    next(stream)
    other = model.stream("Another", max_tokens=20, ignore_eos=True)
    next(other)
    stream.close()
    assert model.engine.counters()["slots_in_use"] == 1
    assert "".join(other)
    assert not model.engine.has_work


def test_a_stream_that_fails_raises(model, monkeypatch, capsys):
    def forward(rows: object) -> None:
        raise RuntimeError("out of order")

    stream = model.stream("One", max_tokens=20, ignore_eos=True)
    assert next(stream)
    monkeypatch.setattr(model.engine.runner, "forward", forward)
    with pytest.raises(EngineError, match="the forward pass failed"):
        list(stream)
    assert not model.engine.has_work
    assert "out of order" in capsys.readouterr().err
    monkeypatch.undo()
    assert streamed(model, "One")  # the control: the engine is well


def test_log_probabilities_are_those_of_the_logits(model):
    ids = model.prompt_ids("One and another")
    told = model.complete(ids[:-1], max_tokens=1, logprobs=0, logit_bias=((ids[-1], 100.0),))[0].logprobs[0]
    assert told.token_id == ids[-1]
    assert torch.tensor(model.log_probabilities(ids)[-1]).isclose(torch.tensor(told.logprob), atol=1e-4)
