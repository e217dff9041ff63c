"""fledge: raise a language model, from raw text to a served chat model.

Importing this package loads no torch, makes no network call and reads no environment; names are imported when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "load": "fledge.engine.loaded:load",
    "Model": "fledge.engine.loaded:Model",
    "Message": "fledge.text.conversation:Message",
    "Sampling": "fledge.engine.request:Sampling",
    "Tokenizer": "fledge.text.tokenizer:Tokenizer",
    "align_dpo": "fledge.recipes.align:align_dpo",
    "align_reward": "fledge.recipes.reward:align_reward",
    "attention_maps": "fledge.model.attention_maps:attention_maps",
    "build_data": "fledge.data.build:build",
    "build_questions": "fledge.data.qa:build_qa",
    "convert": "fledge.model.convert:convert",
    "evaluate": "fledge.evals.run:evaluate",
    "load_config": "fledge.config:load",
    "pretrain": "fledge.recipes.pretrain:pretrain",
    "read_conversations": "fledge.text.conversation:read_conversations",
    "renderer_for": "fledge.text.chat:renderer_for",
    "report": "fledge.train.report:report",
    "run_server": "fledge.serve.main:serve",
    "sft": "fledge.recipes.sft:sft",
    "show": "fledge.model.show:show",
    "train_tokenizer": "fledge.text.train:train_tokenizer",
}
__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from fledge.engine.loaded import Model as Model
    from fledge.engine.loaded import load as load


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module, _, attribute = _WHERE[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'fledge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
