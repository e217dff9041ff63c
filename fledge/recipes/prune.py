"""`fledge prune`: measure, take out, write beside, load what was written, measure again."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fledge import device as devices
from fledge import lineage
from fledge.compress.calibration import calibration_rows, row_tokens_of
from fledge.compress.prune import (
    GROUPS,
    NEURONS,
    Kept,
    evenly,
    gradient_importance,
    kept_of,
    layer_importance,
    sparsity,
    weight_importance,
    without,
    zero_smallest,
)
from fledge.compress.prune_config import PruneConfig
from fledge.compress.wanda import zero_least_used
from fledge.config import to_dict
from fledge.errors import ConfigError
from fledge.log import json_safe
from fledge.model.folder import config_of, find_model, load_model, save_model
from fledge.model.sentence import steps_beside
from fledge.model.transformer import Transformer
from fledge.recipes.quantize import Quality, free_folder, keep_said, quality, scratch_beside, speeds, weight_bytes
from fledge.text.tokenizer import Tokenizer, tokenizer_beside
from fledge.train.checkpointing import fsync_tree


def prune_model(config: PruneConfig, json: bool = False) -> dict[str, Any]:
    """Write `config.out`, and give parameters, bytes, quality and tokens a second before and after. Prints a page of it
    unless `json`. Raises ConfigError for a part that the model can't lose."""
    out = free_folder(config.out)
    folder = find_model(config.model)
    devices.pick("cpu", threads=config.threads)
    model = load_model(folder)
    asked = config.calibration is not None or config.evaluate is not None
    tokenizer = Tokenizer.load(folder) if asked else tokenizer_beside(folder)
    if config.evaluate is not None and (model.config.encoder is not None or not model.config.lm):
        raise ConfigError(
            "evaluate: expected a decoder, whose loss on text is measured, got another model; leave it out"
        )
    before, n_before = quality(model, tokenizer, config.evaluate, "before"), n_parameters(model)
    following = steps_beside(folder, model, tokenizer)
    small, kept = pruned(model, tokenizer, config)
    with scratch_beside(out) as scratch:
        save_model(small, scratch, tokenizer, card=False)
        keep_said(folder, following, scratch)
        written = load_model(scratch)
        after = quality(written, tokenizer, config.evaluate, "after")
        result: dict[str, Any] = {
            "model": str(config.model), "out": str(config.out), "method": config.method, "share": config.share,
            "parameters": {"before": n_before, "after": n_parameters(written)},
            "bytes": {"before": weight_bytes(folder), "after": weight_bytes(scratch)},
            "zeros": sparsity(written), "kept": kept,
            "quality": None if before is None or after is None else {"before": asdict(before), "after": asdict(after)},
        }  # fmt: skip
        if model.config.decoder is not None and model.config.encoder is None and model.config.lm:
            result["tokens_per_second"] = speeds(folder, scratch)
        facts = {"config": to_dict(config), "result": result}
        parents = {"base": lineage.artefact_digest(folder)}
        lineage.write_card(scratch, "model", parents, config_of(scratch), json_safe(facts))
        fsync_tree(scratch)
        os.replace(scratch, out)
        lineage.fsync_folder(out.parent)
    if not json:
        print(page(result, before, after))
    return json_safe(result)


def pruned(model: Transformer, tokenizer: Tokenizer | None, config: PruneConfig) -> tuple[Transformer, Any]:
    """The smaller model, and what was kept in a few words: layers, or how many of each layer."""
    if config.method == "magnitude":
        return zero_smallest(model, config.share, config.scope), None
    every = tuple(range(len(model.config.stack.layers)))
    rows = None
    if config.calibration is not None:
        assert tokenizer is not None
        row_tokens = row_tokens_of(model, config.row_tokens, loss=config.method in ("neurons", "heads"))
        rows = calibration_rows(tokenizer, Path(config.calibration), config.rows, row_tokens, config.seed)
    if config.method == "wanda":
        assert rows is not None
        return zero_least_used(model, rows, config.share), None
    if config.method == "layers":
        layers = layers_of(model, config, rows)
        return without(model, Kept(layers)), list(layers)
    which = NEURONS if config.method == "neurons" else GROUPS
    scores = weight_importance(model, which) if rows is None else gradient_importance(model, rows, which)
    if which == NEURONS:
        chosen = kept_of(scores, config.share, "neurons")
        return without(model, Kept(every, neurons=chosen)), len(chosen[0])
    chosen = kept_of(scores, config.share, "groups of heads")
    return without(model, Kept(every, groups=chosen)), len(chosen[0])


def layers_of(model: Transformer, config: PruneConfig, rows: torch.Tensor | None) -> tuple[int, ...]:
    """The layers that stay, rising. Raises ConfigError for ones that aren't there."""
    n_layers = len(model.config.stack.layers)
    if config.keep:
        if config.keep[-1] >= n_layers:
            raise ConfigError(f"keep: expected layers below {n_layers}, got {config.keep[-1]}")
        return config.keep
    n_kept = n_layers - round(config.share * n_layers)
    if not 0 < n_kept < n_layers:
        raise ConfigError(f"share: expected to take some of {n_layers} layers and leave some, got {config.share}")
    if rows is None:
        return evenly(n_layers, n_kept)
    scores = layer_importance(model, rows)
    return tuple(sorted(sorted(range(n_layers), key=lambda number: -scores[number])[:n_kept]))


def n_parameters(model: Transformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def page(result: dict[str, Any], before: Quality | None, after: Quality | None) -> str:
    """What a person wants to know."""
    n, size = result["parameters"], result["bytes"]
    lines = [
        f"{result['out']}: {n['after']:,} of {n['before']:,} parameters, {size['after']:,} of {size['before']:,} bytes",
        f"{result['zeros']:.1%} of the linear weights are zero",
    ]
    if before is not None and after is not None:
        lines.append(
            f"perplexity {before.perplexity:.3f} -> {after.perplexity:.3f}, bits a byte {before.bits_per_byte:.4f} -> "
            f"{after.bits_per_byte:.4f}"
        )
    if "tokens_per_second" in result:
        speed = result["tokens_per_second"]
        lines.append(f"tokens a second {speed['before']:.1f} -> {speed['after']:.1f}")
    return "\n".join(lines)
