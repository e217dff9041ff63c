"""The dense layers that may follow a sentence model's pooling, in and out of sentence-transformers' folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fledge.config import read_json
from fledge.errors import CheckpointError, ConfigError
from fledge.model.families.family import flag, integer
from fledge.model.folder import write_json
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.weight_files import WEIGHTS, refuse_pickle
from fledge.nn.config import MAX_WIDTH

ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "Identity": ("torch.nn.modules.linear.Identity", lambda x: x),
    "Tanh": ("torch.nn.modules.activation.Tanh", torch.tanh),
    "ReLU": ("torch.nn.modules.activation.ReLU", torch.relu),
    "GELU": ("torch.nn.modules.activation.GELU", functional.gelu),
    "SiLU": ("torch.nn.modules.activation.SiLU", functional.silu),
    "Sigmoid": ("torch.nn.modules.activation.Sigmoid", torch.sigmoid),
}
"""torch's name of an activation's class: the path that sentence-transformers writes, and the function."""


@dataclass(frozen=True)
class DenseLayer:
    """activation(x weightᵀ + bias): `weight` [out, in], `bias` [out] or None, `activation` one of ACTIVATIONS."""

    weight: Tensor
    bias: Tensor | None
    activation: str = "Tanh"

    def __call__(self, x: Tensor) -> Tensor:
        """[B, in] to [B, out]."""
        return ACTIVATIONS[self.activation][1](functional.linear(x, self.weight, self.bias))


def load_dense(folder: Path, width: int, device: torch.device | str) -> DenseLayer:
    """The layer of a Dense folder that reads vectors of `width` numbers. The class that config.json names is looked up
    in ACTIVATIONS, never imported. Raises ConfigError and CheckpointError."""
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise ConfigError(f"{folder.name}/config.json: expected a mapping, got {type(raw).__name__}")
    n_in, n_out = integer(raw, "in_features"), integer(raw, "out_features")
    if n_in != width or not 0 < n_out <= MAX_WIDTH:
        raise ConfigError(
            f"{folder.name}/config.json: expected in_features {width} and out_features in 1..{MAX_WIDTH}, got {n_in} "
            f"and {n_out}"
        )
    path = raw.get("activation_function", ACTIVATIONS["Tanh"][0])
    name = next((name for name, (known, _) in ACTIVATIONS.items() if path == known), None)
    if name is None:
        raise ConfigError(
            f"{folder.name}/config.json: activation_function: expected one of {', '.join(ACTIVATIONS)} of torch.nn, "
            f"got {str(path)[:60]!r}"
        )
    shapes = {"linear.weight": (n_out, n_in), **({"linear.bias": (n_out,)} if flag(raw, "bias", True) else {})}
    if not (folder / WEIGHTS).is_file():
        refuse_pickle(folder)
    with SafetensorsFile(folder / WEIGHTS) as file:
        found = {key: entry.shape for key, entry in file.entries.items()}
        if found != shapes:
            raise CheckpointError(f"{folder.name}/{WEIGHTS}: expected {shapes} by config.json, got {str(found)[:120]}")
        tensors = {key: file.read(key).to(device, torch.float32) for key in shapes}
    return DenseLayer(tensors["linear.weight"], tensors.get("linear.bias"), name)


def save_dense(layer: DenseLayer, folder: Path) -> None:
    """Write a Dense folder that sentence-transformers opens."""
    folder.mkdir(parents=True, exist_ok=True)
    n_out, n_in = layer.weight.shape
    sizes = {"in_features": n_in, "out_features": n_out, "bias": layer.bias is not None}
    write_json(folder / "config.json", {**sizes, "activation_function": ACTIVATIONS[layer.activation][0]})
    bias = {} if layer.bias is None else {"linear.bias": layer.bias}
    write_safetensors(folder / WEIGHTS, {"linear.weight": layer.weight, **bias})
