"""What an operation of one step becomes for all steps at once: the steps are one more dimension, in front."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatec.errors import Refused
from gatec.regions import POINTWISE
from gatec.reroll.maker import Maker

MORE = {
    "logsigmoid", "sin", "cos", "exp2", "log2", "log10", "float_power", "nan_to_num", "masked_fill", "logaddexp", "addcdiv",
    "clone", "contiguous", "sign", "floor", "ceil", "round", "isnan", "isfinite", "bool", "int", "long", "zeros_like", "ones_like",
    "full_like", "threshold", "logit", "hardshrink", "softshrink", "tanhshrink", "xlogy", "remainder", "fmod", "maximum",
    "minimum", "bitwise_and", "bitwise_or", "invert", "and", "or", "floordiv", "floor_divide", "true_divide", "subtract",
    "divide", "negative", "absolute", "clip", "log_sigmoid", "type",
}  # fmt: skip
ALONG = {"sum", "mean", "amax", "amin", "prod", "softmax", "log_softmax", "cumsum", "cumprod", "logsumexp", "norm", "std", "var",
         "squeeze", "normalize", "unsqueeze", "chunk", "split", "glu"}  # fmt: skip
SHAPES = {"view", "reshape", "expand"}
PRODUCTS = {"matmul", "bmm", "mm", "mv"}
TRAILING = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.Embedding)
DICE = {"bernoulli", "multinomial", "normal", "exponential", "poisson", "uniform", "alpha_dropout", "rrelu"}
Rule = Callable[[Maker, fx.Node, list[Any], dict[str, Any], int], Any]


def name_of(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_")


def batched(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    """The node for all steps, with at least one rolled value among its arguments."""
    if node.op == "call_module":
        return _module(maker, node, args, kwargs)
    name = name_of(node)
    if name in RULES:
        return RULES[name](maker, node, args, kwargs, steps)
    if name in POINTWISE or name in MORE:
        return _pointwise(maker, node, args, kwargs)
    raise Refused(f"{name} has no form for all steps at once")


def _pointwise(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    values = maker.aligned(*args, *kwargs.values())
    return maker.node(
        node.op, node.target, tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))
    )


def _module(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    child = maker.module.get_submodule(str(node.target))
    kind = type(child)
    own = kind.__module__.startswith("torch.nn.modules")
    hooks = child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks
    if hooks:
        raise Refused(f"{node.target} has hooks, which run at every step")
    if isinstance(child, nn.modules.dropout._DropoutNd) and own:
        return _dropout(maker, args[0], child.p, child.training)
    bends = kind.__module__ == "torch.nn.modules.activation" and not isinstance(child, nn.MultiheadAttention)
    if not own or not (isinstance(child, TRAILING) or (bends and getattr(child, "dim", -1) < 0)):
        raise Refused(f"{node.target} ({kind.__name__}) has no form for all steps at once")
    return maker.node("call_module", node.target, tuple(args), kwargs)


def _dropout(maker: Maker, x: Any, p: float, training: bool) -> Any:
    if p and training:
        raise Refused("it draws random numbers at every step (dropout)")
    return x


def _later(d: Any) -> Any:
    """A dimension, counted from the front, behind that of the steps."""
    if isinstance(d, (tuple, list)):
        return type(d)(map(_later, d))
    return d + 1 if isinstance(d, int) and d >= 0 else d


def _along(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    """A function of one dimension, or of several: by keyword, or at its usual place."""
    at = 2 if name_of(node) in ("chunk", "split", "norm", "normalize") else 1
    rest = {k: v for k, v in kwargs.items() if k != "dim"}
    dim = kwargs.get("dim", args[at] if len(args) > at else None)
    if dim is None and name_of(node) in ("chunk", "split", "normalize", "glu"):
        dim = {"chunk": 0, "split": 0, "normalize": 1, "glu": -1}[name_of(node)]
    if dim is None:
        raise Refused(f"{name_of(node)} over all that a step has")
    return maker.node(node.op, node.target, tuple(args[:at]), {**rest, "dim": _later(dim)} | _after(args, at))


def _after(args: list[Any], at: int) -> dict[str, Any]:
    """Arguments behind the dimension: only `keepdim` is known."""
    if len(args) > at + 2:
        raise Refused("arguments that have no form for all steps at once")
    return {"keepdim": args[at + 1]} if len(args) == at + 2 else {}


def _shape(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    x, *sizes = args
    sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    if not sizes or kwargs:
        raise Refused(f"{name_of(node)} has no form for all steps at once")
    if name_of(node) == "expand":
        return maker.make("expand", maker.raised(x, len(sizes)), -1, *sizes)
    return maker.make("reshape", x, steps, *sizes)


def _permuted(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    x, *dims = args
    dims = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    rank = maker.rank(x)
    return maker.make("permute", x, 0, *(d % rank + 1 for d in dims))


def _transposed(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    x, a, b = args if len(args) == 3 else (args[0], -1, -2)
    return maker.make("transpose", x, _later(a), _later(b))


def _flattened(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    named = {"start_dim": 0, "end_dim": -1, **dict(zip(("start_dim", "end_dim"), args[1:], strict=False)), **kwargs}
    x, first, last = args[0], named["start_dim"], named["end_dim"]
    return maker.make("flatten", x, _later(first), _later(last))


def _item(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    x, index = args
    if not isinstance(x.meta["val"], Tensor):
        return maker.make(operator.getitem, x, index)
    index = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(i, (int, slice, type(None), type(Ellipsis))) for i in index):
        raise Refused("it is indexed by values")
    return maker.make(operator.getitem, x, (slice(None), *index))


def _product(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    """Vectors become rows on the left and columns on the right."""
    x, y = args
    left, right = maker.rank(x) == 1, maker.rank(y) == 1
    if right and y not in maker.rolled:
        return maker.make(torch.matmul, x, y)
    x = maker.make("unsqueeze", x, -2, rolled=x in maker.rolled) if left else x
    y = maker.make("unsqueeze", y, -1, rolled=y in maker.rolled) if right else y
    out = maker.make(torch.matmul, *maker.aligned(x, y))
    out = maker.make("squeeze", out, -1) if right else out
    return maker.make("squeeze", out, -1 if right else -2) if left else out


def _einsum(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    text, *given = args
    given = list(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    inputs, arrow, output = text.replace(" ", "").partition("->")
    if not arrow or "." in text or "Z" in text:
        raise Refused("an einsum that leaves its output open")
    named = [("Z" if v in maker.rolled else "") + t for t, v in zip(inputs.split(","), given, strict=True)]
    return maker.make(torch.einsum, f"{','.join(named)}->Z{output}", *given)


def _linear(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    if any(v in maker.rolled for v in (*args[1:], *kwargs.values()) if isinstance(v, fx.Node)):
        raise Refused("a linear layer whose weight is another one at every step")
    return maker.node(node.op, node.target, tuple(args), kwargs)


def _attribute(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    if args[1] == "shape":  # the same at every step
        whole = maker.make(getattr, args[0], "shape", rolled=False)
        return maker.make(operator.getitem, whole, slice(1, None), rolled=False)
    if args[1] == "mT":
        return maker.make("transpose", args[0], -1, -2)
    raise Refused(f".{args[1]} has no form for all steps at once")


def _size(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    if len(args) == 2:
        return maker.make("size", args[0], _later(args[1]), rolled=False)
    return _attribute(maker, node, [args[0], "shape"], {}, steps)


def _dropped(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    named = {"p": 0.5, "training": True, **dict(zip(("p", "training"), args[1:], strict=False)), **kwargs}
    return _dropout(maker, args[0], named["p"], named["training"])


def _listed(maker: Maker, node: fx.Node, args: list[Any], kwargs: dict[str, Any], steps: int) -> Any:
    parts, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if not all(p in maker.rolled for p in parts):
        raise Refused(f"{name_of(node)} of what changes and what does not")
    return maker.make(node.target, list(parts), dim=_later(dim))


RULES: dict[str, Rule] = {
    **dict.fromkeys(ALONG, _along), **dict.fromkeys(SHAPES, _shape), **dict.fromkeys(PRODUCTS, _product),
    "permute": _permuted, "transpose": _transposed, "t": _transposed, "swapaxes": _transposed, "flatten": _flattened,
    "getitem": _item, "einsum": _einsum, "linear": _linear, "getattr": _attribute, "size": _size, "dropout": _dropped,
    "stack": _listed, "cat": _listed,
    **dict.fromkeys(("layer_norm", "rms_norm"), _linear),
}  # fmt: skip
