"""Tokens that an older Hugging Face folder lists in added_tokens.json, against `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.errors import TokenizerError
from fledge.text.config import TokenizerConvertConfig
from fledge.text.export import convert_tokenizer
from fledge.text.learners import train_wordpiece
from fledge.text.tokenizer import Tokenizer
from fledge.text.train import train_bpe
from tests.text.samples import random_texts, source_text

TEXTS = [
    *random_texts(150, seed=60),
    *("the new_word here", "thenew_wordhere", "a <think> b</think>c", "<|tool|>x", " <|tool|> ", "NEW_WORD Zoë zoë"),
    *("new_word" * 3, "Zoë's <|tool|>", ""),
]
WORDS = ("new_word", "<|tool|>", "Zoë", "<think>")
SPECIAL = "<|tool|>"


def old_folder(path: Path, form: str, lowercase: bool = False) -> int:
    """vocab.json with merges.txt, or vocab.txt, and beside it WORDS in added_tokens.json; gives the first of their
    ids."""
    if form == "gpt2":
        made = train_bpe([source_text()], 600, special=("<|endoftext|>",))
    else:
        made = train_wordpiece([source_text()], 600, lowercase)
    made.save(path / "made")
    convert_tokenizer(TokenizerConvertConfig(path / "made", path / "old", form), json=True)
    config = json.loads((path / "old" / "tokenizer_config.json").read_text())
    name = {"gpt2": "GPT2Tokenizer", "bert": "BertTokenizer"}[form]
    kept = {key: config[key] for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars") if key in config}
    (path / "old" / "tokenizer_config.json").write_text(json.dumps({**kept, "tokenizer_class": name}))
    (path / "old" / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": [SPECIAL]}))
    listed = {word: made.vocab_size + place for place, word in enumerate(WORDS)}
    (path / "old" / "added_tokens.json").write_text(json.dumps(listed))
    (path / "old" / "config.json").write_text(json.dumps({"model_type": form}))
    return made.vocab_size


@pytest.mark.parametrize(("form", "lowercase"), [("gpt2", False), ("bert", False), ("bert", True)])
def test_added_tokens_of_an_old_folder_are_those_of_transformers(form, lowercase, tmp_path):
    from transformers import AutoTokenizer

    first = old_folder(tmp_path, form, lowercase)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "old")
    ours = Tokenizer.load(tmp_path / "old")
    assert ours.vocab_size == len(theirs) == first + len(WORDS)
    assert [ours.id_of(word) for word in WORDS] == theirs.convert_tokens_to_ids(list(WORDS))
    assert ours.is_special(first + 1) and not ours.is_special(first)
    for text in TEXTS:
        assert ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False), text
    assert first in ours.encode("the new_word here") and first + 1 not in ours.encode("<|tool|>")
    (tmp_path / "old" / "added_tokens.json").unlink()
    assert first not in Tokenizer.load(tmp_path / "old").encode("the new_word here"), "the control"


def test_the_folder_that_we_write_of_it_gives_the_same_ids(tmp_path):
    from transformers import AutoTokenizer

    old_folder(tmp_path, "gpt2")
    ours = Tokenizer.load(tmp_path / "old")
    ours.save(tmp_path / "new")
    theirs, again = AutoTokenizer.from_pretrained(tmp_path / "new"), Tokenizer.load(tmp_path / "new")
    for text in TEXTS:
        ids = ours.encode(text, parse_special=True)
        assert again.encode(text, parse_special=True) == ids == theirs.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[1]", "expected a JSON object"),
        ('{"x": -1}', "token 'x': expected an id of 0 or more"),
        ('{"x": "7"}', "token 'x': expected an id of 0 or more"),
        ('{"x": true}', "token 'x': expected an id of 0 or more"),
        ('{"new": 99999999}', "expected an id below"),
        ('{"x": 1, "x": 2}', "'x' twice"),
    ],
)
def test_a_damaged_list_is_refused_by_name(written, message, tmp_path):
    old_folder(tmp_path, "gpt2")
    Tokenizer.load(tmp_path / "old")  # the control
    (tmp_path / "old" / "added_tokens.json").write_text(written)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path / "old")
