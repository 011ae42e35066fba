"""Which of its pointers a kernel reads and which it writes, by the text of its loads and stores."""

import ast

READS = {"tl.load", "read", "fetch", "step"}
WRITES = {"tl.store", "write", "put"}


def read_from(function: ast.FunctionDef) -> set[str]:
    return _bases(function, READS)


def written_to(function: ast.FunctionDef) -> set[str]:
    return _bases(function, WRITES)


def _bases(function: ast.FunctionDef, names: set[str]) -> set[str]:
    given = {a.arg for a in function.args.args}
    moved = _moved(function)
    calls = (n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) in names)
    return {base for call in calls if (base := _base(call.args[0], moved, given))}


def _base(where: ast.expr, moved: dict[str, ast.expr], given: set[str]) -> str:
    """The parameter at the left end of a sum: a pointer and what is added to it."""
    seen: set[str] = set()
    while True:
        while isinstance(where, ast.BinOp) and isinstance(where.op, ast.Add):
            where = where.left
        if not isinstance(where, ast.Name) or where.id in seen:
            return ""
        if where.id in given:
            return where.id
        seen.add(where.id)
        where = moved.get(where.id, ast.Constant(None))


def _moved(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Names of sums, and of other names."""
    found: dict[str, ast.expr] = {}
    for node in (n for n in ast.walk(function) if isinstance(n, ast.Assign)):
        if isinstance(node.targets[0], ast.Name) and isinstance(node.value, (ast.BinOp, ast.Name)):
            found[node.targets[0].id] = node.value
    return found
