"""The only table from torch's many names to the few operations of canonical terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from gatec.capture import unit_of
from gatec.match import algebra as al
from gatec.match import choices as ch
from gatec.match import layers as ly
from gatec.match import packed as pk
from gatec.match.terms import Linear, Table, Term, join, shape_of
from gatec.match.written import number

Args = Callable[[Any], Any]

MODULES: dict[type[nn.Module], Callable[[nn.Module], tuple[str, Any]]] = {
    nn.ReLU: lambda m: ("relu", None),
    nn.SiLU: lambda m: ("silu", None),
    nn.GELU: lambda m: ("gelu_tanh" if m.approximate == "tanh" else "gelu", None),
    nn.Sigmoid: lambda m: ("sigmoid", None),
    nn.Tanh: lambda m: ("tanh", None),
    nn.SELU: lambda m: ("selu", None),
    nn.Mish: lambda m: ("mish", None),
    nn.Hardswish: lambda m: ("hardswish", None),
    nn.Hardsigmoid: lambda m: ("hardsigmoid", None),
    nn.Softsign: lambda m: ("softsign", None),
    nn.LogSigmoid: lambda m: ("logsigmoid", None),
}
WITH_PARAMETERS: dict[type[nn.Module], Callable[[Table, Any, Term], Term | None]] = {
    nn.Softplus: lambda t, m, x: al.softplus(t, x, m.beta, m.threshold),
    nn.ELU: lambda t, m, x: al.elu(t, x, m.alpha),
    nn.CELU: lambda t, m, x: _celu(t, x, m.alpha),
    nn.LeakyReLU: lambda t, m, x: al.leaky(t, x, m.negative_slope),
    nn.Hardtanh: lambda t, m, x: al.clamp(t, x, m.min_val, m.max_val),
    nn.ReLU6: lambda t, m, x: al.clamp(t, x, 0.0, 6.0),
    nn.Threshold: lambda t, m, x: _threshold(t, [x, m.threshold, m.value], {}, None),
}

UNARY = {
    **{
        n: n
        for n in (
            "relu",
            "silu",
            "sigmoid",
            "tanh",
            "mish",
            "hardswish",
            "hardsigmoid",
            "softsign",
            "selu",
            "exp",
            "log",
            "erf",
            "erfc",
            "expm1",
            "log1p",
            "sqrt",
            "rsqrt",
            "abs",
            "cos",
            "sin",
            "logsigmoid",
            "ndtr",
        )
    },
    "expit": "sigmoid",
    "special_expit": "sigmoid",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "special_ndtr": "ndtr",
    "log_sigmoid": "logsigmoid",
    "absolute": "abs",
    "swish": "silu",
}
NOISE = {
    "contiguous",
    "clone",
    "detach",
    "requires_grad",
    "identity",
    "alias",
    "lift_fresh_copy",
    "lift_fresh",
    "positive",
    "pos",
    "cpu",
    "cuda",
}
CASTS = {
    "to",
    "type_as",
    "float",
    "double",
    "half",
    "bfloat16",
    "type",
    "_to_copy",
    "convert_element_type",
    "int",
    "long",
    "bool",
    "short",
    "char",
    "byte",
}
SHAPES = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "expand",
    "expand_as",
    "view_as",
    "_unsafe_view",
    "broadcast_to",
    "reshape_as",
    "ravel",
    "view_copy",
    "expand_copy",
    "unsqueeze_copy",
    "squeeze_copy",
}
DROPOUT = {"dropout", "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d"}
WIDE = {torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128}
REDUCED = {"sum", "mean", "amax", "amin"}


def layer(table: Table, path: str, module: Any, x: Term, seen: al.Shape, shape: al.Shape) -> Term | None:
    """The term of a call of one of torch's own layers, or None where its children must be asked."""
    unit = unit_of(module)
    kind = unit.original if unit else type(module)
    if kind.forward is nn.Linear.forward:
        bias = join(path, "bias") if getattr(module, "bias", None) is not None else None
        width, fan = module.weight.shape
        linear = Linear(path, join(path, "weight"), bias, False, width, (0, width, 1), fan)
        return table.make("linear", x, data=linear, shape=shape)
    if isinstance(module, (nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return (
            x if not module.training or module.p == 0 else table.make("dropout", x, data=(module.p, path), shape=shape)
        )
    if kind is nn.Identity:
        return x
    if kind is nn.GLU:
        return pk.glu(table, x, seen, module.dim, shape)
    if kind is nn.Unflatten:
        return pk.view(table, x, shape)
    if kind in (nn.Softmax, nn.LogSoftmax) and module.dim is not None:
        return _over(table, "softmax" if kind is nn.Softmax else "log_softmax", x, seen, module.dim)
    if kind is nn.Flatten and shape:
        return pk.view(table, x, shape)
    if kind in WITH_PARAMETERS:
        return WITH_PARAMETERS[kind](table, module, x)
    if kind in MODULES:
        name, data = MODULES[kind](module)
        return al.unary(table, name, x, data)
    return ly.module(table, path, module, x, seen, shape)


def spelled(table: Table, node: fx.Node, arg: Args) -> Term | None:
    """The term of a function or method call that the table knows, or None."""
    name = name_of(node)
    if name is None or not (node.args or node.kwargs) or node.kwargs.get("out") is not None:
        return None
    args, kwargs = [arg(a) for a in node.args], {k: arg(v) for k, v in node.kwargs.items()}
    if not args:
        args = [kwargs.pop(k) for k in ("input", "self") if k in kwargs]
    shape = shape_of(node)
    if name in CONSTANTS:
        return CONSTANTS[name](table, args, kwargs)
    if name in BINARY:
        args = _aligned(table, node, args, shape)
    if name in BUILT:
        found = BUILT[name](table, args, kwargs, shape)
        if found is not None or name not in ly.LAYERS:
            return found
    if not args:
        return None
    x, seen = args[0], _seen(node, args[0])
    if not isinstance(x, Term):
        return x[args[1]] if name == "getitem" and isinstance(x, tuple) and isinstance(args[1], int) else None
    if name in pk.PACKED:
        return pk.packed(
            table, name, x, seen, [_int(a) for a in args[1:]], {k: _int(v) for k, v in kwargs.items()}, shape
        )
    if name in ly.LAYERS:
        return ly.called(table, name, x, seen, args[1:], kwargs, shape)
    if name in OVER:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return _over(table, OVER[name], x, seen, dim) if isinstance(dim, int) and dim is not True else None
    if name in REDUCED:
        return _reduced(table, name, x, seen, args[1:], kwargs, shape)
    if name in UNARY:
        return al.unary(table, UNARY[name], x)
    if name in NOISE:
        return x
    if name in CASTS:
        return _cast(table, node, x)
    if name in SHAPES:
        return pk.view(table, x, shape) if _dtype(node) == _dtype(_first(node)) else None
    if name in DROPOUT:
        p, training = _dropout(node)
        return x if not training or p == 0 else table.make("dropout", x, data=(p, node.name), shape=shape)
    return None


def name_of(node: fx.Node) -> str | None:
    """The plain name of one of torch's own functions, methods and operators."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return _plain(target.overloadpacket.__name__)
    if isinstance(target, str):
        return _plain(target)
    name = getattr(target, "__name__", None)
    module = str(getattr(target, "__module__", None) or getattr(type(target), "__module__", ""))
    known = (
        target is getattr
        or module.split(".")[0] in ("torch", "_operator", "operator", "builtins", "math")
        or module == ""
    )
    if not known or not isinstance(name, str) or (module.startswith("torch") and name == "apply"):
        return None
    return _plain(name)


def _plain(name: str) -> str:
    """The name of what an in-place operation computes: mul for mul_ and for __mul__."""
    return name.strip("_") if name.endswith("__") else name.removesuffix("_")


def overwrites(node: fx.Node) -> bool:
    """Whether an operator of the dispatcher, or an activation told to by position, writes over its operand."""
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    name = getattr(node.target, "__name__", "") if callable(node.target) else ""
    at = {"relu": 1, "silu": 1, "selu": 1, "mish": 1, "hardswish": 1, "hardsigmoid": 1, "relu6": 1, "elu": 2, "celu": 2,
          "leaky_relu": 2, "dropout": 3, "threshold": 3, "hardtanh": 3}.get(name)  # fmt: skip
    return at is not None and len(node.args) > at and node.args[at] is True


def _first(node: fx.Node) -> Any:
    return node.args[0] if node.args else next((node.kwargs[k] for k in ("input", "self") if k in node.kwargs), None)


def _seen(node: fx.Node, x: Any) -> al.Shape:
    """The sizes of a call's first operand, as the call sees them."""
    found = shape_of(_first(node))
    return found if found is not None or not isinstance(x, Term) else x.shape


def _int(a: Any) -> Any:
    """A size that the graph computes, by its value in the example."""
    if isinstance(a, tuple):
        return tuple(map(_int, a))
    if isinstance(a, slice):
        return slice(_int(a.start), _int(a.stop), _int(a.step))
    if isinstance(a, Term) and a.op in ("size", "const"):
        value = a.data[-1] if a.op == "size" else a.data
        return int(value) if isinstance(value, (int, float)) and value == int(value) else a
    return a


def _dtype(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, torch.Tensor) else None


def _cast(table: Table, node: fx.Node, x: Term) -> Term | None:
    """Between the dtypes of floating point a cast is noise; to whole numbers or to eight bits it computes."""
    before, after = _dtype(_first(node)), _dtype(node)
    if after is None or after == before or after in WIDE:
        return x
    return table.make("cast", x, data=str(after), shape=x.shape)


def _aligned(table: Table, node: fx.Node, args: list[Any], shape: al.Shape) -> list[Any]:
    """Operands that are both repeated keep the sizes by which they meet: x[:, None] * x[None] is no square."""
    shapes = [shape_of(a) for a in node.args[:2]]
    if len(shapes) < 2 or shape is None or any(s is None or _bare(s) == _bare(shape) for s in shapes):
        return args
    pairs = zip(args, shapes, strict=False)
    return [
        pk.exposed(table, x, _bare(s)) if isinstance(x, Term) and _bare(x.shape) != _bare(s) else x for x, s in pairs
    ]


def _bare(shape: al.Shape) -> al.Shape:
    """Sizes without the leading ones."""
    shape = shape or ()
    return shape[next((i for i, s in enumerate(shape) if s != 1), len(shape)) :]


def _dropout(node: fx.Node) -> tuple[float, bool]:
    values: dict[str, Any] = dict(zip(("x", "p", "training"), node.args, strict=False)) | dict(node.kwargs)
    return values.get("p", 0.5), bool(values.get("training", values.get("train", True)))


def _over(table: Table, name: str, x: Term, seen: al.Shape, dim: int) -> Term | None:
    """An operation along one dimension, counted from the last."""
    if seen is None:
        return table.make(name, x, data=dim, shape=x.shape)
    dim = dim % len(seen) - len(seen)
    x = x if dim == -1 else pk.exposed(table, x, seen)
    return table.make(name, x, data=dim, shape=x.shape)


def _reduced(
    table: Table, name: str, x: Term, seen: al.Shape, args: list[Any], kwargs: dict[str, Any], shape: al.Shape
) -> Term | None:
    dims = kwargs.get("dim", args[0] if args else None)
    dims = (dims,) if isinstance(dims, int) else dims
    if seen is None or shape is None or not (dims is None or isinstance(dims, tuple)):
        return None
    dims = tuple(sorted(d % len(seen) - len(seen) for d in (dims or range(len(seen)))))
    x = x if dims == (-1,) else pk.exposed(table, x, seen)
    return table.make(name, x, data=(dims, len(shape) == len(seen)), shape=shape)


def _binary(function: Callable[..., Term | None]) -> Callable[..., Term | None]:
    def build(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
        if len(args) < 2:
            args = [*args, *(kwargs[k] for k in ("other", "exponent", "mat2") if k in kwargs)]
        extra = {k: v for k, v in kwargs.items() if k not in ("other", "exponent", "mat2") and v is not None}
        if len(args) == 3 and not extra:
            args, extra = args[:2], {"alpha": args[2]}
        if (
            len(args) != 2
            or not all(isinstance(a, (Term, int, float)) for a in args)
            or not any(isinstance(a, Term) for a in args)
        ):
            return None
        return function(
            table, args[0], args[1], shape, **extra
        )  # an argument that it has not is refused with a TypeError

    return build


def _two(function: Callable[..., Term | None]) -> Callable[..., Term | None]:
    """torch.max(x, y) of two tensors; torch.max(x, dim) is something else."""

    def build(table: Table, a: Any, b: Any, shape: Any = None) -> Term | None:
        return function(table, a, b, shape) if isinstance(a, Term) and isinstance(b, Term) and b.op != "size" else None

    return build


BINARY: dict[str, Callable[..., Term | None]] = {
    "add": al.add, "iadd": al.add, "radd": al.add, "sub": al.sub, "isub": al.sub, "subtract": al.sub,
    "rsub": lambda t, a, b, s, alpha=1: al.sub(t, b, a, s, alpha), "mul": al.mul, "imul": al.mul, "multiply": al.mul,
    "rmul": al.mul, "div": al.div, "truediv": al.div, "itruediv": al.div, "true_divide": al.div, "divide": al.div,
    "rtruediv": lambda t, a, b, s: al.div(t, b, a, s), "rdiv": lambda t, a, b, s: al.div(t, b, a, s),
    "pow": al.power, "ipow": al.power, "maximum": ch.maximum, "minimum": ch.minimum, "max": _two(ch.maximum),
    "min": _two(ch.minimum), "fmax": ch.maximum, "fmin": ch.minimum, "gt": ch.compare("gt"), "ge": ch.compare("ge"),
    "lt": ch.compare("lt"), "le": ch.compare("le"), "greater": ch.compare("gt"), "less": ch.compare("lt"),
    "eq": ch.equal("eq"), "ne": ch.equal("ne"), "not_equal": ch.equal("ne"),
    "greater_equal": ch.compare("ge"), "less_equal": ch.compare("le"),
}  # fmt: skip
MATMUL = {"matmul": pk.matmul, "bmm": pk.matmul, "mm": pk.matmul, "imatmul": pk.matmul, "linalg_matmul": pk.matmul}
OVER = {"softmax": "softmax", "_softmax": "softmax", "log_softmax": "log_softmax", "_log_softmax": "log_softmax"}


def _gelu(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    tanh = kwargs.get("approximate", args[1] if len(args) > 1 else "none") == "tanh"
    return al.unary(table, "gelu_tanh" if tanh else "gelu", args[0])


def _celu(table: Table, x: Term, alpha: float) -> Term:
    return al.elu(table, x) if alpha == 1 else al.unary(table, "celu", x, alpha)


def _elu(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    alpha, scale, inner = ([*args, *(1.0,) * 3][1:4]) if not kwargs.get("inplace") else (1.0, 1.0, 1.0)
    alpha, scale = kwargs.get("alpha", alpha), kwargs.get("scale", scale)
    if kwargs.get("input_scale", inner) not in (1, 1.0):
        return None
    if math.isclose(scale, al.SELU_SCALE, rel_tol=1e-6) and math.isclose(alpha, al.SELU_ALPHA, rel_tol=1e-6):
        return al.unary(table, "selu", args[0])
    return al.mul(table, al.elu(table, args[0], alpha), scale)


def _given(
    function: Callable[..., Term | None], names: tuple[str, ...], defaults: tuple[Any, ...]
) -> Callable[..., Term | None]:
    """A function of a term and numbers, which may be given by position or by name."""

    def build(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
        values = dict(zip(names, defaults, strict=True)) | dict(zip(names, args[1:], strict=False))
        return function(
            table, args[0], *({**values, **{k: v for k, v in kwargs.items() if k in values}}[n] for n in names)
        )

    return build


def _clamp(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    low = kwargs.get("min", kwargs.get("min_val", args[1] if len(args) > 1 else None))
    high = kwargs.get("max", kwargs.get("max_val", args[2] if len(args) > 2 else None))
    return al.clamp(table, args[0], low, high)


def _hardtanh(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    low, high = [*args[1:], *(-1.0, 1.0)[len(args) - 1 :]][:2]
    return al.clamp(table, args[0], kwargs.get("min_val", low), kwargs.get("max_val", high))


def _threshold(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    bound, value = [*args[1:], *(kwargs[k] for k in ("threshold", "value") if k in kwargs)][:2]
    return ch.where(table, ch.compare("gt")(table, args[0], bound), args[0], value, shape)


def _lerp(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    a, b = args[0], args[1] if len(args) > 1 else kwargs["end"]
    t = args[2] if len(args) > 2 else kwargs["weight"]
    return al.add(table, a, al.mul(table, t, al.sub(table, b, a, shape), shape), shape)


def _addc(function: Callable[..., Term]) -> Callable[..., Term | None]:
    def build(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
        first, second = [*args[1:], *(kwargs[k] for k in ("tensor1", "tensor2") if k in kwargs)]
        return al.add(table, args[0], function(table, first, second, shape), shape, kwargs.get("value", 1))

    return build


def _where(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    test, yes, no = [*args, *(kwargs[k] for k in ("input", "other") if k in kwargs)]
    return ch.where(table, test, yes, no, shape) if isinstance(test, Term) else None


def _filled(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    test, value = [*args[1:], *(kwargs[k] for k in ("mask", "value") if k in kwargs)]
    return ch.where(table, test, value, args[0], shape)


def _logaddexp(table: Table, a: Any, b: Any, shape: Any = None) -> Term | None:
    x, n = (a, number(b)) if number(b) is not None else (b, number(a))
    return al.softplus(table, x) if n == 0 else None


def _linear(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    return pk.linear(table, args[0], weight, bias, False, shape)


def _addmm(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    if kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1:
        return None
    bias, x, weight = [*args, *(kwargs[k] for k in ("mat1", "mat2") if k in kwargs)]
    whole = pk.linear(table, x, weight, bias, True, shape)
    bare = whole or pk.linear(table, x, weight, None, True, shape)
    return whole or (al.add(table, bare, bias, shape) if bare is not None else None)


def _getattr(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    x, name = args
    if isinstance(x, Term) and x.op == "tuple" and name in ("values", "indices"):
        values, indices = x.args[:2]
        return values if name == "values" else indices
    if isinstance(x, Term) and x.op.startswith("call:") and name in ("values", "indices"):
        return table.make("item", x, data=int(name == "indices"), shape=shape)
    rank = len(x.shape) if isinstance(x, Term) and x.shape is not None else 0
    if (name in ("T", "H", "mH") and rank == 2) or (name == "mT" and rank > 1):
        return pk.transposed(table, x, x.shape, -2, -1)
    return x if name == "data" else None


def _not(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    return ch.negated(table, args[0]) if args[0].op in ("gt", "ge", "eq", "ne", "not") else None


def _first_of(table: Table, args: list[Any], kwargs: dict[str, Any]) -> Term | None:
    value = _int(args[0]) if args else None
    return table.const(value) if isinstance(value, (int, float)) else None


def _full(table: Table, args: list[Any], kwargs: dict[str, Any]) -> Term | None:
    value = kwargs.get("fill_value", args[-1] if len(args) > 1 else None)
    value = number(value) if isinstance(value, Term) else value
    return table.const(value) if isinstance(value, (int, float)) else None


CONSTANTS: dict[str, Callable[[Table, list[Any], dict[str, Any]], Term | None]] = {
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), lambda t, a, k: t.const(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), lambda t, a, k: t.const(1.0)),
    **dict.fromkeys(("full", "full_like", "new_full"), _full),
    **dict.fromkeys(("tensor", "scalar_tensor", "as_tensor"), _first_of),
}
BUILT: dict[str, Callable[..., Term | None]] = {
    **{name: _binary(function) for name, function in (BINARY | MATMUL | {"logaddexp": _logaddexp}).items()},
    "gelu": _gelu, "clamp": _clamp, "clip": _clamp, "hardtanh": _hardtanh,
    "clamp_min": lambda t, a, k, s: al.clamp(t, a[0], a[1] if len(a) > 1 else k["min"], None),
    "clamp_max": lambda t, a, k, s: al.clamp(t, a[0], None, a[1] if len(a) > 1 else k["max"]),
    "relu6": lambda t, a, k, s: al.clamp(t, a[0], 0.0, 6.0), "threshold": _threshold, "_threshold": _threshold,
    "lerp": _lerp, "addcmul": _addc(al.mul), "addcdiv": _addc(al.div), "where": _where, "masked_fill": _filled,
    "linear": _linear, "addmm": _addmm, "einsum": pk.einsum, "elu": _elu, "celu": _given(_celu, ("alpha",), (1.0,)),
    "leaky_relu": _given(al.leaky, ("negative_slope",), (0.01,)),
    "softplus": _given(al.softplus, ("beta", "threshold"), (1, 20)),
    "neg": lambda t, a, k, s: al.mul(t, a[0], -1, s), "negative": lambda t, a, k, s: al.mul(t, a[0], -1, s),
    "square": lambda t, a, k, s: al.mul(t, a[0], a[0], s), "reciprocal": lambda t, a, k, s: al.recip(t, a[0], s),
    "log_sigmoid_forward": lambda t, a, k, s: t.make("tuple", al.unary(t, "logsigmoid", a[0]), t.fresh("buffer")),
    "getattr": _getattr, "logical_not": _not, "bitwise_not": _not, "invert": _not,
}  # fmt: skip
