"""Chunks made of prepared parts are, to the byte, those of the plain way: the whole object by json.dumps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fledge.serve.chunks import ChunkFrames
from fledge.serve.replies import ReplyHead, Usage, chat_delta, text_choice

TEXTS = ["a", "", '"', '""', '","choices":[', "\\", "\n\r\t\x00\x7f\u2028", "é漢🦔", '"choices":[]', "x" * 5000]
HEADS = {
    "chat": ReplyHead.chat('m"choices":[]"', "f"),
    "completion": ReplyHead.completion("m", 'f"","text":""'),
}


def plain(head: ReplyHead, choice: dict[str, Any], with_usage: bool) -> bytes:
    tree = json.dumps(head.chunk([choice], with_usage), ensure_ascii=False, separators=(",", ":"))
    return f"data: {tree}\n\n".encode()


def choice_of(kind: str, index: int, text: str) -> dict[str, Any]:
    return chat_delta(index, {"content": text}) if kind == "chat" else text_choice(index, text, None, None)


@pytest.mark.parametrize("with_usage", [True, False])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_piece_of_text_is_the_same_bytes(kind: str, with_usage: bool) -> None:
    head = HEADS[kind]
    frames = ChunkFrames(head.chunk([], with_usage))
    for index in (0, 3):
        texts = frames.texts(choice_of(kind, index, ""))
        for text in TEXTS:
            expected = plain(head, choice_of(kind, index, text), with_usage)
            assert texts.of(text) == frames.of(choice_of(kind, index, text)) == expected


def test_another_choice_or_reply_differs() -> None:
    """The control."""
    frames = ChunkFrames(HEADS["chat"].chunk([], False))
    right = plain(HEADS["chat"], choice_of("chat", 0, "a"), False)
    assert frames.texts(choice_of("chat", 1, "")).of("a") != right
    assert ChunkFrames(HEADS["chat"].chunk([], True)).of(choice_of("chat", 0, "a")) != right
    assert HEADS["chat"].chunk([], True, Usage(1, 2)) != HEADS["chat"].chunk([], True)


def test_half_a_character_is_refused_as_ever() -> None:
    with pytest.raises(UnicodeEncodeError):
        ChunkFrames(HEADS["chat"].chunk([], False)).texts(choice_of("chat", 0, "")).of("\ud83d")
