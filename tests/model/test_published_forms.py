"""Folders as others publish them: keys by their other names, files of another class, stop ids in a second file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fledge.batch import OneDocument, one_document
from fledge.engine.core import Engine
from fledge.errors import CheckpointError, ConfigError
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.export_config import ExportConfig
from fledge.model.folder import config_json, load_model, parse_config, save_model
from fledge.model.gguf_export import export
from fledge.model.sentence import SentenceConfig, SentenceModel, load_sentence_model, save_sentence_model
from fledge.model.start import start_id
from fledge.text.tokenizer import Tokenizer, byte_level
from tests.data.corrupted import wordpiece
from tests.parity.cases import NAMES, config_of, raw_config


def change(folder: Path, name: str = "config.json", **keys: object) -> None:
    path = folder / name
    raw = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def published(model: transformers.PreTrainedModel, folder: Path, seed: int = 7) -> Path:
    """A folder of a model whose every parameter is random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    return folder


def small_llama(folder: Path, **more: object) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(**{"vocab_size": 300, "max_position_embeddings": 64, **sizes, **more})
    return published(transformers.LlamaForCausalLM(config), folder)


@pytest.mark.parametrize("name", NAMES)
def test_other_names_of_keys_are_taken_as_transformers_takes_them(name):
    raw, known = raw_config(name), type(config_of(name)).attribute_map
    expected = parse_config(raw)[1]
    for other, own in known.items():
        if own in raw:
            renamed = {key: value for key, value in raw.items() if key != own} | {other: raw[own]}
            assert parse_config(renamed)[1] == expected, (other, own)


def test_two_names_of_a_key_that_contradict_are_refused():
    with pytest.raises(ConfigError, match="n_head and num_attention_heads: expected one value"):
        parse_config({**raw_config("gpt2"), "num_attention_heads": 12})


@pytest.mark.parametrize(("theirs", "ours"), [("gelu_fast", "gelu_pytorch_tanh"), ("swish", "silu")])
def test_activations_by_their_other_names_compute_the_same(tmp_path, theirs, ours):
    folder, ids = small_llama(tmp_path, hidden_act=theirs), torch.arange(24)[None]
    reference = transformers.LlamaForCausalLM.from_pretrained(folder)(ids).logits
    model = load_model(folder)
    torch.testing.assert_close(model(one_document(ids), OneDocument()), reference, atol=1e-4, rtol=1e-5)
    assert config_json(model.config, torch.float32)["hidden_act"] == ours


def test_split_computation_of_early_llamas_is_no_other_model():
    raw = raw_config("llama")
    assert parse_config({**raw, "pretraining_tp": 2})[1] == parse_config(raw)[1]


def test_a_class_by_its_old_name_is_that_class():
    raw = raw_config("t5")
    assert parse_config({**raw, "architectures": ["T5WithLMHeadModel"]})[1] == parse_config(raw)[1]


def test_labels_of_a_model_without_them_are_not_read():
    raw = {**raw_config("bert"), "id2label": {"0": 0, "1": 1}}
    assert parse_config({**raw, "architectures": ["BertForMaskedLM"]})
    with pytest.raises(ConfigError, match="id2label"):
        parse_config({**raw, "architectures": ["BertForSequenceClassification"]})


def test_debertas_table_of_positions_that_nothing_reads_is_left_out(tmp_path):
    config = transformers.DebertaConfig(
        vocab_size=101, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, type_vocab_size=0, relative_attention=True, pos_att_type=["c2p", "p2c"],
        position_biased_input=False,
    )  # fmt: skip
    folder = published(transformers.DebertaForMaskedLM(config), tmp_path)
    state = load_file(folder / "model.safetensors")
    state["deberta.embeddings.position_embeddings.weight"] = torch.randn(64, 16)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert load_model(folder).config.decoder is None
    state["deberta.embeddings.other.weight"] = torch.randn(64, 16)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected tensor .*other"):
        load_model(folder)


def test_an_output_that_a_bare_model_does_not_read_may_differ_from_the_embedding(tmp_path):
    config = transformers.BertConfig(
        vocab_size=101, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    folder = published(transformers.BertForMaskedLM(config), tmp_path)
    state = load_file(folder / "model.safetensors")
    state["cls.predictions.decoder.weight"] = torch.randn(101, 16)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    change(folder, architectures=["BertModel"])
    assert not load_model(folder).config.lm


def sentences_of(folder: Path, class_name: str) -> Path:
    """A folder of sentence-transformers with a bare model whose config.json names a class with an output."""
    config = transformers.BertConfig(
        vocab_size=wordpiece().vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    published(transformers.BertModel(config), folder / "whole")
    bare = load_model(folder / "whole")
    save_sentence_model(SentenceModel(bare, wordpiece(), SentenceConfig(similarity="dot")), folder / "sentences")
    change(folder / "sentences", architectures=[class_name])
    return folder / "sentences"


def test_sentence_models_open_whatever_class_their_config_names(tmp_path):
    folder = sentences_of(tmp_path, "BertForMaskedLM")
    texts = ["a little test", "another"]
    found = load_sentence_model(folder).encode(texts)
    change(folder, architectures=["BertModel"])
    assert torch.equal(found, load_sentence_model(folder).encode(texts))
    change(folder, architectures=["BertForMaskedLM"])
    with pytest.raises(CheckpointError, match="missing"):
        load_model(folder)  # logits may be asked of it


def test_how_vectors_are_compared_is_kept(tmp_path):
    folder = sentences_of(tmp_path, "BertModel")
    save_sentence_model(load_sentence_model(folder), tmp_path / "again")
    assert json.loads((tmp_path / "again/config_sentence_transformers.json").read_text())["similarity_fn_name"] == "dot"


def test_a_model_in_a_folder_of_a_hub_cache_is_read_through_its_links(tmp_path):
    blobs, inside = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/0123/0_Transformer"
    blobs.mkdir(parents=True)
    small_llama(tmp_path / "plain")
    inside.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        path.rename(blobs / str(number))
        os.symlink(f"../../../blobs/{number}", inside / path.name)
    assert load_model(inside).config.family == "llama"
    elsewhere = tmp_path / "elsewhere.safetensors"
    (inside / "model.safetensors").resolve().rename(elsewhere)
    (inside / "model.safetensors").unlink()
    os.symlink(elsewhere, inside / "model.safetensors")
    with pytest.raises(CheckpointError, match="a link out of the folder"):
        load_model(inside)


def instruct(folder: Path) -> Path:
    """A model with three ids that end an answer, told in generation_config.json, and its tokenizer."""
    small_llama(folder, bos_token_id=256, eos_token_id=[257, 258, 259])
    change(folder, "generation_config.json", do_sample=True, temperature=0.6, eos_token_id=[257, 258, 259])
    byte_level(("<|bos|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")).save(folder)
    change(folder, "tokenizer_config.json", bos_token="<|bos|>", eos_token="<|eot_id|>")
    return folder


def test_what_ends_an_answer_and_how_to_sample_outlives_convert_and_save(tmp_path):
    folder = instruct(tmp_path / "source")
    convert(ConvertConfig(str(folder), str(tmp_path / "target")))
    save_model(load_model(tmp_path / "target"), tmp_path / "again")
    for name in ("target", "again"):
        found = transformers.GenerationConfig.from_pretrained(tmp_path / name)
        assert (found.eos_token_id, found.temperature, found.do_sample) == ([257, 258, 259], 0.6, True)
    save_model(load_model(tmp_path / "target"), tmp_path / "with", Tokenizer.load(folder))
    assert json.loads((tmp_path / "with/generation_config.json").read_text())["eos_token_id"] == [257, 258, 259]


def test_the_engine_stops_at_each_of_them_after_convert(tmp_path):
    from fledge.engine.load import load_engine

    convert(ConvertConfig(str(instruct(tmp_path / "source")), str(tmp_path / "target")))
    engine = load_engine(str(tmp_path / "target"))
    assert isinstance(engine, Engine) and {257, 258, 259} <= engine.stop_ids


@pytest.mark.parametrize("second_file", [True, False])
def test_several_ids_that_end_an_answer_may_stand_in_config_json_alone(second_file, tmp_path):
    folder = instruct(tmp_path / "source")
    if second_file:
        change(folder, "generation_config.json", eos_token_id=258)
    else:
        (folder / "generation_config.json").unlink()
    save_model(load_model(folder), tmp_path / "again")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "again").eos_token_id == [257, 258, 259]


def test_a_folder_from_before_there_was_a_second_file_keeps_what_it_says_of_generating(tmp_path):
    config = transformers.BartConfig(
        vocab_size=101, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    folder = published(transformers.BartForConditionalGeneration(config), tmp_path)
    said = {"forced_bos_token_id": 0, "num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "min_length": 5}
    change(folder, **said)
    (folder / "generation_config.json").unlink()
    theirs = transformers.BartForConditionalGeneration.from_pretrained(folder).generation_config
    save_model(load_model(folder), tmp_path / "again")
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    for key, value in said.items():
        assert getattr(again, key) == getattr(theirs, key) == value, key


def test_the_id_that_a_decoder_begins_with_may_stand_in_the_second_file(tmp_path):
    config = transformers.T5Config(
        vocab_size=101, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    folder = published(transformers.T5ForConditionalGeneration(config), tmp_path)
    change(folder, decoder_start_token_id=None)
    change(folder, "generation_config.json", decoder_start_token_id=7)
    assert start_id(load_model(folder).config) == 7
    change(folder, decoder_start_token_id=3)
    assert start_id(load_model(folder).config) == 3  # config.json's own comes first


def test_control_tokens_beyond_the_last_row_are_warned_of(tmp_path, capsys):
    folder = small_llama(tmp_path / "source", vocab_size=259)
    tokenizer = byte_level(("<bos>", "<eos>", "<pad>", "<image>"))
    tokenizer.save(folder)
    convert(ConvertConfig(str(folder), str(tmp_path / "target")))
    assert "none for the control tokens '<image>'" in capsys.readouterr().err
    assert Tokenizer.load(tmp_path / "target").vocab_size == 260
    change(tmp_path / "target", "tokenizer_config.json", eos_token="<eos>")
    export(ExportConfig(str(tmp_path / "target"), tmp_path / "one.gguf"))
    assert Tokenizer.load(tmp_path / "one.gguf").vocab_size == 259
    small_llama(tmp_path / "smaller", vocab_size=200)
    tokenizer.save(tmp_path / "smaller")
    with pytest.raises(ConfigError, match="at most the model's 200 entries"):
        convert(ConvertConfig(str(tmp_path / "smaller"), str(tmp_path / "other")))


def test_a_tokenizer_of_an_older_form_is_converted_too(tmp_path):
    folder, tokenizer = small_llama(tmp_path / "source"), byte_level(("<|endoftext|>",))
    (folder / "vocab.json").write_text(json.dumps(tokenizer.ids_by_token))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    convert(ConvertConfig(str(folder), str(tmp_path / "target")))
    text = "Ünïcode, 1,024 times"
    assert Tokenizer.load(tmp_path / "target").encode(text) == Tokenizer.load(folder).encode(text)
