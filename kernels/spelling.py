"""The only table from aten operators to Triton text, and spell(), which prints a graph with it.

Everything is computed in one wide float type. A cast to a narrower float type stands in a graph
only because somebody wrote it there (gatec.derive drops the others), so it rounds, and goes back.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import fx

from gatec.errors import GatecError
from gatec.kernels.functions import Wide

aten, prims = torch.ops.aten, torch.ops.prims
Spelling = str | Callable[..., str]
TRITON = {
    torch.bool: "tl.int1",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
    torch.int16: "tl.int16",
    torch.int32: "tl.int32",
    torch.int64: "tl.int64",
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16",
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
}


def add(x: str, y: str, alpha: str = "1") -> str:
    return f"{x} + {y}" if alpha == "1" else f"{x} + {alpha} * {y}"


def sub(x: str, y: str, alpha: str = "1") -> str:
    return f"{x} - {y}" if alpha == "1" else f"{x} - {alpha} * {y}"


def rsub(x: str, y: str, alpha: str = "1") -> str:
    return sub(y, x, alpha)


def power(x: str, exponent: str) -> str:
    """Products and square roots only: exp(p * log(x)) loses digits as its argument grows."""
    p = float(exponent)
    if p < 0:
        return f"tl.rsqrt({x})" if p == -0.5 else f"1.0 / ({power(x, str(-p))})"
    if p > 8 or 2 * p != int(2 * p):
        raise GatecError("a Triton spelling of aten.pow", found=f"the exponent {exponent}")
    root = [f"tl.sqrt({x})"] if p != int(p) else []
    return " * ".join([x] * int(p) + root) or "1.0"


def exponential(base: str, x: str) -> str:
    if float(base) != 2:
        raise GatecError("a Triton spelling of aten.pow", found=f"the base {base}")
    return f"tl.exp2({x})"


EXTREMUM = "tl.{}({{0}}, {{1}}, propagate_nan=tl.PropagateNan.ALL)"
LARGER, SMALLER = EXTREMUM.format("maximum"), EXTREMUM.format("minimum")
SIGN = "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, 0.0))"

SPELLING: dict[object, Spelling] = {
    aten.add.Tensor: add,
    aten.add.Scalar: add,
    aten.sub.Tensor: sub,
    aten.sub.Scalar: sub,
    aten.rsub.Tensor: rsub,
    aten.rsub.Scalar: rsub,
    aten.mul.Tensor: "{0} * {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.neg.default: "-{0}",
    aten.reciprocal.default: "1.0 / {0}",
    aten.square.default: "{0} * {0}",
    aten.pow.Tensor_Scalar: power,
    aten.pow.Scalar: exponential,
    aten.abs.default: "tl.abs({0})",
    aten.exp.default: "tl.exp({0})",
    aten.exp2.default: "tl.exp2({0})",
    aten.expm1.default: "expm1_of({0})",
    aten.log.default: "tl.log({0})",
    aten.log2.default: "tl.log2({0})",
    aten.log1p.default: "log1p_of({0})",
    aten.sqrt.default: "tl.sqrt({0})",
    aten.rsqrt.default: "tl.rsqrt({0})",
    aten.sin.default: "tl.sin({0})",
    aten.cos.default: "tl.cos({0})",
    aten.erf.default: "tl.erf({0})",
    aten.sigmoid.default: "tl.sigmoid({0})",
    aten.tanh.default: "tanh_of({0})",
    aten.relu.default: LARGER.replace("{1}", "0.0"),
    aten.maximum.default: LARGER,
    aten.clamp_min.default: LARGER,
    aten.clamp_min.Tensor: LARGER,
    aten.minimum.default: SMALLER,
    aten.clamp_max.default: SMALLER,
    aten.clamp_max.Tensor: SMALLER,
    aten.sign.default: SIGN,
    aten.sgn.default: SIGN,
    aten.floor.default: "tl.floor({0})",
    aten.ceil.default: "tl.ceil({0})",
    aten.round.default: "round_of({0})",
    aten.where.self: "tl.where({0}, {1}, {2})",
    aten.detach.default: "{0}",
    aten.alias.default: "{0}",
    aten.clone.default: "{0}",
    aten.lift_fresh_copy.default: "{0}",
} | {
    getattr(getattr(aten, name), kind): f"{{0}} {sign} {{1}}"
    for name, sign in {
        "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
        "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^",
    }.items()
    for kind in ("Tensor", "Scalar")
} | {
    aten.logical_and.default: "({0} != 0) & ({1} != 0)",
    aten.logical_or.default: "({0} != 0) | ({1} != 0)",
    aten.logical_xor.default: "({0} != 0) ^ ({1} != 0)",
    aten.logical_not.default: "{0} == 0",
    aten.bitwise_not.default: "~{0}",
}  # fmt: skip

# Of a row; what lies behind its end counts for nothing. Only kernels that hold whole rows have `inside`.
REDUCED: dict[object, str] = {
    aten.sum.dim_IntList: "tl.sum(tl.where(inside, {0}, 0.0), 1)[:, None]",
    aten.amax.default: 'tl.max(tl.where(inside, {0}, float("-inf")), 1)[:, None]',
    aten.amin.default: 'tl.min(tl.where(inside, {0}, float("inf")), 1)[:, None]',
}

# Which argument holds the number that fills the result; None: always zero, or always one.
FILLED: dict[object, int | float] = {
    aten.zeros_like.default: 0.0,
    aten.zeros.default: 0.0,
    aten._efficientzerotensor.default: 0.0,
    aten.ones_like.default: 1.0,
    aten.ones.default: 1.0,
}
FILLED_WITH: dict[object, int] = {
    aten.scalar_tensor.default: 0,
    aten.full.default: 1,
    aten.full_like.default: 1,
}
CASTS = {aten._to_copy.default, prims.convert_element_type.default}


def spell(graph: fx.Graph, names: Mapping[str, str] | None = None) -> tuple[list[str], list[str | None]]:
    """A line of Triton for each call, and the text of each result; `names` renames placeholders."""
    printer = Printer(wide_of(graph))
    for node in graph.nodes:
        if node.op == "placeholder":
            printer.text[node] = (names or {}).get(node.name, node.name)
        elif node.op == "call_function":
            printer.call(node)
    result = graph.output_node().args[0]
    results = result if isinstance(result, (tuple, list)) else [result]
    return printer.lines, [None if r is None else printer.argument(r) for r in results]


def wide_of(graph: fx.Graph) -> Wide:
    values = (v for n in graph.nodes for v in [n.meta.get("val")] if isinstance(v, torch.Tensor))
    return "float64" if any(v.dtype == torch.float64 for v in values) else "float32"


class Printer:
    """What has been printed so far, and under which text each node's value is known."""

    def __init__(self, wide: Wide) -> None:
        self.wide, self.lines = wide, list[str]()
        self.text: dict[fx.Node, str] = {}
        self.printed: dict[str, str] = {}

    def call(self, node: fx.Node) -> None:
        if node.target in FILLED or node.target in FILLED_WITH:
            self.text[node] = self.constant(node)
            return
        text = self.cast(node) if node.target in CASTS else self.spelled(node)
        if text.isidentifier() or text in self.text.values():
            self.text[node] = text
            return
        # Value and gradients are derived apart, and often take the same first steps.
        if text not in self.printed:
            self.lines.append(f"{node.name} = {text}")
        self.text[node] = self.printed.setdefault(text, node.name)

    def spelled(self, node: fx.Node) -> str:
        if node.target in REDUCED:
            return REDUCED[node.target].format(self.argument(node.args[0], self.promoted(node, 0)))
        spelling = SPELLING.get(node.target)
        if spelling is None:
            raise GatecError(
                f"a Triton spelling of {node.target}",
                where=str(node.meta.get("where", "")),
                hint="add it to SPELLING in gatec.kernels.spelling",
            )
        arguments = [self.argument(a, self.promoted(node, i)) for i, a in enumerate(node.args)]
        if callable(spelling):
            return spelling(*arguments, **{k: self.argument(v) for k, v in node.kwargs.items()})
        meant = {k: v for k, v in node.kwargs.items() if v is not None and k != "memory_format"}
        if meant:
            raise GatecError(f"a Triton spelling of {node.target}", found=f"the options {meant}")
        return spelling.format(*arguments)

    def promoted(self, node: fx.Node, position: int) -> bool:
        """Whether torch turns this integer or bool argument into a float before it computes."""
        condition = node.target is aten.where.self and position == 0
        argument = node.args[position]
        if condition or not isinstance(argument, fx.Node):
            return False
        others = [a for a in node.args if isinstance(a, (fx.Node, float))]
        floats = any(not isinstance(a, fx.Node) or floating(a) for a in others)
        return not floating(argument) and (floats or floating(node))

    def argument(self, value: object, promote: bool = False) -> str:
        if isinstance(value, fx.Node):
            return f"{self.text[value]}.to(tl.{self.wide})" if promote else self.text[value]
        return self.number(value)

    def number(self, value: object) -> str:
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        if isinstance(value, float) and self.wide == "float64" and not is_single(value):
            # A bare literal is float32 as soon as it stands inside a call.
            return f"tl.full((1, 1), {value!r}, tl.float64)"
        if isinstance(value, (bool, int, float)):
            return repr(value)
        raise GatecError("a number or a tensor inside a pointwise region", found=repr(value))

    def constant(self, node: fx.Node) -> str:
        value = FILLED[node.target] if node.target in FILLED else node.args[FILLED_WITH[node.target]]
        return self.number(float(value) if floating(node) else value)  # type: ignore[arg-type]

    def cast(self, node: fx.Node) -> str:
        value = node.args[0]
        assert isinstance(value, fx.Node)
        text, old, new = self.text[value], value.meta["val"].dtype, node.meta["val"].dtype
        if new == torch.bool:
            return f"{text} != 0"
        if not new.is_floating_point:
            return f"{text}.to({TRITON[new]})"
        narrow = f"{text}.to({TRITON[new]})" if rounds(new, self.wide) else text
        keep = old.is_floating_point and narrow == text
        return text if keep else f"{narrow}.to(tl.{self.wide})"


def floating(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


def rounds(dtype: torch.dtype, wide: Wide) -> bool:
    return dtype.itemsize < (4 if wide == "float32" else 8)


def is_single(value: float) -> bool:
    return torch.tensor(value, dtype=torch.float32).item() == value
