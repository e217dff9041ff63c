"""Exported GGUF files in llama.cpp: the same ids, and the same logits as far as their type holds the weights.

`pip install llama-cpp-python` compiles it in some minutes; a folder that has it may be named in BENCH_PEERS.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.model import gguf_export
from fledge.model.config import ShapeConfig
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.export_config import ExportConfig
from fledge.model.families import family
from fledge.model.folder import load_model
from fledge.model.gguf import load_gguf
from fledge.model.gguf_export import export, write_model
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.text.chat import renderer_for
from fledge.text.conversation import Message
from fledge.text.gguf_patterns import SPLITS, other_in_llama_cpp
from fledge.text.llama2c import from_llama2c
from fledge.text.tokenizer import Tokenizer
from tests.parity.exported import WRITTEN, folder_of
from tests.text.gguf_splits import write_vocabulary
from tests.text.samples import FOREIGN, FRAGMENTS, random_text, small_bpe

pytestmark = pytest.mark.slow

TEXTS = (
    "Once upon a time, there was a little girl named Lily. She couldn't wait!", FOREIGN, "3.14159 + 2,718 = 1234567890",
    "def f(x):\n    return {'a': x}\n\n\n\tif  x   :", "  two  spaces before and after  ", "\n\n \n  x\r\n", "½²Ⅷ 👍🏽",
    "مرحبا بالعالم ١٢٣", "שָׁלוֹם", "สวัสดีครับ", "ᚠᛇᚻ᛫ᛒᛦᚦ", "don't I'LL we'Ve snake_case camelCaseHTTP", "</s><s>", "a",
)  # fmt: skip
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high. Lily's mom said, \"Lily, let's go to the park.\""
)
GELU = ("gemma", "gemma-multi-query", "gemma2", "gemma3", "gpt2")  # llama.cpp looks it up in a table of float16
NEAR = 1e-3


@pytest.fixture(scope="module")
def opened() -> Callable[..., Any]:
    """A function from a file's path to llama.cpp's model of it, with keys and values in float32."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in filter(None, [os.environ.get("BENCH_PEERS")]):
            patch.syspath_prepend(folder)
        library = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

    def opened(path: Path) -> Any:
        return library.Llama(
            str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0, flash_attn=False
        )

    return opened


def their_logits(model: Any, ids: list[int]) -> torch.Tensor:
    model.reset()
    model.eval(ids)
    return torch.tensor(model.scores[: len(ids)])


@torch.no_grad()
def our_logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    return model(one_document(torch.tensor([ids])), OneDocument())[0]


def their_ids(model: Any, text: str) -> list[int]:
    return model.tokenize(text.encode(), add_bos=True, special=False)


def our_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [*start, *tokenizer.encode(text)]


def many_texts() -> list[str]:
    rng = random.Random(5)
    whole = [*TEXTS, *FRAGMENTS, *(random_text(rng) for _ in range(300))]
    return [text for text in whole if "\0" not in text and text.strip() and "▁" not in text]


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_family_has_the_logits_and_the_greedy_tokens_of_llama_cpp(kind, opened, tmp_path):
    folder = folder_of(kind, tmp_path, **WRITTEN[kind])
    export(ExportConfig(str(folder), tmp_path / "model.gguf", "f32"), json=True)
    model, tokenizer, theirs = load_model(folder), Tokenizer.load(folder), opened(tmp_path / "model.gguf")
    ids = our_ids(tokenizer, TEXTS[3])[:32]
    expected, got = our_logits(model, ids), their_logits(theirs, ids)
    assert (expected - got).abs().max() <= (1e-3 if kind in GELU else 2e-6) * expected.abs().max()
    near = 0.05 if kind in GELU else NEAR
    for _ in range(24):
        best = our_logits(model, ids)[-1].topk(2)
        if best.values[0] - best.values[1] < near:
            break
        assert int(their_logits(theirs, ids)[-1].argmax()) == int(best.indices[0])
        ids.append(int(best.indices[0]))
    else:
        assert len(ids) > 50


@pytest.fixture(scope="module")
def story_teller(data_file, tmp_path_factory) -> Path:
    """stories260K, trained by others."""
    source, target = data_file("ckpt_stories260K"), tmp_path_factory.mktemp("stories") / "model"
    convert(ConvertConfig(str(source / "stories260K.bin"), str(target), str(source / "tok512.bin")))
    return target


def mean_difference(model: Transformer, theirs: Any, ids: list[int]) -> float:
    """Of the log-probabilities of a text's tokens."""
    ours, others = our_logits(model, ids).log_softmax(-1), their_logits(theirs, ids).log_softmax(-1)
    following = torch.tensor(ids[1:])[:, None]
    return float((ours - others)[:-1].gather(1, following).abs().mean())


def test_a_trained_model_tells_the_same_story_in_llama_cpp(story_teller, opened, tmp_path):
    export(ExportConfig(str(story_teller), tmp_path / "model.gguf", "f32"), json=True)
    model, tokenizer, theirs = load_model(story_teller), Tokenizer.load(story_teller), opened(tmp_path / "model.gguf")
    ids = our_ids(tokenizer, "Once upon a time")
    assert their_ids(theirs, "Once upon a time") == ids
    assert (theirs.token_bos(), theirs.token_eos()) == (tokenizer.bos_id, tokenizer.eos_id)
    for _ in range(120):
        best = our_logits(model, ids)[-1].topk(2)
        if best.values[0] - best.values[1] < NEAR:
            break
        assert int(their_logits(theirs, ids)[-1].argmax()) == int(best.indices[0])
        ids.append(int(best.indices[0]))
    assert len(ids) > 40 and tokenizer.decode(ids).count("she") > 0


@pytest.mark.parametrize(("form", "bar"), [("f32", 1e-5), ("f16", 1e-2), ("bf16", 1e-2), ("q8_0", 3e-2)])
def test_a_text_is_as_likely_in_llama_cpp(form, bar, story_teller, opened, tmp_path, monkeypatch):
    export(ExportConfig(str(story_teller), tmp_path / "model.gguf", form), json=True)
    model, ids = load_model(story_teller), our_ids(Tokenizer.load(story_teller), STORY)
    assert len(ids) > 80
    assert mean_difference(model, opened(tmp_path / "model.gguf"), ids) <= bar
    if form == "f32":  # the control: queries and keys in our order of channels
        monkeypatch.setattr(gguf_export, "to_theirs", lambda weight, parameters: parameters[weight.ours[0]])
        export(ExportConfig(str(story_teller), tmp_path / "other.gguf", form), json=True)
        assert mean_difference(model, opened(tmp_path / "other.gguf"), ids) > 3e-2


FORMS = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17,
    "Q6_K": 18,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_llama_cpp_quantizes_is_read_with_its_logits(form, opened, tmp_path):
    """llama.cpp rounds the inputs of a product to 8 bits as well, which is what is left of a difference."""
    import llama_cpp

    tokenizer = small_bpe()
    shape = {"width": 256, "hidden": 512, "layers": 2, "heads": 4, "kv_heads": 2, "context_tokens": 64}
    new = family("llama").new_config(ShapeConfig("llama", **shape, vocab_size=tokenizer.vocab_size))
    model = initialise(build(new, "cpu"), 1)
    write_model(model, tokenizer, tmp_path / "whole.gguf", "f32")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = FORMS[form], 1
    names = [str(tmp_path / name).encode() for name in ("whole.gguf", "small.gguf")]
    assert llama_cpp.llama_model_quantize(*names, ctypes.byref(settings)) == 0
    ids = our_ids(tokenizer, TEXTS[3])[:32]
    ours, whole = our_logits(load_gguf(tmp_path / "small.gguf"), ids), our_logits(model, ids)
    theirs = their_logits(opened(tmp_path / "small.gguf"), ids)
    near = float((ours - theirs).abs().mean() / whole.std())
    assert near < 0.02
    if form not in ("Q8_0", "Q6_K"):  # the control: the weights that it had before
        assert float((whole - theirs).abs().mean() / whole.std()) > 3 * near


def bare_model(n_rows: int) -> Transformer:
    shape = ShapeConfig("llama", width=32, hidden=32, layers=1, heads=2, context_tokens=64, vocab_size=n_rows, tie=True)
    return initialise(build(family("llama").new_config(shape), "cpu"), 1)


NAMES = {
    "gpt2": "gpt2", "llama3": "llama3/tokenizer.model", "llama2": "llama2/tokenizer.model",
    "mistral": "mistral/tokenizer.model.v1", "t5": "seqio/sentencepiece.model",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_published_tokenizer_gives_the_same_ids_in_llama_cpp(name, opened, tmp_path, data_file):
    source = data_file(f"conf_tokenizers/{NAMES[name]}")
    if source.suffix == ".v1":
        source = Path(shutil.copy(source, tmp_path / "tokenizer.model"))
    compare_ids(Tokenizer.load(source), opened, tmp_path)


def test_a_tokenizer_of_llama2_c_gives_the_same_ids_in_llama_cpp(opened, tmp_path, data_file):
    compare_ids(from_llama2c(data_file("ckpt_stories260K/tok512.bin")), opened, tmp_path)


def compare_ids(tokenizer: Tokenizer, opened: Callable[..., Any], folder: Path) -> None:
    write_model(bare_model(tokenizer.vocab_size + 3), tokenizer, folder / "model.gguf", "f32")
    theirs = opened(folder / "model.gguf")
    texts = many_texts()
    assert len(texts) > 150
    for text in texts:
        assert their_ids(theirs, text) == our_ids(tokenizer, text), text


FIRST_NAMES = {split: name for name, split in reversed(SPLITS.items())}


@pytest.mark.parametrize("name", FIRST_NAMES.values())
def test_every_split_pattern_gives_the_same_ids_in_llama_cpp_or_warns(name, opened, tmp_path, capsys):
    """Of a vocabulary in which a split shows. The control: patterns that llama.cpp is known to split otherwise."""
    write_vocabulary(tmp_path / "vocabulary.gguf", name, list(TEXTS))
    tokenizer = Tokenizer.load(tmp_path / "vocabulary.gguf")
    if other_in_llama_cpp(name):
        write_model(bare_model(tokenizer.vocab_size), tokenizer, tmp_path / "model.gguf", "f32")
        assert "llama.cpp splits" in capsys.readouterr().err
        theirs = opened(tmp_path / "model.gguf")
        same = all(their_ids(theirs, text) == our_ids(tokenizer, text) for text in many_texts())
        assert not same or name.startswith("granite")
        return
    compare_ids(tokenizer, opened, tmp_path)
    assert "llama.cpp splits" not in capsys.readouterr().err


def test_a_chat_has_the_same_ids_in_llama_cpp_and_ends_by_the_same_token(opened, tmp_path):
    folder = folder_of("llama", tmp_path)
    export(ExportConfig(str(folder), tmp_path / "model.gguf", "q8_0"), json=True)
    tokenizer, theirs = Tokenizer.load(folder), opened(tmp_path / "model.gguf")
    text = "<|user|>hi<|end|>"
    assert theirs.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text, parse_special=True)
    assert theirs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    assert tokenizer.encode(text) != tokenizer.encode(text, parse_special=True)
    assert theirs.metadata["tokenizer.ggml.eot_token_id"] == str(tokenizer.end_id)
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = theirs.metadata["tokenizer.chat_template"]
    bos, eos = (tokenizer.token_of(number) for number in (theirs.token_bos(), theirs.token_eos()))
    said = (("system", "Be brief."), ("user", "Über 12 naïve élèves?\n "), ("assistant", "Yes."), ("user", "Why?"))
    rendered = renderer_for(tokenizer).render([Message(*one) for one in said], generation_prompt=True)
    form = Jinja2ChatFormatter(template, eos, bos)
    prompt = form(messages=[{"role": role, "content": content} for role, content in said]).prompt
    assert theirs.tokenize(prompt.encode(), add_bos=False, special=True) == list(rendered.ids)
