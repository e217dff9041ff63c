"""The base's own embeddings in an adapter's file: PEFT saves them whole when it is told to, or takes the vocabulary for
changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.model.folder import weights_in_files
from fledge.model.transformer import Transformer
from fledge.tune.attach import weight_at
from fledge.tune.heads import PREFIX
from fledge.tune.sites import EMBEDDING, OUTPUT, Place, sites


def without_copies(model: Transformer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors but for the base's own embeddings. Raises CheckpointError where they are not the base's."""
    left = dict(tensors)
    for name, (kind, own) in copied(model, tensors).items():
        copy = left.pop(name)
        if own.shape != copy.shape or not torch.equal(own, copy.to(own)):
            raise CheckpointError(
                f"adapter: {name.removeprefix(PREFIX)[:80]}: expected the base's own {kind}, got another: a "
                "vocabulary that grew, or was trained, is not read"
            )
    return left


def copied(model: Transformer, names: Iterable[str]) -> dict[str, tuple[str, Tensor]]:
    """Those of a file's names that stand for the base's own tensors: weight or bias, and what the base has there."""
    there = {
        f"{PREFIX}{m}.{inner}{end}": (end, own) for m, end, own in embeddings(model) for inner in ("", "base_layer.")
    }
    return {name: there[name] for name in names if name in there}


def embeddings(model: Transformer) -> list[tuple[str, str, Tensor]]:
    """Embedding and output of a model, without the rows that fill the vocabulary up: (module of theirs, weight or
    bias, our tensor)."""
    n_tokens = model.config.tokens or model.config.vocab_size
    found = []
    for site in sites(model).values():
        if site.kind == "output":
            bias = None if model.output_bias is None else model.output_bias.detach()[:n_tokens]
            both = {"weight": weight_at(model, Place(site, OUTPUT)).detach()[:n_tokens], "bias": bias}
            found += [(name, end, own) for name in site.names for end, own in both.items() if own is not None]
    for name, row in weights_in_files(model.config).items():
        if row.ours == (f"{EMBEDDING}.weight",):
            found.append((name.removesuffix(".weight"), "weight", model.embedding.weight.detach()[:n_tokens]))
    return found
