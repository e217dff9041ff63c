"""Schedules of a pipe, played through step by step; and what `fledge plan` counts, against what processes hold."""

from __future__ import annotations

import pytest

from fledge.model.config import ShapeConfig
from fledge.model.count import count
from fledge.model.families import family
from fledge.parallel.config import ParallelConfig
from fledge.train.parallel.estimate import Held, held_by, memory, traffic
from fledge.train.parallel.plan import plan, planned
from fledge.train.parallel.plan_config import PlanConfig
from fledge.train.parallel.schedule import SCHEDULES, idle_share


def played(name: str, n_stages: int, n_micro: int) -> tuple[int, list[int], float]:
    """Time slots until all stages are done, a forward taking one and a backward two; the most micro-batches that each
    stage keeps; the share of all slots in which a stage waits."""
    orders = [SCHEDULES[name](stage, n_stages, n_micro) for stage in range(n_stages)]
    done: dict[tuple[int, str, int], int] = {}
    free, kept, most = [0] * n_stages, [0] * n_stages, [0] * n_stages
    while any(orders):
        moved = False
        for stage, order in enumerate(orders):
            if not order:
                continue
            direction, k = order[0]
            before = (stage - 1, "forward", k) if direction == "forward" else (stage + 1, "backward", k)
            outside = before[0] in (-1, n_stages)
            if not outside and before not in done:
                continue
            at = max(free[stage], 0 if outside else done[before])
            free[stage] = done[(stage, direction, k)] = at + (1 if direction == "forward" else 2)
            kept[stage] += 1 if direction == "forward" else -1
            most[stage] = max(most[stage], kept[stage])
            order.pop(0)
            moved = True
        assert moved, "every stage waits for another"
    slots = max(free)
    return slots, most, 1 - 3 * n_micro / slots


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("n_stages", "n_micro"), [(1, 3), (2, 1), (2, 5), (4, 3), (4, 8), (3, 3)])
def test_no_stage_waits_for_ever_and_each_idles_as_long_as_the_paper_says(name, n_stages, n_micro):
    slots, most, idle = played(name, n_stages, n_micro)
    assert slots == 3 * (n_micro + n_stages - 1)
    assert idle == pytest.approx(idle_share(n_stages, n_micro))
    bound = [n_micro] * n_stages if name == "gpipe" else [min(n_micro, n_stages - s) for s in range(n_stages)]
    assert most == bound


SHAPE = ShapeConfig("llama", width=32, layers=4, heads=4, context_tokens=32, vocab_size=64, tie=False)


def test_what_stages_and_tensor_processes_hold_adds_up_to_the_model():
    config = family("llama").new_config(SHAPE)
    whole = count(config).parameters
    norms = 32 * (2 * 4 + 1)
    sizes = ParallelConfig(tensor=2, pipe=2).sizes(4)
    held = [held_by(config, sizes, rank).own for rank in range(4)]
    assert sum(held) == whole + norms  # every norm stands twice, everything else once
    assert held_by(config, ParallelConfig().sizes(3), 2).own == whole


def test_sharding_divides_what_its_stage_says():
    held = Held(own=1000, largest_block=200, outside=400, trained=1000)
    alone = memory(held, 1, 3)
    assert alone == {"weights": 4000, "gradients": 4000, "optimizer": 8000}
    assert memory(held, 4, 1) == {**alone, "optimizer": 2000}
    assert memory(held, 4, 2) == {"weights": 5000, "gradients": 2600, "optimizer": 2000}
    assert memory(held, 4, 3) == {"weights": 4 * (250 + 400 + 200), "gradients": 2600, "optimizer": 2000}


def test_traffic_is_that_of_rings():
    config, held = family("llama").new_config(SHAPE), Held(1000, 200, 400, 1000)
    sent = traffic(config, ParallelConfig(), ParallelConfig().sizes(4), held, 64, 2)
    assert sent == {"gradients summed": round(2 * 4000 * 3 / 4)}
    mesh = ParallelConfig(shard=4)
    assert traffic(config, mesh, mesh.sizes(4), held, 64, 2) == {
        "weights gathered": 2 * 2 * 3000, "gradients scattered": 2 * 3000,
    }  # fmt: skip
    assert traffic(config, ParallelConfig(), ParallelConfig().sizes(1), held, 64, 2) == {}


def test_a_plan_without_traffic_reaches_what_a_process_reaches_alone(capsys):
    alone = planned(family("llama").new_config(SHAPE), PlanConfig(model=SHAPE, utilisation=0.4))
    assert alone["mfu"] == pytest.approx(0.4) and alone["sent"] == {"all": 0}
    piped = plan(PlanConfig(model=SHAPE, processes=2, parallel=ParallelConfig(pipe=2), utilisation=0.4, micro_rows=2))
    assert piped["idle_share"] == pytest.approx(1 / 5) and piped["mfu"] < 0.4 * 0.8
    assert "a stage idle 20.0%" in capsys.readouterr().out
