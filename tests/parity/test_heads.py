"""Task heads on encoders and decoders against transformers: what they answer, and their folders both ways."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers

from fledge.batch import GLOBAL, Packed
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import FAMILIES as OURS
from fledge.model.families import family, preset_family
from fledge.model.folder import load_model, parse_config, save_model
from tests.parity.encoders import FAMILIES, class_of, config_of, ids_for, inputs
from tests.parity.reference import VOCAB, limit, mask_of, randomised

NAMES = ("O", "B-PER", "I-PER", "B-LOC")
LENGTHS = {"whole": (24, 24), "padded": (24, 9, 17)}
ENDINGS = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "choice": "ForMultipleChoice",
    "pretraining": "ForPreTraining",
    "next_sentence": "ForNextSentencePrediction",
}
LABELLED = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
PAIRS = [
    (name, task)
    for name in FAMILIES
    for task, ending in ENDINGS.items()
    if class_of(name, ending) is not None and (name, task) not in {("bigbird", "span"), ("deberta", "choice")}
]
NUMBERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
           "vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
DECODERS = {
    "GPT2": lambda **more: transformers.GPT2Config(**GPT2, **more),
    "Llama": lambda **more: transformers.LlamaConfig(**NUMBERS, num_key_value_heads=2, **more),
    "Qwen2": lambda **more: transformers.Qwen2Config(**NUMBERS, num_key_value_heads=2, **more),
}
GROUPED = {**NUMBERS, "num_key_value_heads": 2, "head_dim": 8}
MORE = {
    stem: lambda stem=stem, **more: getattr(transformers, f"{stem}Config")(**GROUPED, **more)
    for stem in ("Mistral", "Mixtral", "Qwen3", "Gemma", "Gemma2", "Gemma3Text", "Phi3", "Olmo2", "Qwen3Moe", "SmolLM3",
                 "Glm4")
} | {
    "Falcon": lambda **more: transformers.FalconConfig(**NUMBERS, **more),
    "OPT": lambda **more: transformers.OPTConfig(**NUMBERS, ffn_dim=48, word_embed_proj_dim=32, **more),
    "GPTBigCode": lambda **more: transformers.GPTBigCodeConfig(**GPT2, **more),
    "GPTNeoX": lambda **more: transformers.GPTNeoXConfig(**NUMBERS, **more),
    "Bloom": lambda **more: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCAB,
                                                     pad_token_id=0, **more),
    "OpenAIGPT": lambda **more: transformers.OpenAIGPTConfig(**GPT2, **more),
}  # fmt: skip
ALL_DECODERS = DECODERS | MORE


def their_answer(model, theirs: dict[str, torch.Tensor], task: str) -> torch.Tensor:
    if task == "choice":
        theirs = {key: value[None] for key, value in theirs.items()}  # one question, every row a choice
    if "Longformer" in type(model).__name__ and task in ("span", "choice"):
        theirs = {**theirs, "global_attention_mask": torch.zeros_like(theirs["input_ids"])}
    output = model(**theirs)
    if task == "span":
        return torch.stack((output.start_logits, output.end_logits), -1)
    if task == "choice":
        return output.logits.t()
    for field in ("seq_relationship_logits", "sop_logits"):
        if task == "pretraining" and hasattr(output, field):
            return getattr(output, field)
    return output.logits[..., None] if task == "pretraining" else output.logits


def head_of(ours) -> str:
    return next(name for name in ours.heads if name != "pooler")


def compare(expected: torch.Tensor, got: torch.Tensor, lengths: tuple[int, ...], task: str) -> None:
    each = expected.dim() == 3
    for b, n in enumerate(lengths):
        one, other = (t[b, :n] if each else t[b] for t in (expected, got))
        assert one.shape == other.shape, task
        assert (one - other).abs().max() <= limit(one)


@torch.no_grad()
@pytest.mark.parametrize(("name", "task"), PAIRS, ids=lambda value: value)
def test_a_head_answers_as_transformers_does(name, task, tmp_path):
    more = LABELLED if task in ("sequence", "token") else {}
    torch.manual_seed(7)
    model = randomised(class_of(name, ENDINGS[task])(config_of(name, **more)))
    model.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    head = head_of(ours)
    for lengths in LENGTHS.values():
        if name == "bigbird" and len(set(lengths)) > 1:
            continue  # transformers counts the blocks of the padded batch
        theirs, (tokens, layout) = inputs(name, lengths)
        compare(their_answer(model, theirs, task), ours.head(head, tokens, layout), lengths, task)
    assert ours.config.heads[-1].label_names == (NAMES if more else ())
    save_model(ours, tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs, _ = inputs(name, (24, 24))
    compare(their_answer(again.eval(), theirs, task), their_answer(model, theirs, task), (24, 24), task)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    if more:
        assert again.config.id2label == dict(enumerate(NAMES)) and again.config.num_labels == len(NAMES)


@torch.no_grad()
@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_a_regression_head_keeps_its_problem_and_its_one_label(labels, problem, tmp_path):
    config = config_of("bert", num_labels=labels, problem_type=problem)
    model = randomised(transformers.BertForSequenceClassification(config))
    model.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    theirs, (tokens, layout) = inputs("bert", (24, 9, 17))
    expected, got = model(**theirs).logits, ours.head("sequence", tokens, layout)
    assert got.shape == (3, labels) and (expected - got).abs().max() <= limit(expected)
    save_model(ours, tmp_path / "ours")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert (again.config.problem_type, again.config.num_labels) == (problem, labels)


def heads_on_decoders() -> list:
    """(family, class, labels) of every class that transformers has; a span always has two labels."""
    classes = (("ForSequenceClassification", 1), ("ForSequenceClassification", 3), ("ForTokenClassification", 1),
               ("ForTokenClassification", 3), ("ForQuestionAnswering", 2))  # fmt: skip
    return [
        pytest.param(stem, ending, labels, marks=pytest.mark.slow if stem in MORE else ())
        for stem in (*DECODERS, *MORE)
        for ending, labels in classes
        if hasattr(transformers, stem + ending)
    ]


@torch.no_grad()
@pytest.mark.parametrize(("stem", "ending", "labels"), heads_on_decoders())
def test_a_head_on_a_decoder_answers_as_transformers_does(stem, ending, labels, tmp_path):
    """One label is a value, or a reward: the score on the last token."""
    model = randomised(getattr(transformers, stem + ending)(ALL_DECODERS[stem](num_labels=labels)))
    model.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    task = next(task for task, one in ENDINGS.items() if one == ending)
    lengths = (24, 9, 17)
    ids, tokens = padded_ids(lengths)
    theirs = {"input_ids": ids, "attention_mask": mask_of(lengths, 24)}
    compare(their_answer(model, theirs, task), ours.head(head_of(ours), *tokens), lengths, task)
    save_model(ours, tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(their_answer(again.eval(), theirs, task), their_answer(model, theirs, task))


def padded_ids(lengths):
    from fledge.batch import padded

    ids = ids_for(len(lengths), max(lengths))
    tokens, layout = padded([ids[b, :n].tolist() for b, n in enumerate(lengths)])
    return tokens.ids, (tokens, layout)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_pools_as_its_config_says(pooling, tmp_path):
    config = config_of("modernbert", classifier_pooling=pooling, classifier_activation="relu", classifier_bias=True)
    model = randomised(transformers.ModernBertForSequenceClassification(config))
    model.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    theirs, (tokens, layout) = inputs("modernbert", (24, 9, 17))
    expected = model(**theirs).logits
    assert (expected - ours.head("sequence", tokens, layout)).abs().max() <= limit(expected)
    save_model(ours, tmp_path / "ours")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(again(**theirs).logits, expected)
    raw = json.loads((tmp_path / "theirs" / "config.json").read_text())
    other = {**raw, "classifier_pooling": "mean" if pooling == "cls" else "cls"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(other))
    got = load_model(tmp_path / "theirs").head("sequence", tokens, layout)
    assert (expected - got).abs().max() > limit(expected)  # the control


@torch.no_grad()
def test_longformer_s_classifier_makes_the_first_token_global_unless_told(tmp_path):
    model = randomised(class_of("longformer", "ForSequenceClassification")(config_of("longformer")))
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    _, (tokens, layout) = inputs("longformer", (24, 24))
    kind = torch.zeros_like(tokens.ids)
    local = ours.head("sequence", replace(tokens, kind=kind), layout)
    kind[:, 0] = GLOBAL
    told = ours.head("sequence", replace(tokens, kind=kind), layout)
    assert torch.equal(told, ours.head("sequence", tokens, layout))
    assert (told - local).abs().max() > limit(told)


@torch.no_grad()
def test_electra_s_discriminator_and_albert_s_order_head_train_from_a_new_shape():
    for preset, task, head in (("electra-small-discriminator", "replaced", "replaced"),
                               ("albert-base-v2", "pretraining", "sentence_order")):  # fmt: skip
        own = preset_family(preset)
        config = own.new_config(replace(own.presets[preset], task=task))
        assert [one.name for one in config.heads] == [head]


def test_a_head_refuses_packed_rows_and_unknown_names(tmp_path):
    randomised(class_of("bert", "ForSequenceClassification")(config_of("bert"))).save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    _, (tokens, _) = inputs("bert", (24, 24))
    with pytest.raises(ConfigError, match="one document a row"):
        ours.head("sequence", tokens, Packed((0, 10, 24, 48), 24))
    with pytest.raises(ConfigError, match="expected a head 'token'"):
        ours.head("token", tokens, Packed((0, 10, 24, 48), 24))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": ["a"]}, "id2label"),
        ({"id2label": {"0": 3}}, "id2label"),
        ({"num_labels": 0}, "num_labels"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"num_labels": "two"}, "num_labels"),
        ({"problem_type": "guess"}, "problem_type"),
        ({"architectures": ["BertForTelepathy"]}, "BertForTelepathy"),
        ({"architectures": [7]}, "architectures"),
        ({"architectures": {"a": 1}}, "architectures"),
    ],
)
def test_labels_and_classes_that_make_no_sense_are_refused(more, said):
    raw = {**config_of("bert").to_dict(), "architectures": ["BertForSequenceClassification"]}
    raw.pop("id2label", None)
    parse_config(raw)
    with pytest.raises(ConfigError, match=said):
        parse_config({**raw, **more})


def test_every_task_of_every_family_can_be_new_and_is_written_as_its_class():
    from fledge.model.folder import config_json

    for name, own in OURS.items():
        if not own.all_tasks or not own.presets:
            continue
        shape = next(iter(own.presets.values()))
        for task in own.all_tasks:
            config = own.new_config(replace(shape, layers=2, task=task.name, labels=3))
            raw = json.loads(json.dumps(config_json(config, torch.float32)))
            assert raw["architectures"] == [task.architecture]
            assert parse_config(raw)[1].heads == config.heads or config.heads[-1].label_names == (), name
    with pytest.raises(ConfigError, match="model.task"):
        family("bert").new_config(ShapeConfig("bert", width=8, layers=1, heads=2, context_tokens=8, vocab_size=9,
                                              task="telepathy"))  # fmt: skip
