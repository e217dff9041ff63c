"""Texts with masks, texts to tag and questions as rows of token ids, laid out as in training. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fledge.data.task_framing import LEAST_CONTEXT, Reader, Window, laid_words, len_before, spaced, windows
from fledge.data.task_rows import SpanExample
from fledge.errors import RequestError
from fledge.serve.entities import TagRow
from fledge.serve.service import Service
from fledge.serve.task_wire import FillCall, QuestionCall, TagCall
from fledge.serve.vector_rows import Rows, check_total, cut_policy, fitted, in_thread

MAX_SEQUENCE_TOKENS = 1_000_000  # of all texts that fill-mask writes, one for each guess


@dataclass(frozen=True)
class TagRows(Rows):
    """`tags`: the texts and tokens of the rows."""

    tags: tuple[TagRow, ...] = ()


@dataclass(frozen=True)
class QuestionRows(Rows):
    """`windows`: of the rows, whose `example` is the number of their question."""

    windows: tuple[Window, ...] = ()


def place_of(single: bool, number: int) -> str:
    return "inputs" if single else f"inputs[{number}]"


async def lay_masks(service: Service, call: FillCall) -> Rows:
    """Text that spells a special token is that token here, as a mask is spelled. Raises RequestError for a text that is
    too long, or without a mask, and for more guesses than one request may have."""
    tokenizer, policy = service.model.tokenizer, cut_policy(service, call.long_input)
    mask = tokenizer.special["mask"]
    for text in call.texts:
        service.refuse_hopeless(len(text), "inputs")
    encoded = await in_thread(
        call.texts, lambda: [tokenizer.encode(text, parse_special=True) for text in call.texts], "inputs"
    )
    rows, n_cut, n_written = [], [], 0
    for number, ids in enumerate(encoded):
        place = place_of(call.single, number)
        row, lost = fitted(service, ids, policy, place, True)
        if mask not in row:
            cut_off = f" in what is kept, found it in the {lost} tokens that were cut off; see truncation_side"
            found = cut_off if mask in ids else " in the text, found none"
            raise RequestError(f"{place}: expected {tokenizer.token_of(mask)}{found}", "inputs")
        n_written += row.count(mask) * call.top_k * len(row)
        rows.append(row)
        n_cut.append(lost)
    check_total(service, sum(map(len, rows)), "inputs")
    if n_written > MAX_SEQUENCE_TOKENS:
        message = f"top_k: expected sequences of at most {MAX_SEQUENCE_TOKENS} tokens in all, got {n_written}"
        raise RequestError(f"{message}; ask for fewer guesses, or send several requests", "top_k")
    return Rows(tuple(rows), tuple(n_cut), top_k=call.top_k)


async def lay_tags(service: Service, call: TagCall) -> TagRows:
    """Raises RequestError for a sentence that is too long, ApiError 400 where a tokenizer can't tell what its tokens
    stand for."""
    for text in call.texts:
        service.refuse_hopeless(len(text), "inputs")
    if call.texts:
        found = await in_thread(call.texts, lambda: laid_texts(service, call), "inputs")
    else:
        letters = [word for sentence in call.words for word in sentence]
        service.refuse_hopeless(sum(map(len, letters)) // len(call.words), "inputs")
        found = await in_thread(letters, lambda: laid_sentences(service, call), "inputs")
    rows = TagRows(tuple(row for row, _, _ in found), tuple(lost for _, lost, _ in found),
                   tags=tuple(tags for _, _, tags in found))  # fmt: skip
    check_total(service, rows.n_tokens, "inputs")
    return rows


def refuse_left(side: str, what: str) -> None:
    """Raises RequestError."""
    if side == "left":
        message = f"truncation_side: of {what} the end is cut; expected right, got left"
        raise RequestError(message, "truncation_side", "unsupported_parameter")


Laid = tuple[tuple[int, ...], int, TagRow]  # a row, how many tokens were cut off, what it tags


def laid_texts(service: Service, call: TagCall) -> list[Laid]:
    tokenizer, policy = service.model.tokenizer, cut_policy(service, call.long_input)
    lead, found = len_before(tokenizer), []
    for number, (text, (ids, spans)) in enumerate(zip(call.texts, tokenizer.encode_spans(call.texts), strict=True)):
        row, lost = fitted(service, ids, policy, place_of(call.single, number), True)
        kept = slice(lost, None) if policy.side == "left" else slice(0, len(ids) - lost)
        found.append((row, lost, TagRow(text, tuple(ids[kept]), tuple(spans[kept]), lead)))
    return found


def laid_sentences(service: Service, call: TagCall) -> list[Laid]:
    """Sentences of words as tuning lays them out; their end is cut, word by word."""
    tokenizer, policy, reader = service.model.tokenizer, cut_policy(service, call.long_input), reader_of(service)
    refuse_left(policy.side, "words")
    reader = replace(reader, max_tokens=min(policy.most or reader.max_tokens, reader.max_tokens))
    refuses = policy.policy == "refuse" and not policy.most
    found, lead = [], len_before(tokenizer)
    for number, words in enumerate(call.words):
        framed, _, word_of = laid_words(reader, words)
        whole, ids, spans = spaced(tokenizer, words), [], []
        n_before, begin = len(whole[0]) - len(words[0]), [0]
        for word in words:
            begin.append(begin[-1] + len(word) + len(call.delimiter))
        for place, (some, where) in enumerate(tokenizer.encode_spans(whole)):
            ids += some
            spans += [(begin[place] + max(0, a - n_before), begin[place] + max(0, b - n_before)) for a, b in where]
        lost = len(ids) - len(word_of)
        if lost and refuses:
            raise RequestError(
                f"{place_of(call.single, number)}: expected at most {reader.max_tokens} tokens, got "
                f'{len(ids) + reader.frame_tokens(False)}; shorten it, or send truncation "auto"',
                "inputs",
                "context_length_exceeded",
            )
        kept = len(word_of)
        tags = TagRow(call.delimiter.join(words), tuple(ids[:kept]), tuple(spans[:kept]), lead)
        found.append((framed.ids, lost, tags))
    return found


async def lay_questions(service: Service, call: QuestionCall) -> QuestionRows:
    """The windows of every question, as tuning lays them out. Raises RequestError for a question that leaves too little
    room for its context."""
    letters = [text for pair in call.questions for text in pair]
    return await in_thread(letters, lambda: laid_questions(service, call), "inputs")


def laid_questions(service: Service, call: QuestionCall) -> QuestionRows:
    reader = reader_of(service)
    most = reader.max_tokens - reader.frame_tokens(True) - LEAST_CONTEXT
    found, n_tokens = [], 0
    for number, (question, context) in enumerate(call.questions):
        asked = len(reader.tokenizer.encode(question))
        if asked > most:
            message = f"{place_of(call.single, number)}.question: expected at most {most} tokens, got {asked}"
            raise RequestError(f"{message}; shorten it", "inputs", "context_length_exceeded")
        for window in windows(reader, SpanExample("", "", question, context, ()), number, call.stride):
            if not len(window.offsets):  # control characters alone, say
                message = f"{place_of(call.single, number)}.context: expected text that this model has tokens for"
                raise RequestError(f"{message}, got none", "inputs")
            found.append(window)
            n_tokens += len(window.framed.ids)
            check_total(service, n_tokens, "inputs")  # at once: a long question makes many windows
    kinds = [reader.kinds_of(window.framed) for window in found]
    told = () if None in kinds else tuple(one for one in kinds if one is not None)
    ids = tuple(window.framed.ids for window in found)
    return QuestionRows(ids, (0,) * len(ids), told, windows=tuple(found))


def reader_of(service: Service) -> Reader:
    """How the served model wants its texts."""
    facts = service.engine.facts
    return Reader(service.model.tokenizer, facts["max_tokens"], facts["kinds"], facts["global_question"])
