"""Mixtures of experts in a traced program become one operator each, where onnxruntime's own computes them: read `merge`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node, map_arg

from gatec.errors import GatecError, Refused
from gatec.onnx.experts import ACTIVATIONS, OPERATOR
from gatec.onnx.operators import GROUPED_OPERATOR
from gatec.onnx.signs import name_of, nonnegative

PROBES = torch.cat([-torch.logspace(-6, 4, 48), torch.logspace(-6, 4, 48)]).double()
CLOSE = 1e-6  # of two spellings of an activation, whose constants may have been rounded


@dataclass(frozen=True)
class Layer:
    """One of the first products of a mixture."""

    x: Any
    weight: Any
    bias: Any


@dataclass(frozen=True)
class Sum:
    """Where the rows of each token are summed: token[pairs], live[pairs, 1], and how many a token has, 0 if they differ."""

    end: Any
    token: Any
    live: Any
    top_k: int


def merge(program: ExportedProgram) -> list[str]:
    """In place; a line for each mixture: what it is now, or why it stays. Raises if all of them stay."""
    graph, said = program.graph_module.graph, []
    for last in graph.find_nodes(op="call_function", target=GROUPED_OPERATOR):
        if gathered(last.args[0]):
            continue  # a first product goes with its last one
        try:
            said.append(f"{place(last)}: {put(graph, last)}")
        except Refused as why:
            said.append(f"{place(last)} stays in standard operators: {why}")
    if not graph.find_nodes(op="call_function", target=OPERATOR):
        raise GatecError("a mixture of experts that onnxruntime's operator computes",
                         found=said[0] if said else "no grouped products of experts", hint='experts="standard"')  # fmt: skip
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return said


def place(node: Node) -> str:
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return (paths[-1] if paths else "").removeprefix("model").removeprefix(".") or "the model"


def put(graph: Graph, last: Any) -> str:
    """One operator instead of all between the gathering of rows and their sum; what it is, in words."""
    found, (inner, weight) = summed(last), weighed(last)
    activation, layers = activated(inner, last.args[2], found)
    x, down = layers[0].x, last.args[1]
    experts, width, _ = shape(down)
    if any(layer.x is not x for layer in layers):
        raise Refused("its gate and up read different values")
    if shape(x)[-1] != width:
        raise Refused(f"it takes {shape(x)[-1]} numbers and gives {width}, and the operator gives as many as it takes")
    if x.meta["val"].dtype != torch.float32:
        raise Refused(f"it computes in {x.meta['val'].dtype}, and the operator in float32")
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if len(biases) not in (0, len(layers)):
        raise Refused("of gate and up one has a bias, and the operator has both or none")
    chosen, up = found.top_k or experts, [layer.weight for layer in layers]
    with graph.inserting_before(found.end):
        args = (x, found.token, last.args[2], weight, found.live, up, biases, down, chosen, activation)
        made = graph.call_function(OPERATOR, args)
    made.meta = dict(found.end.meta)
    found.end.replace_all_uses_with(made)
    return f"onnxruntime's MoE, {experts} experts, at most {chosen} for a token, {activation}"


def summed(last: Any) -> Sum:
    out: Any = last
    live = None
    if name_of(end := reader(out)) == "where" and end.args[1] is out and nothing(end.args[2]):
        out, live, end = end, end.args[0], reader(end)
    if name_of(end) == "index_add" and end.args[1] == 0 and end.args[3] is out and zeros(end.args[0]):
        return Sum(end, end.args[2], live, 0)
    rows = reader(end) if name_of(end) == "index_select" else None
    if name_of(rows) in ("unflatten", "view") and shape(rows)[2:] == shape(end)[1:] and name_of(reader(rows)) == "sum":
        top_k, order = shape(rows)[1], permutation(end.args[2])
        token = next((n for n in order.users if n.args == (order, top_k) and name_of(n) == "floor_divide"), None)
        if token is not None and reader(rows).args[1] == [1]:
            return Sum(reader(rows), token, live, top_k)
    raise Refused("what its experts give is not just summed for each token")


def weighed(last: Any) -> tuple[Any, Any]:
    """What goes into the last product: hidden units, and what each pair counts."""
    product = last.args[0]
    if name_of(product) == "mul":
        for inner, weight in permutations(product.args):
            if isinstance(weight, Node) and shape(weight)[1:] == (1,):
                if not nonnegative(weight):
                    raise Refused("the weights of its router may be negative, and the operator leaves such experts out")
                return inner, weight
    raise Refused("the weights of its router do not stand before its last product")


def activated(inner: Any, ends: Any, found: Sum) -> tuple[str, list[Layer]]:
    """The operator's name for what happens between the products, which is known by what it gives."""
    layers: dict[Node, Layer] = {}
    read(inner, ends, found, layers)
    grid = torch.meshgrid(*[PROBES] * len(layers), indexing="ij") if len(layers) < 3 else ()
    for name, function in ACTIVATIONS.items() if grid else ():
        for order in permutations(layers):
            if (name == "swiglu") == (len(order) == 2) and alike(function(*grid), computed(inner, order, grid)):
                return name, [layers[node] for node in order]
    raise Refused("its activation is none of relu, gelu by tanh, silu and nothing at all, or with a gate not silu")


def read(value: Any, ends: Any, found: Sum, layers: dict[Node, Layer]) -> None:
    """Collect the first products behind a value; all in between must act on each number alone."""
    if not isinstance(value, Node) or value in layers:
        return
    if layer := first(value, ends, found):
        layers[value] = layer
    elif isinstance(value.target, OpOverload) and torch.Tag.pointwise in value.target.tags:
        for before in value.all_input_nodes:
            read(before, ends, found, layers)
    else:
        raise Refused(f"between its layers there is {name_of(value) or value}, which does not act on each number alone")


def first(value: Any, ends: Any, found: Sum) -> Layer | None:
    """The value as what a first product gives, its bias added."""
    bias: Any = None
    if name_of(value) == "add" and (bias := own_bias(value.args[1], found)) is not None:
        value = value.args[0]
    value = alive(value, found.live)
    if value.target is not GROUPED_OPERATOR or value.args[2] is not ends:
        return None
    rows = alive(value.args[0], found.live)
    known = name_of(rows) == "index" and list(rows.args[1]) == [found.token]
    return Layer(rows.args[0], value.args[1], bias) if known else None


def own_bias(value: Any, found: Sum) -> Any:
    """bias[experts, hidden] where each pair reads that of its own expert."""
    if name_of(value) != "index" or len(value.args[1]) != 1:
        return None
    expert, sort = value.args[1][0], found.token.args[0].args[0]
    expert = expert.args[0] if name_of(expert) == "clamp" else expert
    return value.args[0] if name_of(expert) == "getitem" and expert.args == (sort, 0) else None


def gathered(rows: Any) -> bool:
    """Whether these are rows of tokens, so that the product of them is a first one."""
    return name_of(rows.args[1] if name_of(rows) == "where" else rows) == "index"


def alive(value: Any, live: Any) -> Any:
    """Behind zeros for those rows that count nothing."""
    return value.args[1] if live is not None and name_of(value) == "where" and value.args[0] is live else value


def permutation(back: Any) -> Any:
    """The order of a sort whose inverse this is."""
    order: Any = inverse(back)
    if name_of(order) == "getitem" and order.args[1] == 1 and name_of(order.args[0]) in ("sort", "argsort"):
        return order
    raise Refused("its pairs are not put back in the order of the tokens")


def inverse(back: Any) -> Any:
    """Of which permutation this is the inverse: what sorts it."""
    if name_of(back) == "getitem" and back.args[1] == 1 and name_of(back.args[0]) == "sort":
        return back.args[0].args[0]
    return back.args[0] if name_of(back) == "argsort" else None


def computed(inner: Any, order: tuple[Node, ...], grid: tuple[Tensor, ...]) -> Tensor:
    """What the nodes between the products make of these numbers."""
    known: dict[Node, Tensor] = dict(zip(order, grid, strict=True))

    def run(node: Node) -> Any:
        if node not in known:
            known[node] = node.target(*map_arg(node.args, run), **map_arg(node.kwargs, run))  # type: ignore[operator]
        return known[node]

    out: Tensor = run(inner)
    return out


def alike(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isclose(one, other, CLOSE, CLOSE).all())


def nothing(value: Any) -> bool:
    value = value.args[0] if name_of(value) == "scalar_tensor" else value
    return isinstance(value, (int, float)) and value == 0


def zeros(value: Any) -> bool:
    return name_of(value) in ("new_zeros", "zeros", "zeros_like")


def reader(node: Any) -> Any:
    """The only one that asks for more than a size."""
    readers = [user for user in node.users if not zeros(user) and name_of(user) != "sym_size"]
    if len(readers) != 1:
        raise Refused("what its experts give is read in several places")
    return readers[0]


def shape(value: Any) -> tuple[Any, ...]:
    return tuple(value.meta["val"].shape)
