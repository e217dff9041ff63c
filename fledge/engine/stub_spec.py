"""`stub:` in place of a model folder: an engine without a model, for tests of everything around it. Imports no torch.

`stub:delay_ms=5&text=Hello%20there` is a URL query of StubSpec's fields. The tokenizer is the byte-level one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from fledge import config
from fledge.errors import ConfigError

if TYPE_CHECKING:
    from fledge.text.tokenizer import Tokenizer

PREFIX = "stub:"


@dataclass(frozen=True)
class StubSpec:
    """What the stub does. Without `text` its logits are a hash of the whole context."""

    text: str | None = None
    """Every answer is this text and the end of the turn."""
    context_tokens: int = 512
    """Prompt and answer together."""
    delay_ms: float = 0.0
    """Pause in each forward pass; a step has two where prompts are read beside running answers."""
    token_ms: float = 0.0
    """Further pause for each token of a prompt: a row's, but its first."""
    load_ms: float = 0.0
    """Pause before it is ready."""
    poison: str | None = None
    """A character that makes the forward pass raise."""
    crash: str | None = None
    """A character that kills the process in the forward pass."""

    def tokenizer(self) -> Tokenizer:
        """Bytes and the special tokens, chat roles included."""
        from fledge.text.tokenizer import byte_level

        return byte_level()


def is_stub(model: str) -> bool:
    return model.startswith(PREFIX)


def parse_stub(model: str) -> StubSpec:
    """The StubSpec that `model` spells. Raises ConfigError naming the unknown field or the wrong value."""
    if not is_stub(model):
        raise ConfigError(f"model: expected {PREFIX}…, got {model!r:.60}")
    texts = ("text", "poison", "crash")
    try:
        pairs = parse_qsl(model[len(PREFIX) :], keep_blank_values=True, strict_parsing=bool(model[len(PREFIX) :]))
    except ValueError:
        raise ConfigError(f"model: expected {PREFIX}key=value&key=value, got {model!r:.60}") from None
    tree = {key: value if key in texts else config.parse_yaml(value, at=key) for key, value in pairs}
    return config.from_dict(StubSpec, tree, at="stub")
