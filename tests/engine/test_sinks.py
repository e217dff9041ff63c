"""Past the context with attention sinks: beside whole passes of transformers' models over what is visible."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from fledge.engine.config import ChatConfig, EngineConfig, GenerateConfig
from fledge.engine.core import Engine
from fledge.engine.overflow import LongInput, Sliding
from fledge.engine.request import Request, Sampling
from fledge.engine.runner import load_runner
from fledge.engine.speculate import LookupDrafter
from fledge.errors import ConfigError, RequestError
from fledge.text.chat import ChatRenderer
from fledge.text.tokenizer import byte_level
from tests.engine.stub_engine import Recording, said, stub_engine
from tests.parity.reference import randomised
from tests.serve.running import running

TOKENIZER = byte_level()
CONTEXT, N = 32, 90
SINKS = LongInput("sinks")
PROMPTS = {"short": list(range(65, 75)), "long": [65 + n * n % 57 for n in range(75)]}
SHARED = {"vocab_size": TOKENIZER.vocab_size, "bos_token_id": TOKENIZER.bos_id, "eos_token_id": TOKENIZER.eos_id}
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
}  # fmt: skip
MODELS = {
    "learned": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SHARED, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT)
    ),
    "rotary": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHARED, **LLAMA)),
    "windowed": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SHARED, **LLAMA, sliding_window=9, attn_implementation="eager")
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, make in MODELS.items():
        folder, model = tmp_path_factory.mktemp(name), randomised(make(), 0.5)
        model.save_pretrained(folder)
        TOKENIZER.save(folder)
        made[name] = folder, model
    return made


def engine_on(folder, **config):
    config = EngineConfig(**{"n_slots": 2, "prefill_chunk": 16, **config})
    runner, tokenizer, stop_ids = load_runner(folder, config)
    return Engine(runner, tokenizer, config, stop_ids)


def asked(ids, n=N, name="r", policy=SINKS, **settings):
    sampling = Sampling(n, **{"temperature": 0.9, "seed": 3, "ignore_eos": True, **settings})
    return Request(name, tuple(ids), sampling, long_input=policy)


def visible(text, context=CONTEXT, sinks=4):
    """The rule as it is told: a full context gives up half of what stands behind the sinks."""
    document = []
    for token in text:
        if len(document) == context:
            del document[sinks : sinks + (context - sinks) // 2]
        document.append(token)
    return document


def logprobs_of(model, prompt, answer, sinks=4):
    """What whole passes of a model of transformers over what is visible give the tokens of an answer."""
    text, told = [*prompt, *answer], []
    with torch.no_grad():
        for place in range(len(prompt), len(text)):
            ids = torch.tensor([visible(text[:place], sinks=sinks)])
            told.append(model(ids, use_cache=False).logits[0, -1].log_softmax(-1)[text[place]])
    return torch.stack(told)


@pytest.mark.parametrize("sinks", [0, 1, 4, 31, 99])
@pytest.mark.parametrize("context", [1, 2, 3, 31, 32])
def test_what_is_visible_follows_from_the_number_of_tokens(context, sinks):
    kept = min(sinks, context // 2)
    sliding = LongInput("sinks", sinks=sinks).sliding(context)
    assert sliding == Sliding(context, kept)
    for n in range(1, 200):
        text = list(range(n))
        expected = text  # one token at a time, as `visible`, but for a step of at least one
        if n > context:
            expected = []
            for token in text:
                if len(expected) == context:
                    del expected[kept : kept + max(1, (context - kept) // 2)]
                expected.append(token)
        hidden = sliding.hidden(n)
        assert [*text[:kept], *text[kept + hidden :]] == expected and 0 < n - hidden <= max(context, 1)


@pytest.mark.parametrize("prompt", list(PROMPTS))
@pytest.mark.parametrize("name", list(MODELS))
def test_answers_are_those_of_transformers_over_what_is_visible(folders, name, prompt):
    folder, model = folders[name]
    ids = PROMPTS[prompt]
    for settings in ({"logprobs": 0}, {"logprobs": 0, "temperature": 0.0}):
        engine = engine_on(folder)
        (done,) = engine.complete([asked(ids, **settings)])
        assert len(done.token_ids) == N and engine.scheduler.pool.n_held == 0
        told = torch.tensor([one.logprob for one in done.logprobs])
        assert (told - logprobs_of(model, ids, done.token_ids)).abs().max() < 2e-4
        assert done.cut_tokens == len(ids) - len(visible(ids))
    assert (told - logprobs_of(model, ids, done.token_ids, sinks=3)).abs().max() > 0.02  # the control


@pytest.mark.parametrize(("name", "kernels"), [*((name, True) for name in MODELS), ("rotary", False)])
def test_company_chunks_hits_preemption_and_guesses_change_nothing(folders, name, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr("fledge.nn.native.library.library", lambda: None)
    folder, _ = folders[name]
    requests = [asked(PROMPTS["long"][n : 20 + 9 * n], name=f"r{n}", seed=n) for n in range(6)]
    alone = [engine_on(folder).complete([one])[0] for one in requests]
    assert len({done.token_ids for done in alone}) == len(requests)
    for config in (
        {"n_slots": 6},
        {"n_slots": 6, "prefill_chunk": 7, "prefix_cache": False},
        {"n_slots": 6, "cache_tokens": 48},
        {"n_slots": 3, "draft": "lookup"},
        {"n_slots": 3, "draft": "layers:1"},
    ):
        engine = engine_on(folder, **config)
        assert list(map(said, engine.complete(requests))) == list(map(said, alone)), config
        assert engine.scheduler.pool.n_held == 0
        assert "cache_tokens" not in config or engine.scheduler.totals["preemptions"] > 0


@pytest.mark.parametrize("chunk", [3, 8, 16])
def test_a_chunk_that_ends_among_the_sinks_reads_them_alone(chunk):
    many = asked(PROMPTS["long"][:40], policy=LongInput("sinks", sinks=20))
    (expected,) = stub_engine(1, context_tokens=64).complete([many])
    runner = Recording(TOKENIZER.vocab_size, 1, context_tokens=64)
    (done,) = stub_engine(1, chunk, runner=runner).complete([many])
    assert said(done) == said(expected) and max(len(row.ids) for rows in runner.calls for row in rows) == chunk


def test_an_answer_cut_in_two_goes_on_with_the_same_tokens(folders):
    engine = engine_on(folders["rotary"][0])
    (whole,) = engine.complete([asked(PROMPTS["short"])])
    for cut in (5, 22, 23, 60):
        begun = [*PROMPTS["short"], *whole.token_ids[:cut]]
        (rest,) = engine.complete([asked(begun, N - cut)])
        assert rest.token_ids == whole.token_ids[cut:]


def test_a_document_that_fits_is_what_it_was_and_the_rest_is_read_once_in_half_a_context(folders):
    engine = engine_on(folders["rotary"][0])
    fits = [asked(PROMPTS["short"], CONTEXT - 10, policy=policy) for policy in (SINKS, LongInput())]
    (mine,), (plain,) = (engine.complete([one]) for one in fits)
    assert said(mine) == said(plain) and mine.cut_tokens == 0
    with pytest.raises(RequestError, match="at most 32 tokens"):
        engine.submit(asked(PROMPTS["short"], policy=LongInput()))
    recorder = Recording(TOKENIZER.vocab_size, 1, context_tokens=CONTEXT)
    stub_engine(1, runner=recorder, prefix_cache=False).complete([asked(PROMPTS["short"], 1000)])
    computed = sum(len(row.ids) for rows in recorder.calls for row in rows)
    assert 1000 < computed < 2.5 * 1000


def test_guesses_by_lookup_see_the_whole_text():
    """A text that repeats itself beyond the context is guessed from what is hidden too."""
    from fledge.engine.choice import Choice

    ids = [*range(60), *range(30)]
    choice = Choice(asked(ids, 20), 0, TOKENIZER, frozenset(), TOKENIZER.vocab_size, sliding=SINKS.sliding(CONTEXT))
    assert choice.ids(0, choice.n_tokens) == tuple(visible(ids)) and choice.n_tokens < 60
    assert LookupDrafter().guess([choice], 4) == [[30, 31, 32, 33]]


def test_what_cant_be_measured_or_read_so_is_refused(folders):
    engine = engine_on(folders["rotary"][0])
    with pytest.raises(RequestError, match="prompt: expected at most 32 tokens where its log-probabilities"):
        engine.submit(replace(asked(PROMPTS["long"]), prompt_logprobs=True))
    with pytest.raises(ConfigError, match="sink_tokens: expected at least 0, got -1"):
        EngineConfig(overflow="sinks", sink_tokens=-1)


def test_over_http_the_hidden_tokens_are_told_and_an_open_answer_ends():
    with running("stub:context_tokens=64", "engine.overflow=sinks") as server:
        text = "".join(chr(97 + n % 23) for n in range(200))
        body = {"max_tokens": 150, "seed": 3, "ignore_eos": True}
        done = server.complete(text, **body)
        hidden = 201 - len(visible(range(201), 64))
        assert done.json()["usage"]["completion_tokens"] == 150
        assert done.headers["x-fledge-cut-tokens"] == str(hidden)
        again = server.complete(text, **body, overflow="sinks")
        assert again.json()["choices"] == done.json()["choices"]
        refused = server.complete(text, **body, overflow="refuse")
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
        chat = {"messages": [{"role": "user", "content": text}], "seed": 3, "ignore_eos": True}
        answer = server.post("/v1/chat/completions", chat)
        assert answer.json()["usage"]["completion_tokens"] == 64 and int(answer.headers["x-fledge-cut-tokens"]) > 0
        measured = server.complete(text, max_tokens=1, echo=True, logprobs=1)
        assert measured.status_code == 400 and measured.json()["error"]["param"] == "prompt"


def test_generate_and_chat_go_on_past_the_context(capfd):
    from fledge.cli.chat import Talk
    from fledge.cli.generate import generate

    config = GenerateConfig("stub:context_tokens=40", "z" * 50, max_tokens=70, overflow="sinks", ignore_eos=True)
    result = generate(config, json=True)
    assert len(result["choices"][0]["token_ids"]) == 70 and result["cut_tokens"] == 51 - len(visible(range(51), 40))
    assert "of its tokens are hidden" not in capfd.readouterr().out
    talk = Talk(stub_engine(context_tokens=60), ChatRenderer(TOKENIZER), Sampling(1, seed=3), None, 50, SINKS)
    for text in ("x" * 30, "y" * 30, "z" * 30):
        talk.take(text)
    assert talk.n_turns == 3 and "tokens after the first are hidden" in capfd.readouterr().err
    assert ChatConfig("m", overflow="sinks").sink_tokens == 4
