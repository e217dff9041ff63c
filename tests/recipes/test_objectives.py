"""`fledge pretrain` by every objective: it learns, goes on to the same bits, and leaves a folder on which transformers
gives the same losses."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fledge.config import to_dict
from fledge.data.segments import frame_of
from fledge.data.shards import Shard, shard_of
from fledge.errors import ConfigError, DataError, Interrupted
from fledge.log import read_log
from fledge.model.config import ShapeConfig
from fledge.model.folder import load_model, save_model
from fledge.recipes.pretrain import pretrain
from fledge.text.tokenizer import Tokenizer
from tests.data.corrupted import plain_documents, stories, story, wordpiece
from tests.recipes.objectives import FAMILIES, config_of, recipe_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("text")
    (root / "text").mkdir()
    for number in range(8):
        (root / "text" / f"{number}.txt").write_text(story(number, 60))
    wordpiece().save(root / "tokenizer")
    return {"path": str(root / "text"), "tokenizer": str(root / "tokenizer")}


def run_config(objective: str, folders: dict[str, str], folder: Path, family: str = "", **train: object):
    return config_of(objective, family, data=folders, run={"dir": str(folder)}, train={"rows": 4, **train})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


RESUMED = [("masked+next", "bert"), ("spans", "t5"), ("denoise", "bart"), ("prefix", "llama"), ("causal", "gpt2"),
           ("masked", "roberta")]  # fmt: skip


@pytest.mark.parametrize(("objective", "family"), RESUMED)
def test_a_stopped_run_goes_on_to_the_same_bits(objective, family, folders, tmp_path):
    whole = pretrain(run_config(objective, folders, tmp_path / "whole", family))
    with pytest.raises(Interrupted):
        pretrain(run_config(objective, folders, tmp_path / "parts", family, stop_after_steps=2))
    again = pretrain(run_config(objective, folders, tmp_path / "parts", family))
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert whole["val_loss"] == again["val_loss"] and math.isfinite(whole["val_loss"])
    other = pretrain(run_config(objective, folders, tmp_path / "other", family, seed=2))
    assert other["val_loss"] != whole["val_loss"]  # the control


@pytest.mark.parametrize(
    ("objective", "letters"), [("masked", "bytes"), ("masked+next", "characters"), ("denoise", "bytes")]
)
def test_whoever_reads_the_folder_frames_a_text_as_rows_were(objective, letters, folders, tmp_path):
    """A tokenizer of our own has no frame: fill, embed, finetune and transformers would read texts bare."""
    pretrain(run_config(objective, {**folders, "tokenizer": letters}, tmp_path / "run", steps=1))
    model = tmp_path / "run" / "model"
    own, theirs = Tokenizer.load(model), transformers.AutoTokenizer.from_pretrained(model)
    frame, text, other = frame_of(own), own.encode("the cat"), own.encode("a dog")
    one, pair = own.frame(text), own.frame(text, other)
    assert frame.n_tokens == 2 and list(one.ids) == [*frame.before, *text, *frame.after]
    assert list(pair.ids) == [*one.ids, *other, *frame.after] and sum(pair.type_ids) == len(other) + 1
    assert theirs("the cat").input_ids == list(one.ids) and theirs("the cat", "a dog").input_ids == list(pair.ids)
    on = run_config(objective, {"path": folders["path"]}, tmp_path / "on", steps=1)
    pretrain(replace(on, model=ShapeConfig(), init_from=str(model)))
    assert Tokenizer.load(tmp_path / "on" / "model").digest == own.digest


def test_two_terms_are_logged_and_validated_apart(folders, tmp_path):
    result = pretrain(run_config("masked+next", folders, tmp_path))
    assert result["val_loss"] == pytest.approx(result["val_masked_loss"] + result["val_next_sentence_loss"])
    assert 0 <= result["val_masked_accuracy"] <= 1 and 0 <= result["val_next_sentence_accuracy"] <= 1
    steps = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "step"]
    assert all(s["loss"] == pytest.approx(s["loss_masked"] + s["loss_next_sentence"]) for s in steps)


def saved(recipe, tmp_path) -> Path:
    save_model(recipe.model, tmp_path, recipe.tokenizer)
    return tmp_path


@pytest.mark.parametrize(("objective", "name", "labels"), [
    ("masked+next", "BertForPreTraining", "next_sentence_label"),
    ("masked+order", "AlbertForPreTraining", "sentence_order_label"),
])  # fmt: skip
def test_both_terms_are_transformers_losses(objective, name, labels, tmp_path):
    recipe = recipe_of(config_of(objective))
    recipe.model.eval()
    with torch.no_grad():
        for parameter in recipe.model.heads.parameters():
            parameter.mul_(30)  # so that an answer matters
    batch = recipe.batch(2)
    theirs = getattr(transformers, name).from_pretrained(saved(recipe, tmp_path)).eval()
    asked = torch.where(batch.weight > 0, batch.targets, -100)
    out = theirs(
        batch.tokens.ids, attention_mask=(batch.tokens.doc >= 0).long(), token_type_ids=batch.tokens.kind,
        labels=asked, **{labels: batch.answers},
    )  # fmt: skip
    terms, weights = recipe.loss(batch).terms, recipe.weights(batch)
    ours = sum(term.total / weights[key] for key, term in terms.items())
    assert float(ours.detach()) == pytest.approx(float(out.loss.detach()), rel=1e-5)
    swapped = theirs(
        batch.tokens.ids, attention_mask=(batch.tokens.doc >= 0).long(), token_type_ids=batch.tokens.kind,
        labels=asked, **{labels: torch.cat([1 - batch.answers[:4], batch.answers[4:]])},
    )  # fmt: skip
    assert abs(float(swapped.loss.detach()) - float(ours.detach())) > 1e-3  # the control


@pytest.mark.parametrize(("objective", "name"), [
    ("spans", "T5ForConditionalGeneration"), ("denoise", "BartForConditionalGeneration"),
    ("prefix", "T5ForConditionalGeneration"),
])  # fmt: skip
def test_the_loss_of_a_source_is_transformers_which_shifts_the_labels_itself(objective, name, tmp_path):
    recipe = recipe_of(config_of(objective, data={"layout": "padded"}))  # transformers knows no packed rows
    recipe.model.eval()
    batch = recipe.batch(2)
    theirs = getattr(transformers, name).from_pretrained(saved(recipe, tmp_path)).eval()
    source = batch.source[0]
    out = theirs(
        source.ids, attention_mask=(source.doc >= 0).long(), labels=torch.where(batch.weight > 0, batch.targets, -100)
    )
    ours = float(recipe.loss(batch).terms["nats"].total.detach()) / recipe.weights(batch)["nats"]
    assert ours == pytest.approx(float(out.loss.detach()), rel=1e-5)
    tokenizer = Tokenizer.load(tmp_path)
    assert load_model(tmp_path).config == recipe.model.config and tokenizer.vocab_size >= wordpiece().vocab_size


# Learning


def counting(n: int) -> Shard:
    """Documents that count up from 40: which of two segments stands first shows."""
    stop = wordpiece().id_of(".")
    return shard_of([sum(([40 + (d % 3) + k] * 3 + [stop] for k in range(40)), []) for d in range(n)], "train")


def trained(recipe, steps: int, rate: float) -> dict[str, float]:
    optimizer = torch.optim.AdamW(recipe.model.parameters(), rate)
    recipe.model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        batch = recipe.batch(step)
        weights = recipe.weights(batch)
        optimizer.zero_grad()
        sum(term.total / weights[name] for name, term in recipe.loss(batch).terms.items()).backward()
        torch.nn.utils.clip_grad_norm_(recipe.model.parameters(), 1.0)
        optimizer.step()
    return validated(recipe)


def validated(recipe) -> dict[str, float]:
    recipe.model.eval()
    with torch.inference_mode():
        return recipe.validate(0)


def unigram(recipe) -> float:
    """Nats a target under the targets' own frequencies: what is had without reading."""
    counts: Counter[int] = Counter()
    for batch in recipe.held_out:
        counts.update(batch.targets[batch.weight > 0].tolist())
    shares = np.array(list(counts.values())) / sum(counts.values())
    return float(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize(("objective", "steps", "rate"), [
    ("masked", 150, 3e-3), ("spans", 300, 1e-2), ("denoise", 150, 3e-3), ("prefix", 150, 1e-2), ("causal", 150, 3e-3),
])  # fmt: skip
def test_it_learns_to_tell_more_than_frequencies(objective, steps, rate):
    train, val = (stories(30, 40), stories(3, 20)) if objective != "masked" else (plain_documents(6, 60),) * 2
    recipe = recipe_of(config_of(objective), train, val)
    before, floor = validated(recipe)["val_loss"], unigram(recipe)
    after = trained(recipe, steps, rate)["val_loss"]
    assert after < 0.8 * floor < floor < before  # before: the control


@pytest.mark.parametrize(("objective", "shard", "head"), [
    ("masked+next", plain_documents(3, 60), "next_sentence"), ("masked+order", counting(6), "sentence_order"),
])  # fmt: skip
def test_it_learns_how_two_segments_are_related(objective, shard, head):
    recipe = recipe_of(config_of(objective, train={"rows": 16}), shard)
    before, after = validated(recipe), trained(recipe, 250, 3e-3)
    assert after[f"val_{head}_accuracy"] > 0.85 > 0.75 > before[f"val_{head}_accuracy"]
    assert after["val_masked_loss"] < before["val_masked_loss"]


# What is refused


REFUSED = [
    ("causal", "bert", {}, "causal expects a decoder, got an encoder, bert; set objective=masked"),
    ("causal", "t5", {}, "causal expects a decoder, got an encoder-decoder, t5; set objective=spans"),
    ("masked", "gpt2", {}, "masked expects an encoder with a masked-LM head, got gpt2"),
    ("masked+next", "roberta", {}, r"masked\+next expects a head for two segments, got a roberta"),
    ("masked", "bert", {"model": {"task": "sequence"}}, "expects an encoder with a masked-LM head"),
    ("spans", "bert", {}, "spans expects an encoder-decoder, got bert"),
    ("prefix", "bert", {}, "prefix expects a decoder, got bert"),
    ("prefix", "mistral", {}, "prefix expects a decoder that sees everything before"),
    ("masked", "bert", {"infill": {"rate": 0.5}}, "infill.rate: expected 0 for objective=masked"),
    ("masked", "bert", {"train": {"sample_every_steps": 2}}, "sample_every_steps: expected 0 for objective=masked"),
]


@pytest.mark.parametrize(("objective", "family", "more", "message"), REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(objective, family, more, message, folders, tmp_path):
    model = {"window": 8} if family == "mistral" else {}
    config = config_of(objective, family, **{"data": folders, "run": {"dir": str(tmp_path / "run")}, "model": model,
                                             **more})  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        pretrain(config)
    assert list(tmp_path.iterdir()) == []


def test_next_sentences_of_one_document_are_refused():
    with pytest.raises(DataError, match="expected two documents"):
        recipe_of(config_of("masked+next"), stories(1, 40))


@pytest.mark.parametrize("objective", FAMILIES)
def test_every_objective_is_found_in_its_config_again(objective):
    config = config_of(objective)
    assert config_of(objective, **{k: v for k, v in to_dict(config).items() if isinstance(v, dict)}) == config
