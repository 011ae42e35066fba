"""Decisions that a graph was captured under, moved to its front; and which nodes change more than their own result."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx
from torch.amp import autocast_mode

from gatec.capture.structure import PLAIN
from gatec.errors import Refused


class Miss(Exception):
    """A decision that a graph was captured under does not hold for this call."""


class Changed(Miss):
    """A layer that was only fused is no longer what it was: its module runs as it did before."""


def hold(found: Any, wanted: Any, where: str) -> None:
    """Stop a graph whose Python decision at `where` (file:line) does not hold for the values at hand."""
    if found is not wanted and found != wanted:
        raise Miss(where)


class _Self:
    """The module itself as an argument of a node; its name in the generated code is `self`."""

    def __repr__(self) -> str:
        return "self"

    def __reduce__(self) -> str:
        return "SELF"


SELF = _Self()


def assign(module: Any, name: str, value: Any) -> None:
    """`module.name = value`, where the name may have dots: what a forward leaves behind on its module."""
    owner, _, last = name.rpartition(".")
    setattr(operator.attrgetter(owner)(module) if owner else module, last, value)


def store(module: Any, name: str, key: Any, value: Any) -> None:
    """`module.name[key] = value`: what a forward keeps in a dict of its module."""
    operator.attrgetter(name)(module)[key] = value


def erase(module: Any, name: str) -> None:
    """`del module.name`, where the name may have dots."""
    owner, _, last = name.rpartition(".")
    delattr(operator.attrgetter(owner)(module) if owner else module, last)


def bare(module: Any, *args: Any, **kwargs: Any) -> Any:
    """`module.forward(...)`: a call that runs no hooks."""
    return module.forward(*args, **kwargs)


def called(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The call of a module that has no path below the one that calls it."""
    return module(*args, **kwargs)


class Constant:
    """A class or a function as a value of the graph."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.__name__, self.__module__ = getattr(value, "__name__", "constant"), __name__

    def __call__(self) -> Any:
        return self.value


class Global:
    """A global of the forward, fetched when the graph runs."""

    def __init__(self, space: dict[str, Any], name: str) -> None:
        self.space, self.name = space, name
        self.__name__, self.__module__ = "global_value", __name__

    def __call__(self) -> Any:
        return self.space[self.name]


class Made:
    """An object of the user's own class, built again from its attributes (or items) without calling its __init__."""

    def __init__(self, kind: type, factory: Any = None) -> None:
        self.kind, self.factory = kind, factory
        self.__name__, self.__module__ = kind.__name__, __name__

    def __call__(self, state: dict[Any, Any]) -> Any:
        if issubclass(self.kind, defaultdict):
            return self.kind(self.factory, state)
        thing = self.kind.__new__(self.kind)
        thing.__dict__.update(state)
        return thing


def element(module: Any, name: str, *keys: Any) -> Any:
    """`module.name[key]...`: a tensor or a number that a forward finds on its module."""
    value = operator.attrgetter(name)(module)
    for key in keys:
        value = value[key]
    return value


def ask(owner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """`owner.name(...)` of an object that the call leaves as it was, such as the length of a cache."""
    return getattr(owner, name)(*args, **kwargs)


SIZES: set[Any] = {getattr, operator.getitem, hold, ask, element, operator.truth, len, *(getattr(operator, n) for n in (
    "add", "sub", "mul", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "neg", "truediv", "not_",
    "pow"))}  # fmt: skip
EFFECTS: set[Any] = {assign, store, erase, setattr, autocast_mode._enter_autocast, autocast_mode._exit_autocast}


def hoist(graph: fx.Graph) -> None:
    """Move every decision to where a miss costs nothing: to the front, or at least before the first effect."""
    _to_front(graph)
    effect: fx.Node | None = None
    written: set[int] = set()
    outside = _storages(n for n in graph.nodes if n.op in ("placeholder", "get_attr"))
    for node in list(graph.nodes):
        if node.target is hold and effect is not None:
            _before(effect, node, written)
        elif writes(node):
            memory = _storages(node.all_input_nodes[:1])
            if node.op == "call_module" or node.target in EFFECTS or not memory or outside & memory:
                effect = effect or node
                written |= memory


def _to_front(graph: fx.Graph) -> None:
    """Decisions that only read sizes of arguments."""
    nodes = list(graph.nodes)
    early: set[fx.Node] = set()
    for node in nodes:
        sizes = node.op == "call_function" and node.target in SIZES
        sizes = sizes or (node.op == "call_method" and node.target in ("size", "numel", "dim", "__len__"))
        known = all(a.op == "placeholder" or a in early for a in node.all_input_nodes)
        if sizes and known and not isinstance(node.meta.get("val"), Tensor):
            early.add(node)
    asked = _after_effects(nodes)
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        if node in early and node not in asked and (node.target is hold or any(u in needed for u in node.users)):
            needed.add(node)
    last = [n for n in nodes if n.op == "placeholder"]
    anchor = last[-1] if last else None
    for node in nodes:
        if node in needed and anchor is not None and all(a not in asked for a in node.all_input_nodes):
            anchor.append(node)
            anchor = node


def _after_effects(nodes: list[fx.Node]) -> set[fx.Node]:
    """Questions to objects, or to the module, that something in front of them may have changed, and what is made of the answers."""
    found: set[fx.Node] = set()
    touched = False
    for node in nodes:
        touched = touched or (writes(node) and not isinstance(node.meta.get("val"), Tensor)) or node.target in EFFECTS
        if touched and node.target in (ask, element, getattr, len, operator.truth, operator.getitem):
            source = node.all_input_nodes[0] if node.all_input_nodes else None
            if source is None or not isinstance(source.meta.get("val"), (Tensor, *PLAIN)):
                found.add(node)
        if any(a in found for a in node.all_input_nodes):
            found.add(node)
    return found


def _before(effect: fx.Node, decision: fx.Node, written: set[int]) -> None:
    """Move a decision and what it is computed from in front of the first effect, if nothing of it comes from that."""
    order = {n: i for i, n in enumerate(decision.graph.nodes)}
    chain: set[fx.Node] = {decision}
    waiting = [decision]
    while waiting:
        node = waiting.pop()
        for source in node.all_input_nodes:
            if order[source] >= order[effect] and source not in chain:
                chain.add(source)
                waiting.append(source)
    late = effect in chain or any(_late(n, written) for n in chain)
    if late:
        raise Refused(f"it decides something after it has written to its surroundings ({decision.args[2]})")
    for node in sorted(chain, key=order.__getitem__):
        effect.prepend(node)


def _late(node: fx.Node, written: set[int]) -> bool:
    if node.target is hold:
        return False
    asks = node.target in (ask, element) or (node.target is getattr and not isinstance(_value(node.args[0]), Tensor))
    return writes(node) or asks or node.op == "call_module" or bool(written & _storages(node.all_input_nodes))


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def _storages(nodes: Iterable[fx.Node]) -> set[int]:
    values = (n.meta.get("val") for n in nodes)
    return {v.untyped_storage()._cdata for v in values if isinstance(v, Tensor) and not v.is_sparse}


def writes(node: fx.Node) -> bool:
    """Whether the node changes anything but its own result: in place, or through an object that is handed on."""
    if node.op == "call_module":
        return any(not isinstance(a.meta.get("val"), (Tensor, tuple, list, dict, *PLAIN)) for a in node.all_input_nodes)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        owner: Any = node.args[0]
        known = (
            not isinstance(owner, fx.Node)
            or "val" not in owner.meta
            or isinstance(_value(owner), (Tensor, tuple, list, dict, *PLAIN))
        )
        return not known or (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if node.op == "call_function":
        spelled = name.endswith("_") and not name.startswith("_") and not hasattr(operator, name)
        inplace = spelled or (name in INPLACE and getattr(operator, name) is node.target)
        opens = node.target in EFFECTS or node.target is operator.setitem
        return inplace or opens or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return False


INPLACE = {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"}
