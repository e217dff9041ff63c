"""`chat.format`: chosen by name, a format goes from the tokenizer through tuning into the served template."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from fledge import config
from fledge.errors import ConfigError
from fledge.recipes.config import PretrainConfig, SftConfig
from fledge.recipes.pretrain import pretrain
from fledge.recipes.sft import sft
from fledge.text.chat import FORMATS, Message, renderer_for, with_format
from fledge.text.config import ChatFormatName, TokenizerConvertConfig, TokenizerTrainConfig
from fledge.text.export import convert_tokenizer
from fledge.text.tokenizer import Tokenizer
from fledge.text.train import train_tokenizer
from tests.serve.running import running
from tests.text.samples import small_bpe, source_text

TRAIN = {"train.steps": 60, "train.rows": 4, "train.row_tokens": 48, "train.learning_rate": 0.01, "train.threads": 1}


def test_the_key_names_every_format():
    assert set(get_args(ChatFormatName)) - {""} == set(FORMATS)
    with pytest.raises(ConfigError, match="chat.format"):
        config.load(SftConfig, None, {"chat.format": "llama-9"})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(source_text()[:20_000], encoding="utf-8")
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(30)
    ]
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def base_model(text, folder, *, chosen: str):
    """A trained tokenizer and a tiny model on it."""
    changes = {"text": text / "a.txt", "out": folder / "tokenizer", "vocab_size": 400, "chat.format": chosen}
    train_tokenizer(config.load(TokenizerTrainConfig, None, changes), json=True)
    shape = {"model.width": 32, "model.layers": 1, "model.heads": 2, "model.context_tokens": 320}
    data = {"data.path": str(text / "a.txt"), "data.tokenizer": str(folder / "tokenizer")}
    pretrain(
        config.load(PretrainConfig, None, {**shape, **data, **TRAIN, "train.steps": 2, "run.dir": str(folder / "base")})
    )
    return folder / "base"


def tuned(text, folder, base, chosen: str):
    changes = {"model.path": str(base), "data.path": str(text / "talk.jsonl"), "run.dir": str(folder / "chat"), **TRAIN}
    sft(config.load(SftConfig, None, {**changes, "chat.format": chosen}))
    return folder / "chat"


@pytest.mark.parametrize("chosen", ["llama-3", pytest.param("llama-2", marks=pytest.mark.slow)])
def test_trained_tuned_and_served_in_the_chosen_format(chosen, text, tmp_path):
    from transformers import AutoTokenizer

    base = base_model(text, tmp_path, chosen="llama-3" if chosen == "llama-3" else "")
    run = tuned(text, tmp_path, base, chosen)
    assert (run / "model" / "chat_template.jinja").read_text(encoding="utf-8") == FORMATS[chosen].template
    renderer = renderer_for(Tokenizer.load(run / "model"))
    assert renderer.name == chosen and not renderer.in_child
    ids = renderer.render((Message("user", "Say 7"),), generation_prompt=True).ids
    theirs = AutoTokenizer.from_pretrained(run / "model").apply_chat_template(
        [{"role": "user", "content": "Say 7"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == theirs
    generation = json.loads((run / "model" / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == set(renderer.stop_ids)
    with running(str(run)) as server:
        answer = server.chat(messages=[{"role": "user", "content": "Say 7"}], temperature=0, max_tokens=8).json()
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["choices"][0]["message"]["content"].strip() == "yes"
    assert answer["choices"][0]["finish_reason"] == "stop"  # it learnt the format's own end of turn


def test_a_format_without_its_tokens_is_refused_before_training(text, tmp_path):
    base = base_model(text, tmp_path, chosen="")
    with pytest.raises(ConfigError, match=r"llama-3: expected a tokenizer with .*eot_id.* train chat.format=llama-3"):
        tuned(text, tmp_path, base, "llama-3")
    assert not (tmp_path / "chat").exists()


def test_a_trained_tokenizer_has_the_tokens_of_the_format_and_no_others(text, tmp_path):
    def trained(**changes):
        chosen = {"text": text / "a.txt", "out": tmp_path / "out", "vocab_size": 400, **changes}
        return train_tokenizer(config.load(TokenizerTrainConfig, None, chosen), json=True)

    trained(**{"chat.format": "gemma"})
    tokenizer = Tokenizer.load(tmp_path / "out")
    added = {entry["content"] for entry in tokenizer.file.added.values()}
    assert (
        added == {"<|bos|>", "<|eos|>", "<|pad|>", "<start_of_turn>", "<end_of_turn>"} and tokenizer.vocab_size == 400
    )
    assert renderer_for(tokenizer).name == "gemma"
    assert trained(**{"chat.format": "gemma"})["reused"] is True
    assert trained()["reused"] is False  # and the template of before is gone
    assert renderer_for(Tokenizer.load(tmp_path / "out")).name == "fledge"
    with pytest.raises(ConfigError, match="special_tokens: expected true for a chat.format"):
        trained(**{"chat.format": "gemma", "special_tokens": False})


def test_convert_writes_the_chosen_template(tmp_path):
    small_bpe().save(tmp_path / "one")
    convert_tokenizer(
        config.load(
            TokenizerConvertConfig,
            None,
            {"tokenizer": tmp_path / "one", "out": tmp_path / "two", "chat.format": "alpaca"},
        ),
        json=True,
    )
    assert renderer_for(Tokenizer.load(tmp_path / "two")).name == "alpaca"
    assert renderer_for(with_format(Tokenizer.load(tmp_path / "two"), "")).name == "alpaca"
