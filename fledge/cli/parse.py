"""From the words of a command line to a verb and its config. Imports no torch.

A word is one of: `--key value`, `--key=value`, `--flag`, `--no-flag`, `key=value`, a positional, or one file ending in
.yaml. Keys are dotted paths into the verb's config class; `-` and `_` are the same. Text fields take what was typed,
letter for letter; every other field reads its value as YAML.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fledge import config
from fledge.cli.verbs import VERBS, Verb
from fledge.config import key_name
from fledge.errors import ConfigError

ASSIGNMENT = re.compile(r"[A-Za-z_][\w.-]*=")
NUMBER = re.compile(r"-(\d|\.\d|inf|nan)")
HELP = ("--help", "-h")
JSON = "--json"


@dataclass
class CommandLine:
    """What was typed after a verb: `tree` holds the typed values by key, `yaml` the config file, if any."""

    tree: dict[str, Any] = field(default_factory=dict)
    yaml: str | None = None
    json: bool = False
    positionals: list[str] = field(default_factory=list)


def find_verb(words: list[str]) -> tuple[Verb, list[str]]:
    """The verb that `words` begin with, and the words after it. Raises ConfigError with the nearest verbs."""
    names = {verb.name: verb for verb in VERBS}
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in names:
            return names[name], words[length:]
    group = [name for name in names if name.startswith(f"{words[0]} ")]
    if group:
        got = f", got {words[1]!r}" if len(words) > 1 and not words[1].startswith("-") else ""
        raise ConfigError(f"fledge {words[0]}: expected one of {', '.join(n.split()[1] for n in group)}{got}")
    near = difflib.get_close_matches(" ".join(words[:2]), names, n=1) or difflib.get_close_matches(words[0], names, n=1)
    hint = f"did you mean {near[0]}?" if near else "see fledge --help"
    raise ConfigError(f"fledge: unknown verb {words[0]!r}; {hint}")


def wants_help(verb: Verb, cls: type, words: list[str]) -> bool:
    """Whether `--help` or `-h` stands where a flag may: not as the value of an option, not after a bare `--`."""
    parser, rest = Parser(verb, cls), list(words)
    while rest:
        word = rest.pop(0)
        if word in HELP:
            return True
        if word == "--":
            return False
        if parser.takes_value(word):
            del rest[:1]
    return False


def group_of(words: list[str]) -> list[Verb]:
    """The verbs of a group, such as `data`, when the words ask for its help; else none. `label` is a verb itself."""
    asked = len(words) > 1 and words[1] in HELP and words[0] not in {verb.name for verb in VERBS}
    return [verb for verb in VERBS if verb.name.startswith(f"{words[0]} ")] if asked else []


def read_config(verb: Verb, cls: type, words: list[str]) -> tuple[Any, CommandLine]:
    """The verb's config (YAML file, then the command line over it) and what was typed. Raises ConfigError."""
    line = parse(verb, cls, words)
    tree = config.read_yaml(line.yaml) if line.yaml else {}
    config.merge(tree, line.tree)
    return config.from_dict(cls, tree, at=line.yaml or ""), line


def parse(verb: Verb, cls: type, words: list[str]) -> CommandLine:
    """The words after a verb as a CommandLine. Raises ConfigError naming the word, with the nearest key."""
    return Parser(verb, cls).parse(words)


class Parser:
    """Reads words from left to right; keys are known from the verb's config class."""

    def __init__(self, verb: Verb, cls: type):
        self.verb = verb
        self.keys = leaves(cls)
        self.aliases = {key_name(name): target for name, target in verb.aliases}
        self.line = CommandLine()
        self.appended: set[str] = set()

    def parse(self, words: list[str]) -> CommandLine:
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                self.line.positionals.extend(rest)
                break
            if word == JSON:
                self.line.json = True
            elif word.startswith("--"):
                self.flag(word, rest)
            elif word.startswith("-") and len(word) > 1 and not NUMBER.match(word):
                raise ConfigError(f"fledge {self.verb.name}: unknown flag {word}; flags have two dashes, see --help")
            elif ASSIGNMENT.match(word):
                key, _, value = word.partition("=")
                if self.verb.others and key_name(key) not in {*self.keys, *self.aliases}:
                    self.assign(self.verb.others, word, typed=True)
                else:
                    self.assign(self.known(key, key), value, typed=False)
            elif self.verb.yaml and word.endswith((".yaml", ".yml")):
                self.config_file(word)
            else:
                self.line.positionals.append(word)
        self.place_positionals()
        return self.line

    def flag(self, word: str, rest: list[str]) -> None:
        name, separator, value = word[2:].partition("=")
        if separator and f"--{name}" in (JSON, *HELP):
            raise ConfigError(f"fledge {self.verb.name}: --{name} takes no value; write --{name}")
        negated = self.negated(name)
        if negated is not None and not separator:
            self.put(negated, False)
            return
        key = self.known(name, f"--{name}")
        if not separator:
            if is_boolean(self.keys[key]):
                value = rest.pop(0) if rest and rest[0] in ("true", "false") else "true"
            elif not rest or self.is_flag(rest[0]):
                raise ConfigError(f"--{name}: expected a value, found none; write --{name}=VALUE")
            else:
                value = rest.pop(0)
        self.assign(key, value, typed=True)

    def negated(self, name: str) -> str | None:
        """The boolean key that `--no-NAME` turns off, unless a key of that very name exists."""
        key = key_name(name)
        if not key.startswith("no_") or key in self.keys or key in self.aliases:
            return None
        positive = self.aliases.get(key[3:], key[3:])
        return positive if positive in self.keys and is_boolean(self.keys[positive]) else None

    def is_flag(self, word: str) -> bool:
        """Whether a word is one of this verb's own flags, so that it can't be meant as a value."""
        if not word.startswith("--") or len(word) == 2:
            return word == "--"
        name = key_name(word[2:].partition("=")[0])
        return name in self.keys or name in self.aliases or self.negated(name) is not None or word == JSON

    def takes_value(self, word: str) -> bool:
        """Whether the word after `word` is its value, whatever it looks like."""
        key = key_name(word.removeprefix("--"))
        hint = self.keys.get(self.aliases.get(key, key))
        return word.startswith("--") and hint is not None and not is_boolean(hint)

    def known(self, name: str, shown: str) -> str:
        key = key_name(name)
        key = self.aliases.get(key, key)  # an alias may be called as a group of keys is
        if key in self.keys:
            return key
        group, _, last = key.rpartition(".")
        mapping = unwrapped(self.keys.get(group))
        if last and typing.get_origin(mapping) is dict:
            self.keys[key] = typing.get_args(mapping)[1]
            return key
        raise ConfigError(f"fledge {self.verb.name}: unknown key {shown}{self.suggestion(key)}")

    def suggestion(self, key: str) -> str:
        """`; did you mean X?`: by the whole dotted key, else by its last word."""
        known = [*self.keys, *self.aliases, "json", "help"]
        last = {name.rpartition(".")[2]: name for name in reversed(known)}
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        if not near:
            near = [last[n] for n in difflib.get_close_matches(key.rpartition(".")[2], last, n=1, cutoff=0.6)]
        return f"; did you mean {near[0]}?" if near else f"; see fledge {self.verb.name} --help"

    def config_file(self, word: str) -> None:
        if self.line.yaml is not None:
            raise ConfigError(f"fledge {self.verb.name}: expected one YAML file, got {self.line.yaml} and {word}")
        self.line.yaml = word

    def place_positionals(self) -> None:
        """Give positionals to their keys in order; a last key that holds a list takes all that are left."""
        words, slots = list(self.line.positionals), [name.strip("[]") for name in self.verb.positionals]
        for index, key in enumerate(slots):
            if not words:
                return
            swallow = index == len(slots) - 1 and is_list(self.keys[key])
            for _ in range(len(words) if swallow else 1):
                self.assign(key, words.pop(0), typed=True)
        if words:
            expected = " ".join(slots) or "none"
            raise ConfigError(f"fledge {self.verb.name}: unexpected word {words[0]!r}; positionals here: {expected}")

    def assign(self, key: str, value: str, typed: bool) -> None:
        """Set a key from text. `typed`: it came as `--key value`, where a list field takes one item each time."""
        hint = self.keys[key]
        if is_list(hint):
            items = self.items(key, hint, value, typed)
            if typed and key in self.appended:
                items = [*lookup(self.line.tree, key), *items]
            if typed:
                self.appended.add(key)
            self.put(key, items)
            return
        if is_text(hint):
            absent = not typed and value == "null" and type(None) in typing.get_args(hint)
            self.put(key, None if absent else readable(key, value))
            return
        parsed: Any = config.parse_yaml(value, at=key) if value else ""
        if not is_group(hint):
            config.convert(hint, parsed, key)
        self.put(key, parsed)

    def items(self, key: str, hint: Any, value: str, typed: bool) -> list[Any]:
        item_hint = (typing.get_args(list_of(hint)) or (Any,))[0]
        if is_text(item_hint) and (typed or not value.lstrip().startswith("[")):
            return [readable(key, value)] if value or typed else []
        parsed = config.parse_yaml(value, at=key) if value else []
        items = parsed if isinstance(parsed, list) else [parsed]
        config.convert(hint, items, key)
        return items

    def put(self, key: str, value: Any) -> None:
        config.set_dotted(self.line.tree, key, value)


def readable(key: str, value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"{key}: expected UTF-8 text, got other bytes; check the terminal's encoding") from None
    return value


def leaves(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type hint of every field of a config class; groups stand beside their own fields."""
    hints, found = typing.get_type_hints(cls), {}
    for item in dataclasses.fields(cls):
        if not item.init:
            continue
        key, hint = prefix + item.name, hints[item.name]
        found[key] = hint
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner) and typing.get_origin(hint) not in (list, tuple, dict):
                found.update(leaves(inner, key + "."))  # type: ignore[arg-type]
    return found


def choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union but None; any other hint alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(choice for choice in typing.get_args(hint) if choice is not type(None))
    return (hint,)


def unwrapped(hint: Any) -> Any:
    """`X` of `X | None`."""
    found = choices(hint)
    return found[0] if len(found) == 1 else hint


def is_boolean(hint: Any) -> bool:
    return unwrapped(hint) is bool


def list_of(hint: Any) -> Any:
    """The list among the members of a union, or None."""
    return next((choice for choice in choices(hint) if typing.get_origin(choice) in (list, tuple)), None)


def is_list(hint: Any) -> bool:
    return list_of(hint) is not None


def is_group(hint: Any) -> bool:
    return any(dataclasses.is_dataclass(choice) for choice in choices(hint))


def is_text(hint: Any) -> bool:
    """Whether every value the field takes (but none) is text, so that nothing typed may be read as YAML."""
    for choice in choices(hint):
        words = typing.get_args(choice) if typing.get_origin(choice) is typing.Literal else ()
        if choice not in (str, Path) and not (words and all(isinstance(word, str) for word in words)):
            return False
    return True


def lookup(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        node = node[part]
    return node
