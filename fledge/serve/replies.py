"""The objects that go out: chat and text completions, their chunks, usage. Shapes of OpenAI's published schema."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from fledge.serve.ids import new_reply_id


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


@dataclass(frozen=True)
class ReplyHead:
    """What all chunks of one reply share."""

    kind: str
    """`chat.completion` or `text_completion`."""
    model: str
    fingerprint: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @staticmethod
    def chat(model: str, fingerprint: str) -> ReplyHead:
        return ReplyHead("chat.completion", model, fingerprint, new_reply_id("chatcmpl"))

    @staticmethod
    def completion(model: str, fingerprint: str) -> ReplyHead:
        return ReplyHead("text_completion", model, fingerprint, new_reply_id("cmpl"))

    def body(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """The whole reply."""
        return {**self.shared(self.kind), "choices": choices, "usage": usage.body()}

    def chunk(self, choices: list[dict[str, Any]], with_usage: bool, usage: Usage | None = None) -> dict[str, Any]:
        """One chunk of a stream; `with_usage`: the caller asked for usage, so every chunk has the key."""
        kind = self.kind + ".chunk" if self.kind == "chat.completion" else self.kind
        body = {**self.shared(kind), "choices": choices}
        if with_usage:
            body["usage"] = usage.body() if usage else None
        return body

    def shared(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def chat_choice(index: int, text: str, finish_reason: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_delta(
    index: int, delta: dict[str, Any], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def text_choice(index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    """A completion's choice; whole replies and chunks have the same shape."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def model_card(
    name: str, created: int, context_tokens: int | None, chat: bool, task: str, parent: str | None = None
) -> dict[str, Any]:
    """OpenAI's model object, vLLM's `max_model_len` and an adapter's `parent`, and our `chat` (false: no conversations)
    and `task`: generate, embed or classify."""
    card: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "fledge", "chat": chat}
    card["task"] = task
    if parent is not None:
        card["parent"] = parent
    if context_tokens:
        card["max_model_len"] = context_tokens
    return card
