"""fuse(): generated kernels for the gated regions of a model, where they are verified and measured faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from gatec.capture import unit_of
from gatec.dispatch import CHOOSER
from gatec.errors import Refused
from gatec.kernel import Kernel
from gatec.lower import Fusion
from gatec.match.terms import join
from gatec.pipeline import all_or_nothing, prepare
from gatec.program import Edit, Program
from gatec.recognise import finds
from gatec.report import Report, attach
from gatec.rewrite import back, installed
from gatec.rewrite import copied as graph_copy
from gatec.roofline import Price
from gatec.routers import routings
from gatec.trail import note
from gatec.verify import copied, distance, forward

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, inputs: Any = None, *, everywhere: bool = False) -> Model:
    """A copy of `model` whose gated pointwise regions are ops with generated kernels, forward and backward.

    On CUDA an op runs its kernel on a shape only after it was verified and measured faster there, eager elsewhere. On a
    CPU the modules are left alone, so that nothing gets slower; `everywhere=True` puts the ops there too (they run
    their eager body). `gatec.kernels_of(result)` gives the sources either way.
    """
    return fuse_(copied(model), inputs, everywhere=everywhere)


def fuse_(model: Model, inputs: Any = None, *, everywhere: bool = False) -> Model:
    """`fuse` in place; rolled back whole if anything fails."""
    program = prepare(model, inputs)
    kernels: dict[str, Kernel] = {}
    prices: dict[str, Price] = {}
    with CHOOSER.resting(), all_or_nothing() as undo:
        twins: dict[Any, Any] = {}
        sites = [f.site for f in finds(program.canon())]
        for path in dict.fromkeys([*sites, *_routing(program)]):
            program.edits.extend(_unit(program, path, everywhere, kernels, prices, undo, twins))
        note("fuse", model, program.edits)
        moved = distance(forward(model, program), program.calls[""][0].output)
        missed = tuple(program.missed.items())
        attach(model, Report(tuple(program.edits), moved, missed, tuple(prices.items())), undo)
        vars(model)["_gatec_kernels"] = {**vars(model).get("_gatec_kernels", {}), **kernels}
    return model


def _routing(program: Program) -> list[str]:
    """The modules that choose among experts, which others than themselves may weigh."""
    return [p for p, graph in program.graphs.items() if graph is not None and any(routings(graph, program.module(p)))]


def _unit(
    program: Program, path: str, everywhere: bool, kernels: dict[str, Kernel], prices: dict[str, Price],
    undo: list[Any], twins: Any,
) -> list[Edit]:  # fmt: skip
    """Fuse one module if its device has kernels; its sources are generated either way."""
    module, fusion = program.module(path), Fusion(everywhere)
    steps: list[Callable[[], Any]] = []
    unit = unit_of(module)
    if unit is not None and any(r.name == "fuse" for r in unit.rewrites):
        return [Edit("fuse", path, "left", "it is fused already")]
    try:
        put = _put(program, path, fusion, steps, twins)
    except Refused as e:
        back(steps)
        put = Edit("fuse", path, "left", str(e))
    undo.extend(steps)
    kernels.update({f"{path or 'model'}.{n}": k for n, k in fusion.kernels.items()})
    prices.update({f"{path or 'model'}.{n}": p for n, p in fusion.prices.items()})
    others = [Edit("fuse", path, "left", why) for why in fusion.left.values() if why != put.why]
    return [put, *others]


def _put(program: Program, path: str, fusion: Fusion, steps: list[Callable[[], Any]], twins: Any) -> Edit:
    module, call, captured = program.module(path), program.calls[path][0], program.graph_of(path)
    if captured is None:
        raise Refused("it was not captured")
    if not fusion.here(call):
        fusion(
            module, graph_copy(captured), call, root=program.model, graph_of=lambda p: program.graph_of(join(path, p))
        )
    drift, probe = installed(program, path, module, fusion, steps, twins)
    if probe is not None and drift is not None and not drift <= probe.rounding:
        raise Refused(f"fused, its output would move by {drift:.1e}")
    return Edit("fuse", path, "put", "" if probe else "not measured alone", drift, probe.note if probe else "")


def kernels_of(model: nn.Module) -> dict[str, Kernel]:
    """The generated kernels of a fused model by "module.region": readable sources that run by themselves."""
    return dict(vars(model).get("_gatec_kernels", {}))
