"""Trial 30: code in a chat template. Every way out that is known is blocked, and the error names the template.

The canary is a file that a template which gets out would make. Templates that only read (a global, a method that makes
format strings) must fail too, since what they reach is the first step of a way out.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from jinja2 import Environment
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fledge.errors import RequestError
from fledge.text.chat import ChatRenderer, Message, renderer_for
from fledge.text.jinja_process import shared_process
from fledge.text.jinja_sandbox import ChatSandbox, compile_template
from fledge.text.tokenizer import byte_level

TALK = (Message("user", "Hi"), Message("assistant", "Yo"))
RUN = "os.system('touch CANARY')"
ATTACKS = {
    "class walk": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class walk by item": "{{ ''['__class__']['__mro__'][1] }}",
    "class walk by joined name": "{{ ''['__cla' ~ 'ss__'] }}",
    "class walk of a message": "{{ messages[0]['__class__'] }}",
    "cycler's globals": "{{ cycler.__init__.__globals__." + RUN + " }}",
    "joiner's globals": "{{ joiner.__init__.__globals__." + RUN + " }}",
    "lipsum's globals": "{{ lipsum.__globals__." + RUN + " }}",
    "namespace's globals": "{{ namespace.__init__.__globals__." + RUN + " }}",
    "a function's globals": "{{ raise_exception.__globals__ }}",
    "globals by item": "{{ strftime_now['__globals__'] }}",
    "a macro's globals": "{% macro f() %}{% endmacro %}{{ f['__init__'] }}",
    "a macro's environment": "{% macro f() %}{% endmacro %}{{ f._environment }}",
    "the loop's globals": "{% for m in messages %}{{ loop['__init__'] }}{% endfor %}",
    "cycler": "{{ cycler('a').next() }}",
    "joiner": "{{ joiner(', ')() }}",
    "lipsum": "{{ lipsum() }}",
    "dict": "{{ dict(a=1).a }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "map to attr": "{{ [''] | map('attr', '__class__') | list }}",
    "map by attribute": "{{ [''] | map(attribute='__class__') | list }}",
    "sort by attribute": "{{ ['', 'a'] | sort(attribute='__class__') }}",
    "sum by attribute": "{{ [''] | sum(attribute='__class__') }}",
    "groupby attribute": "{{ [''] | groupby('__class__') }}",
    "join by attribute": "{{ ['', ''] | join(',', attribute='__class__') }}",
    "format string": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "format by item": "{{ ''['format'] }}",
    "format of a safe text": "{{ ('{0.__class__}' | safe).format('') }}",
    "format of an escaped text": "{{ ('{0}' | e)['format_map']({}) }}",
    "format filter": "{{ '%s' | format('') }}",
    "percent format": "{{ '%(a)s' % {'a': 1} }}",
    "xmlattr": "{{ {'a': 1} | xmlattr }}",
    "pprint": "{{ messages | pprint }}",
    "import": "{% import 'os' as os %}{{ " + RUN + " }}",
    "from import": "{% from 'os' import system %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "block": "{% block a %}{% endblock %}",
    "self": "{{ self }}",
    "self's environment": "{{ self._TemplateReference__context.environment }}",
    "super": "{{ super() }}",
    "changing a list": "{{ messages.append(1) }}",
    "changing a mapping": "{{ messages[0].update({'role': 'system'}) }}",
    "a namespace's class": "{% set ns = namespace(__class__=1) %}",
    "a namespace's hidden name": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "a generator's frame": "{{ (messages | map('upper')).gi_frame }}",
    "a number's parts": "{{ (1).real }}",
    "encoding": "{{ 'a'.encode().hex() }}",
    "translating": "{{ 'a'.translate({97: 'b'}) }}",
    "the context": "{{ caller.__self__ }}",
    "debug": "{% debug %}",
    "statements": "{% do messages %}",
    "a name of other letters": "{{ ''.__\uff43lass__ }}",
    "a name in escapes": "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "map to a map": "{{ [['']] | map('map', 'attr', '__class__') | map('list') | list }}",
    "map to a map, unread": "{{ [['']] | map('map', 'attr', '__class__') | list }}",
    "where in memory a function is": "{{ raise_exception }}",
    "where in memory a generator is": "{{ messages | map('trim') }}",
    "where in memory, in a mapping": "{{ {'a': [namespace]} }}",
    "select by attribute": "{{ [''] | selectattr('__class__') | list }}",
    "reject by attribute": "{{ [''] | rejectattr('__class__', 'none') | list }}",
    "a path of attributes": "{{ [messages] | map(attribute='0.__class__.__mro__') | list }}",
    "group by a path": "{{ [messages] | groupby('0.__class__') }}",
    "unique by attribute": "{{ messages | unique(attribute='__class__') | list }}",
    "least by attribute": "{{ messages | min(attribute='__class__') }}",
    "the loop's iterator": "{% for m in messages %}{{ loop['_iterator'] }}{% endfor %}",
    "a macro's function": "{% macro f() %}{% endmacro %}{{ f['_func'] }}",
    "a view's mapping": "{{ messages[0].keys().mapping }}",
    "a namespace's store": "{% set ns = namespace() %}{{ ns['_Namespace__attrs'] }}",
    "a namespace of pairs": "{% set ns = namespace([['_x', 1]]) %}{{ ns.x }}",
    "emptying a list": "{{ messages.clear() }}",
    "taking from a mapping": "{{ messages[0].pop('role') }}",
    "sorting a list": "{{ messages.sort() }}",
    "a test by name": "{{ [1] | select('__class__') | list }}",
    "a default of nothing": "{{ messages | map(attribute='x', default=namespace.__init__) | list }}",
    "json of a function": "{{ raise_exception | tojson }}",
    "markup's methods": "{{ ('<a>' | safe).striptags() }}",
    "a tab's width": "{{ '\t'.expandtabs(9) }}",
}  # fmt: skip
# What Jinja's own sandbox lets through: reasons for a stricter one.
OPEN_IN_JINJAS_SANDBOX = (
    "cycler",
    "joiner",
    "lipsum",
    "dict",
    "attr filter",
    "format filter",
    "percent format",
    "pprint",
)


def foreign(template: str) -> ChatRenderer:
    return renderer_for(byte_level(), template)


@pytest.mark.parametrize("attack", ATTACKS)
def test_30_a_way_out_is_blocked_and_the_error_names_the_template(attack, tmp_path):
    canary = tmp_path / "canary"
    one = foreign(ATTACKS[attack].replace("CANARY", str(canary)))
    assert one.in_child
    with pytest.raises(RequestError, match=f"chat {one.name}: it is not safe or not sound") as caught:
        one.render(TALK, generation_prompt=True)
    assert caught.value.code == "chat_template_failed"
    assert not canary.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_30_the_sandbox_alone_blocks_it_too(attack):
    """In this process, without the child's bounds."""
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(Exception) as caught:  # what Python's operations raise, whichever it is
        compile_template(ChatSandbox(), ATTACKS[attack]).render(messages=messages)
    assert not isinstance(caught.value, AssertionError)


def test_30_without_a_sandbox_the_canary_appears(tmp_path):
    """The control: the attack works, and the canary is what it makes."""
    canary = tmp_path / "canary"
    Environment().from_string(ATTACKS["cycler's globals"].replace("CANARY", str(canary))).render()
    assert canary.exists()


def test_30_jinjas_own_sandbox_would_let_some_through():
    environment = ImmutableSandboxedEnvironment()
    for attack in OPEN_IN_JINJAS_SANDBOX:
        environment.from_string(ATTACKS[attack]).render(messages=[{"role": "user"}])


def test_30_the_child_holds_nothing_worth_taking(monkeypatch):
    monkeypatch.setenv("FLEDGE_API_KEY", "secret-canary")
    shared_process().close()
    assert foreign("{{ 1 }}").text(TALK, True) == "1"
    child = shared_process().process
    assert child is not None
    process = psutil.Process(child.pid)
    assert "secret-canary" not in Path(f"/proc/{child.pid}/environ").read_text()
    assert "secret-canary" in os.environ.get("FLEDGE_API_KEY", "")  # the control: this process has it
    maps = Path(f"/proc/{child.pid}/maps").read_text()
    assert "torch" not in maps and "numpy" not in maps
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (3, 3) and process.num_fds() <= 3
    assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0) and process.rlimit(psutil.RLIMIT_CORE) == (0, 0)


def test_30_a_wrong_template_is_an_error_that_names_it():
    for template in ("{% for %}", "{{ 1 ", "{{ nobody.knows }}", "{{ 1 | unknown }}", "{{ 1 / 0 }}", "{{ [][1].a }}"):
        with pytest.raises(RequestError, match="chat template [0-9a-f]{12}: it is not safe or not sound"):
            foreign(template).render(TALK, generation_prompt=True)
