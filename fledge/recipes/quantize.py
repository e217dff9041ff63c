"""`fledge quantize`: measure, quantize, write beside, load what was written, measure again; keep it if it is good."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fledge import device as devices
from fledge import lineage
from fledge.compress.calibration import calibration_rows, row_tokens_of
from fledge.compress.config import QuantizeConfig
from fledge.compress.mixed import Sensitivity, choose, sensitivities
from fledge.compress.quantize import Outcome, Plan, Settings, quantize, quantize_output, uniform
from fledge.compress.units import scheme_named
from fledge.config import to_dict
from fledge.engine.purpose import keep_activation
from fledge.engine.speed import decoding_speed
from fledge.errors import ConfigError, QualityError
from fledge.evals.bits import document_bits
from fledge.evals.documents import evaluation_text
from fledge.log import json_safe
from fledge.model.folder import config_of, find_model, load_model, save_model
from fledge.model.sentence import SentenceModel, save_steps, steps_beside
from fledge.model.transformer import Transformer
from fledge.recipes.quantize_page import page
from fledge.text.tokenizer import Tokenizer, tokenizer_beside
from fledge.train.checkpointing import fsync_tree


@dataclass(frozen=True)
class Quality:
    """Of a model on text: `loss` in nats a token, `perplexity` a token, and `bits_per_byte`."""

    loss: float
    perplexity: float
    bits_per_byte: float


def quantize_model(config: QuantizeConfig, json: bool = False) -> dict[str, Any]:
    """Write `config.out` and give what it cost and saved: bytes, quality and tokens a second before and after, and what
    became of each unit. Prints a page of it unless `json`.

    Raises QualityError, and leaves nothing behind, where the loss rises by more than is allowed.
    """
    out = free_folder(config.out)
    folder = find_model(config.model)
    devices.pick("cpu", threads=config.threads)
    model = load_model(folder)
    tokenizer = tokenizer_of(folder, config)
    check_measurable(model, config)
    before, following = quality(model, tokenizer, config.evaluate, "before"), steps_beside(folder, model, tokenizer)
    outcomes, found = changed(model, tokenizer, config)
    parents = {"base": lineage.artefact_digest(folder)}
    with scratch_beside(out) as scratch:
        save_model(model, scratch, tokenizer, card=False)
        keep_said(folder, following, scratch)
        written = load_model(scratch)
        after = quality(written, tokenizer, config.evaluate, "after")
        result = figures(config, folder, scratch, outcomes, found, before, after)
        refuse_loss(before, after, config)
        if model.config.decoder is not None and model.config.encoder is None:
            result["tokens_per_second"] = speeds(folder, scratch)
        facts = {"config": to_dict(config), "result": result}
        lineage.write_card(scratch, "model", parents, config_of(scratch), json_safe(facts))
        fsync_tree(scratch)
        os.replace(scratch, out)
        lineage.fsync_folder(out.parent)
    if not json:
        print(page(result))
    return json_safe(result)


def free_folder(path: Path) -> Path:
    """Raises ConfigError unless `path` is new or an empty folder that can be written."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"out: expected a new or empty folder, found something at {path}; choose another")
    lineage.check_writable(path.absolute().parent)
    return path.absolute()


def keep_said(folder: Path, following: SentenceModel | None, scratch: Path) -> None:
    """Write beside a model what stood beside the one in `folder` that it comes of: what follows it, if it gives
    vectors, and what its head's number goes through."""
    if following is not None:
        save_steps(following, scratch)
    keep_activation(folder, scratch)


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone in the end, whatever happens."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".new-{out.name}-{os.getpid()}"
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def tokenizer_of(folder: Path, config: QuantizeConfig) -> Tokenizer | None:
    """The folder's tokenizer; one without may be rounded, but neither calibrated nor measured."""
    asked = config.needs_text or config.evaluate is not None
    return Tokenizer.load(folder) if asked else tokenizer_beside(folder)


def check_measurable(model: Transformer, config: QuantizeConfig) -> None:
    """Raises ConfigError where a loss is asked of a model that has none for the next token."""
    asks = config.evaluate is not None or config.bits == "mixed"
    if asks and (model.config.encoder is not None or not model.config.lm):
        raise ConfigError(
            "evaluate: expected a decoder, whose loss on text is measured, got another model; leave evaluate out and "
            "use 4 or 8 bits"
        )


def changed(
    model: Transformer, tokenizer: Tokenizer | None, config: QuantizeConfig
) -> tuple[list[Outcome], Sequence[Sensitivity]]:
    """Quantize the model in place as the config says."""
    rows = None
    if config.needs_text:
        assert tokenizer is not None and config.calibration is not None
        row_tokens = row_tokens_of(model, config.row_tokens, loss=config.bits == "mixed")
        rows = calibration_rows(tokenizer, config.calibration, config.rows, row_tokens, config.seed)
    found: Sequence[Sensitivity] = ()
    if config.bits == "mixed":
        assert rows is not None
        found = sensitivities(model, rows, config.group)
        chosen = choose(found, config.budget_bits)
        plan: Plan = {name: option.scheme for name, option in chosen.items()}
    else:
        plan = uniform(model, scheme_named(config.bits, config.group))
    if config.dtype:  # what stays is measured as it is written
        model.to(getattr(torch, config.dtype)).float()
    outcomes = quantize(model, plan, Settings(config.method, config.damping, config.act_order), rows)
    if config.output == "int8":
        quantize_output(model)
    if config.dtype:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
    return outcomes, found


def quality(model: Transformer, tokenizer: Tokenizer | None, text: Path | None, what: str) -> Quality | None:
    """On the text at `text`; None without one."""
    if text is None:
        return None
    assert tokenizer is not None
    documents = evaluation_text(text, tokenizer.digest).documents
    stride = max(1, model.config.context_tokens // 2)
    bits = document_bits(SimpleNamespace(transformer=model, tokenizer=tokenizer), documents, stride, what)
    return Quality(math.log(bits.perplexity), bits.perplexity, sum(bits.bits) / sum(bits.n_bytes))


def refuse_loss(before: Quality | None, after: Quality | None, config: QuantizeConfig) -> None:
    """Raises QualityError where the loss rose by more than is allowed, or is no number."""
    if before is None or after is None:
        return
    rise, allowed = after.loss - before.loss, config.allowed_increase
    if not rise <= allowed:
        raise QualityError(
            f"{config.out}: expected a loss at most {allowed:g} nats a token above {before.loss:.4f}, got {rise:+.4f} "
            f"(perplexity {before.perplexity:.3f} -> {after.perplexity:.3f}); nothing was written; use more bits, "
            "smaller groups or another method, or raise max_loss_increase"
        )


def speeds(before: Path, after: Path) -> dict[str, float]:
    """Tokens a second of one request through the engine, both taken in turn in this process."""
    return dict(zip(("before", "after"), decoding_speed([load_model(before), load_model(after)]), strict=True))


def figures(
    config: QuantizeConfig,
    folder: Path,
    scratch: Path,
    outcomes: Sequence[Outcome],
    found: Sequence[Sensitivity],
    before: Quality | None,
    after: Quality | None,
) -> dict[str, Any]:
    """Everything but the speeds, as plain values."""
    weights = sum(one.n_weights for one in outcomes)
    stored = sum(one.n_weights * (one.scheme.bits_per_weight(one.inputs) if one.scheme else 32) for one in outcomes)
    result: dict[str, Any] = {
        "model": str(config.model),
        "out": str(config.out),
        "method": config.method,
        "bits": config.bits,
        "bytes": {"before": weight_bytes(folder), "after": weight_bytes(scratch)},
        "bits_per_weight": stored / max(1, weights),
        "allowed_loss_increase": config.allowed_increase,
        "text": None if config.evaluate is None else str(config.evaluate),
        "quality": None if before is None or after is None else {"before": asdict(before), "after": asdict(after)},
        "loss_increase": None if before is None or after is None else after.loss - before.loss,
        "units": [unit_row(one) for one in outcomes],
    }
    if found:
        result["sensitivities"] = [
            {"unit": one.unit}
            | {str(option.scheme): option.increase for option in one.options if option.scheme is not None}
            for one in found
        ]
    return result


def unit_row(one: Outcome) -> dict[str, Any]:
    return {
        "unit": one.unit,
        "scheme": None if one.scheme is None else str(one.scheme),
        "bits": None if one.scheme is None else one.scheme.bits,
        "weights": one.n_weights,
        "error": one.error,
        "folded": one.folded,
        "why": one.why,
    }


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
