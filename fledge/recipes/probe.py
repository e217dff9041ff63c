"""`fledge probe`: transfer by features. Logistic regression on a frozen model's pooled states, saved as a task head.

N texts, D width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fledge import device as devices
from fledge import lineage
from fledge.config import to_dict
from fledge.data.task_framing import Reader
from fledge.data.task_rows import Example, TextExample, label_names, read_examples, split_held_out
from fledge.engine.encoder import find_vectors
from fledge.engine.predict import TaskKind, answers, batches_of, kind_of, reader_of
from fledge.errors import ConfigError, DataError
from fledge.evals.score import Score
from fledge.evals.task_scores import label_scores
from fledge.lineage import artefact_digest, sha256_file, sha256_json
from fledge.log import json_safe, say
from fledge.model.config import HeadConfig, ModelConfig, Take
from fledge.model.folder import config_of, load_model, save_model
from fledge.model.sentence import SentenceConfig, load_sentence_model
from fledge.model.sentence_steps import MODULES, text_folder
from fledge.model.transformer import Transformer, build
from fledge.model.variants import OWN_FORMAT
from fledge.recipes.embed import passes
from fledge.recipes.embed_config import ProbeConfig
from fledge.recipes.kept_vectors import kept_vectors
from fledge.recipes.logistic import Regression, regression
from fledge.recipes.quantize import free_folder, scratch_beside
from fledge.text.tokenizer import Tokenizer
from fledge.train.checkpointing import fsync_tree

TAKES: dict[str, Take] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
BATCH_TOKENS = 2048


def probe(config: ProbeConfig, json: bool = False) -> dict[str, Any]:
    """Write `config.out`; what the folder scores on the held-out rows as `fledge predict` asks it, the strength and
    seconds. Prints a line of it unless `json`.

    Raises ConfigError for a model whose vectors are no plain pooling of its states, DataError for rows."""
    if not config.data.path:
        raise ConfigError("data.path: expected a file of labelled texts; set --train FILE")
    out = free_folder(config.out)
    devices.pick("cpu", threads=config.threads)
    folder, model, take = frozen_of(config)
    training, held_out = rows_of(config)
    kind = TaskKind("sequence", label_names(training, config.data.labels, "sequence"))
    label_names(held_out, kind.names, "sequence")
    tokenizer = Tokenizer.load(folder)
    states = with_head(model, HeadConfig("sequence", take, 0))
    reader = reader_of(states.config, tokenizer, config.data.max_tokens, kind)
    began = time.perf_counter()
    facts = {"model": artefact_digest(folder), "tokenizer": tokenizer.digest, "take": take, "most": reader.max_tokens}
    texts = [example.text for example in training]
    digest = sha256_json({**facts, "texts": texts})
    features, reused = kept_vectors(config.vectors, digest, lambda: features_of(states, reader, texts))
    vector_seconds = time.perf_counter() - began
    targets = np.array([kind.names.index(str(example.answer)) for example in training])
    began = time.perf_counter()
    fitted = regression(features, targets, len(kind.names), config)
    fit_seconds = time.perf_counter() - began
    problem = "single_label_classification"
    head = HeadConfig("sequence", take, len(kind.names), label_names=kind.names, problem=problem)
    published = with_head(model, head)
    set_head(published, fitted)
    with scratch_beside(out) as scratch:
        save_model(published, scratch, tokenizer, card=False)
        scores = scored(scratch, held_out, config.data.max_tokens)
        result = {
            "model": str(config.model), "out": str(config.out), "labels": list(kind.names), "pooling": take,
            "rows": len(training), "held_out": len(held_out), "width": features.shape[1],
            "trained_parameters": fitted.n_trained, "strength": fitted.strength, "folds": fitted.accuracies,
            "vectors": digest, "vectors_reused": reused,
            "seconds": {"vectors": round(vector_seconds, 3), "fit": round(fit_seconds, 3)},
            "scores": {name: score.as_dict() for name, score in scores.items()},
        }  # fmt: skip
        publish(scratch, out, folder, config, result)
    if not json:
        print(line_of(result, scores["accuracy"]))
    return json_safe(result)


def publish(scratch: Path, out: Path, base: Path, config: ProbeConfig, result: dict[str, Any]) -> None:
    parents = {"base": artefact_digest(base), "data": sha256_file(config.data.path)}
    facts = {"config": to_dict(config), "result": result}
    lineage.write_card(scratch, "model", parents, config_of(scratch), json_safe(facts))
    fsync_tree(scratch)
    os.replace(scratch, out)
    lineage.fsync_folder(out.parent)


def line_of(result: dict[str, Any], accuracy: Score) -> str:
    low, high = accuracy.interval or (accuracy.value, accuracy.value)
    return (
        f"{result['out']}: accuracy {accuracy.value:.3f} ({low:.3f}-{high:.3f}) on {accuracy.n:,} held-out rows; "
        f"{result['trained_parameters']:,} numbers fitted, C = {result['strength']:g}"
    )


def frozen_of(config: ProbeConfig) -> tuple[Path, Transformer, Take]:
    """The folder of the model and its tokenizer, the model, and whose states are read. Raises ConfigError."""
    folder = find_vectors(config.model)
    if not (folder / MODULES).is_file():
        if (folder / "adapter_config.json").is_file():
            raise ConfigError(f"model: expected a model of its own, got the adapter {folder}; fledge merge makes one")
        model = load_model(folder, states_alone=True)
        if model.encoder is not None and model.decoder is not None:
            raise ConfigError(f"model: expected an encoder or a decoder alone, got {model.config.family}")
        return folder, model, TAKES[config.pooling or ("mean" if model.decoder is None else "lasttoken")]
    sentences = load_sentence_model(folder)
    own: SentenceConfig = sentences.config
    pooling = config.pooling or (own.pooling[0] if len(own.pooling) == 1 else "several")
    if pooling not in TAKES or own.lower or own.default_prompt:
        asks = "lowered texts" if own.lower else "a prompt" if own.default_prompt else f"the pooling {pooling}"
        raise ConfigError(
            f"model: expected plain texts and the pooling cls, mean or lasttoken, which a head can read; {folder} asks "
            f"for {asks}; set pooling=mean, or fledge embed and fit on its vectors"
        )
    return text_folder(folder), sentences.model, TAKES[pooling]


def rows_of(config: ProbeConfig) -> tuple[list[TextExample], list[TextExample]]:
    """Training and held-out rows of one text and one label each. Raises DataError."""
    training: list[Example] = read_examples(config.data.path, "sequence", config.data)
    if config.data.val:
        held_out = read_examples(config.data.val, "sequence", config.data)
    else:
        training, held_out = split_held_out(training, config.data.val_fraction, config.seed)
    return one_text(training), one_text(held_out)


def one_text(examples: Sequence[Example]) -> list[TextExample]:
    found = []
    for example in examples:
        assert isinstance(example, TextExample)
        if example.pair is not None or isinstance(example.answer, tuple):
            got = "two texts" if example.pair is not None else "several labels"
            raise DataError(f"{example.place}: expected one text and one label, got {got}; use fledge finetune")
        found.append(example)
    return found


def with_head(model: Transformer, head: HeadConfig) -> Transformer:
    """The body of `model`, tensors shared, with this head alone, in our own format: no published class is a head on a
    mean. A head of 0 labels gives the states that it takes. Raises ConfigError for maps that aren't plain."""
    config: ModelConfig = replace(model.config, family=OWN_FORMAT, heads=(head,), lm=False, transform=None)
    config = replace(config, tie=False, output_bias=False)
    target = build(config)
    own = dict(model.named_parameters())
    for name, parameter in list(target.named_parameters()):
        parent, _, last = name.rpartition(".")
        if name.startswith("heads."):
            value = torch.zeros(parameter.shape)
        elif name in own:
            value = own[name].detach()
        else:
            raise ConfigError(f"model: expected weights in floating point, found no {name}; probe the original")
        setattr(target.get_submodule(parent), last, torch.nn.Parameter(value, requires_grad=False))
    return target.eval()


@torch.inference_mode()
def features_of(states: Transformer, reader: Reader, texts: Sequence[str]) -> np.ndarray:
    """float32 [N, D]: what the head of 0 labels gives for each text, read as `fledge predict` reads it."""
    kind = TaskKind("sequence")
    say(f"{len(texts):,} texts through the frozen model")
    batches = batches_of(reader, kind, [TextExample("", text, None, None) for text in texts])
    framed = [one.ids for one in batches.framed]  # type: ignore[attr-defined]
    found = np.zeros((len(texts), states.config.stack.width), np.float32)
    for places in passes(framed, BATCH_TOKENS):
        batch = batches.laid_out(places)
        found[places] = states.head("sequence", batch.tokens, batch.layout).float().numpy()
    return found


def set_head(model: Transformer, fitted: Regression) -> None:
    out = model.get_submodule("heads.sequence.out")
    with torch.no_grad():
        out.weight.copy_(torch.from_numpy(fitted.weight_LD))  # type: ignore[operator,union-attr]
        out.bias.copy_(torch.from_numpy(fitted.bias_L))  # type: ignore[operator,union-attr]


def scored(folder: Path, held_out: Sequence[TextExample], max_tokens: int) -> dict[str, Score]:
    """The scores of a folder that was written, as it answers."""
    model, tokenizer = load_model(folder).eval(), Tokenizer.load(folder)
    kind = kind_of(model.config)
    found = answers(model, kind, batches_of(reader_of(model.config, tokenizer, max_tokens, kind), kind, held_out))
    number = {name: place for place, name in enumerate(kind.names)}
    right = [number[str(example.answer)] for example in held_out]
    return label_scores([number[one["label"]] for one in found], right, len(number))
