"""Calibration: the moments are those of what a map reads, rows are drawn by the seed, and memory does not grow."""

from __future__ import annotations

import pytest
import torch

from fledge.batch import OneDocument, one_document
from fledge.compress.calibration import Walk, calibration_rows, row_tokens_of
from fledge.compress.units import units_of
from fledge.errors import ConfigError, DataError
from fledge.text.tokenizer import byte_level
from tests.compress.tiny import ids, text_file, tiny


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_moments_are_those_of_a_whole_pass(name):
    model = tiny(name)
    rows = ids(5, 30)
    seen: dict[str, list[torch.Tensor]] = {}
    for unit in units_of(model):
        mapped = model.get_submodule(unit.name)
        mapped.register_forward_pre_hook(lambda _, inputs, at=unit.name: seen.setdefault(at, []).append(inputs[0]))
    with torch.no_grad():
        model.hidden(one_document(rows), OneDocument())
    whole = {at: torch.cat(parts).flatten(0, -2).double() for at, parts in seen.items()}
    assert len(whole) == 8
    walk = Walk(model, rows)
    for index, block in walk.blocks():
        for unit in (one for one in units_of(model) if one.block is block):
            x = whole[unit.name]
            found = walk.moments(unit, index)
            assert found.n == len(x) == 150
            assert torch.allclose(found.hessian.double(), x.t() @ x / len(x), atol=1e-4 * float(x.square().mean()))
            assert torch.allclose(found.mean_abs.double(), x.abs().mean(0), rtol=1e-4)


def test_rows_are_stretches_of_the_text_that_the_seed_draws(tmp_path):
    path, tokenizer = text_file(tmp_path / "text.txt"), byte_level()
    rows = calibration_rows(tokenizer, path, 6, 40, seed=3)
    assert rows.shape == (6, 40)
    assert torch.equal(rows, calibration_rows(tokenizer, path, 6, 40, seed=3))
    assert not torch.equal(rows, calibration_rows(tokenizer, path, 6, 40, seed=4))
    text = path.read_text()
    assert all(tokenizer.decode(row.tolist()) in text for row in rows)


def test_too_little_text_and_rows_that_are_too_long_are_refused(tmp_path):
    (tmp_path / "short.txt").write_text("ab")
    with pytest.raises(DataError, match="expected at least 40 tokens to calibrate with"):
        calibration_rows(byte_level(), tmp_path / "short.txt", 2, 40, 0)
    with pytest.raises(DataError, match="found nothing"):
        calibration_rows(byte_level(), tmp_path / "none", 2, 40, 0)
    with pytest.raises(ConfigError, match="row_tokens: expected at most the model's 64"):
        row_tokens_of(tiny(), 65)


def test_a_model_that_is_no_one_row_of_blocks_is_refused():
    for name in ("albert", "t5"):
        with pytest.raises(ConfigError, match="expect one stack of blocks"):
            Walk(tiny(name), ids())
