"""Terms: interned values, so that the same computation of the same values is the same object."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx

Rows = tuple[int, int, int]


class Buffer(str):
    """The name of a tensor that a module keeps and that is no parameter: nothing is learned in it."""


@dataclass(frozen=True)
class Linear:
    """A linear layer by the paths of its parameters; `rows` (start, stop, step) says which outputs of a packed one.

    A convolution that sees one position at a time is one over channels, with `positions` dimensions after them.
    """

    path: str
    weight: str
    bias: str | None
    transposed: bool
    width: int
    rows: Rows
    fan: int = field(default=0, compare=False)  # inputs of each output; says nothing about which layer it is
    positions: int = field(default=0, compare=False)

    @property
    def out(self) -> int:
        return len(range(*self.rows))

    def __call__(self, x: Any) -> Any:
        """Patterns call their layers; a layer that was found is called through its site."""
        raise TypeError("a Linear is a description: inside `after`, call the layer that the site hands over")

    @property
    def outputs(self) -> slice:
        start, stop, step = self.rows
        return slice(start, None if stop < 0 else stop, step)

    @property
    def packed(self) -> bool:
        return self.out != self.width

    @property
    def elements(self) -> int:
        """Elements of the weight and the bias that make these outputs."""
        return self.out * (self.fan + (self.bias is not None))

    def under(self, path: str) -> Linear:
        """The same layer as seen from a module that holds the one at `path`."""
        bias = self.bias and join(path, self.bias)
        return replace(self, path=join(path, self.path), weight=join(path, self.weight), bias=bias)

    def within(self, path: str) -> Linear:
        """The same layer as seen from the module at `path`."""
        bias = self.bias and below(path, self.bias)
        return replace(self, path=below(path, self.path), weight=below(path, self.weight), bias=bias)


@dataclass(frozen=True)
class Part:
    """What fills a hole for a branch, a block or a layer of some class: the module, by its path, whose value it is.

    `size` is what else its values show where it is found, such as the heads of an attention.
    """

    path: str
    size: int | None = field(default=None, compare=False)

    @property
    def weight(self) -> str:
        return self.path

    def under(self, path: str) -> Part:
        return replace(self, path=join(path, self.path))

    def within(self, path: str) -> Part:
        return replace(self, path=below(path, self.path))


@dataclass(eq=False, slots=True)
class Term:
    """One value. Terms are interned: the same computation of the same values is the same object.

    A term never changes, so that an answer about it may be kept in `answers` by whoever asks.
    """

    op: str
    args: tuple[Term, ...] = ()
    data: Any = None
    shape: tuple[int, ...] | None = None
    number: int = 0
    answers: dict[object, bool] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.spelled(4)

    def spelled(self, depth: int) -> str:
        """The term down to `depth` arguments: what is shared is spelled once per use, of which there may be 2^depth."""
        if depth == 0 and self.args:
            return f"{self.op}(...)"
        inside = [*(a.spelled(depth - 1) for a in self.args), *([repr(self.data)] if self.data is not None else [])]
        return f"{self.op}({', '.join(inside)})" if inside else self.op


class Table:
    """Interned terms."""

    def __init__(self) -> None:
        self.terms: dict[Any, Term] = {}

    def make(self, op: str, *args: Term, data: Any = None, shape: tuple[int, ...] | None = None) -> Term:
        key = (op, tuple(map(id, args)), data)
        if key not in self.terms:
            self.terms[key] = Term(op, args, data, shape, len(self.terms))
        return self.terms[key]

    def fresh(self, name: str, shape: tuple[int, ...] | None = None) -> Term:
        return self.make("value", data=(name, len(self.terms)), shape=shape)

    def const(self, value: Any) -> Term:
        value = clean(value) if isinstance(value, float) else value
        return self.make("const", data=value if isinstance(value, (int, float, str, bool)) else repr(value))


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def below(path: str, full: str) -> str:
    """`full` as seen from the module at `path`."""
    return full[len(path) + 1 :] if path else full


def clean(number: float) -> float:
    """A coefficient with the digits that float32 has, so that constants computed in two ways are one constant."""
    return float(f"{number:.7g}") + 0.0


def shape_of(node: Any) -> tuple[Any, ...] | None:
    """The sizes of a node's example; a symbolic size is its name."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        return None
    return tuple(s if isinstance(s, int) else str(s) for s in value.shape)


def storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None
