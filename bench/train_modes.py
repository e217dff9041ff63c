"""CPU seconds of a training step by precision and compilation, beside float32 uncompiled: nanoGPT's CPU configuration.

`python bench/train_modes.py [steps] [mode ...]`, a mode being a precision and compile (float32/off, bfloat16/blocks …).
CPU seconds and not wall seconds, so that a busy machine changes them little; the first step, which compiles, is apart.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fledge.batch import Batch, Loss, OneDocument, Term, one_document
from fledge.device import Device
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.train.config import TrainConfig
from fledge.train.trial import trial_loop

SHAPE = ShapeConfig(
    "gpt2", width=128, layers=4, heads=4, context_tokens=64, vocab_size=65, bias=False, activation="gelu"
)
ROWS = 12
MODES = ("float32/off", "bfloat16/off", "float16/off", "float32/blocks", "bfloat16/blocks", "float32/model")


@dataclass
class Made:
    """Random tokens: the step costs what it costs with text."""

    model: Transformer
    data_digest: str = ""

    def batch(self, index: int) -> Batch:
        ids = torch.randint(0, 65, (ROWS, 64), generator=torch.Generator().manual_seed(index))
        return Batch(one_document(ids), ids.roll(-1, 1), torch.ones(ROWS, 64), OneDocument())

    def weights(self, batch: Batch) -> dict[str, float]:
        return {"nats": float(batch.weight.sum())}

    def loss(self, batch: Batch) -> Loss:
        total = self.model.loss_sum(batch.tokens, batch.layout, batch.targets, batch.weight)
        return Loss({"nats": Term(total, float(batch.weight.sum()))})

    def validate(self, rows: int) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        save_model(self.model, folder, card=False)


def measure(mode: str, steps: int) -> dict[str, object]:
    precision, compiled = mode.split("/")
    torch._dynamo.reset()
    made = Made(initialise(build(family("gpt2").new_config(SHAPE), "cpu"), 1))
    train = TrainConfig(steps=steps + 3, rows=ROWS, precision=precision, compile=compiled)  # type: ignore[arg-type]
    loop = trial_loop(made, train, Device(torch.device("cpu"), torch.float32, torch.get_num_threads()))
    taken, losses = [], []
    for _ in range(steps + 2):
        began = time.process_time()
        figures = loop.one_step()
        taken.append(time.process_time() - began)
        losses.append(figures["loss"] if figures else None)
    return {
        "mode": mode,
        "first_step_cpu_seconds": round(taken[0], 3),
        "step_cpu_ms": round(1e3 * statistics.median(taken[2:]), 3),
        "last_loss": losses[-1],
    }


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    for mode in sys.argv[2:] or MODES:
        print(json.dumps(measure(mode, steps)), flush=True)


if __name__ == "__main__":
    main()
