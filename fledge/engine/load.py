"""From a model's name to an engine: a model folder, a run folder, or `stub:` (fledge/engine/stub_spec.py)."""

from __future__ import annotations

from pathlib import Path

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.stub_spec import is_stub, parse_stub
from fledge.errors import CheckpointError

READ = (".json", ".safetensors", ".jinja", ".model", ".txt")


def load_engine(model: str, config: EngineConfig | None = None) -> Engine:
    """An engine on `model`. Raises CheckpointError or ConfigError when the folder can't be used."""
    config = config or EngineConfig()
    if is_stub(model):
        from fledge.engine.stub import load_stub

        runner, tokenizer, stop_ids = load_stub(parse_stub(model), config)
        return Engine(runner, tokenizer, config, stop_ids)
    from fledge.engine.runner import load_runner

    model_runner, tokenizer, stop_ids = load_runner(model, config)
    return Engine(model_runner, tokenizer, config, stop_ids)


def load_unchanged(model: str, config: EngineConfig | None = None) -> tuple[Engine, list[list[str | int]]]:
    """An engine on `model` and the state of the files it was read from. Raises CheckpointError if they changed
    meanwhile, so that half of one model and half of another are never served."""
    before = files_of(model)
    engine = load_engine(model, config)
    if files_of(model) != before:
        raise CheckpointError(f"{model}: expected files that stay, got others while they were read; load it again")
    return engine, before


def files_of(model: str) -> list[list[str | int]]:
    """Name, bytes and time of change of every file that a model is read from; none for a stub."""
    if is_stub(model):
        return []
    from fledge.model.folder import find_model

    files = sorted(path for path in Path(find_model(model)).iterdir() if path.suffix in READ and path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
