"""`fledge show`: what a model would be and, with a method of tuning, how much of it that trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fledge.model.folder import config_of, find_model, load_model
from fledge.model.quantization import read_quantization
from fledge.model.quantized_files import install, quantized_maps
from fledge.model.show import is_folder, resolve, size
from fledge.model.show import show as show_model
from fledge.model.transformer import Transformer, build
from fledge.nn.adapter import Adapter
from fledge.nn.quantized import Int8Linear, Quantized, whole_numbers_multiply
from fledge.tune.attach import all_numbers, trained_parameters, tune
from fledge.tune.config import ShowTunedConfig

BYTES, NUMBERS_IN_TRAINING = 4, 4  # FP32: weight, gradient and AdamW's two moments


def show(config: ShowTunedConfig, json: bool = False) -> dict[str, Any]:
    """`fledge.model.show.show`, and what `config.tune` trains."""
    result = show_model(config, json)
    if config.tune.trains_all:
        return result
    result["tuning"] = tuned = tuning(config, result)
    if not json:
        print(
            f"tuning     {config.tune.method}: {tuned['trainable']:,} trained beside {tuned['frozen']:,} frozen "
            f"({tuned['share']:.4%})" + extent(config, tuned)
        )
        print(
            f"           {size(tuned['training_bytes'])} of weights, gradients and AdamW in FP32 (all weights: "
            f"{size(tuned['full_training_bytes'])}), {size(tuned['adapter_bytes'])} to store; without activations"
        )
        if "memory" in tuned:
            print(f"           {size(tuned['memory']['peak'])} at its peak in training, activations included")
    return result


def extent(config: ShowTunedConfig, tuned: dict[str, Any]) -> str:
    """How many adapters or virtual tokens there are."""
    if config.tune.virtual:
        return f", {config.tune.virtual} virtual tokens"
    return f", {tuned['modules']} adapters" if tuned["modules"] else ""


def tuning(config: ShowTunedConfig, result: dict[str, Any]) -> dict[str, Any]:
    """Exact counts, from a model without memory."""
    base = base_of(config)
    whole = (buffer for one in quantized_maps(base).values() for buffer in one.buffers())
    weights = sum(t.nbytes for t in (*base.parameters(), *whole))
    how = replace(config.tune, init="random", init_text="")  # what they begin as counts nothing
    model = tune(base, how)
    trainable = trained_parameters(model)
    frozen = all_numbers(model) - trainable
    weights -= 0 if config.tune.method != "full" else BYTES * trainable
    found: dict[str, Any] = {
        "method": config.tune.method,
        "trainable": trainable,
        "frozen": frozen,
        "share": trainable / (trainable + frozen),
        "modules": sum(isinstance(part, Adapter) for part in model.modules()),
        "adapter_bytes": BYTES * trainable,
        "training_bytes": weights + BYTES * NUMBERS_IN_TRAINING * trainable,
        "full_training_bytes": BYTES * NUMBERS_IN_TRAINING * result["parameters"],
    }
    if config.rows:
        from fledge.model.memory import training_memory  # torch's fake tensors take seconds to import

        row_tokens = config.row_tokens or result["context_tokens"] - config.tune.virtual
        whole_numbers_multiply("cpu")  # tried on numbers, once, which tensors without data don't have
        quantized = quantized_maps(base_of(config))

        def change(one: Transformer) -> Transformer:
            install(one, {name: empty_like(there) for name, there in quantized.items()}, torch.device("cpu"))
            return tune(one, how)

        found["memory"] = vars(training_memory(resolve(config), config.rows, row_tokens, change=change))
    return found


def base_of(config: ShowTunedConfig) -> Transformer:
    """The model without memory; a folder's with its whole numbers as they are stored."""
    if config.path and is_folder(config.path) and read_quantization(config_of(find_model(config.path))):
        return load_model(config.path, "meta")
    return build(resolve(config))


def empty_like(one: Quantized) -> Quantized:
    """A quantized map of the same shape, without values and bias."""
    weights = (one.weight, one.scale) if isinstance(one, Int8Linear) else (one.packed, one.scale, one.zero)
    return type(one)(*(torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in weights))  # type: ignore[arg-type]
