"""Added tokens with flags, frames and configurations of a Hugging Face folder, against `transformers`."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from fledge.text.tokenizer import Tokenizer
from tests.text.samples import small_bpe

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
TEXTS = (
    "hello world", "<x> a", "a<x>b", " a <x> b ", "A <X> b", "don't stop . ok ?", "a  <x>  <x>", "\n<x>\n", "xx<x>yy",
    "h<x", "it 's n't , no !", "", " ", "中文<x>中", "é<x>é", "tail <x>",
)  # fmt: skip
ROLES = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
MORE = {**FLAGS, "content": "<x>"}


def tree(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(json.loads(small_bpe().file.text)), **changes}


def added(**flags: bool) -> dict[str, Any]:
    found = tree()
    found["added_tokens"].append({**MORE, "id": len(small_bpe().file.tokens), **flags})
    return found


def prefixed() -> dict[str, Any]:
    found = tree()
    found["pre_tokenizer"]["add_prefix_space"] = True
    return found


def listed(**flags: bool) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(len(small_bpe().file.tokens)): {**MORE, **flags}}}


def frame(name: str) -> dict[str, Any]:
    bos, eos = small_bpe().bos_id, small_bpe().eos_id
    begin, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<|bos|>", "<|eos|>"))
    a, b = ({"Sequence": {"id": text, "type_id": number}} for number, text in enumerate("AB"))
    named = {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in (("<|bos|>", bos), ("<|eos|>", eos))}
    pair = [begin, a, end, b, {"SpecialToken": {"id": "<|eos|>", "type_id": 1}}]
    ends = {"sep": ["<|eos|>", eos], "cls": ["<|bos|>", bos]}
    return {
        "template": {"type": "TemplateProcessing", "single": [begin, a, end], "pair": pair, "special_tokens": named},
        "roberta": {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False},
        "bert": {"type": "BertProcessing", **ends},
    }[name]


CASES: dict[str, Any] = {
    "plain": lambda: (added(), {}),
    "lstrip": lambda: (added(lstrip=True), {}),
    "rstrip": lambda: (added(rstrip=True), {}),
    "both": lambda: (added(lstrip=True, rstrip=True), {}),
    "single word": lambda: (added(single_word=True), {}),
    "normalized": lambda: ({**added(normalized=True), "normalizer": {"type": "Lowercase"}}, {}),
    "not normalized": lambda: ({**added(), "normalizer": {"type": "Lowercase"}}, {}),
    "prefix space": lambda: (prefixed(), {}),
    "prefix space of the configuration": lambda: (tree(), {"add_prefix_space": True}),
    "BOS added": lambda: (tree(), {"add_bos_token": True, **ROLES}),
    "BOS and EOS added": lambda: (tree(), {"add_bos_token": True, "add_eos_token": True, **ROLES}),
    "listed beside": lambda: (tree(), listed()),
    "special beside": lambda: (tree(), listed(special=True)),
    "text here, special beside": lambda: (added(), listed(special=True)),
    "template": lambda: (tree(post_processor=frame("template")), {}),
    "roberta": lambda: (tree(post_processor=frame("roberta")), {}),
    "bert": lambda: (tree(post_processor=frame("bert")), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_gives_the_ids_of_transformers(case, tmp_path):
    from transformers import AutoTokenizer

    whole, config = CASES[case]()
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}), encoding="utf-8"
    )
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        if "added" not in case:  # who adds BOS without a post-processor is the chat renderer, or the prompt
            assert list(ours.frame(ids).ids) == theirs.encode(text, split_special_tokens=True)
        if text:
            pair = theirs(text, text, split_special_tokens=True, return_token_type_ids=True)
            framed = ours.frame(ids, ids)
            assert list(framed.ids) == pair["input_ids"]
            assert case != "template" or list(framed.type_ids) == pair["token_type_ids"]


def test_what_the_configuration_calls_special_is_no_text(tmp_path):
    """The control: without it the same file takes it for text."""
    whole, config = CASES["text here, special beside"]()
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    number = len(small_bpe().file.tokens)
    assert number in Tokenizer.load(tmp_path).encode("a<x>b")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert number not in Tokenizer.load(tmp_path).encode("a<x>b") and Tokenizer.load(tmp_path).is_special(number)
