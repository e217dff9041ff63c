"""Decoder families against transformers on tiny random models with every parameter randomised, fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import save_file

from fledge.batch import Cached, OneDocument, Tokens, one_document, padded
from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.count import count
from fledge.model.families import family
from fledge.model.folder import load_model, save_model
from fledge.model.retask import task_config
from fledge.model.transformer import build, new_cache
from fledge.nn.config import Alibi
from tests.parity.decoder_cases import CASES, changed, sampled
from tests.parity.reference import limit, mask_of, some_ids

LENGTHS = (40, 7, 23)


@pytest.fixture(params=sampled(CASES))
def pair(request, tmp_path):
    model = CASES[request.param].model()
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path / "theirs", tmp_path / "ours"


@pytest.mark.shows("load", "logits", "padded", "gradients", "cache")
def test_logits_gradients_padding_and_decoding_are_those_of_transformers(pair):
    model, theirs, _ = pair
    ids, mine = some_ids(), load_model(theirs)
    logits_are_equal(model, mine, ids)
    padded_logits_are_equal(model, mine, ids)
    gradients_are_equal(model, mine, ids)
    decoding_is_one_pass(mine.eval(), ids)


@torch.no_grad()
def logits_are_equal(model, mine, ids):
    expected, got = model(ids).logits, mine(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)


@torch.no_grad()
def padded_logits_are_equal(model, mine, ids):
    tokens, layout = padded([ids[b, :n].tolist() for b, n in enumerate(LENGTHS)])
    expected = model(tokens.ids, attention_mask=mask_of(LENGTHS, 40)).logits
    if (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") in ("longrope", "dynamic"):
        # transformers turns every row by its longest neighbour's frequencies, here each goes by its own length
        for b, n in enumerate(LENGTHS):
            expected[b, :n] = model(ids[b : b + 1, :n]).logits[0]
    got = mine(tokens, layout)
    for b, n in enumerate(LENGTHS):
        assert (expected[b, :n] - got[b, :n]).abs().max() <= limit(expected[b, :n])
    assert bool(torch.isfinite(got).all())


def gradients_are_equal(model, mine, ids):
    targets, weight = torch.roll(ids, -1, 1), torch.ones(ids.shape)
    weight[:, -1] = 0
    mine.train().loss_sum(one_document(ids), OneDocument(), targets, weight).backward()
    logits = model(ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    expected = model.get_input_embeddings().weight.grad
    assert torch.linalg.vector_norm(mine.embedding.weight.grad - expected) <= 1e-4 * torch.linalg.vector_norm(expected)
    total = sum(float(p.grad.double().square().sum()) for p in mine.parameters())
    theirs = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    assert total**0.5 == pytest.approx(theirs**0.5, rel=1e-4)


@torch.no_grad()
def decoding_is_one_pass(mine, ids):
    """Two rows at different places of their documents; a chunk, then token by token, beyond the windows."""
    whole = mine(one_document(ids), OneDocument())
    cache, length = new_cache(mine, 2, ids.shape[1]), ids.shape[1]
    tables, got = (cache.whole_table(0), cache.whole_table(1)), torch.zeros_like(whole[:2])
    place = [0, 0]
    while min(place) < length:
        counts = [min(9 if p < 9 * (row + 1) else 1, length - p) for row, p in enumerate(place)]
        tokens = Tokens(
            *(torch.zeros(2, max(counts), dtype=torch.long) for _ in range(2)), -torch.ones(2, max(counts)).long()
        )
        for row, (p, n) in enumerate(zip(place, counts, strict=True)):
            tokens.ids[row, :n], tokens.pos[row, :n], tokens.doc[row, :n] = (
                ids[row, p : p + n],
                torch.arange(p, p + n),
                0,
            )
        logits = mine(tokens, Cached(tables, tuple(place), tuple(counts), (0, 1)), cache)
        for row, (p, n) in enumerate(zip(place, counts, strict=True)):
            got[row, p : p + n] = logits[row, :n]
            place[row] += n
    assert (whole[:2] - got).abs().max() <= 2 * limit(whole)


@pytest.mark.shows("save")
def test_a_folder_of_ours_opens_in_transformers_and_here_with_the_same_bits(pair):
    model, theirs, ours = pair
    first = load_model(theirs)
    save_model(first, ours)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        ours, attn_implementation=model.config._attn_implementation, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids, state = some_ids(), again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():  # not to the bit: where a file's tensor begins in memory decides the order of sums
        assert torch.allclose(model(ids).logits, again.eval()(ids).logits, rtol=0, atol=limit(model(ids).logits))
    second = load_model(ours)
    assert first.config == second.config
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


KNOBS = [(name, change) for name, case in CASES.items() for change in case.knobs]


@pytest.mark.shows("control")
@pytest.mark.parametrize(
    ("name", "change"),
    [pytest.param(*knob, marks=() if i % 9 == 0 else pytest.mark.slow) for i, knob in enumerate(KNOBS)],
)
def test_a_wrong_knob_changes_the_logits_as_it_does_in_transformers(name, change, tmp_path):
    """The control: parity would fail if a knob were ignored."""
    model, ids = CASES[name].model(), some_ids()
    model.save_pretrained(tmp_path)
    changed(tmp_path, change)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=CASES[name].kernel).eval()
    with torch.no_grad():
        before, got = model(ids).logits, load_model(tmp_path)(one_document(ids), OneDocument())
        expected = other(ids).logits
    assert (before - got).abs().max() > limit(before)
    assert (expected - got).abs().max() <= limit(expected)


@pytest.mark.parametrize("name", ["cohere-normed-grouped", "stablelm-normed", "phi-normed"])
@torch.no_grad()
def test_norms_of_queries_and_keys_are_counted_and_read_head_by_head(name, tmp_path):
    model, ids = CASES[name].model(), some_ids()
    model.save_pretrained(tmp_path)
    mine = load_model(tmp_path)
    assert count(mine.config).parameters == sum(p.numel() for p in model.parameters())
    expected = mine(one_document(ids), OneDocument())
    norm = mine.decoder.layers[1].attention.q_norm
    if mine.config.stack.layers[0].mixer.qk_norm == "own":
        norm.heads[0], norm.heads[1] = norm.heads[1], norm.heads[0]
    else:
        norm.bias.zero_()
    assert (expected - mine(one_document(ids), OneDocument())).abs().max() > limit(expected)  # the control
    key = "use_qk_norm" if name.startswith("cohere") else "qk_layernorm"
    changed(tmp_path, {key: False})
    with pytest.raises(CheckpointError, match="unexpected tensor"):
        load_model(tmp_path)


@torch.no_grad()
def test_a_narrow_opt_widens_before_its_positions_and_has_no_heads_here(tmp_path):
    model, ids = CASES["opt-narrow"].model(), some_ids()
    model.save_pretrained(tmp_path)
    mine = load_model(tmp_path)
    assert count(mine.config).parameters == sum(p.numel() for p in model.parameters())
    expected = mine(one_document(ids), OneDocument())
    assert (expected - model(ids).logits).abs().max() <= limit(expected)
    for owner in (mine.transform.dense, mine.decoder.inputs.widen):  # the controls
        owner.weight.mul_(1.01)
        assert (expected - mine(one_document(ids), OneDocument())).abs().max() > limit(expected)
    shape = ShapeConfig("opt", width=48, layers=1, heads=4, context_tokens=64, vocab_size=101, embedding_width=20)
    assert family("opt").new_config(shape).stack.norm_at == ("residual",)
    with pytest.raises(ConfigError, match="expected no head 'sequence' .a narrow embedding's heads"):
        family("opt").new_config(replace(shape, task="sequence"))
    with pytest.raises(ConfigError, match="a narrow embedding's heads read states of its width"):
        task_config(mine.config, "sequence")
    for name in ("OPTForSequenceClassification", "OPTModel"):
        changed(tmp_path, {"architectures": [name]})
        with pytest.raises(ConfigError, match="a narrow embedding's heads read states of its width"):
            load_model(tmp_path)


@torch.no_grad()
def test_dense_layers_among_mixtures_are_counted_and_read_in_both_spellings(tmp_path):
    model, ids = CASES["qwen3-moe-dense-first"].model(), some_ids()
    model.save_pretrained(tmp_path)
    mine = load_model(tmp_path)
    assert count(mine.config).parameters == sum(p.numel() for p in model.parameters())
    save_file({name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    expected, got = model(ids).logits, load_model(tmp_path)(one_document(ids), OneDocument())
    assert (expected - got).abs().max() <= limit(expected)
    mine.decoder.layers[0].ffn.down.weight.mul_(1.01)  # the control
    assert (expected - mine(one_document(ids), OneDocument())).abs().max() > limit(expected)
    for wrong, match in (
        ([1], "unexpected tensor"),
        ([], "unexpected tensor"),
        ([0, 1, 2], "a layer with experts"),
        ([3], "layers of 0..2"),
    ):
        changed(tmp_path, {"mlp_only_layers": wrong})
        with pytest.raises((CheckpointError, ConfigError), match=match):
            load_model(tmp_path)


@torch.no_grad()
def test_falcon_s_alibi_is_as_coarse_as_it_was_trained_beyond_what_bfloat16_counts(tmp_path):
    model, ids = CASES["falcon-alibi"].model(), some_ids(1, 400)
    model.save_pretrained(tmp_path)
    mine = load_model(tmp_path)
    expected, tokens = model(ids).logits, one_document(ids)
    assert (expected - mine(tokens, OneDocument())).abs().max() <= limit(expected)
    layers = tuple(replace(layer, position=Alibi()) for layer in mine.config.stack.layers)
    exact = build(replace(mine.config, decoder=replace(mine.config.stack, layers=layers)), "cpu")
    exact.load_state_dict(mine.state_dict())
    assert (expected - exact(tokens, OneDocument())).abs().max() > limit(expected)  # the control
    with pytest.raises(ConfigError, match="has no window"):
        windowed = replace(layers[0], position=Alibi(coarse=True), window=8)
        replace(mine.config, decoder=replace(mine.config.stack, layers=(windowed,)))
