"""What the source of a loop says that no number of captures can: that its steps do not look at how many came before."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HEADS = {
    "range",
    "reversed",
    "enumerate",
    "zip",
    "len",
    "size",
    "unbind",
    "split",
    "chunk",
    "flip",
    "transpose",
    "movedim",
    "iter",
}
PLACES = {"select", "narrow"}
INSIDE = (
    ast.Name,
    ast.Constant,
    ast.BinOp,
    ast.UnaryOp,
    ast.Slice,
    ast.Tuple,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.USub,
    ast.Load,
)
LEAVES = (ast.Break, ast.Continue, ast.Return, ast.Try, ast.While, ast.Match, ast.BoolOp, ast.Assert)
Loop = ast.For | ast.comprehension


def steady(lines: Iterable[str], decisions: Iterable[str]) -> bool:
    """Whether the loops around these lines (file:line) do the same at every step, and only they ask for the length."""
    found = [loop for line in lines for loop in _around(*_place(line))]
    heads = [_place(line) for line in decisions]
    return bool(found) and all(map(_same_steps, found)) and all(_asked_by_a_loop(*head) for head in heads)


def _place(line: str) -> tuple[ast.Module | None, int]:
    file, _, number = line.rpartition(":")
    return _parsed(file), int(number) if number.isdigit() else 0


@functools.lru_cache(maxsize=256)
def _parsed(file: str) -> ast.Module | None:
    """The file's text, parsed; paths of installed packages start at the package."""
    known = (getattr(m, "__file__", None) for m in list(sys.modules.values()))
    path = file if Path(file).is_absolute() else next((f for f in known if f and f.endswith(f"/{file}")), None)
    try:
        return ast.parse(Path(path).read_text()) if path else None
    except (OSError, SyntaxError, ValueError):
        return None


def _around(tree: ast.Module | None, line: int) -> list[Loop]:
    """The loops whose body has this line, within its own function."""
    if tree is None:
        return []
    function = _function(tree, line)
    found: list[Loop] = []
    for node in ast.walk(function or tree):
        if isinstance(node, ast.For) and node.body[0].lineno <= line <= (node.end_lineno or 0):
            found.append(node)
        elif isinstance(node, (ast.ListComp, ast.GeneratorExp)) and node.lineno <= line <= (node.end_lineno or 0):
            found.extend(node.generators)
    return found


def _function(tree: ast.Module, line: int) -> ast.AST | None:
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = [f for f in functions if f.lineno <= line <= (f.end_lineno or 0)]
    return min(inside, key=lambda f: (f.end_lineno or 0) - f.lineno, default=None)


def _same_steps(loop: Loop) -> bool:
    """No branch but by what is fixed, and the number of the step is only used to take something at its place."""
    if isinstance(loop, ast.comprehension):
        return not loop.ifs
    nodes = [n for part in loop.body for n in ast.walk(part)]
    if any(isinstance(n, LEAVES) for n in nodes) or loop.orelse:
        return False
    if not all(_fixed(n.test) for n in nodes if isinstance(n, (ast.If, ast.IfExp))):
        return False
    counters = set(_counters(loop))
    uses = sum(isinstance(n, ast.Name) and n.id in counters for n in nodes)
    return uses == sum(_places(n, counters) for n in nodes)


def _fixed(test: ast.expr) -> bool:
    """A question about the module itself, or whether there is a state yet."""
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Is, ast.IsNot)):
        return isinstance(test.comparators[0], ast.Constant)
    return all(n.id == "self" for n in ast.walk(test) if isinstance(n, ast.Name))


def _counters(loop: ast.For) -> Iterator[str]:
    heads = [n.func.id for n in ast.walk(loop.iter) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else [loop.target]
    counting = targets if "range" in heads else targets[:1] if "enumerate" in heads else []
    for target in counting:
        yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def _places(node: ast.AST, counters: set[str]) -> int:
    """How often an index, or the argument of `select` or `narrow`, names a counter in plain arithmetic."""
    if isinstance(node, ast.Subscript):
        parts = [node.slice]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PLACES:
        parts = node.args
    else:
        return 0
    nodes = [n for p in parts for n in ast.walk(p)]
    named = [n for n in nodes if isinstance(n, ast.Name) and n.id in counters]
    return len(named) if not named or all(isinstance(n, INSIDE) for n in nodes) else 0


def _asked_by_a_loop(tree: ast.Module | None, line: int) -> bool:
    """Whether the question on this line stands in the head of a loop, where only the loop hears the answer."""
    if tree is None:
        return False
    function = _function(tree, line) or tree
    calls = {n.func.id for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    heads = [n.iter for n in ast.walk(function) if isinstance(n, (ast.For, ast.comprehension))]
    here = [h for h in heads if h.lineno <= line <= (h.end_lineno or 0)]
    return "int" not in calls and bool(here) and all(_called(h) <= HEADS for h in here)


def _called(head: ast.expr) -> set[str]:
    calls = [n.func for n in ast.walk(head) if isinstance(n, ast.Call)]
    return {f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else "" for f in calls}
