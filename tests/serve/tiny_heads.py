"""Tiny encoders with a head each, written by transformers: BERT on MiniLM's WordPiece, RoBERTa on byte-level BPE; and a
verb of the server on one of them without a process.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from fledge.engine.encoder import load_encoder
from fledge.engine.row_queue import WaitingRow
from fledge.serve.config import ServeConfig
from fledge.serve.served import open_model
from fledge.serve.service import Service
from fledge.serve.stream import to_json
from fledge.serve.vector_routes import Verb
from tests.parity.reference import randomised
from tests.sentences import minilm_folder

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
CORPUS = ["Ada Lovelace lives in Oslo, near the old harbour. Bob doesn't!", "Who painted the lighthouse in 1921?"] * 40


def byte_level_roberta() -> transformers.PreTrainedTokenizerFast:
    """A small byte-level vocabulary framed as RoBERTa's, whose mask takes the space before it."""
    plain = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    plain.train_from_iterator(CORPUS, vocab_size=400, special_tokens=special, show_progress=False)
    plain.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain._tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token=tokenizers.AddedToken("<mask>", lstrip=True),
    )  # fmt: skip


def tiny(folder: Path, head: str, family: str = "Bert", context: int = 64, **more: Any) -> Path:
    """A folder of `family`For`head` with random weights and its tokenizer."""
    if family == "Bert":
        tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    else:
        tokenizer, context = byte_level_roberta(), context + 2
    if head == "TokenClassification":
        more |= {"id2label": dict(enumerate(TAGS)), "label2id": {name: n for n, name in enumerate(TAGS)}}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=context, pad_token_id=tokenizer.pad_token_id, **more,
    )  # fmt: skip
    torch.manual_seed(3)
    model = randomised(getattr(transformers, f"{family}For{head}")(config), 0.3)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(6)  # tokens differ in what is said of them
        if head == "TokenClassification":  # no label is likeliest for all of them
            states = model.base_model(**tokenizer(CORPUS[:2], padding=True, return_tensors="pt")).last_hidden_state
            model.classifier.bias.copy_(-model.classifier.weight @ states.flatten(0, 1).mean(0))
    model.save_pretrained(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


class Inside:
    """What the server and its engine do with a request for a folder's model, in this process."""

    def __init__(self, folder: Path, verb: Verb):
        config = ServeConfig(str(folder))
        self.encoder, self.service, self.verb = load_encoder(folder), Service(config, open_model(config)), verb
        self.service.engine.facts = {**self.encoder.facts, "context_tokens": self.encoder.facts["max_tokens"]}

    def asked(self, inputs: Any, **parameters: Any) -> Any:
        """The reply's body to Hugging Face's two fields."""
        return self.told({"inputs": inputs, "parameters": parameters})

    def told(self, body: dict[str, Any]) -> Any:
        """The reply's body."""
        call = self.verb.read(body)
        self.service.check_serves(self.verb.name)
        rows = asyncio.run(self.verb.lay(self.service, call))
        kinds = rows.kinds or ((),) * len(rows.ids)
        given = [WaitingRow("", n, *row, rows.top_k) for n, row in enumerate(zip(rows.ids, kinds, strict=True))]
        return json.loads(to_json(self.verb.tell(self.service, call, rows, self.encoder.answers(given))))
