"""The chat renderer: one walk over a conversation gives its ids and which of them are trained on.

Tuning, evaluation, the terminal chat and the server use the same object, so the ids served are the ids trained on.
Every message is encoded as text: what a user types can't become a special token. The assistant's end-of-turn token is
trained on, else a model never learns to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fledge.errors import ConfigError, RequestError, TokenizerError
from fledge.text.conversation import ROLES, Conversation, Message, read_conversations
from fledge.text.special_tokens import ASSISTANT, BOS, END, SYSTEM, USER
from fledge.text.tokenizer import Tokenizer

__all__ = [
    "ChatMLRenderer",
    "ChatRenderer",
    "Conversation",
    "Message",
    "Rendered",
    "read_conversations",
    "renderer_for",
]

REFUSE_ROLE = (
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('expected the role system, user or assistant') }}{%- endif %}"
)
TEMPLATE = (
    "{{- '<|bos|>' }}{%- for message in messages %}" + REFUSE_ROLE + "{{- '<|' + message['role'] + '|>' "
    "+ message['content'] + '<|end|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
CHATML_TEMPLATE = (
    "{%- for message in messages %}"
    + REFUSE_ROLE
    + "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it: `ids`, and for each whether the loss counts it (it is the assistant's)."""

    ids: list[int]
    trained: list[bool]


class ChatRenderer:
    """fledge's own format: `<|bos|>`, then for each message `<|role|>`, its content, `<|end|>`; before an answer
    `<|assistant|>`. `template()` is the same as Jinja: `transformers` gives equal ids for every conversation whose text
    spells no special token (there it would become one). Without role tokens both raise ConfigError: a base model."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        names = {"bos": BOS, "system": SYSTEM, "user": USER, "assistant": ASSISTANT, "end": END}
        ids = {role: tokenizer.id_of(token) for role, token in names.items()}
        self.ids = {role: number for role, number in ids.items() if number is not None and tokenizer.is_special(number)}
        self.fits = len(self.ids) == len(names)
        self.stop_ids = tokenizer.stop_ids

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """Ids and training mask of a conversation; with `generation_prompt`, up to where the assistant's answer
        begins. Raises RequestError (param "messages") for an empty conversation or an unknown role."""
        demand(self.fits)
        contents = [message.content for message in messages]
        ids, trained = [self.ids["bos"]], [False]
        for message, content in zip(messages, encoded(self.tokenizer, messages, contents), strict=True):
            is_answer = message.role == "assistant"
            ids += [self.ids[message.role], *content, self.ids["end"]]
            trained += [False] + [is_answer] * (len(content) + 1)
        if generation_prompt:
            ids.append(self.ids["assistant"])
            trained.append(False)
        return Rendered(ids, trained)

    def template(self) -> str:
        """The format as a Jinja chat template."""
        demand(self.fits)
        return TEMPLATE


class ChatMLRenderer(ChatRenderer):
    """ChatML: for each message `<|im_start|>`, role, newline, content, `<|im_end|>`, newline. No BOS.

    Role and content are encoded together, as every user of this format does; trained on are the answer's tokens (one
    that begins inside the role's line is not) and `<|im_end|>`, but not the newline after it.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.start, self.end = tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")
        self.fits = tokenizer.kind == "bpe" and None not in (self.start, self.end)
        self.stop_ids = tokenizer.stop_ids

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """As ChatRenderer.render."""
        demand(self.fits)
        assert self.start is not None and self.end is not None
        newline = self.tokenizer.encode("\n")
        headed = [f"{message.role}\n{message.content}" for message in messages]
        ids: list[int] = []
        trained: list[bool] = []
        for message, content in zip(messages, encoded(self.tokenizer, messages, headed), strict=True):
            is_answer = message.role == "assistant"
            ids += [self.start, *content, self.end, *newline]
            trained += [False, *self.after_header(content, is_answer), is_answer, *[False] * len(newline)]
        if generation_prompt:
            opening = [self.start, *self.tokenizer.encode("assistant\n")]
            ids += opening
            trained += [False] * len(opening)
        return Rendered(ids, trained)

    def after_header(self, ids: list[int], is_answer: bool) -> list[bool]:
        """For each token of `assistant\\n…` whether it belongs to the answer alone."""
        at, flags = 0, []
        for number in ids:
            flags.append(is_answer and at >= len(b"assistant\n"))
            at += len(self.tokenizer.token_bytes(number))
        return flags

    def template(self) -> str:
        """The format as a Jinja chat template."""
        demand(self.fits)
        return CHATML_TEMPLATE


def renderer_for(tokenizer: Tokenizer, template_text: str | None = None) -> ChatRenderer:
    """The renderer of a chat template (`template_text`, else the one in the tokenizer's folder), or where there is none
    the one whose special tokens the tokenizer has. Raises ConfigError for a template that is neither of ours, and for a
    tokenizer without role tokens."""
    ours, chatml = ChatRenderer(tokenizer), ChatMLRenderer(tokenizer)
    template = template_text if template_text is not None else tokenizer.template
    if template is not None and template.strip():
        for renderer, text in ((ours, TEMPLATE), (chatml, CHATML_TEMPLATE)):
            if template.strip() == text:
                demand(renderer.fits)
                return renderer
        raise ConfigError(
            "chat template: expected fledge's own or plain ChatML, got another; "
            "use completions, or replace chat_template.jinja by the format the model is tuned in"
        )
    if chatml.fits and not ours.fits:
        return chatml
    demand(ours.fits)
    return ours


def demand(fits: bool) -> None:
    """Raises ConfigError for a tokenizer without the format's tokens."""
    if not fits:
        raise ConfigError(
            "chat: expected a tokenizer with role tokens, got one of a base model; use completions, or tune the model "
            "with fledge sft on a tokenizer made by fledge tokenizer train"
        )


def encoded(tokenizer: Tokenizer, messages: Sequence[Message], texts: list[str]) -> list[list[int]]:
    """Ids of each text, after the messages were checked. Raises RequestError naming the message."""
    if not messages:
        raise RequestError("messages: expected at least one message, got none", "messages")
    for number, message in enumerate(messages):
        if message.role not in ROLES:
            expected = ", ".join(ROLES)
            raise RequestError(
                f"messages[{number}].role: expected one of {expected}, got {message.role!r:.40}", "messages"
            )
        if not isinstance(message.content, str):
            found = type(message.content).__name__
            raise RequestError(f"messages[{number}].content: expected text, got {found}", "messages")
    try:
        return tokenizer.encode_batch(texts)
    except TokenizerError as error:
        raise RequestError(f"messages: {error}", "messages") from None
