"""docs/performance.md from the results that are kept: `python bench/page.py > docs/performance.md`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DECODE = ("decode.json", "decode_zen4.json", "decode_zen3.json")
PEERS = ("transformers", "ctranslate2", "llama.cpp F32", "llama.cpp Q8_0", "llama.cpp Q4_0", "llama.cpp Q4_K_M")


INTRODUCTION = """# How fast is it, and how it is measured

This page is made by `python bench/page.py > docs/performance.md` from the files in [bench/results](../bench/results).

Decoding, beside peers (`python bench/decode.py`): LLaMA shapes of 15M, 125M and 1.1B parameters with random weights,
the same for everybody; rounds of all peers in turn, the median of each round's ratio. One thread is measured by CPU
time, two by wall time. A bold number is below 1: there the peer is faster. Each table names its processor and date, and
is of the code of that date; tables before 2026-11-30 are of attention whose scores were summed across lanes.

Serving (`python bench/serve.py`): an own client sends over HTTP and reads streams. TTFT is from when a request was
due to its first text, ITL between pieces of text, goodput the share of all requests sent whose answer came whole and
in time; the formulas are at the top of [bench/load.py](../bench/load.py), what is done in
[bench/scenes.py](../bench/scenes.py). Two results are compared by `python bench/gate.py BEFORE.json AFTER.json`,
which fails where throughput, goodput or a median is more than 5 % worse.

Between two tokens of a running answer lies one step: a pass over a token of each running answer and one over at most
`engine.prefill_chunk` prompt tokens. So the 99th percentile of ITL while prompts are read is bounded by

    time of a decoding pass + prefill_chunk / (prompt tokens a second)

## Decoding
"""

PASSES = """A forward pass alone, and one with the gradients of every parameter, beside transformers' model of the same
config.json (`python bench/forward.py`): float32, one row, how many times as fast, on 1 and 2 threads, eager against
eager and compiled against compiled; the median of 7 rounds, each peer in its own process. `memory`: peak bytes that
model and passes take, of theirs, without gradients and with. Every cell names its processor, its range and the digest
of the code that computed it in [bench/results/forward.json](../bench/results/forward.json).
"""

STEPS = """A whole step of training (`python bench/train_shapes.py`): batch, forward, backward, clipping, AdamW and a
line of the log, float32, dropout 0, without checkpoints; fledge's own loop beside a plain loop over a small model of
nanoGPT's kind, transformers' model in the same loop, transformers' Trainer, and LitGPT's model in the plain loop.
`nanogpt`: 6 layers, width 384, 12 rows of 256; `gpt2`: 124M, 4 rows of 256; `bert`: base, 4 rows of 256; `t5`: small, 4
rows of 256 read and 64 written. The median of 7 rounds' ratios, and their range. `of the peak`: nanoGPT's count of
operations over the measured speed of a large float32 product.
"""


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def where(tree: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in tree["versions"].items())
    return f"{tree['machine']['processor']}, {tree['machine']['cores']} cores, {versions}, {tree['date']}"


def where_parts(tree: dict[str, Any]) -> str:
    """As `where`, of parts that may have been measured on several machines."""
    parts_of: dict[str, list[str]] = {}
    for name, processor in tree["processors"].items():
        parts_of.setdefault(processor, []).append(name)
    if len(parts_of) == 1:
        return where(tree)
    by_machine = "; ".join(f"{processor}: {', '.join(names)}" for processor, names in parts_of.items())
    return f"{by_machine}; {where(tree).split(', ', 1)[1]}"


def decode_table(tree: dict[str, Any]) -> list[str]:
    """fledge's tokens a second, and how many times as fast it is as each peer: above 1 it is ahead."""
    lines = ["| model, weights, threads, task | fledge, tokens/s | times as fast as |", "|---|---|---|"]
    for name, cell in tree["cells"].items():
        table = cell["tokens_per_second"]
        ratios = [(peer, 1 / table[peer]["ratio_to_fledge"]) for peer in PEERS if peer in table]
        words = [f"{peer} {'**' if r < 1 else ''}{r:.2f}{'**' if r < 1 else ''}" for peer, r in ratios]
        lines.append(f"| {name} | {table['fledge']['median']:.0f} | {', '.join(words)} |")
    return lines


def losses(tree: dict[str, Any]) -> str:
    """In how many cells fledge is ahead of all, and where it is not."""
    cells = {name: cell for name, cell in tree["cells"].items() if set(cell["tokens_per_second"]) & set(PEERS)}
    behind = [
        name
        for name, cell in cells.items()
        if any(cell["tokens_per_second"].get(peer, {}).get("ratio_to_fledge", 0) > 1 for peer in PEERS)
    ]
    n = len(cells)
    return (
        f"Ahead of every peer that was there in {n - len(behind)} of {n} cells. Behind in: {', '.join(behind) or '-'}."
    )


def load_row(name: str, run: dict[str, Any], further: str = "") -> str:
    first, gap = run["ttft_ms"], run["itl_ms"]
    low, high = first["p99_interval"]
    cells = [name, run["requests"], run["tokens_per_second"], f"{first['p50']:.0f}"]
    cells += [f"{first['p99']:.0f} ({low:.0f}-{high:.0f})", f"{gap['p50']:.1f}", f"{gap['p99']:.1f}", further]
    return f"| {' | '.join(map(str, cells))} |"


def pass_tables(tree: dict[str, Any]) -> list[str]:
    """Times as fast as transformers, a row a model and length; and which processor measured what."""
    cells = tree["cells"]
    ways = [(way, mode) for way in ("forward", "backward") for mode in ("eager", "compiled")]
    lines = [
        "| model, tokens | forward, eager | compiled | with gradients, eager | compiled | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(" ".join(key.split()[:2]) for key in cells):
        row = []
        for way, mode in ways:
            found = [cells.get(f"{name} {way} {mode} {threads}", {}).get("ratio") for threads in (1, 2)]
            row.append(", ".join("-" if ratio is None else times(ratio) for ratio in found))
        memory = [cells.get(f"{name} {way} eager 1", {}) for way in ("forward", "backward")]
        row.append(", ".join(f"{m['fledge_peak_bytes'] / m['transformers_peak_bytes']:.2f}" for m in memory if m))
        lines.append(f"| {name} | {' | '.join(row)} |")
    count = Counter(cell["processor"] for cell in cells.values())
    return [*lines, "", "Cells by processor: " + ", ".join(f"{name} {n}" for name, n in count.most_common()) + "."]


def times(ratio: float) -> str:
    """Bold where the peer is faster."""
    return f"**{ratio:.3f}**" if ratio < 1 else f"{ratio:.3f}"


def step_table(tree: dict[str, Any]) -> list[str]:
    """Seconds of fledge's step, and how many times as fast that is as each peer's."""
    peers = ("plain", "transformers", "trainer", "litgpt")
    lines = [
        f"| shape, way, threads | fledge, s | of the peak | {' | '.join(peers)} |",
        "|---|---|---" + "|---" * 4 + "|",
    ]
    for name, cell in tree["cells"].items():
        share = f"{100 * cell['share_of_peak']:.0f} %" if "share_of_peak" in cell else "-"
        row = [
            f"{times(cell[p]['ratio'])} ({cell[p]['ratio_low']:.2f}-{cell[p]['ratio_high']:.2f})" if p in cell else "-"
            for p in peers
        ]
        lines.append(f"| {name} | {cell['fledge']['seconds']:.3f} | {share} | {' | '.join(row)} |")
    return lines


def serve_tables(tree: dict[str, Any]) -> list[str]:
    parts = tree["parts"]
    head = "| | requests | tokens/s | TTFT p50, ms | TTFT p99 (95 %) | ITL p50, ms | ITL p99 | goodput |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    lines += [load_row(f"{c} callers", run) for c, run in parts["sweep"]["callers"].items()]
    for load, run in parts.get("poisson", {}).items():
        if load != "objective":
            lines.append(load_row(f"Poisson, {100 * float(load):.0f} %", run, f"{100 * run['goodput']:.1f} %"))
    lines += ["", "| trial | what | measured |", "|---|---|---|"]
    return lines + [f"| {number} | {what} | {value} |" for number, what, value in trial_rows(parts)]


def trial_rows(parts: dict[str, Any]) -> list[tuple[int, str, str]]:
    flood, fair, added = parts["overload"], parts["fairness"], parts["overhead"]["added_ttft_ms"]
    truth, refusal = parts["truth"], flood["refusal_ms"]
    times = [run[name] for run in truth["runs"] for name in ("ttft", "itl", "e2e")]
    exact = all(run["tokens_server"] == run["tokens_usage"] == run["tokens_recounted"] for run in truth["runs"])
    chunks = [fair[name]["beside_ms"]["p99"] for name in ("chunk_32", "chunk_512")]
    return [
        (61, "10 times the capacity: refusals, p50, p99, ms", f"{refusal['p50']}, {refusal['p99']}"),
        (61, "admitted that were served in time", f"{100 * flood['admitted_in_time']:.1f} %"),
        (61, "throughput over its peak", f"{100 * flood['throughput_of_peak']:.1f} %"),
        (61, "memory at the start, a third, the end, MiB", ", ".join(map(str, flood["memory_mib"]))),
        (61, "as usual again after, s", f"{flood['normal_after_seconds']}"),
        (63, "p99 TTFT beside another caller's flood, over quiet", f"{fair['two_callers']['p99_ratio']}"),
        (63, "the same, flood and requests of one caller", f"{fair['one_caller']['p99_ratio']}"),
        (63, "p99 ITL while prompts are read, chunks of 32 and 512, ms", f"{chunks[0]}, {chunks[1]}"),
        (114, "TTFT added to a bare engine's, p50 and p99, ms", f"{added['p50']}, {added['p99']}"),
        *least_rows(parts["overhead"].get("one_token_ttft_ms")),
        (115, "tokens/s of 8 callers over 1", f"{parts['sweep']['batching_gain']:.2f}"),
        (117, "server's times over the client's", f"{min(times):.3f} to {max(times):.3f}"),
        (117, "tokens by server, usage and recount", "equal" if exact else "NOT EQUAL"),
        (117, f"tokens/s of {len(truth['runs'])} runs, spread", f"{100 * truth['spread']:.1f} %"),
    ]


def least_rows(found: dict[str, dict[str, float]] | None) -> list[tuple[int, str, str]]:
    """Times to the first token of servers that do nothing, beside ours with an engine that takes no time."""
    whose = {"alone": "of a server that does nothing", "behind": "with a process behind it", "fledge": "of ours"}
    rows = [(114, f"TTFT {whose[name]}, p50 and p99, ms", one) for name, one in (found or {}).items()]
    return [(number, what, f"{one['p50']}, {one['p99']}") for number, what, one in rows]


def main() -> None:
    print(INTRODUCTION)
    for name in DECODE:
        tree = result(name)
        print(f"**{where(tree)}**\n\n{losses(tree)}\n")
        print("\n".join(decode_table(tree)), end="\n\n")
    tree = result("forward.json")
    means = "; ".join(f"{name}: {mean:.3f}" for name, mean in tree["geometric_means"].items())
    print(f"## Passes\n\n{PASSES}\nGeometric means: {means}.\n")
    print("\n".join(pass_tables(tree)), end="\n\n")
    tree = result("train_shapes.json")
    print(f"## Training steps\n\n{STEPS}\n**{where(tree)}**\n")
    print("\n".join(step_table(tree)), end="\n\n")
    tree = result("serve.json")
    start = tree["parts"]["startup"]
    cores = f"{len(tree['cores_used'])} core{'s' * (len(tree['cores_used']) > 1)}"
    print(f"## Serving\n\n**{where_parts(tree)}; client, server and engine on {cores}**\n")
    if tree["short"]:
        print(f"Short runs, with few requests a row: {', '.join(tree['short'])}.")
        print("A short open loop at 120 % ends before the line is full.\n" if "poisson" in tree["short"] else "")
    print("\n".join(serve_tables(tree)), end="\n\n")
    print(
        f"From the start of `fledge serve` to the first token of a 125M shape in INT8: "
        f"{start['to_first_token_seconds']:.1f} s (ready after {start['ready_seconds']:.1f} s)."
    )


if __name__ == "__main__":
    main()
