"""`fledge chat MODEL`: a conversation in the terminal, or over a pipe: one line is one message."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fledge.engine.config import ChatConfig, EngineConfig
from fledge.engine.length import answer_room
from fledge.engine.overflow import LongInput
from fledge.engine.request import Request, Sampling
from fledge.errors import ConfigError, DataError, EngineError, RequestError, TokenizerError
from fledge.log import say

if TYPE_CHECKING:
    from fledge.engine.core import Engine
    from fledge.text.chat import ChatRenderer

HELP = """/help              this list
/reset             forget the conversation (the system message stays)
/system TEXT       set the system message; without text: remove it
/temperature X     0 is greedy
/seed N            the seed decides the answers
/exit              leave, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / is written with two: //like this."""
ANY_VOCABULARY = 2**31


def chat(config: ChatConfig, json: bool = False) -> dict[str, Any]:
    """Talk until /exit, Ctrl-D or the end of standard input; the result holds the conversation.

    On a terminal a mistake is a message and the talk goes on; from a pipe it is raised (RequestError when the
    conversation outgrows the context). Raises ConfigError for a model without chat roles.
    """
    try:
        sampling = sampling_of(config).validated(ANY_VOCABULARY)
    except RequestError as error:
        raise ConfigError(str(error)) from None
    from fledge.engine.load import load_engine
    from fledge.text.chat import renderer_for

    engine = load_engine(config.model, EngineConfig(n_slots=1, threads=config.threads))
    if engine.reads_source:
        raise ConfigError(
            f"{config.model}: an encoder-decoder has no chat format; fledge generate answers a text that it reads"
        )
    talk = Talk(
        engine,
        renderer_for(engine.tokenizer),
        sampling,
        config.system,
        config.max_tokens,
        LongInput(config.overflow, sinks=config.sink_tokens),
    )
    interactive = sys.stdin.isatty()
    if interactive:
        say("/help lists the commands; Ctrl-C stops an answer; Ctrl-D leaves")
    for line in typed_lines() if interactive else piped_lines():
        try:
            if not talk.take(line):
                break
        except (RequestError, ConfigError, TokenizerError) as error:
            if not interactive:
                raise
            say(str(error))
    messages = [{"role": message.role, "content": message.content} for message in talk.conversation()]
    return {"messages": messages, "turns": talk.n_turns, "generated_tokens": talk.n_generated}


def sampling_of(config: ChatConfig) -> Sampling:
    return Sampling(
        max_tokens=1 if config.max_tokens is None else config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
        stop=config.stop,
    )


def typed_lines() -> Iterator[str]:
    """Lines from a terminal, with history and editing; Ctrl-C empties the line, Ctrl-D ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then edits and remembers lines
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            say("Ctrl-D or /exit leaves")
        except UnicodeDecodeError:
            say("the line is not UTF-8 text; it was not sent")


def piped_lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.removesuffix("\n")
    except UnicodeDecodeError:
        raise DataError("standard input: expected UTF-8 text, got other bytes") from None


class Talk:
    """One conversation: `take` a line, answer it on standard output, remember both."""

    def __init__(
        self,
        engine: Engine,
        renderer: ChatRenderer,
        sampling: Sampling,
        system: str | None,
        max_tokens: int | None,
        long_input: LongInput | None = None,
    ):
        from fledge.text.chat import Message

        self.message = Message
        self.engine = engine
        self.renderer = renderer
        self.sampling = sampling
        self.system = system
        self.max_tokens, self.long_input = max_tokens, long_input or LongInput()
        self.history: list[Message] = []
        self.n_turns = 0
        self.n_generated = 0

    def conversation(self) -> tuple[Any, ...]:
        head = () if self.system is None else (self.message("system", self.system),)
        return (*head, *self.history)

    def take(self, line: str) -> bool:
        """Obey a command or answer a message; False when the talk is over. Raises RequestError or ConfigError."""
        text = line.strip()
        if text.startswith("/") and not text.startswith("//"):
            return self.command(*text[1:].partition(" ")[::2])
        if text:
            self.answer(text[1:] if text.startswith("//") else line)
        return True

    def command(self, name: str, argument: str) -> bool:
        argument = argument.strip()
        if name in ("exit", "quit"):
            return False
        if name == "help":
            say(HELP)
        elif name == "reset":
            self.history.clear()
            say("new conversation")
        elif name == "system":
            self.system = argument or None
            say("system message set" if argument else "system message removed")
        elif name == "temperature":
            self.change("temperature", number(float, argument, "/temperature"))
        elif name == "seed":
            self.change("seed", number(int, argument, "/seed"))
        else:
            raise ConfigError(f"/{name}: unknown command; /help lists them, // begins a message with a slash")
        return True

    def change(self, name: str, value: float) -> None:
        changes: dict[str, Any] = {name: value}
        self.sampling = replace(self.sampling, **changes).validated(ANY_VOCABULARY)
        say(f"{name} {value}")

    def answer(self, text: str) -> None:
        """Stream the answer to `text`. A message that doesn't fit is not kept, and no turn is left
        out unless that was asked for."""
        from fledge.text.turns import render_fitted

        asked = (*self.conversation(), self.message("user", text))
        context_tokens = self.engine.context_tokens
        ids, n_cut = render_fitted(self.renderer, asked, *self.long_input.room(self.max_tokens, context_tokens))
        if n_cut:
            say(f"the oldest turns, {n_cut} tokens, were left out")
        prompt_ids = tuple(ids)
        longest = self.long_input.longest(context_tokens, 0)
        if len(prompt_ids) >= longest:
            raise RequestError(
                f"context: with this message the conversation has {len(prompt_ids)} tokens, the model's context holds "
                f"{context_tokens}; the message was not taken; /reset begins a new conversation",
                code="context_length_exceeded",
            )
        room = answer_room(len(prompt_ids), self.long_input.open_tokens(context_tokens), longest)
        max_tokens = room if self.max_tokens is None else min(room, self.max_tokens)
        sampling = replace(self.sampling, max_tokens=max_tokens, stop_token_ids=tuple(self.renderer.stop_ids))
        request = Request(f"turn-{self.n_turns}", prompt_ids, sampling, long_input=self.long_input)
        if n_hidden := self.engine.hidden(request):
            say(f"{n_hidden} tokens after the first are hidden")
        reply, finish_reason = self.stream(request)
        self.n_turns += 1
        self.history += [self.message("user", text), self.message("assistant", reply)]
        if finish_reason == "length" and max_tokens == room:
            say(f"the answer was cut: the context of {context_tokens} tokens is full; /reset begins a new conversation")
        elif finish_reason == "cancelled":
            say("stopped")

    def stream(self, request: Request) -> tuple[str, str]:
        """Write the answer as it comes; (its text, why it ended). Ctrl-C cancels it and keeps what was said."""
        pieces: list[str] = []
        finish_reason = "stop"
        self.engine.submit(request)
        try:
            with interruptible() as interrupted:
                while self.engine.has_work:
                    if interrupted():
                        self.engine.cancel(request.id)
                    for event in self.engine.step():
                        if event.error is not None:
                            raise EngineError(event.error)
                        self.n_generated += len(event.token_ids)
                        pieces.append(event.text)
                        sys.stdout.write(event.text)
                        sys.stdout.flush()
                        finish_reason = event.finish_reason or finish_reason
        finally:
            sys.stdout.write("\n")
            sys.stdout.flush()
        return "".join(pieces), finish_reason


def number(kind: Callable[[str], float], text: str, place: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{place}: expected a number, got {text!r:.40}") from None


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C raises nothing: the function given tells whether it was pressed."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
