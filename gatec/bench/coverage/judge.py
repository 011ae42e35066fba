"""One model under capture: which modules have a graph, whether it computes their bits, and for which other calls."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from gatec.bench.coverage.calls import Calls, recorded
from gatec.bench.coverage.category import category
from gatec.bench.coverage.copies import copied
from gatec.bench.coverage.same import same
from gatec.bench.coverage.variants import Inputs
from gatec.capture import Call, Nothing, Unit, install, untouched
from gatec.capture.structure import flatten
from gatec.capture.unit import compiled
from gatec.errors import Refused
from gatec.program import Program
from gatec.recognise import finds

HELD = ("same graph", "new graph")
OTHERS = ("batch", "length", "train", "dtype", "cache", "step")
GENERIC = OTHERS[:2]
DTYPES = (torch.bfloat16, torch.float64)  # the first that the module takes


def judge(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The row of one model: how much of it was captured, in what time, and every class of module in it."""
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # graphs follow nn.MultiheadAttention's Python, not its fused inference
    before = copied(model)  # judged apart: what capture leaves behind on the model is a result too
    begun = time.process_time()
    program = Program.of(model, *inputs)
    paths = [p for p in program.calls if not is_leaf(program.module(p))]
    graphs = {path: program.graph_of(path) for path in paths}
    seconds = time.process_time() - begun
    calls = recorded(before, inputs, {path for _, path in representatives(model, paths)})
    classes = [_class(program, before, kind, path, graphs, calls) for kind, path in representatives(model, paths)]
    refused = sum(graph is None for graph in graphs.values())
    return {
        "status": "whole" if not refused else "by module" if refused < len(paths) else "refused",
        "parameters": sum(p.numel() for p in model.parameters()),
        "modules": len(paths),
        "refused": refused,
        "seconds": round(seconds, 3),
        "after": _compared(copied(before), model, Call(*inputs)) or "",
        "gates": gates(program),
        "classes": classes,
    }


def is_leaf(module: nn.Module) -> bool:
    """PyTorch's own layers have no graph: a graph speaks of them by name."""
    return type(module).__module__.startswith("torch.nn.modules") and not any(module.children())


def representatives(model: nn.Module, paths: list[str]) -> list[tuple[type[nn.Module], str]]:
    """Each class of module that was called, with the first module of it."""
    first: dict[type[nn.Module], str] = {}
    for path in paths:
        first.setdefault(type(model.get_submodule(path)), path)
    return list(first.items())


def gates(program: Program) -> dict[str, int]:
    """How many gates of each kind are found; what fails in looking is the recogniser's, and stands as its name."""
    try:
        return dict(sorted(Counter(find.kind for find in finds(program.canon())).items()))
    except Exception as error:
        return {f"{type(error).__name__}: {str(error)[:120]}": 0}


# -- one class ------------------------------------------------------------------------------------------------------


def _class(program: Program, before: nn.Module, kind: type[nn.Module], path: str,
           graphs: dict[str, fx.Graph | None], calls: Calls) -> dict[str, Any]:  # fmt: skip
    module = before.get_submodule(path)
    alike = [p for p in graphs if type(program.module(p)) is kind]
    missed = [p for p in alike if graphs[p] is None]
    row: dict[str, Any] = {"class": kind.__name__, "path": path, "category": category(module, path),
                           "modules": len(alike), "captured": not missed}  # fmt: skip
    if missed:
        row["reason"] = program.missed.get(missed[0], "")
        return row
    graph = graphs[path]
    assert graph is not None
    row["exact"] = _exact(module, graph, calls["base"][path])
    row["calls"] = other_calls(module, path, calls)
    return row


def _exact(module: nn.Module, graph: fx.Graph, call: Call) -> str:
    """How the graph, run as it stands on the recorded call, differs from the module's own forward; empty if in nothing."""
    wrong = _compared(copied(module), copied(module), call, compiled(graph).run)
    return "the module does not repeat its own result" if wrong is None else wrong


def other_calls(module: nn.Module, path: str, calls: Calls) -> dict[str, str]:
    """For each other call: "same graph", "new graph", "fell back: ...", "wrong: ..." or "raised: ..."; absent if not possible."""
    own, unit_module = copied(module), copied(module)
    try:
        install(unit_module).rewrites.append(Nothing())
    except Refused as e:
        return {"base": f"fell back: {e}"}
    base = calls["base"][path]
    found = {"base": _guarded(own, unit_module, base)}
    for name in OTHERS:
        if name == "dtype":
            ways = ((_to(own, t), _to(unit_module, t), _cast(base, t)) for t in DTYPES)
            found[name] = next(filter(None, (_guarded(*way) for way in ways)), "")
        elif name == "train":
            found[name] = _guarded(_training(own), _training(unit_module), base)
        elif path in calls.get(name, ()):
            found[name] = _guarded(own, unit_module, calls[name][path])
    return {name: word for name, word in found.items() if word}


def _training(module: nn.Module) -> nn.Module:
    """A copy in train mode; LeViT's own train() gives nothing back."""
    module = copied(module)
    module.train()
    return module


def _guarded(own: nn.Module, unit_module: nn.Module, call: Call) -> str:
    unit = install(unit_module)
    graphs, backs = _count(unit), unit.fallbacks
    wrong = _compared(own, unit_module, call)
    if wrong is None:
        return ""
    if wrong:
        return wrong
    if unit.fallbacks > backs:
        return f"fell back: {_why(own, call)}"
    return "new graph" if _count(unit) > graphs else "same graph"


def _why(module: nn.Module, call: Call) -> str:
    """Why a call has no graph, asked again of the module by itself: a unit only counts how often it ran its own forward."""
    program = Program.of(module, *copied((call.args, call.kwargs)))
    program.graph_of("")
    return program.missed.get("", "it has a graph by itself")


def _count(unit: Unit) -> int:
    return sum(map(len, unit.graphs.values()))


def _compared(own: nn.Module, other: nn.Module, call: Call, run: Any = None) -> str | None:
    """How what the two leave behind differs; empty if in nothing, None if the module itself cannot say what is right."""
    try:
        wanted = _run(own, call)
    except Exception:  # the module does not take this call, in whatever words
        return None
    try:
        got = _run(other, call, run)
    except Exception as error:
        return f"raised: {type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
    if same(wanted, got):
        return ""
    return f"wrong: {_difference(wanted, got)}" if same(wanted, _run(own, call)) else None


def _run(module: nn.Module, call: Call, run: Any = None) -> dict[str, Any]:
    """What one call leaves behind; the module is as before."""
    args, kwargs = copied((call.args, call.kwargs))
    with untouched(module), torch.no_grad():
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)
        output = run(module, *flatten(args, kwargs).leaves) if run else module(*args, **kwargs)
        return {"result": output, "arguments": (args, kwargs), "state": _state(module)}


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that a forward may write: buffers, and what hangs on modules as plain attributes."""
    return {f"{path}.{name}": value.clone() for path, child in module.named_modules()
            for name, value in (*child._buffers.items(), *vars(child).items()) if isinstance(value, Tensor)}  # fmt: skip


def _difference(wanted: dict[str, Any], got: dict[str, Any]) -> str:
    where = next(name for name in wanted if not same(wanted[name], got[name]))
    a, b = ([t for t in tree_leaves(v[where]) if isinstance(t, Tensor)] for v in (wanted, got))
    if type(wanted[where]) is not type(got[where]) or len(a) != len(b):
        return f"{where}: {type(wanted[where]).__name__} of {len(a)} tensors became {type(got[where]).__name__} of {len(b)}"
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"{where}: {tuple(x.shape)} {x.dtype} became {tuple(y.shape)} {y.dtype}"
    if any(isinstance(t, FakeTensor) for t in (*a, *b)):
        return f"{where}: a tensor without data, left by the tracer"
    apart = [float((x.double() - y.double()).abs().max()) for x, y in zip(a, b, strict=True) if x.numel()]
    return f"{where}: off by {max(apart, default=0.0):.1e}"


def _cast(call: Call, dtype: torch.dtype) -> Call:
    def cast(v: Any) -> Any:
        return v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v

    return Call(*tree_map(cast, (call.args, call.kwargs)))


def _to(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copied(module).to(dtype)
