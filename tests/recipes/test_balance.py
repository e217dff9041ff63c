"""Load balancing reaches the loss: with a mixture of experts, training minimises what transformers minimises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from fledge.batch import Batch, padded
from fledge.config import from_dict
from fledge.errors import ConfigError
from fledge.log import read_log
from fledge.model.folder import load_model
from fledge.recipes.config import PretrainConfig
from fledge.recipes.language import LanguageRecipe, balance
from fledge.recipes.pretrain import pretrain
from tests.parity.decoder_cases import CASES
from tests.parity.reference import mask_of, randomised, some_ids

LENGTHS, COEFFICIENT = (40, 7, 23), 0.5


def both(tmp_path, layers: int):
    """transformers' model, ours, and a batch of rows of LENGTHS with all but each first token as targets."""
    case = CASES["mixtral"]
    sizes = {**case.sizes, **case.more, "num_hidden_layers": layers, "router_aux_loss_coef": COEFFICIENT}
    theirs = randomised(type(case.model())(case.config(**sizes)))
    theirs.save_pretrained(tmp_path)
    ids = some_ids()
    tokens, layout = padded([ids[b, :n].tolist() for b, n in enumerate(LENGTHS)])
    weight = mask_of(LENGTHS, 40).float()
    weight[:, :-1] *= weight[:, 1:].clone()
    weight[:, -1] = 0
    batch = Batch(tokens, tokens.ids.roll(-1, 1), weight, layout)
    return theirs, load_model(tmp_path).train(), batch


def recipe_of(model) -> LanguageRecipe:
    return LanguageRecipe(model, None, None, (), "")  # type: ignore[arg-type]


def total_of(recipe: LanguageRecipe, batch: Batch) -> torch.Tensor:
    weights = recipe.weights(batch)
    return sum(term.coefficient * term.total / weights[name] for name, term in recipe.loss(batch).terms.items())


def gradients(theirs, mine) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ours, theirs) of the routers and of the embedding, which everything reaches."""
    routers = [p.grad for name, p in theirs.named_parameters() if name.endswith("gate.weight")]
    ours = [p.grad for name, p in mine.named_parameters() if name.endswith("router.weight")]
    assert len(routers) == len(ours) > 0
    return [*zip(ours, routers, strict=True), (mine.embedding.weight.grad, theirs.get_input_embeddings().weight.grad)]


def test_the_loss_and_its_gradient_are_those_of_transformers(tmp_path):
    theirs, mine, batch = both(tmp_path, 1)
    labels = batch.tokens.ids.masked_fill(batch.tokens.doc < 0, -100)
    out = theirs.train()(
        batch.tokens.ids, attention_mask=mask_of(LENGTHS, 40), labels=labels, output_router_logits=True
    )
    out.loss.backward()
    total = total_of(recipe_of(mine), batch)
    total.backward()
    assert float(total.detach()) == pytest.approx(float(out.loss.detach()), rel=1e-5)
    for got, expected in gradients(theirs, mine):
        assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    part = COEFFICIENT * float(out.aux_loss.detach())
    assert float(balance(mine, batch.tokens).detach()) == pytest.approx(part, rel=1e-5) and part > 0.01 * float(
        total.detach()
    )


def test_several_layers_are_balanced_one_by_one(tmp_path):
    """The mean over layers of transformers' loss of each."""
    theirs, mine, batch = both(tmp_path, 2)
    mask = mask_of(LENGTHS, 40)
    logits = theirs(batch.tokens.ids, attention_mask=mask, output_router_logits=True).router_logits
    expected = COEFFICIENT * sum(load_balancing_loss_func((one,), 5, 2, mask) for one in logits) / 2
    expected.backward()
    mine.hidden(batch.tokens, batch.layout)
    got = balance(mine, batch.tokens)
    got.backward()
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for ours, reference in gradients(theirs, mine):
        assert (ours - reference).abs().max() < 1e-4 * reference.abs().max()


def test_without_a_coefficient_there_is_no_such_term(tmp_path):
    """The control."""
    _, mine, batch = both(tmp_path, 1)
    assert set(recipe_of(mine).loss(batch).terms) == {"nats", "balance"}
    for part in mine.modules():
        if hasattr(part, "routed"):
            part.config = replace(part.config, balance=0.0)
    assert set(recipe_of(mine).loss(batch).terms) == {"nats"}


def config_of(tmp_path, **train) -> PretrainConfig:
    tmp_path.mkdir(exist_ok=True)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{n} sheep went over the bridge and {n + 1} came back." for n in range(200)))
    return from_dict(PretrainConfig, {
        "data": {"path": str(text)}, "run": {"dir": str(tmp_path / "run")},
        "model": {"family": "mixtral", "width": 16, "layers": 2, "heads": 2, "context_tokens": 32, "experts": 4},
        "train": {"steps": 3, "rows": 4, "log_every_steps": 1, "sample_every_steps": 0, **train},
    })  # fmt: skip


def test_pretraining_writes_both_terms_and_refuses_to_split_the_batch(tmp_path):
    pretrain(config_of(tmp_path))
    steps = [line for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "step"]
    assert len(steps) == 3
    for line in steps:
        assert line["loss_balance"] > 0 and line["loss"] == pytest.approx(line["loss_nats"] + line["loss_balance"])
    with pytest.raises(ConfigError, match="couples its batch; set micro_rows=0"):
        pretrain(config_of(tmp_path / "split", micro_rows=2))
