"""The server as a process: no torch in it, where it listens, what it says."""

from __future__ import annotations

import asyncio
import importlib.util
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fledge.cli.main import main
from fledge.errors import ConfigError
from fledge.serve.config import ServeConfig
from fledge.serve.guard import Guard
from fledge.serve.main import Server, Site, address_of, listen, serve
from fledge.serve.served import open_model
from fledge.serve.service import Service
from fledge.text.tokenizer import byte_level
from tests.serve.raw import connect, request
from tests.serve.running import CHAT, ROOT, TEXT, RunningServer, running, wait_until

ENDLESS = {"ignore_eos": True, "logprobs": 20}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(f"stub:text={TEXT}", "name=little", "access_log=plain") as started:
        yield started


def loads_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_the_http_process_never_loads_torch(server: RunningServer) -> None:
    assert server.chat().status_code == 200
    assert server.complete(logprobs=1, echo=True).status_code == 200
    assert not loads_torch(server.process.pid)


def test_the_check_for_torch_sees_it() -> None:
    """The control."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    (library,) = Path(found.origin).parent.glob("lib/libtorch.so")
    assert not loads_torch(os.getpid()) or "torch" in sys.modules
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert loads_torch(os.getpid())


def test_the_model_has_the_name_it_was_given(server: RunningServer) -> None:
    (card,) = server.client.get("/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"], card["chat"]) == ("little", 512, True)
    assert server.chat(model="little").json()["model"] == "little"
    assert server.chat(model="stub").status_code == 404
    assert server.client.get("/version").json()["version"]


def test_the_figures_add_up(server: RunningServer) -> None:
    names = ("fledge_prompt_tokens_total", "fledge_generation_tokens_total", "fledge_request_success_total",
             "fledge_time_to_first_token_seconds_count", "fledge_e2e_request_latency_seconds_count")  # fmt: skip
    before = {name: server.metric(name) for name in names}
    usage = server.chat(n=2).json()["usage"]
    server.stream("/v1/completions", {"prompt": "Hi", "max_tokens": 3})
    after = {name: server.metric(name) - before[name] for name in names}
    assert list(after.values()) == [usage["prompt_tokens"] + 3, usage["completion_tokens"] + 3, 3, 2, 2]
    families = {family.name: family for family in text_string_to_metric_families(server.client.get("/metrics").text)}
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "http_requests", "ready",
                 "num_preemptions", "prefix_cache_hits", "prefix_cache_queries", "engine_blocks_free",
                 "process_cpu_seconds", "process_resident_memory_bytes", "engine_process_cpu_seconds",
                 "engine_process_resident_memory_bytes", "inter_token_latency_seconds", "engine_restarts"):  # fmt: skip
        assert families[f"fledge_{name}"].samples, name
    reasons = {
        sample.labels["finished_reason"] for sample in families["fledge_request_success"].samples if sample.labels
    }
    assert reasons == {"stop", "length"}
    routes = {sample.labels["route"] for sample in families["fledge_http_requests"].samples if sample.labels}
    assert {"/v1/chat/completions", "/v1/completions", "/metrics"} <= routes
    assert server.metric("fledge_ready") == 1


def test_a_plain_access_line_is_one_line_a_request(server: RunningServer) -> None:
    before = len(server.errors().splitlines())
    server.chat()
    server.client.get("/v1/a%0ab")
    wait_until(lambda: len(server.errors().splitlines()) >= before + 2, 1)
    first, second = server.errors().splitlines()[before : before + 2]
    assert "POST /v1/chat/completions 200" in first and "completion_tokens=34" in first
    assert "GET /v1/a\\nb 404" in second


def test_people_get_the_page_and_a_ready_command() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fledge", "serve", "stub:load_ms=60000", "--port", "0"],
        cwd=ROOT,
        env={**os.environ, "FLEDGE_API_KEY": "sk-secret-key-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    with process:
        page, command = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, error, code = process.stdout.read(), process.stderr.read(), process.wait(20)
    assert page.startswith("chat page: http://127.0.0.1:")
    assert command.startswith("curl http://127.0.0.1:") and "/v1/chat/completions" in command
    assert "$FLEDGE_API_KEY" in command
    assert "warning" not in error and "sk-secret" not in page + command + rest + error
    assert (rest, code) == ("", 0)


@pytest.mark.parametrize(("host", "key", "loud"), [("0.0.0.0", "", True), ("0.0.0.0", "k", False), ("::1", "", False)])
def test_listening_to_other_machines_without_a_key_warns_loudly(
    host: str, key: str, loud: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(self: Site, json: bool) -> dict[str, str]:
        with self.listener:
            return {"url": address_of(self.listener)}

    monkeypatch.setattr(Site, "run", run)
    monkeypatch.setattr("fledge.serve.main.listen", lambda host, port: listen("127.0.0.1", 0))
    found = serve(ServeConfig("stub:", host=host, port=0, api_key=key))
    warned = f"warning: {host} is reachable from other machines and NO API KEY is set" in capsys.readouterr().err
    assert warned == loud
    assert found["url"].startswith("http://127.0.0.1:")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a server gives up with before it listens."""
    assert main(["serve", "stub:", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize("words", [["port=70000"], ["api_key=a b"], ["max_choices=0"], ["hots=1"]])
def test_a_wrong_config_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refusal(capsys, *words)


@pytest.mark.parametrize("key", ["a b", "schlüssel", "line\n"])
def test_a_key_of_the_environment_that_no_header_can_carry_is_refused(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEDGE_API_KEY", key)
    error = refusal(capsys, "port=0")
    assert "FLEDGE_API_KEY: expected printable ASCII" in error and key not in error


def test_a_port_in_use_is_an_error_that_says_so(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    port = server.url.rsplit(":", 1)[1]
    error = refusal(capsys, f"port={port}")
    assert port in error and "in use" in error


def test_the_address_is_taken_before_anything_else_is_started() -> None:
    """Two servers that start at once: binding alone lets both go on, and one of them would answer nobody."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), 2):
        pass


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_server_whose_listener_ends_does_not_go_on(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(self: Server, sockets: object) -> None:
        await asyncio.sleep(seconds)
        self.started = seconds > 0
        await asyncio.sleep(seconds)
        raise OSError("the listener broke")

    monkeypatch.setattr(Server, "serve", serve)
    config = ServeConfig("stub:load_ms=60000", port=0, access_log="off")
    with listen("127.0.0.1", 0) as listener:
        site = Site(config, Service(config, open_model(config)), Guard("127.0.0.1"), listener, ())
        with pytest.raises(OSError, match="broke"):
            asyncio.run(asyncio.wait_for(site.run(True), 10))


def test_callers_are_served_while_others_dawdle(server: RunningServer) -> None:
    """Half a body, and a stream that nobody reads, with slots to spare."""
    body = request("/v1/completions", "POST", {"prompt": "Hi", "n": 4, "stream": True, "max_tokens": 500, **ENDLESS})
    with connect(server.url) as half, connect(server.url) as deaf:
        half.sendall(body[:-10])
        deaf.sendall(body)
        wait_until(lambda: server.metric("fledge_num_requests_running") > 0, 2)
        began = time.perf_counter()
        for _ in range(50):
            assert server.client.get("/health").status_code == 200
        assert server.chat(max_tokens=2).status_code == 200
        assert time.perf_counter() - began < 2
        half.sendall(body[-10:])  # it was only slow
        assert half.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("host", ["host.invalid", "192.0.2.1"])
def test_an_address_that_cannot_be_had_is_named_whole(host):
    with pytest.raises(
        ConfigError, match=rf"{host}:8000: can't be listened on \(.*\); choose another host=… or port=…"
    ):
        listen(host, 8000)


def test_trial_80_a_prefix_is_found_by_its_caller_and_by_nobody_who_sends_their_salt(server: RunningServer) -> None:
    def hit_tokens(client: httpx.Client, salt: str) -> float:
        before, asked = (server.metric(f"fledge_prefix_cache_{name}_total") for name in ("hits", "queries"))
        body = {"prompt": "a secret of more than sixteen bytes", "max_tokens": 1, "cache_salt": salt, "user": salt}
        assert client.post("/v1/completions", json=body).status_code == 200
        wait_until(lambda: server.metric("fledge_prefix_cache_queries_total") > asked, 10)
        return server.metric("fledge_prefix_cache_hits_total") - before

    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=server.url, transport=elsewhere, timeout=30) as other:
        assert hit_tokens(server.client, "victim") == 0
        assert hit_tokens(other, "victim") == 0
        assert hit_tokens(server.client, "another") == 32
        assert hit_tokens(other, "another") == 32


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_token_ids_are_told_where_they_are_asked_for(path: str, server: RunningServer) -> None:
    asked = {"prompt": [1, 2, 3]} if path == "/v1/completions" else CHAT
    body = {**asked, "max_tokens": 40, "temperature": 0, "return_token_ids": True, "seed": 1}
    reply = server.post(path, body).json()
    choice, tokenizer = reply["choices"][0], byte_level()
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert len(choice["token_ids"]) == reply["usage"]["completion_tokens"]
    assert tokenizer.decode(choice["token_ids"][:-1]) == text  # the last is the stop token
    assert len(choice["prompt_token_ids"]) == reply["usage"]["prompt_tokens"]
    assert path == "/v1/chat/completions" or choice["prompt_token_ids"] == [1, 2, 3]
    chunks = server.stream(path, body)
    streamed = [token for chunk in chunks for one in chunk["choices"] for token in one.get("token_ids", [])]
    assert streamed == choice["token_ids"]
    assert "token_ids" not in server.post(path, {**body, "return_token_ids": False}).json()["choices"][0]
