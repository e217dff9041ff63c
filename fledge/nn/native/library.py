"""The compiled kernels: how they are built, where they are kept, and their functions. Imports no torch.

They are built once for a processor and a compiler, in the background or ahead (`build`), and kept in the user's cache
folder under a name that says of what: never at import, never inside a request. Without them, or with FLEDGE_NATIVE=0,
torch computes the same.
"""

from __future__ import annotations

import ctypes as c
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

from fledge.errors import FledgeError

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-w")
BUILD_SECONDS = 300


class Matrix(c.Structure):
    """Weights of one product; see matmul.h."""

    _fields_ = [
        *((name, c.c_int32) for name in ("kind", "n_outputs", "n_inputs", "group")),
        *((name, c.c_void_p) for name in ("weights", "scales", "zeros", "sums", "bias")),
    ]


class Norm(c.Structure):
    _fields_ = [("kind", c.c_int32), ("eps", c.c_float), ("weight", c.c_void_p), ("bias", c.c_void_p)]


class Heads(c.Structure):
    _fields_ = [
        *((name, c.c_int32) for name in ("n_heads", "n_kv_heads", "channels", "window")),
        *((name, c.c_float) for name in ("scale", "softcap")),
        ("slopes", c.c_void_p),
    ]


class Cache(c.Structure):
    _fields_ = [
        *((name, c.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        ("positions", c.c_int64),
    ]


class Expert(c.Structure):
    _fields_ = [("up", Matrix), ("down", Matrix)]


class Mixture(c.Structure):
    """A mixture of experts; see experts.h."""

    _fields_ = [
        ("experts", c.POINTER(Expert)),
        *((name, c.c_int32) for name in ("n_experts", "top_k", "renormalise", "padding")),
    ]


class Layer(c.Structure):
    _fields_ = [
        *(
            (f"{part}_{slot}", Norm)
            for part in ("attention", "ffn")
            for slot in ("before", "after", "residual")
        ),
        *((name, Norm) for name in ("q_norm", "k_norm")),
        *((name, c.c_int32) for name in ("norm_over", "turned")),
        *((name, c.c_void_p) for name in ("cos", "sin")),
        ("heads", Heads),
        ("cache", Cache),
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        ("mixture", Mixture),
        *((name, c.c_int32) for name in ("activation", "gated", "parallel")),
        ("clip", c.c_float),
    ]  # fmt: skip


class Change(c.Structure):
    """What an adapter makes of some outputs of a product; see step.h."""

    _fields_ = [
        *((name, c.c_int32) for name in ("begin", "size", "rank", "padding")),
        *((name, c.c_void_p) for name in ("before", "down", "up", "factor", "offset")),
    ]


class Changes(c.Structure):
    _fields_ = [("first", c.POINTER(Change)), ("n", c.c_int64)]


class Adapter(c.Structure):
    _fields_ = [("maps", c.POINTER(Changes)), ("rows", c.c_void_p), ("up", c.c_void_p), ("rank", c.c_int64)]


class Decoder(c.Structure):
    _fields_ = [
        *((name, c.c_int32) for name in ("width", "n_layers", "hidden", "vocab")),
        ("layers", c.POINTER(Layer)),
        *((name, c.c_void_p) for name in ("embedding", "position_table")),
        *((name, c.c_int32) for name in ("embedding_in_panels", "position_offset")),
        *((name, c.c_float) for name in ("embedding_scale", "logit_scale", "logit_softcap", "padding")),
        *((name, Norm) for name in ("input_norm", "final_norm")),
        ("output", Matrix),
    ]


class Step(c.Structure):
    _fields_ = [
        *((name, c.c_int32) for name in ("n_tokens", "n_logits")),
        *((name, c.c_void_p) for name in ("ids", "positions", "tables", "wanted", "logits", "adapters")),
    ]


STRUCTS = (Matrix, Norm, Heads, Cache, Expert, Mixture, Layer, Change, Changes, Adapter, Decoder, Step)


def library() -> c.CDLL | None:
    """The kernels if they are built and wanted, else None; never builds."""
    path = None if os.environ.get("FLEDGE_NATIVE") == "0" else built()
    return None if path is None or not path.is_file() else opened(path)


@cache
def opened(path: Path) -> c.CDLL:
    kernels = c.CDLL(str(path))
    kernels.fledge_new.argtypes, kernels.fledge_new.restype = [c.c_int32], c.c_void_p
    kernels.fledge_free.argtypes, kernels.fledge_free.restype = [c.c_void_p], None
    kernels.fledge_matmul.argtypes = [c.c_void_p, c.c_void_p, c.POINTER(Matrix), c.c_int32, c.c_void_p]
    kernels.fledge_matmul.restype = c.c_int32
    kernels.fledge_step.argtypes = [c.c_void_p, c.POINTER(Decoder), c.POINTER(Step)]
    kernels.fledge_step.restype = c.c_int32
    kernels.fledge_contenders.argtypes = [c.c_void_p, c.c_int64, c.c_int64, c.c_double, c.c_uint64, c.c_void_p]
    kernels.fledge_contenders.restype = c.c_int64
    sizes = (c.c_int32 * len(STRUCTS))()
    kernels.fledge_sizes(sizes)
    own = [c.sizeof(one) for one in STRUCTS]
    if list(sizes) != own:
        raise FledgeError(f"{path}: expected structs of {own} bytes, got {list(sizes)}; delete the file")
    return kernels


def compiler() -> str | None:
    """The C++ compiler: $CXX, g++ or clang++."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))), None)


@cache
def built() -> Path | None:
    """Where the kernels of this processor and compiler are, or will be; None without a compiler."""
    program = compiler()
    if program is None:
        return None
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    of = [platform.machine(), processor(), version, " ".join(FLAGS)]
    of += [path.read_text(encoding="utf-8") for path in sources()]
    name = hashlib.sha256("\0".join(of).encode()).hexdigest()[:16]
    return cache_folder() / f"kernels-{name}.so"


def sources() -> list[Path]:
    return sorted(path for path in SOURCES.iterdir() if path.suffix in (".h", ".cpp"))


def processor() -> str:
    """What tells processors apart whose instructions differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def cache_folder() -> Path:
    """$FLEDGE_CACHE, or fledge in the user's cache folder."""
    given = os.environ.get("FLEDGE_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fledge"


def build(wait: bool = True) -> Path | None:
    """Build the kernels if they aren't there; None without a compiler. With `wait` False it leaves the work to another
    process that is at it. Raises FledgeError if the compiler fails."""
    path, program = built(), compiler()
    if path is None or program is None or path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(path.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return path
        if not path.is_file():
            compile_to(path, program)
    return path


def compile_to(path: Path, program: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [program, *FLAGS, str(SOURCES / "library.cpp"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS)
        if done.returncode:
            raise FledgeError(f"{program}: expected kernels, got exit status {done.returncode}: {done.stderr[-2000:]}")
        os.replace(made, path)


def build_in_background() -> None:
    """Start building in a process of its own, if there is something to build; the next start finds the result."""
    path = built()
    if path is not None and not path.is_file() and os.environ.get("FLEDGE_NATIVE") != "0":
        threading.Thread(target=run_build, daemon=True).start()


def run_build() -> None:
    """Build in a process that outlives this one; waiting for it here leaves no zombie behind."""
    command = [sys.executable, "-m", "fledge.nn.native.library"]
    nowhere = subprocess.DEVNULL
    subprocess.run(command, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere, check=False)


if __name__ == "__main__":
    print(build(wait=False))
