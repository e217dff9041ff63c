"""Tiny T5s and BARTs of transformers by name."""

from __future__ import annotations

import torch
import transformers

from tests.parity.reference import VOCAB, randomised

T5 = {
    "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "vocab_size": VOCAB, "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
}  # fmt: skip
BART = {
    "d_model": 48, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 80, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 6, "vocab_size": VOCAB, "max_position_embeddings": 64,
}  # fmt: skip
CASES = {
    "t5": lambda: transformers.T5Config(**T5),
    "t5-v1.1": lambda: transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5-gated-silu": lambda: transformers.T5Config(**T5, feed_forward_proj="gated-silu", layer_norm_epsilon=1e-2),
    "mt5": lambda: transformers.MT5Config(**T5, feed_forward_proj="gated-gelu"),
    "mt5-relu": lambda: transformers.MT5Config(**T5, feed_forward_proj="relu"),
    "bart": lambda: transformers.BartConfig(**BART),
    "bart-scaled": lambda: transformers.BartConfig(**BART, scale_embedding=True, activation_function="relu"),
    "bart-untied": lambda: transformers.BartConfig(**BART, tie_word_embeddings=False),
}
SOURCE, TARGET = 33, 21
SOURCE_LENGTHS, TARGET_LENGTHS = (33, 7, 20), (5, 21, 12)


def reference(name: str) -> transformers.PreTrainedModel:
    config = CASES[name]()
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    if name in ("t5-v1.1", "mt5"):  # transformers 5 ties it until a file with two matrices is loaded
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    if name == "bart-untied":  # untied, transformers 5 has three embeddings
        for stack in (model.model.encoder, model.model.decoder):
            stack.embed_tokens.weight = model.model.shared.weight
    model = randomised(model)
    return widened(model) if name.startswith("bart") else model


def widened(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Norms of about 1: small ones would shrink post-norm states until nothing depends on anything."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model
