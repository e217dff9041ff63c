"""From a model's name to an engine: a model folder, a run folder, or `stub:` (fledge/engine/stub_spec.py)."""

from __future__ import annotations

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.stub_spec import is_stub, parse_stub


def load_engine(model: str, config: EngineConfig | None = None) -> Engine:
    """An engine on `model`. Raises CheckpointError or ConfigError when the folder can't be used."""
    config = config or EngineConfig()
    if is_stub(model):
        from fledge.engine.stub import load_stub

        runner, tokenizer, stop_ids = load_stub(parse_stub(model), config.n_slots)
        return Engine(runner, tokenizer, config, stop_ids)
    from fledge.engine.runner import load_runner

    model_runner, tokenizer, stop_ids = load_runner(model, config.n_slots, config.threads, config.context_tokens)
    return Engine(model_runner, tokenizer, config, stop_ids)
