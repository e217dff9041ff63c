"""`EngineClient`: the engine process as seen from a server's event loop. Imports no torch.

It starts the process, sends requests, hands out their events, and starts the process again when it dies: requests that
were running then get an error event at once, the reader never waits for an answer that can't come.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import fledge
from fledge.config import to_dict
from fledge.engine import wire
from fledge.engine.config import EngineConfig
from fledge.engine.length import answer_room
from fledge.engine.line import Line
from fledge.engine.pending import PendingEvents
from fledge.engine.request import Event, Request
from fledge.engine.source import check_length
from fledge.errors import CapacityError, EngineError, FledgeError, RequestError
from fledge.log import warn

State = Literal["new", "loading", "ready", "draining", "dead", "failed", "stopped"]

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0
HEALTHY_SECONDS = 30.0  # a life this long begins the back-off anew
MAX_EARLY_DEATHS = 3  # deaths without a word before the very first `ready`
EXIT_GRACE_SECONDS = 2.0
TICK_SECONDS = 1.0  # the unit in which silence is counted
GAUGES = ("running", "waiting", "slots_in_use", "blocks_used")


class EngineClient:
    """One engine process on `model`: a folder, or `stub:…`.

    `await start()` returns when the process is started; `await wait_ready()` when it can answer. `state` tells loading,
    ready, draining, dead (a restart is under way), failed (the model can't be loaded: `failure`) and stopped apart.
    After the first `ready`, `facts` holds context_tokens, vocab_size, n_slots, source_tokens, start_id, pid, files and
    adapters. `adapters`: folders by the names that requests give; a process that has to be started again has those that
    were loaded meanwhile too, as long as their files are the same.
    """

    def __init__(self, model: str, config: EngineConfig | None = None, adapters: Mapping[str, str] | None = None):
        self.model = model
        self.adapters: dict[str, tuple[str, Any]] = {
            name: (folder, None) for name, folder in (adapters or {}).items()
        }  # the folder, and the state of its files once it was read
        self.asked: dict[int, asyncio.Future[Any]] = {}  # what the engine was asked about adapters
        self.questions = itertools.count()
        self.config = config or EngineConfig()
        self.state: State = "new"
        self.facts: dict[str, Any] = {}
        self.failure: FledgeError | None = None
        self.n_restarts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.line: Line | None = None
        self.pending: dict[str, PendingEvents] = {}
        self.current: dict[str, float] = {}
        self.past_totals: dict[str, float] = {}
        self.supervisor: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.was_ready = False
        self.silent_ticks: int | None = None  # since the engine owes a word; None: it owes none
        self.stop_wanted = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether a request would be taken now."""
        return self.state == "ready"

    async def start(self) -> None:
        """Start the process and its supervision. Raises EngineError if it was started before."""
        if self.supervisor is not None:
            raise EngineError("engine: start was called twice")
        self.supervisor = asyncio.create_task(self.supervise())

    async def wait_ready(self, timeout_seconds: float | None = None) -> None:
        """Wait for `ready`. Raises the loading error, or EngineError when stopped or out of time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self.ready:
                    if self.failure is not None:
                        raise self.failure
                    if self.stop_wanted.is_set():
                        raise EngineError("engine: stopped")
                    await self.changed.wait()
        except TimeoutError:
            raise EngineError(f"engine: expected it ready within {timeout_seconds:g} s, got {self.state}") from None

    def submit(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of `request`, as an async generator: leaving it (`aclose`, an exception) cancels the request.

        Raises at once RequestError (parameters, length, id in use) and CapacityError (not ready); the engine's own
        refusals (its line is full) are raised when the first event is asked for. Events that the reader has not
        fetched are joined; a reader 1 MB behind is given up with an error event.
        """
        if not self.ready:
            raise CapacityError(f"engine: expected it ready, got {self.state}; try again later")
        request.check_urgency()
        sampling = request.sampling.validated(self.facts["vocab_size"])
        long_input = (request.long_input or self.config.long_input).validated()
        if long_input.policy == "refuse" and not long_input.most:  # of others the engine judges what is left
            check_length(len(request.source_ids), self.facts["source_tokens"])
            answer_room(len(request.prompt_ids), sampling.max_tokens, self.facts["context_tokens"])
        if request.id in self.pending:
            raise RequestError(f"id: expected a new request id, got {request.id!r:.60}, which is running", "id")
        return self.events(request)

    async def events(self, request: Request) -> AsyncGenerator[Event, None]:
        if not self.ready:
            raise CapacityError(f"engine: expected it ready, got {self.state}; try again later")
        pending = PendingEvents(request.id, request.sampling.n)
        self.pending[request.id] = pending
        try:
            self.send({"kind": "submit", "request": wire.request_to_plain(request)})
            if self.silent_ticks is None:
                self.silent_ticks = 0
            while events := await pending.take():
                for event in events:
                    yield event
        finally:
            self.forget(pending)

    def counters(self) -> dict[str, float]:
        """The engine's last figures (at most 0.25 s old while it works), totals summed over restarts."""
        figures = dict(self.current)
        for name, value in self.past_totals.items():
            figures[name] = figures.get(name, 0) + value
        return {**figures, "engine_restarts_total": self.n_restarts}

    async def stop(self, drain_seconds: float = 30.0) -> None:
        """Take no more requests, let running ones finish for `drain_seconds`, end the process and wait for its end.

        May be called again with less patience while it drains."""
        if self.state == "loading" and self.process is not None:
            self.process.terminate()  # it takes no frames before the model is there
        self.stop_wanted.set()
        self.enter("draining")
        if self.connected:
            self.send({"kind": "shutdown", "seconds": drain_seconds})
        if self.supervisor is not None:
            _, unfinished = await asyncio.wait({self.supervisor}, timeout=drain_seconds + EXIT_GRACE_SECONDS)
            if unfinished:
                self.supervisor.cancel()
                await asyncio.wait({self.supervisor})
        self.enter("stopped")

    async def load_adapter(self, name: str, folder: str) -> None:
        """Answer requests that name it with the adapter in a folder, from now on and after a restart. Raises
        ConfigError and CheckpointError for one that can't stand beside the model, CapacityError while not ready."""
        files = await self.ask({"kind": "load_adapter", "name": name, "folder": folder})
        self.adapters[name] = (folder, files)

    async def unload_adapter(self, name: str) -> None:
        """Requests under way finish with it. Raises RequestError for a name that is not loaded."""
        await self.ask({"kind": "unload_adapter", "name": name})
        self.adapters.pop(name, None)

    async def ask(self, frame: wire.Frame) -> Any:
        """Send a frame about adapters; the state of the files that were read for it, if any."""
        if not self.ready:
            raise CapacityError(f"engine: expected it ready, got {self.state}; try again later")
        number = next(self.questions)
        answer = self.asked[number] = asyncio.get_running_loop().create_future()
        try:
            self.send({**frame, "number": number})
            return await answer
        finally:
            del self.asked[number]

    # --- from here on: what the supervision does

    async def supervise(self) -> None:
        pause, early_deaths = FIRST_PAUSE_SECONDS, 0
        while not self.stop_wanted.is_set():
            began = time.monotonic()
            try:
                await self.live_once()
            except Exception as error:  # no process, no descriptor, a frame that is none: try again later
                warn(f"engine: {type(error).__name__} while the process was watched: {error}")
            if self.stop_wanted.is_set():
                return
            early_deaths += not self.was_ready
            if self.failure is None and early_deaths >= MAX_EARLY_DEATHS:
                self.failure = EngineError(f"engine: the process died {early_deaths} times while it loaded the model")
            if self.failure is None and self.config.parallel.several:
                self.failure = EngineError("engine: one of the processes that share the model ended; start all anew")
            if self.failure is not None:
                self.enter("failed")
                return
            pause = FIRST_PAUSE_SECONDS if time.monotonic() - began > HEALTHY_SECONDS else pause
            warn(f"engine: the process ended (exit code {self.exit_code()}); starting it again in {pause:.1f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop_wanted.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            self.n_restarts += 1

    async def live_once(self) -> None:
        """One life of the process: start, read frames to the end of the line, clear up, reap."""
        ours, theirs = socket.socketpair()
        try:
            self.process = self.spawn(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        watching: asyncio.Task[None] | None = None
        try:
            loop = asyncio.get_running_loop()
            _, self.line = await loop.create_connection(lambda: Line(self.handle), sock=ours)
            self.enter("loading")
            if self.config.stall_seconds:
                watching = asyncio.create_task(self.watch(self.process))
            await self.line.ended
        finally:
            if watching is not None:
                watching.cancel()
            self.mourn()
            await self.reap()

    async def watch(self, process: subprocess.Popen[bytes]) -> None:
        """End a process that owes a word and says none: the end of its line then starts another.

        Ticks are counted, not the clock: a machine that slept, or a server that was stopped, has given it no time."""
        while self.silent_ticks is None or self.silent_ticks * TICK_SECONDS < self.config.stall_seconds:
            await asyncio.sleep(TICK_SECONDS)
            if self.silent_ticks is not None:
                self.silent_ticks += 1
        warn(f"engine: the process has work and has said nothing for {self.config.stall_seconds} s; ending it")
        process.kill()

    def words(self) -> list[str]:
        """The command line of the process, but for the connection."""
        config = json.dumps({"engine": to_dict(self.config), "adapters": self.adapters})
        return [sys.executable, "-m", "fledge.engine.process", self.model, "--config", config]

    def spawn(self, connection: socket.socket) -> subprocess.Popen[bytes]:
        """The child: its output goes to our standard error; a process group of its own keeps the terminal's Ctrl-C
        away from it."""
        words = [*self.words(), "--fd", str(connection.fileno())]
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(connection.fileno(),),
            process_group=0,
            env=environment_of_child(),
        )

    def handle(self, frame: wire.Frame) -> None:
        kind = frame["kind"]
        if kind == "events":
            self.deliver([wire.event_from_plain(plain) for plain in frame["events"]])
        elif kind == "counters":
            self.current = frame["counters"]
        elif kind == "ready" and self.facts and self.facts.get("files") != frame["facts"].get("files"):
            self.refuse_another()
        elif kind == "ready":
            self.facts, self.was_ready = frame["facts"], True
            known = self.facts.get("adapters", {})
            self.adapters = {name: (self.adapters[name][0], files) for name, files in known.items()}
            self.enter("draining" if self.stop_wanted.is_set() else "ready")
        elif kind == "refused":
            if (pending := self.pending.get(frame["id"])) is not None:
                pending.refuse(wire.error_from_plain(frame["error"]))
        elif kind == "shelf":
            self.told(frame)
        elif kind == "draining":
            self.enter("draining")
        elif kind == "failed" and not self.was_ready:
            self.failure = wire.error_from_plain(frame["error"])
        self.silent_ticks = 0 if any(pending.open_choices for pending in self.pending.values()) else None

    def told(self, frame: wire.Frame) -> None:
        """Give whoever asked about adapters the answer."""
        answer = self.asked.get(frame["number"])
        if answer is None or answer.done():
            return
        if frame["error"] is None:
            answer.set_result(frame["files"])
        else:
            answer.set_exception(wire.error_from_plain(frame["error"]))

    def refuse_another(self) -> None:
        """End a process that came back with another model than the one being served: whoever replaced the files has to
        say so, by a new start. Until then, or until the files are back, the server is not ready."""
        warn(
            f"engine: expected the files of {self.model} as they were, got others; start the server anew to serve them"
        )
        if self.process is not None:
            self.process.kill()

    def deliver(self, events: list[Event]) -> None:
        """Hand a frame's events to their readers. Who is 1 MB behind is given up, but not for this frame alone, however
        large it is: its reader has not had a chance to read."""
        behind: dict[str, bool] = {}
        for event in events:
            pending = self.pending.get(event.request_id)
            if pending is not None:  # None: cancelled while the event was on its way
                behind.setdefault(event.request_id, pending.unread)
                pending.put(event)
        for request_id, was_unread in behind.items():
            pending = self.pending[request_id]
            if was_unread and pending.full:
                pending.end("engine: the reader is more than 1 MB behind; the answer was given up")
                self.forget(pending, cut_off=True)

    def forget(self, pending: PendingEvents, cut_off: bool = False) -> None:
        """Stop routing events to a buffer; the engine is told when it may still be working for it."""
        if self.pending.get(pending.request_id) is not pending:
            return
        del self.pending[pending.request_id]
        if (cut_off or pending.open_choices) and self.connected:
            self.send({"kind": "cancel", "id": pending.request_id})

    @property
    def connected(self) -> bool:
        return self.line is not None and not self.line.is_closing()

    def send(self, frame: wire.Frame) -> None:
        if self.line is None or not self.connected:
            raise CapacityError("engine: the process is not there; try again later")
        self.line.send(frame)

    def mourn(self) -> None:
        """The process is gone: tell every reader, keep the totals."""
        if self.line is not None:
            self.line.transport.abort()
        self.line = self.silent_ticks = None
        if not self.stop_wanted.is_set():
            self.enter("dead" if self.failure is None else "failed")
        for pending in list(self.pending.values()):
            pending.end("engine: the process ended before the answer was finished; try again")
        self.pending.clear()
        for answer in self.asked.values():
            if not answer.done():
                answer.set_exception(EngineError("engine: the process ended before the adapter was there; try again"))
        for name, value in self.current.items():
            if name.endswith("_total") and name != "slots_total":
                self.past_totals[name] = self.past_totals.get(name, 0) + value
        self.current = {name: 0 for name in GAUGES if name in self.current}

    async def reap(self) -> None:
        """Wait for the child, so that no zombie stays; kill it if it lingers without its line."""
        process = self.process
        if process is None:
            return
        deadline = time.monotonic() + EXIT_GRACE_SECONDS
        try:
            while process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.returncode

    def enter(self, state: State) -> None:
        """Change the state and wake whoever waits for one."""
        self.state = state
        self.changed.set()
        self.changed = asyncio.Event()


def environment_of_child() -> dict[str, str]:
    """This process's, with fledge on the path."""
    home = Path(fledge.__file__).resolve().parent.parent
    environment = dict(os.environ)
    if home.name not in ("site-packages", "dist-packages"):  # run from a checkout, whatever the working folder
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), environment.get("PYTHONPATH")]))
    return environment


def follow(model: str, config: EngineConfig) -> NoReturn:
    """On a rank above 0: become the process that follows rank 0's engine."""
    words = [sys.executable, "-m", "fledge.engine.follower", model, "--config", json.dumps(to_dict(config))]
    os.execve(sys.executable, words, environment_of_child())
