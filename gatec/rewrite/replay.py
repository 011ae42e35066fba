"""One edit as data, and how it is made on a graph: at conversion, and again on every graph captured later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from gatec.capture import Call, trace, unit_of
from gatec.capture.shell import door
from gatec.equation import Activation
from gatec.errors import Refused
from gatec.gate import Gate
from gatec.match import Canon, Flow, Linear, Match, Part, Term
from gatec.match.terms import join
from gatec.rewrite import dense
from gatec.rewrite.install import copied
from gatec.rewrite.splice import bound, carried, splice
from gatec.rewrite.undo import Undo
from gatec.rewrite.units import put_in_order
from gatec.site import Site
from gatec.tidy import dead, examples, inline
from gatec.widening import Wide

NOWHERE = Term("nowhere")
GraphOf = Callable[[str], fx.Graph | None]


@dataclass
class Rewrite:
    """Replayed on every graph that is captured of its unit; one with `doors` on every shell of it instead."""

    gate: Gate
    options: dict[str, Any]
    layers: dict[str, Linear | Part]
    pattern: int
    site: tuple[int, str] = (0, "")  # how many levels above the unit its site is, and where below that
    inlined: tuple[str, ...] = ()
    doors: tuple[tuple[str, str], ...] | None = None
    added: dict[str, str] = field(default_factory=dict)
    wide: tuple[Wide, ...] = ()
    only_fuses: bool = False
    acts: dict[str, Activation] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.gate.name

    def __call__(self, module: nn.Module, graph: fx.Graph, call: Call, *, root: nn.Module | None = None, path: str = "",
                 graph_of: GraphOf | None = None, undo: Undo | None = None) -> Site | None:  # fmt: skip
        """Rewrite `graph`. None for a replay on a call that does not come by these layers at all."""
        site = Site(root or module, path, module, self.match, fx.proxy.GraphAppendingTracer(graph), self.added,
                    undo if undo is not None else [], name=self.site_under(path))  # fmt: skip
        if self.doors is not None:
            return self._enclosed(site, graph)
        graph_of = graph_of or children_of(module, graph)
        try:
            return self._splice(site, graph, graph_of)
        except Refused:
            if root is not None or self._passes_by(module, graph, graph_of):
                raise
            return None

    def meets(self, module: nn.Module, graph: fx.Graph) -> None:
        """Raise Refused where a call comes by these layers in another way than the place does."""
        graph = copied(graph)
        graph_of = children_of(module, graph)
        try:
            self._inline(graph, graph_of)
            self._find(module, graph, graph_of)
        except Refused:
            if self._passes_by(module, graph, graph_of):
                raise

    def site_under(self, path: str) -> str:
        """The name of the site where the unit is the module at `path`."""
        levels, rest = self.site
        return join(".".join(path.split(".")[: path.count(".") + 1 - levels]) if path else "", rest)

    @property
    def linears(self) -> dict[str, Linear]:
        return {n: k for n, k in self.layers.items() if isinstance(k, Linear)}

    @property
    def match(self) -> Match:
        """What is known of the place without a graph of it."""
        return Match(self.gate.patterns[self.pattern], NOWHERE, NOWHERE, layers=self.layers)

    def born(self, site: Site) -> None:
        """First values of what was added."""
        if self.gate.birth:
            self.gate.birth(site, **bound(self.gate, self.gate.birth, site, self.options))

    def moved(self, site: Site) -> Any:
        """Which unit each hidden unit of the layers was before birth; None where none has moved."""
        gate = self.gate
        return gate.moved and gate.moved(site, **bound(gate, gate.moved, site, self.options))

    def fits(self, module: nn.Module, state: dict[str, Any], prefix: str) -> None:
        dense.fits(state, prefix, module, self.linears, self.wide)

    def loads(self, module: nn.Module, state: dict[str, Any], prefix: str) -> None:
        """Bring the part of a state dict that is about to be loaded into the form of the rewritten module, in place."""
        self.fits(module, state, prefix)
        if not dense.is_dense(state, prefix, module, self.added, self.layers):
            return
        if not dense.widened(state, prefix, self.wide):
            return
        order = self.moved(Site(module, "", module, self.match, added=self.added))
        if order is not None:
            put_in_order(state, prefix, self.linears, order)
        state.update({prefix + name: value for name, value in dense.own(module, self.added)})

    def _enclosed(self, site: Site, graph: fx.Graph) -> Site:
        """At the boundary the values are what the module's call takes and gives."""
        unit = unit_of(site.module)
        forward = (unit.original if unit else type(site.module)).forward
        nodes = {name: door(forward, graph, side) for name, side in self.doors or ()}
        found = {name: node for name, node in nodes.items() if node is not None}
        if len(found) < len(nodes):
            raise Refused("it is called without a tensor")
        splice(site, found.pop("here"), found, self.gate, self.options)
        return self._tidied(site, graph)

    def _splice(self, site: Site, graph: fx.Graph, graph_of: GraphOf) -> Site:
        self._inline(graph, graph_of)
        site.match, canon = self._find(site.module, graph, graph_of)
        cut, values = carried(site, canon, graph)
        splice(site, cut, values, self.gate, self.options)
        self.layers, self.wide = site.match.layers, site.wide or self.wide
        return self._tidied(site, graph)

    def _inline(self, graph: fx.Graph, graph_of: GraphOf) -> None:
        for child in self.inlined:
            inner = graph_of(child)
            if inner is None:
                raise Refused(f"{child} cannot be captured")
            inline(graph, child, inner)

    def _tidied(self, site: Site, graph: fx.Graph) -> Site:
        examples(site.module, graph)
        dead(graph)
        graph.lint()
        return site

    def _passes_by(self, module: nn.Module, graph: fx.Graph, graph_of: GraphOf) -> bool:
        """Whether the graph uses one of the layers, or calls what cannot be looked into and holds one of them."""
        canon = _swept(module, graph, graph_of)
        used = {k.path for k in self.layers.values()} | {k.weight for k in self.layers.values()}
        return any(canon.uses[u] for u in used) or any(u.startswith(f"{gap}.") for gap in canon.gaps for u in used)

    def _find(self, module: nn.Module, graph: fx.Graph, graph_of: GraphOf) -> tuple[Match, Canon]:
        """The place as it was when the edit was made: what was put at the boundaries since then may stand in its way."""
        for shells in (True, False):
            canon = _swept(module, graph, graph_of, shells)
            flow = Flow(canon, frozenset(k.path for k in self.layers.values()))
            for match in self.gate.patterns[self.pattern].find(flow):
                if isinstance(match, Match) and match.layers == self.layers:
                    return replace(match, layers=self.layers), canon
        raise Refused(
            f"the {self.name} place at {', '.join(k.path for k in self.layers.values())} is not there in this call"
        )


def _swept(module: nn.Module, graph: fx.Graph, graph_of: GraphOf, shells: bool = True) -> Canon:
    canon = Canon(graph_of, module.get_submodule, shells)
    canon.run("", graph)
    return canon


def children_of(module: nn.Module, graph: fx.Graph) -> GraphOf:
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
