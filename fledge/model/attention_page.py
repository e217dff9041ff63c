"""`fledge attention`: one self-contained page with every layer's and head's weights, to be looked at with the pointer.

The page loads nothing. Texts of a model or a tokenizer reach it as data only and are shown as text.
"""

from __future__ import annotations

import base64
import json as json_text
from importlib.resources import files
from typing import Any

import numpy as np

from fledge.errors import ConfigError
from fledge.lineage import check_output_file, make_folder, write_text_durably
from fledge.model.attention_config import AttentionConfig
from fledge.model.attention_maps import AttentionMaps, attention_maps

STEPS = 65535  # a weight is kept as a whole number of 1/65535
TITLES = {
    "encoder": "Encoder: the text looks at itself",
    "cross": "Cross: the answer looks at the text",
    "decoder": "Decoder: each token looks back",
}
MARK = "__DATA__"


def attention(config: AttentionConfig, json: bool = False) -> dict[str, Any]:
    """Write the page; gives its path and size, tokens, and each head's mean entropy in bits.

    Raises what `attention_maps` raises, and ConfigError for a text of more than `max_tokens` tokens.
    """
    check_output_file(config.out)
    maps = attention_maps(config.model, config.text, config.target, max_tokens=config.max_tokens)
    text = page(maps, config.model)
    make_folder(config.out.parent)
    write_text_durably(config.out, text)
    result = {
        "out": str(config.out),
        "bytes": len(text.encode()),
        "tokens": maps.tokens,
        "source_tokens": maps.source_tokens,
        "entropy": {name: np.round(maps.entropy(name), 4).tolist() for name in maps.parts},
    }
    if not json:
        shapes = ", ".join(f"{name} {a.shape[0]} layers x {a.shape[1]} heads" for name, a in maps.parts.items())
        print(f"wrote {config.out} ({shapes})")
    return result


def page(maps: AttentionMaps, name: str) -> str:
    """The whole page as text."""
    template = files("fledge.model").joinpath("attention.html").read_text(encoding="utf-8")
    before, mark, after = template.partition(MARK)
    if not mark:
        raise ConfigError(f"attention.html: expected the mark {MARK}, found none; the installation is damaged")
    return before + data(maps, name) + after


def data(maps: AttentionMaps, name: str) -> str:
    """The page's data as JSON that can't end the script element that holds it."""
    parts = []
    for part, weights in maps.parts.items():
        rows, columns = maps.texts(part)
        whole = np.rint(weights.clip(0, 1) * STEPS).astype("<u2")
        parts.append(
            {
                "name": part,
                "title": TITLES[part],
                "layers": weights.shape[0],
                "heads": weights.shape[1],
                "rows": rows,
                "columns": columns,
                "weights": base64.b64encode(whole.tobytes()).decode("ascii"),
                "entropy": np.round(maps.entropy(part), 3).tolist(),
            }
        )
    text = json_text.dumps({"model": name, "parts": parts}, ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
