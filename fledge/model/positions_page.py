"""docs/positions.md, written from what can be built: `python -m fledge.model.positions_page > docs/positions.md`."""

from __future__ import annotations

from dataclasses import replace

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family
from fledge.model.variants import ATTENTIONS, DEFAULTS, NUMBERS, POSITIONS, varied

INTRODUCTION = """\
# Positions and attention, one field away

*Written by `make docs` from the program itself; a test keeps it current.*

`model.position=…` and `model.attention=…` change how any family's model knows places and what its tokens see;
`model.norm` and `model.norm_at` its norms. Each stands alone: unset, the family's custom stays.

```sh
fledge show gpt2 --model.position alibi
fledge show llama-15m --model.attention window --model.window 64
```

A model that its family's format can still express is saved in that format (BERT with `position=learned`, T5 with
`position=buckets`). Any other is saved in fledge's own: `model_type` in config.json is `fledge`, the whole config
stands under `model`, and weights have our names. transformers refuses such a folder by its model type; a folder that
kept the family's type would open there and compute another model. fledge loads both.

## Which pairs have a definition

"causal" is a decoder, "both ways" an encoder. In an encoder–decoder a pair must have a definition in both stacks;
cross-attention stays full.
"""

NOTES = """\
## Time and memory

Attention is exact and its memory linear in the document's length, forward and back, whatever the pair. Time is
quadratic for full attention; linear for windows, longformer (with few global tokens), bigbird, linformer and linear;
n · √n for strided and fixed at a stride of √n. `python bench/attention_length.py` measures the exponents.

## BigBird's random blocks

A block's random blocks depend on (seed, block, number of blocks): the same in every layer and head, in training and
after. transformers draws them from numpy's generator, for each layer and head, in training only; outside training it
repeats the first block instead. A BigBird folder of transformers computes the latter here, always; a model of
`attention=bigbird` what it was trained with. With the same blocks both give the same states and gradients (a test).
"""


def attempt(position: str, attention: str, causal: bool) -> str:
    """Why a pair has no definition, or ''."""
    try:
        pair(position, attention, causal)
    except ConfigError as error:
        return str(error).partition("layers[0]: ")[2]
    return ""


def pair(position: str, attention: str, causal: bool, **more: int) -> ModelConfig:
    """A tiny decoder or encoder with that position and attention. Raises ConfigError if the pair has no definition."""
    shape = ShapeConfig(
        "gpt2", width=32, layers=2, heads=4, context_tokens=64, vocab_size=50,
        position=position, attention=attention, **more,  # type: ignore[arg-type]
    )  # fmt: skip
    plain = replace(shape, position="", attention="", **dict.fromkeys(NUMBERS, 0))  # type: ignore[arg-type]
    base = family("gpt2").build(plain)
    if not causal:
        assert base.decoder is not None
        base = replace(base, decoder=None, encoder=replace(base.decoder, causal=False))
    return varied(base, shape)


def page() -> str:
    """The whole of docs/positions.md."""
    reasons: dict[str, int] = {}
    parts = [INTRODUCTION]
    for causal in (True, False):
        rows = [f"| {'causal' if causal else 'both ways'} | " + " | ".join(ATTENTIONS) + " |", "|---" * 9 + "|"]
        for position in POSITIONS:
            cells = []
            for attention in ATTENTIONS:
                reason = attempt(position, attention, causal)
                cells.append(f"no ({reasons.setdefault(reason, len(reasons) + 1)})" if reason else "works")
            rows.append(f"| {position} | " + " | ".join(cells) + " |")
        parts.append("\n".join(rows) + "\n")
    parts.append(
        "Why not:\n\n" + "\n".join(f"{n}. {reason[0].upper()}{reason[1:]}." for reason, n in reasons.items()) + "\n"
    )
    numbers = [f"| `model.{n}` | {', '.join(readers)} | {DEFAULTS[n]} |" for n, readers in NUMBERS.items()]
    parts.append("## Their numbers\n\n| key | read by | unset |\n|---|---|---|\n" + "\n".join(numbers) + "\n")
    parts.append(NOTES)
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
