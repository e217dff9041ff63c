"""More special tokens: text keeps its ids, the new ones come after, and transformers reads the same."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from fledge.text.extend import extended, sentinels
from fledge.text.tokenizer import Tokenizer, byte_level, characters
from tests.data.corrupted import story, wordpiece

MADE = {"wordpiece": wordpiece, "bytes": byte_level, "characters": lambda: characters(story(1, 20))}


@pytest.mark.parametrize("name", MADE)
def test_text_keeps_its_ids_and_the_new_ones_come_after(name, tmp_path):
    tokenizer = MADE[name]()
    more = extended(tokenizer, ("[MASK]", *sentinels(10)))
    n_new = 10 if name == "wordpiece" else 11
    assert more.vocab_size == tokenizer.vocab_size + n_new
    assert more.encode(story(1, 5)) == tokenizer.encode(story(1, 5))
    assert more.id_of("<extra_id_0>") == more.vocab_size - 1 and more.id_of("<extra_id_9>") == more.vocab_size - 10
    assert more.special["mask"] == more.id_of("[MASK]")
    assert {role: more.special[role] for role in tokenizer.special} == tokenizer.special
    assert more.is_special(more.vocab_size - 1)
    assert more.id_of("<extra_id_3>") not in more.encode("a <extra_id_3> b")  # text is never control
    more.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.digest == more.digest and again.special == more.special
    assert theirs.convert_tokens_to_ids("<extra_id_0>") == more.vocab_size - 1
    assert theirs.mask_token_id == more.special["mask"]


def test_what_is_there_already_stays():
    assert extended(wordpiece(), ("[MASK]", "[CLS]")) is wordpiece()
