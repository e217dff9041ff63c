"""Configuration: frozen dataclass <-> YAML <-> command line, strict in both directions.

An unknown key is an error with a suggestion, a value of the wrong type an error with its place. The order of
precedence is command line > YAML file > defaults. Field documentation is the string literal under the field.
Imports no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fledge.errors import ConfigError

ConfigType = TypeVar("ConfigType")

MAX_YAML_BYTES = 4 << 20
MAX_INTEGER = 2**63 - 1


def load(cls: type[ConfigType], path: str | Path | None = None, overrides: Iterable[str] = ()) -> ConfigType:
    """The config of class `cls` from a YAML file (optional) and `dotted.key=value` overrides.

    Raises ConfigError naming the key's place, what was expected, what was found and the nearest known key.
    """
    tree: dict[str, Any] = read_yaml(path) if path is not None else {}
    for text in overrides:
        set_dotted(tree, text)
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
    """One YAML value. Numbers such as 3e-4 are floats, as everybody expects (YAML 1.1 reads a string)."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{at}, line {mark.line + 1}" if mark is not None else at
        raise ConfigError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or 'syntax'})") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{at}: not usable YAML ({str(error)[:80] or error.__class__.__name__})") from None


def set_dotted(tree: dict[str, Any], text: str) -> None:
    """Set `a.b=value` in a tree of dicts; the value is YAML. `-` in keys equals `_`."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {text!r}: expected key=value")
    parts = key.replace("-", "_").split(".")
    node = tree
    for depth, part in enumerate(parts[:-1]):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{'.'.join(parts[: depth + 1])}: expected a group of keys, got {kind(node)}")
    node[parts[-1]] = parse_yaml(value, at=key) if value else ""


def from_dict(cls: type[ConfigType], tree: Mapping[str, Any], at: str = "") -> ConfigType:
    """The config from a tree of plain values. Raises ConfigError; `at` is the place prefix of its messages."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{at or 'config'}: expected a mapping, got {kind(tree)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        name = str(key).replace("-", "_")
        place = join(at, name)
        if name not in fields:
            raise ConfigError(f"{place}: unknown key{suggest(name, fields)}")
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
        if value in arguments and not (isinstance(value, bool) and True not in arguments and False not in arguments):
            return value
        raise ConfigError(f"{at}: expected one of {', '.join(map(repr, arguments))}, got {shorten(value)}")
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
    wrong = ConfigError(f"{at}: expected {type_name(hint)}, got {shorten(value)} ({kind(value)})")
    if hint is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            if not (isinstance(value, float) and value.is_integer() and abs(value) <= 2**53):
                raise wrong
            value = int(value)
        if abs(value) > MAX_INTEGER:
            raise ConfigError(f"{at}: expected an integer below 2^63, got {shorten(value)}")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong
        if not math.isfinite(value):
            raise ConfigError(f"{at}: expected a finite number, got {value}")
        return float(value)
    if hint is str:
        if isinstance(value, bool | int | float):
            return str(value)
        if not isinstance(value, str):
            raise wrong
        return value
    if hint is Path:
        if not isinstance(value, str | Path):
            raise wrong
        return Path(value)
    raise TypeError(f"{at}: config fields of type {hint} are not supported")


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
    """The config as a YAML document, fields in the order of the class."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read_json(path: str | Path, max_bytes: int = 16 << 20) -> Any:
    """A JSON file from outside, hostile ones included: size-capped, no NaN, no 5,000-digit number, no deep nest.

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
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant, parse_float=finite)
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a JSON file, found none; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not usable JSON ({str(error)[:120] or error.__class__.__name__})") from None


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the string literal under it in the class's source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    docs: dict[str, str] = {}
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
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
