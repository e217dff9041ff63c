"""Held-out questions: how probable the reference answer is, and what the model answers greedily. With torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge.engine.request import Request, Sampling
from fledge.errors import ConfigError
from fledge.evals.spans import Span, score_spans
from fledge.text.chat import ChatRenderer, Message

PLAIN_PROMPT = "Question: {}\nAnswer:"
PLAIN_STOP = ("\n",)


@dataclass(frozen=True)
class Question:
    """A conversation up to its last user message, and the reference answer."""

    messages: tuple[Message, ...]
    reference: str

    @property
    def asked(self) -> str:
        return self.messages[-1].content


def questions_of(conversations: Sequence[Sequence[Message]]) -> list[Question]:
    """The last answer of each conversation as a question; conversations that don't end user, assistant are left out."""
    found = []
    for conversation in conversations:
        roles = [message.role for message in conversation]
        last = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else 0
        if last > 0 and roles[last - 1] == "user" and conversation[last].content:
            found.append(Question(tuple(conversation[:last]), conversation[last].content))
    return found


def prompt_ids(model: Any, question: Question, form: str) -> list[int]:
    """The tokens before the answer: by the model's chat template (`chat`), or as plain text for a base model (`plain`).
    Raises ConfigError for `chat` on a model without one."""
    if form == "chat":
        return list(renderer_of(model).render(question.messages, generation_prompt=True).ids)
    start = [] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]
    return start + model.tokenizer.encode(PLAIN_PROMPT.format(question.asked))


def answer_span(model: Any, question: Question, form: str) -> Span:
    """Prompt and reference answer, the answer's own tokens scored: those that tuning trains on, but for the end-of-turn
    token, which a base model has never seen."""
    if form == "plain":
        before = prompt_ids(model, question, form)
        return Span((*before, *model.tokenizer.encode(f" {question.reference}")), len(before))
    rendered = renderer_of(model).render((*question.messages, Message("assistant", question.reference)))
    end = len(rendered.trained) - 1 - rendered.trained[::-1].index(True)
    first = end
    while rendered.trained[first - 1]:
        first -= 1
    return Span(tuple(rendered.ids[:end]), first)


def renderer_of(model: Any) -> ChatRenderer:
    if model.renderer is None:
        raise ConfigError("questions: expected a model with a chat format, got a base one; tune it with fledge sft")
    return model.renderer


def answer_bits(model: Any, questions: Sequence[Question], form: str) -> list[float | None]:
    """Bits of each reference answer given its question; None where both don't fit into the context."""
    spans = [answer_span(model, question, form) for question in questions]
    fits = [len(span.ids) <= model.transformer.document_tokens + 1 for span in spans]
    nats = iter(score_spans(model.transformer, [span for span, fit in zip(spans, fits, strict=True) if fit]))
    return [next(nats) / math.log(2) if fit else None for fit in fits]


def greedy_answers(model: Any, questions: Sequence[Question], form: str, max_tokens: int) -> list[str]:
    """What the model answers at temperature 0; "" where the question fills the context. A plain answer is one line."""
    requests, texts = [], [""] * len(questions)
    for number, question in enumerate(questions):
        ids = tuple(prompt_ids(model, question, form))
        room = model.transformer.document_tokens - len(ids)
        if room > 0:
            stop = PLAIN_STOP if form == "plain" else ()
            sampling = Sampling(max_tokens=min(max_tokens, room), temperature=0.0, stop=stop)
            requests.append(Request(str(number), ids, sampling))
    for completion in model.engine.complete(requests):
        texts[int(completion.request_id)] = completion.text.strip()
    return texts


def same(answer: str, reference: str) -> bool:
    """Equal but for white space."""
    return answer.split() == reference.split()
