"""The Jinja environment in which a chat template that came with a model runs: what templates need, and nothing else.

A template is somebody else's program. Here it may loop over the messages, test them and join texts. It reaches no
attribute but the listed methods of texts, lists and mappings, no module, no file, no format string and no other
template. Time and memory are not bounded here but by the process around it (`jinja_child.py`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

from jinja2 import Environment, Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Around what stands between {% generation %} and {% endgeneration %}. They are no characters of any text: Unicode keeps
# them for a program's own use, and the caller takes them out of the messages.
OPEN, CLOSE = "\ufdd0", "\ufdd1"

MAX_RANGE = 10_000  # steps of one range(); templates count messages with it
MAX_REPEATED = 1 << 20  # characters or items that * may make
MAX_POWER_BITS = 1 << 12

TEXT = """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric
isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit
rstrip split splitlines startswith strip swapcase title upper"""
LOOP = "changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"
METHODS = {
    str: frozenset(TEXT.split()),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    LoopContext: frozenset(LOOP.split()),
}
FILTERS = """abs capitalize count d default dictsort e escape first float groupby indent int items join last length list
lower map max min reject rejectattr replace reverse round safe select selectattr slice sort string sum title trim unique
upper wordcount"""
FORBIDDEN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)
DATE_FORMAT = re.compile(r"(?:[^%]|%[-]?[A-Za-z%])*")


class Raised(TemplateError):
    """The template itself refused the conversation: `raise_exception`."""


class GenerationMarks(Extension):
    """`{% generation %}…{% endgeneration %}`: what stands between is the assistant's, and is trained on."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


class TemplateNamespace(Namespace):
    """`namespace(…)`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


class ChatSandbox(ImmutableSandboxedEnvironment):
    """Whitespace is controlled as in the environment that templates are written for: `trim_blocks`, `lstrip_blocks`."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        extensions: list[type[Extension]] = [GenerationMarks, LoopControlExtension]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=plain)
        self.filters = {name: self.filters[name] for name in FILTERS.split()} | {"tojson": tojson}
        self.globals = {
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
            "namespace": TemplateNamespace,
            "range": short_range,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_"):
            return False
        if isinstance(obj, TemplateNamespace):
            return True
        return any(attr in names for kind, names in METHODS.items() if isinstance(obj, kind))

    def is_safe_callable(self, obj: Any) -> bool:
        if isinstance(obj, Macro | LoopContext) or any(obj is known for known in self.globals.values()):
            return True
        if isinstance(obj, BuiltinMethodType):
            return isinstance(obj.__self__, str | dict | list | tuple)
        # a text made by |safe or |escape has methods written in Python
        return isinstance(obj, MethodType) and isinstance(obj.__self__, LoopContext | GenerationMarks | str)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"{type(obj).__name__}.{attribute:.40} is not open to templates")

    def wrap_str_format(self, value: Any) -> None:
        """Jinja would hand out a `format` of its own; then the rule for attributes wouldn't be asked."""
        return None

    def handle_exception(self, source: str | None = None) -> NoReturn:
        """As it is: Jinja would load a module to make the traceback pretty, and nobody sees the traceback."""
        error = sys.exc_info()[1]
        assert error is not None
        raise error

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("% makes no text in templates; join texts with + or ~")
        if operator == "*":
            check_repeated(left, right)
        if operator == "**":
            check_power(left, right)
        return super().call_binop(context, operator, left, right)


def compile_template(environment: Environment, source: str) -> Template:
    """The compiled template. Raises TemplateError (SecurityError for what no chat template needs)."""
    tree = environment.parse(source)
    for node in tree.find_all(nodes.Node):
        line = f"line {node.lineno}: "
        if isinstance(node, FORBIDDEN):
            raise SecurityError(f"{line}{type(node).__name__.lower()} is not open to templates")
        if isinstance(node, nodes.Name) and node.name in ("self", "super"):
            raise SecurityError(f"{line}{node.name} is not open to templates")
        for name, start in ((getattr(node, "attr", None), "_"), (getattr(node, "name", None), "__")):
            if isinstance(name, str) and name.startswith(start):
                raise SecurityError(f"{line}{name:.40} is not open to templates")
    return environment.from_string(tree)


def plain(value: Any) -> Any:
    """`value`, if it is text, a number or made of such: of others Python would write where in memory they are."""
    if isinstance(value, list | tuple | dict):
        for item in value.items() if isinstance(value, dict) else value:
            plain(item)
        return value
    if isinstance(value, str | int | float | Undefined | None):
        return value
    raise SecurityError(f"a {type(value).__name__} can't be written; write texts and numbers")


def raise_exception(message: Any) -> NoReturn:
    raise Raised(str(message))


def strftime_now(form: str) -> str:
    """The local date and time; widths are refused, since they make any length of text."""
    if not isinstance(form, str) or len(form) > 100 or not DATE_FORMAT.fullmatch(form):
        raise SecurityError("strftime_now takes at most 100 characters, without widths")
    return datetime.now().strftime(form)


def short_range(*bounds: int) -> range:
    found = range(*bounds)
    if not -MAX_RANGE <= found.start <= MAX_RANGE or len(found) > MAX_RANGE:
        raise SecurityError(f"range: expected at most {MAX_RANGE} steps")
    return found


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers writes it: characters stay themselves, nothing is escaped for HTML."""
    if isinstance(indent, int) and not 0 <= indent <= 16:
        raise SecurityError("tojson: expected an indent of 0..16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"namespace: {name!r:.40} is not open to templates")


def check_repeated(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int) and len(value) * times > MAX_REPEATED:
            raise SecurityError(f"*: expected at most {MAX_REPEATED} characters or items")


def check_power(base: Any, exponent: Any) -> None:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and base.bit_length() * exponent > MAX_POWER_BITS:
        raise SecurityError("**: the number is too large")
