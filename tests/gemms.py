"""Gates of projections, for tests of the GEMM kernel: what is multiplied, the epilogue, and the shapes of all operands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from equations import geglu, highway, residual, swiglu
from torch import Tensor
from torch.nn import functional as F

from gatec.derive import derive
from gatec.kernel import Kernel
from gatec.kernels.gemm import render
from gatec.kernels.products import Plan, Product


@dataclass(frozen=True)
class Gated:
    """`fn(*totals, *beside)`; `beside` are names of operands that the epilogue reads."""

    name: str
    fn: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    products: tuple[Product, ...]
    beside: tuple[str, ...] = ()

    def plan(self, dtype: torch.dtype) -> Plan:
        return Plan(tuple(self.shapes), (dtype,) * len(self.shapes), self.products)

    def __call__(self, *operands: Tensor) -> Tensor:
        known, totals = dict(zip(self.shapes, operands, strict=True)), dict[str, Tensor]()
        for p in self.products:
            y = F.linear(known[p.rows], known[p.weight], known[p.bias] if p.bias else None)
            totals[p.total] = totals[p.total] + y if p.total in totals else y
        return self.fn(*totals.values(), *(known[x] for x in self.beside))

    def kernel(self, dtype: torch.dtype) -> Kernel:
        rows = self.shapes[self.products[0].rows][:-1]
        full = (*rows, self.shapes[self.products[0].weight][0])
        plan = self.plan(dtype)
        shapes = [full] * len(plan.totals) + [self.shapes[x] for x in self.beside]
        names = [*plan.totals, *self.beside]
        derived = derive(named(self.fn, names), [torch.empty(s, dtype=dtype) for s in shapes])
        return render(self.name, "tests", plan, derived.forward, derived.backward)


def named(fn: Callable[..., Tensor], names: Sequence[str]) -> Callable[..., Tensor]:
    """The same function with its parameters called like the operands."""
    space = {"fn": fn}
    exec(f"def epilogue({', '.join(names)}): return fn({', '.join(names)})", space)
    return space["epilogue"]  # type: ignore[return-value]


def case(name: str, fn: Callable[..., Tensor], lead: tuple[int, ...], depth: int, columns: int, products: Sequence[str],
         beside: dict[str, tuple[int, ...]] | None = None) -> Gated:  # fmt: skip
    """`products` as "total = rows @ weight" or "total = rows @ weight + bias"."""
    shapes: dict[str, tuple[int, ...]] = {}
    found = []
    for text in products:
        total, _, right = text.partition(" = ")
        rows, _, layer = right.partition(" @ ")
        weight, _, bias = layer.partition(" + ")
        shapes |= {rows: (*lead, depth), weight: (columns, depth), **({bias: (columns,)} if bias else {})}
        found.append(Product(total, rows, weight, bias or None))
    return Gated(name, fn, shapes | (beside or {}), tuple(found), tuple(beside or ()))


def gates(rows: int = 37, depth: int = 67, columns: int = 53) -> list[Gated]:
    two = ["gate = x @ v", "value = x @ w"]
    biased = ["gate = x @ v + a", "value = x @ w + b"]
    square, lead = (rows, columns), (rows,)
    return [
        case("swiglu", swiglu, lead, depth, columns, two),
        case("geglu", geglu, lead, depth, columns, biased),
        case("highway", highway, lead, columns, columns, ["logit = x @ v + a", "value = x @ w"], {"x": square}),
        case("output_gate", lambda g, y: y * torch.sigmoid(g), lead, depth, columns, ["g = x @ v"], {"y": square}),
        case("residual", lambda h, x, s: residual(x, h, s), lead, depth, columns, ["branch = y @ w + b"],
             {"x": square, "s": (columns,)}),
        case("per_row", lambda h, x, s: residual(x, h, s), lead, depth, columns, ["branch = y @ w"], {"x": square, "s": (rows, 1)}),
        case("scalar", lambda h, x, s: x + torch.tanh(s) * h, lead, depth, columns, ["branch = y @ w"], {"x": square, "s": ()}),
        case("summed", lambda g, a, b: b + torch.sigmoid(g) * (a - b), lead, columns, columns,
             ["g = a @ v + c", "g = b @ w"], {"a": square, "b": square}),
        case("apart", swiglu, lead, depth, columns, ["gate = a @ v", "value = b @ w"]),
        case("three", lambda f, i, z: torch.sigmoid(f) * z + torch.sigmoid(i), lead, depth, columns,
             ["forget = x @ u", "enter = x @ v", "value = x @ w"]),
    ]  # fmt: skip
