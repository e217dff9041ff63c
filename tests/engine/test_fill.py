"""`fledge fill` against transformers' fill-mask pipeline on tiny random encoders."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from fledge.cli.main import main
from fledge.engine import fill as module
from fledge.engine.fill import fill_texts
from fledge.errors import ConfigError
from fledge.model.folder import load_model
from fledge.text.tokenizer import Tokenizer
from tests.data.corrupted import wordpiece
from tests.parity.reference import randomised

TEXTS = ["the old [MASK] went home", "[MASK]", "a [MASK] and a [MASK] said: it is [MASK] ."]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
MODELS = {
    "bert": lambda n: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=n, **SIZES)),
    "distilbert": lambda n: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(
            vocab_size=n, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
        )
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = wordpiece()
    torch.manual_seed(3)
    randomised(MODELS[request.param](tokenizer.vocab_size), 0.3).eval().save_pretrained(path)
    tokenizer.save(path)
    return path


def reference(folder, text: str, top_k: int) -> list[list[tuple[int, float, str]]]:
    """The pipeline's guesses of each mask: id, probability, text."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    found = transformers.pipeline("fill-mask", model=model, tokenizer=theirs)(text, top_k=top_k)
    found = found if isinstance(found[0], list) else [found]
    return [[(one["token"], one["score"], one["token_str"]) for one in mask] for mask in found]


def test_guesses_are_those_of_the_pipeline_alone_and_in_company(folder, monkeypatch):
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    expected = [reference(folder, text, 4) for text in TEXTS]
    for size in (1, 4096):  # one by one, and padded together
        monkeypatch.setattr(module, "BATCH_TOKENS", size)
        found = fill_texts(model, tokenizer, TEXTS, 4)
        for one, masks in zip(found, expected, strict=True):
            assert [[guess.token_id for guess in mask] for mask in one.masks] == [[id for id, _, _ in m] for m in masks]
            for mask, their in zip(one.masks, masks, strict=True):
                assert [guess.probability for guess in mask] == pytest.approx([p for _, p, _ in their], rel=1e-4)
                assert [guess.token_str for guess in mask] == [text for _, _, text in their]
                assert [tokenizer.token_of(guess.token_id) for guess in mask] == [guess.token for guess in mask]
    # the control: another sentence around the mask gives other guesses
    other = fill_texts(model, tokenizer, ["it is [MASK] home old"], 4)[0].masks[0]
    assert [guess.probability for guess in other] != pytest.approx([p for _, p, _ in expected[0][0]], rel=1e-4)


def test_the_verb_fills_texts_and_files(folder, tmp_path, capfd):
    assert main(["fill", str(folder), TEXTS[2], "--top-k", "3", "--json"]) == 0
    (text,) = json.loads(capfd.readouterr().out.splitlines()[-1])["texts"]
    assert [len(mask) for mask in text["masks"]] == [3, 3, 3] and "[MASK]" not in text["filled"]
    assert main(["fill", str(folder), TEXTS[0]]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert len(shown) == 2 and shown[1].count("%") == 5
    lines = tmp_path / "texts"
    lines.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    assert main(["fill", str(folder), "--file", str(lines), "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["texts"]) == 3


def test_a_text_ends_at_the_end_of_its_line_alone_and_a_wrong_one_is_named_by_it(folder, tmp_path, capfd):
    lines, given = tmp_path / "texts", [f"the old{mark}[MASK] went home" for mark in "\f\v\x1c\x85\u2028\r"]
    lines.write_bytes("\r\n".join([*given, "", "no mask here"]).encode())
    assert main(["fill", str(folder), "--file", str(lines)]) == 2
    assert f"{lines}, line 8: expected [MASK] in it, found none in 'no mask here'" in capfd.readouterr().err
    lines.write_bytes("\r\n".join(given).encode())
    assert main(["fill", str(folder), "--file", str(lines), "--json"]) == 0
    assert [one["text"] for one in json.loads(capfd.readouterr().out)["texts"]] == given


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no mask here"], r"expected [MASK] in it, found none in 'no mask here'"),
        (["[MASK] " * 60], "expected at most 40 tokens, got 62"),
        ([], "expected one of a text and --file"),
        (["[MASK]", "--file", "-"], "expected one of a text and --file"),
        (["[MASK]", "--top-k", "0"], "top_k: expected 1 to 1000, got 0"),
        (["--file", "/nowhere"], "/nowhere: can't be read"),
    ],
)
def test_what_can_not_be_filled_is_an_error(folder, words, says, capfd):
    assert main(["fill", str(folder), *words]) != 0
    assert says in capfd.readouterr().err


def test_a_model_that_fills_no_masks_is_refused(tmp_path):
    tokenizer = wordpiece()
    for cls, says in ((transformers.BertModel, "bert, without one"), (transformers.GPT2LMHeadModel, "has a decoder")):
        if cls is transformers.BertModel:
            config = transformers.BertConfig(vocab_size=tokenizer.vocab_size, **SIZES)
        else:
            config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=32, n_layer=1, n_head=4)
        cls(config).save_pretrained(tmp_path / cls.__name__)
        with pytest.raises(ConfigError, match=says):
            fill_texts(load_model(tmp_path / cls.__name__), tokenizer, ["[MASK]"])
