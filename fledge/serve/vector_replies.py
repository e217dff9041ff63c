"""The objects that go out for vectors and labels: OpenAI's embedding list, and the shape of vLLM's /classify.

N inputs, W numbers of a vector, L labels.
"""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np

from fledge.engine.reading import shares_of
from fledge.serve.ids import new_reply_id


def embedded(
    model: str, vectors_NW: np.ndarray, n_tokens: int, encoding: str, dimensions: int | None, unit: bool
) -> dict[str, Any]:
    """Vectors in the order of the inputs, as lists of numbers or as base64 of little-endian float32.

    `dimensions`: the first so many numbers; where the model's vectors have length 1 (`unit`) they get it again."""
    if dimensions is not None and dimensions < vectors_NW.shape[1]:
        vectors_NW = shortened(vectors_NW, dimensions, unit)
    data = [
        {"object": "embedding", "index": index, "embedding": written(vector, encoding)}
        for index, vector in enumerate(vectors_NW)
    ]
    return {"object": "list", "data": data, "model": model, "usage": usage(n_tokens)}


def shortened(vectors_NW: np.ndarray, dimensions: int, unit: bool) -> np.ndarray:
    kept = vectors_NW[:, :dimensions]
    if not unit:
        return kept
    lengths = np.sqrt((kept.astype(np.float64) ** 2).sum(1, keepdims=True))
    return (kept / np.maximum(lengths, 1e-12)).astype(np.float32)


def written(vector_W: np.ndarray, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(vector_W, "<f4").tobytes()).decode()
    return vector_W.tolist()


def classified(
    model: str, logits_NL: np.ndarray, n_tokens: int, labels: list[str], several: bool, as_is: bool = False
) -> dict[str, Any]:
    """The likeliest label of each input with every label's probability, in the order of the head; `as_is`: with what
    the head gives. Of a head whose labels hold or not each by itself (`several`), `labels` are those above a half."""
    shares_NL, data = shares_of(logits_NL, several or len(labels) == 1), []
    for index, (row, probabilities) in enumerate(zip(logits_NL, shares_NL, strict=True)):
        one: dict[str, Any] = {
            "index": index, "label": labels[int(row.argmax())], "probs": (row if as_is else probabilities).tolist(),
            "num_classes": len(labels),
        }  # fmt: skip
        if several:
            one["labels"] = [name for name, share in zip(labels, probabilities, strict=True) if share > 0.5]
        data.append(one)
    head = {"id": new_reply_id("classify"), "object": "list", "created": int(time.time()), "model": model}
    return {**head, "data": data, "usage": usage(n_tokens)}


def usage(n_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
