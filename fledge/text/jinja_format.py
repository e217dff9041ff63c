"""`JinjaFormat`: any other chat template as a format: rendered in the child, message text kept apart, answers found.

**Text stays text.** The template gets messages in which the first character of every spelled control token is another
one, of Unicode's private use, that occurs nowhere in them. Whatever the template then writes between and around them, a
control token in its output is the template's own; afterwards the characters are put back. A message that ends with the
beginning of a control token, or begins with the end of one, is treated in the same way, so none can be put together at
the seam. `strip`, `split` and tests of the content work as ever, except that a spelled control token isn't found. What
a template does to a text (`lower`, `replace`, a slice) may spell one anew; so where messages hold characters with which
control tokens begin or end, it is rendered without these too, and if the two differ in control tokens, that one counts.

**Answers.** Where the template marks them (`{% generation %}`), the marks count, with the end of turn that follows.
Else the conversation is rendered up to the head of each answer and up to its end: what was added is the answer, up to
its last control token. If the whole does not begin with these, there is no mask, and tuning is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge.errors import ConfigError, RequestError
from fledge.text.chat_formats import Marks, template_digest
from fledge.text.chat_layout import Piece
from fledge.text.conversation import Message
from fledge.text.jinja_process import TemplateProcess, shared_process
from fledge.text.special_tokens import ENDS_OF_TURN, SPELLINGS
from fledge.text.tokenizer import Tokenizer

MAX_TEMPLATE_CHARACTERS = 1 << 17
MAX_DERIVED_ANSWERS = 64  # in a prompt; beyond, old answers are not looked for
PRIVATE_USE = range(0xF0000, 0xFFFFE)
NOT_TEXT = "\ufdd0\ufdd1"  # the sandbox's own marks
MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
CODES = {"raised": "chat_template_refused"}


class JinjaFormat:
    """A template with one tokenizer. `lay_out` as of `ChatFormat`; slow enough to be called from a thread."""

    def __init__(self, tokenizer: Tokenizer, template: str, spellings: tuple[str, ...], control: re.Pattern[str]):
        self.template = template
        self.digest = template_digest(template)
        self.name = f"template {self.digest[:12]}"
        self.control = control
        self.spelled = SpelledTokens(spellings)
        self.context = special_values(tokenizer)
        self.marked = MARKER.search(template) is not None
        self.ends = {*ENDS_OF_TURN, *map(tokenizer.token_of, tokenizer.stop_ids)}
        self.process: TemplateProcess = shared_process()
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise ConfigError(
                f"chat {self.name}: expected at most {MAX_TEMPLATE_CHARACTERS} characters, got {len(template)}; "
                "replace chat_template.jinja"
            )

    def lay_out(self, messages: Sequence[Message], marks: Marks, generation_prompt: bool) -> list[Piece]:
        """Raises RequestError if the template refuses the conversation, breaks a rule or goes over a limit; for a
        conversation to train on (no `generation_prompt`) ConfigError, if its answers can't be told apart."""
        cover = self.cover(messages, generation_prompt)
        turns = turns_of(messages, cover)
        answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
        derived = not self.marked and (not generation_prompt or len(answers) <= MAX_DERIVED_ANSWERS)
        jobs: list[list[Any]] = [[len(turns), generation_prompt]]
        if derived:
            jobs += [job for number in answers for job in ([number, True], [number + 1, False])]
        texts, spans = self.render(turns, jobs)
        whole = texts[0]
        assert whole is not None
        if self.marked:
            found = [(start, self.with_end_of_turn(whole, end)) for start, end in spans[0]]
        elif derived:
            found = self.derive(whole, texts[1:], marks, serving=generation_prompt)
        else:
            found = []
        return list(self.pieces(whole, found, cover))

    def cover(self, messages: Sequence[Message], generation_prompt: bool) -> Cover:
        """The messages with the control tokens covered that they spell. Should the template put one together from what
        is left (by `lower`, `replace`, a slice), it shows in that others come out where no message has the first and
        last characters of control tokens; then these stay covered."""
        contents = [message.content for message in messages]
        cover = self.spelled.cover(contents)
        if not any(map(self.spelled.holds_ends, cover.contents)):
            return cover
        bare = self.spelled.cover(contents, ends=True)
        job: list[list[Any]] = [[len(messages), generation_prompt]]
        found = [self.render(turns_of(messages, one), job)[0][0] or "" for one in (cover, bare)]
        usual, without = (self.control.findall(text) for text in found)
        return cover if usual == without else bare

    def render(self, turns: list[dict[str, str]], jobs: list[list[Any]]) -> tuple[list[str | None], list[Any]]:
        reply = self.process.render(
            {"template": self.template, "context": self.context, "messages": turns, "jobs": jobs}
        )
        if "texts" in reply:
            return reply["texts"], reply["spans"]
        kind, message = reply.get("kind", "died"), str(reply.get("message", ""))
        what = {
            "raised": f"it refused the conversation: {printable(message)}; change the messages",
            "failed": f"it is not safe or not sound: {printable(message)}; use completions, or replace the template",
            "time": f"{message}; stopped; shorten the conversation or replace the template",
            "memory": f"memory: {message}; stopped; shorten the conversation or replace the template",
            "output": f"text: {message}; stopped; shorten the conversation or replace the template",
            "size": f"conversation: {message}; shorten it",
        }.get(kind, f"{message}; replace the template")
        raise RequestError(f"chat {self.name}: {what}", "messages", CODES.get(kind, "chat_template_failed"))

    def derive(self, whole: str, texts: list[str | None], marks: Marks, serving: bool) -> list[tuple[int, int]]:
        """[start, end) of each answer in `whole`, from the renderings up to each head and each end."""
        at = 0
        found: list[tuple[int, int]] = []
        for head, full in zip(texts[::2], texts[1::2], strict=True):
            head, full = head or "", self.without_closing(full or "", marks.eos)
            end = self.end_of_answer(full, len(head))
            if not (at <= len(head) and head and whole.startswith(full) and full.startswith(head) and end is not None):
                if serving:
                    return []
                raise ConfigError(
                    f"chat {self.name}: expected that a conversation begins with the text of its earlier turns and "
                    f"that an answer ends with a control token, and answer {len(found) + 1} does not; to tune "
                    "with this template mark the answers in it with {% generation %} and {% endgeneration %}"
                )
            found.append((len(head), end))
            at = end
        return found

    def without_closing(self, text: str, eos: str) -> str:
        """Some templates close every text with EOS, after the end of the last turn."""
        bare = text.removesuffix(eos) if eos else text
        last = next(reversed(list(self.control.finditer(bare, max(0, len(bare) - 64)))), None)
        ends_turn = last is not None and last[0] in self.ends and not bare[last.end() :].strip()
        return bare if ends_turn else text

    def end_of_answer(self, text: str, start: int) -> int | None:
        """After the last control token of text[start:], if nothing but white space follows it."""
        ends = [match.end() for match in self.control.finditer(text, start)]
        return ends[-1] if ends and not text[ends[-1] :].strip() else None

    def with_end_of_turn(self, text: str, end: int) -> int:
        """`end`, or after the control token that follows there: without it a model never learns to stop."""
        match = self.control.match(text, end)
        last = next(reversed(list(self.control.finditer(text, max(0, end - 64), end))), None)
        closed = last is not None and not text[last.end() : end].strip()
        return end if closed or match is None else match.end()

    def pieces(self, text: str, spans: list[tuple[int, int]], cover: Cover) -> list[Piece]:
        pieces, at = [], 0
        for start, end in [*spans, (len(text), len(text))]:
            for first, last, trained in ((at, start, False), (start, end, True)):
                cut = first
                for match in self.control.finditer(text, first, last):
                    pieces.append(Piece(cover.lift(text[cut : match.start()]), literal=False, trained=trained))
                    pieces.append(Piece(match[0], trained=trained))
                    cut = match.end()
                pieces.append(Piece(cover.lift(text[cut:last]), literal=False, trained=trained))
            at = end
        return pieces

    def end_of_turn(self) -> str | None:
        """The control token that ends an answer; None if a short conversation doesn't show it. Raises nothing."""
        talk = (Message("user", "a"), Message("assistant", "b"))
        try:
            pieces = self.lay_out(talk, Marks(self.context["bos_token"], self.context["eos_token"]), False)
        except (RequestError, ConfigError):
            return None
        ends = [piece.text for piece in pieces if piece.literal and piece.trained]
        return ends[-1] if ends else None


def turns_of(messages: Sequence[Message], cover: Cover) -> list[dict[str, str]]:
    """The messages as a template gets them."""
    return [
        {"role": message.role, "content": content} for message, content in zip(messages, cover.contents, strict=True)
    ]


@dataclass(frozen=True)
class Cover:
    """Messages as a template may see them, and the way back."""

    contents: list[str]
    covered: dict[int, str]

    def lift(self, text: str) -> str:
        if not self.covered:
            return text
        if "\\u" in text or "\\U" in text:  # a template may write JSON, or a list as Python does, with escapes
            for code, character in self.covered.items():
                for written in (json.dumps, repr):
                    text = text.replace(written(chr(code))[1:-1], written(character)[1:-1])
        return text.translate(self.covered)


class SpelledTokens:
    """Finds the control tokens that a text spells, whole or cut off at its ends."""

    def __init__(self, spellings: tuple[str, ...]):
        self.anywhere = re.compile(
            f"(?=(?:{'|'.join(map(re.escape, spellings))}))." if spellings else "(?!)", re.DOTALL
        )
        ends = {character for token in spellings for character in (token[0], token[-1])}
        self.ends = ends | {other for one in ends for other in (*one.lower(), *one.upper())}
        self.heads = {token[:n] for token in spellings for n in range(1, len(token))}
        self.tails = {token[n:] for token in spellings for n in range(1, len(token))}
        self.longest = max((len(token) for token in spellings), default=1)

    def holds_ends(self, content: str) -> bool:
        return not self.ends.isdisjoint(content)

    def cover(self, contents: Sequence[str], ends: bool = False) -> Cover:
        """With `ends`, also each character with which a control token begins or ends, in either case, is covered.
        Raises RequestError if the messages use every private character there is."""
        used = set("".join(contents))
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
        covers: dict[str, str] = {}

        def cover_of(character: str) -> str:
            if character not in covers:
                chosen = next(free, None)
                if chosen is None:
                    raise RequestError("messages: expected text, got every private character of Unicode", "messages")
                covers[character] = chosen
            return covers[character]

        found = [self.cover_one(content, cover_of, ends) for content in contents]
        return Cover(found, {ord(cover): character for character, cover in covers.items()})

    def cover_one(self, content: str, cover_of: Any, ends: bool) -> str:
        places = {match.start() for match in self.anywhere.finditer(content)}
        places |= {at for at, character in enumerate(content) if character in self.ends} if ends else set()
        places |= (
            {at for at, character in enumerate(content) if character in NOT_TEXT} if not content.isascii() else set()
        )
        end = len(content.rstrip())
        start = len(content) - len(content.lstrip())
        for length in range(1, min(self.longest, end - start + 1)):
            if content[end - length : end] in self.heads:
                places.add(end - length)
            if content[start : start + length] in self.tails:
                places.add(start)
        if not places:
            return content
        characters = list(content)
        for place in places:
            characters[place] = cover_of(characters[place])
        return "".join(characters)


def special_values(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a template may read besides the messages, as transformers gives it: the special tokens' texts."""
    values: dict[str, Any] = {"tools": None, "documents": None, "bos_token": "", "eos_token": ""}
    for role, number in tokenizer.special.items():
        if role in SPELLINGS:
            values[f"{role}_token"] = tokenizer.token_of(number)
    return values


def printable(text: str) -> str:
    """Somebody else's words for an error message: short, on one line."""
    return "".join(c if c.isprintable() else " " for c in text[:200])
