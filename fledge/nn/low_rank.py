"""Linformer's attention: keys and values of a document mixed along the tokens to a few rows.

Source: Wang et al. 2020 (arXiv 2006.04768), eq. 7. B rows, T tokens, H heads, K key/value heads, C head channels,
R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fledge.batch import Layout, OneDocument, Packed, Padded, document_lengths
from fledge.errors import ConfigError
from fledge.nn.kernels import fast
from fledge.nn.visibility import Sight


def low_rank(
    q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, layout: Layout, projection_RT: Tensor, sight: Sight
) -> Tensor:
    """[B, T, H, C]. Raises ConfigError for documents longer than the projection, and for decoding."""
    if isinstance(layout, OneDocument):
        return whole_rows(q_BTHC, k_BTKC, v_BTKC, projection_RT, sight)
    if isinstance(layout, Padded):
        there = torch.arange(q_BTHC.shape[1], device=q_BTHC.device) < torch.tensor(
            layout.lengths, device=q_BTHC.device
        ).unsqueeze(1)
        there = there[:, :, None, None]
        mixed = whole_rows(q_BTHC, k_BTKC * there, v_BTKC * there, projection_RT, sight)
        return mixed.masked_fill(~there, 0.0)
    if isinstance(layout, Packed):
        flat = [t.flatten(0, 1).split(document_lengths(layout)) for t in (q_BTHC, k_BTKC, v_BTKC)]
        outputs = []
        for document in zip(*flat, strict=True):
            q, k, v = (t[None] for t in document)
            outputs.append(whole_rows(q, k, v, projection_RT, sight)[0])
        return torch.cat(outputs).view(q_BTHC.shape)
    raise ConfigError("Linformer mixes all positions and can't decode token by token; it is for encoders")


def whole_rows(q: Tensor, k: Tensor, v: Tensor, projection_RT: Tensor, sight: Sight) -> Tensor:
    n_tokens = k.shape[1]
    if n_tokens > projection_RT.shape[1]:
        raise ConfigError(f"Linformer: expected at most {projection_RT.shape[1]} tokens a document, got {n_tokens}")
    part = projection_RT[:, :n_tokens]
    k, v = (torch.einsum("rt,btkc->brkc", part, t) for t in (k, v))
    return fast(q, k, v, sight)
