"""Models and adapters of transformers and PEFT, every parameter random, and both sides' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch

from fledge.batch import OneDocument, one_document
from fledge.model.folder import load_model
from fledge.model.transformer import Transformer
from fledge.tune.folder import load_adapter
from tests.parity import encoders
from tests.parity.cases import BOTH, ENCODERS, model_of
from tests.parity.reference import some_ids

STD = 0.2


def base(name: str, folder: Path) -> Any:
    """A case's model, written to `folder`."""
    model = model_of(name)
    model.save_pretrained(folder)
    return model


def random_adapters(model: torch.nn.Module, seed: int = 11) -> torch.nn.Module:
    """Every parameter of PEFT's adapters, or of ours, drawn at random; lengths and scales near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name or name.endswith("adapter.magnitude"):
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif "ia3_l" in name or name.endswith("adapter.vector"):
                parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
            elif "lora_" in name or "adapter." in name:
                parameter.copy_(STD * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def with_peft(model: Any, config: peft.PeftConfig, folder: Path) -> Any:
    """`model` with random adapters of `config`, saved to `folder`."""
    made = random_adapters(peft.get_peft_model(model, config))
    made.save_pretrained(folder, save_embedding_layers=False)
    return made


@torch.no_grad()
def their_logits(name: str, model: Any) -> torch.Tensor:
    if name in BOTH:
        return model(input_ids=some_ids(2, 33), decoder_input_ids=some_ids(2)).logits
    given = encoders.inputs(name, (40, 40))[0] if name in ENCODERS else {"input_ids": some_ids(2)}
    return model(**given).logits


@torch.no_grad()
def our_logits(name: str, model: Transformer) -> torch.Tensor:
    if name in ENCODERS:
        return model(*encoders.inputs(name, (40, 40))[1])
    source = (one_document(some_ids(2, 33)), OneDocument()) if name in BOTH else None
    return model(one_document(some_ids(2)), OneDocument(), source=source)


def ours(folder: Path) -> Transformer:
    """The base of a folder."""
    return load_model(folder / "base")


def ours_with_adapter(folder: Path) -> Transformer:
    return load_adapter(ours(folder), folder / "adapter", folder / "base")
