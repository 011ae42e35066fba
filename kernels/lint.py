"""The emission rules, each of which a published kernel has broken, as a check of generated text."""

import ast
import re
from collections.abc import Iterator

FORBIDDEN = {
    "autotune": "autotuning needs a device; gatec.dispatch measures instead",
    "make_block_ptr": "block pointers are gone from triton",
    "inline_asm_elementwise": "the interpreter cannot run assembly",
    "libdevice": "the interpreter cannot run libdevice",
    "atomic_add": "atomics make results depend on their order",
}
IMPORTS = {"functools", "math", "torch", "triton", "triton.language"}


def complaints(source: str) -> list[str]:
    """What breaks a rule, as `line: why`; nothing when the text is as it should be."""
    tree = ast.parse(source)
    found = [*everywhere(tree)]
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and is_jit(function):
            found += in_kernel(function)
    return [f"{line}: {why}" for line, why in sorted(found)]


def is_jit(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(d).startswith("triton.jit") for d in function.decorator_list)


def everywhere(tree: ast.Module) -> Iterator[tuple[int, str]]:
    if not ast.get_docstring(tree):
        yield 1, "no header that says where it came from"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from ((node.lineno, f"imports {n}") for n in names if n not in IMPORTS)
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN:
            yield node.lineno, FORBIDDEN[node.attr]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            given = {k.arg for k in node.keywords}
            if "enable_fp_fusion" not in given:
                yield node.lineno, "a launch leaves enable_fp_fusion to triton's default"


def in_kernel(function: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    inputs = {ast.unparse(c.args[0]) for c in calls if ast.unparse(c.func) == "read"}
    for node in calls:
        name, given = ast.unparse(node.func), {k.arg for k in node.keywords}
        if name == "tl.load" and not {"mask", "other"} <= given:
            yield node.lineno, "a load without mask and other"
        if name == "tl.store" and "mask" not in given:
            yield node.lineno, "a store without mask"
        if name == "tl.store" and ".to(" not in ast.unparse(node.args[1]):
            yield node.lineno, "a store which does not cast to the type it stores"
        if name == "write" and ast.unparse(node.args[0]) in inputs:
            yield node.lineno, "writes over an operand"
    text = ast.unparse(function)
    if re.search(r"\bcol \* ", text):
        yield function.lineno, "a column's offset of 32 bits"
    if text.count("tl.program_id(0)") != text.count("tl.program_id(0).to(tl.int64)"):
        yield function.lineno, "a program id of 32 bits"
