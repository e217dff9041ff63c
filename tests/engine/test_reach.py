"""Past the context: windows beside transformers' Mistral, rotary scaling beside its Llama, on the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from fledge.batch import OneDocument, one_document
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.overflow import LongInput
from fledge.engine.request import Request, Sampling
from fledge.engine.runner import load_runner
from fledge.errors import ConfigError, RequestError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.text.tokenizer import byte_level
from tests.parity.reference import randomised
from tests.serve.running import error_of, running

TOKENIZER = byte_level()
CONTEXT, REACH = 32, 120
SIZES = {
    "vocab_size": TOKENIZER.vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "bos_token_id": TOKENIZER.bos_id, "eos_token_id": TOKENIZER.eos_id,
}  # fmt: skip
PROMPTS = {"short": list(range(65, 75)), "long": [65 + n * n % 57 for n in range(50)]}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    model = randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), 0.5)
    model.save_pretrained(folder)
    TOKENIZER.save(folder)
    return folder, model


def engine_on(folder, **config):
    config = EngineConfig(**{"n_slots": 2, "prefill_chunk": 16, **config})
    runner, tokenizer, stop_ids = load_runner(folder, config)
    return Engine(runner, tokenizer, config, stop_ids)


def asked(ids, n, policy="window", name="r", **settings):
    sampling = Sampling(n, **{"temperature": 0.9, "seed": 3, "ignore_eos": True, "logprobs": 0, **settings})
    return Request(name, tuple(ids), sampling, long_input=LongInput(policy))


def logprobs_of(model, done, prompt):
    """What a whole pass of a model of transformers gives the tokens of an answer."""
    ids = torch.tensor([[*prompt, *done.token_ids]])
    with torch.no_grad():
        table = model(ids, use_cache=False).logits.log_softmax(-1)[0]
    return table[len(prompt) - 1 : -1].gather(1, torch.tensor(done.token_ids)[:, None])[:, 0]


def mistral(model, window):
    """The same weights where a token sees its last `window`."""
    sizes = {**SIZES, "max_position_embeddings": REACH, "sliding_window": window}
    config = transformers.MistralConfig(**sizes, attn_implementation="eager")
    windowed = transformers.MistralForCausalLM(config).eval()
    windowed.load_state_dict(model.state_dict())
    return windowed


@pytest.mark.parametrize("prompt", list(PROMPTS))
@pytest.mark.parametrize("window", [CONTEXT, 12])
@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
def test_past_the_context_a_token_sees_its_window_as_mistral_does(llama, window, prompt, cache_dtype):
    folder, model = llama
    engine = engine_on(folder, reach_tokens=REACH, window_tokens=window, cache_dtype=cache_dtype)
    ids = PROMPTS[prompt]
    (done,) = engine.complete([asked(ids, REACH - len(ids))])
    assert len(done.token_ids) == REACH - len(ids) and engine.scheduler.pool.n_held == 0
    told = torch.tensor([one.logprob for one in done.logprobs])
    expected = logprobs_of(mistral(model, window), done, ids)
    assert (told - expected).abs().max() < (2e-4 if cache_dtype == "float32" else 0.3)
    if cache_dtype == "float32":  # the controls: a token less, and no window
        assert (told - logprobs_of(mistral(model, window - 1), done, ids)).abs().max() > 0.02
    assert (expected - logprobs_of(mistral(model, REACH), done, ids)).abs().max() > 0.1


def test_company_chunks_and_preemption_change_nothing_past_the_context(llama):
    requests = [asked(ids, 60, name=name) for name, ids in PROMPTS.items()]
    requests += [replace(request, id=request.id + " again") for request in requests]
    alone = [engine_on(llama[0], reach_tokens=REACH).complete([request])[0].token_ids for request in requests]
    crowded = engine_on(llama[0], reach_tokens=REACH, n_slots=4, cache_tokens=160, prefill_chunk=16)
    assert [done.token_ids for done in crowded.complete(requests)] == alone
    assert crowded.totals["requests"] == 4 and crowded.scheduler.totals["preemptions"] > 0


@pytest.mark.parametrize("n_slots", [1, 2])
def test_a_prompt_whose_beginning_fills_the_whole_cache_is_let_in(llama, n_slots):
    """What is known and lies before the window counts as free: it is given back with the place."""
    engine = engine_on(llama[0], reach_tokens=REACH, n_slots=n_slots, cache_tokens=80)
    ids = [65 + n * n % 57 for n in range(100)]
    engine.complete([asked(ids[:80], 1)])
    assert engine.counters()["blocks_free"] == 0
    engine.submit(asked(ids, 9))
    told = [event for _ in range(20) for event in engine.step()]
    (alone,) = engine_on(llama[0], reach_tokens=REACH).complete([asked(ids, 9)])
    assert tuple(token for event in told for token in event.token_ids) == alone.token_ids
    assert engine.counters()["prefix_hit_tokens_total"] == 80 and engine.scheduler.pool.n_held == 0


def test_a_request_inside_the_context_is_answered_as_without_a_reach(llama):
    ids = PROMPTS["short"]
    for policy in ("refuse", "window"):
        done = engine_on(llama[0], reach_tokens=REACH).complete([asked(ids, CONTEXT - len(ids), policy)])
        assert done == engine_on(llama[0]).complete([asked(ids, CONTEXT - len(ids), "refuse")])


def test_the_edges_of_context_and_reach(llama):
    engine, ids = engine_on(llama[0], reach_tokens=REACH), PROMPTS["short"]
    for longest, policy in ((CONTEXT, "refuse"), (REACH, "window")):
        for total in (longest - 1, longest):
            (done,) = engine.complete([asked(ids, total - len(ids), policy)])
            assert len(done.token_ids) == total - len(ids)
        with pytest.raises(RequestError, match=f"at most {longest} tokens, got {longest + 1}"):
            engine.submit(asked(ids, longest + 1 - len(ids), policy))


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_scaled_rotary_frequencies_are_those_of_transformers_on_the_same_weights(llama, kind):
    folder, model = llama
    parameters = {"rope_type": kind, "factor": 3.0, "rope_theta": 10000.0}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = CONTEXT
    sizes = {**SIZES, "max_position_embeddings": CONTEXT if kind == "dynamic" else 3 * CONTEXT}
    scaled = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rope_parameters=parameters)).eval()
    scaled.load_state_dict(model.state_dict())
    engine = engine_on(folder, rope_scaling=f"{kind}:3")
    assert engine.context_tokens == 3 * CONTEXT
    ids = PROMPTS["long"]
    (done,) = engine.complete([asked(ids, 3 * CONTEXT - len(ids), "refuse")])
    told = torch.tensor([one.logprob for one in done.logprobs])
    # dynamic goes by the cache's length, which a whole pass over a text of that length does too
    assert len(ids) + len(done.token_ids) == 3 * CONTEXT
    assert (told - logprobs_of(scaled, done, ids)).abs().max() < 2e-4
    assert (told - logprobs_of(mistral(model, REACH), done, ids)).abs().max() > 0.05  # the control: unscaled
    with pytest.raises(RequestError, match=f"at most {3 * CONTEXT} tokens"):
        engine.submit(asked(ids, 3 * CONTEXT + 1 - len(ids), "refuse"))


def folder_of(name, tmp_path, **shape):
    sizes = {
        "width": 32,
        "layers": 2,
        "heads": 4,
        "context_tokens": CONTEXT,
        "vocab_size": TOKENIZER.vocab_size,
        **shape,
    }
    model = initialise(build(family(name).build(ShapeConfig(name, **sizes)), "cpu"), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    save_model(model, tmp_path, TOKENIZER)
    return tmp_path


def test_alibi_past_the_context_is_one_pass_with_the_windows_mask(tmp_path):
    engine = engine_on(folder_of("bloom", tmp_path), reach_tokens=REACH, window_tokens=20)
    ids = PROMPTS["long"]
    (done,) = engine.complete([asked(ids, 60)])
    row = one_document(torch.tensor([[*ids, *done.token_ids]]))
    with torch.no_grad():
        table = engine.runner.model(row, OneDocument()).log_softmax(-1)[0]
    expected = table[len(ids) - 1 : -1].gather(1, torch.tensor(done.token_ids)[:, None])[:, 0]
    assert (torch.tensor([one.logprob for one in done.logprobs]) - expected).abs().max() < 2e-4


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gpt2", {"reach_tokens": 64}, "got learned ones, which end at the context"),
        ("gpt2", {"rope_scaling": "yarn:2"}, r"expected one rotary position in all layers, got 1 \(none\)"),
        ("llama", {"reach_tokens": CONTEXT}, f"expected more than the context's {CONTEXT}"),
        ("llama", {"reach_tokens": 64, "window_tokens": 33}, f"at most the context's {CONTEXT}, got 33"),
        ("llama", {"reach_tokens": 200, "rope_scaling": "dynamic:2"}, "dynamic goes by the document's length"),
    ],
)
def test_what_has_no_meaning_past_the_context_is_refused(name, config, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        engine_on(folder_of(name, tmp_path), **config)


@pytest.mark.parametrize("text", ["yarn", "yarn:", "yarn:x", "yarn:1", "yarn:nan", "ntk:2", "linear:inf", ":2"])
def test_a_scaling_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="expected linear:F, dynamic:F or yarn:F"):
        EngineConfig(rope_scaling=text)


def test_the_server_goes_on_past_the_context_where_it_is_asked_to(llama):
    words = [f"engine.reach_tokens={REACH}", "engine.threads=1", "engine.prefill_chunk=16"]
    asks = {"max_tokens": 60, "temperature": 0.9, "seed": 3, "ignore_eos": True}
    (expected,) = engine_on(llama[0], reach_tokens=REACH).complete([asked(PROMPTS["long"], 60)])
    with running(str(llama[0]), *words) as server:
        done = server.complete(PROMPTS["long"], overflow="window", **asks)
        assert done.json()["choices"][0]["text"] == expected.text
        refused = server.complete(PROMPTS["long"], **asks)  # the control
        assert error_of(refused)["code"] == "context_length_exceeded"
        for over, status in ((-1, 200), (0, 200), (1, 400)):
            edge = {**asks, "max_tokens": REACH - len(PROMPTS["long"]) + over}
            assert server.complete(PROMPTS["long"], overflow="window", **edge).status_code == status
