"""Public functions, classes and modules of Python sources with their signature and the first words of their docstring.

Sources are parsed, never imported or run. Imports no torch.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fledge.data.document import Document

Kind = Literal["module", "class", "function", "method"]
Function = ast.FunctionDef | ast.AsyncFunctionDef
LEFT_OUT_PACKAGES = ("idlelib", "turtledemo", "lib2to3")  # programs that come with Python rather than a library
PREFIX = "sources/"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(*])")
LONGEST_SIGNATURE = 160


@dataclass(frozen=True)
class Definition:
    """One documented name. `parameters` are spelled as they stand in the signature (None: not callable, or unknown);
    `summary` is the docstring's first sentences; `path` is the document it was found in."""

    name: str
    module: str
    kind: Kind
    summary: str
    parameters: tuple[str, ...] | None
    signature: str | None
    path: str

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]


def definitions(document: Document, max_summary: int) -> Iterator[Definition]:
    """What a Python document defines under public names, in its order; nothing for other text or a syntax error."""
    module = module_name(document.path)
    if module is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on somebody else's source
            tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    summary = first_sentences(ast.get_docstring(tree, clean=False), max_summary)
    if summary:
        yield Definition(module, module, "module", summary, None, None, document.path)
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            yield from defined(node, module, module, document.path, max_summary)


def defined(
    node: Function | ast.ClassDef, prefix: str, module: str, path: str, max_summary: int
) -> Iterator[Definition]:
    if node.name.startswith("_"):
        return
    name = f"{prefix}.{node.name}"
    kind: Kind = "class" if isinstance(node, ast.ClassDef) else "function" if prefix == module else "method"
    summary = first_sentences(ast.get_docstring(node, clean=False), max_summary)
    if summary:
        signed = constructor(node) if isinstance(node, ast.ClassDef) else node
        parameters = None if signed is None else parameters_of(signed, bound=signed is not node or kind == "method")
        signature = None
        if parameters is not None:
            signature = f"{name}({', '.join(parameters)})"
            signature = signature if len(signature) <= LONGEST_SIGNATURE else None
        yield Definition(name, module, kind, summary, parameters, signature, path)
    if isinstance(node, ast.ClassDef) and kind == "class" and prefix == module:
        for inner in node.body:
            if isinstance(inner, Function):
                yield from defined(inner, name, module, path, max_summary)


def module_name(path: str) -> str | None:
    """`sources/email/parser.py` -> `email.parser`; None for other files, private modules and bundled programs."""
    if not path.endswith(".py"):
        return None
    parts = path.removeprefix(PREFIX).removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    if not parts or parts[0] in LEFT_OUT_PACKAGES or any(not p.isidentifier() or p.startswith("_") for p in parts):
        return None
    return ".".join(parts)


def constructor(node: ast.ClassDef) -> Function | None:
    return next((n for n in node.body if isinstance(n, Function) and n.name == "__init__"), None)


def parameters_of(node: Function, bound: bool) -> tuple[str, ...]:
    """Each parameter with its default, without annotations; the first of a method (self, cls) is left out.

    A static method has no such first one.
    """
    arguments, words = node.args, []
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    for index, (argument, default) in enumerate(zip(plain, defaults, strict=True)):
        if index == 0 and bound and not static:
            continue
        words.append(spelled(argument, default))
    if arguments.vararg:
        words.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        words.append("*")
    words += [spelled(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        words.append(f"**{arguments.kwarg.arg}")
    return tuple(words)


def spelled(argument: ast.arg, default: ast.expr | None) -> str:
    return argument.arg if default is None else f"{argument.arg}={ast.unparse(default)}"


def first_sentences(docstring: str | None, most_characters: int) -> str:
    """The first paragraph of a docstring on one line, ended at the last sentence within the limit; "" if it is no prose
    (a signature, an example, fewer than three words) or its first sentence is too long."""
    paragraph = inspect.cleandoc(docstring or "").split("\n\n")[0]
    text = " ".join(paragraph.split())
    if not text[:1].isalpha() or len(text.split()) < 3 or ">>>" in text or re.match(r"[\w.]+\(", text):
        return ""
    kept = ""
    for sentence in SENTENCE_END.split(text):
        longer = f"{kept} {sentence}".strip()
        if len(longer) > most_characters:
            break
        kept = longer
    kept = kept.rstrip(" :;,-")
    return kept if not kept or kept[-1] in ".!?" else f"{kept}."
