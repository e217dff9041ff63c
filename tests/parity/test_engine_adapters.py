"""One base in the engine with PEFT's adapters beside it: the logits of PEFT's models, all of them in one pass."""

from __future__ import annotations

import peft
import pytest
import torch

from fledge.engine.row import Row, Source
from fledge.engine.runner import Runner
from fledge.errors import ConfigError
from fledge.model.folder import load_model
from fledge.nn.native.library import build
from tests.parity.cases import BOTH, ENCODERS
from tests.parity.reference import limit, some_ids
from tests.tune.test_peft import EVERY, TIED
from tests.tune.theirs import base, random_adapters, their_logits, with_peft

pytestmark = pytest.mark.filterwarnings(TIED)
WRITERS = [(kind, name, config) for kind, name, config in EVERY if name not in ENCODERS]
IDS = [f"{kind}-{name}" for kind, name, _ in WRITERS]
ON_TORCH = {"t5"}  # what the kernels do not compute


def rows_beside(runner: Runner, adapters: list[str], n_tokens: int, sources: list[Source]) -> list[Row]:
    """A row of each adapter and line of ids, in blocks of its own."""
    n_blocks = -(-n_tokens // runner.block_tokens)
    rows = []
    for number, adapter in enumerate(adapters):
        blocks = tuple(range(number * n_blocks, (number + 1) * n_blocks))
        source = sources[number] if sources else None
        ids = tuple(some_ids(2)[number % 2].tolist())
        rows.append(Row(blocks, 0, ids, True, number, source, adapter))
    return rows


def sources_of(name: str, adapters: list[str]) -> list[Source]:
    if name not in BOTH:
        return []
    ids = [tuple(line) for line in some_ids(2, 33).tolist()]
    return [Source(f"{key} {n}".encode(), ids[n % 2]) for n, key in enumerate(adapters)]


@pytest.mark.parametrize(("kind", "name", "config"), WRITERS, ids=IDS)
@pytest.mark.parametrize("native", [True, False], ids=["kernels", "torch"])
def test_rows_go_through_their_own_adapter_or_through_the_base(native, kind, name, config, tmp_path, monkeypatch):
    if native:
        build()
    else:
        monkeypatch.setenv("FLEDGE_NATIVE", "0")
    alone = their_logits(name, base(name, tmp_path / "base"))
    first = their_logits(name, with_peft(base(name, tmp_path / "base"), config, tmp_path / "first"))
    other = random_adapters(peft.get_peft_model(base(name, tmp_path / "base"), config), 12)
    second = their_logits(name, other)
    other.save_pretrained(tmp_path / "second", save_embedding_layers=False)
    assert (first - second).abs().max() > 100 * limit(first)  # the control
    runner = Runner(load_model(tmp_path / "base"), 6, folder=tmp_path / "base")
    assert (runner.compiled is not None) == (native and name not in ON_TORCH), runner.why_torch
    for key in ("first", "second"):
        runner.add_adapter(key, runner.read_adapter(str(tmp_path / key)))
    adapters = ["first", "first", "", "second", "second", ""]
    rows = rows_beside(runner, adapters, some_ids(2).shape[1], sources_of(name, adapters))
    wanted = {"first": first, "second": second, "": alone}
    got = [torch.as_tensor(one) for one in runner.forward(rows)]
    for number, (adapter, logits) in enumerate(zip(adapters, got, strict=True)):
        theirs = wanted[adapter][number % 2]
        assert (logits - theirs).abs().max() <= limit(theirs), (adapter, number)
    by_itself = [torch.as_tensor(runner.forward([row])[0]) for row in rows]
    for one, together in zip(by_itself, got, strict=True):  # whatever company it has
        assert torch.equal(one, together)


def test_what_only_stands_beside_its_own_base_is_refused(tmp_path):
    model = base("llama", tmp_path / "base")
    peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path / "virtual"
    )
    runner = Runner(load_model(tmp_path / "base"), 1, folder=tmp_path / "base")
    with pytest.raises(ConfigError, match="got virtual tokens; serve the adapter's folder by itself"):
        runner.read_adapter(str(tmp_path / "virtual"))
