"""Configuration: frozen dataclass <-> YAML <-> command line, strict in both directions.

An unknown key is an error with a suggestion, a value of the wrong type an error with its place. The order of
precedence is command line > YAML file > defaults. Field documentation is the string literal under the field.
Imports no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import math
import re
import reprlib
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fledge.errors import ConfigError

ConfigType = TypeVar("ConfigType")

MAX_YAML_BYTES = 4 << 20
SHORT = reprlib.Repr()  # of a value in a message, whatever aliases in a YAML file make of it
SHORT.maxlevel, SHORT.maxlist, SHORT.maxdict, SHORT.maxstring, SHORT.maxother = 3, 8, 8, 200, 200
MAX_INTEGER = 2**63 - 1
MOST_THREADS = 1024  # far more take a machine down before a pass is computed
FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$")


def load(cls: type[ConfigType], path: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> ConfigType:
    """The config of class `cls` from a YAML file (optional) with `changes` over it: values by dotted key.

    Raises ConfigError naming the key's place, what was expected, what was found and the nearest known key.
    """
    tree: dict[str, Any] = read_yaml(path) if path is not None else {}
    for key, value in (changes or {}).items():
        set_dotted(tree, key, value)
    return from_dict(cls, tree, at=str(path) if path is not None else "")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError if it is missing, too large, not YAML or not a mapping."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError(f"{path}: expected at most {MAX_YAML_BYTES} bytes of YAML; split the file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a YAML file, found none; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as UTF-8 text ({error.__class__.__name__})") from None
    tree = parse_yaml(text, at=str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {kind(tree)}")
    return tree


def parse_yaml(text: str, at: str = "value") -> Any:
    """One YAML value. Numbers such as 3e-4 are floats, as everybody expects (YAML 1.1 reads a string); a key that comes
    twice and numbers that YAML 1.1 reads in base 8 or 60 (010, 1:30) are errors."""
    import yaml

    try:
        return yaml.load(text, Loader=strict_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{at}, line {mark.line + 1}" if mark is not None else at
        raise ConfigError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or 'syntax'})") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{at}: not usable YAML ({str(error)[:80] or error.__class__.__name__})") from None


@functools.cache
def strict_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    problem = f"expected each key once, got {shorten(key.value)} twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def number(self, node: Any) -> int | float:
            text = str(self.construct_scalar(node))
            if ":" in text or re.match("[-+]?0[0-9_]+$", text):
                problem = f"expected a number without a leading 0 or a colon, got {text[:40]}; put text in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            whole = node.tag.endswith(":int")
            return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    for name in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{name}", Loader.number)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    return Loader


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b` in a tree of mappings; `-` in keys equals `_`. Raises ConfigError where a group of keys is a value."""
    over: Any = value
    for part in reversed(key_name(key).split(".")):
        over = {part: over}
    merge(tree, over)


def merge(tree: dict[str, Any], over: Mapping[str, Any], at: str = "") -> None:
    """Lay `over` on `tree`, group by group; a key written with `-` in one is the one written with `_` in the other."""
    for key, value in over.items():
        name = next((known for known in tree if key_name(str(known)) == key_name(key)), key)
        old = tree.get(name)
        if not isinstance(value, dict) or old is None:
            tree[name] = value
        elif isinstance(old, dict):
            merge(old, value, join(at, key))
        else:
            raise ConfigError(f"{join(at, key)}: expected a group of keys, got {shorten(old)} ({kind(old)})")


def key_name(name: str) -> str:
    return name.replace("-", "_")


def from_dict(cls: type[ConfigType], tree: Mapping[str, Any], at: str = "") -> ConfigType:
    """The config from a tree of plain values. Raises ConfigError; `at` is the place prefix of its messages."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{at or 'config'}: expected a mapping, got {kind(tree)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        name = key_name(str(key))
        place = join(at, name)
        if name not in fields:
            raise ConfigError(f"{place}: unknown key{suggest(name, fields)}")
        if name in values:
            raise ConfigError(f"{place}: expected each key once, got it twice (`-` and `_` are the same)")
        values[name] = convert(hints[name], value, place)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{join(at, name)}: expected a value, found none; set {name}=…")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{at}: {error}" if at and not str(error).startswith(at) else str(error)) from None


def convert(hint: Any, value: Any, at: str) -> Any:
    """`value` as the annotated type `hint`, or ConfigError. No silent coercion but int -> float and list -> tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return convert_union(arguments, value, at)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        quotes = in_quotes(value) if all(isinstance(choice, str) for choice in arguments) else ""
        raise ConfigError(f"{at}: expected one of {', '.join(map(repr, arguments))}, got {shorten(value)}{quotes}")
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, at)  # type: ignore[arg-type]
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{at}: expected a list, got {kind(value)}")
        items = [convert(arguments[0] if arguments else Any, v, f"{at}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{at}: expected a mapping, got {kind(value)}")
        return {str(k): convert(arguments[1], v, join(at, str(k))) for k, v in value.items()}
    return convert_scalar(hint, value, at)


def convert_union(choices: tuple[Any, ...], value: Any, at: str) -> Any:
    if value is None:
        if type(None) in choices:
            return None
        raise ConfigError(f"{at}: expected a value, got nothing")
    real = [choice for choice in choices if choice is not type(None)]
    message = ""
    for choice in real:
        try:
            return convert(choice, value, at)
        except ConfigError as error:
            message = str(error)
    raise ConfigError(message)


def convert_scalar(hint: Any, value: Any, at: str) -> Any:
    def wrong(remedy: str = "") -> ConfigError:
        return ConfigError(f"{at}: expected {type_name(hint)}, got {shorten(value)} ({kind(value)}){remedy}")

    if hint is bool:
        if not isinstance(value, bool):
            raise wrong()
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            if not (isinstance(value, float) and value.is_integer() and abs(value) <= 2**53):
                raise wrong()
            value = int(value)
        if abs(value) > MAX_INTEGER:
            raise ConfigError(f"{at}: expected an integer below 2^63, got {shorten(value)}")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong()
        if not math.isfinite(value):
            raise ConfigError(f"{at}: expected a finite number, got {value}")
        return float(value)
    if hint in (str, Path):
        if not isinstance(value, str | Path if hint is Path else str):
            raise wrong(in_quotes(value))
        if not is_unicode(str(value)):
            raise ConfigError(f"{at}: expected text without half characters, got {shorten(value)}")
        if hint is Path and "\0" in str(value):
            raise ConfigError(f"{at}: expected a path without NUL, got {shorten(value)}")
        if hint is Path and not str(value):
            raise ConfigError(f"{at}: expected a path, got an empty text; . is the folder you are in")
        return hint(value)
    raise TypeError(f"{at}: config fields of type {hint} are not supported")


def in_quotes(value: Any) -> str:
    """The remedy where YAML made a number, a truth value or a date of what was meant as text (0123, no, 2026-11-22)."""
    return "" if value is None or isinstance(value, str | list | dict) else "; if text is meant, put it in quotes"


def to_dict(config: Any) -> Any:
    """The config as plain values (dict, list, str, number, None): what `from_dict` reads back to an equal config."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, list | tuple):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(item) for key, item in config.items()}
    return str(config) if isinstance(config, Path) else config


def to_yaml(config: Any) -> str:
    """The config as a YAML document, fields in the order of the class; `load` reads an equal config from it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Puts a text such as 3e4 in quotes, which to us is a number."""

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    return yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def read_json(path: str | Path, max_bytes: int = 16 << 20, unique: bool = False) -> Any:
    """A JSON file from outside, hostile ones included: size-capped, no NaN, no 5,000-digit number, no deep nest.
    `unique`: no key that stands twice with two values.

    Raises ConfigError naming the file.
    """
    path = Path(path)

    def refuse_constant(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:20]} is not finite")
        return value

    try:
        if path.stat().st_size > max_bytes:
            raise ConfigError(f"{path.name}: expected at most {max_bytes} bytes of JSON, got {path.stat().st_size}")
        return json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=refuse_constant,
            parse_float=finite,
            object_pairs_hook=once_each if unique else None,
        )
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a JSON file, found none; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not usable JSON ({str(error)[:120] or error.__class__.__name__})") from None


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of JSON's pairs. Raises ValueError for a key with two values."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"{key[:40]!r} stands twice, with two values")
        found[key] = value
    return found


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the string literal under it in the source of the class, or of the one that it inherits from."""
    inherited = [field_docs(base) for base in reversed(cls.__bases__) if dataclasses.is_dataclass(base)]
    docs = {name: text for known in inherited for name, text in known.items()}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for statement, following in zip(statements, statements[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def schema(cls: type) -> dict[str, Any]:
    """JSON schema (2020-12) of a config class, for editors and `fledge config schema VERB`."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        entry = hint_schema(hints[field.name])
        if field.name in docs:
            entry = {**entry, "description": docs[field.name]}
        if field.default is not dataclasses.MISSING:
            entry["default"] = to_dict(field.default)
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = entry
    summary = (cls.__doc__ or "").strip().split("\n")[0]
    result: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    if required:
        result["required"] = required
    if summary and not summary.startswith(cls.__name__ + "("):
        result["description"] = summary
    return result


def hint_schema(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [hint_schema(choice) for choice in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if dataclasses.is_dataclass(hint):
        return schema(hint)  # type: ignore[arg-type]
    if origin in (list, tuple):
        return {"type": "array", "items": hint_schema(arguments[0]) if arguments else {}}
    if origin is dict:
        return {"type": "object", "additionalProperties": hint_schema(arguments[1])}
    names = {int: "integer", float: "number", bool: "boolean", str: "string", Path: "string", type(None): "null"}
    return {"type": names[hint]} if hint in names else {}


def flatten(cls: type, prefix: str = "") -> list[tuple[str, str, Any, str]]:
    """(dotted key, type, default, documentation) of every leaf field, for `--help` and docs/cli.md."""
    hints, docs, rows = typing.get_type_hints(cls), field_docs(cls), []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        name, hint = prefix + field.name, hints[field.name]
        inner = [t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)]
        if inner:
            rows.extend(flatten(inner[0], name + "."))  # type: ignore[arg-type]
            continue
        default = field.default
        if default is dataclasses.MISSING:
            factory = field.default_factory
            default = factory() if factory is not dataclasses.MISSING else "required"
        rows.append((name, type_name(hint), default, docs.get(field.name, "")))
    return rows


def check_threads(threads: int) -> None:
    """Raises ConfigError for a number of CPU threads that no machine is meant to start; 0 is a choice left open."""
    if not 0 <= threads <= MOST_THREADS:
        raise ConfigError(f"threads: expected 0..{MOST_THREADS}, got {threads}")


def join(at: str, name: str) -> str:
    if not at:
        return name
    return f"{at}: {name}" if at.endswith((".yaml", ".yml", ".json")) else f"{at}.{name}"


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` or the list of known names."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"


def type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else type_name(a) for a in arguments)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (list, tuple):
        return f"list of {type_name(arguments[0])}" if arguments else "list"
    if origin is dict:
        return "mapping"
    return {int: "integer", float: "number", bool: "true/false", str: "text", Path: "path"}.get(hint, str(hint))


def kind(value: Any) -> str:
    names = {bool: "true/false", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def shorten(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_unicode(text: str) -> bool:
    """Whether a text can be written: it has no half of a character but those by which a file's name keeps its bytes."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
