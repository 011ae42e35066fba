"""The emission rules, each of which a published kernel has broken, as a check of generated text.

Here is what a module and its launchers may do; what may stand in a kernel is in `rules`.
"""

import ast
from collections.abc import Iterator
from typing import TypeGuard

from gatec.kernels.rules import Found, in_kernel, power_of_two

FORBIDDEN = {
    "autotune": "autotuning needs a device; gatec.dispatch measures instead",
    "make_block_ptr": "block pointers are gone from triton",
    "inline_asm_elementwise": "the interpreter cannot run assembly",
    "libdevice": "the interpreter cannot run libdevice",
    "extern_elementwise": "the interpreter cannot run libdevice",
    "atomic_": "atomics make results depend on their order",
    "device_assert": "the interpreter lets every device_assert pass",
    "float8": "the interpreter rounds eight bits wrongly",
}
IMPORTS = {"functools", "math", "torch", "triton", "triton.language"}


def complaints(source: str) -> list[str]:
    """What breaks a rule, as `line: why`; nothing when the text is as it should be."""
    tree = ast.parse(source)
    found = [*everywhere(tree)]
    operands = types(tree)
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef)):
        if any(ast.unparse(d).startswith("triton.jit") for d in function.decorator_list):
            found += in_kernel(function, {name for name, dtype in operands.items() if "float" not in dtype}, wide(tree))
        else:
            found += in_launcher(function)
    return [f"{line}: {why}" for line, why in sorted(set(found))]


def everywhere(tree: ast.Module) -> Iterator[Found]:
    if not ast.get_docstring(tree):
        yield 1, "no header that says where it came from"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from ((node.lineno, f"imports {n}") for n in names if n not in IMPORTS)
        if isinstance(node, ast.Attribute):
            yield from ((node.lineno, why) for name, why in FORBIDDEN.items() if node.attr.startswith(name))


def in_launcher(function: ast.FunctionDef) -> Iterator[Found]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Subscript):
            yield from in_launch(call)
    checked = {ast.unparse(x) for c in calls if ast.unparse(c.func) == "expect" for x in getattr(c.args[0], "elts", [])}
    for node in ast.walk(function):
        if changed(node) & checked:
            yield node.lineno, "changes an operand in place"  # type: ignore[attr-defined]


def in_launch(call: ast.Call) -> Iterator[Found]:
    """`kernel[grid](...)`"""
    given = {k.arg: k.value for k in call.keywords}
    if "enable_fp_fusion" not in given:
        yield call.lineno, "a launch leaves enable_fp_fusion to triton's default"
    for value in (*call.args, *given.values()):
        literal = isinstance(value, ast.Constant) and isinstance(value.value, float)
        if literal or ast.unparse(value).startswith("float("):
            yield value.lineno, "a float among a launch's arguments, whose width triton chooses"
    for name, value in given.items():
        if name is None or not name.isupper():
            continue
        if not power_of_two(value):
            yield value.lineno, "a tile whose size is no power of two"
        if isinstance(value, ast.Subscript) or ast.unparse(value).endswith(".numel()"):
            yield value.lineno, "a size as a constexpr: each needs a compilation of its own"


def changed(node: ast.AST) -> set[str]:
    """The names that a node writes into."""
    if isinstance(node, ast.Call):
        own = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_") else None
        return {ast.unparse(x) for x in (own, *(k.value for k in node.keywords if k.arg == "out")) if x is not None}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    return {ast.unparse(t.value if isinstance(t, ast.Subscript) else t) for t in targets
            if isinstance(t, ast.Subscript) or isinstance(node, ast.AugAssign)}  # fmt: skip


def types(tree: ast.Module) -> dict[str, str]:
    """The operands that launchers check, by name, and their types."""
    dtypes = next((ast.unparse(n.value).strip("(,)").split(", ") for n in tree.body if _assigns(n, "DTYPES")), [])
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if ast.unparse(call.func) == "expect" and ast.unparse(call.args[1]) == "DTYPES":
            names = [ast.unparse(x) for x in getattr(call.args[0], "elts", [])]
            return dict(zip(names, dtypes, strict=False))
    return {}


def wide(tree: ast.Module) -> str:
    """The type that everything is computed in."""
    found = next((ast.unparse(n.value) for n in tree.body if _assigns(n, "WIDE")), "torch.float32")
    return found.removeprefix("torch.")


def _assigns(node: ast.stmt, name: str) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
