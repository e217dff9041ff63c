"""Tiny encoders of transformers by name, and how both sides compute them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers

from fledge.batch import Layout, OneDocument, Tokens, one_document, padded
from fledge.model.transformer import Transformer
from tests.parity.reference import VOCAB, mask_of, randomised

BODY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCAB,
    "max_position_embeddings": 64,
}  # fmt: skip
DISTIL = {
    "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 64,
}  # fmt: skip
BOTH = {"relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False}
V3 = {**BOTH, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
UNTIED = {"tie_word_embeddings": False}
SPARSE = {"block_size": 3, "num_random_blocks": 2}

Case = tuple[str, dict[str, Any]]  # stem of the class names, config

CASES: dict[str, Case] = {
    "bert": ("Bert", BODY),
    "bert-untied-relu": ("Bert", {**BODY, **UNTIED, "hidden_act": "relu", "type_vocab_size": 1}),
    "roberta": ("Roberta", {**BODY, "type_vocab_size": 1}),
    "roberta-pad-5-untied": ("Roberta", {**BODY, **UNTIED, "pad_token_id": 5, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRoberta", {**BODY, "type_vocab_size": 1}),
    "camembert": ("Camembert", {**BODY, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "distilbert": ("DistilBert", DISTIL),
    "albert": ("Albert", {**BODY, "embedding_size": 12}),
    "albert-groups": ("Albert", {**BODY, "embedding_size": 32, "num_hidden_groups": 2, "hidden_act": "gelu"}),
    "albert-untied": ("Albert", {**BODY, **UNTIED, "embedding_size": 12}),
    "electra": ("Electra", {**BODY, "embedding_size": 32}),
    "electra-narrow": ("Electra", {**BODY, "embedding_size": 12, "hidden_act": "relu"}),
    "mpnet": ("MPNet", BODY),
    "deberta": ("Deberta", {**BODY, **BOTH, "max_relative_positions": 10}),
    "deberta-plain": ("Deberta", {**BODY, "type_vocab_size": 2}),
    "deberta-c2p": ("Deberta", {**BODY, **BOTH, "pos_att_type": ["c2p"], "legacy": False}),
    "deberta-v2": ("DebertaV2", {**BODY, **BOTH, "max_relative_positions": 12, "type_vocab_size": 2}),
    "deberta-v2-conv": ("DebertaV2", {**BODY, **V3, "conv_kernel_size": 3, "conv_act": "gelu", "conv_groups": 2}),
    "deberta-v2-p2c": ("DebertaV2", {**BODY, **BOTH, "pos_att_type": ["p2c"], "position_biased_input": True}),
    "deberta-v3": ("DebertaV2", {**BODY, **V3}),
    "longformer": ("Longformer", {**BODY, "type_vocab_size": 1, "attention_window": [8, 12, 4]}),
    "bigbird": ("BigBird", {**BODY, **SPARSE}),
    "bigbird-full": ("BigBird", {**BODY, "attention_type": "original_full", "rescale_embeddings": True,
                                 "use_bias": False}),
    "modernbert": ("ModernBert", {**BODY, "local_attention": 9, "pad_token_id": 0}),
    "modernbert-biases": (
        "ModernBert", {**BODY, **UNTIED, "local_attention": 8, "pad_token_id": 0, "norm_bias": True, "mlp_bias": True,
                       "attention_bias": True, "decoder_bias": False, "classifier_bias": True},
    ),
}  # fmt: skip
FAMILIES = (
    "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra-narrow", "mpnet", "deberta",
    "deberta-v3", "longformer", "bigbird", "modernbert",
)  # fmt: skip


def config_of(name: str, **more: Any) -> transformers.PretrainedConfig:
    stem, numbers = CASES[name]
    return getattr(transformers, f"{stem}Config")(**{**numbers, **more})


def class_of(name: str, ending: str) -> Any:
    """transformers' class of a case, or None where it has none."""
    return getattr(transformers, CASES[name][0] + ending, None)


def reference(name: str, ending: str = "ForMaskedLM", **more: Any) -> transformers.PreTrainedModel:
    """A case's model, every parameter random."""
    torch.manual_seed(7)
    return randomised(class_of(name, ending)(config_of(name, **more)))


def has_segments(name: str) -> bool:
    return CASES[name][0] in ("Bert", "Albert", "Electra", "BigBird") and config_of(name).type_vocab_size > 1


def ids_for(rows: int, length: int, low: int = 6) -> torch.Tensor:
    return torch.randint(low, VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))


def inputs(name: str, lengths: tuple[int, ...]) -> tuple[dict[str, torch.Tensor], tuple[Tokens, Layout]]:
    """The same rows for transformers and for us: with segments where the family has them, right-padded."""
    longest = max(lengths)
    ids = ids_for(len(lengths), longest)
    kind = None
    if has_segments(name):
        kind = (torch.arange(longest) > 4).long().expand_as(ids).clone()
    if len(set(lengths)) == 1:
        tokens, layout = one_document(ids), OneDocument()
        theirs = {"input_ids": ids}
    else:
        pad = config_of(name).pad_token_id
        tokens, layout = padded([ids[b, :n].tolist() for b, n in enumerate(lengths)], pad_id=pad)
        theirs = {"input_ids": tokens.ids, "attention_mask": mask_of(lengths, longest)}
    if kind is not None:
        theirs["token_type_ids"] = kind
    return theirs, (replace(tokens, kind=kind), layout)


def states(model: Transformer, tokens: Tokens, layout: Layout) -> torch.Tensor:
    """Logits of a model with an output, the last states of one without."""
    return model(tokens, layout) if model.config.lm else model.hidden(tokens, layout)


def their_states(output: Any) -> torch.Tensor:
    for field in ("logits", "prediction_logits", "last_hidden_state"):
        if hasattr(output, field):
            return getattr(output, field)
    raise AssertionError(f"{type(output).__name__} has no states")
