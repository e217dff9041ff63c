"""`Constrainer`: from a constraint to an automaton that says, token by token, what an answer may go on with.

The automata are llguidance's (Earley parsing over a lexer of regex derivatives); no other file knows the library. They
see a token as its bytes, so one table serves every kind of tokenizer, and they allow every token whose bytes some whole
answer could go on with: the model's own distribution, restricted, not one way of spelling it.

V entries of the vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fledge.engine.constraint import MAX_SOURCE_BYTES, Constraint
from fledge.engine.trial import serve, shared_trials
from fledge.errors import EngineError, RequestError

if TYPE_CHECKING:
    from fledge.engine.request import Request
    from fledge.text.tokenizer import Tokenizer

MAX_COMPILED = 64
MAX_COMPILED_BYTES = 4 * MAX_SOURCE_BYTES  # of sources: an automaton holds up to some 250 times its text
OPTIONS = '%llguidance {"no_forcing": true}\n'  # else one spelling of what must come next is forced on the model
WHITESPACE = "( |\\n {0,24})"  # between the parts of JSON, if any: without a bound a model may write it for ever
LIMITS: dict[str, Any] = {  # of one step: about 15 ms of lexing, 35 ms of parsing, 40 MB of states
    "step_lexer_fuel": 200_000,
    "step_max_items": 10_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
TRIAL_STEPS = 64
EIGHT_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
PENALTIES = np.where(EIGHT_BITS, np.float32(0), np.float32(-np.inf))  # [256, 8], by a byte of a mask
REASON_CHARACTERS = 200


class Automaton:
    """One answer's place in its constraint. `allowed` [V]: the tokens that may come next, stop tokens left out;
    `accepting`: whether the answer may end here."""

    def __init__(self, matcher: Any, vocab_size: int, name: str, allowed: np.ndarray | None = None):
        self.matcher, self.vocab_size, self.name = matcher, vocab_size, name
        self.allowed = self.read() if allowed is None else allowed
        self.accepting = bool(matcher.is_accepting())

    def copy(self, name: str) -> Automaton:
        """The same place, to go on from independently; `name` is what its caller calls the constraint."""
        return Automaton(self.matcher.deep_copy(), self.vocab_size, name, self.allowed)

    @property
    def penalty(self) -> np.ndarray:
        """float32 [V]: what to add to logits, 0 or minus infinity. By bytes of the mask: element by element takes four
        times as long."""
        return PENALTIES.take(np.packbits(self.allowed, bitorder="little"), axis=0).ravel()[: self.vocab_size]

    @property
    def ended(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return self.accepting and not self.allowed.any()

    def accept(self, token: int) -> None:
        """Go on by a token that `allowed` has. Raises EngineError when the step is too costly, or when no token of this
        vocabulary goes on from here and the answer is not whole."""
        if not self.matcher.consume_token(token):
            raise self.failure()
        self.allowed = self.read()
        self.accepting = bool(self.matcher.is_accepting())
        if not self.accepting and not self.allowed.any():
            raise EngineError(f"{self.name}: no token of this model's vocabulary goes on from here")

    def read(self) -> np.ndarray:
        mask = self.matcher.compute_bitmask()
        if self.matcher.is_error():
            if not no_token(self.matcher):
                raise self.failure()
            return np.zeros(self.vocab_size, bool)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=self.vocab_size, bitorder="little")
        return bits.view(bool)

    def failure(self) -> EngineError:
        return EngineError(f"{self.name}: the automaton gave up: {reason(self.matcher.get_error())}")


class Constrainer:
    """Automata over one tokenizer's first `vocab_size` ids. Compiled ones are kept, the least used go first.

    Tokens are ordered as the model has them; special tokens, and those without bytes, are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.compiled: OrderedDict[Constraint, Automaton] = OrderedDict()
        self.lock = threading.Lock()  # a process prepares in a thread what its engine uses

    def has(self, constraint: Constraint) -> bool:
        """Whether `automaton` would answer at once."""
        with self.lock:
            return constraint in self.compiled

    def automaton(self, constraint: Constraint) -> Automaton:
        """The automaton at its beginning. Raises RequestError: malformed, unsupported, too large or too costly."""
        with self.lock:
            found = self.compiled.get(constraint)
            if found is not None:
                self.compiled.move_to_end(constraint)
                return found.copy(constraint.name)
        made = self.compile(constraint)
        with self.lock:
            self.compiled[constraint] = made
            while len(self.compiled) > MAX_COMPILED or self.source_bytes > MAX_COMPILED_BYTES:
                self.compiled.popitem(last=False)
        return made.copy(constraint.name)

    def automata(self, request: Request) -> list[Automaton | None]:
        """One for each choice of `request`; None when it has no constraint. Raises RequestError."""
        constraint, n = request.sampling.constraint, request.sampling.n
        if constraint is None:
            return [None] * n
        pieces = self.tokenizer.pieces
        at_start = pieces.drops_first_space and not any(self.tokenizer.token_bytes(i) for i in request.prompt_ids)
        automata: list[Automaton | None] = []
        for _ in range(n):
            automaton = self.automaton(constraint)
            if at_start:
                automaton.allowed = automaton.allowed & ~self.changed_at_start
            automata.append(automaton)
        return automata

    @property
    def source_bytes(self) -> int:
        return sum(len(text) for constraint in self.compiled for text in constraint.texts)

    def compile(self, constraint: Constraint) -> Automaton:
        library(constraint.name)
        grammar = grammar_of(constraint.validated())
        problem = shared_trials().problem(grammar)
        if problem is None:
            matcher = match(self.table, grammar)
            problem = matcher.get_error()
        if problem:
            raise RequestError(f"{constraint.name}: can't be used: {reason(problem)}", constraint.name)
        try:
            automaton = Automaton(matcher, self.vocab_size, constraint.name)
        except EngineError as error:
            raise RequestError(str(error), constraint.name) from None
        if not automaton.allowed.any():
            raise RequestError(
                f"{constraint.name}: expected something that this model's tokens can spell, got nothing they can begin",
                constraint.name,
            )
        return automaton

    @cached_property
    def table(self) -> Any:
        """The library's view of the tokens, with an id behind the last for the end, which it needs and we don't."""
        usable = (not self.tokenizer.is_special(token) for token in range(self.vocab_size))
        pieces = [self.tokenizer.token_bytes(i) if use else b"" for i, use in enumerate(usable)]
        return table_of(pieces)

    @cached_property
    def changed_at_start(self) -> np.ndarray:
        """bool [V]: tokens that lose a space, or look otherwise different, when they are the first of a text."""
        pieces = self.tokenizer.pieces
        table = [self.tokenizer.token_bytes(token) for token in range(self.vocab_size)]
        return np.array([pieces.at_start(token, data)[0] != data for token, data in enumerate(table)])


class TokenTable:
    """What llguidance asks of a tokenizer. It never has to split text, since nothing is forced."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, pieces: list[bytes]):
        self.tokens = [*pieces, b"<end>"]
        self.eos_token_id = len(pieces)
        self.special_token_ids = [len(pieces)]

    def __call__(self, text: object) -> list[int]:
        return []


def table_of(pieces: list[bytes]) -> Any:
    from llguidance import LLTokenizer

    table: Any = TokenTable(pieces)
    return LLTokenizer(table, n_vocab=len(pieces) + 1)


def library(name: str) -> None:
    """Raises RequestError when the library is missing: a server without it can't serve such a request."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise RequestError(
            f"{name}: expected the package llguidance, found none; pip install 'fledge[structured]'",
            name,
            "unsupported_parameter",
        ) from None


def match(table: Any, grammar: str) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(table, grammar, log_level=0, limits=LLParserLimits(**LIMITS))


def grammar_of(constraint: Constraint) -> str:
    """The constraint in llguidance's dialect of Lark."""
    if constraint.kind == "choice":
        return f"{OPTIONS}start: /{'|'.join(map(quoted, constraint.source))}/\n"
    source = str(constraint.source)
    if constraint.kind == "grammar":
        return OPTIONS + source
    if constraint.kind == "regex":
        from llguidance import regex_to_lark

        # \d and \w are ASCII's, as in JSON Schema: of Unicode's digits no two libraries know the same
        return f"{OPTIONS}start: /{regex_to_lark(source, 'dw')}/\n".replace("\r", "\\r")
    schema = {"type": "object"} if constraint.kind == "json_object" else json.loads(source)
    if schema is not False:
        schema = {**({} if schema is True else schema), "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return f"{OPTIONS}start: %json {json.dumps(schema)}\n"


def quoted(text: str) -> str:
    """A regex that matches this text alone."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def reason(message: str) -> str:
    """What the library says, in one line."""
    words = " ".join(message.replace("<non-verbose/>", "").split())
    return words if len(words) <= REASON_CHARACTERS else words[: REASON_CHARACTERS - 1] + "…"


def main() -> None:
    """The child of fledge/engine/trial.py."""
    table = table_of([bytes([byte]) for byte in range(256)])
    serve(lambda grammar: examine(table, grammar))


def examine(table: Any, grammar: str) -> str:
    """ "" or why not: compile over single bytes and take some steps, each by another of the bytes that are allowed."""
    matcher = match(table, grammar)
    for step in range(TRIAL_STEPS):
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        bytes_allowed = np.flatnonzero(np.unpackbits(mask, count=256, bitorder="little"))
        if matcher.is_error() or not len(bytes_allowed):
            break
        matcher.consume_token(int(bytes_allowed[step * 7919 % len(bytes_allowed)]))
    return "" if no_token(matcher) else matcher.get_error()


def no_token(matcher: Any) -> bool:
    """Whether the library's error is a mask without a single token."""
    return "NoExtensionBias" in matcher.get_error()
