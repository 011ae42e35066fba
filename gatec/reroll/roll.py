"""One loop for all steps at once: what depends on no state is hoisted, what is linear in the state becomes a recurrence."""

from __future__ import annotations

import operator
from functools import cached_property
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from gatec.capture.guards import hold, writes
from gatec.errors import Refused
from gatec.match.terms import storage
from gatec.recurrence import linear_recurrence
from gatec.reroll.affine import Affine
from gatec.reroll.attention import Attention, attention
from gatec.reroll.batch import DICE, batched, name_of
from gatec.reroll.index import counts, read, write
from gatec.reroll.loops import Carry, Count, Each, Local, Loop, Same, leaves
from gatec.reroll.maker import Maker

MOST = 2**30  # bytes of all states of one recurrence
Home = dict[fx.Node, tuple[fx.Node, int]]


class Roll:
    """Values of a loop by offset: rolled nodes, or what is the same at every step."""

    def __init__(self, maker: Maker, loop: Loop, home: Home) -> None:
        self.maker, self.loop, self.home = maker, loop, home
        moves = [c for a in loop.arguments for c in leaves(a) if isinstance(c, Count)]
        self.down = bool(moves) and all(c.by < 0 for c in moves)
        self.known: dict[int, Any] = {}
        self.shifted: dict[int, fx.Node] = {}
        self.attended: dict[int, Attention | None] = {}
        self.states = 0

    @cached_property
    def cycles(self) -> dict[int, tuple[frozenset[int], int]]:
        """For each offset on a cycle through the steps: all of the cycle, and the one that is carried."""
        graph = nx.DiGraph([(k, j) for k, j, _ in self.loop.links])
        found: dict[int, tuple[frozenset[int], int]] = {}
        for part in nx.strongly_connected_components(graph):
            carried = {k for k, j, later in self.loop.links if later and k in part and j in part}
            if len(carried) > 1:
                lines = sorted({self.where(k) for k in carried})
                raise Refused(f"values that are carried depend on each other ({', '.join(lines)})")
            for j in part if carried else ():
                found[j] = frozenset(part), next(iter(carried))
        return found

    def where(self, offset: int) -> str:
        return str(self.loop.node(offset).meta.get("where"))

    def index(self, step: int) -> int:
        """Where a step stands in a rolled value; the last one is -1."""
        last = len(self.loop) - 1
        at = last - step if self.down else step
        return -1 if at == last else at

    # -- values --------------------------------------------------------------------------------------------------------

    def value(self, offset: int) -> Any:
        self.attend(offset)
        if offset not in self.known:
            _, carried = self.cycles.get(offset, (None, None))
            self.maker.where = self.where(offset)
            self.known[offset] = self.scan(offset) if carried == offset else self.hoisted(offset)
        return self.known[offset]

    def attend(self, offset: int) -> None:
        """Where a matrix of state is carried and only read, the reads are known before they are asked for."""
        for _, carried in set(self.cycles.values()):
            if carried not in self.attended:
                self.attended[carried] = None  # what it is made of does not depend on it
                self.attended[carried] = found = attention(self, self.cycles[carried][0], carried)
                self.known |= {} if found is None else found.reads

    def last(self, offset: int) -> fx.Node | None:
        """The last state of what is only read inside of the loop, as one step."""
        self.attend(offset)
        found = self.attended.get(offset)
        return None if found is None else found.last

    def hoisted(self, offset: int) -> Any:
        node, (args, kwargs) = self.loop.node(offset), self.loop.arguments[offset]
        self.allowed(node)
        try:
            if name_of(node) in ("getitem", "select", "narrow") and (found := self.taken(node, args)) is not None:
                return found
            given, named = [self.operand(a) for a in args], {k: self.operand(v) for k, v in kwargs.items()}
            if not any(v in self.maker.rolled for v in leaves([given, named]) if isinstance(v, fx.Node)):
                return self.loop.steps[0][offset]
            return batched(self.maker, node, given, named, len(self.loop))
        except Refused as e:
            raise Refused(located(e, self.where(offset))) from None

    def allowed(self, node: fx.Node) -> None:
        name = name_of(node)
        if writes(node) and node.kwargs.get("out", node) is not None:
            raise Refused(f"{name} writes in place at every step ({node.meta.get('where')})")
        if name in DICE or name.startswith("rand"):
            raise Refused(f"it draws random numbers at every step ({node.meta.get('where')})")

    def taken(self, node: fx.Node, args: Any) -> Any:
        """What is read at a place that moves with the steps; None where it is an ordinary operation."""
        base, *rest = args
        if not isinstance(base, Same) or not isinstance(base.value, fx.Node):
            return None
        if name_of(node) == "getitem":
            index = rest[0]
        elif len(rest) >= 2 and isinstance(rest[0], Same) and isinstance(rest[1], Count):
            place = rest[1] if name_of(node) == "select" else _window(rest)
            dim = rest[0].value % base.value.meta["val"].ndim
            index = (*(slice(None),) * dim, place)
        else:
            return None
        if not counts(index):
            return None
        return read(self.maker, self.outer(base.value), index, len(self.loop), self.down)

    def operand(self, kind: Any) -> Any:
        if isinstance(kind, Same):
            return self.outer(kind.value)
        if isinstance(kind, Local):
            return self.value(kind.offset)
        if isinstance(kind, Carry):
            return self.before(kind)
        if isinstance(kind, Each):
            return self.sequence(kind.nodes)
        if isinstance(kind, Count):
            raise Refused("it computes with the number of the step")
        if isinstance(kind, slice):
            return slice(
                *(self.operand(p) if isinstance(p, (Same, Count)) else p for p in (kind.start, kind.stop, kind.step))
            )
        if isinstance(kind, (tuple, list)):
            return type(kind)(map(self.operand, kind))
        return kind

    def outer(self, value: Any) -> Any:
        """A value from outside; a step of an earlier loop is taken from that loop's rolled value."""
        if value in self.home if isinstance(value, fx.Node) else False:
            whole, at = self.home[value]
            return self.maker.make(operator.getitem, whole, at, rolled=False)
        return value

    def before(self, kind: Carry) -> Any:
        """What each step finds of the step before."""
        if kind.offset not in self.shifted:
            value = self.value(kind.offset)
            if value not in self.maker.rolled:
                raise Refused("its first step starts from something else")
            first = self.outer(kind.first)
            self.shifted[kind.offset] = shift(self.maker, value, first, self.down)
        return self.shifted[kind.offset]

    def sequence(self, nodes: tuple[fx.Node, ...]) -> fx.Node:
        """A value from outside for every step: read from one tensor where they are its parts, else stacked."""
        homes = [self.home.get(n) for n in nodes]
        if homes[0] is not None and all(h is not None and h[0] is homes[0][0] for h in homes):
            size = homes[0][0].meta["val"].shape[0]
            places = [h[1] % size for h in homes if h is not None]
            by = places[1] - places[0]
            if by and all(p == places[0] + t * by for t, p in enumerate(places)):
                return read(self.maker, homes[0][0], Count(places[0], by), len(nodes), self.down)
        elif all(n.target is operator.getitem for n in nodes):
            try:
                (base, index), _ = Loop([[n] for n in nodes]).arguments[0]
            except Refused:
                index = None
            if index is not None and isinstance(base, Same) and counts(index):
                return read(self.maker, self.outer(base.value), index, len(nodes), self.down)
        parts = [self.outer(n) for n in (reversed(nodes) if self.down else nodes)]
        return self.maker.make(torch.stack, parts)

    # -- the recurrence ------------------------------------------------------------------------------------------------

    def scan(self, offset: int) -> fx.Node:
        """All states of the one value that a cycle carries."""
        cycle, _ = self.cycles[offset]
        state: Tensor = self.loop.node(offset).meta["val"]
        affine = Affine(self, cycle, offset, state)
        decay, new = affine.of(offset)
        carry = next(k for j in cycle for k in leaves(self.loop.arguments[j]) if k == affine.carry)
        maker, steps = self.maker, len(self.loop)
        self.states += steps * state.numel() * state.element_size()
        if self.states > MOST:
            raise Refused(f"its states at all steps would take {self.states / 2**30:.1f} GB ({self.where(offset)})")
        maker.where = self.where(offset)
        if new is None and decay not in maker.rolled:
            raise Refused(f"nothing in it changes from step to step ({maker.where})")
        new = maker.make("new_zeros", decay, ()) if new is None else maker.raised(new, state.ndim)
        decay = maker.raised(decay, state.ndim) if isinstance(decay, fx.Node) else decay
        out = maker.make(linear_recurrence, decay, new, self.outer(carry.first), dim=0, reverse=self.down)
        value = out.meta["val"]
        if value.shape != (steps, *state.shape) or value.dtype != state.dtype:
            raise Refused(f"its state changes its form from {tuple(value.shape[1:])} {value.dtype} ({maker.where})")
        return out

    # -- effects -------------------------------------------------------------------------------------------------------

    def effects(self) -> list[tuple[fx.Node, Any, Any]]:
        """(tensor, index, value) of what each step writes to a place of its own; decisions are made once."""
        found = []
        for j, (args, _) in enumerate(self.loop.arguments):
            node = self.loop.node(j)
            self.maker.where = self.where(j)
            if node.target is hold:
                self.decide(args)
            elif node.target is operator.setitem:
                base, index, value = args
                if not isinstance(base, Same) or not counts(index):
                    raise Refused(f"it writes to the same place at every step ({self.where(j)})")
                self.unread(j, base.value)
                found.append((base.value, index, self.operand(value)))
            else:
                self.allowed(node)
        return found

    def decide(self, args: Any) -> None:
        asked = self.operand(args[0])
        if not all(isinstance(a, Same) for a in args[1:]) or asked in self.maker.rolled:
            raise Refused(f"Python decides something at every step ({self.maker.where})")
        self.maker.make(hold, asked, *(a.value for a in args[1:]), rolled=False)

    def unread(self, offset: int, base: fx.Node) -> None:
        """Refuse where what is written is also read in the loop."""
        memory = storage(base)
        for j, node in enumerate(self.loop.steps[-1]):
            reads = [n for n in node.all_input_nodes if n is base or (memory is not None and storage(n) == memory)]
            if j != offset and reads and node.target is not operator.setitem:
                raise Refused(f"it reads what it writes ({self.where(j)})")

    def store(self, base: fx.Node, index: Any, value: Any) -> None:
        write(self.maker, base, index, value, len(self.loop), self.down)


def shift(maker: Maker, value: fx.Node, first: Any, down: bool) -> fx.Node:
    """The values one step later, with `first` at the start."""
    edge = maker.make(operator.getitem, value, slice(0, 1))
    if not isinstance(first, fx.Node):
        start = maker.make("full_like", edge, first)
    else:
        start = maker.make("expand_as", maker.make("to", first, edge), edge)
    rest = maker.make(operator.getitem, value, slice(1, None) if down else slice(None, -1))
    return maker.make(torch.cat, [rest, start] if down else [start, rest], 0)


def located(error: Refused, where: str) -> str:
    text = str(error)
    return text if text.endswith(")") and ":" in text else f"{text} ({where})"


def _window(rest: Any) -> slice:
    count, width = rest[1], rest[2].value
    return slice(count, Count(count.first + width, count.by), None)
