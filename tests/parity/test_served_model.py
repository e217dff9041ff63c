"""A tiny LLaMA behind the server: its figures are those of transformers, its ids those of the renderer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fledge.text.chat import Message, renderer_for
from fledge.text.tokenizer import Tokenizer, byte_level
from tests.serve.running import RunningServer, running

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is <|end|> here?"},
    {"role": "assistant", "content": "Text."},
    {"role": "user", "content": "Und 世界?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    tokenizer = byte_level()
    tokenizer.save(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=160, bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running(str(folder), "engine.threads=1") as started:
        yield started


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.nn.Module:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def log_probabilities(reference: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """[T, V] of transformers."""
    return torch.log_softmax(reference(torch.tensor([ids])).logits[0].double(), -1)


def test_54_log_probabilities_are_the_models_own(server: RunningServer, reference: torch.nn.Module) -> None:
    for temperature, seed in ((0.0, 1), (0.7, 2), (1.5, 3)):
        fields = {
            "logprobs": 3,
            "echo": True,
            "max_tokens": 8,
            "temperature": temperature,
            "seed": seed,
            "ignore_eos": True,
        }
        choice = server.complete(list(b"Hello"), **fields).json()["choices"][0]
        figures = choice["logprobs"]
        ids = [token_id(token) for token in figures["tokens"]]
        expected = log_probabilities(reference, ids)
        assert figures["token_logprobs"][0] is None
        for place in range(1, len(ids)):
            row = expected[place - 1]
            assert figures["token_logprobs"][place] == pytest.approx(row[ids[place]].item(), abs=1e-4)
            best = sorted(figures["top_logprobs"][place].values(), reverse=True)[:3]
            assert best == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        if temperature == 0:
            assert ids[5:] == expected[4:-1].argmax(-1).tolist()


def token_id(token: str) -> int:
    if token.startswith("bytes:\\x"):
        return int(token.removeprefix("bytes:\\x"), 16)
    return ord(token) if len(token) == 1 else byte_level().id_of(token) or -1


def test_the_ids_served_for_a_conversation_are_the_renderers(server: RunningServer, folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    messages = [Message(one["role"], one["content"]) for one in CONVERSATION]
    ids = renderer_for(tokenizer).render(messages, generation_prompt=True).ids
    fields = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    chat = server.post("/v1/chat/completions", {"messages": CONVERSATION, **fields}).json()
    text = server.complete(ids, **fields).json()
    assert chat["usage"] == text["usage"]
    assert chat["usage"]["prompt_tokens"] == len(ids)
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]
    assert ids.count(tokenizer.id_of("<|end|>") or -1) == len(CONVERSATION)  # the typed one stayed text
    other = server.complete(ids[1:], **fields).json()
    assert other["choices"][0]["text"] != text["choices"][0]["text"]  # the control: one id less, another answer


def test_the_model_is_named_after_its_folder_and_no_path_is_told(server: RunningServer, folder: Path) -> None:
    (card,) = server.client.get("/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"]) == ("tiny-llama", 160)
    assert str(folder.parent) not in server.client.get("/v1/models").text + server.client.get("/").text
