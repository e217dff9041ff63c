"""What goes on inside a model in training: norms of each layer's gradients and weights, how far an update moves them,
and units of feed-forwards that say nothing."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from fledge.log import RunLog
from fledge.nn.feedforward import FeedForward

LAYER = re.compile(r".*?layers\.\d+")
DEAD = 0.01  # of the layer's root mean square


class Watch:
    """Watches one step in `every_steps` (0: none) and writes an event `watch` for it.

    `layers` of the event: by layer, or by module outside of layers, `gradient_norm` (before clipping), `weight_norm`,
    `update_share` (norm of what the update changed, divided by the weights'), and with `units` for layers with a dense
    feed-forward `dead`: the share of hidden units whose activation stays below 1 % of the layer's root mean square at
    every token of the step; `largest`: the largest activation, in root mean squares.
    """

    def __init__(self, model: nn.Module, every_steps: int, log: RunLog, units: bool = True):
        self.model, self.every_steps, self.log, self.units = model, every_steps, log, units
        self.groups: dict[str, list[Tensor]] = {}
        if every_steps:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    self.groups.setdefault(group_of(name), []).append(parameter)
        self.step = 0
        self.hooks: list[Any] = []
        self.forget()

    def forget(self) -> None:
        """Watch no longer: the step was left out or is over."""
        for hook in self.hooks:
            hook.remove()
        self.on = False
        self.hooks, self.gradient_norms, self.before = [], dict[str, float](), dict[str, list[Tensor]]()
        self.peaks: dict[str, Tensor] = {}
        self.squares: dict[str, tuple[float, int]] = {}

    def begin(self, step: int) -> None:
        """Before the forward pass of update `step`, counted from 1."""
        self.forget()
        self.on = bool(self.every_steps) and step % self.every_steps == 0
        if self.on and self.units:
            for name, part in self.model.named_modules():
                if isinstance(part, FeedForward) and name.endswith(".ffn"):
                    self.hooks.append(part.down.register_forward_pre_hook(self.seen(group_of(f"{name}.down"))))

    def seen(self, layer: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor]) -> None:
            size = given[0].detach().flatten(0, -2).float().abs()
            peak = size.amax(0)
            self.peaks[layer] = torch.maximum(self.peaks[layer], peak) if layer in self.peaks else peak
            total, n = self.squares.get(layer, (0.0, 0))
            self.squares[layer] = (total + float(size.square().sum()), n + size.numel())

        return hook

    def gradients(self) -> None:
        """After the backward passes, before clipping."""
        if self.on:
            for name, parts in self.groups.items():
                self.gradient_norms[name] = norm_of([p.grad for p in parts if p.grad is not None])

    def weights(self) -> None:
        """Before the update."""
        if self.on:
            self.before = {name: [p.detach().clone() for p in parts] for name, parts in self.groups.items()}

    def end(self, step: int) -> None:
        """After the update: write the event."""
        if not self.on:
            return
        layers = {}
        for name, parts in self.groups.items():
            weight = norm_of(self.before[name])
            moved = norm_of([p.detach() - old for p, old in zip(parts, self.before[name], strict=True)])
            layers[name] = {
                "gradient_norm": self.gradient_norms[name],
                "weight_norm": weight,
                "update_share": moved / weight if weight else 0.0,
                **self.units_of(name),
            }
        self.log.write("watch", step=step, layers=layers)
        self.forget()

    def units_of(self, layer: str) -> dict[str, float]:
        if layer not in self.peaks:
            return {}
        total, n = self.squares[layer]
        usual = (total / n) ** 0.5
        peaks = self.peaks[layer]
        return {
            "dead": float((peaks <= DEAD * usual).float().mean()),
            "largest": float(peaks.max()) / usual if usual else 0.0,
        }


def group_of(name: str) -> str:
    """The layer that a parameter stands in, or its module where it stands in none."""
    found = LAYER.match(name)
    return found.group() if found else name.rpartition(".")[0] or name


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))) if tensors else 0.0
