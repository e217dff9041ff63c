"""The chat formats that are laid out here: fledge's own, and those in which widely used models were tuned.

A format is data and one function from a conversation to pieces. Its `template` is the same as Jinja, for the folders we
write. A template that a model came with is known by its digest (`published`); then this code renders it, and no foreign
program runs. Sources: each model's tokenizer_config.json, FastChat's conversation.py for Vicuna and the training script
of Stanford Alpaca.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from fledge.errors import RequestError
from fledge.text import chat_templates as jinja
from fledge.text.chat_layout import Piece
from fledge.text.conversation import Message
from fledge.text.special_tokens import ASSISTANT, BOS, END, SYSTEM, USER

QWEN2_SYSTEM = "You are a helpful assistant."
QWEN25_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


@dataclass(frozen=True)
class Marks:
    """The tokenizer's own BOS and EOS, "" where it has none."""

    bos: str
    eos: str


LayOut = Callable[[Sequence[Message], Marks, bool], Iterator[Piece]]


@dataclass(frozen=True)
class ChatFormat:
    """`lay_out(messages, marks, generation_prompt)` gives the pieces; `needs` are the tokens that it can't do without,
    `end` ends a turn ("" stands for the tokenizer's EOS), `published` are digests of models' own templates."""

    name: str
    template: str
    lay_out: LayOut
    needs: tuple[str, ...] = ()
    end: str = ""
    published: tuple[str, ...] = ()


def template_digest(text: str) -> str:
    """Hex SHA-256 of a template, whichever way it writes its newlines."""
    return hashlib.sha256(text.strip().replace("\r\n", "\n").replace("\\n", "\n").encode("utf-8")).hexdigest()


def answer(text: str) -> Piece:
    return Piece(text, literal=False, trained=True)


def typed(text: str) -> Piece:
    return Piece(text, literal=False)


def trained(text: str) -> Piece:
    return Piece(text, trained=True)


def lay_out_fledge(messages: Sequence[Message], marks: Marks, generation_prompt: bool) -> Iterator[Piece]:
    yield Piece(BOS)
    for message in messages:
        is_answer = message.role == "assistant"
        yield Piece(f"<|{message.role}|>")
        yield Piece(message.content, literal=False, trained=is_answer)
        yield Piece(END, trained=is_answer)
    if generation_prompt:
        yield Piece(ASSISTANT)


def lay_out_chatml(
    messages: Sequence[Message], marks: Marks, generation_prompt: bool, system: str | None = None
) -> Iterator[Piece]:
    if system is not None and messages[0].role != "system":
        yield Piece(f"<|im_start|>system\n{system}<|im_end|>\n")
    for message in messages:
        is_answer = message.role == "assistant"
        yield Piece(f"<|im_start|>{message.role}\n")
        yield Piece(message.content, literal=False, trained=is_answer)
        yield Piece("<|im_end|>", trained=is_answer)
        yield Piece("\n")
    if generation_prompt:
        yield Piece("<|im_start|>assistant\n")


def lay_out_llama3(messages: Sequence[Message], marks: Marks, generation_prompt: bool) -> Iterator[Piece]:
    yield Piece(marks.bos)
    for message in messages:
        is_answer = message.role == "assistant"
        yield Piece(f"<|start_header_id|>{message.role}<|end_header_id|>\n\n")
        yield Piece(message.content.strip(), literal=False, trained=is_answer)
        yield Piece("<|eot_id|>", trained=is_answer)
    if generation_prompt:
        yield Piece("<|start_header_id|>assistant<|end_header_id|>\n\n")


def lay_out_llama2(messages: Sequence[Message], marks: Marks, generation_prompt: bool) -> Iterator[Piece]:
    system, turns = with_system(messages, "llama-2")
    for number, message in enumerate(turns):
        if message.role == "assistant":
            yield from (trained(" "), answer(message.content.strip()), trained(f" {marks.eos}"))
            continue
        yield Piece(f"{marks.bos}[INST] ")
        if number == 0 and system is not None:  # one text for the template, which strips it as a whole
            text = message.content.rstrip()
            gap = "\n\n" if text else ""
            yield from (Piece("<<SYS>>\n"), typed(system), Piece(f"\n<</SYS>>{gap}"), typed(text))
        else:
            yield typed(message.content.strip())
        yield Piece(" [/INST]")


def lay_out_mistral(
    messages: Sequence[Message], marks: Marks, generation_prompt: bool, after: str = ""
) -> Iterator[Piece]:
    yield Piece(marks.bos)
    for message in alternating(messages, "mistral"):
        if message.role == "assistant":
            yield from (answer(message.content), trained(marks.eos), Piece(after))
        else:
            yield from (Piece("[INST] "), typed(message.content), Piece(" [/INST]"))


def lay_out_gemma(messages: Sequence[Message], marks: Marks, generation_prompt: bool) -> Iterator[Piece]:
    yield Piece(marks.bos)
    for message in alternating(messages, "gemma"):
        is_answer = message.role == "assistant"
        yield Piece(f"<start_of_turn>{'model' if is_answer else 'user'}\n")
        yield Piece(message.content.strip(), literal=False, trained=is_answer)
        yield Piece("<end_of_turn>", trained=is_answer)
        yield Piece("\n")
    if generation_prompt:
        yield Piece("<start_of_turn>model\n")


def lay_out_phi3(
    messages: Sequence[Message], marks: Marks, generation_prompt: bool, keeps_empty_system: bool = True
) -> Iterator[Piece]:
    for message in messages:
        if message.role == "system" and not message.content and not keeps_empty_system:
            continue
        is_answer = message.role == "assistant"
        yield Piece(f"<|{message.role}|>\n")
        yield Piece(message.content, literal=False, trained=is_answer)
        yield Piece("<|end|>", trained=is_answer)
        yield Piece("\n")
    yield Piece("<|assistant|>\n" if generation_prompt else marks.eos)


def lay_out_alpaca(messages: Sequence[Message], marks: Marks, generation_prompt: bool) -> Iterator[Piece]:
    system, turns = with_system(messages, "alpaca")
    yield from (Piece(marks.bos), typed(ALPACA_SYSTEM if system is None else system), Piece("\n\n"))
    for number, message in enumerate(turns):
        if message.role == "assistant":
            yield from (answer(message.content), trained(marks.eos))
        else:
            gap = "\n\n" if number else ""
            yield from (Piece(f"{gap}### Instruction:\n"), typed(message.content), Piece("\n\n### Response:"))


def lay_out_vicuna(messages: Sequence[Message], marks: Marks, generation_prompt: bool) -> Iterator[Piece]:
    system, turns = with_system(messages, "vicuna")
    yield from (Piece(marks.bos), typed(VICUNA_SYSTEM if system is None else system), Piece(" "))
    for message in turns:
        if message.role == "assistant":
            yield from (trained(" "), answer(message.content), trained(marks.eos))
        else:
            yield from (Piece("USER: "), typed(message.content), Piece(" ASSISTANT:"))


def with_system(messages: Sequence[Message], name: str) -> tuple[str | None, Sequence[Message]]:
    """The system message, if there is one, and the turns after it."""
    if messages[0].role != "system":
        return None, alternating(messages, name)
    if len(messages) == 1:
        raise RequestError(f"messages: the {name} format expects a user's message, got only the system's", "messages")
    return messages[0].content, alternating(messages, name, 1)


def alternating(messages: Sequence[Message], name: str, first: int = 0) -> Sequence[Message]:
    """The messages from `first` on. Raises RequestError unless user and assistant take turns, the user first."""
    for number, message in enumerate(messages[first:]):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            raise RequestError(
                f"messages[{first + number}].role: expected {expected}, since in the {name} format user and assistant "
                f"take turns, got {message.role}",
                "messages",
            )
    return messages[first:]


FLEDGE = ChatFormat("fledge", jinja.FLEDGE, lay_out_fledge, (BOS, SYSTEM, USER, ASSISTANT, END), END)
CHATML = ChatFormat(
    "chatml", jinja.CHATML, lay_out_chatml, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", jinja.KNOWN_CHATML
)


def qwen(name: str, system: str, published: tuple[str, ...]) -> ChatFormat:
    template = jinja.with_default_system(jinja.CHATML, system)
    return ChatFormat(name, template, partial(lay_out_chatml, system=system), CHATML.needs, CHATML.end, published)


def mistral(name: str, after: str, published: tuple[str, ...]) -> ChatFormat:
    return ChatFormat(name, jinja.mistral(after), partial(lay_out_mistral, after=after), published=published)


def phi3(name: str, keeps_empty_system: bool, published: tuple[str, ...]) -> ChatFormat:
    template = jinja.phi3(keeps_empty_system)
    lay_out = partial(lay_out_phi3, keeps_empty_system=keeps_empty_system)
    return ChatFormat(name, template, lay_out, (SYSTEM, USER, ASSISTANT, END), END, published)


FORMATS = {
    form.name: form
    for form in (
        FLEDGE,
        CHATML,
        qwen("qwen2", QWEN2_SYSTEM, jinja.KNOWN_QWEN2),
        qwen("qwen2.5", QWEN25_SYSTEM, jinja.KNOWN_QWEN25),
        ChatFormat(
            "llama-3",
            jinja.LLAMA3,
            lay_out_llama3,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|eot_id|>",
            jinja.KNOWN_LLAMA3,
        ),
        ChatFormat("llama-2", jinja.LLAMA2, lay_out_llama2, published=jinja.KNOWN_LLAMA2),
        mistral("mistral-v0.1", " ", jinja.KNOWN_MISTRAL_1),
        mistral("mistral-v0.2", "", jinja.KNOWN_MISTRAL_2),
        ChatFormat(
            "gemma",
            jinja.GEMMA,
            lay_out_gemma,
            ("<start_of_turn>", "<end_of_turn>"),
            "<end_of_turn>",
            jinja.KNOWN_GEMMA,
        ),
        phi3("phi-3", True, jinja.KNOWN_PHI3),
        phi3("phi-3.5", False, jinja.KNOWN_PHI35),
        ChatFormat("alpaca", jinja.alpaca(ALPACA_SYSTEM), lay_out_alpaca),
        ChatFormat("vicuna", jinja.vicuna(VICUNA_SYSTEM), lay_out_vicuna),
    )
}


def known_format(template: str) -> ChatFormat | None:
    """The format of a template that is ours or a model's published one; None for any other."""
    digest = template_digest(template)
    for form in FORMATS.values():
        if digest in form.published or digest == template_digest(form.template):
            return form
    return None
