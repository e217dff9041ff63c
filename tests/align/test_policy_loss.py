"""Trial 19: the losses of GRPO, RLOO and PPO against numbers worked out by hand and a formula in plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fledge.align.policy import clipped_loss, is_clipped, k3, token_weights, whole_weight
from fledge.align.ppo import next_kl, shaped_rewards, value_loss
from fledge.align.rl_config import GrpoConfig, PpoConfig
from fledge.batch import Batch, OneDocument, one_document
from fledge.recipes.rl_methods import Grpo, Learned, Ppo


def learned(lengths: list[int], normalise: str, seed: int = 3) -> tuple[Learned, torch.Tensor, torch.Tensor]:
    """Fixed logits [n, 5] of answers of these lengths with columns; the logits and the tokens."""
    generator, n = torch.Generator().manual_seed(seed), sum(lengths)
    logits = torch.randn(n, 5, generator=generator, requires_grad=True)
    tokens = torch.randint(5, (n,), generator=generator)
    log_p = torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
    old = log_p.detach() + 0.3 * torch.randn(n, generator=generator)
    reference = log_p.detach() + 0.2 * torch.randn(n, generator=generator)
    per_answer = torch.randn(len(lengths), generator=generator)
    advantage = per_answer.repeat_interleave(torch.tensor(lengths))
    each = token_weights(lengths, normalise)
    weight = torch.tensor([w for w, length in zip(each, lengths, strict=True) for _ in range(length)])
    entropy = -(torch.log_softmax(logits, -1).exp() * torch.log_softmax(logits, -1)).sum(-1)
    columns = {"old": old, "reference": reference, "advantage": advantage}
    return Learned(log_p, entropy, None, weight, columns), logits, tokens


def test_the_clipped_objective_of_one_token_by_hand():
    """ρ = 1.5 and 0.5, clipped to 0.8..1.28, with advantages of both signs."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0])
    found = clipped_loss(ratio.log(), torch.zeros(4), advantage, 0.2, 0.28)
    torch.testing.assert_close(found, torch.tensor([-2.56, 3.0, -1.0, 1.6]), atol=1e-6, rtol=0)
    assert is_clipped(ratio.log(), torch.zeros(4), advantage, 0.2, 0.28).tolist() == [True, False, False, True]


def test_the_k3_estimate_by_hand_and_as_the_mean_of_many_samples():
    found = k3(torch.tensor([-1.0]), torch.tensor([-1.5]))
    assert float(found) == pytest.approx(math.exp(-0.5) + 0.5 - 1, abs=1e-7)
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert float((p * k3(p.log(), q.log())).sum()) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-12)


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
def test_grpo_is_the_formula_of_the_papers_written_answer_by_answer(normalise):
    config = GrpoConfig(clip=0.2, clip_high=0.28, kl=0.04, entropy=0.01, normalise=normalise)
    lengths, most = [3, 1, 4], 6
    given, logits, tokens = learned(lengths, normalise)
    method = Grpo(config, most)
    weight = torch.zeros(3, 9)
    for b, (length, each) in enumerate(zip(lengths, token_weights(lengths, normalise), strict=True)):
        weight[b, :length] = each
    batch = Batch(one_document(torch.zeros(3, 9, dtype=torch.int64)), torch.zeros(3, 9), weight, OneDocument())
    whole, coefficients = method.weights(batch), method.coefficients()
    loss = sum(coefficients[name] / whole[name] * total for name, total in method.terms(given).items())
    (gradient,) = torch.autograd.grad(loss, logits)

    again = logits.detach().clone().requires_grad_(True)
    log_p = torch.log_softmax(again, -1)
    answers, place = [], 0
    for length in lengths:
        own = []
        for i in range(place, place + length):
            ratio = (log_p[i, tokens[i]] - given.columns["old"][i]).exp()
            a, r = given.columns["advantage"][i], given.columns["reference"][i] - log_p[i, tokens[i]]
            kept = min(ratio * a, min(max(ratio, torch.tensor(0.8)), torch.tensor(1.28)) * a)
            entropy = -(log_p[i].exp() * log_p[i]).sum()
            own.append(-kept + 0.04 * (r.exp() - r - 1) - 0.01 * entropy)
        answers.append(torch.stack(own))
        place += length
    expected = {
        "token": torch.cat(answers).mean(),
        "sequence": torch.stack([own.mean() for own in answers]).mean(),
        "constant": torch.cat(answers).sum() / (len(lengths) * most),
    }[normalise]
    (wanted,) = torch.autograd.grad(expected, again)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)


def test_a_loss_normalised_otherwise_is_another():
    """The control."""
    found = set()
    for normalise in ("token", "sequence"):
        given, _, _ = learned([3, 1, 4], normalise)
        total = Grpo(GrpoConfig(normalise=normalise), 6).terms(given)["policy"]
        found.add(round(float(total.detach()) / float(given.weight.sum()), 6))
    assert len(found) == 2


def test_the_gradient_of_a_policy_that_has_not_moved_is_that_of_reinforce():
    given, logits, tokens = learned([2, 3], "token")
    still = replace(given, columns={**given.columns, "old": given.log_p.detach()})
    (gradient,) = torch.autograd.grad(Grpo(GrpoConfig(), 3).terms(still)["policy"], logits)
    again = logits.detach().clone().requires_grad_(True)
    log_p = torch.log_softmax(again, -1).gather(1, tokens[:, None])[:, 0]
    (wanted,) = torch.autograd.grad(-(given.columns["advantage"] * log_p).sum(), again)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)


def test_the_rewards_of_tokens_are_the_distance_and_at_the_end_the_answers():
    log_p, reference = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]), torch.tensor([[-1.5, -1.0], [-3.0, 0.0]])
    found = shaped_rewards(torch.tensor([1.0, 2.0]), log_p, reference, torch.tensor([2, 1]), 0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.05, 1.1], [1.8, 0.0]]).double())


def test_the_value_loss_by_hand():
    values, old, returns = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 0.9, 0.0]), torch.tensor([2.0, 2.0, 0.0])
    found = value_loss(values, old, returns, 0.2)
    torch.testing.assert_close(found, 0.5 * torch.tensor([(0.2 - 2) ** 2, 1.0, 1.0]))
    torch.testing.assert_close(value_loss(values, old, returns, 0.0), torch.full((3,), 0.5))


def test_the_weight_of_the_distance_follows_its_target_within_bounds():
    config = PpoConfig(kl=0.1, kl_target=2.0, kl_horizon=100)
    assert next_kl(0.1, 2.2, 10, config) == pytest.approx(0.1 * (1 + 0.1 * 10 / 100))
    assert next_kl(0.1, 90.0, 10, config) == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    assert next_kl(0.1, 0.0, 10, config) == pytest.approx(0.1 * (1 - 0.2 * 10 / 100))
    assert next_kl(0.1, 90.0, 10, replace(config, kl_target=0.0)) == 0.1


def test_ppo_has_a_value_term_and_weighs_every_token_alike():
    method = Ppo(PpoConfig(value=0.3))
    assert method.coefficients() == {"policy": 1.0, "value": 0.3}
    assert method.token_weights([2, 5]) == [1.0, 1.0]
    assert whole_weight(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), "token", 9) == 3.0
