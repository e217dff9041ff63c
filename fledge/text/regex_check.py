"""Whether a regular expression of a tokenizer file takes linear time, told from its shape and by trying it.

The engine (Oniguruma, inside `tokenizers`) backtracks and can't be interrupted, so a hostile expression has to be found
before any text meets it. Two steps. By its shape: what repeats is one character or class, never a group, and nothing
looks back at what a group held. That leaves polynomial time, which shows when a short text repeats: `pumps` are the
characters and the short texts that the expression's parts match, and each is tried at growing lengths, so that a slow
one is noticed while it is still quick.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from fledge.errors import TokenizerError
from fledge.text.gguf_patterns import LINEAR
from fledge.text.pattern import KNOWN

MAX_CHARACTERS = 4096
MAX_LOOPS = 4  # without a bound, one after the other in an alternative; published patterns have two
MAX_COUNT = 255  # of {n,m} over one character
MAX_GROUP_COUNT = 3
MAX_PUMPS = 96
LENGTHS = (20, 80, 320, 1280, 5120, 20_480)
SLOWER = (
    12.0  # times the ordinary text of that length; linear patterns are below 3, quadratic ones beyond 40 at the end
)
SLACK_SECONDS = 0.003
ORDINARY = "The quick brown fox, 42 years old, jumps over 7 lazy dogs.\n"

GROUP = re.compile(r"\(\?(?:[imsx-]*:|<?[=!]|>|<[A-Za-z_]\w*>)")
FLAGS = re.compile(r"\(\?[imsx-]*\)")
COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")
ESCAPE = re.compile(
    r"\\(?:x\{(?P<wide>[0-9A-Fa-f]{1,8})\}|x(?P<hex>[0-9A-Fa-f]{1,2})|u(?P<four>[0-9A-Fa-f]{4})|0(?P<octal>[0-7]{0,2})"
    r"|[pP]\{[^}]*\}|.)",
    re.DOTALL,
)
ANCHORS = frozenset("bBAzZG")
CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}
# Characters that stand for classes: all of ASCII and one of each 32 others, and those an expression spells itself.
PALETTE = "".join(map(chr, range(128))) + "".join(
    chr(code) for code in (*range(0xA5, 0xD800, 32), *range(0xE005, 0x20000, 128)) if chr(code).isprintable()
)


def refuse_slow(regexes: Iterable[str], encode: Callable[[str], Any]) -> None:
    """Raises TokenizerError unless each expression takes linear time. `encode` takes a text through them all. Those
    that are published and known to be linear are not tried: a slow machine would then refuse good files."""
    regexes = [regex for regex in regexes if regex not in KNOWN and regex not in LINEAR]
    pumps: dict[str, None] = dict.fromkeys("aA1 !\n\u4e2d" if regexes else "")
    for regex in regexes:
        if len(regex) > MAX_CHARACTERS:
            raise TokenizerError(
                f"tokenizer.json: expected regular expressions of at most {MAX_CHARACTERS} characters; refused"
            )
        pumps |= dict.fromkeys(pumps_of(regex))
    ending = "\0" + "".join(
        pump for pump in pumps if len(pump) == 1
    )  # so the engine can't rule a match out at a glance
    for pump in list(pumps)[:MAX_PUMPS]:
        try_out(pump, ending, encode)


def try_out(pump: str, ending: str, encode: Callable[[str], Any]) -> None:
    """Raises TokenizerError if the repeated `pump` takes far longer than ordinary text, at the first length it does."""
    for length in LENGTHS:
        ordinary = (ORDINARY * (length // len(ORDINARY) + 1))[:length] + ending
        text = (pump * (length // len(pump) + 1))[:length] + ending
        bound = SLOWER * seconds_of(encode, ordinary) + SLACK_SECONDS
        if (
            seconds_of(encode, text) > bound and seconds_of(encode, text) > bound
        ):  # twice, as a machine may stumble once
            raise TokenizerError(
                f"tokenizer.json: a regular expression takes too long on a run of {pump!r} (catastrophic); refused"
            )


def seconds_of(encode: Callable[[str], Any], text: str) -> float:
    began = time.thread_time()
    encode(text)
    return time.thread_time() - began


def pumps_of(regex: str) -> list[str]:
    """Texts that may keep the expression busy when they repeat. Raises TokenizerError for a shape that is refused."""
    reader = Reader(regex)
    reader.alternatives(0)
    if reader.at < len(regex):
        reader.refuse("a parenthesis that nothing opens")
    palette = "".join(dict.fromkeys(reader.spelled)) + PALETTE
    samples = {atom: matched_by(atom, palette) for branch in reader.branches for atom in branch}
    found = [character for characters in samples.values() for character in characters]
    for branch in reader.branches:
        text = "".join(samples[atom][0] for atom in branch if samples[atom])
        for width in (2, 3, 4):
            found += [text[start : start + width] for start in range(len(text) - width + 1)]
    return list(dict.fromkeys(sorted(found, key=len)))


def matched_by(atom: str, palette: str) -> list[str]:
    """Up to two characters of the palette that an atom matches: the first, and the first beyond ASCII."""
    try:
        split = pre_tokenizers.Split(tokenizers.Regex(atom), "removed", invert=True)
        found = "".join(piece for piece, _ in split.pre_tokenize_str(palette))
    except Exception as error:
        raise TokenizerError(f"tokenizer.json: a regular expression is wrong ({str(error)[:80]})") from None
    return list(dict.fromkeys([*found[:1], *[character for character in found if not character.isascii()][:1]]))


@dataclass
class Reader:
    """Goes through an expression once; `branches` are its alternatives, each with the atoms that it matches in order,
    `spelled` the characters that stand in it."""

    regex: str
    at: int = 0
    branches: list[list[str]] = field(default_factory=list)
    spelled: list[str] = field(default_factory=list)

    def refuse(self, what: str) -> None:
        raise TokenizerError(
            f"tokenizer.json: regular expression {self.regex[:40]!r}: expected one in linear time, got {what} (may be "
            "catastrophic); refused"
        )

    def alternatives(self, depth: int, looks: bool = False) -> list[str]:
        """Read up to the end of a group; gives the atoms of its first alternative. `looks`: within a look-around."""
        if depth > 16:
            self.refuse("groups nested more than 16 deep")
        first: list[str] | None = None
        branch: list[str] = []
        loops = 0
        while self.at < len(self.regex) and self.regex[self.at] != ")":
            if self.regex[self.at] == "|":
                self.at += 1
                first = branch if first is None else first
                self.branches.append(branch)
                branch, loops = [], 0
                continue
            atoms, group = self.item(depth, looks)
            if self.repeats(group):
                loops += 1
                if looks or loops > MAX_LOOPS:
                    self.refuse("a loop within a look-around" if looks else f"more than {MAX_LOOPS} loops in a row")
            branch += atoms
        self.branches.append(branch)
        return branch if first is None else first

    def item(self, depth: int, looks: bool) -> tuple[list[str], bool]:
        """The atoms of what stands next, and whether it is a group."""
        character = self.regex[self.at]
        if character == "(":
            return self.group(depth, looks), True
        if character == "[":
            return [self.bracket()], False
        if character == "\\":
            return self.escape(), False
        self.at += 1
        if character in "^$":
            return [], False
        self.spelled.append(character)
        return [character if character == "." else re.escape(character)], False

    def group(self, depth: int, looks: bool) -> list[str]:
        flags = FLAGS.match(self.regex, self.at)
        if flags:
            self.at = flags.end()
            return []
        opening = GROUP.match(self.regex, self.at)
        if opening is None and self.regex.startswith("(?", self.at):
            self.refuse(f"a group {self.regex[self.at : self.at + 4]!r}")
        ahead = opening is not None and opening[0].rstrip("=!") != opening[0]
        self.at = self.at + 1 if opening is None else opening.end()
        atoms = self.alternatives(depth + 1, looks or ahead)
        if self.at >= len(self.regex):
            self.refuse("a group without its end")
        self.at += 1
        return atoms

    def bracket(self) -> str:
        """A class, with those inside it."""
        start, depth = self.at, 0
        while self.at < len(self.regex):
            character = self.regex[self.at]
            if character == "\\":
                self.escape()
                continue
            depth += (character == "[") - (character == "]")
            self.spelled.append(character)
            self.at += 1
            first = self.at - start == 2 or self.at - start == 3 and self.regex[start + 1] == "^"
            if character == "]" and first:  # a bracket that stands first is one of the class
                depth += 1
            if depth == 0:
                return self.regex[start : self.at]
        self.refuse("a class without its end")
        return ""

    def escape(self) -> list[str]:
        found = ESCAPE.match(self.regex, self.at)
        if found is None:
            self.refuse("a backslash at its end")
            return []
        self.at = found.end()
        kind = found[0][1]
        if kind in "123456789kg":
            self.refuse(f"a look back at a group ({found[0]})")
        if kind in ANCHORS:
            return []
        digits = found["wide"] or found["hex"] or found["four"]
        code = int(digits, 16) if digits else int(found["octal"] or "0", 8) if kind == "0" else -1
        if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000:
            self.spelled.append(chr(code))
        elif not kind.isalnum() or kind in CONTROLS:
            self.spelled.append(CONTROLS.get(kind, kind))
        return [found[0]]

    def repeats(self, group: bool) -> bool:
        """Read the quantifiers that follow; whether one has no bound. Refuses those that may take more than polynomial
        time."""
        unbounded = False
        n_read = 0
        while self.at < len(self.regex):
            counted = COUNT.match(self.regex, self.at)
            if counted and (counted[1] or counted[3]):
                low = int(counted[1] or 0) if len(counted[1]) < 7 else 1 << 20
                high = low if not counted[2] else int(counted[3]) if 0 < len(counted[3]) < 7 else 1 << 20
                unbounded |= bool(counted[2] and not counted[3])
                limit = MAX_GROUP_COUNT if group else MAX_COUNT
                if max(low, high) > limit and (group or not unbounded or low > limit):
                    self.refuse(f"{counted[0]} times a {'group' if group else 'character'}")
                self.at = counted.end()
            elif self.regex[self.at] in "*+?":
                loop = self.regex[self.at] != "?" and n_read == 0
                if loop and group:
                    self.refuse("a group that repeats")
                unbounded |= loop
                self.at += 1
            else:
                break
            n_read += 1
            if n_read > 2:
                self.refuse("more than two quantifiers in a row")
        return unbounded
