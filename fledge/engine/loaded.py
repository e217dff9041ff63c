"""`fledge.load`: a model folder as one object that generates, chats and scores, through the engine that serves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fledge.batch import OneDocument, one_document
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.overflow import LongInput
from fledge.engine.request import Completion, Request, Sampling
from fledge.engine.runner import Runner, pack_in_place
from fledge.engine.source import source_of
from fledge.errors import ConfigError, EngineError
from fledge.model.transformer import Transformer
from fledge.text.chat import ChatRenderer, Message, chat_renderer, format_beside
from fledge.text.tokenizer import Tokenizer
from fledge.text.turns import render_fitted
from fledge.tune.folder import adapter_folder, is_adapter
from fledge.tune.load import find_served, load_served, served_stop_ids, served_tokenizer

EVERYTHING = (2**63, 2**63)


class Model:
    """A loaded model. `transformer(tokens, layout)` gives logits; `tokenizer` and `renderer` are those it was trained
    with; `renderer` is None for a base model without role tokens and for an encoder–decoder, which reads a prompt as
    its source and answers it. Weights are packed for inference. `load_adapter` stands adapters beside them, which
    `adapter=` then names wherever something is written."""

    def __init__(self, folder: Path, transformer: Transformer, tokenizer: Tokenizer, n_slots: int):
        self.folder, self.tokenizer, self.n_slots = folder, tokenizer, n_slots
        self.transformer = pack_in_place(transformer.eval().requires_grad_(False))
        self.numbers = itertools.count()
        self.renderers: dict[str, ChatRenderer | None] = {}  # of adapters that were loaded
        self.reads_source = transformer.encoder is not None and transformer.decoder is not None
        self.renderer = None if self.reads_source else chat_renderer(tokenizer)

    @cached_property
    def engine(self) -> Engine:
        """The engine over this model; made at first use."""
        base = None if is_adapter(self.folder) else self.folder
        runner = Runner(self.transformer, self.n_slots, folder=base)
        config = EngineConfig(n_slots=self.n_slots)
        return Engine(runner, self.tokenizer, config, served_stop_ids(self.folder, self.tokenizer) | self.ends_of_turn)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Stand the adapter in a folder beside the model, for calls with `adapter=name`; conversations are then in the
        chat format that it brings, or in the base's. Raises ConfigError and CheckpointError."""
        renderer = format_beside(adapter_folder(folder) or Path(folder), self.tokenizer, self.renderer)
        self.engine.load_adapter(name, str(folder))
        self.renderers[name] = renderer

    def unload_adapter(self, name: str) -> None:
        """Raises RequestError for one that is not loaded."""
        self.engine.unload_adapter(name)
        del self.renderers[name]

    @property
    def ends_of_turn(self) -> frozenset[int]:
        return frozenset() if self.renderer is None else frozenset(self.renderer.stop_ids)

    def prompt_ids(self, prompt: str) -> list[int]:
        """A text prompt as the model was trained to see a document begin: <bos>, where there is one, then the text. As
        a source is read, for an encoder–decoder."""
        if self.reads_source:
            return list(source_of(self.tokenizer, prompt))
        start = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return start + self.tokenizer.encode(prompt)

    def complete(self, ids: Sequence[int], **sampling: Any) -> list[Completion]:
        """Completions (one for each of `n`) of token ids; keywords are the fields of `Sampling`, `adapter`, a
        loaded one's name, and `long_input`, a LongInput: what to do where they are too many."""
        return self.engine.complete([self.request("api", ids, sampling)])

    def request(self, name: str, ids: Sequence[int], sampling: dict[str, Any]) -> Request:
        """`ids` are the prompt, or the source of an encoder–decoder, whose prompt is its start."""
        context_tokens = self.transformer.document_tokens
        policy: LongInput = sampling.get("long_input") or LongInput()
        left = policy.cut(ids, sampling.get("max_tokens"), context_tokens, self.tokenizer.bos_id)
        n_prompt = 1 if self.reads_source else len(left)
        room = max(1, min(256, context_tokens - n_prompt))
        adapter = sampling.get("adapter", "")
        fields = {name: value for name, value in sampling.items() if name not in ("long_input", "adapter")}
        ends = self.renderers.get(adapter)
        if ends is not None and not fields.get("ignore_eos"):
            fields["stop_token_ids"] = (*fields.get("stop_token_ids", ()), *sorted(ends.stop_ids))
        chosen = Sampling(**{"max_tokens": room, **fields})
        if self.reads_source:
            return Request(name, (), chosen, source_ids=tuple(ids), long_input=policy, adapter=adapter)
        return Request(name, tuple(ids), chosen, long_input=policy, adapter=adapter)

    def generate(self, prompt: str, **sampling: Any) -> str:
        """The continuation of `prompt` (without it), or the answer to it as a source."""
        return self.complete(self.prompt_ids(prompt), **sampling)[0].text

    def chat(self, messages: str | Sequence[Message], **sampling: Any) -> str:
        """The answer to a user's text or to a conversation, whose oldest turns are left out where `long_input` says so.
        Raises ConfigError for a base model."""
        policy: LongInput = sampling.get("long_input") or LongInput()
        room = policy.room(sampling.get("max_tokens"), self.transformer.document_tokens)
        return self.complete(self.chat_ids(messages, room, sampling.get("adapter", "")), **sampling)[0].text

    def chat_ids(
        self, messages: str | Sequence[Message], room: tuple[int, int] = EVERYTHING, adapter: str = ""
    ) -> list[int]:
        """The ids of a conversation up to where the answer begins, fitted into `room` (see `render_fitted`), in the
        format of the model or of a loaded adapter."""
        renderer = self.renderers.get(adapter) if adapter else self.renderer
        if renderer is None:
            raise ConfigError(
                f"{self.folder}: {'an encoder-decoder' if self.reads_source else 'a base model'} has no chat format; "
                "use generate, or tune a decoder with fledge sft"
            )
        turns = (Message("user", messages),) if isinstance(messages, str) else tuple(messages)
        return render_fitted(renderer, turns, *room)[0]

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """The continuation of `prompt` piece by piece; several may be read in turn. Raises EngineError."""
        own = (f"stream-{next(self.numbers)}",)
        self.engine.submit(self.request(*own, self.prompt_ids(prompt), {**sampling, "n": 1}))
        try:
            while True:
                for event in self.engine.step_for(own):
                    if event.error is not None:
                        raise EngineError(event.error)
                    if event.text:
                        yield event.text
                    if event.finish_reason is not None:
                        return
        finally:
            self.engine.abandon(own)

    @torch.inference_mode()
    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Natural log p of ids[1:], each given all before it: len(ids) - 1 numbers, from one full pass.

        `ids` may be one longer than the context: the last is only predicted.
        """
        row = torch.tensor([list(ids)], device=self.transformer.embedding.weight.device)
        logits = self.transformer(one_document(row[:, :-1]), OneDocument())[0]
        return torch.log_softmax(logits.float(), -1).gather(1, row[0, 1:, None]).squeeze(1).tolist()


def load(folder: str | Path, device: str = "cpu", n_slots: int = 8) -> Model:
    """The model in `folder` (a model folder, an adapter folder or a run folder).

    Raises CheckpointError or ConfigError if it is missing, damaged, unsafe or of an unknown kind.
    """
    folder = find_served(folder)
    return Model(folder, load_served(folder, device), served_tokenizer(folder), n_slots)
