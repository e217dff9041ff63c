"""T5 and BART against transformers on tiny random models with every parameter randomised, fp32; and decoding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fledge.batch import Cached, OneDocument, Tokens, one_document, padded
from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import load_model, parse_config, save_model
from fledge.model.init import initialise
from fledge.model.show import show
from fledge.model.show_config import ShowConfig
from fledge.model.transformer import Transformer, build, new_cache
from tests.parity.encoder_decoder_cases import CASES, SOURCE, SOURCE_LENGTHS, TARGET, TARGET_LENGTHS, reference, widened
from tests.parity.reference import VOCAB, limit, mask_of, randomised, some_ids


def ids() -> tuple[torch.Tensor, torch.Tensor]:
    return some_ids(3, SOURCE), some_ids(3, TARGET)


def ours(model: Transformer, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return model(one_document(target), OneDocument(), source=(one_document(source), OneDocument()))


def theirs(model: transformers.PreTrainedModel, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return model(input_ids=source, decoder_input_ids=target).logits


@pytest.fixture(params=list(CASES))
def pair(request, tmp_path: Path):
    model = reference(request.param)
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path / "theirs", tmp_path / "ours"


def rewritten(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(change)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.shows("load", "logits")
@torch.no_grad()
def test_a_folder_of_transformers_gives_its_logits(pair):
    model, folder, _ = pair
    expected = theirs(model, *ids())
    assert (expected - ours(load_model(folder), *ids())).abs().max() <= limit(expected)


@pytest.mark.shows("padded")
@torch.no_grad()
def test_padded_sources_and_targets_give_the_logits_of_transformers_with_its_masks(pair):
    model, folder, _ = pair
    source, target = ids()
    rows = [padded([x[b, :n].tolist() for b, n in enumerate(lengths)])
            for x, lengths in ((source, SOURCE_LENGTHS), (target, TARGET_LENGTHS))]  # fmt: skip
    expected = model(
        input_ids=rows[0][0].ids,
        attention_mask=mask_of(SOURCE_LENGTHS, SOURCE),
        decoder_input_ids=rows[1][0].ids,
        decoder_attention_mask=mask_of(TARGET_LENGTHS, TARGET),
    ).logits
    got = load_model(folder)(*rows[1], source=rows[0])
    for b, n in enumerate(TARGET_LENGTHS):
        assert (expected[b, :n] - got[b, :n]).abs().max() <= limit(expected[b, :n])
    assert bool(torch.isfinite(got).all())


@pytest.mark.shows("save")
@torch.no_grad()
def test_a_folder_of_ours_opens_in_transformers_with_the_same_logits(pair):
    model, folder, saved = pair
    save_model(load_model(folder), saved)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(saved).eval()
    assert type(again) is type(model)
    assert torch.equal(theirs(model, *ids()), theirs(again, *ids()))
    assert again.config.decoder_start_token_id == model.config.decoder_start_token_id


def test_a_round_trip_through_both_folders_keeps_every_bit(pair):
    _, folder, saved = pair
    first = load_model(folder)
    save_model(first, saved)
    second = load_model(saved)
    assert first.config == second.config
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.shows("gradients")
def test_one_step_gradients_equal_those_of_transformers(pair):
    model, folder, _ = pair
    source, target = ids()
    mine = load_model(folder).train()
    labels = torch.roll(target, 1, 1)
    rows = (one_document(source), OneDocument())
    mine.loss_sum(one_document(target), OneDocument(), labels, torch.ones(labels.shape), rows).backward()
    logits = theirs(model, source, target)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    expected = model.get_input_embeddings().weight.grad
    got = mine.embedding.weight.grad
    assert model.config.pad_token_id not in source  # whose gradient transformers keeps at zero
    assert torch.linalg.vector_norm(got - expected) <= 1e-4 * torch.linalg.vector_norm(expected)
    total = sum(float(p.grad.double().square().sum()) for p in mine.parameters())
    theirs_total = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    assert total == pytest.approx(theirs_total, rel=2e-4)  # squares: the norm agrees to half of it


@pytest.mark.shows("cache")
@torch.no_grad()
@pytest.mark.parametrize("chunks", [(21,), (9, 12), (4, *[1] * 17)], ids=["at once", "two chunks", "token by token"])
def test_cached_decoding_gives_the_logits_of_one_pass_and_of_transformers(pair, chunks):
    model, folder, _ = pair
    mine = load_model(folder)
    source, target = (x[:2] for x in ids())
    rows = padded([source[0].tolist(), source[1, :7].tolist()])
    mask = mask_of((SOURCE, 7), SOURCE)
    expected = model(input_ids=rows[0].ids, attention_mask=mask, decoder_input_ids=target).logits
    cache, start, got = new_cache(mine, 3, TARGET), 0, []
    for name, one in ((b"long", source[0]), (b"short", source[1, :7])):
        mine.keep_source(cache, name, one)
    for n in chunks:
        pos = torch.arange(start, start + n).expand(2, -1)
        tokens = Tokens(target[:, start : start + n], pos, torch.zeros_like(pos))
        layout = Cached(
            (cache.whole_table(2), cache.whole_table(0)), (start, start), (n, n), (2, 0), (b"long", b"short")
        )
        got.append(mine(tokens, layout, cache))
        start += n
    assert (torch.cat(got, 1) - expected).abs().max() <= limit(expected)
    whole = mine(one_document(target), OneDocument(), source=rows)
    assert (torch.cat(got, 1) - whole).abs().max() <= limit(expected)


KNOBS = [
    ("t5", "relative_attention_num_buckets", 8, {"relative_attention_max_distance": 40}),
    ("t5", "feed_forward_proj", "relu", {"feed_forward_proj": "gelu", "dense_act_fn": "gelu"}),
    ("t5", "layer_norm_epsilon", 1e-6, {"layer_norm_epsilon": 1e-1}),
    ("t5", "scale_decoder_outputs", True, {"scale_decoder_outputs": False}),
    ("t5-v1.1", "feed_forward_proj", "gated-gelu", {"feed_forward_proj": "gated-silu", "dense_act_fn": "silu"}),
    ("mt5", "feed_forward_proj", "gated-gelu", {"feed_forward_proj": "gated-silu", "dense_act_fn": "silu"}),
    ("mt5-relu", "layer_norm_epsilon", 1e-6, {"layer_norm_epsilon": 1e-1}),
    ("mt5-relu", "relative_attention_num_buckets", 8, {"relative_attention_max_distance": 40}),
    ("bart", "scale_embedding", False, {"scale_embedding": True}),
    ("bart", "activation_function", "gelu", {"activation_function": "relu"}),
    ("bart", "decoder_attention_heads", 6, {"decoder_attention_heads": 4}),
]


@pytest.mark.shows("control")
@torch.no_grad()
@pytest.mark.parametrize(("name", "key", "was", "change"), KNOBS, ids=str)
def test_a_wrong_knob_in_the_config_changes_the_logits(name, key, was, change, tmp_path):
    """The control: parity would fail if a knob were ignored."""
    model = reference(name)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[key] == was
    rewritten(tmp_path, change)
    expected = theirs(model, *ids())
    assert (expected - ours(load_model(tmp_path), *ids())).abs().max() > 10 * limit(expected)


@pytest.mark.shows("spelling")
@torch.no_grad()
@pytest.mark.parametrize("name", ["t5", "t5-v1.1"])
def test_the_spelling_of_transformers_4_is_read(name, tmp_path):
    model = reference(name)
    model.save_pretrained(tmp_path)
    tie = name == "t5"
    rewritten(tmp_path, {"scale_decoder_outputs": "absent", "dense_act_fn": "absent", "is_gated_act": "absent",
                         "tie_word_embeddings": tie, "n_positions": 512, "torch_dtype": "float32"})  # fmt: skip
    expected = theirs(model, *ids())
    mine = load_model(tmp_path)
    assert mine.config.tie is tie
    assert (expected - ours(mine, *ids())).abs().max() <= limit(expected)


@torch.no_grad()
def test_an_output_matrix_that_differs_from_the_embedding_is_not_tied_whatever_the_config_says(tmp_path):
    model = reference("t5-v1.1")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    assert load_model(tmp_path).config.tie is False


@torch.no_grad()
@pytest.mark.parametrize(("name", "prefix"), [("t5", ""), ("bart", "model.")])
def test_copies_of_the_embedding_are_known_and_a_copy_that_differs_is_refused(name, prefix, tmp_path):
    model = reference(name)
    model.save_pretrained(tmp_path)
    expected = theirs(model, *ids())
    state = load_file(tmp_path / "model.safetensors")
    shared, copies = f"{prefix}shared.weight", [f"{prefix}{s}.embed_tokens.weight" for s in ("encoder", "decoder")]
    with_copies = state | {copy: state[shared].clone() for copy in copies} | {"lm_head.weight": state[shared].clone()}
    without_shared = {k: v for k, v in with_copies.items() if k != shared}
    for variant in (with_copies, without_shared):
        save_file(variant, tmp_path / "model.safetensors")
        mine = load_model(tmp_path)
        assert mine.config.tie
        assert (expected - ours(mine, *ids())).abs().max() <= limit(expected)
    save_file(with_copies | {copies[0]: state[shared] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected a copy of"):
        load_model(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_bare_model_gives_its_states_and_is_saved_as_such(name, tmp_path):
    model = randomised(transformers.AutoModel.from_config(CASES[name]()))
    model.save_pretrained(tmp_path / "theirs")
    source, target = ids()
    expected = model(input_ids=source, decoder_input_ids=target).last_hidden_state
    mine = load_model(tmp_path / "theirs")
    got = mine.hidden(one_document(target), OneDocument(), source=(one_document(source), OneDocument()))
    assert not mine.config.lm and (expected - got).abs().max() <= limit(expected)
    save_model(mine, tmp_path / "ours")
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(model)
    assert torch.equal(expected, again(input_ids=source, decoder_input_ids=target).last_hidden_state)


@torch.no_grad()
def test_keys_and_values_of_the_source_are_computed_once_while_decoding(tmp_path):
    reference("bart").save_pretrained(tmp_path)
    mine = load_model(tmp_path)
    source, target = (x[:2] for x in ids())
    rows, computed = (one_document(source), OneDocument()), []
    for block in mine.decoder.blocks():
        block.cross.kv.register_forward_hook(lambda *_: computed.append(1))
    whole, n_layers = mine(one_document(target), OneDocument(), source=rows), len(computed)
    assert n_layers == len(mine.decoder.blocks())
    cache = new_cache(mine, 2, TARGET)
    names = (b"first", b"second")
    for name, one in zip(names, source, strict=True):
        mine.keep_source(cache, name, one)
    computed.clear()

    def decoded(names_at: list[tuple[bytes, bytes]]) -> torch.Tensor:
        steps = []
        for p, sources in enumerate(names_at):
            pos = torch.full((2, 1), p)
            tokens = Tokens(target[:, p : p + 1], pos, torch.zeros_like(pos))
            tables = (cache.whole_table(0), cache.whole_table(1))
            steps.append(mine(tokens, Cached(tables, (p, p), (1, 1), (0, 1), sources), cache))
        return torch.cat(steps, 1)

    once = decoded([names] * TARGET)
    assert not computed
    assert (once - whole).abs().max() <= limit(whole)
    other = decoded(
        [names] * 5 + [names[::-1]] * (TARGET - 5)
    )  # the control: the other's source is not mistaken for it
    assert torch.equal(other[:, :5], once[:, :5]) and (other - once)[:, 5:].abs().max() > limit(whole)
    for unknown, n_kept in (((), 0), ((b"first", b"third"), 1)):
        with pytest.raises(ConfigError, match=f"expected a kept source for each of 2 rows, got {n_kept}"):
            decoded([unknown])


HEADS = {
    "T5ForSequenceClassification": "sequence",
    "T5ForTokenClassification": "token",
    "T5ForQuestionAnswering": "span",
    "MT5ForSequenceClassification": "sequence",
    "MT5ForTokenClassification": "token",
    "BartForSequenceClassification": "sequence",
    "BartForQuestionAnswering": "span",
}


@torch.no_grad()
@pytest.mark.parametrize("architecture", list(HEADS))
def test_a_head_answers_as_transformers_does_and_its_folder_opens_there(architecture, tmp_path):
    stem = architecture.split("For")[0].lower()
    config = CASES["mt5-relu" if stem == "mt5" else stem]()
    config.num_labels, head = (2 if HEADS[architecture] == "span" else 4), HEADS[architecture]
    model = randomised(getattr(transformers, architecture)(config))
    if architecture.startswith("Bart"):
        widened(model)
    model.save_pretrained(tmp_path / "theirs")
    mine, source = load_model(tmp_path / "theirs"), ids()[0]
    for b, n in enumerate(SOURCE_LENGTHS):
        source[b, n - 1] = config.eos_token_id
    rows = padded([source[b, :n].tolist() for b, n in enumerate(SOURCE_LENGTHS)], pad_id=config.pad_token_id)
    given = {"input_ids": rows[0].ids, "attention_mask": mask_of(SOURCE_LENGTHS, SOURCE)}

    def answer(one: transformers.PreTrainedModel) -> torch.Tensor:
        output = one(**given)
        return torch.stack((output.start_logits, output.end_logits), -1) if head == "span" else output.logits

    expected, got = answer(model), mine.head(head, *rows)
    for b, n in enumerate(SOURCE_LENGTHS):
        one, other = (expected[b], got[b]) if head == "sequence" else (expected[b, :n], got[b, :n])
        assert one.shape == other.shape and (one - other).abs().max() <= limit(one)
    save_model(mine, tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(answer(again.eval()), expected)
    assert load_model(tmp_path / "ours").config == mine.config
    if mine.config.decoder is not None:  # the control: the decoder reads the source one place later
        plain = mine.head(head, *rows, source=rows)
        assert (plain - got)[0].abs().max() > limit(expected)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["T5ForSequenceClassification", "T5ForTokenClassification"])
def test_a_classifier_s_file_may_hold_its_embedding_under_the_names_of_its_stacks_too(architecture, tmp_path):
    model = randomised(getattr(transformers, architecture)(CASES["t5"]()))
    model.save_pretrained(tmp_path)
    plain = load_model(tmp_path).state_dict()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    copy, original = "transformer.encoder.embed_tokens.weight", "transformer.shared.weight"
    assert {copy, original} <= state.keys()
    for variant in (state, {name: value for name, value in state.items() if name != original}):
        save_file(variant, tmp_path / "model.safetensors")
        got = load_model(tmp_path).state_dict()
        assert got.keys() == plain.keys() and all(torch.equal(value, got[name]) for name, value in plain.items())
    save_file(state | {copy: state[copy] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected a copy of"):
        load_model(tmp_path)


@torch.no_grad()
def test_t5_s_encoder_alone_gives_its_states_and_is_saved_as_such(tmp_path):
    model = randomised(transformers.T5EncoderModel(CASES["t5"]()))
    model.save_pretrained(tmp_path / "theirs")
    mine, source = load_model(tmp_path / "theirs"), ids()[0]
    rows = padded([source[b, :n].tolist() for b, n in enumerate(SOURCE_LENGTHS)])
    expected = model(input_ids=rows[0].ids, attention_mask=mask_of(SOURCE_LENGTHS, SOURCE)).last_hidden_state
    got = mine.hidden(*rows)
    for b, n in enumerate(SOURCE_LENGTHS):
        assert (expected[b, :n] - got[b, :n]).abs().max() <= limit(expected[b, :n])
    save_model(mine, tmp_path / "ours")
    again, info = transformers.T5EncoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again.eval()(source).last_hidden_state, model(source).last_hidden_state)
    assert load_model(tmp_path / "ours").config == mine.config and mine.config.decoder is None
    with pytest.raises(ConfigError, match="expected a decoder"):
        new_cache(mine, 1)


def test_a_class_that_is_not_read_is_refused_by_name():
    for name, architecture in (("t5", "T5ForMaskedLM"), ("bart", "BartForCausalLM")):
        with pytest.raises(ConfigError, match="architectures: expected one of"):
            parse_config({"model_type": name, "architectures": [architecture]})


def test_a_bias_on_the_logits_that_is_not_zero_is_refused(tmp_path):
    reference("bart").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"final_logits_bias": torch.ones(1, VOCAB)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="final_logits_bias: expected zeros"):
        load_model(tmp_path)
    save_file({k: v for k, v in state.items() if k != "final_logits_bias"}, tmp_path / "model.safetensors")
    load_model(tmp_path)


REFUSED = [
    ("t5", {"feed_forward_proj": "gated-nothing"}, "feed_forward_proj"),
    ("t5", {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}, "dense_act_fn"),
    ("t5", {"feed_forward_proj": "relu", "is_gated_act": True}, "is_gated_act"),
    ("t5", {"is_decoder": True}, "is_decoder"),
    ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder"),
    ("bart", {"is_decoder": True}, "is_decoder"),
    ("bart", {"normalize_before": True}, "normalize_before"),
    ("bart", {"normalize_embedding": False}, "normalize_embedding"),
    ("bart", {"add_final_layer_norm": True}, "add_final_layer_norm"),
    ("bart", {"decoder_attention_heads": 7}, "decoder_attention_heads"),
]


@pytest.mark.parametrize(("name", "change", "named"), REFUSED, ids=str)
def test_what_a_family_cannot_do_is_refused_by_name(name, change, named):
    raw = json.loads(CASES[name]().to_json_string(use_diff=False))
    parse_config(raw)
    with pytest.raises(ConfigError, match=named):
        parse_config({**{k: v for k, v in raw.items() if k not in ("dense_act_fn", "is_gated_act")}, **change})


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_an_exact_gelu_behind_a_gate_is_refused_as_no_folder_can_say_it(name):
    shape = ShapeConfig(name, width=32, layers=2, heads=4, context_tokens=64, vocab_size=VOCAB, gated=True)
    own = family(name)
    for activation in ("gelu_tanh", "silu", "relu"):
        config = own.build(replace(shape, activation=activation))
        assert (
            own.read({**own.write(config), "vocab_size": VOCAB, "tie_word_embeddings": False}).stacks == config.stacks
        )
    with pytest.raises(ConfigError, match=r"model\.activation: expected gelu_tanh"):
        own.write(own.build(replace(shape, activation="gelu")))


HOSTILE = (10**9, -1, float("nan"), float("inf"), "many", True, [3], {"a": 1}, 2**70)


@pytest.mark.parametrize("value", HOSTILE, ids=str)
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_hostile_numbers_are_refused_before_anything_is_built(name, value):
    raw = json.loads(CASES[name]().to_json_string(use_diff=False))
    numbers = ("num_layers", "num_decoder_layers", "num_heads", "d_kv", "d_ff", "d_model", "vocab_size",
               "layer_norm_epsilon", "relative_attention_num_buckets", "relative_attention_max_distance",
               "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_ffn_dim",
               "max_position_embeddings")  # fmt: skip
    for key in set(numbers) & set(raw):
        if key == "layer_norm_epsilon" and value in (10**9, 2**70):
            continue  # a strange number, but one that can be computed with
        with pytest.raises(ConfigError):
            parse_config({**raw, key: value})


PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-base": 247_577_856,
    "flan-t5-base": 247_577_856,
    "mt5-small": 300_176_768,
    "mt5-base": 582_401_280,
    "mt5-xl": 3_742_619_648,
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
}


@pytest.mark.parametrize(("preset", "expected"), PUBLISHED.items())
def test_a_preset_has_the_published_number_of_parameters(preset, expected):
    assert show(ShowConfig(preset), json=True)["parameters"] == expected


@torch.no_grad()
@pytest.mark.parametrize("shape", [
    ShapeConfig("t5", width=32, layers=2, heads=4, context_tokens=64, vocab_size=VOCAB),
    ShapeConfig("t5", width=32, layers=2, heads=4, context_tokens=64, vocab_size=VOCAB, gated=True, encoder_layers=1),
    ShapeConfig("bart", width=32, layers=1, encoder_layers=2, heads=4, context_tokens=64, vocab_size=VOCAB),
], ids=["t5", "t5 gated", "bart"])  # fmt: skip
def test_a_new_model_is_saved_and_opens_in_transformers(shape, tmp_path):
    model = initialise(build(family(shape.family).build(shape), "cpu"), 3).eval()
    save_model(model, tmp_path)
    expected = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    logits = theirs(expected, *ids())
    assert (logits - ours(model, *ids())).abs().max() <= limit(logits)
    assert load_model(tmp_path).config.stacks == model.config.stacks
