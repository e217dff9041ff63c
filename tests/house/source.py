"""The package's sources as data: every module, its syntax tree and what it imports, wherever the import stands."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Import:
    """`target` is a full dotted module name, ours or somebody else's; `typing_only`: it stands under TYPE_CHECKING."""

    target: str
    line: int
    typing_only: bool


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]


def modules(root: Path = ROOT, package: str = "fledge") -> dict[str, Module]:
    """Every module of the package under `root`, by dotted name."""
    paths = {module_name(path, root): path for path in sorted((root / package).rglob("*.py"))}
    names = frozenset(paths)
    return {name: module_of(name, path, path.read_text(encoding="utf-8"), names) for name, path in paths.items()}


@functools.cache
def module_of(name: str, path: Path, text: str, known: frozenset[str]) -> Module:
    """A module whose text is `text`, in a package of the `known` ones; the rules share what was parsed once."""
    tree = ast.parse(text)
    here = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return Module(name, path, tree, tuple(imports(tree, here, known)))


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, package: str, known: frozenset[str]) -> Iterator[Import]:
    """Every import in the tree: statements at any depth and importlib.import_module("...")."""
    typing_lines = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for node in ast.walk(tree):
        for target in targets(node, package, known):
            yield Import(target, node.lineno, node.lineno in typing_lines)  # type: ignore[attr-defined]


def targets(node: ast.AST, package: str, known: frozenset[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        for alias in node.names:
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))
