"""T5's span corruption (Raffel et al. 2019, arXiv 1910.10683, §3.1.4 and figure 2): spans become sentinels, and the
target tells what each stood for. Imports no torch.

Text  Thank you for inviting me to your party last week .
Input Thank you <X> me to your party <Y> week .
Target <X> for inviting <Y> last <Z>
"""

from __future__ import annotations

import numpy as np

from fledge.data.keyed import composition
from fledge.data.objectives import SpansConfig
from fledge.errors import ConfigError, DataError
from fledge.text.tokenizer import Tokenizer


def span_counts(n_tokens: int, config: SpansConfig) -> tuple[int, int]:
    """Tokens taken out of `n_tokens`, and in how many spans: as published, at least one of each, and no more spans
    than tokens are kept, since a kept token stands before each."""
    taken = min(max(round(n_tokens * config.rate), 1), n_tokens - 1)
    spans = max(round(taken / config.mean_span), 1)
    return taken, min(spans, n_tokens - taken)


def noise_mask(n_tokens: int, config: SpansConfig, *key: object) -> np.ndarray:
    """Which tokens are taken out, bool [T], T >= 2: kept and taken runs in turn, beginning with a kept one. Both sorts
    are cut into runs at random, every cut as likely as any other (T5's `random_spans_noise_mask`)."""
    taken, spans = span_counts(n_tokens, config)
    runs = np.empty(2 * spans, np.int64)
    runs[0::2] = composition(n_tokens - taken, spans, *key, "kept")
    runs[1::2] = composition(taken, spans, *key, "taken")
    return np.repeat(np.arange(2 * spans) % 2 == 1, runs)


def with_sentinels(ids: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Input and target of a text, int64: each taken run of the text becomes a sentinel, in their order; the target is
    each sentinel and its run, and one more sentinel where the text goes on after the last run."""
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    n_spans = int(begins.sum())
    if n_spans + 1 > len(sentinels):
        raise DataError(
            f"spans: expected at most {len(sentinels) - 1} spans, as many as sentinels but one, got {n_spans}; "
            "shorten the row or raise spans.mean_span"
        )
    number = np.cumsum(begins) - 1  # of the last span that began
    source = np.where(begins, sentinels[np.maximum(number, 0)], ids)[~mask | begins]
    taken, places = ids[mask], np.flatnonzero(begins[mask])
    target = np.insert(taken, places, sentinels[:n_spans])
    if not mask[-1]:
        target = np.append(target, sentinels[n_spans])
    return source.astype(np.int64), target.astype(np.int64)


def text_tokens(source_tokens: int, config: SpansConfig) -> tuple[int, int]:
    """How many tokens of text fill an input of `source_tokens` exactly, eos included, and the length of their target:
    568 and 114 for 512 tokens at the published rates. Raises ConfigError for a row without room."""
    if source_tokens < 4:
        raise ConfigError(f"row_tokens: expected at least 4 for span corruption, got {source_tokens}; raise it")
    n = 2
    while corrupted_lengths(n + 1, config)[0] <= source_tokens:
        n += 1
    return n, corrupted_lengths(n, config)[1]


def corrupted_lengths(n_tokens: int, config: SpansConfig) -> tuple[int, int]:
    """Input and target tokens that `n_tokens` of text become, eos included."""
    taken, spans = span_counts(n_tokens, config)
    return n_tokens - taken + spans + 1, taken + spans + 1


def sentinel_ids(tokenizer: Tokenizer) -> np.ndarray:
    """`<extra_id_0>`, `<extra_id_1>` … as far as the tokenizer has them, int64; T5's ids fall. Raises ConfigError."""
    found: list[int] = []
    while (number := tokenizer.id_of(f"<extra_id_{len(found)}>")) is not None:
        found.append(number)
    if not found:
        raise ConfigError("tokenizer: expected sentinels <extra_id_0>, <extra_id_1> …, got none; add them to it")
    return np.array(found, np.int64)
