"""What may stand in a kernel: rules over one jitted function, each of which yields lines and why they break it."""

import ast
import re
from collections.abc import Iterator

from gatec.kernels.functions import texts
from gatec.kernels.pointers import read_from, written_to

Found = tuple[int, str]
LOADS = {"tl.load", "read", "fetch", "step"}
KEEPS = {"tl.dot", "tl.trans", "tl.permute", "tl.reshape", "tl.expand_dims", "tl.broadcast_to"}  # no arithmetic
# Sizes that differ from call to call: triton compiles again for each that is 1 or a multiple of 16, unless told not to.
SIZES = {"rows", "steps", "across", "pairs", "chunks", "lanes", "tiles", "tokens"}


def in_kernel(function: ast.FunctionDef, integers: set[str], wide: str) -> Iterator[Found]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    for call in calls:
        yield from ((call.lineno, why) for why in of_call(call))
    yield from of_text(function, wide)
    yield from transposed(function)
    yield from narrow(function, integers)
    own = read_from(function) & written_to(function)
    yield from ((function.lineno, "writes over an operand") for _ in own)


def of_call(call: ast.Call) -> Iterator[str]:
    name, given = ast.unparse(call.func), {k.arg for k in call.keywords}
    first = ast.unparse(call.args[0]) if call.args else ""
    if name == "tl.load" and not {"mask", "other"} <= given:
        yield "a load without mask and other"
    if name == "tl.store" and "mask" not in given:
        yield "a store without mask"
    if name == "tl.store" and ".to(" not in ast.unparse(call.args[1]):
        yield "a store which does not cast to the type it stores"
    if name == "tl.dot" and "input_precision" not in given:
        yield "a product that leaves its precision to triton"
    if name in ("tl.max", "tl.min", "tl.argmax", "tl.argmin") and not first.startswith("tl.where("):
        yield "an extremum over what stands outside of a row too"
    if name in ("tl.sum", "tl.max", "tl.min", "tl.cumsum") and re.search(r"tl\.b?float16", first):
        yield "a reduction in two bytes"
    if name == "tl.arange" and not power_of_two(call.args[1]):
        yield "a tile whose size is no power of two"


def power_of_two(size: ast.expr) -> bool:
    """Also where a size has a name."""
    known = isinstance(size, ast.Constant) and type(size.value) is int
    return not known or size.value & (size.value - 1) == 0  # type: ignore[attr-defined]


def of_text(function: ast.FunctionDef, wide: str) -> Iterator[Found]:
    text, line = ast.unparse(function), function.lineno
    if re.search(r"\bcol \* ", text):
        yield line, "a column's offset of 32 bits"
    if len(re.findall(r"tl\.program_id\(\d\)", text)) != len(
        re.findall(r"tl\.program_id\(\d\)\.to\(tl\.int64\)", text)
    ):
        yield line, "a program id of 32 bits"
    if wide == "float32" and "tl.float64" in text:
        yield line, "float64 in a kernel of float32"
    if function.name.endswith("_of") and not any(
        text == _text(t) for w in ("float32", "float64") for t in texts(w).values()
    ):
        yield line, f"{function.name} is not the function whose error is known"
    if "tl.program_id" in text:
        kept = re.search(r"do_not_specialize=\[(.*?)\]", ast.unparse(function.decorator_list[0]))
        names = {a.arg for a in function.args.args if a.annotation is None} & SIZES
        if names - set(re.findall(r"\w+", kept[1] if kept else "")):
            yield line, "a size that differs from call to call is specialised"


def _text(source: str) -> str:
    return ast.unparse(ast.parse(source).body[0])


def transposed(function: ast.FunctionDef) -> Iterator[Found]:
    """A product's own result, narrowed and transposed in front of another product: wrong on sm_90 with several tritons."""
    sums = {ast.unparse(n.targets[0]) for n in ast.walk(function) if isinstance(n, ast.Assign) and _calls(n, "tl.dot")}
    for node in ast.walk(function):
        inner = node.args[0] if isinstance(node, ast.Call) and _calls(node, "tl.trans") and node.args else None
        inner = node.value if isinstance(node, ast.Attribute) and node.attr == "T" else inner
        if inner is not None and sums & {n.id for n in ast.walk(inner) if isinstance(n, ast.Name)}:
            yield node.lineno, "transposes what a product gave: load it transposed"  # type: ignore[attr-defined]


def _calls(node: ast.AST, name: str) -> bool:
    call = node.value if isinstance(node, ast.Assign) else node
    return isinstance(call, ast.Call) and ast.unparse(call.func) == name


# -- values as they were loaded ---------------------------------------------------------------------------------------


def narrow(function: ast.FunctionDef, integers: set[str]) -> Iterator[Found]:
    """Arithmetic on floats in the type that memory has them in: rounded at every step, and garbage in the interpreter."""
    parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    loaded: set[str] = set()
    for statement in sorted((n for n in ast.walk(function) if isinstance(n, ast.stmt)), key=lambda n: n.lineno):
        for node in _own(statement):
            named = isinstance(node, ast.Name) and node.id in loaded and isinstance(node.ctx, ast.Load)
            if (named or _loads(node, integers)) and _computes(node, parents):
                yield node.lineno, "computes with a float as it was loaded"  # type: ignore[attr-defined]
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value, name = statement.value, statement.targets[0].id
            kept = _loads(value, integers) or (isinstance(value, ast.Name) and value.id in loaded)
            loaded = loaded | {name} if kept else loaded - {name}


def _own(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement, without those of the statements in it."""
    waiting = [n for n in ast.iter_child_nodes(statement) if not isinstance(n, ast.stmt)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.stmt)]


def _loads(node: ast.AST, integers: set[str]) -> bool:
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in LOADS:
        return False
    if ast.unparse(node.func) == "tl.load":
        other = next((k.value for k in node.keywords if k.arg == "other"), None)
        return isinstance(other, ast.Constant) and isinstance(other.value, float)
    return ast.unparse(node.args[0]).removesuffix("_ptr") not in integers


def _computes(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    parent = parents[node]
    if isinstance(parent, ast.Subscript) and parent.value is node:
        return _computes(parent, parents)
    if isinstance(parent, ast.Call) and parent.func is not node:
        name = ast.unparse(parent.func)
        return name.startswith("tl.") and name not in KEEPS
    return isinstance(parent, (ast.BinOp, ast.UnaryOp, ast.Compare, ast.AugAssign))
