"""Encoder–decoders in the engine against transformers.generate: the same tokens, scores and log-probabilities, for
sources of different lengths side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fledge.engine.beam import beam_search
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.noise import gumbel, position_key, sequence_key
from fledge.engine.request import BeamSearch, Completion, Request, Sampling
from fledge.engine.row import Row, Source
from fledge.engine.runner import Runner
from fledge.engine.source import named
from fledge.engine.speculate import LookupDrafter
from fledge.model.folder import load_model
from tests.engine.stub_engine import TOKENIZER
from tests.parity.encoder_decoder_cases import reference
from tests.parity.reference import VOCAB, some_ids

LENGTHS = (33, 7, 20, 16, 1)
SOURCES = [tuple(some_ids(5, 33)[n, :length].tolist()) for n, length in enumerate(LENGTHS)]
N_TOKENS = 20
SAMPLED = Sampling(
    N_TOKENS, temperature=0.8, top_k=30, top_p=0.9, repetition_penalty=1.3, seed=11, logprobs=0, ignore_eos=True
)
SEARCHES = [
    BeamSearch(n_beams, N_TOKENS, penalty, early)
    for n_beams, penalty, early in [(4, 1.0, False), (3, 2.0, "never"), (5, -1.0, False), (2, 0.6, True)]
]
Theirs = transformers.PreTrainedModel


MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("t5-gated-silu", "mt5", "bart-scaled", "bart-untied")]


@pytest.fixture(scope="module", params=["t5", "t5-v1.1", "bart", *MORE])
def pair(request, tmp_path_factory) -> tuple[Theirs, Runner, int]:
    """Their model, ours, and a token to end with that comes up early."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = reference(request.param)
    theirs.save_pretrained(folder)
    runner = Runner(load_model(folder), n_slots=6)
    greedy = Sampling(8, temperature=0.0)
    said = Engine(runner, TOKENIZER).complete([asked(0, greedy)])[0].token_ids
    return theirs, runner, next((token for token in said[3:] if token not in said[:3]), said[0])


def asked(number: int, sampling: Sampling) -> Request:
    return Request(f"r{number}", (), sampling, source_ids=SOURCES[number])


def answers(runner: Runner, sampling: Sampling, eos: int, n_slots: int = 3, **more: object) -> list[Completion]:
    """Of every source, three at a time."""
    engine = Engine(runner, TOKENIZER, EngineConfig(n_slots=n_slots, prefill_chunk=8), {eos}, **more)
    done = engine.complete([asked(number, sampling) for number in range(len(SOURCES))])
    assert not runner.cache.sources and engine.counters()["blocks_used"] == 0
    return done


def generated(model: Theirs, source: tuple[int, ...], eos: int | None, **settings: object):
    """What transformers says, and its raw logits [tokens, V]; without its cache, which counts T5's encoder layers."""
    return model.generate(
        torch.tensor([source]), max_new_tokens=N_TOKENS, eos_token_id=eos, pad_token_id=0, forced_eos_token_id=None,
        do_sample=False, return_dict_in_generate=True, output_logits=True, output_scores=True,
        use_cache=False, **settings,
    )  # fmt: skip


def compare(model: Theirs, done: list[Completion], eos: int | None, **settings: object) -> float:
    """The largest difference of log-probabilities. Raises AssertionError for other tokens."""
    largest = 0.0
    for one, source in zip(done, SOURCES, strict=True):
        out = generated(model, source, eos, num_beams=1, **settings)
        assert one.token_ids == tuple(out.sequences[0, 1:].tolist())
        expected = torch.cat(out.logits).log_softmax(-1)
        got = torch.tensor([figures.logprob for figures in one.logprobs])
        wanted = expected[torch.arange(len(got)), list(one.token_ids)]
        largest = max(largest, float((got - wanted).abs().max()))
    return largest


def test_greedy_answers_and_their_log_probabilities_are_those_of_generate(pair):
    theirs, runner, eos = pair
    done = answers(runner, Sampling(N_TOKENS, temperature=0.0, logprobs=0), eos)
    assert any(one.finish_reason == "stop" for one in done)
    assert compare(theirs, done, eos) < 1e-4
    guessed = answers(runner, Sampling(N_TOKENS, temperature=0.0, logprobs=0), eos, drafter=LookupDrafter())
    assert [one.token_ids for one in guessed] == [one.token_ids for one in done]


class Noise(LogitsProcessor):
    """Our noise, so that the argmax of their scores is a sample: the seed's."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        key = position_key(sequence_key(SAMPLED.seed, 0), input_ids.shape[1])
        noise = torch.from_numpy(gumbel(key, torch.arange(scores.shape[1]).numpy()))
        return scores + noise.to(scores.dtype)


def test_sampled_answers_are_those_of_generate_with_its_own_processors_and_our_noise(pair):
    theirs, runner, eos = pair
    processors = LogitsProcessorList([
        RepetitionPenaltyLogitsProcessor(SAMPLED.repetition_penalty), TemperatureLogitsWarper(SAMPLED.temperature),
        TopKLogitsWarper(SAMPLED.top_k), TopPLogitsWarper(SAMPLED.top_p), Noise(),
    ])  # fmt: skip
    done = answers(runner, SAMPLED, eos)
    assert compare(theirs, done, None, logits_processor=processors) < 1e-4
    with pytest.raises(AssertionError):  # the control: without the noise they say something else
        compare(theirs, done, None, logits_processor=processors[:-1])


def test_beams_and_their_scores_are_those_of_generate(pair):
    theirs, runner, eos = pair
    n_ended = 0
    for number, search in enumerate(SEARCHES):
        kept = named(SOURCES[number % 2])
        found = beam_search(runner, (runner.start_id,), search, {eos}, VOCAB, kept)
        runner.forget(kept.name)
        out = generated(
            theirs, kept.ids, eos, num_beams=search.n_beams, num_return_sequences=search.n_beams,
            length_penalty=search.length_penalty, early_stopping=search.early_stopping,
        )  # fmt: skip
        rows = out.sequences[:, 1:].tolist()
        expected = [tuple(row[: row.index(eos) + 1] if eos in row else row) for row in rows]
        assert [one.token_ids for one in found] == expected, search
        assert [one.score for one in found] == pytest.approx(out.sequences_scores.tolist(), rel=1e-6, abs=5e-5)
        n_ended += sum(one.token_ids[-1] == eos for one in found)
    assert n_ended  # some answers ended by themselves


def test_sources_side_by_side_say_what_they_say_one_by_one(pair):
    _, runner, eos = pair
    alone, beside = answers(runner, SAMPLED, eos, 1), answers(runner, SAMPLED, eos, 5)
    for one, other in zip(alone, beside, strict=True):
        assert one.token_ids == other.token_ids
        told = [(a.logprob, b.logprob) for a, b in zip(one.logprobs, other.logprobs, strict=True)]
        assert max(abs(a - b) for a, b in told) < 1e-4
    assert len({one.token_ids for one in alone}) == len(SOURCES)


def test_answers_to_swapped_sources_would_be_noticed(pair, monkeypatch):
    theirs, runner, eos = pair
    sampling = Sampling(N_TOKENS, temperature=0.0, logprobs=0, ignore_eos=True)
    right, other = Runner.read_sources, dict(zip(SOURCES, SOURCES[1:] + SOURCES[:1], strict=True))

    def wrong(self: Runner, rows: list[Row]) -> None:
        right(self, [replace(row, source=Source(row.source.name, other[row.source.ids])) for row in rows])

    monkeypatch.setattr(Runner, "read_sources", wrong)
    with pytest.raises(AssertionError):
        compare(theirs, answers(runner, sampling, eos), None)
