"""fledge: raise a language model, from raw text to a served chat model.

Importing this package loads no torch, makes no network call and reads no environment; names are imported when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "load": "fledge.engine.loaded",
    "Model": "fledge.engine.loaded",
}
__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from fledge.engine.loaded import Model as Model
    from fledge.engine.loaded import load as load


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'fledge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
