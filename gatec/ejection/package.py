"""From a model to the files of a package: capture, regions, kernels, and the forwards that call them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatec.capture import Call, unit_of
from gatec.capture.around import spread
from gatec.capture.unit import uninstall
from gatec.ejection.additions import additions
from gatec.ejection.measured import Measurable, choices, measure
from gatec.ejection.runtime import ANSWERS, surroundings, taken, told
from gatec.ejection.source import Fused, Text, ours, text_of
from gatec.ejection.write import write
from gatec.errors import GatecError, Refused
from gatec.kernel import Kernel
from gatec.lower import Fusion, Lowered, placed
from gatec.making import Made
from gatec.match.terms import join
from gatec.pipeline import prepare
from gatec.program import Program
from gatec.recognise import finds
from gatec.regions import Region, regions
from gatec.rewrite import copied
from gatec.tidy import examples
from gatec.verify import copied as model_copy

ALONE = ("pointwise", "row")  # anchors whose kernels need nothing but their operands


@dataclass
class Function(Measurable):
    """One region as a function of the package."""

    eager: Text


@dataclass
class Way:
    """One generated forward, and what it holds for."""

    name: str
    text: Text
    form: Any
    state: Any
    reads: tuple[tuple[str, str], ...]
    asked: tuple[str, ...]
    device: str | None


@dataclass
class Place:
    """One module: its class, the names of its forwards inside and around it, and whether it needs them."""

    kind: str
    inside: list[str] = field(default_factory=list)
    around: list[str] = field(default_factory=list)
    changed: bool = False


@dataclass
class Package:
    """What is written: functions by name, forwards, which module gets which, what was added, and what was measured."""

    model: str
    functions: dict[str, Function] = field(default_factory=dict)
    ways: list[Way] = field(default_factory=list)
    sites: dict[str, Place] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)

    def function(self, region: Region, made: Made) -> Fused:
        """The function of a kernel; equal kernels share one."""
        names = [n for n, f in self.functions.items() if _apart(f.made.kernel) == _apart(made.kernel)]
        name = names[0] if names else _free(made.kernel.name, self.functions)
        if not names:
            eager = text_of(region.graph(), f"{name}_eager", own=False)
            self.functions[name] = Function(made, region.function(), region.examples, eager)
        return Fused(name)

    def way(self, kind: str, graph: fx.Graph, guards: dict[str, Any]) -> str:
        """The forward with this text and these guards; one that is the same in training and evaluation serves both."""
        text = text_of(graph, "forward")
        known = next((w for w in self.ways if (_body(w.text), _guards(w)) == (_body(text), _untrained(guards))), None)
        if known is not None and known.state[0] != guards["state"][0]:
            known.state = (None, *known.state[1:])
        if known is None:
            name = _free(f"{_snake(kind)}_forward", [w.name for w in self.ways])
            known = Way(name, text_of(graph, name), **guards)
            self.ways.append(known)
        return known.name


def eject(model: nn.Module, folder: str | Path, inputs: Any = None, *, tune: float | None = None) -> Path:
    """Write a package into `folder`: a kernel per file, functions around them, and `apply(model)`.

    It is imported by the folder's name, and needs torch (and triton on a CUDA device), not gatec. Forwards are generated
    for training and for evaluation, as far as the model runs in both; what a converted model has beside its own class comes
    along. Modules of which this is not possible are named in its README with the reason; one that was converted has no other
    forward, so that there this is an error, as it is where nothing is left. Raises GatecError.

    tune  seconds in which to measure the kernels on the model's CUDA device; the choices of earlier measurements come along.
    """
    folder = Path(folder)
    if not folder.name.isidentifier():
        raise GatecError("a folder whose name can be imported", found=repr(folder.name))
    plain, package = _plain(model), Package(type(model).__name__)
    package.added, package.tensors = additions(plain)
    for training in (model.training, not model.training):
        try:
            program = prepare(plain.train(training), inputs)
        except GatecError:
            if training == model.training:
                raise
            continue
        converted = [p for p, m in plain.named_modules() if unit_of(m) is not None]
        for path in dict.fromkeys([*(f.site for f in finds(program.canon())), *converted]):
            _unit(program, path, package)
    if not package.functions:
        reasons = "; ".join(f"{p or '(model)'}: {w}" for p, w in list(package.left.items())[:4])
        raise GatecError(f"a gated region in {package.model} that can be ejected", found=reasons or "no gate")
    if tune is not None:
        measure(package.functions.values(), next((p.device for p in model.parameters()), torch.device("cpu")), tune)
    package.choices = choices(package.functions)
    write(package, folder)
    return folder


def _plain(model: nn.Module) -> nn.Module:
    """A copy without what `fuse` did; what else was done to it stays."""
    plain = model_copy(model)
    for module in plain.modules():
        unit = unit_of(module)
        if unit is not None:
            unit.rewrites = [r for r in unit.rewrites if r.name != "fuse"]
            unit.graphs.clear()
            if not unit.edits:
                uninstall(module)
    return plain


def _unit(program: Program, path: str, package: Package) -> None:
    module = program.module(path)
    unit = unit_of(module)
    place = package.sites.get(path, Place(type(module).__qualname__, changed=unit is not None and not unit.only_fused))
    try:
        around = [_around(program, path, package)] if unit is not None and unit.outer else []
        try:
            inside = [_forward(program, path, package, needed=place.changed)]
        except Refused as e:
            if place.changed:
                raise
            package.left.setdefault(path, str(e))
            inside = []
    except Refused as e:
        raise GatecError("a converted model that can run without gatec", found=str(e), where=path or "the model",
                         hint="gatec.save keeps what was put into a model") from e  # fmt: skip
    place.inside += [n for n in inside if n not in place.inside]
    place.around += [n for n in around if n not in place.around]
    if place.inside or place.around:
        package.sites[path] = place
        package.left.pop(path, None)


def _around(program: Program, path: str, package: Package) -> str:
    """The name of the forward with what was put at the module's boundary."""
    unit, call = unit_of(program.module(path)), program.calls.get(path, [None])[0]
    assert unit is not None
    if call is None:
        raise Refused("it was not called in the recorded forward")
    form = tuple(map(told, spread(call.args, call.kwargs)[1]))
    guards = {"form": form, "state": (None,), "reads": (), "asked": (), "device": None}
    return package.way(f"around{unit.original.__name__}", program.shell_of(path), guards)


def _forward(program: Program, path: str, package: Package, needed: bool) -> str:
    """The name of the forward for the module's recorded call; one that is not needed must have a kernel."""
    module, captured = program.module(path), program.graph_of(path)
    if captured is None:
        raise Refused(program.missed.get(path, "it was not captured"))
    graph = copied(captured)
    examples(module, graph)
    fusion = Fusion()
    found = regions(module, graph, lambda p: program.graph_of(join(path, p)), opens=False)
    lowered = fusion.derived(r for r in found if r.anchor in ALONE)
    if not lowered and not needed:
        others = [r.anchor for r in found if r.anchor not in ALONE]
        reasons = [f"the kernel of its {anchor} region calls what stays with gatec" for anchor in others]
        reasons += [
            *fusion.left.values(),
            *(f"its forward calls {name}, which stays with gatec" for name in ours(graph)),
        ]
        raise Refused(next(iter(reasons), "no two pointwise nodes to fuse around its gate"))
    guards = _held(program, path, module, graph)
    placed(graph, list(_functions(lowered, package)))
    graph.lint()
    return package.way(type(module).__name__, graph, guards)


def _functions(lowered: list[Lowered], package: Package) -> Iterator[tuple[Region, Any]]:
    for region, made in lowered:
        yield region, package.function(region, made)


def _held(program: Program, path: str, module: nn.Module, graph: fx.Graph) -> dict[str, Any]:
    """What the graph holds for."""
    call: Call = program.calls[path][0]
    unit = unit_of(module)
    own = (
        (unit.reads, unit.asked)
        if unit and unit.rewrites
        else (program.reads.get(path, ()), program.asked.get(path, ()))
    )
    asked = tuple(sorted(own[1]))
    reads = tuple(sorted({*own[0], *_drawn_in(program, path, module, graph)}))
    unknown = [name for name in asked if name not in ANSWERS] + [name for child, name in reads if child == "$"]
    if unknown:
        raise Refused(f"its forward asks for {unknown[0]}")
    _, form, device = taken(call.args, call.kwargs)
    here = any(isinstance(a, torch.device) for n in graph.nodes for a in (*n.args, *n.kwargs.values()))
    state = surroundings(module, unit.original if unit else type(module), reads, asked)
    return {"form": form, "state": state, "reads": reads, "asked": asked, "device": device if here else None}


def _drawn_in(program: Program, path: str, module: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """What the graph holds for of the modules that it does not call: their code stands in it."""
    calls = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    for name, child in module.named_modules():
        if not name or any(f"{name}.".startswith(f"{c}.") for c in calls):
            continue
        yield name, "__class__"
        known = program.reads.get(join(path, name))
        if known is not None:
            yield from ((join(name, inner), read) for inner, read in known if inner not in (":", "$"))
        else:
            yield from ((name, read) for read, value in vars(child).items() if _setting(read, value))


def _setting(name: str, value: Any) -> bool:
    return (
        not name.startswith("_")
        and name != "training"
        and isinstance(value, (bool, int, float, str, tuple, type(None)))
    )


def _guards(way: Way) -> dict[str, Any]:
    return _untrained({n: getattr(way, n) for n in ("form", "state", "reads", "asked", "device")})


def _untrained(guards: dict[str, Any]) -> dict[str, Any]:
    """The guards but for whether the module is training."""
    return {**guards, "state": guards["state"][1:]}


def _body(text: Text) -> tuple[Any, ...]:
    return text.body.partition("(")[2], text.imports


def _apart(kernel: Kernel) -> str:
    """A kernel's text without its first line, which says where it was found."""
    return kernel.source.partition("\n")[2]


def _free(name: str, taken: Any) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
