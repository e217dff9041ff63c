"""Initial weights by name: each promises a variance, and a test holds it to that.

fan_in and fan_out are a matrix's second and first dimension.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from fledge.errors import ConfigError
from fledge.model.config import InitConfig
from fledge.model.transformer import Transformer

RESIDUAL_ENDS = ("attention.out.weight", "cross.out.weight", "ffn.down.weight")


def initialise(model: Transformer, seed: int) -> Transformer:
    """Give every parameter its start value in place. Each tensor has a generator of its own, keyed by (seed, name), so
    that adding a parameter changes no other. Norm weights are 1, biases 0."""
    config = model.config.init
    n_layers = len(model.config.stack.layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(start_value(model, name))
            else:
                fill(parameter, name, config, n_layers, generator_for(seed, name))
    return model


def start_value(model: Transformer, name: str) -> float:
    """Where a vector starts: biases and means at 0, weights of norms so that the norm scales by 1."""
    owner, _, last = name.rpartition(".")
    if last.endswith("bias") or last == "running_mean":
        return 0.0
    return 1.0 - getattr(model.get_submodule(owner), "offset", 0.0)


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator keyed by (seed, name)."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def fill(parameter: Tensor, name: str, config: InitConfig, n_layers: int, generator: torch.Generator) -> None:
    if config.name == "constant":
        parameter.fill_(config.std)
        return
    std = deviation(name, tuple(parameter.shape), config, n_layers)
    if parameter.dtype == torch.float32 and parameter.device.type == "cpu":
        parameter.normal_(0.0, std, generator=generator)
        return
    values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
    parameter.copy_(values)


def is_table(name: str) -> bool:
    """Whether a matrix is looked up by row rather than multiplied."""
    return name.startswith("embedding.") or ".inputs.positions." in name or ".inputs.kinds." in name


def deviation(name: str, shape: tuple[int, ...], config: InitConfig, n_layers: int) -> float:
    """Standard deviation of a matrix [fan_out, fan_in] under the named scheme.

    "normal": std. "gpt2_scaled": std, divided by sqrt(2 · layers) where a product ends in the residual stream
    (Radford et al. 2019, §2.3). "xavier": sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16).
    "he": sqrt(2 / fan_in) (He et al. 2015, eq. 10). Embeddings take std in every scheme.
    """
    fan_out, fan_in = shape[0], shape[1]
    if is_table(name) or config.name == "normal":
        return config.std
    if config.name == "gpt2_scaled":
        return config.std / math.sqrt(2 * n_layers) if name.endswith(RESIDUAL_ENDS) else config.std
    if config.name == "xavier":
        return math.sqrt(2.0 / (fan_in + fan_out))
    if config.name == "he":
        return math.sqrt(2.0 / fan_in)
    raise ConfigError(f"model.init.name: expected a known scheme, got {config.name!r}")
