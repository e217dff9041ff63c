"""The engine's own process: `python -m fledge.engine.process MODEL --fd N …`, started by fledge/engine/client.py.

It speaks frames (fledge/engine/wire.py) over an inherited socket. It leaves when the other end closes, however that end
died; SIGTERM lets running answers finish for `DRAIN_SECONDS` at
most, a second one leaves at once; SIGINT is ignored, the parent decides.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fledge.config import from_dict
from fledge.engine import wire
from fledge.engine.config import EngineConfig
from fledge.engine.load import Files
from fledge.engine.loop import Commands, Loop
from fledge.engine.preparing import Preparations
from fledge.engine.request import Event
from fledge.engine.standing import read_in_thread, stand
from fledge.errors import EXIT_OK, CapacityError, EngineError, FledgeError

if TYPE_CHECKING:
    from fledge.engine.constraint import Constraint
    from fledge.engine.core import Engine

DRAIN_SECONDS = 30.0

Begin = Callable[[str, dict[str, Any], socket.socket, Commands[wire.Frame]], Loop]


def main(begin: Begin, arguments: list[str] | None = None) -> int:
    """Load the model by `begin`, say `ready` (or `failed`, with the error), serve until told to stop. Gives the exit
    code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="fledge.engine.process")
    parser.add_argument("model")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--config", type=json.loads, default={})
    options = parser.parse_args(arguments)
    connection = socket.socket(fileno=options.fd)
    commands: Commands[wire.Frame] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(connection, commands), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_OK))  # nothing to finish yet
    try:
        loop = begin(options.model, options.config, connection, commands)
    except Exception as error:
        return tell_failure(connection, error)
    gc.freeze()  # a full collection would go through all that was loaded, 0.15 s in which nobody gets a token
    patience = itertools.chain([DRAIN_SECONDS], itertools.repeat(0.0))  # a second signal leaves at once
    signal.signal(signal.SIGTERM, lambda *_: commands.put({"kind": "shutdown", "seconds": next(patience)}))
    return loop.run()


def begin_text(model: str, config: dict[str, Any], connection: socket.socket, commands: Commands[wire.Frame]) -> Loop:
    """The loop around an engine on `model`. Raises what loading raises."""
    from fledge.engine.ranks import unchanged_engine  # torch: seconds, with the parent's end already watched

    kept = ExitStack()
    engine, files = kept.enter_context(unchanged_engine(model, from_dict(EngineConfig, config["engine"])))
    with kept:
        worker = Worker(engine, connection, commands, files, stand(engine, config["adapters"]))
        worker.kept = kept.pop_all()
    return worker


def listen(connection: socket.socket, commands: Commands[wire.Frame]) -> None:
    """Thread: frames into the queue. The end of the line means that the parent is gone, and nobody reads answers."""
    try:
        while (frame := wire.receive(connection)) is not None:
            commands.put(frame)
    except Exception:
        traceback.print_exc()
    os._exit(EXIT_OK)


def tell_failure(connection: socket.socket, error: Exception) -> int:
    """Send why the model could not be loaded. Gives the exit code."""
    if not isinstance(error, FledgeError):
        traceback.print_exception(error)
        error = EngineError(f"engine: the model could not be loaded ({type(error).__name__})")
    try:
        connection.sendall(wire.pack({"kind": "failed", "error": wire.error_to_plain(error)}))
    except OSError:
        pass
    return error.exit_code


class Worker(Loop):
    """The loop around an engine that writes text: steps, and sends their events."""

    def __init__(
        self,
        engine: Engine,
        connection: socket.socket,
        commands: Commands[wire.Frame],
        files: Files,
        adapters: dict[str, Files],
    ):
        super().__init__(connection, commands)
        self.engine = engine
        self.files, self.adapters = files, adapters
        self.preparing = Preparations(self.prepare)  # requests whose constraint is not compiled yet
        self.kept = ExitStack()  # what ends with the engine: other processes that share its model
        if engine.config.parallel.several:
            self.pulse_seconds = engine.config.parallel.timeout_seconds / 4

    def run(self) -> int:
        with self.kept:
            return super().run()

    def pulse(self) -> None:
        self.engine.runner.pulse()  # type: ignore[attr-defined]  # a SharedRunner, where pulses are due

    def facts(self) -> dict[str, Any]:
        return {
            "context_tokens": self.engine.context_tokens,
            "reach_tokens": self.engine.reach_tokens,
            "vocab_size": self.engine.vocab_size,
            "n_slots": self.engine.runner.n_slots,
            "n_blocks": self.engine.runner.n_blocks,
            "block_tokens": self.engine.runner.block_tokens,
            "source_tokens": self.engine.runner.source_tokens,
            "start_id": self.engine.runner.start_id,
            "pid": os.getpid(),
            "files": self.files,
            "adapters": self.adapters,
        }

    @property
    def has_work(self) -> bool:
        return self.engine.has_work

    def work(self) -> None:
        self.send_events(self.engine.step())

    def counters(self) -> dict[str, float]:
        return self.engine.counters()

    def cancel(self, request_id: str) -> None:
        self.preparing.discard(request_id)
        self.engine.cancel(request_id)

    def obey_other(self, frame: wire.Frame) -> None:
        if frame["kind"] == "prepared":
            self.prepared(frame)
        elif frame["kind"] == "load_adapter":
            read_in_thread(self.engine, frame, self.commands.put)
        elif frame["kind"] in ("adapter_read", "unload_adapter"):
            self.change_shelf(frame)
        else:
            super().obey_other(frame)

    def submit(self, frame: wire.Frame) -> None:
        refusal: FledgeError
        try:
            if self.deadline is not None:
                raise CapacityError("engine: shutting down; try again later")
            request = wire.request_from_plain(frame["request"])
            constraint = request.sampling.constraint
            if constraint is None or self.engine.constrainer.has(constraint) or "automaton" in frame:
                self.engine.submit(request)
                return
            self.preparing.add(request.tenant, request.id, (constraint, frame))
            return
        except FledgeError as error:
            refusal = error
        except Exception as error:  # a request that trips our own code must not end the others'
            traceback.print_exception(error)
            refusal = EngineError(f"engine: the request could not be taken ({type(error).__name__})")
        self.refuse(frame["request"]["id"], refusal)

    def prepare(self, job: tuple[Constraint, wire.Frame]) -> None:
        """Thread: compile a request's constraint while the others' answers go on. The request comes back to the queue
        with its automaton, or with why there is none."""
        constraint, frame = job
        try:
            outcome: Any = self.engine.constrainer.automaton(constraint)
        except FledgeError as error:
            outcome = error
        except Exception as error:
            traceback.print_exception(error)
            outcome = EngineError(f"engine: the constraint could not be compiled ({type(error).__name__})")
        self.commands.put({"kind": "prepared", "request": frame["request"], "automaton": outcome})

    def prepared(self, frame: wire.Frame) -> None:
        """A request that comes back from `prepare`, unless it was cancelled meanwhile. Whoever waits for another sees
        that there is life."""
        request_id = frame["request"]["id"]
        self.send({"kind": "counters", "counters": self.counters()})
        if request_id not in self.preparing:
            return
        self.preparing.discard(request_id)
        if isinstance(frame["automaton"], FledgeError):
            self.refuse(request_id, frame["automaton"])
        else:
            self.submit(frame)

    def change_shelf(self, frame: wire.Frame) -> None:
        """Take an adapter that was read, or leave one out; and say so."""
        answer: wire.Frame = {"kind": "shelf", "number": frame["number"], "files": None, "error": None}
        outcome = frame.get("outcome")
        try:
            if isinstance(outcome, FledgeError):
                raise outcome
            if outcome is None:
                self.engine.unload_adapter(frame["name"])
            else:
                changes, answer["files"] = outcome
                self.engine.shelf.load(frame["name"], changes)
        except FledgeError as error:
            answer["error"] = wire.error_to_plain(error)
        self.send(answer)

    def abort(self) -> None:
        """End what the deadline cut off, so that every reader gets a last event."""
        cut_off = EngineError("engine: shut down before the answer was finished")
        for request_id in self.preparing:
            self.refuse(request_id, cut_off)
        for request_id in [*self.engine.live, *(one.request.id for one in self.engine.searches.all)]:
            self.send_events(self.engine.fail(request_id, cut_off))

    def send_events(self, events: list[Event]) -> None:
        """Send what a step told. An event too large for a frame (a huge prompt's figures) becomes an error."""
        if not events:
            return
        try:
            self.send({"kind": "events", "events": [wire.event_to_plain(event) for event in events]})
        except EngineError as error:
            if len(events) > 1:
                for event in events:
                    self.send_events([event])
                return
            too_large = events[0]
            siblings = self.engine.fail(too_large.request_id, error)
            ended = Event(too_large.request_id, too_large.index, finish_reason="error", error=str(error))
            self.send_events([ended, *(event for event in siblings if event.index != ended.index)])


if __name__ == "__main__":
    sys.exit(main(begin_text))
