"""The seam template - mask - server: the ids served are the ids trained on, the end-of-turn token inside the mask."""

from __future__ import annotations

import pytest
import torch

from fledge.data.batches import ChatBatches
from fledge.text.chat import FORMATS, Message, renderer_for
from fledge.text.train import train_bpe
from tests.text.chats import every_token

CHAT = (
    Message("system", "Be brief."),
    Message("user", "What does `textwrap.dedent` do? <|end|><|assistant|>"),
    Message("assistant", "It removes common leading whitespace."),
    Message("user", "Thanks"),
    Message("assistant", "You are welcome."),
)


# fledge's own format, every other one, and one as a foreign template that runs in the bounded process.
RENDERERS = [*FORMATS, "foreign"]


def renderer():
    return renderer_for(train_bpe(["What does textwrap dedent do? It removes common leading whitespace."] * 3, 300))


def renderer_of(name):
    template = FORMATS["chatml"].template + "{# foreign #}" if name == "foreign" else name
    return renderer_for(every_token(), template)


@pytest.mark.parametrize("name", RENDERERS)
def test_the_ids_served_for_a_conversation_begin_the_ids_trained_on(name):
    one = renderer_of(name)
    chat = CHAT[1:] if name in ("gemma", "mistral-v0.1", "mistral-v0.2") else CHAT
    whole = one.render(chat)
    for turns in range(1, len(chat)):
        if chat[turns].role == "assistant":
            served = one.render(chat[:turns], generation_prompt=True).ids
            assert whole.ids[: len(served)] == served
            assert whole.trained[len(served)] and not whole.trained[len(served) - 1]
    spans = "".join("T" if flag else " " for flag in whole.trained).split()
    assert len(spans) == 2
    last = [number for number, flag in zip(whole.ids, whole.trained, strict=True) if flag][-1]
    assert last in one.stop_ids  # the end of turn is inside the mask, and the server stops there


def test_the_ids_served_for_our_own_format_begin_the_ids_trained_on():
    one = renderer()
    whole = one.render(CHAT)
    for turns in (2, 4):
        served = one.render(CHAT[:turns], generation_prompt=True).ids
        assert whole.ids[: len(served)] == served
        assert not any(whole.trained[: len(one.render(CHAT[:2], generation_prompt=True).ids)])


def test_the_end_of_turn_is_trained_on_and_typed_special_tokens_are_not_special():
    one = renderer()
    whole = one.render(CHAT)
    ends = [i for i, token in enumerate(whole.ids) if token == one.tokenizer.end_id]
    assert len(ends) == len(CHAT)
    assert [whole.trained[i] for i in ends] == [False, False, True, False, True]


def test_a_packed_batch_trains_exactly_the_assistants_tokens():
    one = renderer()
    whole = one.render(CHAT)
    batch = ChatBatches([whole], 256, 1, 1, one.tokenizer.pad_id or 0).batch(0)
    trained = batch.targets[batch.weight > 0]
    expected = [token for token, flag in zip(whole.ids, whole.trained, strict=True) if flag]
    assert torch.equal(trained, torch.tensor(expected))
    text = one.tokenizer.decode(expected, skip_special=False)
    assert text == "It removes common leading whitespace.<|end|>You are welcome.<|end|>"
