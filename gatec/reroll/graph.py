"""All loops of one graph, each for all steps at once or left with the reason."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from gatec.errors import Refused
from gatec.reroll.gather import gather
from gatec.reroll.loops import Carry, Loop, leaves, loops
from gatec.reroll.maker import Maker
from gatec.reroll.plain import GraphOf, plain
from gatec.reroll.roll import Home, Roll
from gatec.rewrite import copied
from gatec.tidy import dead


@dataclass
class Rerolled:
    """A graph without its loops: how many steps each had, where it stood, and why others stayed."""

    graph: fx.Graph
    steps: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    inside: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)


def reroll_graph(module: nn.Module, graph: fx.Graph, graph_of: GraphOf) -> Rerolled:
    """A new graph; `graph` is not touched."""
    found = Rerolled(copied(graph))
    plain(found.graph, module, graph_of)
    home: Home = {}
    inside: set[fx.Node] = set()
    rolled: list[Loop] = []
    every = loops(found.graph)
    for loop in every:
        line = first_line(loop)
        try:
            _one(module, found.graph, loop, home, inside, every)
        except Refused as e:
            if _carries(loop):
                found.left.append(f"the loop of {len(loop)} steps at {line}: {e}")
            continue
        rolled.append(loop)
        inside |= set(loop.place)
        found.steps.append(len(loop))
        found.lines.append(line)
        found.inside |= loop.lines
    gather(Maker(module, found.graph, found.graph.output_node()), home, inside)
    for loop in rolled:
        _remove(found.graph, loop)
    dead(found.graph)
    found.graph.lint()
    return found


def _one(module: nn.Module, graph: fx.Graph, loop: Loop, home: Home, inside: set[fx.Node], others: list[Loop]) -> None:
    """Write the rolled form of one loop behind it, and note where its steps are to be found."""
    _whole(loop, others)
    maker = Maker(module, graph, loop.steps[-1][-1].next)
    roll = Roll(maker, loop, home)
    stored = roll.effects()
    own = set(loop.place)
    needed = [j for j in range(len(loop.steps[0])) if any(_read(step[j], own) for step in loop.steps)]
    last = {j: found for j in needed if (found := roll.last(j)) is not None}
    values = {j: roll.value(j) for j in needed if j not in last}
    if any(v not in maker.rolled for v in values.values()):
        raise Refused("a value of it is the same at every step")
    for what in stored:
        roll.store(*what)
    home |= {loop.steps[-1][j]: (value, -1) for j, value in last.items()}
    for j, value in values.items():
        home |= {step[j]: (value, roll.index(t)) for t, step in enumerate(loop.steps)}


def _read(node: fx.Node, own: set[fx.Node]) -> bool:
    return isinstance(node.meta.get("val"), Tensor) and any(u not in own for u in node.users)


def _carries(loop: Loop) -> bool:
    """Whether a step needs the one before, by a value or by what was written."""
    step = loop.steps[-1]
    stores = [n for n in step if n.target is operator.setitem]
    if any(n.args[0] in other.all_input_nodes for n in stores for other in step if other not in stores):
        return True
    try:
        return any(later for _, _, later in loop.links)
    except Refused:
        return True


def _whole(loop: Loop, others: list[Loop]) -> None:
    """Refuse the rest of a loop one of whose steps is not like the others."""
    for other in others:
        if other is loop or other.lines != loop.lines:
            continue
        first, second = (loop, other) if loop.steps[0][0] < other.steps[0][0] else (other, loop)
        starts = [k.first for args in second.arguments for k in leaves(args) if isinstance(k, Carry)]
        if any(str(n.meta.get("where")) in loop.lines and n.op != "placeholder" for n in starts):
            raise Refused(f"step {len(first)} of it is not like the others")


def _remove(graph: fx.Graph, loop: Loop) -> None:
    for step in reversed(loop.steps):
        for node in reversed(step):
            if not node.users:
                graph.erase_node(node)


def first_line(loop: Loop) -> str:
    return str(loop.steps[-1][0].meta.get("where"))


def candidates(graph: fx.Graph) -> bool:
    """Whether anything repeats in it that may be a loop over steps, or hands the same cell a state again and again."""
    return any(_carries(loop) for loop in loops(graph))
