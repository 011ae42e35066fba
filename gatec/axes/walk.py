"""One forward of a model, in which every tensor carries the axes of its dimensions beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

from gatec.axes.atoms import Axis, Cut, axis, mark, pin, size
from gatec.capture import emptied, evaluating, untouched

Dims = list[Axis]
Rule = Callable[..., Any]
Watch = Callable[["Walk", str, Any, bool], None]  # what a module is given, then what it returns
Spend = Callable[["Walk", Any, Any, list[Tensor]], None]  # an operator, its arguments, and its results
RULES: dict[str, Rule] = {}
PLACES = "it is a position, of which an input has as many as it has"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """What the operators of these names do with the axes of their arguments: rule(walk, out, *args) -> axes of the results."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class Walk(TorchDispatchMode):
    """Watches a model's operators; `tensors` are the axes of its parameters and buffers by name.

    `numbers` are the axes that were met inside of each module, by their size: what the module's own sizes may stand for;
    `widths` those that are contracted batch by batch, as heads are; `contracted` the (parameter, dimension) pairs that are
    contracted with what flows in; `out` is what the model returned.
    """

    out: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.where = model, ""
        self.watch: Watch | None = None
        self.spend: Spend | None = None
        self.known: Any = WeakTensorKeyDictionary()
        self.reached: Any = WeakIdKeyDictionary()
        self.debts: Any = WeakTensorKeyDictionary()
        self.tensors: dict[str, Dims] = {}
        self.numbers: dict[str, dict[int, dict[Axis, None]]] = {}
        self.widths: dict[str, dict[Axis, None]] = {}
        self.macs: dict[str, int] = {}
        self.contracted: set[tuple[str, int]] = set()
        self.divided: set[tuple[str, int]] = set()  # dimensions of parameters whose slots are divided by their own norm
        self.learned = dict(model.named_parameters())
        self.stored = {p.untyped_storage().data_ptr(): n for n, p in self.learned.items() if not p.is_meta}
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            self.known[value] = self.tensors[name] = [axis(n) for n in value.shape]

    def of(self, value: Tensor) -> Dims:
        """The axes of a tensor's dimensions."""
        if value not in self.known:
            why = "it meets a tensor that is neither a parameter nor a buffer nor computed by the model"
            self.known[value] = [axis(n, why) for n in value.shape]
        found: Dims = self.known[value]
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = rule_of(func)
        if known is None and (plain := decomposition_table.get(func)) is not None:
            with self:
                out = plain(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.follow(func, known, out, args, kwargs)
        return out

    def follow(self, func: Any, known: Rule | None, out: Any, args: Any, kwargs: Any) -> None:
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for value in given:
            self.reached[value] = True
            self.pay(value)
        if not results or not results[0].numel():
            dims = [[axis(n) for n in t.shape] for t in results]
        else:
            dims = self.ruled(known, out, args, kwargs)
        if [shape(d) for d in dims] != [list(t.shape) for t in results]:
            dims = self.refused(
                f"{func._schema.name.removeprefix('aten::')} in {self.where or 'the model'} mixes its slots",
                given,
                results,
            )
        for value, one in zip(results, dims, strict=True):
            self.known[value] = one
            self.note(one)
        if self.spend is not None:
            self.spend(self, func, (args, kwargs), results)

    def ruled(self, known: Rule | None, out: Any, args: Any, kwargs: Any) -> list[Dims]:
        """What the operator's rule says of its results; nothing where there is none, or what it met does not fit."""
        if known is None:
            return []
        try:
            found = known(self, out, *args, **kwargs)
        except Cut:
            return []
        return [found] if isinstance(out, Tensor) else list(found)

    def owe(self, value: Tensor, dim: Axis, why: str) -> None:
        """A dimension to be pinned if the numbers of `value` are ever read, not only its shape."""
        self.debts[value] = (dim, why)

    def pay(self, value: Tensor) -> None:
        if value in self.debts:
            pin(*self.debts.pop(value))

    def lost(self, dim: Axis, length: int, why: str) -> Axis:
        """What is left of a dimension that an operator cuts in a way that its slots do not fit."""
        pin(dim, why)
        return axis(length, why)

    def refused(self, why: str, given: list[Tensor], results: list[Tensor]) -> list[Dims]:
        """Nothing that an operator without a rule reads can be removed."""
        for value in given:
            for dim in self.of(value):
                pin(dim, why)
        return [[axis(n, why) for n in t.shape] for t in results]

    def note(self, dims: Dims) -> None:
        numbers = self.numbers.setdefault(self.where, {})
        for dim in dims:
            numbers.setdefault(size(dim), {}).setdefault(dim)
            for atom in dim if len(dim) > 1 else ():
                numbers.setdefault(atom.size, {}).setdefault((atom,))

    def contract(self, value: Tensor, dim: int, macs: int) -> bool:
        """A dimension of a tensor is contracted, at a cost of so many multiplications; a parameter's is remembered."""
        name = self.stored.get(value.untyped_storage().data_ptr())
        if name is None:
            return False
        parameter = self.learned[name]
        stride, length = value.stride(dim), value.shape[dim]
        self.macs[name] = self.macs.get(name, 0) + macs
        for n in range(parameter.dim()):
            if parameter.stride(n) == stride and parameter.shape[n] == length:
                self.contracted.add((name, n))
        return True

    def width(self, dim: Axis, kind: str) -> None:
        """Here heads are as wide as this: one number of the module's may stand for all such widths."""
        mark(dim, kind, self.where)
        self.widths.setdefault(self.where, {}).setdefault(dim)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Know in which module an operator runs."""
        stack: list[str] = []

        def enter(path: str) -> Callable[..., None]:
            def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
                stack.append(self.where)
                self.where = path
                for value in tree_leaves((args, kwargs)):
                    if isinstance(value, Tensor):
                        self.note(self.of(value))
                if self.watch is not None:
                    self.watch(self, path, (args, kwargs), True)

            return entering

        def leave(module: nn.Module, _: Any, out: Any) -> None:
            if self.watch is not None:
                self.watch(self, self.where, out, False)
            self.where = stack.pop()

        hooks = []
        for path, module in self.model.named_modules():
            hooks.append(module.register_forward_pre_hook(enter(path), prepend=True, with_kwargs=True))
            hooks.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def shape(dims: Dims) -> list[int]:
    return [size(d) for d in dims]


def rule_of(func: Any) -> Rule | None:
    name = func._schema.name.removeprefix("aten::")
    if name in RULES:
        return RULES[name]
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if plain in RULES:
        return RULES[plain]
    return RULES["pointwise"] if torch.Tag.pointwise in func.tags else None


@contextmanager
def spelled_out() -> Iterator[None]:
    """Inside, attention and recurrent layers run as the operators that they consist of."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)


def walked(model: nn.Module, args: Any, kwargs: Any, watch: Watch | None = None, spend: Spend | None = None) -> Walk:
    """The axes of everything in a model, from one forward of it; `watch` is told what every module is given and returns,
    `spend` what every operator is called with and what it makes."""
    walk = Walk(model)
    walk.watch, walk.spend = watch, spend
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, Tensor):
            walk.known[value] = [axis(n, "it is as long as an input") for n in value.shape]
    with torch.no_grad(), untouched(model), evaluating(model), spelled_out():
        emptied(model, args, kwargs)
        with walk.inside(), walk:
            walk.out = model(*args, **kwargs)
    for value in tree_leaves(told(walk.out)):
        if isinstance(value, Tensor):
            walk.pay(value)
            for dim in walk.of(value):
                pin(dim, "it is in the model's output")
    return walk


def told(out: Any) -> Any:
    """Of a library's outputs the logits, where there are some: what is beside them tells of the inside. A dict is all told."""
    if isinstance(out, Mapping) and type(out) is not dict:
        logits = [value for name, value in out.items() if "logits" in str(name)]
        return logits or dict(out)
    return out
