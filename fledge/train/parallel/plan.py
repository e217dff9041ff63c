"""`fledge plan`: memory of a process, bytes between processes and the share of the peak to expect, from a config."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig
from fledge.model.cost import DEVICES, this_cpu
from fledge.model.count import flops_per_token
from fledge.model.memory import training_memory
from fledge.model.show import resolve, size
from fledge.model.show_config import ShowConfig
from fledge.train.config import TrainConfig
from fledge.train.parallel.estimate import held_by, memory, traffic
from fledge.train.parallel.fit import check_model
from fledge.train.parallel.plan_config import PlanConfig
from fledge.train.parallel.schedule import idle_share


def activations(config: ModelConfig, plan: PlanConfig, sizes: dict[str, int], micro_rows: int, n_micro: int) -> int:
    """Bytes that a process keeps for the backward pass: one process's, divided as Korthikanti et al. 2022 (eq. 2, 4)
    divide them (of 34 numbers a token and channel 24 lie inside matrices), for the micro-batches in flight."""
    tokens = plan.row_tokens or config.context_tokens
    whole = training_memory(config, micro_rows, tokens, plan.checkpoint_blocks).activations
    t = sizes["tensor"]
    share = 1 / t if plan.parallel.sequence else (10 + 24 / t) / 34
    in_flight = n_micro if plan.parallel.schedule == "gpipe" else min(n_micro, sizes["pipe"])
    return round(whole * share / sizes["pipe"] * (in_flight if sizes["pipe"] > 1 else 1))


def planned(config: ModelConfig, plan: PlanConfig) -> dict[str, Any]:
    """The figures of `fledge plan`."""
    sizes = plan.parallel.sizes(plan.processes)
    train = TrainConfig(rows=plan.rows, micro_rows=plan.micro_rows, parallel=plan.parallel)
    check_model(config, train, sizes)
    own_rows = plan.rows // plan.parallel.readers(plan.processes)
    micro_rows = plan.micro_rows or own_rows
    n_micro, tokens = own_rows // micro_rows, plan.row_tokens or config.context_tokens
    stages = [held_by(config, sizes, rank, plan.parallel.sequence) for rank in first_of_stages(sizes)]
    held = max(stages, key=lambda one: one.own)
    found = memory(held, sizes["shard"], plan.parallel.shard_stage)
    found["activations"] = activations(config, plan, sizes, micro_rows, n_micro)
    sent = traffic(config, plan.parallel, sizes, held, micro_rows * tokens, n_micro)
    peak = this_cpu(0).peak if plan.device == "cpu" else DEVICES[plan.device].peak
    flops = flops_per_token(config, tokens) * plan.rows * tokens
    idle = idle_share(sizes["pipe"], n_micro)
    computing = (
        flops * (4 / 3 if plan.checkpoint_blocks else 1) / (plan.processes * peak * plan.utilisation) / (1 - idle)
    )
    sending = sum(sent.values()) / (plan.gigabytes_per_second * 1e9)
    seconds = computing + sending
    return {
        "mesh": sizes,
        "micro_batches": n_micro,
        "bytes": found | {"all": sum(found.values())},
        "sent": sent | {"all": sum(sent.values())},
        "idle_share": idle,
        "seconds": {"computing": computing, "sending": sending, "step": seconds},
        "tokens_per_second": plan.rows * tokens / seconds,
        "mfu": flops / (plan.processes * peak * seconds),
    }


def first_of_stages(sizes: dict[str, int]) -> range:
    """The first rank of each stage of the pipe."""
    each = sizes["data"] * sizes["shard"] * sizes["tensor"]
    return range(0, each * sizes["pipe"], each)


def plan(config: PlanConfig, json: bool = False) -> dict[str, Any]:
    """Print (without `json`) and give what a run would take."""
    result = planned(resolve(ShowConfig(path=config.path, model=config.model)), config)
    if not json:
        print_plan(result)
    return result


def print_plan(result: dict[str, Any]) -> None:
    print("mesh       " + " x ".join(f"{axis} {n}" for axis, n in result["mesh"].items())
          + f" · {result['micro_batches']} micro-batches a step")  # fmt: skip
    for title, key in (("memory", "bytes"), ("sent", "sent")):
        parts = dict(result[key])
        told = " · ".join(f"{name} {size(n)}" for name, n in parts.items() if name != "all")
        print(f"{title:<10} {size(parts['all'])} a process{' a step' if key == 'sent' else ''}: {told or 'nothing'}")
    seconds = result["seconds"]
    print(f"step       {seconds['step']:.3g} s: computing {seconds['computing']:.3g}, sending {seconds['sending']:.3g} "
          f"(one after the other), a stage idle {result['idle_share']:.1%}")  # fmt: skip
    print(f"speed      {result['tokens_per_second']:,.0f} tokens/s, MFU {result['mfu']:.1%}")
