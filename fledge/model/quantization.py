"""How the weights of a folder are quantized: `quantization_config` of config.json, in and out. Imports no torch.

The layout is compressed-tensors': of a matrix X.weight, 8 bits are stored as X.weight (int8) and X.weight_scale, 4 bits
as X.weight_packed, X.weight_scale, X.weight_shape and X.weight_zero_point. Which matrix is quantized, the tensors say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fledge.errors import ConfigError
from fledge.nn.config import INT4_GROUPS

METHOD = "compressed-tensors"
FORMATS = {8: "int-quantized", 4: "pack-quantized"}
MIXED = "mixed-precision"
MAX_GROUPS = 64
AT = "config.json: quantization_config"


@dataclass(frozen=True, order=True)
class Scheme:
    """How a matrix is stored: `bits` a weight; `group` inputs share a scale and a zero point (0: one scale for each
    output and no zero point); `symmetric`: there are no zero points."""

    bits: int
    group: int = 0
    symmetric: bool = True

    def bits_per_weight(self, inputs: int) -> float:
        """Bits a weight with its share of scales and zero points."""
        shared = 32 + (0 if self.symmetric else self.bits)
        return self.bits + shared / (self.group or inputs)

    def __str__(self) -> str:
        return f"INT{self.bits} " + (f"in groups of {self.group}" if self.group else "by output")


INT8 = Scheme(8)


def int4(group: int) -> Scheme:
    return Scheme(4, group, False)


def read_quantization(raw: dict[str, Any]) -> tuple[Scheme, ...]:
    """The schemes that a config.json states; none for a folder of plain weights. Raises ConfigError for a layout that
    can't be read exactly."""
    found = raw.get("quantization_config")
    if found is None:
        return ()
    if not isinstance(found, dict):
        raise ConfigError(f"{AT}: expected a mapping, got {type(found).__name__}")
    method = found.get("quant_method")
    if method != METHOD:
        raise ConfigError(
            f"{AT}.quant_method: expected {METHOD!r}, got {str(method)[:40]!r}; load the unquantized weights and let "
            "fledge quantize them"
        )
    known = (*FORMATS.values(), MIXED)
    if found.get("format") not in known:
        raise ConfigError(f"{AT}.format: expected one of {', '.join(known)}, got {str(found.get('format'))[:40]!r}")
    for key in ("sparsity_config", "transform_config", "kv_cache_scheme"):
        if found.get(key):
            raise ConfigError(f"{AT}.{key}: expected none, got {str(found[key])[:40]!r}; no part here does that")
    if found.get("quantization_status", "compressed") != "compressed":
        raise ConfigError(f"{AT}.quantization_status: expected 'compressed', got {found['quantization_status']!r:.40}")
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or not 1 <= len(groups) <= MAX_GROUPS:
        raise ConfigError(f"{AT}.config_groups: expected 1 to {MAX_GROUPS} groups, got {str(groups)[:40]!r}")
    schemes = [scheme_of(group, f"{AT}.config_groups.{name[:40]}") for name, group in groups.items()]
    return tuple(sorted(set(schemes)))


def scheme_of(group: Any, at: str) -> Scheme:
    """The scheme of one group. Raises ConfigError."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ConfigError(f"{at}.weights: expected a mapping, got {str(weights)[:40]!r}")
    check_activations(group, at)
    bits = one_of(weights, "num_bits", tuple(FORMATS), f"{at}.weights", None)
    one_of(weights, "type", ("int",), f"{at}.weights", "int")
    one_of(weights, "dynamic", (False,), f"{at}.weights", False)
    one_of(group, "format", (FORMATS[bits], None), at, None)
    if bits == 8:
        one_of(weights, "strategy", ("channel",), f"{at}.weights", None)
        one_of(weights, "symmetric", (True,), f"{at}.weights", True)
        return INT8
    one_of(weights, "strategy", ("group",), f"{at}.weights", None)
    symmetric = one_of(weights, "symmetric", (True, False), f"{at}.weights", True)
    return Scheme(4, one_of(weights, "group_size", INT4_GROUPS, f"{at}.weights", None), symmetric)


def check_activations(group: dict[str, Any], at: str) -> None:
    """Activations become int8 row by row here: raise ConfigError for a file that fixes their scale beforehand, or wants
    another type."""
    inputs = group.get("input_activations")
    if group.get("output_activations") is not None:
        raise ConfigError(f"{at}.output_activations: expected none; outputs are not quantized here")
    if inputs is None:
        return
    if not isinstance(inputs, dict):
        raise ConfigError(f"{at}.input_activations: expected a mapping, got {str(inputs)[:40]!r}")
    wanted = {"num_bits": (8,), "type": ("int",), "symmetric": (True,), "strategy": ("token",), "dynamic": (True,)}
    for key, allowed in wanted.items():
        default = {"type": "int", "symmetric": True}.get(key)
        one_of(inputs, key, allowed, f"{at}.input_activations", default)


def one_of(raw: dict[str, Any], key: str, allowed: tuple[Any, ...], at: str, default: Any) -> Any:
    """`raw[key]`, one of `allowed`. Raises ConfigError."""
    value = raw.get(key, default)
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise ConfigError(f"{at}.{key}: expected one of {allowed}, got {str(value)[:40]!r}; no part here does that")
    return value


def quantization_json(schemes: dict[str, Scheme], plain: Iterable[str]) -> dict[str, Any]:
    """`quantization_config` of a model whose linear maps have `schemes`, by their names, and of which those called
    `plain` are not quantized."""
    by_scheme: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        by_scheme.setdefault(scheme, []).append(name)
    alone = len(by_scheme) == 1
    groups = {
        f"group_{number}": group_json(scheme, ["Linear"] if alone else sorted(names))
        for number, (scheme, names) in enumerate(sorted(by_scheme.items()))
    }
    formats = {FORMATS[scheme.bits] for scheme in by_scheme}
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(plain),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def group_json(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "dynamic": False}
    weights |= {"strategy": "group", "group_size": scheme.group} if scheme.group else {"strategy": "channel"}
    rows = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": weights,
        # 4-bit weights stand for themselves to other software, which has no kernels for int8 rows beside them
        "input_activations": rows if scheme.bits == 8 else None,
        "output_activations": None,
        "format": FORMATS[scheme.bits],
    }
