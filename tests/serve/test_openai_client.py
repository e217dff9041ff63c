"""The official client: what its users do works, and its typed errors are raised."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serve.running import KEY, TEXT, RunningServer, running

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def free() -> Iterator[RunningServer]:
    with running("stub:") as started:
        yield started


def client_of(server: RunningServer, key: str = KEY) -> openai.OpenAI:
    http = httpx.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, http_client=http)


@pytest.fixture
def client(scripted: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(scripted) as opened:
        yield opened


@pytest.fixture
def free_client(free: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(free) as opened:
        yield opened


def test_chat(client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    reply = client.chat.completions.create(model="stub", messages=messages, max_completion_tokens=50)  # type: ignore[arg-type]
    assert reply.choices[0].message.content == TEXT
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(TEXT) + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion"


def test_streaming_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="stub", messages=HELLO, stream=True, stream_options={"include_usage": True}  # type: ignore[arg-type]
        )
    )  # fmt: skip
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(TEXT) + 1


def test_the_streaming_helper_accumulates(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="stub", messages=HELLO) as stream:  # type: ignore[arg-type]
        assert "".join(event.delta for event in stream if event.type == "content.delta") == TEXT
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_n_stop_and_logit_bias(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="stub", messages=HELLO, n=3, stop=["friend", "zzz"])  # type: ignore[arg-type]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"Hello there, "}
    other = client.chat.completions.create(model="stub", messages=HELLO, logit_bias={"90": 100}, max_tokens=3)  # type: ignore[arg-type]
    assert other.choices[0].message.content == "ZZZ"


CUT = {"226": 100}  # the first byte of a character of three, again and again


@pytest.mark.parametrize(("seed", "bias"), [*((seed, {}) for seed in range(6)), (0, CUT)], ids=str)
def test_logprobs(free_client: openai.OpenAI, seed: int, bias: dict[str, int]) -> None:
    reply = free_client.chat.completions.create(
        model="stub", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=5, seed=seed, logit_bias=bias  # type: ignore[arg-type]
    )  # fmt: skip
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    # A token that ends inside a character has no text of its own: its bytes are what adds up.
    spelt = b"".join(bytes(one.bytes or ()) for one in logprobs.content)
    whole, n_bytes = codecs.utf_8_decode(spelt, "replace", False)  # what is unfinished at the end has no text
    assert whole == reply.choices[0].message.content
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in logprobs.content)
    assert not bias or (whole, n_bytes, len(spelt)) == ("\ufffd" * 4, 4, 5)


def test_the_same_seed_gives_the_same_answer(free_client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        reply = free_client.chat.completions.create(model="stub", messages=HELLO, seed=seed, max_tokens=20)  # type: ignore[arg-type]
        return reply.choices[0].message.content

    assert ask(7) == ask(7) != ask(8)


def test_extra_sampling_fields_pass_through(free_client: openai.OpenAI) -> None:
    def ask(**extra: object) -> str:
        reply = free_client.completions.create(
            model="stub", prompt="Hi", max_tokens=12, seed=1, temperature=1, extra_body=extra
        )
        return reply.choices[0].text

    greedy = free_client.completions.create(model="stub", prompt="Hi", max_tokens=12, temperature=0).choices[0].text
    assert ask(top_k=1) == greedy
    assert ask() != greedy
    assert ask(min_p=1.0) == greedy


def test_completions_and_models(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="stub", prompt=["Hi", "You"], max_tokens=5, echo=True, logprobs=1)
    assert [choice.text for choice in reply.choices] == ["HiHello", "YouHello"]
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.tokens == list("HiHello")
    streamed = client.completions.create(model="stub", prompt="Hi", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "Hello"
    assert [model.id for model in client.models.list()] == ["stub"]
    assert client.models.retrieve("stub").owned_by == "fledge"


def test_typed_errors(client: openai.OpenAI, scripted: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="stub", messages=HELLO, temperature=-1)  # type: ignore[arg-type]
    assert (bad.value.param, bad.value.type, bad.value.code) == ("temperature", "invalid_request_error", None)
    assert bad.value.request_id and bad.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="stub", messages=HELLO, max_tokens=10**6)  # type: ignore[arg-type]
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-0", messages=HELLO)  # type: ignore[arg-type]
    assert missing.value.code == "model_not_found"
    with client_of(scripted, "sk-wrong") as wrong, pytest.raises(openai.AuthenticationError) as refused:
        wrong.models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.InternalServerError) as broken:
        client.chat.completions.create(model="stub", messages=[{"role": "user", "content": "\x07"}])
    assert broken.value.status_code == 500


def test_a_request_that_the_engine_failed_on_is_not_sent_again(scripted: RunningServer) -> None:
    """It may be what broke the engine. The client would try a 500 twice more, half a second apart."""
    failed = scripted.metric("fledge_request_failure_total")
    with client_of(scripted).with_options(max_retries=2) as eager, pytest.raises(openai.InternalServerError):
        eager.chat.completions.create(model="stub", messages=[{"role": "user", "content": "\x07"}])
    assert scripted.metric("fledge_request_failure_total") == failed + 1


def test_an_error_in_mid_stream_is_raised(scripted: RunningServer) -> None:
    """The prompt is fine; the answer's own first tokens poison the next step."""
    with running("stub:text=ab%07cd&poison=%07&delay_ms=30") as server, client_of(server) as client:
        chunks = []
        with pytest.raises(openai.APIError) as failed:
            for chunk in client.chat.completions.create(model="stub", messages=HELLO, stream=True):  # type: ignore[arg-type]
                chunks.append(chunk)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "ab\x07"
        assert failed.value.type == "server_error"
