"""The ways Python lets one spell a method: properties, closures, super, mixins, descriptors, patches, TorchScript."""

import functools
import types
from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from odd import Block, X, after, call, odd, rows


@odd(X, others=[rows(3), after(lambda m: setattr(m, "kind", "relu"), X)])
class Properties(Block):
    kind = "gelu"

    @property
    def act(self):
        return getattr(F, self.kind)

    @functools.cached_property
    def width(self):
        return self.up.out_features

    @staticmethod
    def scaled(x, by):
        return x * by

    @classmethod
    def shifted(cls, x):
        return x + len(cls.kind)

    def forward(self, x):
        return self.shifted(self.scaled(self.down(self.act(self.up(x))), self.width))


@odd(X, others=[rows(3)])
class Closures(Block):
    def forward(self, x):
        scale = x.size(0)

        def around(f):
            def inner(z):
                nonlocal scale
                scale = scale + 1
                return f(z) * scale

            return inner

        return around(around(self.mlp))(x) + scale


class Base(Block):
    def forward(self, x):
        return self.hook(self.mlp(x))

    def hook(self, x):
        return x


@odd(X, others=[rows(3)])
class CallsSuper(Base):
    def forward(self, x):
        return super().forward(x) * 2 + Base.forward(self, x)

    def hook(self, x):
        return super().hook(x) + 1


class ScaleMixin:
    scale = 3.0

    def forward(self, x):
        return super().forward(x) * self.scale


class Interface(ABC):
    @abstractmethod
    def forward(self, x): ...


@odd(X, others=[rows(3)])
class Mixins(ScaleMixin, Base, Interface):
    def hook(self, x):
        return x - 1


@odd(X, others=[rows(3)])
class OwnCall(Block):
    """__call__ overridden: what runs around forward stays outside its graph."""

    def __call__(self, x, *args, **kwargs):
        return super().__call__(x * 2, *args, **kwargs) + 1

    def forward(self, x):
        return self.mlp(x)


@odd(X, others=[rows(3)])
class ChildWithOwnCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = OwnCall()

    def forward(self, x):
        return self.inner(x) * 2


class Patched(Block):
    def forward(self, x):
        return self.mlp(x)


@odd(X, others=[rows(3)], refused="its forward was replaced on the object itself")
def forward_of_the_object():
    model = Patched()
    model.forward = types.MethodType(lambda self, x: self.mlp(x) * 2, model)
    return model


@odd(X, others=[rows(3)], refused={"inner": "its forward was replaced on the object itself"})
def forward_of_a_child():
    model = nn.Sequential()
    model.inner = Patched()
    plain = model.inner.forward
    model.inner.forward = lambda x: plain(x) + 1
    return model


@odd(X, others=[after(lambda m: setattr(m, "forward", lambda x: x * 5), X)])
class PatchedLater(Block):
    def forward(self, x):
        return self.mlp(x)


def twice(forward):
    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        return forward(self, *args, **kwargs) * 2

    return wrapper


class Wrapper:
    """A decorator that is a class, with __get__ of its own."""

    def __init__(self, function):
        self.function = function

    def __get__(self, owner, kind=None):
        return functools.partial(self.function, owner)


@odd(X, others=[rows(3)])
class Decorated(Block):
    @twice
    @twice
    def forward(self, x):
        return self.mlp(x) + self.other(x)

    @Wrapper
    def other(self, x):
        return x.sin()


@odd(X, others=[rows(3)])
class ForwardIsAnAttribute(Block):
    """forward = another method of the class."""

    def run(self, x):
        return self.mlp(x)

    forward = run


@odd(X, others=[rows(3)])
class Dispatches(Block):
    def forward(self, x):
        for kind in ("small", "large"):
            x = getattr(self, f"forward_{kind}")(x)
        return {"a": self.forward_small, "b": self.forward_large}["b" if x.size(0) > 3 else "a"](x)

    def forward_small(self, x):
        return self.mlp(x)

    def forward_large(self, x):
        return self.mlp(x) * 2


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return self.linear(x)
        return -x


@odd(X, others=[rows(3), -X], refused={"inner": "it is compiled by TorchScript"})
def scripted_child():
    model = nn.Sequential(nn.Linear(8, 8))
    model.inner = torch.jit.script(Scripted())
    return model


@odd(X, others=[rows(3)], refused="it is compiled by TorchScript")
def scripted_model():
    return torch.jit.script(Scripted())


@odd(X, others=[rows(4)], refused={"inner": "it is compiled by TorchScript"})
def jit_traced_child():
    model = nn.Sequential(nn.Linear(8, 8))
    model.inner = torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), rows(4))
    return model


@torch.jit.script
def fused_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x) * y


@odd(X, others=[rows(3)])
class AsksTorchScript(Block):
    def forward(self, x):
        if torch.jit.is_scripting() or torch.jit.is_tracing():
            return x
        y: torch.Tensor = torch.jit.annotate(torch.Tensor, self.mlp(x))
        return self.unused(y)

    @torch.jit.ignore
    def unused(self, x):
        return x * 2


@odd(X, others=[rows(3)])
class AsksWhoRuns(Block):
    def forward(self, x):
        if torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling() or torch._dynamo.is_compiling():
            return x
        if torch.compiler.is_exporting() or torch.cuda.is_available():
            return x * 3
        return self.mlp(x) if torch.backends.mps.is_available() or not x.is_cuda else x


class Slotted(Block):
    """Names that live in descriptors, not in __dict__."""

    __slots__ = ("held",)

    @property
    def scale(self):
        return self.held

    @scale.setter
    def scale(self, value):
        self.held = value


@odd(X, others=[rows(3), after(lambda m: setattr(m, "scale", 3.0), X), after(lambda m: m.add("bias"), X)])
class Descriptors(Slotted):
    def __init__(self):
        super().__init__()
        self.scale = 2.0
        self.names = []

    def add(self, name):
        self.names.append(name)

    def forward(self, x):
        return self.mlp(x) * self.scale + len(self.names)


@odd(X, others=[rows(3)])
class OwnGetattr(Block):
    """__getattr__ that looks into another module, as wrappers do."""

    def __init__(self):
        super().__init__()
        self.inner = Properties()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.inner(x) * self.width + self.act(x)


class Meta(type):
    def __call__(cls, *args, **kwargs):
        made = super().__call__(*args, **kwargs)
        made.late = 2.0
        return made


@odd(X, others=[rows(3)])
class Metaclassed(Block, metaclass=Meta):
    def forward(self, x):
        return self.mlp(x) * self.late


@odd(X, others=[rows(3)])
class NamedOddly(nn.Module):
    """Names that mean something in Python or in generated code."""

    def __init__(self):
        super().__init__()
        self.register_parameter("import", nn.Parameter(torch.ones(8)))
        self.add_module("class", nn.Linear(8, 8))
        self.add_module("0", nn.Linear(8, 8))
        self.add_module("with space", nn.Linear(8, 8))
        self.register_buffer("torch", torch.ones(8))
        self.self = nn.Parameter(torch.ones(8))
        self._private = nn.Linear(8, 8)

    def forward(self, x, hold=1, getattr_=2):
        y = getattr(self, "class")(x) * getattr(self, "import") + getattr(self, "with space")(x) * getattr(self, "0")(x)
        return self._private(y) + self.torch * hold + self.self * getattr_


@odd(call(X, X), others=[call(rows(3), rows(3)), call(X, lambda_=X, y=X)])
class ArgumentsNamedOddly(Block):
    def forward(self, torch, y=None, *, lambda_=None, self_=None, fx=None):
        return self.mlp(torch) + (0 if y is None else y) + (0 if lambda_ is None else lambda_)


@odd(call(X), others=[call(rows(3))])
class Generators(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def states(self, x):
        for layer in self.layers:
            x = layer(x)
            yield x

    def forward(self, x):
        first, *rest = self.states(x)
        return torch.stack(tuple(s * i for i, s in enumerate(self.states(first)))), next(iter(rest))


@odd(call(X, 3), others=[call(X, 1), call(rows(3), 3), call(X, 0)])
class Recursive(Block):
    def forward(self, x, depth=3):
        return self.mlp(x) if depth == 0 else self.forward(x + depth, depth - 1) * 2


class Tree(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.value = nn.Linear(8, 8)
        self.left, self.right = (Tree(depth - 1), Tree(depth - 1)) if depth else (None, None)

    def forward(self, x):
        y = self.value(x)
        return y if self.left is None else y + self.left(x) * self.right(x)


@odd(X, others=[rows(3)])
def tree():
    return Tree(2)
