"""Contrastive search against its equation, written with transformers' logits and hidden states."""

from __future__ import annotations

import pytest
import torch
import transformers

from fledge.engine.contrastive import ContrastiveSearch, contrastive_search
from fledge.engine.runner import Runner
from fledge.errors import RequestError
from fledge.model.folder import load_model
from tests.parity.decoder_cases import SIZES
from tests.parity.reference import VOCAB, randomised

PROMPT = (1, 5, 17, 9, 33, 8)
FAMILIES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 2})),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=48, n_head=4, n_layer=2, n_positions=64, vocab_size=VOCAB)
    ),
}


@torch.no_grad()
def by_the_equation(model: transformers.PreTrainedModel, alpha: float, k: int, n: int) -> list[int]:
    """A pass for each candidate, cosine by torch's own function, nothing kept from step to step."""
    ids = list(PROMPT)
    for _ in range(n):
        p = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        scored = []
        for candidate in p.topk(k).indices.tolist():
            out = model(torch.tensor([[*ids, candidate]]), output_hidden_states=True).hidden_states[-1][0]
            likeness = torch.cosine_similarity(out[-1], out[:-1], dim=-1).max()
            scored.append((float((1 - alpha) * p[candidate] - alpha * likeness), candidate))
        ids.append(max(scored)[1])
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_is_the_one_that_the_equation_chooses(family, tmp_path):
    theirs = randomised(FAMILIES[family](), 0.25)
    theirs.save_pretrained(tmp_path)
    model = Runner(load_model(tmp_path), n_slots=1).model
    answers = set()
    for alpha, k in ((0.0, 4), (0.6, 4), (0.9, 8)):
        answer = contrastive_search(model, PROMPT, ContrastiveSearch(alpha, k, 12), (), VOCAB)
        assert list(answer) == by_the_equation(theirs, alpha, k, 12), (alpha, k)
        answers.add(answer)
    assert len(answers) == 3  # the control: alpha matters
    stopped = contrastive_search(model, PROMPT, ContrastiveSearch(0.6, 4, 12), {answer[3]}, VOCAB)
    assert len(stopped) <= 12 and (len(stopped) == 12 or stopped[-1] == answer[3])
    for search in (ContrastiveSearch(1.5), ContrastiveSearch(top_k=0), ContrastiveSearch(max_tokens=0)):
        with pytest.raises(RequestError):
            contrastive_search(model, PROMPT, search, (), VOCAB)
