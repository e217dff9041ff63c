"""Every position with every attention: finite, the same packed, padded or decoded, blind to what it must not see."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from fledge.batch import Cached, OneDocument, Packed, Tokens, one_document, padded
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, parse_config, save_model
from fledge.model.init import initialise
from fledge.model.positions_page import attempt, page, pair
from fledge.model.transformer import Transformer, build, new_cache
from fledge.model.variants import ATTENTIONS, POSITIONS
from fledge.nn.attention import sight_of
from fledge.nn.linear_attention import kernelised
from fledge.nn.low_rank import low_rank
from fledge.nn.visibility import Sight, visible
from tests.house.source import ROOT

NUMBERS = {
    "window": {"window": 6},
    "longformer": {"window": 6},
    "bigbird": {"block": 4, "random_blocks": 1},
    "strided": {"stride": 4},
    "fixed": {"stride": 4, "summary": 2},
    "linformer": {"rank": 5},
}
ALL = list(itertools.product(POSITIONS, ATTENTIONS, (True, False)))
DEFINED = [triple for triple in ALL if not attempt(*triple)]
LENGTH = 40


def config_of(position: str, attention: str, causal: bool) -> ModelConfig:
    return pair(position, attention, causal, **NUMBERS.get(attention, {}))


def model_of(config: ModelConfig, std: float = 0.3) -> Transformer:
    config = replace(config, init=replace(config.init, name="normal", std=std))
    return initialise(build(config, "cpu"), 5).eval()


def some_ids(rows: int = 1, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(3))


def packed(*lengths: int) -> tuple[Tokens, Packed]:
    pos = torch.tensor([[i for n in lengths for i in range(n)]])
    doc = torch.tensor([[d for d, n in enumerate(lengths) for _ in range(n)]])
    bounds = tuple(itertools.accumulate(lengths, initial=0))
    return Tokens(some_ids(1, sum(lengths)), pos, doc), Packed(bounds, max(lengths))


@pytest.mark.parametrize("triple", DEFINED, ids=str)
def test_a_pair_is_finite_forward_and_back_and_each_of_its_parameters_matters(triple):
    model = model_of(config_of(*triple)).train()
    ids = some_ids()
    logits = model(one_document(ids), OneDocument())
    (logits * torch.arange(logits.numel()).view(logits.shape).cos()).sum().backward()
    assert bool(torch.isfinite(logits).all())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0).any()), name


@torch.no_grad()
@pytest.mark.parametrize("triple", [t for t in DEFINED if t[0] != "none"], ids=str)
def test_a_position_makes_a_difference(triple):
    """The control of all others: the model differs from one without positions, whose other weights are the same."""
    with_it, without = (model_of(config_of(position, *triple[1:])) for position in (triple[0], "none"))
    tokens = one_document(some_ids())
    assert (with_it(tokens, OneDocument()) - without(tokens, OneDocument())).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("triple", DEFINED, ids=str)
def test_a_document_gets_the_same_logits_alone_packed_and_padded(triple):
    model = model_of(config_of(*triple))
    tokens, layout = packed(13, 27)
    together = model(tokens, layout)
    rows, rows_layout = padded([tokens.ids[0, :13].tolist(), tokens.ids[0, 13:].tolist()])
    beside = model(rows, rows_layout)
    whole = model(one_document(tokens.ids), OneDocument())
    for row, part in enumerate((slice(0, 13), slice(13, 40))):
        alone = model(one_document(tokens.ids[:, part]), OneDocument())[0]
        near = 2e-5 * max(1.0, float(alone.abs().max()))
        assert (together[0, part] - alone).abs().max() < near
        assert (beside[row, : len(alone)] - alone).abs().max() < near
    assert (together - whole)[0, 13:].abs().max() > 1e-3  # the control: boundaries matter


@torch.no_grad()
@pytest.mark.parametrize("triple", [t for t in DEFINED if t[2]], ids=str)
def test_decoding_a_pair_gives_the_logits_of_one_pass(triple):
    model, ids = model_of(config_of(*triple)), some_ids()
    whole = model(one_document(ids), OneDocument())
    for chunks in ((17, 23), (15, *[1] * 25)):
        cache, start, got = new_cache(model, 2), 0, []
        for n in chunks:
            pos = torch.arange(start, start + n)[None]
            tokens = Tokens(ids[:, start : start + n], pos, torch.zeros_like(pos))
            got.append(model(tokens, Cached((cache.whole_table(1),), (start,), (n,), (1,)), cache))
            start += n
        assert (torch.cat(got, 1) - whole).abs().max() < 3e-5 * max(1.0, float(whole.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("triple", DEFINED, ids=str)
def test_what_a_token_must_not_see_changes_no_bit_of_it(triple):
    """One layer, so that a token sees what its attention shows it and nothing through others."""
    config = config_of(*triple)
    name, stack = next(iter(config.stacks.items()))
    config = replace(config, **{name: replace(stack, layers=stack.layers[:1])})
    model = model_of(config)
    tokens, layout = packed(11, 29)
    layer = config.stack.layers[0]
    seen = visible(tokens, tokens, sight_of(layer.mixer, triple[2], layer))[0]
    before, changed = model(tokens, layout), 0
    for place in (3, 10, 14, 25, 39):
        ids = tokens.ids.clone()
        ids[0, place] = (ids[0, place] + 7) % 50
        after = model(replace(tokens, ids=ids), layout)
        hidden = ~seen[:, place]
        assert torch.equal(before[0, hidden], after[0, hidden]), place
        changed += int((before != after)[0, seen[:, place]].any(-1).sum())
    assert changed > 15  # the control: what is seen matters


@pytest.mark.parametrize("triple", [t for t in ALL if t not in DEFINED], ids=str)
def test_a_pair_without_a_definition_says_why_and_names_another(triple):
    reason = attempt(*triple)
    assert len(reason) > 30 and (" so " in reason or " see both ways" in reason or "defined for" in reason)
    assert "; use " in reason or "forms no scores" in reason
    position, attention, _ = triple
    with pytest.raises(ConfigError, match=f"model.position={position} model.attention={attention}: .*"):
        config_of(*triple)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_a_window_that_holds_the_document_is_full_attention(causal):
    full, wide, narrow = (
        model_of(pair("rope", attention, causal, **numbers))
        for attention, numbers in (("full", {}), ("window", {"window": 2 * LENGTH + 1}), ("window", {"window": 5}))
    )
    tokens = one_document(some_ids())
    expected = full(tokens, OneDocument())
    assert (wide(tokens, OneDocument()) - expected).abs().max() < 2e-5 * float(expected.abs().max())
    assert (narrow(tokens, OneDocument()) - expected).abs().max() > 1e-2  # the control


def qkv() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, LENGTH, 3, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("causal", [True, False])
def test_linear_attention_is_the_published_formula(causal):
    """Katharopoulos et al. 2020, eq. 9 (and 12 for causal), in float64: Σ φ(q)·φ(k) v / Σ φ(q)·φ(k), φ = elu + 1."""
    q, k, v = qkv()
    got = kernelised(q, k, v, one_document(some_ids(2)), OneDocument(), causal, None, 0)
    q, k, v = (t.double() for t in (q, k, v))
    phi_q, phi_k = (torch.where(t > 0, t + 1, t.exp()) for t in (q, k))
    for row, head, place in itertools.product(range(2), range(3), (0, 7, 39)):
        last = place + 1 if causal else LENGTH
        weights = phi_k[row, :last, head] @ phi_q[row, place, head]
        expected = (weights[:, None] * v[row, :last, head]).sum(0) / weights.sum()
        assert (got[row, place, head] - expected).abs().max() < 1e-5


def test_linformer_is_the_published_formula():
    """Wang et al. 2020, eq. 7, in float64: softmax(q (E k)ᵀ / sqrt(c)) (E v)."""
    q, k, v = qkv()
    projection = torch.randn(5, 64, generator=torch.Generator().manual_seed(4)) / 8
    got = low_rank(q, k, v, OneDocument(), projection, Sight(8**-0.5, causal=False))
    q, k, v, mix = (t.double() for t in (q, k, v, projection[:, :LENGTH]))
    for row, head in itertools.product(range(2), range(3)):
        scores = q[row, :, head] @ (mix @ k[row, :, head]).T * 8**-0.5
        expected = torch.softmax(scores, -1) @ (mix @ v[row, :, head])
        assert (got[row, :, head] - expected).abs().max() < 1e-5


VARIANTS: dict[str, dict[str, Any]] = {
    "llama with alibi": {"family": "llama", "position": "alibi"},
    "llama, learned, window": {"family": "llama", "position": "learned", "attention": "window", "window": 6},
    "gpt2, rope, linear": {"family": "gpt2", "position": "rope", "rope_theta": 500.0, "attention": "linear"},
    "gpt2, sandwich rms": {"family": "gpt2", "norm": "rms", "norm_at": "sandwich"},
    "gpt2, post-norm": {"family": "gpt2", "norm_at": "residual", "dropout": 0.1},
    "t5, alibi": {"family": "t5", "position": "alibi", "norm": "layer"},
}  # fmt: skip


def new_config(**fields: Any) -> ModelConfig:
    shape = ShapeConfig(width=32, layers=2, heads=4, context_tokens=64, vocab_size=50, **fields)
    return family(shape.family).new_config(shape)


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_saved_and_loaded_with_every_bit_and_transformers_refuses_it(name, tmp_path):
    model = model_of(new_config(**VARIANTS[name]))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config and again.config.family == "fledge"
    state = dict(again.named_parameters())
    assert all(torch.equal(parameter, state[key]) for key, parameter in model.named_parameters())
    with pytest.raises(ValueError, match="fledge"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"family": "llama", "position": "rope", "rope_theta": 500.0, "attention": "full"}, "llama"),
        ({"family": "gpt2", "position": "learned", "norm": "layer", "norm_at": "before"}, "gpt2"),
        ({"family": "t5", "position": "buckets"}, "t5"),
    ],
    ids=str,
)
def test_a_choice_that_the_family_makes_itself_stays_in_its_format(fields, expected):
    plain = new_config(**{k: v for k, v in fields.items() if k in ("family", "rope_theta")})
    assert new_config(**fields) == plain and plain.family == expected


def test_a_number_that_nothing_reads_is_refused():
    for fields in ({"stride": 4}, {"rank": 4, "attention": "window"}, {"block": 3, "attention": "strided"}):
        with pytest.raises(ConfigError, match="only; set that too"):
            new_config(**fields)


def test_the_own_format_refuses_what_it_does_not_know_before_anything_is_built():
    raw = json.loads(json.dumps({"model_type": "fledge", **family("fledge").write(new_config(position="alibi"))}))
    assert parse_config(raw)[1] == new_config(position="alibi")
    for path, value in (
        (("decoder", "layers", 0, "times"), 10**9),
        (("decoder", "layers", 0, "times"), True),
        (("decoder", "layers", 0, "mixer", "n_heads"), -1),
        (("decoder", "layers", 0, "mixer", "n_heads"), "4"),
        (("decoder", "layers", 0, "position", "is"), "os.system"),
        (("decoder", "layers", 0, "position"), [1]),
        (("decoder", "layers"), {}),
        (("decoder", "width"), 10**12),
        (("decoder", "norm", "eps"), -1.0),
        (("decoder", "norm", "surprise"), 1),
        (("decoder", "inputs"), None),
        (("logit_softcap"), 0.0),
        (("family"), "llama"),
        (("vocab_size"), 1e300),
    ):
        spoiled = json.loads(json.dumps(raw))
        place = spoiled["model"]
        keys = (path,) if isinstance(path, str) else path
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        with pytest.raises(ConfigError):
            parse_config(spoiled)
    with pytest.raises(ConfigError):
        parse_config({"model_type": "fledge"})


def test_the_page_of_positions_is_current():
    assert (ROOT / "docs" / "positions.md").read_text(encoding="utf-8") == page(), "run: make docs"
