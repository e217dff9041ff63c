"""Configuration of `fledge serve`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.engine.config import EngineConfig
from fledge.engine.vector_config import VectorConfig
from fledge.errors import ConfigError


@dataclass(frozen=True)
class ServeConfig:
    """An OpenAI-compatible server on one model: text with a chat page, embeddings, or what a head says of texts."""

    model: str
    """Model folder or run folder; `stub:` is an engine without a model, for tests of everything around it."""
    name: str = ""
    """The model's name on the wire; empty takes the folder's."""
    adapters: tuple[str, ...] = ()
    """Adapters beside the model, as name=folder: callers ask for `model: NAME:ADAPTER`."""
    adapters_dir: str = ""
    """Folder of adapters that callers may load and unload while the server runs; empty: they may not."""
    max_adapters: int = 32
    """Adapters that may be loaded at once."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback is reachable from other machines: set an API key."""
    port: int = 8000
    """Port to listen on; 0 lets the system choose one."""
    api_key: str = ""
    """Key that callers must send as `Authorization: Bearer KEY`; the environment's FLEDGE_API_KEY when empty."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names for the Host header. On loopback only localhost is answered, so that no web page can reach in."""
    strict: bool = False
    """Refuse every unknown request field; otherwise they are ignored and counted."""
    drain_seconds: float = 30.0
    """After SIGTERM: time for running answers to finish; 0 ends them at once."""
    start_wait_seconds: float = 60.0
    """How long a request may wait for the model to load when the server has just started."""
    max_choices: int = 128
    """Answers in work or waiting at once; more are refused with 503."""
    queue_seconds: float = 30.0
    """How long an answer may wait for a slot of the engine: one that would wait longer is refused with 503, and one
    that did is given up without being begun; 0: for ever."""
    max_body_bytes: int = 8 << 20
    """Largest request body."""
    body_seconds: float = 12.0
    """Time for a request's body to arrive."""
    access_log: Literal["auto", "json", "plain", "off"] = "auto"
    """One line per request on standard error; auto is plain on a terminal and json elsewhere."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How much the engine does at once."""
    vectors: VectorConfig = field(default_factory=VectorConfig)
    """Embeddings and labels: of models that don't write text, or that shall give vectors instead."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: expected 0..65535, got {self.port}")
        for name, least in (
            ("drain_seconds", 0),
            ("start_wait_seconds", 0),
            ("max_choices", 1),
            ("max_adapters", len(self.adapters)),
            ("queue_seconds", 0),
            ("body_seconds", 0.1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.max_body_bytes < 1024:
            raise ConfigError(f"max_body_bytes: expected at least 1024, got {self.max_body_bytes}")
        check_api_key(self.api_key, "api_key")


def check_api_key(key: str, place: str) -> None:
    """Raises ConfigError for a key that no header could carry as it is. `place`: where it was set."""
    if not key.isascii() or not (key.isprintable() and " " not in key):
        raise ConfigError(f"{place}: expected printable ASCII without spaces, got something else; choose another key")
