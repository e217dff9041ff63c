"""Trial 31: a chat template that takes time or memory is stopped within 2 s and 64 MB, and nobody else notices.

The child's memory is measured from outside, every few milliseconds, against what it held when idle.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fledge.errors import RequestError
from fledge.text import jinja_process
from fledge.text.chat import ChatRenderer, Message, renderer_for
from fledge.text.jinja_process import TemplateProcess, shared_process
from fledge.text.tokenizer import byte_level
from tests.serve.running import RunningServer, running

TALK = (Message("user", "Hi"), Message("assistant", "Yo"))
STOPPED_SECONDS, ROOM_BYTES = 2.0, 64 << 20
GROW = "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
BOMBS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops within range": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'A' * 10**9 }}",
    "a long list": "{{ [1] * 10**9 }}",
    "center": "{{ 'A'.center(10**9) }}",
    "zfill": "{{ 'A'.zfill(10**9) }}",
    "indent": "{{ ('A\n' * 1000) | indent(10**9) }}",
    "doubling": GROW,
    "doubling a list": GROW.replace("'aaaaaaaaaaaaaaaa'", "[1]"),
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "join": "{{ range(9999) | join('b' * 1000000) }}",
    "a recursive macro": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}",
    "a macro that doubles": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless output": "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'a' * 1000 }}{% endfor %}{% endfor %}",
    "a power": "{{ 9 ** 99999999 }}",
    "a product": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "deep brackets": "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
    "a long sum": "{{ " + "1 + " * 30_000 + "1 }}",
    "a wide date": "{{ strftime_now('%999999999Y') }}",
    "json indent": "{{ messages | tojson(indent=10**9) }}",
    "rounding": "{{ 1.5 | round(10**9, 'ceil') }}",
    "slices": "{% for part in messages | slice(10**9) %}{% endfor %}",
    "json of doubled lists": GROW.replace("'aaaaaaaaaaaaaaaa'", "['a']").replace("ns.s + ns.s", "[ns.s, ns.s]")
    + "{{ ns.s | tojson }}",
    "deep lists": "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x | tojson }}",
    "blocks of text": "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "many filters": "{{ 'a'" + " | trim" * 18_000 + " }}",
    "many conditions": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "generation marks": "{% for i in range(9999) %}{% for j in range(999) %}{% generation %}x{% endgeneration %}"
    "{% endfor %}{% endfor %}",
    "unending at compile time": "{{ (" + "'a' ~ " * 9999 + "'a') * 10**6 }}",
}  # fmt: skip
SLOW = BOMBS["nested loops within range"]


@pytest.fixture(scope="module", autouse=True)
def no_child_stays() -> Iterator[None]:
    yield
    shared_process().close()
    assert [child for child in psutil.Process().children() if is_template_child(child)] == []


def is_template_child(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_ZOMBIE or "jinja_child" in " ".join(process.cmdline())


def foreign(template: str) -> ChatRenderer:
    return renderer_for(byte_level(), template)


class Watched:
    """The most memory the child held above what it held when the block began."""

    def __init__(self, pid: int):
        self.process = psutil.Process(pid)
        self.idle = self.process.memory_info().rss
        self.most = 0

    def look(self) -> None:
        try:
            self.most = max(self.most, self.process.memory_info().rss - self.idle)
        except psutil.Error:
            pass  # it was killed


@contextmanager
def watched(pid: int) -> Iterator[Watched]:
    watch, over = Watched(pid), threading.Event()

    def run() -> None:
        while not over.wait(0.002):
            watch.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def idle_child() -> int:
    """A child that has just rendered something small."""
    assert foreign("{{ 1 }}").text(TALK, True) == "1"
    child = shared_process().process
    assert child is not None
    return child.pid


@pytest.mark.parametrize("bomb", BOMBS)
def test_31_a_bomb_is_stopped_in_time_and_memory(bomb):
    one = foreign(BOMBS[bomb])
    with watched(idle_child()) as watch:
        began = time.monotonic()
        with pytest.raises(RequestError, match=f"chat {one.name}: ") as caught:
            one.render(TALK, generation_prompt=True)
        seconds = time.monotonic() - began
    assert seconds <= STOPPED_SECONDS
    assert watch.most <= ROOM_BYTES
    assert caught.value.code == "chat_template_failed"
    assert foreign("{{ messages | length }}").text(TALK, True) == "2"  # the next one is served


def test_31_bombs_in_a_row_are_stopped_in_time_though_each_needs_a_new_child():
    for _ in range(3):
        shared_process().close()
        began = time.monotonic()
        with pytest.raises(RequestError, match="expected it done within"):
            foreign(SLOW).render(TALK, generation_prompt=True)
        assert time.monotonic() - began <= STOPPED_SECONDS


def test_31_without_bounds_a_bomb_takes_the_memory_and_the_time():
    """The control: Jinja's own sandbox makes the long text, and its loops run on."""
    assert len(ImmutableSandboxedEnvironment().from_string("{{ 'A' * 10**8 }}").render()) == 10**8
    loops = "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    ImmutableSandboxedEnvironment().from_string(loops).render()
    assert (time.monotonic() - began) * 100 > STOPPED_SECONDS  # range(9999) squared is a hundred times that


def test_31_the_memory_that_is_measured_is_the_childs():
    """The control: a template within the limits is seen to take memory."""
    with watched(idle_child()) as watch:
        grow = GROW.replace("range(60)", "range(20)") + "{% for i in range(2000) %}{% endfor %}{{ ns.s | length }}"
        assert foreign(grow).text(TALK, True) == str(16 << 20)
    assert 8 << 20 <= watch.most <= ROOM_BYTES


def test_31_the_limits_are_set_by_the_system():
    pid = idle_child()
    process, facts = psutil.Process(pid), shared_process().facts
    assert facts["limit_bytes"] - facts["idle_bytes"] <= ROOM_BYTES
    assert process.rlimit(psutil.RLIMIT_AS) == (facts["limit_bytes"], facts["limit_bytes"])
    assert 0 < process.rlimit(psutil.RLIMIT_DATA)[1] < facts["limit_bytes"]
    assert 0 < process.rlimit(psutil.RLIMIT_CPU)[0] < 60


def test_31_a_child_without_its_limit_is_not_used(monkeypatch):
    monkeypatch.setattr(jinja_process, "ROOM_BYTES", 1 << 20)
    process = TemplateProcess()
    with pytest.raises(Exception, match="expected a process bounded to"):
        process.render({"template": "1", "context": {}, "messages": [], "jobs": [[0, True]]})
    assert process.process is None


def test_31_the_child_is_warm_and_only_replaced_when_killed():
    pid = idle_child()
    began = shared_process().n_started
    for number in range(20):
        assert foreign(f"{{{{ {number} }}}}").text(TALK, True) == str(number)
    with pytest.raises(RequestError):
        foreign("{{ ''.__class__ }}").render(TALK, True)
    assert shared_process().process is not None and shared_process().process.pid == pid
    with pytest.raises(RequestError, match="expected it done within"):
        foreign(SLOW).render(TALK, True)
    assert not psutil.pid_exists(pid) and shared_process().n_started == began + 1
    assert idle_child() != pid


def test_31_a_child_that_dies_between_requests_is_replaced_and_leaves_no_zombie():
    pid = idle_child()
    psutil.Process(pid).kill()
    assert foreign("{{ 'still here' }}").text(TALK, True) == "still here"
    zombies = [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
    assert zombies == [] and not psutil.pid_exists(pid)


def test_31_a_child_whose_parent_is_gone_ends():
    """Its socket closes: idle it leaves at once, and at work it has CPU time for a few seconds."""
    process = TemplateProcess()
    process.render({"template": "{{ 1 }}", "context": {}, "messages": [], "jobs": [[0, True]]})
    assert process.process is not None and process.connection is not None
    process.connection.close()
    assert process.process.wait(5) == 0
    process.end()


def test_31_a_conversation_too_large_for_the_child_is_refused_before_it_gets_there():
    with pytest.raises(RequestError, match="conversation: expected at most 1048576 bytes"):
        foreign("{{ 1 }}").render((Message("user", "a" * (1 << 21)),), True)
    long = "é" * 400_000
    assert foreign("{{ messages[0].content }}").text((Message("user", long),), True) == long


# The server: a template that is slow for some messages only

HOSTILE = (
    "{%- for m in messages %}{%- if 'slow' in m.content %}" + SLOW + "{%- endif %}"
    "{{- '<|user|>' + m.content + '<|end|>' }}{%- endfor %}{{- '<|assistant|>' if add_generation_prompt else '' }}"
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = byte_level()
    tokenizer.save(path)
    (path / "chat_template.jinja").write_text(HOSTILE)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    with running(str(path), "engine.threads=1") as started:
        yield started


def ask(server: RunningServer, text: str):
    return server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "max_tokens": 2})


def latencies(server: RunningServer, n: int, pause_seconds: float = 0.01) -> list[float]:
    found = []
    for _ in range(n):
        began = time.monotonic()
        assert server.complete("Hello", max_tokens=2).status_code == 200
        found.append(time.monotonic() - began)
        time.sleep(pause_seconds)
    return found


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def test_31_the_server_serves_the_template_and_stops_at_its_end_of_turn(server):
    tokenizer = byte_level()
    talk = (Message("user", "Hi <|end|>"),)
    ids = renderer_for(tokenizer, HOSTILE).render(talk, generation_prompt=True).ids
    fields = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    chat = server.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi <|end|>"}], **fields}
    ).json()
    text = server.complete(ids, **fields).json()
    assert chat["usage"]["prompt_tokens"] == len(ids)
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]
    assert ids.count(tokenizer.end_id) == 1


def test_31_a_slow_template_costs_its_own_request_and_nobody_elses(server):
    """A server that waited for the template would answer one request while it runs, after all of its time. A busy
    machine answers fewer, so the attack goes on until there are enough to tell their slowest hundredth."""
    latencies(server, 20)
    before = latencies(server, 150)
    attacks: list[tuple[float, float, int, str]] = []
    answered: list[tuple[float, float]] = []

    def attack() -> None:
        while len(attacks) < 2 or (len(answered) < 100 and len(attacks) < 10):
            began = time.monotonic()
            response = ask(server, "slow")
            attacks.append((began, time.monotonic(), response.status_code, response.text))
            time.sleep(1)  # the next child starts meanwhile

    attacker = threading.Thread(target=attack)
    attacker.start()
    while attacker.is_alive():
        began = time.monotonic()
        (seconds,) = latencies(server, 1)
        answered.append((began, began + seconds))
    during = [end - start for start, end in answered]
    assert len(during) >= 100
    # one core of two is taken by the template itself; a server that waited for it would answer after 1.5 s
    assert p99(during) <= max(0.25, 3 * p99(before))
    for began, ended, status, body in attacks:
        assert status == 400 and "expected it done within" in body and "chat_template_failed" in body
        assert_nobody_waited(began, ended, answered)
        assert ended - began <= STOPPED_SECONDS + 0.5  # HTTP and a busy machine around it
    assert ask(server, "quick").status_code == 200


def assert_nobody_waited(began: float, ended: float, answered: list[tuple[float, float]]) -> None:
    """Between the beginning and the end of a slow request others were answered, the middle one of them in less than a
    third of its time."""
    within = [end - start for start, end in answered if began <= start and end <= ended]
    assert len(within) >= 3 and statistics.median(within) < (ended - began) / 3, within


def test_31_a_server_that_waited_for_the_template_would_be_found():
    """The control: the same requests to a server in which each holds the next one up."""
    one_at_a_time, answered = threading.Lock(), []

    def serve(seconds: float) -> tuple[float, float]:
        began = time.monotonic()
        with one_at_a_time:
            time.sleep(seconds)
        return began, time.monotonic()

    attacks = []
    attacker = threading.Thread(target=lambda: attacks.append(serve(0.6)))
    attacker.start()
    while attacker.is_alive():
        answered.append(serve(0.001))
    with pytest.raises(AssertionError):
        assert_nobody_waited(*attacks[0], answered)
    free = [(start, start + 0.01) for start in (attacks[0][0] + 0.02 * i for i in range(20))]
    assert_nobody_waited(*attacks[0], free)


def test_31_no_child_of_the_server_is_a_zombie(server):
    ask(server, "slow")
    children = psutil.Process(server.process.pid).children()
    assert len(children) == 2  # the engine and the template's child
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert Path(f"/proc/{server.process.pid}").exists()
