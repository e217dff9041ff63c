"""Long documents with a bias by distance: the dense result and gradients, and the same as operators of the compiler."""

from __future__ import annotations

import pytest
import torch

from fledge.nn import distance
from fledge.nn.bias import make_bias
from fledge.nn.config import Alibi, Buckets
from fledge.nn.distance import WHOLE, Board, by_distance, gradients, mixed, turned
from fledge.nn.kernels import dense
from fledge.nn.visibility import Sight, by_place

HEADS, CHANNELS, SCALE = 4, 3, 0.3
SIGHTS = {
    "causal": Sight(SCALE),
    "both ways": Sight(SCALE, causal=False),
    "window": Sight(SCALE, window=300),
    "window both ways": Sight(SCALE, causal=False, window=600),
}


def inputs(n_tokens: int, kv_heads: int, n_rows: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n_rows, n_tokens, n, CHANNELS, dtype=torch.float64, generator=generator, requires_grad=True)
            for n in (HEADS, kv_heads, kv_heads)]  # fmt: skip


def buckets(causal: bool) -> torch.nn.Module:
    bias = make_bias(Buckets(8, 200), HEADS, causal)
    assert bias is not None
    torch.nn.init.normal_(bias.weight, generator=torch.Generator().manual_seed(4))
    return bias.double()


def figures(out: torch.Tensor, *wanted: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of a loss that no symmetry leaves alone."""
    loss = (out * torch.arange(out.numel()).view(out.shape).cos()).sum()
    return [out.detach(), *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("n_tokens", [1, 2, 257, 600])
@pytest.mark.parametrize("name", SIGHTS)
def test_it_is_the_dense_result_with_its_gradients(name, n_tokens, kv_heads, monkeypatch):
    """In float64, where 1e-9 tells an equal formula from a near one; blocks of several sizes and short last ones."""
    monkeypatch.setattr("fledge.nn.pieces.QUERIES", 64)
    monkeypatch.setattr("fledge.nn.pieces.KEYS", 100)
    sight, (q, k, v) = SIGHTS[name], inputs(n_tokens, kv_heads)
    bias, places = buckets(sight.causal), torch.arange(n_tokens)
    seen = by_place(places[:, None], places, sight)[None]
    right = figures(dense(q, k, v, seen, sight, bias), q, k, v, bias.weight)
    for got, expected in zip(figures(by_distance(q, k, v, sight, bias), q, k, v, bias.weight), right, strict=True):
        assert (got - expected).abs().max() < 1e-9 * max(1.0, float(expected.abs().max()))
    if n_tokens > 2:  # the control: a bias one position off is another function
        monkeypatch.setattr(bias, "values", lambda ahead, dtype: type(bias).values(bias, ahead + 1, dtype))
        off = figures(by_distance(q, k, v, sight, bias), q, k, v, bias.weight)
        assert all((got - expected).abs().max() > 1e-4 for got, expected in zip(off, right, strict=True))


def test_a_bias_that_is_not_learned_costs_no_board(monkeypatch):
    q, k, v = inputs(300, HEADS)
    alibi, places = make_bias(Alibi(), HEADS, True), torch.arange(300)
    seen = by_place(places[:, None], places, SIGHTS["causal"])[None]
    right = figures(dense(q, k, v, seen, SIGHTS["causal"], alibi), q, k, v)
    monkeypatch.setattr(distance, "Board", None)
    for got, expected in zip(figures(by_distance(q, k, v, SIGHTS["causal"], alibi), q, k, v), right, strict=True):
        assert (got - expected).abs().max() < 1e-6  # the slopes are float32 there
    with pytest.raises(TypeError):  # the control
        bias = buckets(True)
        figures(by_distance(q, k, v, SIGHTS["causal"], bias), q, k, v, bias.weight)


def test_a_board_s_columns_are_the_diagonals_of_its_block():
    board = Board(torch.zeros(1, 1, 5, 7))
    board.block.copy_(torch.arange(35.0).view(5, 7) + 1)
    sums = board.diagonals.sum((0, 2))[0]
    expected = [sum(7 * t + (d - t) + 1 for t in range(5) if 0 <= d - t < 7) for d in range(11)]
    assert sums.tolist() == expected


def test_pieces_are_counted_from_the_last_query():
    often = torch.zeros(300, 300, dtype=torch.int64)
    for at, to, seen in turned(300, 300, True, 70, torch.device("cpu")):
        often[at, to] += 1 if seen is None else seen.long()
    places = torch.arange(300)
    assert torch.equal(often.flip(0).bool(), by_place(places[:, None], places, Sight(1.0, window=70)))
    assert int(often.max()) == 1


@pytest.mark.parametrize(("causal", "window"), [(True, WHOLE), (False, 90)])
def test_the_compiler_s_operators_are_the_functions(causal, window):
    """torch's own checks of an operator: schema, no changed input, shapes, types and strides as told beforehand."""
    q, k, v = (t.detach().float().transpose(1, 2).contiguous() for t in inputs(80, 2))
    values = torch.randn(HEADS, 159)
    out, normaliser = mixed(q, k, v, values, causal, window)
    ways = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.fledge.by_distance.default, (q, k, v, values, causal, window), test_utils=ways)
    back = (torch.randn_like(out), q, k, v, values, out, normaliser, causal, window, True)
    torch.library.opcheck(torch.ops.fledge.by_distance_back.default, back, test_utils=ways)
    for got, expected in zip(torch.ops.fledge.by_distance_back(*back), gradients(*back), strict=True):
        assert torch.equal(got, expected)
