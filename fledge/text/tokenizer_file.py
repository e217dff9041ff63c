"""`TokenizerFile`: a tokenizer.json from anywhere, hostile ones included, read within bounds and checked.

Nothing is executed and nothing is allocated in proportion to a number in the file. What passes has every id once,
within range, and a model of a kind this package can encode with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import TokenizerError
from fledge.text import charsmap, pattern
from fledge.text.model_check import MAX_ENTRIES, check_model, describe, name_of, vocab_of
from fledge.text.sentencepiece_text import charsmap_of

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"

MARK = "\u2581"  # a space, as SentencePiece's pieces spell it
MAX_BYTES = 64 << 20  # the largest in wide use is half of it
MAX_ELEMENTS = 2_500_000  # JSON values; the largest in wide use has 1.8 million
MAX_KEYS = 1_500_000
MAX_TOKEN_CHARACTERS = 65_536
MAX_STEPS = 16  # normalizers or pre-tokenizers in a row
MAX_GROWTH = 4  # times longer a normalizer may make a text: a megabyte would take too long otherwise
MAX_PREPENDED = 64  # characters that a normalizer may put first

DECODERS = {  # steps that `token_bytes` does; without a decoder the library puts spaces between tokens
    "bpe": ("ByteLevel",),
    "sentencepiece-bpe": ("Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"),
    "unigram": ("Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"),
    "wordpiece": ("WordPiece",),
    "word": (),
    "characters": ("Fuse",),
}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
NORMALIZERS = frozenset(
    ("NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Sequence", "Lowercase", "Strip", "StripAccents", "Nmt")
    + ("BertNormalizer", "Precompiled")
)


@dataclass(frozen=True)
class TokenizerFile:
    """A checked tokenizer.json. `tokens[id]` is the token's text, None where an id has none; `added` maps the ids of
    added tokens to their entries; `kind` is "bpe", "sentencepiece-bpe", "unigram", "wordpiece", "word" or
    "characters"."""

    text: str
    tree: dict[str, Any]
    kind: str
    tokens: tuple[str | None, ...]
    added: dict[int, dict[str, Any]]

    @property
    def pattern(self) -> str | None:
        """Name of the split pattern, if it is one of the published ones we know."""
        return pattern.name_of(self.tree.get("pre_tokenizer")) if self.kind == "bpe" else None


def read(path: str | Path) -> TokenizerFile:
    """The checked tokenizer.json at `path`. Raises TokenizerError naming the file and what is wrong."""
    path = demand_file(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise TokenizerError(f"{path}: expected at most {MAX_BYTES} bytes, got {size}; not a usable tokenizer")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(f"{path}: expected a tokenizer.json, found none; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: can't be read as UTF-8 text ({error.__class__.__name__})") from None
    return parse(text, str(path))


def demand_file(path: str | Path) -> Path:
    """`path`, if it may be read to its end. Raises TokenizerError for a pipe or a device, which may have none."""
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise TokenizerError(f"{path}: expected a file, got {what}; copy the tokenizer to a file")
    return path


def parse(text: str, at: str = "tokenizer.json") -> TokenizerFile:
    """A checked TokenizerFile from its text. Raises TokenizerError."""
    tree = parse_json(text, at)
    model = tree.get("model")
    vocab = vocab_of(model, at)
    assert isinstance(model, dict), "vocab_of refuses anything else"
    kind = kind_of(tree, model, at)
    added = read_added(tree.get("added_tokens"), at)
    tokens = place_tokens(vocab, added, at)
    if kind == "characters" and not any(len(token) == 1 and i not in added for token, i in vocab):
        raise TokenizerError(f"{at}: model.vocab: expected tokens of one character, found none")
    check_model(model, at)
    check_normalizer(tree.get("normalizer"), at)
    check_steps(tree.get("pre_tokenizer"), "pretokenizers", at)
    check_decoder(tree.get("decoder"), kind, at)
    return TokenizerFile(text, tree, kind, tokens, added)


def parse_json(text: str, at: str) -> dict[str, Any]:
    """The object a JSON text spells; no duplicate key, NaN, deep nest or more than MAX_ELEMENTS values."""
    if text.count(",") > MAX_ELEMENTS or text.count('":') > MAX_KEYS:
        raise TokenizerError(
            f"{at}: expected at most {MAX_ELEMENTS} values and {MAX_KEYS} keys, got more; not a usable tokenizer"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in found if keys.count(key) > 1) if len(keys) < 10_000 else "an entry"
            raise TokenizerError(f"{at}: expected each key once, got {twice!r:.60} twice")
        return found

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")

    try:
        tree = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{at}: not usable JSON ({str(error)[:120] or error.__class__.__name__})") from None
    if not isinstance(tree, dict):
        raise TokenizerError(f"{at}: expected a JSON object, got {describe(tree)}")
    return tree


def kind_of(tree: dict[str, Any], model: dict[str, Any], at: str) -> str:
    """Which of our kinds the file is. Raises TokenizerError for a model that this package can't encode with."""
    name = name_of(model)
    steps = {step.get("type") for step in walk(tree.get("pre_tokenizer"))}
    decoders = {step.get("type") for step in walk(tree.get("decoder"))}
    if name == "BPE" and ("ByteLevel" in steps or (not steps and "ByteLevel" in decoders)):
        return "bpe"
    if name == "BPE" and (model.get("byte_fallback") or "Metaspace" in steps | decoders or "ByteFallback" in decoders):
        return "sentencepiece-bpe"
    if name == "WordLevel":
        return "characters" if is_every_character(tree.get("pre_tokenizer")) else "word"
    if name in ("Unigram", "WordPiece"):
        return str(name).lower()
    raise TokenizerError(
        f"{at}: model: expected byte-level BPE, SentencePiece-like BPE, WordPiece, Unigram or WordLevel, got "
        f"{'BPE over whole characters, which loses unknown ones' if name == 'BPE' else repr(name)[:40]}; "
        "use a model with one of these"
    )


def is_every_character(pre_tokenizer: Any) -> bool:
    """Whether a pre-tokenizer makes each character a word of its own."""
    if not isinstance(pre_tokenizer, dict) or pre_tokenizer.get("type") != "Split":
        return False
    splits = ({"Regex": pattern.EVERY_CHARACTER}, {"String": ""})
    whole = pre_tokenizer.get("behavior") == "Isolated" and not pre_tokenizer.get("invert")
    return whole and pre_tokenizer.get("pattern") in splits


def read_added(entries: Any, at: str) -> dict[int, dict[str, Any]]:
    """The added tokens by id. Raises TokenizerError for a wrong type, or an id or a text given twice."""
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise TokenizerError(f"{at}: added_tokens: expected a list, got {describe(entries)}")
    found: dict[int, dict[str, Any]] = {}
    contents: dict[str, int] = {}
    for place, entry in enumerate(entries):
        where = f"{at}: added_tokens[{place}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not entry["content"]:
            raise TokenizerError(f"{where}: expected an id and a text that is not empty, got {describe(entry)}")
        number = read_id(entry.get("id"), f"{where} {entry['content']!r:.40}")
        if number in found:
            raise TokenizerError(f"{where}: id {number} stands for {found[number]['content']!r:.40} already")
        content = entry["content"]
        if contents.setdefault(content, number) != number:
            raise TokenizerError(f"{where} {content!r:.40}: expected one id, got {contents[content]} and {number}")
        for flag in FLAGS:
            if not isinstance(entry.get(flag, False), bool):
                raise TokenizerError(f"{where}.{flag}: expected true or false, got {describe(entry[flag])}")
        found[number] = entry
    return found


def place_tokens(vocab: list[tuple[str, Any]], added: dict[int, dict[str, Any]], at: str) -> tuple[str | None, ...]:
    """Tokens by id. Raises TokenizerError for an id that is no number, negative, given twice or far out of range."""
    n_entries = len(vocab) + len(added)
    if n_entries > MAX_ENTRIES:
        raise TokenizerError(f"{at}: expected at most {MAX_ENTRIES} tokens, got {n_entries}; not a usable tokenizer")
    limit = 2 * n_entries + 1024  # gaps exist in good files; an id beyond this would only cost memory
    tokens: list[str | None] = [None] * (limit if n_entries else 0)
    highest = -1
    for token, number in [*vocab, *((entry["content"], number) for number, entry in added.items())]:
        number = read_id(number, f"{at}: token {token!r:.40}")
        if number >= limit:
            raise TokenizerError(f"{at}: token {token!r:.40}: expected an id below {limit}, got {number}")
        if tokens[number] not in (None, token):
            raise TokenizerError(f"{at}: id {number} stands for {tokens[number]!r:.40} and for {token!r:.40}")
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenizerError(f"{at}: id {number}: expected at most {MAX_TOKEN_CHARACTERS} characters")
        tokens[number] = token
        highest = max(highest, number)
    if highest < 0:
        raise TokenizerError(f"{at}: expected at least one token, found none")
    known = dict(vocab)
    for number, entry in added.items():
        if known.get(entry["content"], number) != number:
            raise TokenizerError(f"{at}: {entry['content']!r:.40} has id {number} and {known[entry['content']]!r:.20}")
    return tuple(tokens[: highest + 1])


def completed(file: TokenizerFile, config: dict[str, Any]) -> TokenizerFile:
    """The file with the added tokens that tokenizer_config.json lists and it lacks, as `transformers` has them. Those
    whose id or text stands for something else are left out. Raises TokenizerError as `parse` does."""
    listed = config.get("added_tokens_decoder")
    ids = {token: number for number, token in enumerate(file.tokens) if token is not None}
    more: dict[str, dict[str, Any]] = {}
    for key, entry in listed.items() if isinstance(listed, dict) else ():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or content in more or not key.isdecimal() or len(key) > 9:
            continue
        number = int(key)
        free = number >= len(file.tokens) or file.tokens[number] in (None, content)
        if number not in file.added and free and ids.get(content, number) == number:
            special = entry.get("special") is True
            flags = {flag: entry.get(flag) is True for flag in FLAGS} | {"special": special}
            flags["normalized"] = entry.get("normalized", not special) is True
            more[content] = {"id": number, "content": content, **flags}
    if not more:
        return file
    entries = [*(file.tree.get("added_tokens") or []), *more.values()]
    added = read_added(entries, CONFIG)
    tokens = place_tokens(vocab_of(file.tree["model"], CONFIG), added, CONFIG)
    return TokenizerFile(file.text, {**file.tree, "added_tokens": entries}, file.kind, tokens, added)


def read_id(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TokenizerError(f"{where}: expected an id of 0 or more, got {describe(value)}")
    return value


def check_normalizer(normalizer: Any, at: str) -> None:
    """Raises TokenizerError for an unknown normalizer, or a chain that could blow a text up."""
    check_steps(normalizer, "normalizers", at)
    growth = 1.0
    for step in walk(normalizer):
        name = step.get("type")
        if name not in NORMALIZERS:
            raise TokenizerError(f"{at}: normalizer: {describe(name)} is not supported")
        if name == "Prepend" and len(str(step.get("prepend"))) > MAX_PREPENDED:
            raise TokenizerError(f"{at}: normalizer: expected at most {MAX_PREPENDED} characters to prepend")
        if name == "Replace":
            if step.get("pattern") in ({"String": ""}, {"Regex": ""}):
                raise TokenizerError(f"{at}: normalizer: expected something to replace, got an empty pattern; refused")
            growth *= growth_of(step.get("pattern"), len(str(step.get("content"))))
        if name == "Precompiled":
            charsmap.parts_of(charsmap_of([step]), f"{at}: normalizer")
    if growth > MAX_GROWTH:
        raise TokenizerError(f"{at}: normalizer: could make a text more than {MAX_GROWTH} times longer; refused")


def check_decoder(decoder: Any, kind: str, at: str) -> None:
    """Raises TokenizerError for a decoder that does something else than `token_bytes` for this kind. Byte-level BPE is
    always decoded by its bytes, also where the file has no decoder."""
    check_steps(decoder, "decoders", at)
    steps = [step for step in walk(decoder) if step.get("type") != "Sequence"]
    if not steps and kind in ("sentencepiece-bpe", "unigram"):
        raise TokenizerError(
            f"{at}: decoder: expected one of {', '.join(DECODERS[kind])}, found none; words would run apart into pieces"
        )
    for step in steps:
        name = step.get("type")
        usual = {
            "Replace": step.get("pattern") == {"String": MARK} and step.get("content") == " ",
            "Metaspace": step.get("replacement", MARK) == MARK,
            "Strip": step.get("content") == " " and step.get("start") in (0, 1) and not step.get("stop"),
        }
        if name not in DECODERS[kind] or not usual.get(str(name), True):
            known = ", ".join(DECODERS[kind]) or "none"
            raise TokenizerError(
                f"{at}: decoder: {describe(name)} as it stands is not supported for {kind}, of which are: {known}"
            )


def growth_of(found: Any, n_characters: int) -> float:
    """Most times longer a Replace can make a text; an empty pattern or a regular expression may match everywhere."""
    literal = found.get("String") if isinstance(found, dict) else None
    return max(1.0, n_characters / len(literal)) if isinstance(literal, str) and literal else 1.0 + n_characters


def check_steps(step: Any, key: str, at: str) -> None:
    if step is not None and not isinstance(step, dict):
        raise TokenizerError(f"{at}: {key}: expected an object, got {describe(step)}")
    found = walk(step)
    if len(found) > MAX_STEPS:
        raise TokenizerError(f"{at}: {key}: expected at most {MAX_STEPS} steps, got {len(found)}")


def walk(step: Any, depth: int = 0) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder with the steps of its sequences, nested ones included."""
    if not isinstance(step, dict):
        return []
    if depth > MAX_STEPS:
        raise TokenizerError(f"tokenizer.json: expected steps nested at most {MAX_STEPS} deep; refused")
    found = [step]
    for key in ("normalizers", "pretokenizers", "decoders"):
        inner = step.get(key)
        if isinstance(inner, list):
            for item in inner[: MAX_STEPS + 1]:
                found += walk(item, depth + 1)
    return found


def regexes(tree: dict[str, Any]) -> list[str]:
    """Every regular expression of the file's normalizer and pre-tokenizer."""
    steps = walk(tree.get("normalizer")) + walk(tree.get("pre_tokenizer"))
    found = [step["pattern"].get("Regex") for step in steps if isinstance(step.get("pattern"), dict)]
    return [regex for regex in found if isinstance(regex, str)]


def read_object(path: Path) -> dict[str, Any]:
    """A small JSON object beside tokenizer.json; {} if there is no such file."""
    if not path.is_file():
        return {}
    if path.stat().st_size > 16 << 20:
        raise TokenizerError(f"{path}: expected at most 16 MiB of JSON, got {path.stat().st_size} bytes")
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: can't be read as UTF-8 text ({error.__class__.__name__})") from None


def read_template(path: Path, inside: Any) -> str | None:
    """The chat template: its own file, else the configuration's (a text, or the older list of named ones). Raises
    TokenizerError for a file beyond a mebibyte: to go on with another template would be worse."""
    if path.is_file():
        if path.stat().st_size > 1 << 20:
            raise TokenizerError(f"{path}: expected at most 1 MiB, got {path.stat().st_size} bytes; replace it")
        return path.read_text(encoding="utf-8", errors="replace")
    if isinstance(inside, list):
        named = {str(item.get("name")): item.get("template") for item in inside if isinstance(item, dict)}
        inside = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
    return inside.encode("utf-8", "replace").decode() if isinstance(inside, str) else None
