"""What each way to a smaller model costs: curves of pruning with and without recovery, and one table of full, pruned,
distilled, shared and quantized models.

    python runs/compress/tables.py "$FLEDGE_DATA/ckpt_stories260K" \\
        "$FLEDGE_DATA/text_tinystories_sample/tinystories.txt" out/compress

The base is stories260K, gone on with on the text (extracts from novels, whatever its file is called). Every tenth piece
of the text is held out. Each row is a JSON file under OUT/rows as soon as it is known, and what is there is not made
again; then OUT/compress.json, OUT/compress.md and OUT/compress.html are written.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from page import markdown, page

from fledge import device as devices
from fledge.compress.calibration import calibration_rows
from fledge.compress.config import QuantizeConfig
from fledge.compress.prune import sparsity, zero_smallest
from fledge.compress.prune_config import PruneConfig
from fledge.compress.wanda import zero_least_used
from fledge.config import from_dict
from fledge.engine.runner import Runner
from fledge.engine.speed import NEW_TOKENS, PROMPT_TOKENS, decode
from fledge.evals.bits import document_bits
from fledge.lineage import write_text_durably
from fledge.model.convert import convert
from fledge.model.convert_config import ConvertConfig
from fledge.model.folder import find_model, load_model
from fledge.recipes.config import PretrainConfig
from fledge.recipes.distill import distill
from fledge.recipes.distill_config import DistillConfig
from fledge.recipes.pretrain import pretrain
from fledge.recipes.prune import prune_model
from fledge.recipes.quantize import quantize_model, weight_bytes
from fledge.text.document import Document
from fledge.text.tokenizer import Tokenizer

PIECE_BYTES, HELD_OUT = 4500, 10
BASE_STEPS, STEPS, ENCODER_STEPS, SEEDS = 400, 40, 120, (1, 2, 3)
LEVELS = tuple(n / 10 for n in range(1, 10))
RECOVERED = (0.3, 0.5, 0.7, 0.9)
PARTS = {"neurons": (0.25, 0.5, 0.75), "heads": (0.25, 0.5, 0.75), "layers": (0.2, 0.4, 0.6, 0.8)}
ROWS, ROW_TOKENS = 32, 128  # of calibration text
SPEED_ROUNDS = 16


class Bench:
    """The folders of a run and what is measured in them."""

    def __init__(self, checkpoint: Path, text: Path, out: Path):
        self.checkpoint, self.text, self.out = checkpoint, text, out
        self.documents: list[Document] = []

    @property
    def base(self) -> Path:
        return find_model(self.out / "base")

    @property
    def training_text(self) -> Path:
        return self.out / "text"

    def row(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A row by its file, made if there is none."""
        path = self.out / "rows" / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            began = time.process_time()
            found = make()
            found["cpu_seconds"] = round(time.process_time() - began, 1)
            write_text_durably(path, json.dumps(found, indent=1) + "\n")
            print(f"{name}: {found}", flush=True)
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return row

    def prepare(self) -> None:
        """The text in pieces, and the base: stories260K that has read them."""
        if not self.training_text.is_dir():
            for number, piece in enumerate(pieces(self.text)):
                folder = self.out / ("held-out" if number % HELD_OUT == HELD_OUT - 1 else "text")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number:03}.txt").write_text(piece, encoding="utf-8")
        if not (self.out / "stories").is_dir():
            tokenizer = str(self.checkpoint / "tok512.bin")
            convert(ConvertConfig(str(self.checkpoint / "stories260K.bin"), str(self.out / "stories"), tokenizer))
        pretrain(training("base", self.out, self.training_text, self.out / "stories", BASE_STEPS))
        files = sorted((self.out / "held-out").glob("*.txt"))
        self.documents = [Document(path.name, path.read_text(encoding="utf-8")) for path in files]

    def measured(self, folder: Path) -> dict[str, Any]:
        model, tokenizer = load_model(folder), Tokenizer.load(find_model(folder))
        found = self.quality(model, tokenizer)
        return found | {"bytes": weight_bytes(find_model(folder)), "model": str(find_model(folder))}

    def quality(self, model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
        loaded = SimpleNamespace(transformer=model, tokenizer=tokenizer)
        bits = document_bits(loaded, self.documents, model.config.context_tokens // 2)
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "perplexity": bits.perplexity,
            "bits_per_byte": sum(bits.bits) / sum(bits.n_bytes),
            "documents": [b / n for b, n in zip(bits.bits, bits.n_bytes, strict=True)],
        }

    def tuned(self, name: str, start: Path, seed: int, steps: int = STEPS, zeros: bool = False) -> dict[str, Any]:
        """Gone on with on the text."""
        config = training(f"runs/{name}-{seed}", self.out, self.base.parent / "data", start, steps, seed, zeros)
        return self.measured(Path(pretrain(config)["model"]))

    def pruned(self, method: str, share: float) -> Path:
        """The folder of a pruned base."""
        out = self.out / "pruned" / f"{method}-{share:g}"
        if not out.is_dir():
            text = None if method == "magnitude" else self.training_text
            prune_model(
                PruneConfig(
                    self.base, out, method, share, calibration=text, rows=ROWS, row_tokens=ROW_TOKENS, threads=1
                ),  # type: ignore[arg-type]
                json=True,
            )
        return out


def training(
    name: str, out: Path, text: Path, start: Path, steps: int, seed: int = 1, zeros: bool = False
) -> PretrainConfig:
    rate = 1e-3 if name != "base" else 2e-3
    return from_dict(PretrainConfig, common(out / name, text, start, steps, seed, rate) | {"keep_zeros": zeros})


def common(run: Path, text: Path, start: Path, steps: int, seed: int, rate: float) -> dict[str, Any]:
    train = {
        "steps": steps, "rows": 8, "row_tokens": 128, "learning_rate": rate, "seed": seed, "threads": 1,
        "eval_every_steps": 0, "save_every_steps": 0, "warmup_steps": min(20, steps // 3), "keep_last": 1,
    }  # fmt: skip
    data = {"path": str(text), "val_fraction": 0.02}
    return {"init_from": str(start), "data": data, "train": train, "run": {"dir": str(run)}}


def pieces(path: Path) -> list[str]:
    """Whole lines, about as many bytes each."""
    found, lines, size = [], list[str](), 0
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        lines.append(line)
        size += len(line.encode())
        if size >= PIECE_BYTES:
            found.append("".join(lines))
            lines, size = [], 0
    return found


def zeros(bench: Bench, method: str, share: float) -> dict[str, Any]:
    """A base with that share of zeros, measured without being written."""
    model, tokenizer = load_model(bench.base), Tokenizer.load(bench.base)
    if method == "magnitude":
        zero_smallest(model, share)
    else:
        zero_least_used(model, calibration_rows(tokenizer, bench.training_text, ROWS, ROW_TOKENS, 0), share)
    return {"zeros": sparsity(model)} | bench.quality(model, tokenizer)


def parts(bench: Bench, method: str, share: float) -> dict[str, Any]:
    """A base without that share of its parts."""
    return bench.measured(bench.pruned(method, share))


def curves(bench: Bench) -> dict[str, Any]:
    """By method: shares taken out, without and with recovery (seed 1)."""
    found: dict[str, Any] = {}
    for method in ("magnitude", "wanda"):
        found[method] = [
            {"share": share, "before": bench.row(f"{method}-{share:g}", lambda m=method, s=share: zeros(bench, m, s))}
            for share in LEVELS
        ]
    for method, shares in PARTS.items():
        found[method] = [
            {"share": share, "before": bench.row(f"{method}-{share:g}", lambda m=method, s=share: parts(bench, m, s))}
            for share in shares
        ]
    for method, points in found.items():
        for point in points:
            share = point["share"]
            if method in PARTS or share in RECOVERED:
                point["after"] = bench.row(
                    f"{method}-{share:g}-recovered-1",
                    lambda m=method, s=share: bench.tuned(
                        f"{m}-{s:g}", bench.pruned(m, s), 1, zeros=m in ("magnitude", "wanda")
                    ),
                )
    return found


def distilled(bench: Bench, seed: int) -> dict[str, Any]:
    """Three of five layers that listen to the base as they are tuned, as many steps as a recovery has."""
    start, data = bench.pruned("layers", 0.4), bench.base.parent / "data"
    config = common(bench.out / f"runs/distilled-{seed}", data, start, STEPS, seed, 1e-3)
    lessons = {"path": str(bench.base), "share": 0.5, "temperature": 2.0}
    return bench.measured(Path(distill(from_dict(DistillConfig, config | {"teacher": lessons}))["model"]))


def quantized(bench: Bench, method: str, bits: int) -> dict[str, Any]:
    out = bench.out / "quantized" / f"{method}-{bits}"
    if not out.is_dir():
        text = None if method == "rtn" else bench.training_text
        quantize_model(
            QuantizeConfig(
                bench.base, out, method, bits, calibration=text, rows=ROWS, row_tokens=ROW_TOKENS, threads=1
            ),  # type: ignore[arg-type]
            json=True,
        )
    full = sum(parameter.numel() for parameter in load_model(bench.base).parameters())
    return bench.measured(out) | {"parameters": full}


def shared(bench: Bench, family: str, seed: int) -> dict[str, Any]:
    """An encoder of five layers of the base's width from initial weights: of weights of their own (bert), or of one
    layer's (albert); nats a masked token of the validation split."""
    config = common(bench.out / f"runs/{family}-{seed}", bench.training_text, Path(), ENCODER_STEPS, seed, 3e-3)
    config["data"] = {"path": str(bench.training_text), "tokenizer": str(bench.base), "val_fraction": 0.1}
    shape = {"family": family, "width": 64, "layers": 5, "heads": 8, "hidden": 172, "context_tokens": 128}
    del config["init_from"]
    done = pretrain(from_dict(PretrainConfig, config | {"objective": "masked", "model": shape}))
    folder = Path(done["model"])
    model = load_model(folder)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "bytes": weight_bytes(folder),
        "masked_loss": done["val_masked_loss"], "masked_accuracy": done["val_masked_accuracy"],
        "masked_targets": done["val_tokens"],
    }  # fmt: skip


def encoders(bench: Bench) -> list[dict[str, Any]]:
    """Layers of their own beside one layer for all."""
    found = []
    for family in ("bert", "albert"):
        rows = [bench.row(f"{family}-{seed}", lambda f=family, s=seed: shared(bench, f, s)) for seed in SEEDS]
        found.append({"name": family} | overall(rows, "masked_loss"))
    return found


def overall(rows: list[dict[str, Any]], key: str = "bits_per_byte") -> dict[str, Any]:
    """Mean of seeds with its 95 % interval by Student's t, and the other figures of the first."""
    values = [row[key] for row in rows]
    interval = None
    if len(values) == 3:
        half = 4.303 * statistics.stdev(values) / 3**0.5
        interval = [statistics.mean(values) - half, statistics.mean(values) + half]
    figures = {name: statistics.mean(row[name] for row in rows) for name in (key, "perplexity") if name in rows[0]}
    return rows[0] | figures | {"interval": interval, "seeds": len(rows)}


def table(bench: Bench) -> list[dict[str, Any]]:
    """The decoders, all on the same held-out text, and their speeds, taken in turn."""
    many: dict[str, Callable[[int], dict[str, Any]]] = {
        "full, tuned as long": lambda seed: bench.tuned("full", bench.base, seed),
        "wanda 50 %, recovered": lambda seed: bench.tuned("wanda-0.5", bench.pruned("wanda", 0.5), seed, zeros=True),
        "half of the neurons, recovered": lambda seed: bench.tuned("neurons-0.5", bench.pruned("neurons", 0.5), seed),
        "3 of 5 layers, recovered": lambda seed: bench.tuned("layers-0.4", bench.pruned("layers", 0.4), seed),
        "3 of 5 layers, distilled": lambda seed: distilled(bench, seed),
    }
    found = [{"name": "full", "interval": None, "seeds": 1} | bench.row("full", lambda: bench.measured(bench.base))]
    known = {"wanda 50 %, recovered": "wanda-0.5", "half of the neurons, recovered": "neurons-0.5",
             "3 of 5 layers, recovered": "layers-0.4"}  # fmt: skip
    for name, make in many.items():
        stem = f"{known[name]}-recovered" if name in known else name.split(",")[1].strip().replace(" ", "-")
        rows = [bench.row(f"{stem}-{seed}", lambda m=make, s=seed: m(s)) for seed in SEEDS]
        found.append({"name": name} | overall(rows))
    for method, bits in (("rtn", 8), ("gptq", 4)):
        row = bench.row(f"{method}-{bits}", lambda m=method, b=bits: quantized(bench, m, b))
        found.append({"name": f"{bits} bits, {method}", "interval": None, "seeds": 1} | row)
    speeds = bench.row("speeds", lambda: {"speeds": decoding_speeds([Path(row["model"]) for row in found])})
    return [row | {"tokens_per_second": speed} for row, speed in zip(found, speeds["speeds"], strict=True)]


def decoding_speeds(folders: list[Path]) -> list[float]:
    """Tokens a second of CPU time, so that what else the machine does counts little: 16 tokens read and 48 written, the
    median of some rounds, all models in turn."""
    length = PROMPT_TOKENS + NEW_TOKENS
    runners = [Runner(load_model(folder), n_slots=1, context_tokens=length) for folder in folders]
    spent: list[list[float]] = [[] for _ in runners]
    for _ in range(SPEED_ROUNDS):
        for runner, mine in zip(runners, spent, strict=True):
            began = time.process_time()
            decode(runner, length)
            mine.append(time.process_time() - began)
    return [NEW_TOKENS / statistics.median(mine[1:]) for mine in spent]


def main(checkpoint: str, text: str, out: str = "out/compress") -> None:
    bench = Bench(Path(checkpoint), Path(text), Path(out))
    device = devices.pick("cpu", threads=1)
    bench.prepare()
    found = {
        "table": table(bench),
        "curves": curves(bench),
        "shared": [],
        "steps": STEPS, "encoder_steps": ENCODER_STEPS, "base_steps": BASE_STEPS, "machine": devices.facts(device),
        "held_out": {"documents": len(bench.documents), "bytes": sum(len(d.text.encode()) for d in bench.documents)},
    }  # fmt: skip
    write(bench, found)  # what is known so far; encoders take longest
    write(bench, found | {"shared": encoders(bench)})


def write(bench: Bench, found: dict[str, Any]) -> None:
    write_text_durably(bench.out / "compress.json", json.dumps(found, indent=1) + "\n")
    write_text_durably(bench.out / "compress.md", markdown(found))
    write_text_durably(bench.out / "compress.html", page(found))
    print(f"{bench.out}/compress.html", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
