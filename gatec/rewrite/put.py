"""put(): a gate in every place where it goes. Every place ends as put, left or near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from gatec.capture import unit_of
from gatec.capture.unit import installable
from gatec.errors import GatecError, Refused
from gatec.gate import Gate
from gatec.layers import attribute
from gatec.match import Flow, Match, Near
from gatec.match.terms import join
from gatec.program import Edit, Program
from gatec.rewrite.install import installed
from gatec.rewrite.readers import once, unread
from gatec.rewrite.replay import Rewrite
from gatec.rewrite.splice import bound
from gatec.rewrite.spot import describe, relative, site_name, spot
from gatec.rewrite.undo import Undo, back
from gatec.site import Site
from gatec.verify import Probe


@dataclass
class Place:
    """One place, by the pattern's last layer there, and the ways of putting the gate there in the order of the patterns."""

    name: str
    ways: list[tuple[int, Match]]
    near: Near | None = None
    beside: str | None = None  # another place that needs one of its layers, and whose layers lie closer together

    @property
    def replaced(self) -> set[str]:
        """The weights of layers that would be called in another way, or no longer."""
        wholes = [m for _, m in self.ways if m.cut is m.root and len(m.layers) > 1]
        return {layer.weight for m in wholes for layer in m.layers.values()}


@dataclass
class Work:
    """What one `put` shares among its places."""

    gate: Gate
    options: dict[str, Any]
    program: Program
    flow: Flow
    dry: bool
    structure: bool
    twins: dict[Any, Any] = field(default_factory=dict)
    tried: dict[Any, str] = field(default_factory=dict)


def put(gate: Gate, options: dict[str, Any], program: Program, undo: Undo, *, dry: bool = False,
        only: Callable[[str], bool] | None = None, tick: Callable[[str], Any] | None = None,
        structure: bool = False) -> list[Edit]:  # fmt: skip
    """The edits of one gate over the whole program; with `dry` nothing is changed and `put` means "could be put".

    `structure` adds what the gate adds without giving birth to it: a checkpoint is about to be loaded.
    """
    work = Work(gate, gate.options(options), program, Flow(program.canon(forms=False)), dry, structure)
    known, ours = earlier(gate, program), added(program)
    edits = [Edit(gate.name, name, "left", f"{gate.name} was put here already") for name in known.values()]
    for last, place in places(gate, work.flow).items():
        if last in known or last in ours or (only is not None and not only(place.name)):
            continue
        if place.near is not None:
            edits.append(Edit(gate.name, place.name, "near", f"but for {describe(place.near.obstacle)}"))
            continue
        if place.beside is not None:
            why = f"one of its layers belongs to the place at {place.beside or '(model)'}"
            edits.append(Edit(gate.name, place.name, "left", why))
            continue
        if tick:
            tick(place.name)
        edits.append(_put(work, place, undo))
    edits = [e for e in edits if only is None or only(e.site)]
    program.edits.extend(edits)
    return edits


def places(gate: Gate, flow: Flow) -> dict[str, Place]:
    """The places of a gate by the weight of their last layer; near misses where no pattern matched."""
    found: dict[str, Place] = {}
    nears: dict[str, Place] = {}
    for index, pattern in enumerate(gate.patterns):
        for match in pattern.find(flow):
            whole = match.match if isinstance(match, Near) else match
            last, name = list(whole.layers.values())[-1].weight, site_name(whole.layers.values())
            if isinstance(match, Near):
                nears.setdefault(last, Place(name, [], match))
            else:
                found.setdefault(last, Place(name, [])).ways.append((index, match))
    _apart(list(found.values()))
    return found | {last: near for last, near in nears.items() if last not in found}


def _apart(found: list[Place]) -> None:
    """What two places would replace belongs to the one whose layers lie closer together."""
    owners: dict[str, str] = {}
    for place in sorted(found, key=lambda p: -_depth(p.replaced)):
        mine = place.replaced
        place.beside = next((owners[w] for w in mine if w in owners), None)
        owners |= {w: place.name for w in mine if place.beside is None}


def _depth(weights: set[str]) -> int:
    """Of the module that holds them all."""
    paths = [weight.split(".") for weight in weights]
    return sum(len(set(level)) == 1 for level in zip(*paths, strict=False))


def earlier(gate: Gate, program: Program) -> dict[str, str]:
    """Where earlier conversions put the gate: the last layer's weight of each place, and the site's name."""
    found = {}
    for path, module in program.model.named_modules():
        unit = unit_of(module)
        for rewrite in unit.edits if unit else ():
            if rewrite.name == gate.name and isinstance(rewrite, Rewrite):
                last = list(rewrite.layers.values())[-1].under(path)
                found[last.weight] = rewrite.site_under(path)
    return found


def added(program: Program) -> set[str]:
    """What gates have brought along, and all that is below it: no place for another."""
    found = set()
    for path, module in program.model.named_modules():
        unit = unit_of(module)
        for name in (n for r in (unit.edits if unit else ()) for n in r.added.values()):
            value = attribute(module, name)
            inner = [*value.named_modules(), *value.named_parameters()] if isinstance(value, nn.Module) else []
            found |= {join(path, name), *(join(path, f"{name}.{below}") for below, _ in inner)}
    return found


def _put(work: Work, place: Place, undo: Undo) -> Edit:
    """The first way that goes; if none does, why not."""
    edits: list[Edit] = []
    for index, match in place.ways:
        edits.append(_one(work, place.name, index, match, undo))
        if edits[-1].verdict == "put":
            return edits[-1]
    reasons = dict.fromkeys(e.why for e in edits)
    return replace(edits[0], why="; or ".join(reasons))


def _one(work: Work, name: str, index: int, match: Match, undo: Undo) -> Edit:
    gate, steps = work.gate, []  # type: tuple[Gate, Undo]
    try:
        once(work.flow.canon, match)
        unread(work.flow.canon, match)
        where = spot(work.program, work.flow, gate, match)
        local = {k: v.within(where.path) for k, v in match.layers.items()}
        rewrite = Rewrite(gate, work.options, local, index, relative(name, where.path), where.inlined, where.doors,
                          acts=match.acts)  # fmt: skip
        module = work.program.module(where.path)
        site = Site(work.program.model, where.path, module, replace(match, layers=local), names=work.program.names,
                    name=name)  # fmt: skip
        if gate.check:
            gate.check(site, **bound(gate, gate.check, site, work.options))
        installable(module)
        if rewrite.doors is None:
            for graph in work.program.other_graphs(where.path):
                rewrite.meets(module, graph)
        if work.dry:
            if gate.tries is not None:
                _try(work, where.path, module, replace(rewrite, options={**work.options, **gate.tries}))
            return Edit(gate.name, name, "put", "; ".join(["could be put", *site.notes]))
        drift, probe = installed(work.program, where.path, module, rewrite, steps, work.twins, work.structure)
    except Refused as e:
        back(steps)
        return Edit(gate.name, name, "left", str(e))
    except BaseException:
        back(steps)
        raise
    undo.extend(steps)
    return _measured(work, name, drift, probe, site.notes)


def _try(work: Work, path: str, module: nn.Module, rewrite: Rewrite) -> None:
    """Put a rewrite and take it out again, once for all modules of one class and graph; raise what was refused."""
    graph = work.program.graph_of(path)
    key = type(module), tuple(rewrite.layers.items()), graph and graph.python_code("self").src
    if key not in work.tried:
        steps: Undo = []
        try:
            installed(work.program, path, module, rewrite, steps, work.twins, structure=True)
            work.tried[key] = ""
        except Refused as e:
            work.tried[key] = str(e)
        finally:
            back(steps)
    if work.tried[key]:
        raise Refused(work.tried[key])


def _measured(work: Work, name: str, drift: float | None, probe: Probe | None, notes: list[str]) -> Edit:
    lost = work.gate.gives_up(work.options)
    if not lost and probe is not None and drift is not None and not drift <= probe.rounding:
        raise GatecError(f"the gate {work.gate.name} to be born neutral", found=f"the output moved by {drift:.1e}", where=name,
                         hint="start its new parameters where the equation is the identity")  # fmt: skip
    said = "".join(f"; {words}" for words in filter(None, (lost, *notes)))
    if probe is None:
        return Edit(work.gate.name, name, "put", f"not measured alone{said}")
    return Edit(work.gate.name, name, "put", "", drift, f"{probe.note}{said}")
