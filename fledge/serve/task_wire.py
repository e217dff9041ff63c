"""What a request for filled masks, tags, answers in texts or a choice asks for, in the words of Hugging Face's
inference API: `inputs` and `parameters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fledge.errors import RequestError
from fledge.serve.entities import STRATEGIES, Strategy
from fledge.serve.fields import Fields, count_unknown, words, wrong
from fledge.serve.truncation import TRUNCATION_FIELDS, read_long_input
from fledge.serve.vector_wire import MAX_INPUTS, refuse_unframed
from fledge.serve.wire import too_many

QUESTION_FIELDS = words("model inputs parameters options user add_special_tokens")
TEXT_FIELDS = TRUNCATION_FIELDS | QUESTION_FIELDS
MAX_TOP_K = 1000
MAX_ANSWER_TOKENS = 1000
MAX_DELIMITER = 64


@dataclass(frozen=True)
class FillCall:
    """`single`: one text was sent by itself, and its answer goes out by itself."""

    model: str | None
    texts: tuple[str, ...]
    single: bool
    long_input: dict[str, Any]
    top_k: int = 5


@dataclass(frozen=True)
class TagCall:
    """Texts, or sentences as words that stand apart by `delimiter` (`words`; then `texts` is empty)."""

    model: str | None
    texts: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    single: bool
    long_input: dict[str, Any]
    strategy: Strategy = "none"
    ignored: frozenset[str] = frozenset({"O"})
    delimiter: str = " "


@dataclass(frozen=True)
class QuestionCall:
    """(question, context) pairs. `longest`: an answer's tokens at most; `stride`: tokens that neighbouring windows of a
    long context share; `or_none`: an answer may be "" where the model says that there is none."""

    model: str | None
    questions: tuple[tuple[str, str], ...]
    single: bool
    longest: int = 30
    stride: int = 128
    or_none: bool = False


@dataclass(frozen=True)
class ChoiceCall:
    """(question, choices) pairs."""

    model: str | None
    questions: tuple[tuple[str, tuple[str, ...]], ...]
    single: bool
    long_input: dict[str, Any]


def read_fill(tree: dict[str, Any]) -> FillCall:
    """The body of /fill-mask. Raises RequestError naming the field."""
    fields = Fields(tree)
    more = read_parameters(fields, "top_k", TRUNCATION_FIELDS)
    top_k = more.integer("top_k", 5) or 0
    if not 1 <= top_k <= MAX_TOP_K:
        raise wrong("top_k", f"1..{MAX_TOP_K}", top_k)
    texts, single = read_texts(tree.get("inputs"))
    return FillCall(fields.text("model"), texts, single, read_long_input(fields), top_k)


def read_tags(tree: dict[str, Any]) -> TagCall:
    """The body of /token-classification. Raises RequestError naming the field."""
    fields = Fields(tree)
    known = "aggregation_strategy ignore_labels is_split_into_words delimiter"
    more = read_parameters(fields, known, TRUNCATION_FIELDS)
    strategy = more.text("aggregation_strategy", "none")
    if strategy not in STRATEGIES:
        raise wrong("aggregation_strategy", "one of " + ", ".join(STRATEGIES), strategy)
    given = more.array("ignore_labels") if more.has("ignore_labels") else ["O"]
    if len(given) > MAX_INPUTS:
        raise too_many("ignore_labels", f"{MAX_INPUTS} labels", given)
    for i, name in enumerate(given):
        if not isinstance(name, str):
            raise wrong(f"ignore_labels[{i}]", "a label", name)
    shared: dict[str, Any] = {
        "model": fields.text("model"), "long_input": read_long_input(fields), "strategy": strategy,
        "ignored": frozenset(given),
    }  # fmt: skip
    delimiter, split = more.text("delimiter", " "), more.flag("is_split_into_words")
    if not split:
        if more.has("delimiter"):
            raise RequestError("delimiter: expected is_split_into_words to be true beside it", "delimiter")
        texts, single = read_texts(tree.get("inputs"))
        return TagCall(texts=texts, words=(), single=single, **shared)
    if len(delimiter or "") > MAX_DELIMITER:  # it is written out between all words
        raise wrong("delimiter", f"at most {MAX_DELIMITER} characters", len(delimiter or ""))
    sentences, single = read_words(tree.get("inputs"))
    return TagCall(texts=(), words=sentences, single=single, delimiter=delimiter or "", **shared)


def read_questions(tree: dict[str, Any]) -> QuestionCall:
    """The body of /question-answering. Raises RequestError naming the field."""
    fields = Fields(tree)
    more = read_parameters(fields, "max_answer_len doc_stride handle_impossible_answer")
    longest, stride = more.integer("max_answer_len", 30) or 0, more.integer("doc_stride", 128)
    if not 1 <= longest <= MAX_ANSWER_TOKENS:
        raise wrong("max_answer_len", f"1..{MAX_ANSWER_TOKENS}", longest)
    if stride is None or stride < 0:
        raise wrong("doc_stride", "at least 0", stride)
    given = tree.get("inputs")
    items, single = (given, False) if isinstance(given, list) else ([given], True)
    check_some(items)
    questions = tuple(read_question("inputs" if single else f"inputs[{i}]", item) for i, item in enumerate(items))
    or_none = more.flag("handle_impossible_answer")
    return QuestionCall(fields.text("model"), questions, single, longest, stride, or_none)


def read_choices(tree: dict[str, Any]) -> ChoiceCall:
    """The body of /multiple-choice. Raises RequestError naming the field."""
    fields = Fields(tree)
    read_parameters(fields, "", TRUNCATION_FIELDS)
    given = tree.get("inputs")
    items, single = (given, False) if isinstance(given, list) else ([given], True)
    check_some(items)
    found = tuple(read_choice("inputs" if single else f"inputs[{i}]", item) for i, item in enumerate(items))
    n_rows = sum(len(choices) for _, choices in found)
    if n_rows > MAX_INPUTS:
        message = f"inputs: expected at most {MAX_INPUTS} choices in all, got {n_rows}; send several requests"
        raise RequestError(message, "inputs")
    return ChoiceCall(fields.text("model"), found, single, read_long_input(fields))


def read_parameters(fields: Fields, known: str, beside: frozenset[str] = frozenset()) -> Fields:
    """The fields of `parameters`, which has `known`; `beside` are those that stand beside it. Whatever else is there
    would change the answer, and nothing here obeys it; nor is one of them read in the other's place."""
    fields.text("user")
    refuse_unframed(fields)
    fields.mapping("options")  # of a cache and of waiting, which this server does in its own way
    more = Fields(fields.mapping("parameters"))
    for name in words(known):
        if fields.has(name):
            raise RequestError(f"{name}: expected inside of parameters, got it beside them; move it", name)
    given = [name for name in more.tree if more.has(name)]
    for name in given:
        if name in beside:
            raise RequestError(f"{name}: expected beside parameters, got it inside of them; move it", name)
    count_unknown(more.tree, words(known))
    for name in given:
        if name not in words(known):
            shown = name[:64]
            raise RequestError(f"{shown}: not supported by this server; leave it out", shown, "unsupported_parameter")
    return more


def read_texts(given: Any) -> tuple[tuple[str, ...], bool]:
    """A text or a list of texts, none of them empty, and whether it was one by itself."""
    items, single = ([given], True) if isinstance(given, str) else (given, False)
    if not isinstance(items, list):
        raise wrong("inputs", "a string or an array of strings", given)
    check_some(items)
    for i, item in enumerate(items):
        if not isinstance(item, str) or not item:
            raise wrong("inputs" if single else f"inputs[{i}]", "a string that is not empty", item)
    return tuple(items), single


def read_words(given: Any) -> tuple[tuple[tuple[str, ...], ...], bool]:
    """A sentence as a list of words, or a list of sentences, and whether it was one by itself."""
    if not isinstance(given, list):
        raise wrong("inputs", "an array of words, or of arrays of words", given)
    single = bool(given) and isinstance(given[0], str)
    sentences = [given] if single else given
    check_some(sentences)
    for i, sentence in enumerate(sentences):
        place = "inputs" if single else f"inputs[{i}]"
        if not isinstance(sentence, list):
            raise wrong(place, "an array of words", sentence)
        if not sentence:
            raise RequestError(f"{place}: expected at least one word, got an empty array", "inputs")
        for j, word in enumerate(sentence):
            if not isinstance(word, str):
                raise wrong(f"{place}[{j}]", "a word", word)
    return tuple(map(tuple, sentences)), single


def read_question(place: str, item: Any) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise wrong(place, "an object with question and context", item)
    for name in ("question", "context"):
        if not isinstance(item.get(name), str) or not item[name].strip():
            raise wrong(f"{place}.{name}", "a string that is not empty", item.get(name))
    return item["question"], item["context"]


def read_choice(place: str, item: Any) -> tuple[str, tuple[str, ...]]:
    if not isinstance(item, dict):
        raise wrong(place, "an object with question and choices", item)
    question, choices = item.get("question"), item.get("choices")
    if not isinstance(question, str) or not question.strip():
        raise wrong(f"{place}.question", "a string that is not empty", question)
    if not isinstance(choices, list):
        raise wrong(f"{place}.choices", "an array of strings", choices)
    if len(choices) < 2:
        raise RequestError(f"{place}.choices: expected at least two, got {len(choices)}", "inputs")
    for j, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise wrong(f"{place}.choices[{j}]", "a string that is not empty", choice)
    return question, tuple(choices)


def check_some(items: list[Any]) -> None:
    if not items:
        raise RequestError("inputs: expected at least one input, got an empty array", "inputs")
    if len(items) > MAX_INPUTS:
        raise too_many("inputs", f"{MAX_INPUTS} inputs", items)
