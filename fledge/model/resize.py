"""More tokens, or fewer: the embedding, the output product and its bias follow the vocabulary.

A new row starts as the mean of the rows there were, so that a new token is as likely as a middling old one and nothing
is far from what the model knows. Tied matrices stay tied.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fledge.errors import ConfigError
from fledge.log import warn
from fledge.model.config import MAX_VOCAB, ModelConfig
from fledge.model.transformer import Transformer
from fledge.nn.config import bounded
from fledge.nn.linear import Linear
from fledge.text.tokenizer import Tokenizer

ROWS_OF_VOCABULARY = ("embedding.weight", "output.weight", "output_bias")


def resize(model: Transformer, vocab_size: int, multiple: int = 1) -> Transformer:
    """The model in place, with `vocab_size` tokens: rows are cut, or start as the mean of those there were.

    `multiple`: rows are filled up to a multiple of this, for speed. Nothing predicts the filling, and it is cut when
    the model is saved. Special ids beyond the end are forgotten. Raises ConfigError for sizes that make no sense.
    """
    bounded("vocab_size", vocab_size, 1, MAX_VOCAB)
    bounded("multiple", multiple, 1, 1 << 16)
    rows = -(-vocab_size // multiple) * multiple
    old = model.config
    if isinstance(model.output, nn.Module) and not isinstance(model.output, Linear):
        raise ConfigError("resize: expected a model to train, got an inference copy; resize before copying")
    kept = min(vocab_size, tokens_of(old))
    ids = {role: i for role, i in old.special_ids.items() if i < vocab_size}
    model.config = replace(old, vocab_size=rows, tokens=0 if rows == vocab_size else vocab_size, special_ids=ids)
    model.embedding.weight = with_rows(model.embedding.weight, kept, rows)
    model.embedding.num_embeddings = rows
    if isinstance(model.output, Linear):
        model.output.weight = with_rows(model.output.weight, kept, rows)
    if model.output_bias is not None:
        model.output_bias = with_rows(model.output_bias, kept, rows)
    return model


def with_rows(parameter: Tensor, kept: int, rows: int) -> nn.Parameter:
    """The first `kept` rows and the mean of these as often as needed: [rows, ...]."""
    with torch.no_grad():
        old = parameter[:kept]
        mean = old.float().mean(0, keepdim=True).to(old.dtype).expand(rows - kept, *old.shape[1:])
        return nn.Parameter(torch.cat((old, mean)), requires_grad=parameter.requires_grad)


def tokens_of(config: ModelConfig) -> int:
    """Tokens of the vocabulary, without rows that fill it up."""
    return config.tokens or config.vocab_size


def unpadded(config: ModelConfig, parameters: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and parameters without the rows that fill the vocabulary up."""
    if not config.tokens:
        return config, parameters
    cut = {name: t[: config.tokens] if name in ROWS_OF_VOCABULARY else t for name, t in parameters.items()}
    return replace(config, vocab_size=config.tokens, tokens=0), cut


def check_fits(tokenizer: Tokenizer, n_rows: int) -> None:
    """Raises ConfigError for a tokenizer with more tokens than an embedding has rows. Of control tokens beyond the last
    row a warning tells: Gemma 3's text models have none for the token of an image."""
    beyond = range(n_rows, tokenizer.vocab_size)
    if any(number not in tokenizer.control for number in beyond):
        raise ConfigError(f"tokenizer: expected at most the model's {n_rows} entries, got {tokenizer.vocab_size}")
    if beyond:
        names = ", ".join(repr(tokenizer.token_of(number)) for number in beyond)
        warn(f"tokenizer: the model has {n_rows} rows, and none for the control tokens {names:.200}")
