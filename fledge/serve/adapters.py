"""The adapters of one server: who is asked for by `model: base:adapter`, and loading and unloading while it runs."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from fledge.engine.client import EngineClient
from fledge.errors import CapacityError, CheckpointError, ConfigError, FledgeError, RequestError
from fledge.lineage import sha256_file
from fledge.serve.errors import ApiError
from fledge.serve.served import ServedModel
from fledge.text.chat import format_beside

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
BETWEEN = ":"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def split(words: tuple[str, ...]) -> dict[str, str]:
    """Folders by name, of words like `name=folder`. Raises ConfigError."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not folder or not NAME.fullmatch(name) or name in found:
            raise ConfigError(
                f"adapters: expected name=folder, each name once, of letters, digits and -_., got {word!r:.80}"
            )
        found[name] = folder
    return found


@dataclass(frozen=True)
class Served:
    """An adapter, as callers see it, since when."""

    model: ServedModel
    created: int


class ServedAdapters:
    """Beside the model `base` of an engine. `folder`: where callers may have others loaded from, up to `most` in all;
    "": nowhere."""

    def __init__(self, base: ServedModel, engine: EngineClient, folder: str, most: int):
        self.base, self.engine, self.folder, self.most = base, engine, folder, most
        self.known: dict[str, Served] = {}
        self.coming: set[str] = set()  # being loaded
        for name, (path, _) in engine.adapters.items():
            self.known[name] = Served(self.opened(name, Path(path)), int(time.time()))

    def opened(self, name: str, folder: Path) -> ServedModel:
        """An adapter as a model: the base's ids, its own chat format where it brings a tokenizer. Raises
        CheckpointError for a tokenizer of other ids."""
        place = next((one for one in (folder, folder / "model") if (one / "adapter_config.json").is_file()), None)
        if place is None:
            raise CheckpointError(f"{folder}: expected an adapter folder with adapter_config.json; check the path")
        renderer = format_beside(place, self.base.tokenizer, self.base.renderer)
        content = "".join(sha256_file(place / file) for file in ADAPTER_FILES if (place / file).is_file())
        digest = hashlib.sha256(f"{self.base.fingerprint} {content}".encode()).hexdigest()[:12]
        full_name = f"{self.base.name}{BETWEEN}{name}"
        return ServedModel(
            full_name, f"fp_{digest}", self.base.tokenizer, renderer, self.base.reads_source, adapter=name
        )

    def all(self) -> list[Served]:
        """Those that the engine has: after a restart it leaves out whose files were replaced."""
        return [served for name, served in self.known.items() if name in self.engine.adapters]

    def find(self, name: str | None) -> ServedModel:
        """The model or adapter that a request names, by default the model. Raises ApiError 404."""
        if name is None or name == self.base.name:
            return self.base
        for served in self.all():
            if served.model.name == name:
                return served.model
        names = [self.base.name, *(served.model.name for served in self.all())]
        message = f"The model {name[:80]!a} does not exist here; this server has {shown(names)}."
        raise ApiError(404, message, "model", "model_not_found")

    async def load(self, name: str, path: str) -> ServedModel:
        """Load an adapter from a path inside the server's folder for them, in place of one that has its name. Raises
        ApiError, with nothing changed."""
        folder = self.inside(path)
        if not NAME.fullmatch(name):
            raise RequestError("lora_name: expected letters, digits and -_., at most 64", "lora_name")
        others = {one.model.adapter for one in self.all()} - {name} | self.coming
        if len(others) >= self.most:
            message = f"{len(others)} adapters are loaded, as many as this server holds; unload one first."
            raise ApiError(400, message, "lora_name", "too_many_adapters")
        self.coming.add(name)
        try:
            model = await asyncio.to_thread(self.opened, name, folder)  # it reads and hashes the files
            await self.engine.load_adapter(name, str(folder))
        except (CapacityError, RequestError):
            raise
        except FledgeError as error:
            told = str(error).replace(str(folder), path).replace(str(Path(self.folder).resolve()), "")
            raise ApiError(400, f"The adapter can't be loaded: {told}", "lora_path", "adapter_refused") from None
        finally:
            self.coming.discard(name)
        self.known[name] = Served(model, int(time.time()))
        return model

    async def unload(self, name: str) -> None:
        """Answers under way finish with it. Raises ApiError 404 for one that is not loaded."""
        self.check_allowed()
        if name not in self.engine.adapters:
            message = f"The adapter {name[:80]!a} is not loaded; this server has {shown(list(self.engine.adapters))}."
            raise ApiError(404, message, "lora_name", "adapter_not_found")
        await self.engine.unload_adapter(name)
        self.known.pop(name, None)

    def check_allowed(self) -> None:
        if not self.folder:
            message = "Adapters can't be changed while this server runs; it was started without adapters_dir."
            raise ApiError(403, message, code="adapters_fixed")

    def inside(self, path: str) -> Path:
        """A path below the server's folder for adapters, links resolved. Raises ApiError."""
        self.check_allowed()
        root = Path(self.folder).resolve()
        try:
            folder = (root / path).resolve()
            there = folder.is_dir()  # a name may be too long even to be looked for
        except (OSError, ValueError):
            there = False
        if not there or folder == root or not folder.is_relative_to(root):
            raise ApiError(400, "lora_path: expected a folder inside the server's adapters_dir.", "lora_path")
        return folder


def shown(names: list[str]) -> str:
    """The first eight, in words."""
    return (", ".join(f"{one!a}" for one in names[:8]) or "none") + (", …" if len(names) > 8 else "")
