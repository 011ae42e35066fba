"""derive(): a function of one tile or of rows becomes two flat aten graphs, its value and its gradients.

Both are traced as if every float operand were float32 (float64 if one is). A kernel computes in
that type, so a cast to an operand's own type disappears, and a cast to a type which the author
wrote out stays and rounds. Traced operands all have one shape; the launcher reduces gradients.

`rows=True` allows reductions over the last dimension (norms, softmax, statistics): an operand whose last
dimension has size one keeps it, and the graphs are in row form.
"""

import inspect
import keyword
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from gatec import reductions as _reductions  # noqa: F401 - adds its formulas to the table
from gatec.decompose import DECOMPOSITIONS
from gatec.errors import GatecError
from gatec.rowform import BroadcastWeights, row_form

# Names which generated kernels use for themselves.
RESERVED = {
    "tl", "triton", "torch", "functools", "math", "float", "len", "range", "any",
    "row", "col", "rows", "across", "shape", "ROWS", "COLS", "read", "write", "place",
    "out", "grad", "grads", "needs", "expect", "broadcast", "launch", "merged", "align", "room",
    "reduced", "inside", "step", "steps", "tile", "kept", "settled", "COLUMNS", "warps", "TAPS", "TILE", "ORDER", "CHANNEL", "AXES",
    "h", "h0", "dh0", "t", "i", "dim", "reverse", "full", "lanes", "first", "chunk", "start", "state", "carried", "product",
    "local", "local_h", "local_r", "decays", "before", "earlier", "walked", "carries", "put", "fold", "DOWN", "CHUNK", "workspaces",
    "tiles", "DEPTH", "program", "columns", "span", "high", "depth", "slopes", "totals", "together", "packed",
    "left", "halves", "flat", "multiply", "projected", "library", "states", "pulled", "chunks",
    "always", "slope", "axis0", "axis1", "length0", "length1", "sums", "here", "width", "beside", "seen",
}  # fmt: skip
ENDINGS = (
    "_grad", "_at", "_of", "_ptr", "_sum", "_t", "_along", "_tile", "_now", "_kept", "_left", "_right", "_beside", "_taps",
   
)  # fmt: skip


@dataclass(frozen=True)
class Derived:
    """`forward(*operands)` and `backward(grad, *operands)`, with the dtypes that a caller sees.

    `columns` is the length of a row where the graphs are in row form: it stands in them as a number.
    """

    forward: fx.Graph
    backward: fx.Graph
    columns: int | None = None


def derive(fn: Callable[..., Tensor], examples: Sequence[Tensor], *, rows: bool = False) -> Derived:
    operands = [torch.empty(x.shape, dtype=x.dtype, device="meta") for x in examples]
    out = fn(*operands)
    shape = torch.broadcast_shapes(*(x.shape for x in operands))
    if not isinstance(out, Tensor) or out.shape != shape:
        found = f"a result of shape {tuple(out.shape)}" if isinstance(out, Tensor) else repr(out)
        raise GatecError(f"a pointwise function of operands that broadcast to {tuple(shape)}", found=found)

    owned = own_backward(fn)
    names = operand_names(fn, len(operands))
    full = [torch.empty(across(x, shape, rows), dtype=widened(x, operands), device="meta") for x in operands]
    floats = [i for i, x in enumerate(operands) if x.is_floating_point()]

    def gradients(grad: Tensor, *xs: Tensor) -> list[Tensor]:
        if owned:
            return pulled(fn, grad, xs, floats)

        def of_floats(*some: Tensor) -> Tensor:
            every = list(xs)
            for i, x in zip(floats, some, strict=True):
                every[i] = x
            return fn(*every)

        pull = torch.func.vjp(of_floats, *(xs[i] for i in floats))[1]
        return list(pull(grad))

    differentiable = out.is_floating_point() and bool(floats)
    with BroadcastWeights():
        forward = flat_graph(fn, full)
        given = [torch.empty_like(fn(*full)), *full]
        backward = flat_graph(gradients if differentiable else lambda *_: [], given, functional=not owned)
    if rows:
        row_form(forward, shape)
        row_form(backward, shape)
    grads = [x if differentiable and i in floats else None for i, x in enumerate(operands)]
    return Derived(
        as_seen(forward, names, operands, [out]),
        as_seen(backward, ["grad", *names], [out, *operands], grads),
        shape[-1] if rows else None,
    )


class Owned(nn.Module):
    """A torch.autograd.Function, whose backward somebody wrote, as a part of a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        if not torch._C._are_functorch_transforms_active():
            return self.function.apply(*args)
        alone = "setup_context" in vars(self.function)  # the newer form, whose forward has no context
        return self.function.forward(*args) if alone else self.function.forward(Quiet(), *args)


class Quiet:
    """Takes whatever a forward keeps for its backward."""

    def save_for_backward(self, *values: Any) -> None:
        pass

    mark_non_differentiable = set_materialize_grads = save_for_backward


def own_backward(fn: Callable[..., object]) -> bool:
    """Whether some part of a function has a backward that somebody wrote."""
    module = getattr(fn, "__self__", None)
    return isinstance(module, nn.Module) and any(isinstance(m, Owned) for m in module.modules())


def pulled(fn: Callable[..., Tensor], grad: Tensor, xs: Sequence[Tensor], floats: Sequence[int]) -> list[Tensor]:
    """The gradients by autograd, which knows backwards that torch.func does not."""
    leaves = list(xs)
    with torch.enable_grad():
        for i in floats:
            leaves[i] = xs[i].detach().requires_grad_()
        out = fn(*leaves)
    return list(torch.autograd.grad(out, [leaves[i] for i in floats], grad, materialize_grads=True, allow_unused=True))


def across(x: Tensor, shape: torch.Size, rows: bool) -> torch.Size:
    """The shape of an operand in the trace: that of the whole, but a value per row stays one."""
    return torch.Size((*shape[:-1], 1)) if rows and shape and x.shape[-1:] in ((), (1,)) else shape


def widened(x: Tensor, operands: Sequence[Tensor]) -> torch.dtype:
    """The type in which a kernel holds this operand."""
    if not x.is_floating_point():
        return x.dtype
    doubles = any(y.dtype == torch.float64 for y in operands)
    return torch.float64 if doubles else torch.float32


def flat_graph(fn: Callable[..., object], inputs: Sequence[Tensor], *, functional: bool = True) -> fx.Graph:
    plain = lambda *xs: fn(*xs)  # noqa: E731 - the tracer asks for code of its own
    traced = make_fx(
        torch.func.functionalize(plain) if functional else plain,
        decomposition_table=dict(DECOMPOSITIONS),
        tracing_mode="fake",
    )(*inputs)
    inline_constants(traced)
    traced.graph.eliminate_dead_code()
    return traced.graph


def inline_constants(traced: fx.GraphModule) -> None:
    """torch.tensor(2.0) inside the function: a number, not one more operand."""
    for node in [n for n in traced.graph.nodes if n.op == "get_attr"]:
        constant = getattr(traced, str(node.target))
        if constant.numel() != 1:
            raise GatecError(
                "a pointwise function whose tensors are its parameters",
                found=f"a constant of shape {tuple(constant.shape)} inside",
                hint="pass it as an operand",
            )
        with traced.graph.inserting_before(node):
            number = traced.graph.call_function(
                torch.ops.aten.scalar_tensor.default, (constant.item(),), {"dtype": constant.dtype}
            )
        number.meta["val"] = constant.to("meta")
        node.replace_all_uses_with(number)
        traced.graph.erase_node(node)


def operand_names(fn: Callable[..., Tensor], count: int) -> list[str]:
    """The function's own parameter names, so that a kernel reads like the equation it came from."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except ValueError:  # torch's own functions have no signature
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(named) < count:
        named = [f"x{i}" for i in range(count)]
    return [spared(name) for name in named[:count]]


def spared(name: str) -> str:
    """The name, changed where generated kernels use it for themselves."""
    taken = name in RESERVED or keyword.iskeyword(name) or name.endswith(ENDINGS)
    return f"{name}_" if taken else name


def as_seen(
    traced: fx.Graph,
    names: Sequence[str],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor | None],
) -> fx.Graph:
    """The same graph with the operands' own names, and the dtypes which the caller sees."""
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    # Before everything else, so that an operand called `mul` keeps its name and a product does not.
    for node, name, value in zip(traced.find_nodes(op="placeholder"), names, inputs, strict=True):
        known[node] = graph.placeholder(name)
        known[node].meta["val"] = value
    results = graph.graph_copy(traced, known)
    flat = iter(results if isinstance(results, (list, tuple)) else [results])
    graph.output([None if x is None else next(flat) for x in outputs])
    graph.output_node().meta["val"] = tuple(outputs)
    return graph
