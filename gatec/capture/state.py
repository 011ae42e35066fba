"""What stands on the modules under a trace: what a forward reads of it becomes a guard, what it leaves there a node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gatec.capture.guards import SELF, Global, assign, element, erase, store, writes
from gatec.capture.outside import spaces
from gatec.capture.spies import OWN, looked_into, refill, shape, simple, writable
from gatec.capture.structure import CONTAINERS, MISSING, frozen
from gatec.capture.values import Value
from gatec.errors import Refused

Place = tuple[str, str]  # a child's path and the name of an attribute of it


class Counts(Exception):
    """The forward computes a number that it keeps on its module from that number: it has to be a value of the graph."""

    def __init__(self, place: Place) -> None:
        self.place = place


class State:
    """The attributes of one module, of its children, and of objects such as configs on them, during one trace."""

    def __init__(self, tracer: Any, root: nn.Module, forward: Any, counters: frozenset[Place]) -> None:
        self.tracer, self.root, self.forward, self.counters = tracer, root, forward, counters
        self.paths = {m: p for p, m in root.named_modules()}
        self.reads: set[Place] = set()
        self.fresh: set[Place] = set()  # assigned by this forward
        self.things: dict[int, tuple[Any, Place]] = {}  # objects that are looked into, such as configs
        self.known: dict[tuple[type, ...], dict[int, tuple[Any, ...]]] = {}

    # -- reading --------------------------------------------------------------------------------------------------

    def read(self, owner: Any, name: str, value: Any) -> Any:
        """What the user's code gets when it reads an attribute of a module, or of an object on one."""
        place = self._place(owner, name)
        if place is None or place in self.fresh or isinstance(value, (Value, nn.Module)):
            return value
        if isinstance(getattr(type(owner), name, None), property) or getattr(value, "__self__", None) is owner:
            return value
        if isinstance(owner, nn.Module) and name not in vars(owner) and not simple(value):
            return value  # a method, or what else stands on the class
        if isinstance(value, Tensor):
            on_module = isinstance(owner, nn.Module)
            return self.tracer.create_proxy("get_attr", full(place), (), {}) if on_module else value
        if place in self.counters:
            return self.tracer.call(element, SELF, full(place))
        if not simple(value) and looked_into(value):
            self.things[id(value)] = value, place
            if self.tracer.watch.classes([type(value)]):
                return value
            place = (place[0], f"{place[1]}.__dict__")
        self.reads.add(place)
        return value

    def lacks(self, owner: Any, name: str) -> None:
        """An attribute is no plain one: a container of modules is guarded by its members, absence by itself."""
        place = self._place(owner, name)
        if place is not None and place not in self.fresh:
            found = owner._modules.get(name) if isinstance(owner, nn.Module) else None
            held = isinstance(owner, nn.Module) and (name in owner._parameters or name in owner._buffers)
            if isinstance(found, CONTAINERS) or not (found is not None or held):
                self.reads.add(place)

    def _place(self, owner: Any, name: str) -> Place | None:
        if isinstance(owner, nn.Module):
            path = self.paths.get(owner)
            return (path, name) if path is not None and (path or name != "training") else None
        thing = self.things.get(id(owner))
        return None if thing is None else (thing[1][0], f"{thing[1][1]}.{name}")

    # -- leaving behind ---------------------------------------------------------------------------------------------

    def assigned(self, owner: nn.Module, name: str, value: Any) -> bool:
        """Note what a forward leaves on its module; False where nothing is to be noted."""
        path = self.paths.get(owner)
        if path is None or isinstance(getattr(type(owner), name, None), property):
            return False
        place = (path, name)
        if name in owner._parameters or isinstance(value, (nn.Parameter, nn.Module)):
            kind = "module" if isinstance(value, nn.Module) else "parameter"
            raise Refused(f"its forward assigns a {kind} to self.{full(place)}")
        if name in owner._buffers:
            if not same_memory(value, full(place), owner._buffers[name]):
                self._assign(place, value)
            owner._buffers[name] = value
            return True
        if simple(value) and self._plain(owner, place, value):
            return False
        self.fresh.add(place)
        self._assign(place, value)
        vars(owner)[name] = value
        return True

    def _plain(self, owner: nn.Module, place: Place, value: Any) -> bool:
        """Whether a plain value is what stands there already."""
        old = vars(owner).get(place[1], MISSING)
        if frozen(old) == frozen(value):
            self.reads |= {place} - self.fresh
            return True
        if place in self.reads and all(type(v) in (int, float) for v in (old, value)):
            raise Counts(place)
        return False

    def _assign(self, place: Place, value: Any) -> None:
        try:
            held = self.tracer.made(value) if looked_into(value) else self.tracer.create_arg(value)
        except (NotImplementedError, Refused):
            raise Refused(
                f"its forward assigns an object of type {type(value).__name__} to self.{full(place)}"
            ) from None
        self.tracer.effect(assign, SELF, full(place), held)

    def erased(self, owner: nn.Module, name: str) -> bool:
        """Note what a forward deletes from its module."""
        path = self.paths.get(owner)
        if path is not None:
            self.tracer.effect(erase, SELF, full((path, name)))
            self.fresh.discard((path, name))
        return False

    def stored(self, contents: list[Any]) -> None:
        """Note what the forward put into dicts of its modules under words, such as a table for a device."""
        for name, (value, before, _) in ((n, h) for held in contents for n, h in held.items()):
            new = {k: v for k, v in value.items() if k not in before} if type(value) is dict else {}
            if new and all(isinstance(k, str) and isinstance(v, Value) for k, v in new.items()):
                for key, item in new.items():
                    self.tracer.effect(store, SELF, name, key, item.node)
                    del value[key]

    # -- finding things again ---------------------------------------------------------------------------------------

    def find(self, thing: Any, *kinds: type) -> tuple[Any, ...]:
        """The name of something on the modules, and the keys that lead to it in a list or dict; () where it is not there."""
        if kinds not in self.known:
            places = self.known[kinds] = {}
            for key, place in _standing(self.root, kinds):
                places.setdefault(key, place)
        return self.known[kinds].get(id(thing), ())

    def node(self, thing: Any, example: Any, *kinds: type) -> Any:
        """The node that fetches something from the modules, or from the globals of the forward, when the graph runs."""
        found = self.find(thing, *kinds)
        if found and not found[1:] and isinstance(thing, Tensor):
            return self.tracer.known_node("get_attr", found[0], (), example)
        if found:
            return self.tracer.known_node("call_function", element, (SELF, *found), example)
        for name, space in spaces(self.forward, type(self.root)):
            if space.get(name) is thing:
                self.reads.add((":", name))
                return self.tracer.known_node("call_function", Global(space, name), (), example)
        return None


def forms(root: nn.Module) -> Iterator[Place]:
    """Guards of the dtypes and devices that the parameters have, by the first parameter of each."""
    first: dict[Any, str] = {}
    for name, parameter in root.named_parameters():
        first.setdefault((parameter.dtype, parameter.device), name)
    for name in first.values():
        path, _, own = name.rpartition(".")
        yield from ((path, f"{own}.dtype"), (path, f"{own}.device"))


def full(place: Place) -> str:
    return f"{place[0]}.{place[1]}" if place[0] else place[1]


def _standing(root: nn.Module, kinds: tuple[type, ...]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for path, module in root.named_modules():
        own = ((n, v) for n, v in vars(module).items() if n not in OWN)
        for name, value in (*own, *module._buffers.items(), *module._parameters.items()):
            for keys, thing in _within(value, kinds):
                yield id(thing), (full((path, name)), *keys)


def _within(value: Any, kinds: tuple[type, ...], keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, kinds):
        yield keys, value
    elif isinstance(value, (list, tuple, dict)) and len(keys) < 3:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _within(item, kinds, (*keys, key))


# What a module may hold and hand to torch's functions as it is.
TABLES = (np.ndarray, torch.Generator, torch.ScriptObject)


# -- as it was ------------------------------------------------------------------------------------------------------


@contextmanager
def put_back(root: nn.Module) -> Iterator[list[Any]]:
    """The modules as they were; refuses a forward that changed what the tracer cannot see being changed.

    Gives the contents of their lists and dicts, which calls of children may not change for good either.
    """
    modules = [(p, m) for p, m in root.named_modules() if not isinstance(m, torch.jit.ScriptModule)]
    before = [(p, m, dict(vars(m)), dict(m._buffers), contents(vars(m), p)) for p, m in modules]
    changed = ""
    try:
        yield [held for *_, held in before if held]
        for path, module, plain, _, held in before:
            names = [n for n, (value, _, form) in held.items() if shape(value) != form]
            changed = changed or next((n for n in names if _still(module, plain, path, n)), "")
    finally:
        for _, module, plain, buffers, held in before:
            restore(held)
            now = vars(module)
            if len(now) != len(plain) or any(now.get(n) is not v for n, v in plain.items()):
                now.clear()
                now.update(plain)
            module._buffers.clear()
            module._buffers.update(buffers)
    if changed:
        raise Refused(f"its forward changes what stands in self.{changed}")


def _still(module: nn.Module, plain: dict[str, Any], path: str, name: str) -> bool:
    """Whether what stood under the name does still; another thing in its place is an assignment, which was noted."""
    own = name.removeprefix(f"{path}.").partition(".")[0]
    return vars(module).get(own) is plain.get(own)


def contents(space: dict[str, Any], path: str) -> dict[str, tuple[Any, Any, Any]]:
    """Every list, dict and set among these attributes, and those of objects on them: itself, a copy, what it is compared by."""
    found = {}
    for name, value in space.items():
        if name in OWN:
            continue
        inside = {name: value} if writable(value) else {}
        if not inside and looked_into(value):
            inside = {f"{name}.{n}": v for n, v in vars(value).items() if writable(v)}
        found.update({full((path, n)): (v, v.copy(), shape(v)) for n, v in inside.items()})
    return found


def restore(held: dict[str, tuple[Any, Any, Any]]) -> None:
    """Put back what of `contents` was changed since."""
    for value, copy, form in held.values():
        if shape(value) != form:
            refill(value, copy)


def same_memory(now: Any, path: str, before: Any) -> bool:
    """Whether a buffer is still itself: untouched, or what an in-place operation on it gave back."""
    if not isinstance(now, Value):
        return now is before
    node = now.node
    while node.op != "get_attr" and (writes(node) or node.target == "detach") and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op == "get_attr" and node.target == path
