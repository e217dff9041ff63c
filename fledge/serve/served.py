"""The served model as the HTTP process knows it: its name and fingerprint, its tokenizer, its chat format."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fledge
from fledge.engine.purpose import Purpose, fills_masks, purpose_of
from fledge.engine.stub_spec import is_stub, parse_stub
from fledge.errors import CheckpointError
from fledge.lineage import read_card
from fledge.model.sentence_steps import MODULES, text_folder
from fledge.serve.config import ServeConfig
from fledge.text.chat import ChatRenderer, chat_renderer
from fledge.text.tokenizer import Tokenizer

BESIDE: dict[Purpose, tuple[str, ...]] = {"embed": ("score",), "score": ("classify",)}
"""Vectors of two texts say how near these are; a head of one number judges one text as well as two."""


@dataclass(frozen=True)
class ServedModel:
    """The model as the HTTP process knows it: text in, ids out. `renderer` is None for a base model and for one whose
    prompt is an encoder's source (`reads_source`). `adapter`: the engine's name of what stands beside the base; "": the
    base itself."""

    name: str
    fingerprint: str
    tokenizer: Tokenizer
    renderer: ChatRenderer | None
    reads_source: bool = False
    purpose: Purpose = "generate"
    adapter: str = ""
    fills_masks: bool = False

    @property
    def verbs(self) -> tuple[str, ...]:
        """What it does: its purpose, what follows from it, and to fill masks where an encoder was trained to."""
        return (self.purpose, *BESIDE.get(self.purpose, ()), *(("fill-mask",) if self.fills_masks else ()))

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: no text of that many characters is less than one token."""
        return max(1, *(len(self.tokenizer.token_bytes(token)) for token in range(self.tokenizer.vocab_size)))


def open_model(config: ServeConfig) -> ServedModel:
    """Tokenizer, renderer, name and fingerprint of the model to serve. Raises CheckpointError or TokenizerError, and
    ConfigError for a pooling that doesn't fit it."""
    purpose: Purpose
    if is_stub(config.model):
        tokenizer, name, digest = parse_stub(config.model).tokenizer(), "stub", config.model
        both, purpose, fills = False, "generate", False
    else:
        folder = model_folder(config.model)
        inside, purpose = text_folder(folder), purpose_of(folder, config.vectors.pooling)
        tokenizer, name, digest = Tokenizer.load(inside), folder_name(folder), content_digest(inside)
        both = reads_source(inside)
        fills = purpose == "embed" and "mask" in tokenizer.special and fills_masks(folder)
    renderer = None if both or purpose != "generate" else chat_renderer(tokenizer)
    if renderer is not None:
        _ = renderer.stop_ids  # a foreign template tells them by running; better now than in the first request
    fingerprint = hashlib.sha256(f"{fledge.__version__} {digest} {tokenizer.digest}".encode()).hexdigest()[:12]
    name = config.name or name
    return ServedModel(name, f"fp_{fingerprint}", tokenizer, renderer, both, purpose, fills_masks=fills)


def reads_source(folder: Path) -> bool:
    """Whether a folder's config.json says that its model is an encoder–decoder; an adapter's, that its base is one.
    Raises CheckpointError."""
    name = next((one for one in ("config.json", "adapter_config.json") if (folder / one).is_file()), "config.json")
    try:
        raw = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / name}: expected JSON, found none ({type(error).__name__})") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder / name}: expected a mapping, got {type(raw).__name__}")
    if name != "config.json":
        return raw.get("task_type") == "SEQ_2_SEQ_LM"
    own = raw.get("model")  # of fledge's own format
    return raw.get("is_encoder_decoder") is True or (
        isinstance(own, dict) and isinstance(own.get("encoder"), dict) and isinstance(own.get("decoder"), dict)
    )


def model_folder(path: str) -> Path:
    """`path` itself, or the `model/` of a run folder: a model's, or an adapter's with its
    tokenizer. Raises CheckpointError if there is none."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file() or (folder / MODULES).is_file():
            return folder
        if (folder / "adapter_config.json").is_file():
            if (folder / "tokenizer.json").is_file():
                return folder
            raise CheckpointError(
                f"{path}: expected an adapter's folder with the tokenizer that it was trained with, found none; copy "
                "the base's tokenizer.json there, or fledge merge BASE ADAPTER --out FOLDER"
            )
    raise CheckpointError(f"{path}: expected a model folder with config.json, found none; check the path")


def folder_name(folder: Path) -> str:
    """The name callers see: the folder's, or its run's; never a path."""
    folder = folder.resolve()
    return (folder.parent.name if folder.name == "model" else folder.name) or "model"


def content_digest(folder: Path) -> str:
    """The card's digest; for a folder of other makers, one of its config and its files' sizes."""
    try:
        return str(read_card(folder)["digest"])
    except CheckpointError:
        sizes = sorted((file.name, file.stat().st_size) for file in folder.glob("*.safetensors"))
        config = next(folder / name for name in ("config.json", "adapter_config.json") if (folder / name).is_file())
        return hashlib.sha256(config.read_bytes() + repr(sizes).encode()).hexdigest()
