"""From a model's name to an engine: a model folder, a run folder, or `stub:` (fledge/engine/stub_spec.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.speculate import Drafter, DraftModel, LookupDrafter
from fledge.engine.stub_spec import is_stub, parse_stub
from fledge.errors import ConfigError

if TYPE_CHECKING:
    from fledge.engine.runner import Runner
    from fledge.text.tokenizer import Tokenizer

Files = list[list[str | int]]
"""Name, bytes and time of change of each."""
READ = (".json", ".safetensors", ".jinja", ".model", ".txt")


def load_engine(model: str, config: EngineConfig | None = None) -> Engine:
    """An engine on `model`. Raises CheckpointError or ConfigError when the folder can't be used."""
    config = config or EngineConfig()
    if is_stub(model):
        from fledge.engine.stub import load_stub

        runner, tokenizer, stop_ids = load_stub(parse_stub(model), config)
        return Engine(runner, tokenizer, config, stop_ids)
    from fledge.engine.runner import load_runner
    from fledge.nn.native.library import build

    if config.deterministic:
        build()
    model_runner, tokenizer, stop_ids = load_runner(model, config)
    if config.deterministic and (reason := model_runner.why_torch):
        raise ConfigError(f"deterministic: expected the compiled kernels to compute {model}, got torch: {reason}")
    return Engine(model_runner, tokenizer, config, stop_ids, drafter=load_drafter(config, model_runner, tokenizer))


def load_drafter(config: EngineConfig, runner: Runner, tokenizer: Tokenizer) -> Drafter | None:
    """What `config.draft` names, for a runner's engine. Raises ConfigError, or CheckpointError for its folder."""
    if not config.draft:
        return None
    if config.draft == "lookup":
        return LookupDrafter()
    rejection = config.draft_accept == "rejection"
    from fledge.engine.runner import Runner, first_layers, load_runner

    if config.draft.startswith("layers:"):
        n = config.draft.removeprefix("layers:")
        if not n.isdecimal():
            raise ConfigError(f"draft: expected a number of layers, as layers:4, got {config.draft!r:.60}")
        part = Runner(first_layers(runner.model, int(n)), runner.n_slots, runner.context_tokens)
        return DraftModel(part, rejection)
    theirs, words, _ = load_runner(
        config.draft,
        replace(config, cache_tokens=0, cache_dtype="float32", reach_tokens=0, window_tokens=0, rope_scaling=""),
    )
    if theirs.source_tokens:
        raise ConfigError(f"draft: expected a decoder alone, got {config.draft}, which reads a source")
    if words.digest != tokenizer.digest:
        raise ConfigError(f"draft: expected a model of the same tokenizer, got {config.draft}; train one on it")
    if theirs.n_blocks < theirs.n_slots * -(-theirs.context_tokens // theirs.block_tokens):
        raise ConfigError(f"draft: expected memory for {theirs.n_slots} contexts, got too little; give fewer n_slots")
    return DraftModel(theirs, rejection)


def files_of(model: str) -> Files:
    """Name, bytes and time of change of every file that a model is read from; none for a stub."""
    if is_stub(model):
        return []
    from fledge.tune.load import served_folders

    return [one for folder in served_folders(model) for one in files_in(folder)]


def files_in(folder: Path) -> Files:
    """Of the files in a folder that a model or an adapter is read from."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in READ and path.is_file()]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
