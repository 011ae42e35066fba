"""put(): find the places of a gate, decide, splice, compare. Every place ends as put, left or near."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from gatec.capture import Call, install, trace, unit_of
from gatec.capture.guards import hold, writes
from gatec.capture.unit import Unit, uninstall
from gatec.errors import GatecError, Refused
from gatec.gate import Gate
from gatec.match import Canon, Linear, Match, Near, Term
from gatec.match.canon import Place
from gatec.match.terms import join, storage
from gatec.program import Edit, Program
from gatec.site import Site
from gatec.tidy import dead, examples, inline
from gatec.verify import Probe

Undo = list[Callable[[], Any]]


@dataclass
class Rewrite:
    """One edit as data: replayed on every graph that is captured of its unit."""

    gate: Gate
    options: dict[str, Any]
    layers: dict[str, Linear]
    pattern: int
    inlined: tuple[str, ...] = ()
    added: dict[str, str] = field(default_factory=dict)
    only_fuses: bool = False

    @property
    def name(self) -> str:
        return self.gate.name

    def __call__(self, module: nn.Module, graph: fx.Graph, call: Call, *, root: nn.Module | None = None, path: str = "",
                 graph_of: Callable[[str], fx.Graph | None] | None = None, undo: Undo | None = None) -> Site | None:  # fmt: skip
        """Rewrite `graph`. None for a replay on a call that does not come by these layers at all."""
        graph_of = graph_of or children_of(module, graph)
        try:
            return self._splice(module, graph, root, path, graph_of, undo)
        except Refused:
            if root is not None or self._passes_by(module, graph, graph_of):
                raise
            return None

    def _splice(self, module: nn.Module, graph: fx.Graph, root: nn.Module | None, path: str,
                graph_of: Callable[[str], fx.Graph | None], undo: Undo | None) -> Site:  # fmt: skip
        for child in self.inlined:
            inner = graph_of(child)
            if inner is None:
                raise Refused(f"{child} cannot be captured")
            inline(graph, child, inner)
        match, canon = self._find(module, graph, graph_of)
        tracer = fx.proxy.GraphAppendingTracer(graph)
        site = Site(root or module, path, module, match, tracer, self.added, undo if undo is not None else [])
        splice(site, canon, self.gate, self.options)
        examples(module, graph)
        dead(graph)
        graph.lint()
        return site

    def _passes_by(self, module: nn.Module, graph: fx.Graph, graph_of: Any) -> bool:
        """Whether the graph uses one of the layers, or calls what cannot be looked into and holds one of them."""
        canon = Canon(graph_of, module.get_submodule)
        canon.run("", graph)
        used = {k.path for k in self.layers.values()} | {k.weight for k in self.layers.values()}
        return any(canon.uses[u] for u in used) or any(u.startswith(f"{gap}.") for gap in canon.gaps for u in used)

    def born(self, site: Site) -> None:
        """First values of what was added."""
        if self.gate.birth:
            self.gate.birth(site, **bound(self.gate, self.gate.birth, site, self.options))

    def _find(self, module: nn.Module, graph: fx.Graph, graph_of: Any) -> tuple[Match, Canon]:
        canon = Canon(graph_of, module.get_submodule)
        canon.run("", graph)
        for match in self.gate.patterns[self.pattern].find(list(canon.carriers)):
            if isinstance(match, Match) and match.layers == self.layers:
                return match, canon
        raise Refused(
            f"the {self.name} place at {', '.join(k.path for k in self.layers.values())} is not there in this call"
        )


def children_of(module: nn.Module, graph: fx.Graph) -> Callable[[str], fx.Graph | None]:
    """Graphs of child modules, captured from the example values of the graph that calls them."""
    known: dict[str, fx.Graph | None] = {"": graph}

    def graph_of(path: str) -> fx.Graph | None:
        if path not in known:
            known[path] = None
            for parent, around in list(known.items()):
                for node in around.nodes if around is not None else ():
                    if node.op == "call_module" and join(parent, str(node.target)) == path:
                        known[path] = _child(module.get_submodule(path), node)
        return known[path]

    return graph_of


def _child(module: nn.Module, node: fx.Node) -> fx.Graph | None:
    if type(module).__module__.startswith("torch.nn.modules") and not any(module.children()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    call, unit = Call(args, kwargs), unit_of(module)
    try:
        return unit.graph(module, call) if unit else trace(module, type(module).forward, call).graph
    except Refused:
        return None


# -- putting a gate everywhere it goes --------------------------------------------------------------------------------


def put(gate: Gate, options: dict[str, Any], program: Program, undo: Undo, *, dry: bool = False,
        only: Callable[[str], bool] | None = None, tick: Callable[[str], Any] | None = None,
        structure: bool = False) -> list[Edit]:  # fmt: skip
    """The edits of one gate over the whole program; with `dry` nothing is changed and `put` means "could be put".

    `structure` adds what the gate adds without giving birth to it: a checkpoint is about to be loaded.
    """
    chosen = gate.options(options)
    canon = program.canon()
    twins: dict[Any, Any] = {}
    known = earlier(gate, program)
    edits = [
        Edit(gate.name, name, "left", f"{gate.name} was put here already")
        for name in known.values()
        if not only or only(name)
    ]
    for index, found in places(gate, canon):
        match = found.match if isinstance(found, Near) else found
        name = site_name(match.layers.values())
        if list(match.layers.values())[-1].weight in known:
            continue
        if only is not None and not only(name):
            continue
        if isinstance(found, Near):
            edits.append(Edit(gate.name, name, "near", f"but for {describe(found.obstacle)}"))
            continue
        if tick:
            tick(name)
        edits.append(_put_one(gate, chosen, program, canon, index, match, undo, dry, twins, structure))
    program.edits.extend(edits)
    return edits


def places(gate: Gate, canon: Canon) -> Iterator[tuple[int, Match | Near]]:
    """Matches of all patterns, and near misses where no pattern matched; each group of layers once."""
    seen: set[Any] = set()
    terms = list(canon.carriers)
    nears: list[tuple[int, Near]] = []
    for index, pattern in enumerate(gate.patterns):
        for found in pattern.find(terms):
            if isinstance(found, Near):
                nears.append((index, found))
            elif _layers(found) not in seen:
                seen.add(_layers(found))
                yield index, found
    ends = {tuple(m)[-1:] for m in seen}
    for index, near in nears:
        if tuple(_layers(near.match))[-1:] not in ends:
            ends.add(tuple(_layers(near.match))[-1:])
            yield index, near


def _layers(match: Match) -> tuple[Any, ...]:
    return tuple(sorted(((k, v) for k, v in match.layers.items()), key=lambda kv: kv[0] == "down"))


def earlier(gate: Gate, program: Program) -> dict[str, str]:
    """Where earlier conversions put the gate: the last layer's weight of each place, and the site's name."""
    found = {}
    for path, module in program.model.named_modules():
        unit = unit_of(module)
        for rewrite in unit.rewrites if unit else ():
            if rewrite.name == gate.name and isinstance(rewrite, Rewrite):
                layers = [
                    replace(k, path=join(path, k.path), weight=join(path, k.weight)) for k in rewrite.layers.values()
                ]
                found[layers[-1].weight] = site_name(layers)
    return found


def site_name(layers: Iterable[Linear]) -> str:
    """The module path that holds all these layers, or where that is a plain row of layers, its last layer."""
    layers = list(layers)
    paths = [layer.path.split(".") for layer in layers]
    shared = []
    for step in zip(*paths, strict=False):
        if len(set(step)) > 1:
            break
        shared.append(step[0])
    last = layers[-1].path
    return last if last.rpartition(".")[2].isdigit() else ".".join(shared)


def describe(term: Term) -> str:
    name = term.op.partition(":")[2] or term.op
    where = (
        term.data if isinstance(term.data, str) else term.data[0] if isinstance(term.data, tuple) and term.data else ""
    )
    return f"{name} at {where}" if isinstance(where, str) and where else name


def _put_one(gate: Gate, options: dict[str, Any], program: Program, canon: Canon, index: int, match: Match,
             undo: Undo, dry: bool, twins: dict[Any, Any], structure: bool) -> Edit:  # fmt: skip
    name = site_name(match.layers.values())
    steps: Undo = []
    try:
        once(canon, match)
        unread(canon, match)
        path, inlined = unit_path(program, canon, match)
        module = program.module(path)
        local = {k: _relative(v, path) for k, v in match.layers.items()}
        rewrite = Rewrite(gate, options, local, index, inlined)
        site = Site(program.model, path, module, replace(match, layers=local), names=program.names)
        if gate.check:
            gate.check(site, **bound(gate, gate.check, site, options))
        if dry:
            return Edit(gate.name, name, "put", "could be put")
        drift, probe = installed(program, path, module, rewrite, steps, twins, structure)
    except Refused as e:
        back(steps)
        return Edit(gate.name, name, "left", str(e))
    except BaseException:
        back(steps)
        raise
    undo.extend(steps)
    if gate.neutral and probe is not None and drift is not None and not drift <= probe.rounding:
        raise GatecError(f"the gate {gate.name} to be born neutral", found=f"the output moved by {drift:.1e}", where=name,
                         hint="start its new parameters where the equation is the identity")  # fmt: skip
    return Edit(gate.name, name, "put", "" if probe else "not measured alone", drift, probe.note if probe else "")


def back(steps: Undo) -> None:
    """Undo, newest first."""
    while steps:
        steps.pop()()


def _relative(layer: Linear, path: str) -> Linear:
    def cut(full: str) -> str:
        return full[len(path) + 1 :] if path else full

    return replace(layer, path=cut(layer.path), weight=cut(layer.weight), bias=layer.bias and cut(layer.bias))


def unit_path(program: Program, canon: Canon, match: Match) -> tuple[str, tuple[str, ...]]:
    """The deepest module whose graph holds the replaced value and what fills the tensor holes, and the children to inline."""
    needed = [match.cut, *match.values.values()]
    layers = [layer.path for layer in match.layers.values()]
    ends = sorted({p for p, _ in canon.carriers[match.cut]}, key=lambda p: -p.count("."))
    tried = sorted({a for e in ends for a in ancestors(e)}, key=lambda p: -len(p))
    for path in tried:
        below = [
            [p for p, _ in canon.carriers.get(t, ()) if p == path or p.startswith(f"{path}.") or not path]
            for t in needed
        ]
        if not all(below) or not all(p == path or p.startswith(f"{path}.") or not path for p in layers):
            continue
        chains = {c for ps in below for c in _chain(path, min(ps, key=len))}
        if all(program.graph_of(join(path, c)) is not None for c in chains) and program.graph_of(path) is not None:
            return path, tuple(sorted(chains, key=len))
    raise Refused("no captured module holds all of it")


def ancestors(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _chain(path: str, below: str) -> list[str]:
    """Child paths, relative to `path`, that lead from it to the module `below`."""
    if below == path:
        return []
    parts = below[len(path) + 1 :].split(".") if path else below.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def installed(program: Program, path: str, module: nn.Module, rewrite: Any, steps: Undo, twins: dict[Any, Any],
              structure: bool = False) -> tuple[float | None, Probe | None]:  # fmt: skip
    call = program.calls[path][0]
    probe = None if structure else Probe.of(module, call)
    captured = program.graph_of(path)
    assert captured is not None
    graph = copied(captured)
    site = rewrite(module, graph, call, root=program.model, path=path, undo=steps,
                   graph_of=lambda p: program.graph_of(join(path, p)))  # fmt: skip
    if not structure:
        rewrite.born(site)
    unit = _unit(module, steps)
    unit.rewrites.append(rewrite)
    steps.append(unit.rewrites.pop)
    before = dict(unit.graphs), dict(unit.added), program.graphs[path]
    steps.append(lambda: _reset(unit, program, path, *before))
    unit.graphs.clear()
    unit.watch(program.reads.get(path, ()), program.asked.get(path, ()))
    unit.added.update({n.partition(".")[0]: True for n in rewrite.added.values() if "." not in n})
    source = unit.keep(module, call, graph).source
    program.graphs[path] = graph
    if probe is None:
        return None, None
    with _twin(unit, twins, type(module), source):
        return probe.drift(module), probe


@contextmanager
def _twin(unit: Unit, twins: dict[Any, Any], kind: type, source: str) -> Iterator[None]:
    """Units with the same class and the same rewritten source share the graphs captured for measuring in float64."""
    own = dict(unit.graphs)
    unit.graphs.update(twins.setdefault((kind, source), {}))
    unit.measured = twins[kind, source]
    yield
    unit.measured = None
    unit.graphs.clear()
    unit.graphs.update(own)


def _reset(unit: Unit, program: Program, path: str, graphs: Any, added: Any, graph: Any) -> None:
    unit.graphs, unit.added, program.graphs[path] = graphs, added, graph


def _unit(module: nn.Module, steps: Undo) -> Unit:
    known = unit_of(module)
    unit = known or install(module)
    if known is None:
        steps.append(lambda: uninstall(module))
    return unit


def copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    output = new.graph_copy(graph, env)
    new.output(output)
    return new


# -- one splice ---------------------------------------------------------------------------------------------------------


def bound(gate: Gate, function: Callable[..., Any], site: Site, options: dict[str, Any],
          values: dict[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """What `function` asks for by name: layers, activations, tensor holes, the replaced value, options."""
    everything = {**options, **site.layers, **site.match.acts, **(values or {})}
    return gate.accepted(function, everything)


def splice(site: Site, canon: Canon, gate: Gate, options: dict[str, Any]) -> None:
    assert site.tracer is not None
    graph, match = site.tracer.graph, site.match
    order = {n: i for i, n in enumerate(graph.nodes)}
    cut = _carrier(canon, match.cut, order)
    leading = _leading(cut)
    values = {k: _carrier(canon, t, order, leading) for k, t in match.values.items()}
    last = max([cut, *values.values()], key=lambda n: order[n])
    while last.op == "placeholder" and last.next.op == "placeholder":
        last = last.next
    for name, value in values.items():
        unwritten(name, value, last, order)
    if writes(cut) and any(order[u] > order[cut] for n in cut.all_input_nodes[:1] for u in n.users):
        raise Refused(f"its hidden layer is written in place ({cut.name}) and read under another name")
    before = set(graph.nodes)
    with graph.inserting_after(last):
        anchor = graph.call_function(hold, (0, 0, ""))  # a fixed point to write in front of
    with graph.inserting_before(anchor):
        proxies = {k: site.proxy(n) for k, n in values.items()}
        given = bound(gate, gate.after, site, options, {**proxies, "here": site.proxy(cut)})
        result = gate.after(site, **given).node
    graph.erase_node(anchor)
    new = [n for n in graph.nodes if n not in before]
    for node in new:
        node.meta.setdefault("gate", gate.name)
    users = [u for u in cut.users if u not in new]
    if any(order[u] < order[last] for u in users):
        raise Refused(f"{last.name} is computed after the value that it would replace was read")
    for user in users:
        user.replace_input_with(cut, result)
    result.meta.setdefault("val", cut.meta.get("val"))


def _carrier(canon: Canon, term: Term, order: dict[fx.Node, int], leading: tuple[int, ...] | None = None) -> fx.Node:
    nodes = [n for p, n in canon.carriers[term] if p == "" and n in order]
    if not nodes:
        raise Refused("a value of it stays inside a child module")
    nodes.sort(key=lambda n: order[n])
    return next((n for n in nodes if leading is not None and _leading(n) == leading), nodes[0])


def unwritten(name: str, value: fx.Node, last: fx.Node, order: dict[fx.Node, int]) -> None:
    """Refuse where a value that the gate reads after `last` has been written in place by then."""
    memory = storage(value)
    for node in list(order)[order[value] + 1 : order[last] + 1]:
        if writes(node) and memory is not None and memory in map(storage, node.all_input_nodes[:1]):
            raise Refused(f"{name} is written in place ({node.name}) before the gate could read it")


def _leading(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape[:-1]) if isinstance(value, Tensor) else None


def once(canon: Canon, match: Match) -> None:
    """Refuse layers that serve several places: what changes them for one would change the others unseen."""
    for layer in match.layers.values():
        times = max(canon.uses[layer.path], canon.uses[layer.weight])
        if times > 1:
            raise Refused(f"{layer.path} is called {times} times in one forward")


def unread(canon: Canon, match: Match) -> None:
    """Refuse where a value that changes its meaning, or goes away, is also read from outside of the match."""
    inside = {place for t in (*match.inside, match.cut) for place in canon.carriers.get(t, ())}
    gone = [match.cut] if match.cut is not match.root else [t for t in match.inside if t is not match.root]
    for term in gone:
        for path, node in canon.carriers.get(term, ()):
            for user in node.users:
                if _reads(canon, path, user) and not _stays(path, user, inside):
                    raise Refused(f"the hidden layer is also read by {_called(user)}")


def _stays(path: str, node: fx.Node, inside: set[Place]) -> bool:
    """Whether what `node` computes only flows into the match, as the parts of a written-out activation do."""
    if (path, node) in inside:
        return True
    return node.op != "output" and bool(node.users) and all(_stays(path, u, inside) for u in node.users)


def _reads(canon: Canon, path: str, user: fx.Node) -> bool:
    """Whether `user` reads the value itself; a captured child or parent is asked in its own graph."""
    if user.op == "output":
        return path not in canon.nested
    if user.op == "call_module":
        return join(path, str(user.target)) not in canon.swept
    return isinstance(user.meta.get("val"), Tensor)


def _called(node: fx.Node) -> str:
    if node.op == "output":
        return "whoever gets the module's output"
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
