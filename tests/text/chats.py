"""A tokenizer with the control tokens of every chat format, conversations, and the oracles that chat tests share."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import tokenizers
from hypothesis import strategies as st

from fledge.errors import RequestError
from fledge.text.chat import ChatRenderer, Message
from fledge.text.special_tokens import SPECIAL_TOKENS, special_entries
from fledge.text.tokenizer import Tokenizer, from_text
from tests.text.samples import small_bpe

CONTROL = (
    "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>",
    "<start_of_turn>", "<end_of_turn>", *SPECIAL_TOKENS,
)  # fmt: skip
SPELLED = st.sampled_from([*CONTROL, "<", "|>", "<|", "<|im_", "end|>", "hi", " ", "\n", "🎉", "[INST]", "{{ 1 }}"])


@functools.cache
def every_token() -> Tokenizer:
    """A small BPE with all formats' control tokens in the place of ours; BOS is <s>, EOS is </s>.

    Its split pattern is that of Llama 3 and Qwen: a head that ends with newlines is cut there anyway.
    """
    tree = json.loads(small_bpe("llama3").file.text)
    tree["added_tokens"] = special_entries(CONTROL, small_bpe("llama3").vocab_size - len(SPECIAL_TOKENS))
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return from_text(json.dumps(tree), config)


@functools.cache
def library() -> tokenizers.Tokenizer:
    """The same file in the library alone: special tokens in a text are read."""
    return tokenizers.Tokenizer.from_str(every_token().file.text)


def transformers_text(template: str, messages: Any, generation_prompt: bool) -> str | None:
    """What transformers renders; None if the template refuses."""
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        texts, _ = render_jinja_template(
            [turns],
            chat_template=template,
            add_generation_prompt=generation_prompt,
            bos_token="<s>",
            eos_token="</s>",
        )
    except Exception as error:
        assert "expected" in str(error), error
        return None
    return texts[0]


def text_of(renderer: ChatRenderer, messages: Any, generation_prompt: bool) -> str | None:
    try:
        return renderer.text(messages, generation_prompt)
    except RequestError:
        return None


def published() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "published_chats.json").read_text(encoding="utf-8"))


words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Co")), max_size=12)
contents = st.one_of(words, st.lists(st.sampled_from(["a", "é", " ", "\n", "<", "x y"]), max_size=6).map("".join))
anything = st.lists(st.one_of(SPELLED, words), max_size=5).map("".join)


def talks(content: st.SearchStrategy[str], answers: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Any]:
    """Conversations in which user and assistant take turns, with or without a system message."""
    pair = st.tuples(content, content if answers is None else answers)

    @st.composite
    def draw(choose: Any) -> tuple[Message, ...]:
        pairs = choose(st.lists(pair, min_size=1, max_size=3))
        turns = [Message(role, text) for both in pairs for role, text in zip(("user", "assistant"), both, strict=True)]
        return tuple(turns[: len(turns) - choose(st.booleans())])

    return draw()


def with_system(content: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.tuples(content, talks(content)).map(lambda both: (Message("system", both[0]), *both[1]))
