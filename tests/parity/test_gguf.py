"""GGUF weights against the `gguf` package (blocks, files) and transformers (logits)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from fledge.batch import OneDocument, one_document
from fledge.errors import CheckpointError, ConfigError
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.folder import load_model
from fledge.model.gguf import load_gguf
from fledge.model.gguf_blocks import BLOCKS, values
from fledge.model.quantized_files import quantized_maps
from fledge.nn.quantized import Int4Linear, Int8Linear
from fledge.text.gguf_file import TYPES, GgufFile
from fledge.text.tokenizer import Tokenizer
from tests.parity.decoder_cases import CASES, SIZES
from tests.parity.reference import VOCAB, limit, some_ids

WIDE = {**SIZES, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
}  # fmt: skip
PLAIN = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}  # fmt: skip
QTYPE = {name: gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")}


def model_of(kind: str, **more: Any) -> transformers.PreTrainedModel:
    return replace(CASES[kind], sizes={**WIDE, **CASES[kind].more, **more}, more={}).model()


def in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of a head's rows: c and c + R/2 side by side."""
    by_head = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(by_head.swapaxes(1, 2)).reshape(weight.shape)


def write(model: Any, path: Path, kind: str = "F32", metadata: dict[str, Any] | None = None, drop: str = "") -> None:
    """A GGUF file as llama.cpp's converter writes it, with gguf-py; `model` takes the values that the file can hold.
    `metadata` is added or, where a key is there already, put instead; `drop`: a tensor that is left out."""
    config, arch = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(model.model.layers[0].self_attn.head_dim)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(model.model.layers[0].self_attn.head_dim)
    writer.add_vocab_size(VOCAB)
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        (writer.add_array if isinstance(value, list) else
         writer.add_string if isinstance(value, str) else writer.add_float32 if isinstance(value, float) else
         writer.add_uint32)(key, value)  # fmt: skip
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        stem, _, end = name.rpartition(".")
        index, _, part = stem.removeprefix("model.layers.").partition(".")
        theirs = PLAIN.get(name) or f"blk.{index}.{NAMES[part]}.{end}"
        if theirs == drop:
            continue
        qtype = QTYPE["F32"] if parameter.dim() == 1 else QTYPE[kind]
        data = gguf.quants.quantize(parameter.detach().numpy(), qtype)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(gguf.quants.dequantize(data, qtype), np.float32)))
        if arch == "llama" and stem.split(".")[-1] in heads:
            data = in_pairs(data, heads[stem.split(".")[-1]])
        writer.add_tensor(theirs, data, raw_dtype=qtype)
    if getattr(config, "fledge_factors", None) is not None:
        writer.add_tensor("rope_freqs.weight", np.array(config.fledge_factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def same_logits(model, mine) -> None:
    ids = some_ids()
    expected, got = model(ids).logits, mine(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)


@pytest.mark.parametrize("kind", list(QTYPE))
def test_a_llama_in_gguf_gives_the_logits_of_transformers_with_the_same_values(kind, tmp_path):
    model = model_of("llama")
    write(model, tmp_path / "model.gguf", kind)
    mine = load_gguf(tmp_path / "model.gguf")
    same_logits(model, mine)
    assert torch.equal(mine.embedding.weight, model.model.embed_tokens.weight)
    query = mine.decoder.layers[1].attention.qkv.q.weight
    assert torch.equal(query, model.model.layers[1].self_attn.q_proj.weight)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama-wide"])
def test_biases_norms_of_heads_and_tied_outputs_are_read(kind, tmp_path):
    model = model_of(kind, tie_word_embeddings=True, mlp_bias=False)
    write(model, tmp_path / "model.gguf")
    mine = load_gguf(tmp_path / "model.gguf")
    assert mine.config.tie
    same_logits(model, mine)


def test_transformers_reads_the_same_file_as_we_do(tmp_path):
    model, path = model_of("llama"), tmp_path / "model.gguf"
    write(model, path, "Q8_0")
    state = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    mine = load_gguf(path)
    for index, layer in enumerate(mine.decoder.layers):
        for ours in "qkv":
            theirs = torch.as_tensor(state[f"model.layers.{index}.self_attn.{ours}_proj.weight"])
            assert torch.equal(getattr(layer.attention.qkv, ours).weight, theirs)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_blocks_have_the_values_of_the_gguf_package_to_the_bit(name, tmp_path):
    """Random bytes: every code, scale and minimum occurs."""
    size, weights = BLOCKS[name][0], {label: n for label, n, _ in TYPES.values()}[name]
    raw = np.random.default_rng(5).integers(0, 256, (64, 4 * size), dtype=np.uint8)
    for at in {"Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)}.get(name, (0, 2)):  # scales that are finite
        raw.reshape(-1, size)[:, at : at + 2] = (
            np.random.default_rng(6).normal(size=(256, 1)).astype("<f2").view(np.uint8)
        )
    qtype = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(tmp_path / "x.gguf") as file:
        got = values(file, "x")
    assert got.shape == (64, 4 * weights)
    assert np.array_equal(got, gguf.quants.dequantize(raw, qtype))


def test_scalings_are_read(tmp_path):
    linear = model_of("llama-linear", max_position_embeddings=64)
    write(linear, tmp_path / "a.gguf", metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    mine = load_gguf(tmp_path / "a.gguf")
    assert mine.config.context_tokens == 64
    same_logits(linear, mine)
    yarn = model_of("llama-yarn")
    more = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    write(yarn, tmp_path / "b.gguf", metadata={f"llama.rope.scaling.{key}": value for key, value in more.items()})
    same_logits(yarn, load_gguf(tmp_path / "b.gguf"))


@pytest.mark.parametrize("original", [8192, 16])
def test_llama_3_s_factors_are_read_as_what_they_mean(original, tmp_path):
    parameters = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": original, "rope_theta": 10000.0,
    }  # fmt: skip
    model = model_of("llama", rope_parameters=parameters)
    plain = 1.0 / (10000.0 ** (torch.arange(0, 16, 2).float() / 16))
    model.config.fledge_factors = (plain / model.model.rotary_emb.inv_freq).tolist()
    write(model, tmp_path / "model.gguf")
    mine = load_gguf(tmp_path / "model.gguf")
    same_logits(model, mine)
    assert mine.config.stack.layers[0].position.scaling.kind == ("llama3" if original == 8192 else "longrope")


def test_convert_makes_a_folder_that_transformers_opens(tmp_path):
    model = model_of("llama")
    write(model, tmp_path / "model.gguf", "Q4_0")
    result = convert(ConvertConfig(str(tmp_path / "model.gguf"), str(tmp_path / "out")))
    assert result["family"] == "llama"
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    same_logits(model, load_model(tmp_path / "out"))
    same_logits(again, load_model(tmp_path / "out"))


def test_4_bit_weights_are_kept_as_they_are_and_8_bit_ones_to_half_a_step(tmp_path):
    model = model_of("llama")
    write(model, tmp_path / "a.gguf", "Q4_0")
    write(model, tmp_path / "b.gguf", "Q8_0")
    for file, kind, exact in (("a", Int4Linear, True), ("b", Int8Linear, False)):
        plain = dict(load_gguf(tmp_path / f"{file}.gguf").named_parameters())
        convert(ConvertConfig(str(tmp_path / f"{file}.gguf"), str(tmp_path / file), keep_quantized=True))
        maps = quantized_maps(load_model(tmp_path / file))
        assert len(maps) >= 14 and all(isinstance(one, kind) for one in maps.values())
        for name, one in maps.items():
            if exact:
                assert torch.equal(one.dequantized(), plain[name]), name
            else:
                error = (one.dequantized() - plain[name]).abs()
                assert bool((error <= 0.5001 * one.scale[:, None]).all()) and error.max() > 0, name
    zeros = torch.cat([one.zero.flatten() for one in quantized_maps(load_model(tmp_path / "a")).values()])
    assert set(zeros.tolist()) == {7, 8}  # blocks whose scale is negative are there too
    with pytest.raises(ConfigError, match="keep_quantized: expected a .gguf file"):
        convert(ConvertConfig(str(tmp_path / "a"), str(tmp_path / "c"), keep_quantized=True))


def test_convert_takes_the_tokenizer_that_the_file_holds(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", "▁", *(chr(97 + i) for i in range(26))]
    pieces += [f"{a}{b}" for a in "abcdefgh" for b in "abcdefghi"][: VOCAB - len(pieces)]
    tokens = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (len(pieces) - 3)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    write(model_of("llama"), tmp_path / "model.gguf", metadata=tokens)
    convert(ConvertConfig(str(tmp_path / "model.gguf"), str(tmp_path / "out")))
    inside, out = Tokenizer.load(tmp_path / "model.gguf"), Tokenizer.load(tmp_path / "out")
    assert inside.encode("a cab") == out.encode("a cab") and len(out.encode("a cab")) > 2
    assert load_model(tmp_path / "out").config.special_ids == {"bos": 1, "eos": 2}


def test_a_phi_3_whose_file_says_a_window_of_0_has_none(tmp_path):
    """llama.cpp's converter writes 0 for Phi-4."""
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**{**WIDE, "sliding_window": None}))
    for name, window in (("plain", None), ("zero", 0), ("four", 4)):
        said = {} if window is None else {"phi3.attention.sliding_window": window}
        write(model, tmp_path / f"{name}.gguf", metadata=said)
    plain, zero = (load_gguf(tmp_path / f"{name}.gguf") for name in ("plain", "zero"))
    assert plain.config == zero.config
    with pytest.raises(ConfigError, match="sliding_window"):
        load_gguf(tmp_path / "four.gguf")


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"llama.expert_count": 8}, "expert_used_count"),
        ({"llama.expert_shared_count": 1}, "expert_shared_count"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, "factors"),
        ({"llama.attention.sliding_window": 4}, "sliding_window"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": "4"}, "factor"),
    ],
)
def test_metadata_that_no_part_here_does_are_refused(metadata, match, tmp_path):
    write(model_of("llama"), tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(ConfigError, match=match):
        load_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv"])
@pytest.mark.parametrize("value", [10**9, 0, 7, "4"])
def test_sizes_that_do_not_fit_the_tensors_are_refused(key, value, tmp_path):
    write(model_of("llama"), tmp_path / "model.gguf", metadata={f"llama.{key}": value})
    with pytest.raises((ConfigError, CheckpointError)):
        load_gguf(tmp_path / "model.gguf")


def test_missing_tensors_damaged_files_and_other_architectures_are_refused(tmp_path):
    write(model_of("llama"), tmp_path / "model.gguf", drop="blk.1.ffn_up.weight")
    with pytest.raises(CheckpointError, match="blk.1.ffn_up"):
        load_gguf(tmp_path / "model.gguf")
    data = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        load_gguf(tmp_path / "cut.gguf")
    (tmp_path / "other.gguf").write_bytes(data.replace(b"llama", b"mamba"))
    with pytest.raises(ConfigError, match="architecture"):
        load_gguf(tmp_path / "other.gguf")


def test_numbers_that_llama_cpp_needs_are_needed(tmp_path):
    """Without the epsilon of the norms another would be taken without a word."""
    model = model_of("llama")
    for key in ("attention.layer_norm_rms_epsilon", "context_length", "embedding_length", "block_count"):
        write(model, tmp_path / "whole.gguf")
        raw = (tmp_path / "whole.gguf").read_bytes()
        assert raw.count(f"llama.{key}".encode()) == 1
        (tmp_path / "cut.gguf").write_bytes(raw.replace(f"llama.{key}".encode(), f"other.{key}".encode()))
        with pytest.raises(ConfigError, match=rf"llama\.{key}: expected a number, found none"):
            load_gguf(tmp_path / "cut.gguf")


@pytest.mark.parametrize("key", ["vocab_size", "rope.dimension_count", "attention.value_length"])
def test_an_array_where_a_number_belongs_is_refused(key, tmp_path):
    write(model_of("llama"), tmp_path / "a.gguf", metadata={f"llama.{key}": [16, 16]})
    with pytest.raises(ConfigError, match="expected a whole number"):
        load_gguf(tmp_path / "a.gguf")


def test_a_factor_without_a_kind_of_scaling_is_linear_as_in_llama_cpp(tmp_path):
    model = model_of("llama")
    write(model, tmp_path / "a.gguf", metadata={"llama.rope.scaling.factor": 4.0})
    scaling = load_gguf(tmp_path / "a.gguf").config.stack.layers[0].position.scaling
    assert scaling is not None and (scaling.kind, scaling.factor) == ("linear", 4.0)
    write(model, tmp_path / "b.gguf", metadata={"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0})
    assert load_gguf(tmp_path / "b.gguf").config.stack.layers[0].position.scaling is None  # the control
