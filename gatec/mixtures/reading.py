"""Reading a graph backwards: calls by their names, and the many spellings of one operation on shapes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

FLAT = ("view", "reshape", "flatten")
SAME = ("to", "float", "half", "bfloat16", "double", "type_as", "contiguous")
WHOLE = ("to", "float", "int", "long", "type", "type_as", "contiguous")


class Unlike(ValueError):
    """The graph goes on in another way than what is looked for."""


def name_of(node: Any) -> str:
    """The name of what a node calls, without the sign of an operation in place; nothing for anything else."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.removeprefix("_").removesuffix(".default")


def called(node: Any, *names: str) -> Any:
    """The node, if it is a call of one of these names."""
    if name_of(node) not in names:
        raise Unlike(f"{node} instead of {' or '.join(names)}")
    return node


def given(node: fx.Node, index: int, *names: str, default: Any = None) -> Any:
    """An argument by its position or any of its names."""
    if index < len(node.args):
        return node.args[index]
    return next((node.kwargs[n] for n in names if n in node.kwargs), default)


def wants(truth: object, what: str = "another form") -> None:
    if not truth:
        raise Unlike(what)


def shape(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    wants(isinstance(value, Tensor), "no tensor")
    return tuple(value.shape)  # type: ignore[union-attr]


def number(value: Any) -> Any:
    """A number in a graph: itself, or what a node had in the captured call."""
    return value.meta.get("val") if isinstance(value, fx.Node) else value


def through(node: Any) -> Any:
    """What stands in front of casts to the type that a value has already."""
    while name_of(node) in SAME and node.all_input_nodes[0].meta["val"].dtype == node.meta["val"].dtype:
        node = node.args[0]
    return node


def counted(node: Any) -> Any:
    """What stands in front of casts of whole numbers."""
    while name_of(node) in WHOLE:
        node = node.args[0]
    return node


def flat_of(node: Any) -> Any:
    """What is laid out as one row of numbers here."""
    found = called(through(node), *FLAT)
    wants(len(shape(node)) == 1 and len(found.args[0].meta["val"].shape) > 1)
    return found.args[0]


def looked_up(node: Any) -> tuple[Any, Any]:
    """(a value, the numbers of the rows of it that are here)."""
    if name_of(node) == "index_select":
        wants(number(given(node, 1, "dim")) == 0)
        return node.args[0], given(node, 2, "index")
    value, index = called(node, "getitem").args
    return value, index


def column(node: Any) -> Any:
    """One number for each row, of which this is the column."""
    rows = shape(node)
    wants(len(rows) == 2 and rows[1] == 1)
    if name_of(node) == "unsqueeze":
        return node.args[0]
    if name_of(node) == "getitem":
        wants(node.args[1] in ((slice(None), None), (Ellipsis, None)))
    else:
        called(node, "view", "reshape")
    wants(len(shape(node.args[0])) == 1)
    return node.args[0]


def turned(node: Any) -> tuple[Any, bool]:
    """(a matrix for each group, whether it is transposed here)."""
    if name_of(node) in ("transpose", "swapaxes"):
        wants({number(d) % 3 for d in node.args[1:]} == {1, 2})
        return node.args[0], True
    if name_of(node) == "permute":
        order = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        wants(tuple(order) == (0, 2, 1))
        return node.args[0], True
    if name_of(node) == "getattr" and node.args[1] == "mT":
        return node.args[0], True
    return node, False


def sliced(node: Any) -> tuple[Any, tuple[int, int, int]]:
    """(a value, which of its last dimension are here): halves of a chunk or a split, a slice."""
    call = called(node, "getitem", "narrow")
    source, index = call.args[0], call.args[1]
    if name_of(call) == "narrow":
        wants(number(index) in (-1, len(shape(source)) - 1))
        start, length = (int(number(a)) for a in call.args[2:4])
        return source, (start, start + length, 1)
    if name_of(source) in ("chunk", "split"):
        whole, width = source.args[0], shape(call)[-1]
        wants(number(given(source, 2, "dim", default=0)) in (-1, len(shape(whole)) - 1))
        start = sum(v.shape[-1] for v in source.meta["val"][: int(number(index))])
        return whole, (start, start + width, 1)
    wants(isinstance(index, tuple) and len(index) > 1 and isinstance(index[-1], slice))
    wants(all(i in (Ellipsis, slice(None)) for i in index[:-1]))
    wants(len(index) == len(shape(source)) or Ellipsis in index)
    start, stop, step = slice(*map(number, (index[-1].start, index[-1].stop, index[-1].step))).indices(
        shape(source)[-1]
    )
    wants(step > 0)
    return source, (start, stop, step)
