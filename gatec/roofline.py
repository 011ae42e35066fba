"""What a region costs: bytes, operations and launches of its nodes one by one, and of one kernel in their place.

The time of work that memory bounds is bytes over bandwidth, of work that arithmetic bounds operations over rate; the larger of the
two is expected (Williams, Waterman, Patterson 2009, "Roofline").
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, fx

from gatec.errors import GatecError
from gatec.projections import multiplies
from gatec.regions import Region


@dataclass(frozen=True)
class Machine:
    """`bandwidth` in bytes, `rate` in float32 operations outside of matrix products, `matrix` in bfloat16 inside, per second."""

    name: str
    bandwidth: float
    rate: float
    matrix: float = math.inf


CONTRACTIONS = {"grouped_linear", "grouped_mm", "_grouped_mm", "bmm"}

# H200: a copy was measured at 4.3 TB/s and a product at 788 TFLOP/s; the others are their makers' figures.
MACHINES = {
    "h200": Machine("H200", 4.3e12, 67e12, 788e12),
    "h100": Machine("H100 SXM", 3.35e12, 67e12, 989e12),
    "a100": Machine("A100 80GB SXM", 2.04e12, 19.5e12, 312e12),
    "l4": Machine("L4", 0.3e12, 30e12, 121e12),
    "mi300x": Machine("MI300X", 5.3e12, 163e12, 1307e12),
}


@dataclass(frozen=True)
class Price:
    """One call of a region: `before` and `after` are the bytes that its nodes, and its kernels, read and write.

    `products` are the operations of matrix products and `apart` the bytes that they move by themselves, as part of `before`.
    """

    launches: int
    before: int
    after: int
    flops: int
    products: int = 0
    apart: int = 0
    kernels: int = 1

    @property
    def saved(self) -> int:
        return self.before - self.after

    @property
    def intensity(self) -> float:
        """Operations per byte of the one kernel."""
        return (self.flops + self.products) / self.after if self.after else 0.0

    def seconds(self, machine: Machine, *, fused: bool = True) -> float:
        """Expected on a machine, launches not counted."""
        if fused:
            return max(self.after / machine.bandwidth, self.flops / machine.rate, self.products / machine.matrix)
        products = max(self.apart / machine.bandwidth, self.products / machine.matrix)
        return products + max((self.before - self.apart) / machine.bandwidth, self.flops / machine.rate)

    def text(self, machine: Machine) -> str:
        """A line for people: launches, bytes, intensity, and the expected time before and after."""
        times = (in_seconds(self.seconds(machine, fused=f)) for f in (False, True))
        return (f"{self.launches} launches -> {self.kernels}, {in_bytes(self.before)} -> {in_bytes(self.after)}, "
                f"{self.intensity:.2f} flop/B, {' -> '.join(times)} on {machine.name}")  # fmt: skip


def price(region: Region) -> Price:
    """From the sizes in the captured call."""
    work = [n for n in region.nodes if isinstance(n.meta.get("val"), Tensor) and not _free(n)]
    before = sum(_bytes([n, *n.all_input_nodes]) for n in work)
    products = [n for n in work if _contracts(n)]
    flops = sum(_elements(n) for n in work if n not in products)
    apart = sum(_bytes([n, *n.all_input_nodes]) for n in products)
    again = region.inputs if region.anchor == "scan" else ()  # its chunks are read twice
    after = _bytes([*region.outputs, *region.inputs]) + _bytes(again) + 2 * _bytes(region.within)
    return Price(len(work), before, after, flops, sum(map(_multiplications, products)), apart, region.launches)


def machine(name: str) -> Machine:
    if name.lower() not in MACHINES:
        raise GatecError("a machine whose bandwidth is known", found=repr(name), hint=", ".join(MACHINES))
    return MACHINES[name.lower()]


def _free(node: fx.Node) -> bool:
    """A cast to the type that a value has, a detach."""
    source = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    same = isinstance(source, Tensor) and source.dtype == node.meta["val"].dtype
    return name == "detach" or (same and name in ("to", "float", "half", "double", "bfloat16", "type_as"))


def _bytes(nodes: Iterable[fx.Node]) -> int:
    values = (n.meta.get("val") for n in dict.fromkeys(nodes))
    return sum(math.prod(map(int, v.shape)) * v.element_size() for v in values if isinstance(v, Tensor))


def _elements(node: fx.Node) -> int:
    """What a node computes: an operation for every element that it reads or makes, whichever are more."""
    values = [v for n in (node, *node.all_input_nodes) if isinstance(v := n.meta.get("val"), Tensor)]
    return max(math.prod(map(int, v.shape)) for v in values)


def _contracts(node: fx.Node) -> bool:
    """Whether a node is a product of matrices: of one, of one for each group of rows, or of a batch of them."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return multiplies(node) or name in CONTRACTIONS


def _multiplications(node: fx.Node) -> int:
    """Of a matrix product: a multiplication and an addition for each element of the result and of a row."""
    return 2 * math.prod(map(int, node.meta["val"].shape)) * int(node.all_input_nodes[0].meta["val"].shape[-1])


def in_bytes(size: float) -> str:
    return _scaled(size, ("B", "kB", "MB", "GB", "TB"))


def in_seconds(seconds: float) -> str:
    return _scaled(seconds * 1e9, ("ns", "us", "ms", "s"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {units[-1]}"
