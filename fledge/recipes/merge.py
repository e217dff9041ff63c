"""`fledge merge`: an adapter into its base's weights, written only if its answers are those of base and adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge import device as devices
from fledge import lineage
from fledge.batch import OneDocument, Tokens, one_document
from fledge.config import to_dict
from fledge.errors import ConfigError, QualityError
from fledge.model.folder import config_of, find_model, load_model, own_type, save_model
from fledge.model.quantization import read_quantization
from fledge.model.safetensors_file import SafetensorsFile
from fledge.model.sentence import steps_beside
from fledge.model.transformer import Transformer
from fledge.recipes.quantize import free_folder, keep_said, scratch_beside, weight_bytes
from fledge.text.tokenizer import Tokenizer, tokenizer_beside
from fledge.train.checkpointing import fsync_tree
from fledge.tune.attach import adapters
from fledge.tune.config import MergeConfig
from fledge.tune.folder import adapter_folder, load_adapter
from fledge.tune.merge import largest_difference, merge, why_beside
from fledge.tune.told_head import with_head_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
PROMPT_SEED = 1


def merge_adapter(config: MergeConfig, json: bool = False) -> dict[str, Any]:
    """Write `config.out` and give how far its logits are from those of base and adapter. Prints it unless `json`.

    Raises QualityError, and leaves nothing behind, where they are farther than is allowed.
    """
    out, base = free_folder(config.out), find_model(config.base)
    devices.pick("cpu", threads=config.threads)
    if read_quantization(config_of(base)):
        raise ConfigError(
            f"base: expected weights in floating point, got whole numbers in {base}, which would round the change; "
            "generate, chat, evaluate and serve take the adapter folder as it is, and what was trained beside the "
            "original merges with that"
        )
    dtype = getattr(torch, config.dtype) if config.dtype else type_of(base)
    tolerance = config.tolerance or TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    found = adapter_folder(config.adapter)
    model = load_model(base) if found is None else with_head_of(load_model(base), found)
    model = load_adapter(model, config.adapter, base)
    assert found is not None  # load_adapter has found it
    folder = found
    reason = why_beside(model)
    if reason:
        raise ConfigError(f"adapter: {reason}; generate, chat, evaluate and serve take {folder} as it is")
    tokenizer = tokenizer_of(folder, base)
    following = steps_beside(base, model, tokenizer)
    wanted, n_adapters = answers(model, config), sum(1 for _ in adapters(model))
    merge(model)
    with scratch_beside(out) as scratch:
        save_model(model.to(dtype), scratch, tokenizer, card=False)
        keep_said(base, following, scratch)
        written = answers(load_model(scratch), config)
        result = {
            "base": str(config.base),
            "adapter": str(config.adapter),
            "out": str(config.out),
            "adapters": n_adapters,
            "dtype": str(dtype).removeprefix("torch."),
            "logit_difference": largest_difference(wanted, written),
            "tolerance": tolerance,
            "same_tokens": float((wanted.argmax(-1) == written.argmax(-1)).double().mean()),
            "bytes": weight_bytes(scratch),
        }
        refuse_difference(result)
        parents = {"base": lineage.artefact_digest(base), "adapter": lineage.artefact_digest(folder)}
        facts = {"config": to_dict(config), "result": result}
        lineage.write_card(scratch, "model", parents, config_of(scratch), facts)
        fsync_tree(scratch)
        os.replace(scratch, out)
        lineage.fsync_folder(out.parent)
    if not json:
        print(
            f"{result['out']}: {n_adapters} adapters in the weights ({result['dtype']}); logits within "
            f"{result['logit_difference']:.2g} of the largest (allowed {tolerance:g}), "
            f"{result['same_tokens']:.1%} of the likeliest tokens the same"
        )
    return result


def type_of(base: Path) -> torch.dtype:
    """The type that most of a folder's weights have."""
    entries = []
    for path in sorted(base.glob("*.safetensors")):
        with SafetensorsFile(path) as file:
            entries += list(file.entries.values())
    return own_type(entries)


def tokenizer_of(adapter: Path, base: Path) -> Tokenizer | None:
    """The adapter's tokenizer, where it brings one, else the base's; None if there is none."""
    return tokenizer_beside(adapter) or tokenizer_beside(base)


@torch.no_grad()
def answers(model: Transformer, config: MergeConfig) -> Tensor:
    """Logits, or what the heads of a model without an output say, of fixed rows of tokens."""
    tokens = golden_rows(model, config)
    layout, both = OneDocument(), model.config.encoder is not None and model.config.decoder is not None
    if model.config.lm:
        return model(tokens, layout, source=(tokens, layout) if both else None)
    if model.config.heads:
        return torch.cat([model.head(name, tokens, layout).flatten() for name in model.heads])
    return model.hidden(tokens, layout, source=(tokens, layout) if both else None)


def golden_rows(model: Transformer, config: MergeConfig) -> Tokens:
    """`config.prompts` documents of tokens drawn evenly from the vocabulary, the same every time."""
    length = min(config.prompt_tokens, model.config.context_tokens)
    generator = torch.Generator().manual_seed(PROMPT_SEED)
    n_tokens = model.config.tokens or model.config.vocab_size
    return one_document(torch.randint(n_tokens, (config.prompts, length), generator=generator))


def refuse_difference(result: dict[str, Any]) -> None:
    """Raises QualityError where merged weights answer otherwise than base and adapter, or no numbers."""
    if not result["logit_difference"] <= result["tolerance"]:
        raise QualityError(
            f"{result['out']}: expected logits within {result['tolerance']:g} of the largest, got "
            f"{result['logit_difference']:.3g}; nothing was written; merge into a wider dtype, or raise tolerance"
        )
