"""Beam search against transformers.generate on tiny random models: the same answers, the same scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import transformers

from fledge.engine.beam import beam_search
from fledge.engine.request import BeamSearch
from fledge.engine.runner import Runner
from fledge.engine.stub import StubRunner
from fledge.errors import RequestError
from fledge.model.folder import load_model
from tests.parity.decoder_cases import SIZES
from tests.parity.reference import VOCAB, randomised

PROMPT = (1, 5, 17, 9, 33, 8, 21, 60, 4, 50, 3, 3, 7, 41, 22, 19, 6)  # over a block
OLD = {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": VOCAB}
SEARCHES = [
    BeamSearch(n_beams, 24, penalty, early)
    for n_beams, penalty, early in [
        (4, 1.0, False), (4, 1.0, True), (4, 1.0, "never"), (1, 1.0, False),
        (3, 2.0, "never"), (3, 0.0, "never"), (5, -1.0, False), (2, 0.6, True),
    ]
]  # fmt: skip
FAMILIES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 2})),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**OLD)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**{**SIZES, "num_hidden_layers": 2, "head_dim": 16, "sliding_window": 8})
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def trio(request, tmp_path_factory) -> tuple[transformers.PreTrainedModel, Runner, int]:
    """Their model, ours, and a token to end with that comes up early."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    theirs = randomised(FAMILIES[request.param](), 0.25)
    theirs.save_pretrained(folder)
    runner = Runner(load_model(folder), n_slots=8)
    return theirs, runner, beam_search(runner, PROMPT, BeamSearch(4, 24), set(), VOCAB)[1].token_ids[9]


def reference(model: transformers.PreTrainedModel, search: BeamSearch, eos: int):
    out = model.generate(
        torch.tensor([PROMPT]), num_beams=search.n_beams, num_return_sequences=search.n_beams, do_sample=False,
        max_new_tokens=search.max_tokens, length_penalty=search.length_penalty, early_stopping=search.early_stopping,
        eos_token_id=eos, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    answers = []
    for row in out.sequences[:, len(PROMPT) :].tolist():
        answers.append(tuple(row[: row.index(eos) + 1] if eos in row else row))
    scores = [None] if search.n_beams == 1 else out.sequences_scores.tolist()
    return answers, scores


def test_answers_and_scores_are_those_of_generate(trio):
    theirs, runner, eos = trio
    n_ended = 0
    for search in SEARCHES:
        found = beam_search(runner, PROMPT, search, {eos}, VOCAB)
        answers, scores = reference(theirs, search, eos)
        assert [one.token_ids for one in found] == answers, search
        if search.n_beams > 1:
            assert [one.score for one in found] == pytest.approx(scores, rel=1e-6, abs=2e-5), search
        n_ended += sum(one.token_ids[-1] == eos for one in found)
    assert n_ended  # the control: some answers ended by themselves


@torch.no_grad()
def diverse(model: transformers.PreTrainedModel, search: BeamSearch, eos: int) -> list[tuple[tuple[int, ...], float]]:
    """Vijayakumar et al.'s search, written plainly: whole forward passes, groups as lists of (answer, total)."""
    size, vocab = search.n_beams // search.n_groups, model.config.vocab_size
    groups = [[((), 0.0)] for _ in range(search.n_groups)]
    ended: list[list[tuple[tuple[int, ...], float]]] = [[] for _ in groups]
    for length in range(1, search.max_tokens + 1):
        said = torch.zeros(vocab)
        for number, group in enumerate(groups):
            if not group:
                continue
            logits = model(torch.tensor([[*PROMPT, *answer] for answer, _ in group])).logits[:, -1]
            totals = logits.log_softmax(-1) + torch.tensor([[total] for _, total in group])
            order = (totals - search.diversity_penalty * said).flatten().argsort(descending=True, stable=True)
            groups[number] = []
            for rank, place in enumerate(order[: 2 * size].tolist()):
                row, token = divmod(place, vocab)
                answer, total = (*group[row][0], token), float(totals[row, token])
                if token == eos or length == search.max_tokens:
                    if rank < size:
                        ended[number].append((answer, total / length**search.length_penalty))
                        said[token] += 1
                elif len(groups[number]) < size:
                    groups[number].append((answer, total))
            ended[number] = sorted(ended[number], key=lambda one: -one[1])[:size]
            for answer, _ in groups[number]:
                said[answer[-1]] += 1
            full = len(ended[number]) == size
            best = max((total for _, total in groups[number]), default=0.0) / length**search.length_penalty
            if full and best <= ended[number][-1][1]:
                groups[number] = []
    return sorted(sum(ended, []), key=lambda one: -one[1])


@pytest.mark.parametrize(("n_beams", "n_groups", "penalty"), [(4, 2, 0.5), (6, 3, 1.5), (3, 3, 2.0), (4, 4, 100.0)])
def test_groups_of_a_diverse_search_choose_by_what_the_others_chose(trio, n_beams, n_groups, penalty):
    theirs, runner, eos = trio
    search = BeamSearch(n_beams, 12, 0.8, n_groups=n_groups, diversity_penalty=penalty)
    found = beam_search(runner, PROMPT, search, {eos}, VOCAB)
    expected = diverse(theirs, search, eos)
    assert [one.token_ids for one in found] == [answer for answer, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for _, score in expected], abs=2e-5)
    plain = beam_search(runner, PROMPT, BeamSearch(n_beams, 12, 0.8), {eos}, VOCAB)
    assert {one.token_ids for one in found} != {one.token_ids for one in plain}  # the control: the penalty tells
    if penalty == 100:  # each group of one beam begins otherwise
        assert len({one.token_ids[0] for one in found}) == n_beams


def test_a_search_as_wide_as_the_tree_finds_the_likeliest_answer_and_a_narrow_one_may_not():
    vocab, length, prompt = 6, 4, [1, 2]
    runner = StubRunner(vocab, 64, context_tokens=64)
    table = {}
    for n in range(length):
        for said in itertools.product(range(vocab), repeat=n):
            logits = runner.logits_after(prompt + list(said)).astype(np.float64)
            table[said] = logits - np.log(np.exp(logits).sum())
    totals = {
        said: sum(table[said[:i]][said[i]] for i in range(length))
        for said in itertools.product(range(vocab), repeat=length)
    }
    best = max(totals, key=totals.__getitem__)
    wide = beam_search(runner, prompt, BeamSearch(64, length, 0.0), set(), vocab)[0]
    assert wide.token_ids == best and wide.score == pytest.approx(totals[best], abs=1e-4)
    narrow = beam_search(runner, prompt, BeamSearch(1, length, 0.0), set(), vocab)[0]
    greedy: tuple[int, ...] = ()
    for _ in range(length):
        greedy += (int(table[greedy].argmax()),)
    assert narrow.token_ids == greedy


def test_what_a_search_cannot_do_is_refused():
    runner = StubRunner(20, 2, context_tokens=64)
    for search, says in (
        (BeamSearch(0), "n_beams"),
        (BeamSearch(3, 8), "2"),
        (BeamSearch(2, 100), "at most 64"),
        (BeamSearch(2, 8, early_stopping="maybe"), "true, false or never"),  # type: ignore[arg-type]
        (BeamSearch(2, 8, length_penalty=float("nan")), "length_penalty"),
        (BeamSearch(4, 8, n_groups=3, diversity_penalty=1.0), "a divisor of n_beams, 4"),
        (BeamSearch(4, 8, n_groups=2), "above 0"),
        (BeamSearch(4, 8, n_groups=2, diversity_penalty=float("nan")), "above 0"),
        (BeamSearch(4, 8, diversity_penalty=1.0), "0 for one group"),
    ):
        with pytest.raises(RequestError, match=says):
            beam_search(runner, [1], search, {2}, 20)
    with pytest.raises(RequestError, match="some token ids"):
        beam_search(runner, [20], BeamSearch(2, 8), {2}, 20)
