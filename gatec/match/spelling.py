"""The only table from torch's many names to the few operations of canonical terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from gatec.match import algebra as al
from gatec.match.terms import Linear, Table, Term, join, shape_of

Args = Callable[[Any], Any]

MODULES: dict[type[nn.Module], Callable[[nn.Module], tuple[str, Any]]] = {
    nn.ReLU: lambda m: ("relu", None),
    nn.SiLU: lambda m: ("silu", None),
    nn.GELU: lambda m: ("gelu_tanh" if m.approximate == "tanh" else "gelu", None),
    nn.Sigmoid: lambda m: ("sigmoid", None),
    nn.Tanh: lambda m: ("tanh", None),
    nn.Softplus: lambda m: ("softplus", None) if m.beta == 1 else ("softplus", (m.beta, m.threshold)),
    nn.ELU: lambda m: ("elu", None if m.alpha == 1 else m.alpha),
    nn.SELU: lambda m: ("selu", None),
    nn.CELU: lambda m: ("celu", None if m.alpha == 1 else m.alpha),
    nn.LeakyReLU: lambda m: ("leaky_relu", m.negative_slope),
    nn.Mish: lambda m: ("mish", None),
    nn.Hardswish: lambda m: ("hardswish", None),
    nn.Hardsigmoid: lambda m: ("hardsigmoid", None),
    nn.Hardtanh: lambda m: ("clamp", (m.min_val, m.max_val)),
    nn.ReLU6: lambda m: ("clamp", (0.0, 6.0)),
    nn.Softsign: lambda m: ("softsign", None),
    nn.Softmax: lambda m: ("softmax", m.dim),
}

UNARY = {
    "relu": "relu", "relu_": "relu", "silu": "silu", "silu_": "silu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid",
    "tanh": "tanh", "tanh_": "tanh", "mish": "mish", "hardswish": "hardswish", "hardsigmoid": "hardsigmoid",
    "softsign": "softsign", "selu": "selu", "expit": "sigmoid", "exp": "exp", "exp_": "exp", "erf": "erf",
    "log_sigmoid": "logsigmoid", "logsigmoid": "logsigmoid", "log": "log", "rsqrt": "rsqrt", "abs": "abs",
    "cos": "cos", "sin": "sin",
}  # fmt: skip
NOISE = {"contiguous", "clone", "detach", "to", "type_as", "float", "double", "half", "bfloat16", "type", "cpu", "cuda",
         "requires_grad_", "identity", "alias", "_to_copy", "convert_element_type", "positive", "__pos__"}  # fmt: skip
SHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as", "view_as",
          "repeat", "_unsafe_view", "broadcast_to", "reshape_as"}  # fmt: skip
DROPOUT = {"dropout", "dropout_", "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d"}


def layer(table: Table, path: str, module: nn.Module, x: Term, shape: tuple[int, ...] | None) -> Term | None:
    """The term of a call of one of torch's own layers, or None where its children must be asked."""
    kind = type(module)
    if kind.forward is nn.Linear.forward:
        bias = join(path, "bias") if getattr(module, "bias", None) is not None else None
        width = module.weight.shape[0]
        linear = Linear(path, join(path, "weight"), bias, False, width, (0, width, 1))
        return table.make("linear", x, data=linear, shape=shape)
    if isinstance(module, (nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return x if not module.training or module.p == 0 else table.make("dropout", x, data=(module.p, path), shape=shape)
    if kind is nn.Identity:
        return x
    if kind is nn.GLU:
        return al.glu(table, x, module.dim, shape)
    if kind is nn.Flatten and x.shape and shape and x.shape[-1] == shape[-1]:
        return x
    if kind in MODULES:
        name, data = MODULES[kind](module)
        return al.unary(table, name, x, data)
    if isinstance(module, (nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm, nn.Embedding)) or _pools(kind):
        return table.make(f"layer:{kind.__name__}", x, data=path, shape=shape)
    return None


def _pools(kind: type) -> bool:
    return kind.__module__ == "torch.nn.modules.pooling"


def spelled(table: Table, node: fx.Node, arg: Args) -> Term | None:
    """The term of a function or method call that the table knows, or None."""
    name = _name(node)
    if name is None or not node.args:
        return None
    args, kwargs = [arg(a) for a in node.args], {k: arg(v) for k, v in node.kwargs.items()}
    x, shape = args[0], shape_of(node)
    if isinstance(x, tuple) and name in ("cat", "concat", "concatenate", "stack"):
        return None
    if name in BUILT:
        return BUILT[name](table, args, kwargs, shape)
    if not isinstance(x, Term):
        return _scalar_first(table, name, args, shape)
    if name in UNARY:
        return al.unary(table, UNARY[name], x)
    if name in NOISE:
        return x
    if name in SHAPES:
        return al.view(table, x, shape)
    if name in DROPOUT:
        p, training = _dropout(node)
        return x if not training or p == 0 else table.make("dropout", x, data=(p, node.name), shape=shape)
    return None


def _name(node: fx.Node) -> str | None:
    if isinstance(node.target, str):
        return node.target.removesuffix("_") if not node.target.endswith("__") else node.target.strip("_")
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__
    name = getattr(target, "__name__", None)
    module = str(getattr(target, "__module__", None) or getattr(type(target), "__module__", ""))
    known = target is getattr or module.split(".")[0] in ("torch", "_operator", "operator", "builtins", "math") or module == ""
    if not known or not isinstance(name, str) or (module.startswith("torch") and name == "apply"):
        return None
    return name


def _dropout(node: fx.Node) -> tuple[float, bool]:
    values = dict(zip(("x", "p", "training"), node.args, strict=False)) | dict(node.kwargs)
    return values.get("p", 0.5), bool(values.get("training", values.get("train", True)))


def _scalar_first(table: Table, name: str, args: list[Any], shape: Any) -> Term | None:
    if len(args) == 2 and isinstance(args[0], (int, float)) and isinstance(args[1], Term) and name in BINARY:
        return BINARY[name](table, args[0], args[1], shape)
    return None


def _binary(function: Callable[..., Term | None]) -> Callable[..., Term | None]:
    def build(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
        if len(args) < 2:
            args = [*args, *(kwargs[k] for k in ("other", "exponent") if k in kwargs)]
        if len(args) < 2 or not all(isinstance(a, (Term, int, float)) for a in args[:2]):
            return None
        return function(table, args[0], args[1], shape, **{k: v for k, v in kwargs.items() if k == "alpha"})

    return build


BINARY: dict[str, Callable[..., Term | None]] = {
    "add": al.add, "iadd": al.add, "radd": al.add, "sub": al.sub, "isub": al.sub, "subtract": al.sub,
    "rsub": lambda t, a, b, s, alpha=1: al.sub(t, b, a, s, alpha), "mul": al.mul, "imul": al.mul, "multiply": al.mul,
    "rmul": al.mul, "div": al.div, "truediv": al.div, "itruediv": al.div, "true_divide": al.div, "divide": al.div,
    "pow": al.power, "ipow": al.power, "maximum": al.maximum, "minimum": al.minimum, "max": al.maximum,
    "min": al.minimum, "gt": al.compare("gt"), "ge": al.compare("ge"), "lt": al.compare("lt"), "le": al.compare("le"),
    "greater": al.compare("gt"), "less": al.compare("lt"), "matmul": al.matmul, "mm": al.matmul, "imatmul": al.matmul,
}  # fmt: skip


def _gelu(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    tanh = kwargs.get("approximate", args[1] if len(args) > 1 else "none") == "tanh"
    return al.unary(table, "gelu_tanh" if tanh else "gelu", args[0])


def _parametric(name: str, parameter: str, default: float, plain: float | None) -> Callable[..., Term | None]:
    def build(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
        value = kwargs.get(parameter, args[1] if len(args) > 1 else default)
        return al.unary(table, name, args[0], None if value == plain else value)

    return build


def _clamp(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    low = kwargs.get("min", kwargs.get("min_val", args[1] if len(args) > 1 else None))
    high = kwargs.get("max", kwargs.get("max_val", args[2] if len(args) > 2 else None))
    return al.clamp(table, args[0], low, high)


def _softmax(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    return al.unary(table, "softmax", args[0], kwargs.get("dim", args[1] if len(args) > 1 else -1))


def _lerp(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    a, b = args[0], args[1] if len(args) > 1 else kwargs["end"]
    t = args[2] if len(args) > 2 else kwargs["weight"]
    return al.add(table, a, al.mul(table, t, al.sub(table, b, a, shape), shape), shape)


def _addcmul(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    scaled = al.mul(table, al.mul(table, args[1], args[2], shape), kwargs.get("value", 1), shape)
    return al.add(table, args[0], scaled, shape)


def _where(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    return al.where(table, args, shape) if len(args) == 3 else None


def _linear(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    return al.linear(table, args[0], weight, bias, False, shape)


def _addmm(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    if kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1:
        return None
    flipped = al.untransposed(args[2])
    if flipped is not None:
        return al.linear(table, args[1], flipped, args[0], False, shape)
    return al.linear(table, args[1], args[2], args[0], True, shape)


def _transposed(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    x = args[0]
    if isinstance(x, Term) and x.op == "param" and x.shape is not None and len(x.shape) == 2:
        return table.make("transpose", x, shape=x.shape[::-1])
    return None


def _getattr(table: Table, args: list[Any], kwargs: dict[str, Any], shape: Any) -> Term | None:
    if args[1] in ("T", "mT", "H", "mH"):
        return _transposed(table, args, kwargs, shape)
    return args[0] if args[1] == "data" else None


BUILT: dict[str, Callable[..., Term | None]] = {
    **{name: _binary(function) for name, function in BINARY.items()},
    "gelu": _gelu, "clamp": _clamp, "clip": _clamp, "hardtanh": _clamp,
    "clamp_min": lambda t, a, k, s: al.clamp(t, a[0], a[1] if len(a) > 1 else k["min"], None),
    "clamp_max": lambda t, a, k, s: al.clamp(t, a[0], None, a[1] if len(a) > 1 else k["max"]),
    "relu6": lambda t, a, k, s: al.clamp(t, a[0], 0.0, 6.0),
    "softmax": _softmax, "lerp": _lerp, "addcmul": _addcmul, "where": _where, "linear": _linear, "addmm": _addmm,
    "elu": _parametric("elu", "alpha", 1.0, 1.0), "celu": _parametric("celu", "alpha", 1.0, 1.0),
    "leaky_relu": _parametric("leaky_relu", "negative_slope", 0.01, None),
    "softplus": _parametric("softplus", "beta", 1, 1),
    "glu": lambda t, a, k, s: al.glu(t, a[0], k.get("dim", a[1] if len(a) > 1 else -1), s),
    "neg": lambda t, a, k, s: al.mul(t, a[0], -1, s), "negative": lambda t, a, k, s: al.mul(t, a[0], -1, s),
    "square": lambda t, a, k, s: al.mul(t, a[0], a[0], s), "reciprocal": lambda t, a, k, s: al.recip(t, a[0], s),
    "sqrt": lambda t, a, k, s: al.unary(t, "sqrt", a[0]),
    "t": _transposed, "transpose": _transposed, "permute": _transposed, "numpy_T": _transposed, "getattr": _getattr,
    "chunk": al.chunk, "split": al.split, "tensor_split": al.chunk, "unbind": al.unbind, "getitem": al.getitem,
    "narrow": al.narrow, "select": al.select, "slice": al.slice_,
}  # fmt: skip
