"""Prompt and prefix tuning of encoders: transformers' states behind the same embeddings, attention written out over the
same keys and values, documents that don't see each other's, and what has no definition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fledge.batch import OneDocument, Packed, Padded, Tokens, one_document, padded
from fledge.engine.predict import TaskKind, reader_of
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model
from fledge.model.transformer import build
from fledge.tune.attach import tune
from fledge.tune.config import TuneConfig
from fledge.tune.merge import served
from fledge.tune.virtual import KINDS, TENSOR, attach_virtual
from tests.compress.tiny import ids, logits, tiny
from tests.data.corrupted import wordpiece
from tests.parity import encoders
from tests.parity.reference import limit

N = 5
LENGTHS = (20, 13)
QUICK = ("bert", "roberta", "distilbert")
WITH_PATTERNS = ("longformer", "bigbird")
BY_HAND = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "albert-groups", "electra-narrow",
           "modernbert")  # fmt: skip
BY_MAPS = ("mpnet", "deberta", "deberta-plain", "deberta-c2p", "deberta-v2", "deberta-v2-p2c", "deberta-v3",
           "bigbird-full", "bert")  # fmt: skip


def marked(names: tuple[str, ...]) -> list:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def given(name: str, behind: bool = True) -> tuple[dict, Tokens, Padded]:
    """A padded batch for both: with segments, the first of which is 1; transformers' positions from N on."""
    theirs, (tokens, layout) = encoders.inputs(name, LENGTHS)
    if tokens.kind is not None:
        tokens = replace(tokens, kind=1 - tokens.kind)
        theirs["token_type_ids"] = tokens.kind
    if behind and name.split("-")[0] not in ("distilbert",):
        theirs["position_ids"] = N + offset(name) + torch.arange(LENGTHS[0]).expand(2, -1)
    return theirs, tokens, layout


def offset(name: str) -> int:
    """What RoBERTa's positions begin with."""
    roberta = encoders.CASES[name][0] in ("Roberta", "XLMRoberta", "Camembert", "MPNet")
    return encoders.config_of(name).pad_token_id + 1 if roberta else 0


def embedded(name: str, model, rows: torch.Tensor) -> dict:
    """transformers' inputs of the batch with `rows` before each document's own embeddings, of segment 0."""
    theirs, _, _ = given(name, behind=False)
    there = theirs.pop("input_ids")
    theirs["inputs_embeds"] = torch.cat((rows.expand(2, -1, -1), model.get_input_embeddings()(there)), 1)
    theirs["attention_mask"] = torch.cat((torch.ones(2, N, dtype=torch.int64), theirs["attention_mask"]), 1)
    if "token_type_ids" in theirs:
        theirs["token_type_ids"] = torch.cat((torch.zeros(2, N, dtype=torch.int64), theirs["token_type_ids"]), 1)
    return theirs


def random_rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", marked(tuple(name for name in encoders.CASES if name not in WITH_PATTERNS)))
@torch.no_grad()
def test_an_encoder_reads_a_prompt_as_transformers_reads_embeddings_before_its_own(name, tmp_path):
    model = encoders.reference(name)
    model.save_pretrained(tmp_path)
    rows = random_rows(N, model.get_input_embeddings().weight.shape[1])
    theirs, (_, tokens, layout) = embedded(name, model, rows), given(name)
    wanted, there = model(**theirs).logits[:, N:], tokens.doc >= 0
    ours = attach_virtual(load_model(tmp_path), KINDS["prompt"], N, {TENSOR: rows}).eval()
    for one in (ours, served(ours)):
        assert (one(tokens, layout) - wanted)[there].abs().max() <= limit(wanted)
    ours.virtual = None  # the controls: no prompt, and other segments of its tokens
    assert (ours(tokens, layout) - wanted)[there].abs().max() > 100 * limit(wanted)
    if "token_type_ids" in theirs:
        theirs["token_type_ids"][:, :N] = 1
        assert (model(**theirs).logits[:, N:] - wanted)[there].abs().max() > 10 * limit(wanted)


def by_hand(rows: torch.Tensor, n_layers: int):
    """Attention of transformers' modules, written out over the keys and values of N virtual tokens and the row's own;
    `rows` [N, L · 2 · D], layer by layer, as often as it is called."""
    calls: list[int] = []

    def attention(module, q, k, v, mask, scaling=None, **_):
        n_rows, n_heads, _, n_channels = k.shape
        first = rows.view(N, n_layers, 2, n_heads, n_channels)[:, len(calls) % n_layers].permute(1, 2, 0, 3)
        calls.append(1)
        k, v = (torch.cat((one.expand(n_rows, -1, -1, -1), own), 2) for one, own in zip(first, (k, v), strict=True))
        place = torch.arange(k.shape[2])
        distance = (place[N:, None] - place).abs()  # of the row's tokens, which stand from N on
        window = getattr(module, "sliding_window", None) or math.inf
        there = torch.cat((torch.ones(n_rows, N), given_mask), 1).bool()
        seen = (distance < window)[None, None] & there[:, None, None]
        scores = (q @ k.transpose(2, 3) * scaling).masked_fill(~seen, -1e30)  # padding may see nothing
        return (scores.softmax(-1) @ v).transpose(1, 2), None

    given_mask = (torch.arange(LENGTHS[0]) < torch.tensor(LENGTHS)[:, None]).float()
    return attention


@pytest.mark.parametrize("name", marked(BY_HAND))
@torch.no_grad()
def test_an_encoder_reads_a_prefix_as_attention_written_out_over_the_same_keys_and_values(name, tmp_path):
    encoders.reference(name).save_pretrained(tmp_path)
    model = type(encoders.reference(name)).from_pretrained(tmp_path)
    n_layers, width = model.config.num_hidden_layers, model.config.hidden_size
    rows, (theirs, tokens, layout) = random_rows(N, n_layers * 2 * width), given(name)
    if name == "distilbert":  # which takes no positions: its table begins with those behind the prefix
        table = model.distilbert.embeddings.position_embeddings
        table.weight.copy_(table.weight.roll(-N, 0))
    ALL_ATTENTION_FUNCTIONS.register("by_hand", by_hand(rows, n_layers))
    model.config._attn_implementation = "by_hand"
    wanted, there = model(**theirs).logits, tokens.doc >= 0
    ours = attach_virtual(load_model(tmp_path), KINDS["prefix"], N, {TENSOR: rows}).eval()
    for one in (ours, served(ours)):
        assert (one(tokens, layout) - wanted)[there].abs().max() <= limit(wanted)
    ours.virtual = None  # the control
    assert (ours(tokens, layout) - wanted)[there].abs().max() > 100 * limit(wanted)


@contextmanager
def giving(model, rows: torch.Tensor) -> Iterator[None]:
    """Have each layer's key and value maps give `rows` [N, L, 2, D] in a document's first N places."""
    hooks, layers = [], {"key": [], "value": [], "joined": []}
    for path, module in model.named_modules():
        end = path.rpartition(".")[2]
        word = {"k": "key", "key_proj": "key", "key": "key", "v": "value", "value_proj": "value", "value": "value",
                "in_proj": "joined"}.get(end)  # fmt: skip
        if word and isinstance(module, torch.nn.Linear):
            layers[word].append((model.get_submodule(path.rpartition(".")[0]), module))

    def hook_of(word: str, owner, own: torch.Tensor):
        def hook(module, inputs, output):
            if output.shape[:2] != (2, N + LENGTHS[0]):
                return output  # maps of distances
            output = output.clone()
            if word == "joined":  # DeBERTa v1: query, key and value of a head side by side, a value's bias later
                heads = owner.num_attention_heads
                parts = output[:, :N].unflatten(-1, (heads, 3, -1))
                parts[..., 1, :] = own[:, 0].unflatten(-1, (heads, -1))
                parts[..., 2, :] = (own[:, 1] - owner.v_bias).unflatten(-1, (heads, -1))
            else:
                output[:, :N] = own[:, 0 if word == "key" else 1]
            return output

        return hook

    for word, found in layers.items():
        for layer, (owner, module) in enumerate(found):
            hooks.append(module.register_forward_hook(hook_of(word, owner, rows[:, layer])))
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", marked(BY_MAPS))
@torch.no_grad()
def test_an_encoder_reads_a_prefix_as_if_its_maps_gave_it_in_the_first_places(name, tmp_path):
    """Where positions are relative, virtual tokens have places as other tokens do: 0..N-1."""
    model = encoders.reference(name)
    model.save_pretrained(tmp_path)
    n_layers, width = model.config.num_hidden_layers, model.config.hidden_size
    rows, (_, tokens, layout) = random_rows(N, n_layers * 2 * width), given(name)
    theirs = embedded(name, model, torch.zeros(N, model.get_input_embeddings().weight.shape[1]))
    with giving(model, rows.view(N, n_layers, 2, width)):
        wanted, there = model(**theirs).logits[:, N:], tokens.doc >= 0
    ours = attach_virtual(load_model(tmp_path), KINDS["prefix"], N, {TENSOR: rows}).eval()
    assert (ours(tokens, layout) - wanted)[there].abs().max() <= limit(wanted)
    bare = model(**theirs).logits[:, N:]  # the control
    assert (bare - wanted)[there].abs().max() > 100 * limit(wanted)


OURS = {
    "prompt": TuneConfig("prompt", virtual_tokens=N),
    "prefix": TuneConfig("prefix", virtual_tokens=N),
    "projected": TuneConfig("prefix", virtual_tokens=N, projection=7),
}


@pytest.mark.parametrize("kind", list(OURS))
@torch.no_grad()
def test_every_document_of_a_packed_or_padded_batch_has_virtual_tokens_of_its_own(kind):
    model = tune(tiny("bert", task="lm"), OURS[kind], 1).eval()
    rows, lengths = ids(3, 12), (12, 7, 5)
    alone = [model(one_document(row[None, :n]), OneDocument())[0] for row, n in zip(rows, lengths, strict=True)]
    together = model(*padded([row[:n].tolist() for row, n in zip(rows, lengths, strict=True)]))
    doc = torch.tensor([[0] * 12, [0] * 7 + [1] * 5])
    pos = torch.tensor([[*range(12)], [*range(7), *range(5)]])
    packed = torch.cat((rows[0], rows[1][:7], rows[2][:5])).view(2, 12)
    found = model(Tokens(packed, pos, doc), Packed((0, 12, 19, 24), 12))
    for part, row, wanted in zip((found[0], found[1, :7], found[1, 7:]), together, alone, strict=True):
        torch.testing.assert_close(part, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        torch.testing.assert_close(row[: len(wanted)], wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert (logits(tiny("bert", task="lm"), rows[:1])[0] - alone[0]).abs().max() > 1e-2  # the control


def test_an_encoders_prompt_stays_a_prompt_and_a_prefix_becomes_its_keys_and_values_when_it_is_served():
    rows = ids(2, 12)
    for kind, config in OURS.items():
        model = tune(tiny("bert", task="lm"), config, 1).eval()
        wanted = logits(model, rows)
        assert torch.allclose(logits(served(model), rows), wanted, atol=1e-6)
        assert hasattr(model.virtual, "inward") == (kind != "prompt")


@pytest.mark.parametrize(
    ("name", "more", "kind", "message"),
    [
        ("t5", {}, "prompt", "expected a decoder or an encoder alone for virtual tokens, got t5, which has both"),
        ("longformer", {}, "prefix", "a pattern says nothing of virtual tokens"),
        ("big_bird", {}, "prompt", "a pattern says nothing of virtual tokens"),
        ("bert", {"attention": "linformer"}, "prompt", "expected layers that see their whole document"),
        ("bert", {"norm": "batch"}, "prompt", "expected layer or rms norms, got batch"),
        ("deberta-v2", {"conv_kernel": 3}, "prefix", "a convolution beside it, .*; use prompt"),
    ],
)
def test_models_without_a_definition_are_refused_with_a_reason(name, more, kind, message):
    sizes = {"width": 64, "layers": 2, "heads": 4, "vocab_size": 64, "context_tokens": 64}
    model = build(family(name).new_config(ShapeConfig(name, **sizes, **more)))
    with pytest.raises(ConfigError, match=message):
        tune(model, OURS[kind])
    if name == "deberta-v2":
        tune(model, OURS["prompt"])  # the control


def test_what_virtual_tokens_leave_of_the_context_is_told():
    model = tune(tiny("bert", task="lm"), TuneConfig("prefix", virtual_tokens=20), 1).eval()
    assert logits(model, ids(1, 44)).shape[1] == 44
    with pytest.raises(ConfigError, match="documents of at most 44 tokens behind 20 virtual ones, got 45"):
        logits(model, ids(1, 45))
    with pytest.raises(ConfigError, match="fewer than the context of 64"):
        tune(tiny("bert", task="lm"), TuneConfig("prompt", virtual_tokens=64))
    kind = TaskKind("regression")
    assert reader_of(model.config, wordpiece(), 0, kind, 20).max_tokens == 44
    with pytest.raises(ConfigError, match="8 to the context of 64 less 20 virtual tokens, got 45"):
        reader_of(model.config, wordpiece(), 45, kind, 20)


def test_gradients_of_a_prompt_are_those_of_transformers(tmp_path):
    """And no weight of the base has one."""
    model = encoders.reference("bert")
    model.save_pretrained(tmp_path)
    rows = random_rows(N, model.config.hidden_size).requires_grad_()
    _, tokens, layout = given("bert")
    there = (tokens.doc >= 0).float()
    their = model(**embedded("bert", model, rows)).logits[:, N:]
    (their.square().mean(-1) * there).sum().backward()
    ours = attach_virtual(load_model(tmp_path), KINDS["prompt"], N, {TENSOR: rows.detach()}).eval()
    ours.virtual.requires_grad_()
    (ours(tokens, layout).square().mean(-1) * there).sum().backward()
    assert (ours.virtual.rows.grad - rows.grad).abs().max() <= 1e-5 * rows.grad.abs().max()
    assert all(p.grad is None for name, p in ours.named_parameters() if not name.startswith("virtual"))


@torch.no_grad()
def test_an_encoders_prefix_begins_as_the_keys_and_values_that_transformers_makes_of_the_text(tmp_path):
    model = encoders.reference("bert")
    model.save_pretrained(tmp_path)
    text = encoders.ids_for(1, N)
    found: list[torch.Tensor] = []
    for layer in model.bert.encoder.layer:
        for linear in (layer.attention.self.key, layer.attention.self.value):
            linear.register_forward_hook(lambda module, inputs, output: found.append(output[0]))
    model(input_ids=text)
    asked = TuneConfig("prefix", virtual_tokens=N, init="text", init_text="a")
    rows = tune(load_model(tmp_path), asked, 0, text[0].tolist()).virtual.rows
    wanted = torch.cat(found, 1)
    assert (rows - wanted).abs().max() <= limit(wanted)
    assert (wanted - wanted.roll(1, 0)).abs().max() > 100 * limit(wanted)  # the control: which token matters
