"""The rewrite of one module: its loops over time for all steps at once, in every graph that is captured of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from gatec.capture import Call, trace, unit_of
from gatec.errors import Refused
from gatec.reroll.graph import Rerolled, reroll_graph
from gatec.reroll.lengths import every_length
from gatec.reroll.plain import GraphOf
from gatec.rewrite import children_of

NOTHING = "it has no loop over steps"


@dataclass
class Reroll:
    """Replayed on every captured graph of its unit; `told` says of the last one what was rolled and what was not."""

    name: str = "reroll"
    only_fuses: bool = True
    added: dict[str, str] = field(default_factory=dict)
    told: str = ""
    left: tuple[str, ...] = ()

    def __call__(self, module: nn.Module, graph: fx.Graph, call: Call, *, root: nn.Module | None = None,
                 graph_of: GraphOf | None = None, **_: Any) -> None:  # fmt: skip
        """Rewrite `graph`; a first time (`root` is given) that there is nothing to roll is a refusal."""
        found = reroll_graph(module, graph, graph_of or children_of(module, graph))
        self.left = tuple(found.left)
        if not found.steps:
            if root is not None:
                raise Refused("; ".join(found.left) or NOTHING)
            return
        self.told = f"{', '.join(dict.fromkeys(found.lines))}: {self._any_length(module, found, call)}"
        _moved(found.graph, graph)

    def born(self, site: Any) -> None:
        """A loop that is rolled adds nothing."""

    def _any_length(self, module: nn.Module, found: Rerolled, call: Call) -> str:
        if found.left:
            return "a graph for each length (a loop of it stays)"

        def again(other: Call) -> fx.Graph:
            return self._again(module, other).graph

        return every_length(found.graph, call, found.steps[0], frozenset(found.inside), again)

    def _again(self, module: nn.Module, call: Call) -> Rerolled:
        """The rolled graph of another call, with what was rewritten before this."""
        unit = unit_of(module)
        original = unit.original if unit else type(module)
        before = unit.rewrites if unit else []
        before = before[: before.index(self)] if self in before else before
        graph = trace(module, original.forward, call).graph
        for rewrite in before:
            rewrite(module, graph, call)
        found = reroll_graph(module, graph, children_of(module, graph))
        if found.left or not found.steps:
            raise Refused("; ".join(found.left) or NOTHING)
        return found


def _moved(source: fx.Graph, target: fx.Graph) -> None:
    """Make `target` the graph that `source` is."""
    for node in reversed(list(target.nodes)):
        target.erase_node(node)
    env: dict[fx.Node, fx.Node] = {}
    result = target.graph_copy(source, env)
    target.output(result)
    target.lint()
