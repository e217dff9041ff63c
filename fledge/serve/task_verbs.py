"""/fill-mask, /token-classification, /question-answering and /multiple-choice: what a model's numbers say, as Hugging
Face's inference API puts it. An input that was sent by itself is answered by itself, a list by a list.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fledge.engine.reading import SpanSearch, shares_of
from fledge.serve.entities import entities
from fledge.serve.pair_rows import Pair, lay_pairs
from fledge.serve.service import Service
from fledge.serve.task_rows import QuestionRows, TagRows, lay_masks, lay_questions, lay_tags, place_of
from fledge.serve.task_wire import (
    QUESTION_FIELDS,
    TEXT_FIELDS,
    ChoiceCall,
    FillCall,
    QuestionCall,
    TagCall,
    read_choices,
    read_fill,
    read_questions,
    read_tags,
)
from fledge.serve.vector_routes import Verb
from fledge.serve.vector_rows import Rows
from fledge.text.tokenizer import Tokenizer


def told_masks(service: Service, call: FillCall, rows: Rows, numbers: list[np.ndarray]) -> Any:
    """Of each text the guesses for its mask, likeliest first; of a text with several masks a list for each."""
    found = [filled(service.model.tokenizer, ids, one) for ids, one in zip(rows.ids, numbers, strict=True)]
    return found[0] if call.single else found


def filled(tokenizer: Tokenizer, ids: tuple[int, ...], guesses: np.ndarray) -> list[Any]:
    """`guesses`: id and probability, mask by mask."""
    places = [place for place, token in enumerate(ids) if token == tokenizer.special["mask"]]
    single, masks, joined = len(places) == 1, [], tokenizer.written
    for place, some in zip(places, np.split(guesses, len(places)), strict=True):
        mask = []
        for token, score in ((int(token), float(score)) for token, score in some):
            whole = (*ids[:place], token, *ids[place + 1 :])
            sequence = joined([tokenizer.token_of(one) for one in whole if not (single and tokenizer.is_special(one))])
            written = joined([tokenizer.token_of(token)])
            mask.append({"score": score, "token": token, "token_str": written, "sequence": sequence})
        masks.append(mask)
    return masks[0] if single else masks


def told_tags(service: Service, call: TagCall, rows: TagRows, numbers: list[np.ndarray]) -> Any:
    """The entities of each text."""
    tokenizer, labels, found = service.model.tokenizer, service.engine.facts["labels"], []
    for row, logits in zip(rows.tags, numbers, strict=True):
        shares = shares_of(logits[row.lead : row.lead + len(row.ids)])
        found.append(entities(tokenizer, row, shares, labels, call.strategy, call.ignored))
    return found[0] if call.single else found


def told_answers(service: Service, call: QuestionCall, rows: QuestionRows, numbers: list[np.ndarray]) -> Any:
    """The best answer to each question. `score` is its probability; `logit` and `null_logit`, that of no answer, are
    what `fledge predict` compares."""
    searches = [SpanSearch(context, call.longest) for _, context in call.questions]
    for window, logits in zip(rows.windows, numbers, strict=True):
        searches[window.example].see(window, logits)
    found = []
    for one in (search.answer() for search in searches):
        told = {"score": one["probability"], "start": one["start"], "end": one["end"], "answer": one["answer"]}
        if call.or_none and one["null_score"] > one["score"]:
            told = {"score": one["null_probability"], "start": 0, "end": 0, "answer": ""}
        found.append({**told, "logit": one["score"], "null_logit": one["null_score"]})
    return found[0] if call.single else found


async def lay_choices(service: Service, call: ChoiceCall) -> Rows:
    """A row of each question with each of its choices, as tuning lays them out."""
    pairs = [
        Pair(question, choice, f"{place_of(call.single, n)}.choices[{c}]")
        for n, (question, choices) in enumerate(call.questions)
        for c, choice in enumerate(choices)
    ]
    return await lay_pairs(service, pairs, call.long_input)


def told_choices(service: Service, call: ChoiceCall, rows: Rows, numbers: list[np.ndarray]) -> Any:
    """The likeliest choice of each question, counted from 0, and every choice's probability (`scores`)."""
    logits, found, begin = np.concatenate(numbers)[:, 0], [], 0
    for _, choices in call.questions:
        shares = shares_of(logits[begin : begin + len(choices)])
        best = int(shares.argmax())
        told = {"answer": best, "text": choices[best], "score": float(shares[best]), "scores": shares.tolist()}
        found.append(told)
        begin += len(choices)
    return found[0] if call.single else found


FILL_MASK = Verb("fill-mask", TEXT_FIELDS, read_fill, lay_masks, told_masks)
TOKEN_CLASSIFICATION = Verb("token-classification", TEXT_FIELDS, read_tags, lay_tags, told_tags)
QUESTION_ANSWERING = Verb("question-answering", QUESTION_FIELDS, read_questions, lay_questions, told_answers)
MULTIPLE_CHOICE = Verb("multiple-choice", TEXT_FIELDS, read_choices, lay_choices, told_choices)
