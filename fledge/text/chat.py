"""The chat renderer: one walk over a conversation gives its ids and which of them are trained on.

Tuning, evaluation, the terminal chat and the server use the same object, so the ids served are the ids trained on.
Every message is encoded as text: what a user types can't become a special token. The assistant's end-of-turn token is
trained on, else a model never learns to stop. Formats that we know are laid out here (`chat_formats`); any other
template runs in a process of its own (`jinja_format`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from fledge.errors import CheckpointError, ConfigError, DataError, RequestError
from fledge.text.chat_formats import CHATML, FLEDGE, FORMATS, ChatFormat, Marks, known_format
from fledge.text.chat_layout import PieceEncoder, Rendered, check_messages
from fledge.text.conversation import Conversation, Message, read_conversations
from fledge.text.jinja_format import JinjaFormat
from fledge.text.tokenizer import Tokenizer

__all__ = [
    "FORMATS",
    "ChatRenderer",
    "Conversation",
    "Message",
    "Rendered",
    "read_conversations",
    "render_all",
    "chat_renderer",
    "format_beside",
    "renderer_for",
    "with_format",
]


class ChatRenderer:
    """Conversations as ids for one tokenizer, in one format: fledge's own unless another is given. `in_child`: a
    template runs, which may take seconds, so a server calls `render` from a thread."""

    def __init__(self, tokenizer: Tokenizer, form: ChatFormat | JinjaFormat = FLEDGE, source: str | None = None):
        self.tokenizer, self.form, self.source = tokenizer, form, source
        self.in_child = isinstance(form, JinjaFormat)
        self.encoder = PieceEncoder(tokenizer)
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        self.marks = Marks(
            "" if bos is None else tokenizer.token_of(bos), "" if eos is None else tokenizer.token_of(eos)
        )

    @property
    def name(self) -> str:
        return self.form.name

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """Ids and training mask of a conversation; with `generation_prompt`, up to where the assistant's answer
        begins. Raises RequestError (param "messages") for a conversation that the format can't hold, ConfigError for a
        tokenizer without the format's tokens, or a template whose answers can't be told apart (for tuning only)."""
        self.demand()
        check_messages(messages)
        return self.encoder.encode(list(self.form.lay_out(messages, self.marks, generation_prompt)))

    def text(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The conversation as the format writes it, control tokens spelled out; for people to read."""
        self.demand()
        check_messages(messages)
        return "".join(piece.text for piece in self.form.lay_out(messages, self.marks, generation_prompt))

    def template(self) -> str:
        """The format as a Jinja chat template; the folder's own, where it had one."""
        self.demand()
        return self.form.template if self.source is None else self.source

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's, and the format's end of turn."""
        end = self.form.end_of_turn() if isinstance(self.form, JinjaFormat) else self.form.end
        number = self.tokenizer.id_of(end) if end else None
        return tuple(sorted({*self.tokenizer.stop_ids, *([] if number is None else [number])}))

    @property
    def fits(self) -> bool:
        """Whether the tokenizer has what the format needs: its control tokens, and something that ends an answer."""
        if isinstance(self.form, JinjaFormat):
            return True
        return all(token in self.encoder.spellings for token in self.form.needs) and bool(
            self.form.end or self.marks.eos
        )

    def demand(self) -> None:
        """Raises ConfigError for a tokenizer without the format's tokens."""
        if not self.fits:
            needs = ", ".join(getattr(self.form, "needs", ())) or "an EOS token"
            raise ConfigError(
                f"chat format {self.name}: expected a tokenizer with {needs}, got one without, as of a base model; "
                "use completions, or tune the model with fledge sft on a tokenizer made by "
                f"fledge tokenizer train chat.format={self.name}"
            )


def renderer_for(tokenizer: Tokenizer, template_text: str | None = None) -> ChatRenderer:
    """The renderer of a chat template (`template_text`, else the one in the tokenizer's folder), or where there is none
    the one whose special tokens the tokenizer has. `template_text` may be the name of a format (`FORMATS`).

    A template that is ours or a model's published one is rendered by our code, any other in a bounded process: it is
    first run when something is rendered. Raises ConfigError for a tokenizer without the format's tokens."""
    template = template_text if template_text is not None else tokenizer.template
    if template in FORMATS:
        return fitting(ChatRenderer(tokenizer, FORMATS[template]))
    if template is not None and template.strip():
        form = known_format(template)
        if form is not None:
            return fitting(ChatRenderer(tokenizer, form, template))
        encoder = PieceEncoder(tokenizer)
        return ChatRenderer(tokenizer, JinjaFormat(tokenizer, template, encoder.spellings, encoder.control), template)
    chatml = ChatRenderer(tokenizer, CHATML)
    ours = ChatRenderer(tokenizer)
    return chatml if chatml.fits and not ours.fits else fitting(ours)


def chat_renderer(tokenizer: Tokenizer) -> ChatRenderer | None:
    """As `renderer_for`, but None for a tokenizer without role tokens."""
    try:
        return renderer_for(tokenizer)
    except ConfigError:
        return None


def format_beside(folder: Path, tokenizer: Tokenizer, renderer: ChatRenderer | None) -> ChatRenderer | None:
    """The chat format of an adapter's folder beside a base with `tokenizer` and `renderer`: its own, where it brings a
    tokenizer, else the base's. Raises CheckpointError for a tokenizer that gives other ids."""
    if not (folder / "tokenizer.json").is_file():
        return renderer
    own = Tokenizer.load(folder)
    if own.digest != tokenizer.digest:
        raise CheckpointError(
            f"{folder}: expected the base's tokenizer, got one of other ids; serve the adapter's folder by itself"
        )
    return chat_renderer(own)


def with_format(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """The tokenizer with the template of the format `name` (`FORMATS`), which its folder then keeps; "" changes
    nothing. Raises ConfigError for a tokenizer without the format's tokens."""
    if not name:
        return tokenizer
    template = renderer_for(tokenizer, name).template()
    config = {key: value for key, value in tokenizer.config.items() if key != "chat_template"}
    return Tokenizer(tokenizer.file, config, template)


def fitting(renderer: ChatRenderer) -> ChatRenderer:
    renderer.demand()
    return renderer


def render_all(renderer: ChatRenderer, conversations: Iterable[Conversation], place: str) -> list[Rendered]:
    """Each conversation with its mask. Raises DataError naming `place` and the conversation that the format can't
    hold."""
    rendered = []
    for number, conversation in enumerate(conversations, 1):
        try:
            rendered.append(renderer.render(conversation))
        except RequestError as error:
            raise DataError(f"{place}, conversation {number}: {error}") from None
    return rendered
