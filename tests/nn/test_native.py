"""The compiled kernels against formulas in float64, and the bits of a row in any company."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fledge.errors import FledgeError
from fledge.nn.native import library
from fledge.nn.native.linear import NativeLinear, float_linear, int4_linear, int8_linear

SHAPES = [(64, 64), (100, 40), (33, 96), (288, 288), (1000, 768)]
ROWS = [1, 2, 3, 4, 5, 8, 11, 12, 13, 24, 40, 193]


@pytest.fixture(autouse=True, scope="module")
def kernels():
    assert library.build() is not None, "a C++ compiler is needed here"


def rounded_rows(x):
    """int8 values and scales of each row: half to even, the largest becomes 127."""
    scale = x.abs().amax(1).double() / 127
    return torch.round(x / scale.float()[:, None]).double(), scale.float().double()


def made(kind, outputs, inputs, bias=True):
    """A linear, and the function that it should be."""
    torch.manual_seed(outputs + inputs)
    weight, b = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs) if bias else None
    added = 0 if b is None else b.double()
    if kind == "float32":
        return float_linear(weight, b), lambda x: x.double() @ weight.double().t() + added
    if kind == "int8":
        scale = weight.abs().amax(1) / 127
        q = torch.round(weight / scale[:, None]).to(torch.int8)

        def of_int8(x):
            values, row_scale = rounded_rows(x)
            return (values @ q.double().t()) * row_scale[:, None] * scale.double() + added

        return int8_linear(q, scale, b), of_int8
    groups = weight.view(outputs, -1, 32)
    scale = (groups.amax(-1) - groups.amin(-1)) / 15
    zero = torch.round(-groups.amin(-1) / scale).clamp(0, 15)
    q = (torch.round(groups / scale[..., None]) + zero[..., None]).clamp(0, 15)
    restored = ((q - zero[..., None]).double() * scale[..., None].double()).view(outputs, inputs)

    def of_int4(x):
        values, row_scale = rounded_rows(x)
        return (values @ restored.t()) * row_scale[:, None] + added

    return int4_linear(q.view(outputs, inputs).to(torch.uint8), scale, zero, b), of_int4


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_product_is_its_formula_and_a_row_has_the_same_bits_in_any_company(kind, outputs, inputs):
    if kind == "int4" and inputs % 32:
        return
    linear, expected = made(kind, outputs, inputs)
    x = torch.randn(max(ROWS), inputs)
    alone = torch.cat([linear(x[i : i + 1]) for i in range(len(x))])
    want = expected(x)
    assert (alone.double() - want).abs().max() <= 2e-6 * max(1, float(want.abs().max())) * inputs**0.5
    for n in ROWS:
        assert torch.equal(linear(x[:n]), alone[:n]), n
    assert not torch.equal(linear(x[1:3]), alone[:2])  # the control


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
def test_every_number_of_rows_up_to_512_gives_the_same_bits(kind):
    linear, _ = made(kind, 160, 1056)
    x = torch.randn(512, 1056)
    whole = linear(x)
    for n in range(1, 513):
        assert torch.equal(linear(x[:n]), whole[:n]), n


def test_threads_do_not_change_bits():
    x, before = torch.randn(40, 288), torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append([made(kind, 288, 288)[0](x) for kind in ("float32", "int8", "int4")])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_row_of_zeros_gives_the_bias_and_a_loud_row_leaves_its_neighbours_alone(kind):
    linear, _ = made(kind, 64, 64)
    x = torch.randn(3, 64)
    x[0] = 0
    quiet = linear(x)
    assert torch.equal(quiet[0], linear.bias)
    x[2] *= 1000
    assert torch.equal(linear(x)[:2], quiet[:2])
    assert not torch.equal(linear(x)[2], quiet[2])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_whole_numbers_are_summed_exactly(sign):
    """Sums of pairs of bytes in 16 bits would be cut off here."""
    ones, x = torch.ones(64), torch.full((5, 1024), float(sign))
    whole = torch.full((64, 1024), -128, dtype=torch.int8)
    whole[1::2] = 127
    expected = sign * 127 * whole.double().sum(1) * float(torch.tensor(1.0) / 127)
    assert torch.allclose(int8_linear(whole, ones, None)(x).double(), expected.expand(5, 64), rtol=1e-6)
    fifteens, scale = torch.full((64, 1024), 15, dtype=torch.uint8), torch.ones(64, 8)
    got = int4_linear(fifteens, scale, torch.zeros(64, 8), None)(x)
    assert torch.allclose(got.double(), torch.full((5, 64), sign * 15.0 * 1024, dtype=torch.float64), rtol=1e-6)


def test_without_a_bias_nothing_is_added():
    linear, expected = made("float32", 48, 32, bias=False)
    x = torch.randn(2, 32)
    assert torch.allclose(linear(x).double(), expected(x), atol=1e-5)


def test_switched_off_or_without_a_compiler_there_are_no_kernels(monkeypatch, tmp_path):
    assert library.library() is not None
    monkeypatch.setenv("FLEDGE_NATIVE", "0")
    assert library.library() is None
    monkeypatch.delenv("FLEDGE_NATIVE")
    script = "from fledge.nn.native import library as l; print(l.build(), l.library())"
    environment = {"PATH": str(tmp_path), "FLEDGE_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "None"]


def test_a_compiler_that_fails_is_named_and_leaves_nothing(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))
    library.built.cache_clear()
    try:
        with pytest.raises(FledgeError, match="exit status 3: cannot"):
            library.build()
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    finally:
        library.built.cache_clear()


def test_its_struct_is_the_kernels_struct():
    assert isinstance(made("float32", 32, 32)[0], NativeLinear)  # `opened` compares all sizes and raises


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_no_number_is_seen_in_its_row_alone(kind, poison):
    linear, _ = made(kind, 64, 64)
    x = torch.randn(3, 64)
    whole = linear(x)
    x[1, 40] = poison
    seen = linear(x)
    assert torch.equal(seen[[0, 2]], whole[[0, 2]])
    assert not torch.isfinite(seen[1]).all()


def test_the_largest_bytes_are_multiplied_whole():
    """Products of AVX2 are added in pairs of sixteen bits, which two of 128 x 127 only just fit."""
    signs = torch.randint(0, 2, (96, 256), generator=torch.Generator().manual_seed(1)) * 2 - 1
    signs[:2] = torch.tensor([[1], [-1]])
    weight = torch.where(signs > 0, torch.tensor(127), torch.tensor(-128)).to(torch.int8)
    linear = int8_linear(weight, torch.ones(96), None)
    for x in (torch.ones(7, 256), -torch.ones(7, 256), signs[3:10].float()):
        expected = (x.double() * 127 @ weight.double().t()) * (torch.tensor(1.0) / 127).double()
        assert torch.allclose(linear(x).double(), expected, rtol=1e-6)
    nibbles = torch.full((96, 256), 15, dtype=torch.uint8)
    scales = torch.ones(96, 2)
    for x in (torch.ones(7, 256), -torch.ones(7, 256)):
        assert torch.allclose(int4_linear(nibbles, scales, torch.zeros(96, 2), None)(x), 15 * 256 * x[:, :96])


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3", "native"])
def test_other_processors_kernels_are_right_too(machine, tmp_path):
    """What GCC makes for a processor without vectors of its own, for AVX2, and for this one."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/bash\nexec g++ "${{@/-march=native/-march={machine}}}"\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler), "FLEDGE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    files = ["tests/nn/test_native.py", "tests/exact/test_native_decoder.py"]
    line = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files]
    if "avx2" not in Path("/proc/cpuinfo").read_text() and machine == "x86-64-v3":
        line = [sys.executable, "-c", "from fledge.nn.native import library; library.build()"]  # it only compiles here
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_two_callers_and_a_forked_process_get_their_own_results():
    linear, _ = made("int8", 288, 288)
    x = torch.randn(8, 288)
    alone = linear(x)
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda _: linear(x), range(200)))
    assert all(torch.equal(one, alone) for one in results)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(linear(x), alone) else 1)
    assert os.waitpid(child, 0)[1] == 0
