"""Exported GGUF files against the `gguf` package (bytes, names), transformers (logits) and our own reader."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from fledge.batch import OneDocument, one_document
from fledge.cli.main import main
from fledge.errors import CheckpointError, ConfigError, TokenizerError
from fledge.model import gguf_export
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.export_config import ExportConfig
from fledge.model.folder import load_model, save_model
from fledge.model.gguf import load_gguf
from fledge.model.gguf_architectures import ARCHITECTURES
from fledge.model.gguf_blocks import values
from fledge.model.gguf_export import export, write_model
from fledge.model.gguf_pack import packed
from fledge.model.gguf_tokenizer import check_tokenizer, tokenizer_metadata
from fledge.text.gguf_file import GgufFile
from fledge.text.gguf_write import write_gguf
from fledge.text.llama2c import from_llama2c
from fledge.text.special_tokens import SPECIAL_TOKENS
from fledge.text.tokenizer import Tokenizer, byte_level, from_text
from tests.parity.decoder_cases import LLAMA3
from tests.parity.exported import ROWS, TOKENS, WRITTEN, folder_of
from tests.parity.reference import limit
from tests.text.samples import small_bpe

TEXTS = ("def f(x):\n    return 12345 + x", "Über naïve élan — 你好 😀 नमस्ते", "  two  spaces <|user|> ")
SHIFTED = ("gemma", "gemma-multi-query", "gemma2", "gemma3")  # norms hold 1 + w, which rounds w
QTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[[str], tuple[Path, Path]]:
    """A function from a case of WRITTEN to (its folder, its file in float32), made once."""

    @functools.cache
    def made(kind: str) -> tuple[Path, Path]:
        place = tmp_path_factory.mktemp("written")
        folder = folder_of(kind, place, **WRITTEN[kind])
        export(ExportConfig(str(folder), place / "model.gguf", "f32"), json=True)
        return folder, place / "model.gguf"

    return made


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model(one_document(ids), OneDocument())


def ids_of(tokenizer: Tokenizer) -> torch.Tensor:
    return torch.tensor([[tokenizer.bos_id, *tokenizer.encode("".join(TEXTS))][:48]])


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_in_float32_is_read_back_with_the_same_weights_logits_and_ids(kind, written):
    folder, path = written(kind)
    model, again, tokenizer = load_model(folder), load_gguf(path), Tokenizer.load(path)
    mine = dict(model.named_parameters())
    assert mine.keys() == dict(again.named_parameters()).keys()
    for name, parameter in again.named_parameters():
        if kind in SHIFTED and "norm" in name:
            assert (parameter - mine[name]).abs().max() < 1e-6, name
        else:
            assert torch.equal(parameter, mine[name]), name
    original = Tokenizer.load(folder)
    ids = ids_of(original)
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))
    assert [tokenizer.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]
    assert tokenizer.special == original.special and tokenizer.template == original.template


@pytest.mark.parametrize("form", QTYPES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_bytes_of_every_type_are_those_of_the_gguf_package(kind, form, written, tmp_path):
    folder, whole = written(kind)
    path = tmp_path / "model.gguf"
    export(ExportConfig(str(folder), path, form), json=True)
    exact = {tensor.name: tensor.data for tensor in gguf.GGUFReader(whole).tensors}
    kinds = set()
    with GgufFile(path) as file:
        for tensor in gguf.GGUFReader(path).tensors:
            small = tensor.name.endswith("bias") or "norm" in tensor.name or tensor.name.startswith("position")
            qtype = gguf.GGMLQuantizationType["F32" if small else QTYPES[form]]
            assert tensor.tensor_type == qtype
            kinds.add(qtype.name)
            assert np.array_equal(
                tensor.data.view(np.uint8), gguf.quants.quantize(exact[tensor.name], qtype).view("u1")
            )
            assert np.array_equal(values(file, tensor.name), gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    assert kinds == {"F32", QTYPES[form]}


def test_rows_that_are_no_multiple_of_32_stay_in_16_bits(tmp_path):
    folder = folder_of("llama", tmp_path, intermediate_size=80)
    export(ExportConfig(str(folder), tmp_path / "model.gguf", "q8_0"), json=True)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-30, 1e-44, 3e4])
def test_8_bit_blocks_are_those_of_the_gguf_package_at_every_scale(scale):
    values_ = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)) * scale
    values_[0] = 0.0
    expected = gguf.quants.quantize(values_.numpy(), gguf.GGMLQuantizationType.Q8_0)
    if scale > 1e-40:  # below, the package divides by zero
        assert packed(values_, "Q8_0", "x") == expected.tobytes()
    assert np.isfinite(
        gguf.quants.dequantize(np.frombuffer(packed(values_, "Q8_0", "x"), "u1").reshape(7, -1), 8)
    ).all()


def test_values_that_a_type_can_t_hold_are_refused_and_nothing_is_left(tmp_path):
    folder = folder_of("llama", tmp_path)
    model = load_model(folder)
    for value, form in ((70000.0, "f16"), (float("nan"), "f32"), (float("inf"), "bf16"), (1e8, "q8_0")):
        with torch.no_grad():
            model.decoder.layers[1].ffn.down.weight[0, 0] = value
        with pytest.raises(ConfigError, match="blk.1.ffn_down.weight: expected weights of at most"):
            write_model(model, Tokenizer.load(folder), tmp_path / "model.gguf", form)
        assert not list(tmp_path.glob("*gguf*")) and not list(tmp_path.glob(".*gguf*"))
    with torch.no_grad():
        model.decoder.layers[1].ffn.down.weight[0, 0] = 65000.0
    assert write_model(model, Tokenizer.load(folder), tmp_path / "model.gguf", "f16") > 0  # the control


@pytest.mark.parametrize("name", dict.fromkeys(one.name for one in ARCHITECTURES))
def test_every_tensor_is_one_that_the_gguf_package_lists_for_the_architecture(name, written):
    kind = next(kind for kind in WRITTEN if kind.replace("-moe", "moe").split("-")[0] == name)
    _, path = written(kind)
    reader = gguf.GGUFReader(path)
    architecture = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[architecture]}
    found = {tensor.name.rpartition(".")[0] for tensor in reader.tensors}
    generic = {"blk.{bid}." + part.split(".")[2] if part.startswith("blk.") else part for part in found}
    assert len(found) > 10 and generic <= known, generic - known
    keys = {value for group in vars(gguf.constants.Keys).values() if isinstance(group, type)
            for value in vars(group).values() if isinstance(value, str)}  # fmt: skip
    for key in reader.fields:
        assert key.startswith("GGUF.") or key.replace(f"{name}.", "{arch}.") in keys, key


@pytest.mark.parametrize("kind", ["llama", "mistral-whole", "qwen2"])
def test_transformers_computes_the_same_from_the_file(kind, written, tmp_path, monkeypatch):
    folder, path = written(kind)
    ids = ids_of(Tokenizer.load(folder))
    expected = logits_of(load_model(folder), ids)

    def theirs(path: Path) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, attn_implementation="eager"
        )
        with torch.no_grad():
            return model.eval()(ids).logits

    assert (theirs(path) - expected).abs().max() <= limit(expected)
    if kind == "llama":  # the control: queries and keys as they are
        monkeypatch.setattr(gguf_export, "to_theirs", lambda weight, parameters: parameters[weight.ours[0]])
        export(ExportConfig(str(folder), tmp_path / "other.gguf", "f32"), json=True)
        assert (theirs(tmp_path / "other.gguf") - expected).abs().max() > 100 * limit(expected)


def test_the_metadata_tell_of_the_vocabulary_what_llama_cpp_needs(written):
    folder, path = written("llama")
    fields = gguf.GGUFReader(path).fields
    tokenizer = Tokenizer.load(folder)
    told = {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in fields.items()}
    assert tokenizer.vocab_size == TOKENS and len(told["tokens"]) == len(told["token_type"]) == ROWS
    assert (
        told["tokens"][TOKENS:] == [f"[PAD{i}]" for i in range(TOKENS, ROWS)]
        and told["token_type"][TOKENS:] == [5] * 12
    )
    assert (told["model"], told["pre"], told["add_bos_token"], told["add_eos_token"]) == ("gpt2", "gpt-2", True, False)
    assert [told[f"{role}_token_id"] for role in ("bos", "eos", "padding", "eot")] == [
        tokenizer.special[role] for role in ("bos", "eos", "pad", "end")
    ]
    assert told["tokenizer.chat_template"] == tokenizer.template
    assert (told["llama.context_length"], told["llama.rope.freq_base"]) == (64, 10000.0)


@pytest.mark.parametrize(
    ("kind", "more", "match"),
    [
        ("mistral", {}, "model.decoder.layers.0..window: llama.cpp's llama computes with another value"),
        ("qwen2", {"head_dim": 8}, "qwen2.attention.key_length: expected 16"),
        ("qwen3-biased", {}, "qkv_bias: llama.cpp's qwen3 computes with another value"),
        ("llama", {"hidden_act": "gelu"}, "activation: llama.cpp's llama computes with another value"),
        ("gemma-multi-query", {}, "model.tie: llama.cpp's gemma"),
        ("gemma2", {}, "scale: llama.cpp's gemma2"),
        ("phi3", {}, "window: llama.cpp's phi3"),
        ("olmo2", {"tie_word_embeddings": True}, "tie: llama.cpp's olmo2"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "position: llama.cpp's smollm3"),
        ("gemma3", {"layer_types": ["sliding_attention", "full_attention"]}, "llama.cpp's gemma3"),
        ("qwen3-moe", {"norm_topk_prob": False}, "renormalise: llama.cpp's qwen3moe"),
        ("qwen3-moe-dense-first", {}, "decoder.layers.0..ffn: llama.cpp's qwen3moe"),
        ("mixtral-window", {}, "window: llama.cpp's llama"),
        ("qwen3", {"rope_parameters": LLAMA3}, "rope_scaling: expected linear or yarn"),
        ("gpt2-inverse", {}, "scale: llama.cpp's gpt2"),
        ("gpt2-untied", {}, "llama.cpp's gpt2 computes with another value"),
        ("llama-dynamic", {}, "expected linear, yarn or llama3, got dynamic"),
        ("stablelm-normed", {}, "q_norm.heads.0: no tensor of llama.cpp's holds this part"),
        ("olmo-clipped", {}, "got olmo, which is not written"),
        ("phi-normed", {}, "got phi, which is not written"),
        ("cohere-normed", {}, "got cohere, which is not written"),
        ("glm4", {}, "one of the families .*llama.*; got glm4, which is not written"),
    ],
)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(kind, more, match, tmp_path):
    folder = folder_of(kind, tmp_path, **more)
    with pytest.raises(ConfigError, match=match):
        export(ExportConfig(str(folder), tmp_path / "model.gguf"), json=True)
    assert not list(tmp_path.glob("*gguf*")) and not list(tmp_path.glob(".*gguf*"))


def test_a_tokenizer_that_a_file_can_t_hold_is_refused(tmp_path):
    folder = folder_of("llama", tmp_path)
    model, good = load_model(folder), small_bpe("gpt2", TOKENS)
    tree = json.loads(good.file.text)

    def refused(match: str, changes: dict, config: dict | None = None) -> None:
        tokenizer = from_text(json.dumps({**tree, **changes}), good.config if config is None else config)
        with pytest.raises(TokenizerError, match=match):
            write_model(model, tokenizer, tmp_path / "model.gguf", "f32")
        assert not (tmp_path / "model.gguf").exists()

    split = {"type": "Split", "pattern": {"Regex": r"\w+|\W+"}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    refused("expected a published split", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, plain]}})
    refused("expected a published split", {"pre_tokenizer": {**plain, "add_prefix_space": True, "use_regex": True}})
    refused("expected no normalizer, got 'Lowercase'", {"normalizer": {"type": "Lowercase"}})
    refused("expected a token for the end of a text", {}, {**good.config, "eos_token": None})
    with pytest.raises(ConfigError, match="expected at most the model's 512 entries, got 600"):
        write_model(model, small_bpe("gpt2", 600), tmp_path / "model.gguf", "f32")
    with pytest.raises(TokenizerError, match="found none"):
        save_model(model, tmp_path / "bare")
        export(ExportConfig(str(tmp_path / "bare"), tmp_path / "model.gguf"))
    export(ExportConfig(str(tmp_path / "bare"), tmp_path / "model.gguf", tokenizer=str(folder)))  # the control


def test_sentencepiece_s_bpe_is_written_from_every_form_of_it(tmp_path, data_file):
    """llama2.c's pieces have plain spaces, a tokenizer.json says with a normalizer what a .model says of itself."""
    model = load_model(folder_of("llama", tmp_path))
    plain = from_llama2c(data_file("ckpt_stories260K/tok512.bin"))
    with pytest.raises(TokenizerError, match="expected a tokenizer read from a SentencePiece model"):
        tree = json.loads(plain.file.text) | {"normalizer": {"type": "Lowercase"}}
        write_model(model, from_text(json.dumps(tree), plain.config), tmp_path / "a.gguf", "f32")
    write_model(model, plain, tmp_path / "a.gguf", "f32")
    marked = Tokenizer.load(tmp_path / "a.gguf")  # its pieces have U+2581
    assert "▁a" in marked.file.tokens and " a" in plain.file.tokens
    bare = {key: value for key, value in marked.config.items() if key != "sentencepiece"}
    for number, tokenizer in enumerate((marked, from_text(marked.file.text, bare))):
        write_model(model, tokenizer, tmp_path / f"{number}.gguf", "f32")
        again = Tokenizer.load(tmp_path / f"{number}.gguf")
        fields = gguf.GGUFReader(tmp_path / f"{number}.gguf").fields
        assert fields["tokenizer.ggml.model"].contents() == "llama"
        assert fields["tokenizer.ggml.add_space_prefix"].contents() is True
        for text in (*TEXTS, "Once upon a time", "a  b"):
            assert again.encode(text) == marked.encode(text) == plain.encode(text), text


def test_a_tokenizer_that_is_read_back_with_other_ids_is_found():
    told = tokenizer_metadata(small_bpe("gpt2", TOKENS), ROWS)
    check_tokenizer(told, small_bpe("gpt2", TOKENS), "x")  # the control
    for other, match in (
        (small_bpe("qwen2", TOKENS), "expected [0-9]+ ids, at"),
        (byte_level(), "expected [0-9]+ ids"),
    ):
        with pytest.raises(TokenizerError, match=match):
            check_tokenizer(told, other, "x")
    other = Tokenizer(small_bpe("gpt2", TOKENS).file, {**small_bpe("gpt2", TOKENS).config, "pad_token": "<|end|>"})
    with pytest.raises(TokenizerError, match="pad: expected id"):
        check_tokenizer(told, other, "x")


def test_a_token_with_the_name_of_an_unused_row_is_refused():
    named = byte_level((*SPECIAL_TOKENS, "[PAD264]"))
    assert named.vocab_size == 264 and len(tokenizer_metadata(named, 264)["tokenizer.ggml.tokens"]) == 264
    with pytest.raises(TokenizerError, match=r"'\[PAD264\]': expected once"):
        tokenizer_metadata(named, 266)


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "o200k"])
def test_the_split_pattern_is_told_by_its_name(pattern, tmp_path):
    folder = folder_of("llama", tmp_path, pattern)
    export(ExportConfig(str(folder), tmp_path / "model.gguf"), json=True)
    name = gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.pre"].contents()
    assert name == {"gpt2": "gpt-2", "llama3": "dbrx", "qwen2": "qwen2", "o200k": "gpt-4o"}[pattern]


def test_adapters_quantized_weights_and_files_that_are_there_are_refused(tmp_path, capsys):
    folder = folder_of("llama", tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="fledge merge BASE"):
        export(ExportConfig(str(tmp_path / "adapter"), tmp_path / "model.gguf"))
    line = ["export", str(folder), "--out", str(tmp_path / "model.gguf"), "type=q8_0", "--json"]
    capsys.readouterr()
    assert main(line) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == (tmp_path / "model.gguf").stat().st_size and told["architecture"] == "llama"
    assert main(line) == 2
    assert "expected a new file" in capsys.readouterr().err
    convert(ConvertConfig(str(tmp_path / "model.gguf"), str(tmp_path / "quantized"), keep_quantized=True))
    with pytest.raises(ConfigError, match="got 15 quantized maps"):
        export(ExportConfig(str(tmp_path / "quantized"), tmp_path / "again.gguf"))
    with pytest.raises(ConfigError, match="expected a file ending in .gguf"):
        ExportConfig(str(folder), tmp_path / "model.bin")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ARCHITECTURES)))
def test_any_metadata_of_a_file_are_read_or_are_refused_by_a_typed_error(number, written, tmp_path):
    architecture = ARCHITECTURES[number]
    kind = next(kind for kind in WRITTEN if kind.replace("-moe", "_moe").split("-")[0] == architecture.family)
    _, path = written(kind)
    with GgufFile(path) as file:
        metadata, tensors = file.metadata, {name: file.data(name) for name in file.tensors}
    refused = 0
    own = [key for key in metadata if key.startswith(f"{architecture.name}.")]
    own += [f"{architecture.name}.rope.scaling.{key}" for key in ("type", "factor", "original_context_length")]
    for key in own:
        for value in (10**9, 0, 7, -1, "4", 0.5, float("nan"), True, np.array([16, 16], "<i4")):
            write_gguf(tmp_path / "other.gguf", {**metadata, key: value}, tensors)
            try:
                load_gguf(tmp_path / "other.gguf")
            except (ConfigError, CheckpointError):
                refused += 1
    assert refused > 4 * len(own)
    write_gguf(tmp_path / "other.gguf", metadata, tensors)
    load_gguf(tmp_path / "other.gguf")  # the control
