"""Text, ids and conversations by hand: `fledge tokenizer encode`, `decode` and `render`.

What they print is what the rest of the program uses: the ids of `Tokenizer` and of the one `ChatRenderer`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

from fledge.errors import ConfigError, DataError
from fledge.text.chat import Conversation, read_conversations, renderer_for
from fledge.text.config import TokenizerDecodeConfig, TokenizerEncodeConfig, TokenizerRenderConfig
from fledge.text.tokenizer import Tokenizer

STANDARD_INPUT = "-"
MAX_BYTES = 64 << 20
SEPARATORS = re.compile(r"[\s,\[\]]+")
LONGEST_NUMBER = 9  # digits; every id in range has fewer


def encode_text(config: TokenizerEncodeConfig, json: bool = False) -> dict[str, Any]:
    """`fledge tokenizer encode`: the ids of a text, with the bytes that each stands for. Raises ConfigError unless one
    text is given, DataError for one that can't be read."""
    text = given_text(config)
    tokenizer = Tokenizer.load(config.tokenizer)
    ids = tokenizer.encode(text)
    framed = list(tokenizer.frame(ids).ids) if config.frame else ids
    rows = token_rows(tokenizer, framed)
    lossless = tokenizer.decode_bytes(framed) == text.encode()
    if not json:
        print("\n".join(table(rows, ["" for _ in rows])))
        loss = "" if lossless else "; they don't decode to the same text"
        print(f"{len(framed)} tokens of {len(text.encode())} bytes{loss}")
    return {"ids": framed, **columns(rows), "text_bytes": len(text.encode()), "lossless": lossless}


def decode_ids(config: TokenizerDecodeConfig, json: bool = False) -> dict[str, Any]:
    """`fledge tokenizer decode`: the text of ids; bytes that are not UTF-8 become U+FFFD. Raises ConfigError for ids
    that the tokenizer doesn't have."""
    words = given_ids(config)
    tokenizer = Tokenizer.load(config.tokenizer)
    ids = [read_id(word, tokenizer.vocab_size) for word in words]
    data = tokenizer.pieces.join(ids, tokenizer.spelled if config.special else tokenizer.token_bytes)
    text = data.decode("utf-8", "replace")
    if not json:
        print(text)
    return {"text": text, "ids": ids, "bytes": data.hex(), "utf8": text.encode() == data}


def render_conversation(config: TokenizerRenderConfig, json: bool = False) -> dict[str, Any]:
    """`fledge tokenizer render`: a conversation as text and ids, and which of these are trained on. Raises DataError
    for a file without that conversation, and what the renderer raises."""
    tokenizer = Tokenizer.load(config.tokenizer)
    renderer = renderer_for(tokenizer, config.chat.format or None)
    messages = conversation_of(config)
    rendered = renderer.render(messages, generation_prompt=config.prompt)
    text = renderer.text(messages, generation_prompt=config.prompt)
    rows, n_trained = token_rows(tokenizer, rendered.ids), sum(rendered.trained)
    if not json:
        print(f"{text}\n")
        print("\n".join(table(rows, ["trained" if trained else "" for trained in rendered.trained])))
        print(f"{len(rows)} tokens in the format {renderer.name}, {n_trained} of them trained on")
    told = {"format": renderer.name, "text": text, "ids": rendered.ids, "trained": rendered.trained}
    return {**told, **columns(rows), "n_trained": n_trained, "stop_ids": list(renderer.stop_ids)}


# What was given


def given_text(config: TokenizerEncodeConfig) -> str:
    """The text to encode, from the command line, a file or standard input."""
    if (config.text is None) == (config.file is None):
        raise ConfigError("text: expected one of TEXT and --file FILE (- is standard input), got both or neither")
    if config.file is not None:
        return read_text(config.file)
    return read_text(STANDARD_INPUT) if config.text == STANDARD_INPUT else config.text or ""


def given_ids(config: TokenizerDecodeConfig) -> list[str]:
    """The words that stand for ids, from the command line, a file or standard input."""
    if bool(config.ids) == (config.file is not None):
        raise ConfigError("ids: expected one of IDS and --file FILE (- is standard input), got both or neither")
    if config.file is not None:
        written = read_text(config.file)
    else:
        written = read_text(STANDARD_INPUT) if config.ids == (STANDARD_INPUT,) else " ".join(config.ids)
    words = [word for word in SEPARATORS.split(written) if word]
    if not words:
        raise ConfigError("ids: expected at least one id, got none; write them as 1 2 3 or 1,2,3")
    return words


def read_id(word: str, vocab_size: int) -> int:
    """The id that a word stands for. Raises ConfigError."""
    number = int(word) if word.isascii() and word.isdecimal() and len(word) <= LONGEST_NUMBER else vocab_size
    if number >= vocab_size:
        raise ConfigError(f"ids: expected whole numbers of 0..{vocab_size - 1}, got {word!r:.40}; check the tokenizer")
    return number


def read_text(name: str) -> str:
    """The UTF-8 text of a file, or of standard input for `-`. Raises DataError."""
    place = "standard input" if name == STANDARD_INPUT else name
    try:
        if name == STANDARD_INPUT:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DataError(f"{place}: expected at most {MAX_BYTES} bytes, got more; cut it into parts")
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise DataError(f"{place}, byte {error.start}: expected UTF-8, got another byte; convert it") from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{place}: can't be read ({reason}); check the path") from None


def conversation_of(config: TokenizerRenderConfig) -> Conversation:
    """Conversation `row` of the file; for a prompt without the last answer."""
    found = next(islice(read_conversations(config.conversations), config.row - 1, None), None)
    if found is None:
        raise DataError(
            f"{config.conversations}: expected a conversation {config.row}, found fewer; choose another row"
        )
    while config.prompt and found and found[-1].role == "assistant":
        found = found[:-1]
    return found


# What is shown


def token_rows(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[int, str, bytes, bool]]:
    """For each id its token as the vocabulary spells it, its bytes in the decoded text, and whether it is control."""
    rows, starting = [], tokenizer.drops_first_space
    for number in ids:
        data = tokenizer.token_bytes(number)
        if starting:
            data, starting = tokenizer.pieces.at_start(number, data)
        rows.append((number, tokenizer.token_of(number), data, tokenizer.is_special(number)))
    return rows


def columns(rows: Sequence[tuple[int, str, bytes, bool]]) -> dict[str, Any]:
    """The rows as lists: tokens, their bytes in hexadecimal, and where these stand in the decoded text, in bytes."""
    offsets, at = [], 0
    for _, _, data, _ in rows:
        offsets.append([at, at + len(data)])
        at += len(data)
    tokens, found = [token for _, token, _, _ in rows], [data.hex() for _, _, data, _ in rows]
    return {"tokens": tokens, "bytes": found, "offsets": offsets, "special": [special for *_, special in rows]}


def table(rows: Sequence[tuple[int, str, bytes, bool]], notes: Sequence[str]) -> list[str]:
    """A line a token, for people: where its bytes begin, its id, what it decodes to and a note."""
    lines, at = [f"{'byte':>7} {'id':>7}  token"], 0
    for (number, token, data, special), note in zip(rows, notes, strict=True):
        shown = token if special else readable(data)
        lines.append(f"{at:>7} {number:>7}  {shown:<24}  {note}".rstrip())
        at += len(data)
    return lines


def readable(data: bytes) -> str:
    """Bytes in quotes: as text, or in hexadecimal where they are part of a character."""
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)
