"""What may fill a hole of a pattern besides a tensor, a linear layer and an activation. Each is found by dataflow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from gatec.match.attention import attention
from gatec.match.flow import Flow
from gatec.match.terms import Linear, Part, Term

Filling = tuple[Linear | Part, Term]  # what fills the hole, and the value that it is called on


class Hole:
    """A pattern calls its holes; what a subclass says is which terms are such a call, and of what."""

    def __call__(self, x: Any) -> Any:
        raise TypeError("a hole is called in a pattern only")

    @classmethod
    def fillings(cls, flow: Flow, term: Term, x: Term | None) -> Iterator[Filling]:
        """Each way in which `term` is this hole's call; `x` is the value it must be called on, where that is settled."""
        raise NotImplementedError


class Branch(Hole):
    """A residual branch: whatever is computed from the value that it is added to."""

    @classmethod
    def fillings(cls, flow: Flow, term: Term, x: Term | None) -> Iterator[Filling]:
        if x is not None and (x, term) in flow.branches:
            yield flow.branches[x, term][1], x


class Block(Hole):
    """A module in a chain of modules that returns the form of what it takes."""

    @classmethod
    def fillings(cls, flow: Flow, term: Term, x: Term | None) -> Iterator[Filling]:
        if term in flow.blocks:
            call = flow.blocks[term]
            yield Part(call.path), call.taken[0]


class Attention(Hole):
    """What attention returned; it is called on the value that its queries are projected from."""

    @classmethod
    def fillings(cls, flow: Flow, term: Term, x: Term | None) -> Iterator[Filling]:
        found = attention(term)
        if found is not None:
            yield found


class Features(Hole):
    """A linear layer with all that it gives, as a module or as a bare weight."""

    @classmethod
    def fillings(cls, flow: Flow, term: Term, x: Term | None) -> Iterator[Filling]:
        if term.op == "linear" and not term.data.packed:
            called = flow.calls.get(term.data.path)
            yield Part(term.data.path if called and called.given.data == term.data else term.data.weight), term.args[0]


class Pointwise(Hole):
    """A convolution that sees one position at a time: a linear layer over channels, which stand before the positions."""

    @classmethod
    def fillings(cls, flow: Flow, term: Term, x: Term | None) -> Iterator[Filling]:
        conv = term.data
        if term.op != "conv" or conv.groups != 1 or any(size != 1 for size in conv.kernel):
            return
        layer = flow.canon.module_of(conv.path)
        plain = repr(((1,) * len(conv.kernel), (0,) * len(conv.kernel), (1,) * len(conv.kernel)))
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and conv.given == plain:
            rows, positions = (0, conv.out, 1), len(conv.kernel)
            yield Linear(conv.path, conv.weight, conv.bias, False, conv.out, rows, conv.fan, positions), term.args[0]


class Projection(Features):
    """The linear layer that what attention returned goes through, with the number of heads of that attention."""

    @classmethod
    def fillings(cls, flow: Flow, term: Term, x: Term | None) -> Iterator[Filling]:
        for part, value in super().fillings(flow, term, x):
            found = attention(value)
            if found is not None:
                yield Part(part.path, found[0].size), value


def of_class(kinds: tuple[type[nn.Module], ...]) -> type[Hole]:
    """The hole for a call of a module of one of these classes."""

    class Layer(Hole):
        @classmethod
        def fillings(cls, flow: Flow, term: Term, x: Term | None) -> Iterator[Filling]:
            for call in flow.given.get(term, ()):
                if isinstance(flow.canon.module_of(call.path), kinds):
                    yield Part(call.path), call.taken[0]

    return Layer
