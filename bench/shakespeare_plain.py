"""nanoGPT's CPU configuration in a plain loop of torch alone, at its learning rate of 1e-3: the loss on the whole
validation split, seed by seed. The yardstick beside runs/shakespeare-char.yaml.

4 layers, 4 heads, width 128, block 64, batch 12, no biases, exact GELU, 2,000 steps, AdamW (0.9, 0.99), decay 0.1 on
matrices, clipping at 1, 100 steps of warm-up, cosine to a tenth; rows from random places. The last tenth of the text is
scored in windows of 64 without overlap.

    python bench/shakespeare_plain.py [FOLDER/input.txt] [--seeds 1 2 3] [--rate 1e-3]
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import keep
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, BLOCK, ROWS, STEPS, WARMUP = 4, 4, 128, 64, 12, 2000, 100


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class PlainModel(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(vocab, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            ends = name.endswith(("out.weight", "down.weight"))
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * LAYERS) if ends else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.table.weight.t()


def rate_at(step: int, peak: float) -> float:
    if step < WARMUP:
        return peak * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / (STEPS - WARMUP)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def validation_loss(train: Tensor, held_out: Tensor, vocab: int, seed: int, peak: float) -> float:
    """Nats a character after training with `seed`."""
    torch.manual_seed(seed)
    model = PlainModel(vocab)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, peak)
        rows = torch.stack([train[s : s + BLOCK + 1] for s in torch.randint(len(train) - BLOCK, (ROWS,))])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    n_rows = (len(held_out) - 1) // BLOCK
    inputs, targets = (held_out[i : i + n_rows * BLOCK].view(n_rows, BLOCK) for i in (0, 1))
    with torch.no_grad():
        nats = [
            F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
            for x, y in zip(inputs.split(200), targets.split(200), strict=True)
        ]
    return sum(nats) / targets.numel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    data = Path(os.environ.get("FLEDGE_DATA", "../shared/data"))
    parser.add_argument("text", type=Path, nargs="?", default=data / "text_tinyshakespeare" / "input.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rate", type=float, default=1e-3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    letters = given.text.read_text(encoding="utf-8")
    alphabet = {c: i for i, c in enumerate(sorted(set(letters)))}
    ids = torch.tensor([alphabet[c] for c in letters])
    cut = int(0.9 * len(ids))
    losses = {seed: validation_loss(ids[:cut], ids[cut:], len(alphabet), seed, given.rate) for seed in given.seeds}
    mean = sum(losses.values()) / len(losses)
    keep("shakespeare_plain", {"peak rate": given.rate, "validation loss by seed": losses, "mean": mean})
