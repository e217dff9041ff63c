"""`fledge show`: what a model would be and, with a method of tuning, how much of it that trains."""

from __future__ import annotations

from typing import Any

from fledge.model.show import resolve, size
from fledge.model.show import show as show_model
from fledge.model.transformer import build
from fledge.nn.adapter import Adapter
from fledge.tune.attach import trained_parameters, tune
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
            f"({tuned['share']:.4%})" + (f", {tuned['modules']} adapters" if tuned["modules"] else "")
        )
        print(
            f"           {size(tuned['training_bytes'])} of weights, gradients and AdamW in FP32 (all weights: "
            f"{size(tuned['full_training_bytes'])}), {size(tuned['adapter_bytes'])} to store; without activations"
        )
        if "memory" in tuned:
            print(f"           {size(tuned['memory']['peak'])} at its peak in training, activations included")
    return result


def tuning(config: ShowTunedConfig, result: dict[str, Any]) -> dict[str, Any]:
    """Exact counts, from a model without memory."""
    model = tune(build(resolve(config)), config.tune)
    trainable, frozen = trained_parameters(model), sum(p.numel() for p in model.parameters() if not p.requires_grad)
    found: dict[str, Any] = {
        "method": config.tune.method,
        "trainable": trainable,
        "frozen": frozen,
        "share": trainable / (trainable + frozen),
        "modules": sum(isinstance(part, Adapter) for part in model.modules()),
        "adapter_bytes": BYTES * trainable,
        "training_bytes": BYTES * (frozen + NUMBERS_IN_TRAINING * trainable),
        "full_training_bytes": BYTES * NUMBERS_IN_TRAINING * result["parameters"],
    }
    if config.rows:
        from fledge.model.memory import training_memory  # torch's fake tensors take seconds to import

        row_tokens = config.row_tokens or result["context_tokens"]
        memory = training_memory(resolve(config), config.rows, row_tokens, change=lambda one: tune(one, config.tune))
        found["memory"] = vars(memory)
    return found
