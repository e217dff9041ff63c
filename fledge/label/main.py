"""`fledge label`: read the pairs, open the votes, serve the page until told to stop."""

from __future__ import annotations

import asyncio
import json as json_text
import os
import signal
import socket
from typing import Any
from urllib.parse import quote

from fledge.errors import ConfigError, RequestError
from fledge.label.app import new_app
from fledge.label.config import LabelConfig
from fledge.label.desk import Desk, clean_name
from fledge.label.items import read_items
from fledge.label.places import make_labels
from fledge.log import say, warn
from fledge.serve.access import AccessLog
from fledge.serve.config import check_api_key
from fledge.serve.guard import Guard, is_loopback
from fledge.serve.main import API_KEY_VARIABLE, Server, address_of, check_serving, listen, options_for


def label(config: LabelConfig, json: bool = False) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT; the first line of standard output is the address. Gives what was done.

    Raises DataError or ConfigError before anything listens."""
    api_key = config.api_key or os.environ.get(API_KEY_VARIABLE, "")
    check_api_key(api_key, API_KEY_VARIABLE)
    first_name = checked_name(config.annotator)
    if not is_loopback(config.host) and not api_key:
        warn(
            f"{config.host} is reachable from other machines and NO API KEY is set: anyone who can connect can read "
            f"these pairs and vote. Set {API_KEY_VARIABLE}, or listen on 127.0.0.1."
        )
    items = read_items(config.pairs)
    left_out = f"; {items.n_same} of one answer twice are left out" if items.n_same else ""
    say(f"{config.pairs}: {len(items.found)} pairs to compare{left_out}")
    listener = listen(config.host, config.port)
    try:
        store = make_labels(config.out, items, config.pairs.name, config.seed)
    except BaseException:
        listener.close()
        raise
    try:
        guard, log = Guard(config.host, api_key, config.allowed_hosts), AccessLog(config.access_log, (api_key,))
        app = new_app(Desk(store), config.reasons, first_name, guard, log)
        url = f"{address_of(listener)}/" + (f"#key={quote(api_key)}" if api_key else "")
        n_before = len(store.votes())
        asyncio.run(serve(app, listener, lambda: announce(url, json)))
        n_after = len(store.votes())
    finally:
        listener.close()
        store.close()
    say(f"{store.place}: {n_after} votes")
    return {"url": url, "pairs": len(items.found), "votes": n_after, "new_votes": n_after - n_before}


def checked_name(name: str) -> str:
    try:
        return clean_name(name) if name else ""
    except RequestError as error:
        raise ConfigError(str(error)) from None


def announce(url: str, json: bool) -> None:
    print(json_text.dumps({"url": url}) if json else f"labelling page: {url}", flush=True)


async def serve(app: Any, listener: socket.socket, ready: Any) -> None:
    """Answer until a signal comes; votes in flight are ended."""
    server = Server(options_for(app, grace_seconds=5))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        check_serving(serving)
        ready()
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        check_serving(serving)
    finally:
        stopping.cancel()
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
