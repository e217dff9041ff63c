"""The id that the decoder of an encoder–decoder begins with. Imports no torch."""

from __future__ import annotations

from fledge.model.config import ModelConfig
from fledge.model.families import family


def start_id(model: ModelConfig) -> int:
    """`special_ids["start"]`, else what the model's folder would state, else the id of padding or of eos, else 0."""
    if "start" in model.special_ids:
        return model.special_ids["start"]
    stated = family(model.family).write(model).get("decoder_start_token_id")
    if stated is None:
        stated = model.special_ids.get("pad", model.special_ids.get("eos"))
    return int(stated or 0)
