"""`fledge serve`: open the socket, start the engine, answer until told to stop, drain, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json as json_text
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn

from fledge.engine.client import follow
from fledge.engine.purpose import Purpose
from fledge.errors import ConfigError, FledgeError
from fledge.log import say, silent, warn
from fledge.serve.access import AccessLog
from fledge.serve.app import new_app
from fledge.serve.config import ServeConfig, check_api_key
from fledge.serve.front import MAX_HEADER_BYTES, FrontProtocol
from fledge.serve.guard import Guard, is_loopback
from fledge.serve.served import ServedModel, open_model
from fledge.serve.service import Service

API_KEY_VARIABLE = "FLEDGE_API_KEY"
KEEP_ALIVE_SECONDS = 20
BACKLOG = 512  # connections that wait to be accepted
ABORT_SECONDS = 0.5  # for error frames to reach callers who are cut off


def serve(config: ServeConfig, json: bool = False) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT; the first line of standard output is the address. Gives what was done.

    Raises ConfigError, CheckpointError or TokenizerError before anything listens, and the engine's own error when the
    model can't be loaded."""
    api_key = config.api_key or os.environ.get(API_KEY_VARIABLE, "")
    check_api_key(api_key, API_KEY_VARIABLE)
    if not is_loopback(config.host) and not api_key:
        warn(
            f"{config.host} is reachable from other machines and NO API KEY is set: anyone who can connect can use "
            f"this model. Set {API_KEY_VARIABLE}, or listen on 127.0.0.1."
        )
    model = open_model(config)
    check_shared(config, model)
    if silent():
        follow(config.model, config.engine)
    service = Service(config, model)
    listener = listen(config.host, config.port)
    guard = Guard(config.host, api_key, config.allowed_hosts)
    gc.freeze()  # a full collection would go through all that was imported, 50 ms in which nobody is answered
    return asyncio.run(Site(config, service, guard, listener, (api_key,)).run(json))


EXAMPLES: dict[Purpose, tuple[str, dict[str, Any]]] = {
    "embed": ("/v1/embeddings", {"input": "A quiet, patient film"}),
    "classify": ("/classify", {"input": "A quiet, patient film"}),
    "score": ("/score", {"text_1": "A film", "text_2": "A quiet, patient film"}),
    "token-classification": ("/token-classification", {"inputs": "Ada lives in Oslo"}),
    "question-answering": (
        "/question-answering", {"inputs": {"question": "Where does Ada live?", "context": "Ada lives in Oslo."}}
    ),
    "multiple-choice": (
        "/multiple-choice", {"inputs": {"question": "Where does Ada live?", "choices": ["In Oslo.", "At seven."]}}
    ),
}  # fmt: skip
"""A route to try and its body."""


def check_shared(config: ServeConfig, model: ServedModel) -> None:
    """Raises ConfigError unless as many processes were started as shall share the model, and for what they can't."""
    if config.engine.parallel.launched() == 1:
        return
    if config.adapters or config.adapters_dir:
        raise ConfigError("adapters: expected none for several processes, got some; merge one (fledge merge)")
    if model.purpose != "generate":
        raise ConfigError(f"{config.model}: expected a model that writes text, for several processes, got another")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError when the address can't be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        problem = error.strerror or "unknown host"
        raise ConfigError(f"{host}:{port}: can't be listened on ({problem}); choose another host=… or port=…") from None
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL to open from this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: stopping is ours to decide."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def options_for(app: Any, grace_seconds: int) -> uvicorn.Config:
    """How uvicorn serves an application of ours: it decides and logs nothing. `grace_seconds`: for what is under way
    when it stops."""
    return uvicorn.Config(
        app,
        http=FrontProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        backlog=BACKLOG,
    )


def check_serving(serving: asyncio.Task[None]) -> None:
    """Raises what ended the listener, if it has ended: nobody could reach a server without one."""
    if serving.done():
        serving.result()
        raise FledgeError("serve: expected to listen until told to stop, got the end of the listener; start it again")


class Site:
    """One run of the server, from start to the last byte."""

    def __init__(
        self, config: ServeConfig, service: Service, guard: Guard, listener: socket.socket, secrets: tuple[str, ...]
    ):
        form = config.access_log
        if form == "auto":
            form = "plain" if sys.stderr.isatty() else "json"
        self.config = config
        self.service = service
        self.listener = listener
        self.needs_key = guard.key_digest is not None
        options = options_for(new_app(service, guard, AccessLog(form, secrets)), grace_seconds=1)
        self.server = Server(options)
        self.signals = 0
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    async def run(self, json: bool) -> dict[str, Any]:
        url = address_of(self.listener)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.on_signal)
        serving = asyncio.create_task(self.server.serve(sockets=[self.listener]))
        loading: asyncio.Task[None] | None = None
        try:
            while not self.server.started and not serving.done():
                await asyncio.sleep(0.005)
            check_serving(serving)
            self.announce(url, json)
            await self.service.engine.start()
            loading = asyncio.create_task(self.service.engine.wait_ready())
            await self.until_told_to_stop(loading, serving)
            await self.finish_answers(serving)
        finally:
            if loading is not None:
                loading.cancel()
            await self.close(serving)
        return {"url": url, "requests": self.server.server_state.total_requests}

    def on_signal(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()

    def announce(self, url: str, json: bool) -> None:
        """The address: one JSON object for programs, a page and a ready command for people."""
        if json:
            print(json_text.dumps({"url": url}), flush=True)
            return
        key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if self.needs_key else ""
        path: str = "/v1/completions"
        body: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 64}
        if self.service.model.renderer is not None:
            path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}
        purpose = self.service.model.purpose
        if purpose == "generate":
            print(f"chat page: {url}/")
        else:
            path, body = EXAMPLES[purpose]
        print(f"curl {url}{path}{key} -H 'Content-Type: application/json' -d '{json_text.dumps(body)}'", flush=True)

    async def until_told_to_stop(self, loading: asyncio.Task[None], serving: asyncio.Task[None]) -> None:
        """Wait for a signal. Raises the engine's error when the model can't be loaded, and what ends the listener."""
        stopping = asyncio.create_task(self.stop.wait())
        engine = self.service.engine
        assert engine.supervisor is not None
        try:
            await asyncio.wait({stopping, loading, serving}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                say(f"{self.service.model.name} is ready: context {self.service.context_tokens} tokens")
            await asyncio.wait({stopping, serving, engine.supervisor}, return_when=asyncio.FIRST_COMPLETED)
            check_serving(serving)
            if engine.failure is not None:
                raise engine.failure
        finally:
            stopping.cancel()

    async def finish_answers(self, serving: asyncio.Task[None]) -> None:
        """Refuse new work; let running answers end for `drain_seconds`, or until a second signal; cut off the rest."""
        seconds = self.config.drain_seconds
        if self.service.running:
            say(
                f"stopping: {len(self.service.running)} requests have {seconds:g} s to finish; a second signal cuts off"
            )
        draining = asyncio.create_task(self.service.drain())
        hurrying = asyncio.create_task(self.hurry.wait())
        await asyncio.wait({draining, hurrying, serving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            self.service.abort()
            await asyncio.wait({draining}, timeout=ABORT_SECONDS)
        for task in (draining, hurrying):
            task.cancel()

    async def close(self, serving: asyncio.Task[None]) -> None:
        """End listener, connections and the engine's process, however we got here."""
        self.service.draining = True
        self.server.should_exit = True
        await asyncio.gather(self.service.engine.stop(0.0), serving, return_exceptions=True)
