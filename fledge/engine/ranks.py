"""An engine in this process alone, or one that the processes of a launcher share: rank 0 has it, the others follow."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.load import Files, files_of, load_drafter, load_engine
from fledge.engine.stub_spec import is_stub
from fledge.errors import CheckpointError, ConfigError
from fledge.log import say


@contextmanager
def shared_engine(model: str, config: EngineConfig) -> Iterator[Engine | None]:
    """The engine on `model` as `config.parallel` says; None on ranks above 0, once rank 0 has left the context.

    Raises ConfigError, before anything is loaded, for processes that are no such mesh and for what they can't share,
    and what loading raises. An error of one process ends all (see `fledge.parallel.group.joined`).
    """
    n_processes = config.parallel.launched()
    if n_processes == 1:
        yield load_engine(model, config)
        return
    if is_stub(model):
        raise ConfigError("parallel: expected a model to share, got a stub; start one process")
    from fledge.engine.shared import load_shared
    from fledge.parallel.group import joined

    with joined(config.parallel, "cpu") as group:
        runner, tokenizer, stop_ids = load_shared(model, config, group)
        if group.rank:
            with deaf():
                runner.follow()
            yield None
            return
        sizes = config.parallel
        say(f"{n_processes} processes share {model}: tensor {sizes.tensor} x pipe {sizes.pipe}")
        yield Engine(runner, tokenizer, config, stop_ids, drafter=load_drafter(config, runner, tokenizer))
        runner.finish()


@contextmanager
def unchanged_engine(model: str, config: EngineConfig) -> Iterator[tuple[Engine, Files]]:
    """As `shared_engine` on rank 0, with the state of the files that the model was read from. Raises CheckpointError if
    they changed meanwhile, so that half of one model and half of another are never served."""
    before = files_of(model)
    with shared_engine(model, config) as engine:
        assert engine is not None
        if files_of(model) != before:
            raise CheckpointError(f"{model}: expected files that stay, got others while they were read; load it again")
        yield engine, before


@contextmanager
def deaf() -> Iterator[None]:
    """Inside, signals to stop do nothing: rank 0, which gets them too, decides, and its end is this process's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
