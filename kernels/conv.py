"""Depthwise convolution: a few taps along one or two dimensions, of what is computed of operands, under pointwise work.

The result is as long as what is convolved (causal, or with as much padding on both sides), and may order its dimensions in
another way. Every tap is a read beside a place, so no layout needs a copy. Backward: the slope of the convolution first,
then the weights' gradients as partial sums of each program, then those of what was convolved; all of it is recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gatec.derive import Derived
from gatec.kernel import Kernel
from gatec.kernels.apart import spelled
from gatec.kernels.functions import Wide, needed
from gatec.kernels.spelling import wide_of
from gatec.kernels.taps import BACKWARD, BESIDE, FORWARD, HEAD, KERNEL, LAUNCHERS, SUMS
from gatec.kernels.tile import CHECKS, MERGE, REDUCE, TILE

AT = "row, col, rows, shape"
BESIDES = "{}_beside"


@dataclass(frozen=True)
class Plan:
    """`before` are convolved, `behind` are read under the result; `shifts` say where each tap reads, along each of `axes`.

    `order`: which dimension of what is convolved each dimension of the result is.
    """

    operands: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    before: tuple[str, ...]
    behind: tuple[str, ...]
    weight: str
    bias: str | None
    result: str
    order: tuple[int, ...]
    channel: int
    axes: tuple[int, ...]
    shifts: tuple[tuple[int, ...], ...]


def render(name: str, origin: str, plan: Plan, before: Derived, behind: Derived) -> Kernel:
    """`before(*plan.before)` is convolved, `behind(result, *plan.behind)` is the region's result."""
    wide: Wide = "float64" if "float64" in (wide_of(before.forward), wide_of(behind.forward)) else "float32"
    made = Conv(name, plan, before, behind, wide)
    head = HEAD.format(
        name=name, origin=origin, dtypes=plan.dtypes, wide=wide, order=plan.order, channel=plan.channel, axes=plan.axes,
        taps=len(plan.shifts), tile=512 if len(plan.shifts) <= 8 else 128, out=behind.forward.output_node().meta["val"][0].dtype,
        seen=before.forward.output_node().meta["val"][0].dtype,
    )  # fmt: skip
    kernels = [made.forward(), made.slopes(), made.sums(), made.inputs()]
    functions = needed((line for text in kernels for line in text.splitlines()), wide)
    launchers = [CHECKS, MERGE, REDUCE, LAUNCHERS, made.launch(), made.pull()]
    parts = [head, TILE, BESIDE, *functions, *kernels, *launchers]
    return Kernel(name, "\n\n\n".join(part.strip("\n") for part in parts) + "\n")


class Conv:
    """The four kernels: forward, the slope of the convolution, sums for its weights, and the slope of what is convolved."""

    def __init__(self, name: str, plan: Plan, before: Derived, behind: Derived, wide: Wide) -> None:
        self.name, self.plan, self.before, self.behind, self.wide = name, plan, before, behind, wide
        self.near = [BESIDES.format(n) for n in plan.before]
        self.constants = [plan.weight, *([plan.bias] if plan.bias else [])]
        results = behind.backward.output_node().meta["val"]
        self.behind_grads = [n for n, g in zip(plan.behind, results[1:], strict=True) if g is not None]
        results = before.backward.output_node().meta["val"]
        self.before_grads = [n for n, g in zip(plan.before, results, strict=True) if g is not None]

    def kernel(self, name: str, pointers: Sequence[str], near: Sequence[str], body: Sequence[str], **more: str) -> str:
        axes = range(len(self.plan.axes))
        lengths = [f"length{i}" for i in axes]
        return (SUMS if more else KERNEL).format(
            name=f"{self.name}_{name}", pointers=", ".join(pointers),
            strides=", ".join(f"{p}_at" for p in [*pointers, *(f"axis{i}" for i in axes)]),
            alongs=", ".join(f"{p}_along{i}" for p in near for i in axes),
            lengths=", ".join(f'"{n}"' for n in lengths), lengths_plain=", ".join(lengths),
            body="\n".join(f"{'        ' if more else '    '}{line}" for line in body), **more,
        )  # fmt: skip

    def places(self) -> list[str]:
        axes = range(len(self.plan.axes))
        return ["always = tl.full((1, 1), True, tl.int1)", *(f"axis{i} = place({AT}, axis{i}_at)[0]" for i in axes)]

    def read(self, pointer: str, name: str) -> str:
        return f"{name} = read({pointer}, {AT}, {pointer}_at).to(tl.{self.wide})"

    def tap(self, k: int, *, back: bool = False) -> tuple[list[str], str]:
        """Where a tap reads, and whether that exists; `back` is the way from what was read."""
        shifts = [-s if back else s for s in self.plan.shifts[k]]
        inside = " & ".join(f"(axis{i} + {s} >= 0) & (axis{i} + {s} < length{i})" for i, s in enumerate(shifts))
        return [f"inside_{k} = {inside.replace('+ -', '- ')}"], f"inside_{k}"

    def shift(self, pointer: str, k: int, *, back: bool = False) -> str:
        shifts = [-s if back else s for s in self.plan.shifts[k]]
        return " + ".join(f"tl.full((1, 1), {s}, tl.int64) * {pointer}_along{i}" for i, s in enumerate(shifts))

    def weight(self, k: int) -> str:
        w = self.plan.weight
        return f"beside({w}, {AT}, {w}_at, {k}, always).to(tl.{self.wide})"

    def tapped(self, k: int) -> tuple[list[str], str]:
        """What tap `k` sees of what is convolved."""
        lines, inside = self.tap(k)
        renamed = {}
        for operand, near in zip(self.plan.before, self.near, strict=True):
            renamed[operand] = f"{near}_{k}"
            shift = self.shift(near, k)
            lines.append(f"{near}_{k} = beside({near}, {AT}, {near}_at, {shift}, {inside}).to(tl.{self.wide})")
        own, results = spelled(self.before.forward, f"tap{k}_", renamed)
        value = str(results[0])
        return [*lines, *own], value if not own else f"tl.where({inside}, {value}, 0.0)"

    def convolved(self) -> list[str]:
        result, bias = self.plan.result, self.plan.bias
        lines = [*self.places(), f"{result} = tl.zeros((ROWS, COLS), tl.{self.wide})"]
        if bias:
            lines.append(f"{result} += read({bias}, {AT}, {bias}_at).to(tl.{self.wide})")
        for k in range(len(self.plan.shifts)):
            seen, value = self.tapped(k)
            lines += [*seen, f"{result} += {self.weight(k)} * {value}"]
        return lines

    def forward(self) -> str:
        body = [*self.convolved(), *(self.read(n, f"{n}_now") for n in self.plan.behind)]
        lines, results = spelled(self.behind.forward, "out_", {n: f"{n}_now" for n in self.plan.behind})
        body += [*lines, f"write(out, {self._full(results[0])}, {AT}, out_at)"]
        return self.kernel("forward", ["out", *self.near, *self.constants, *self.plan.behind], self.near, body)

    def slopes(self) -> str:
        body = [*self.convolved(), *(self.read(n, f"{n}_now") for n in (*self.plan.behind, "grad"))]
        renamed = {n: f"{n}_now" for n in (*self.plan.behind, "grad")}
        lines, results = spelled(self.behind.backward, "slope_", renamed)
        body += [*lines, f"write(slope, {self._full(results[0])}, {AT}, slope_at)"]
        body += self.written(self.plan.behind, self.behind_grads, results[1:])
        outs = [f"{n}_grad" for n in self.behind_grads]
        pointers = ["slope", *outs, "grad", *self.near, *self.constants, *self.plan.behind]
        return self.kernel("slopes", pointers, self.near, body)

    def written(self, names: Sequence[str], known: Sequence[str], results: Sequence[str | None]) -> list[str]:
        """Only the gradients that are wanted."""
        lines = []
        for n, value in zip(names, results, strict=True):
            if n in known:
                lines += [f"if {n}_grad is not None:", f"    write({n}_grad, {self._full(value)}, {AT}, {n}_grad_at)"]
        return lines

    def sums(self) -> str:
        count = len(self.plan.shifts)
        body = [*self.places(), self.read("slope", "slope_now")]
        for k in range(count):
            seen, value = self.tapped(k)
            body += [*seen, f"tap_{k} += tl.sum(tl.where(row < rows, slope_now * {value}, 0.0), 0)[None, :]"]
        body.append(f"tap_{count} += tl.sum(slope_now, 0)[None, :]")
        start = [f"    tap_{k} = tl.zeros((1, COLS), tl.{self.wide})" for k in range(count + 1)]
        place = f"(program * {count + 1} + {{}}) * width + col"
        end = [
            f"    tl.store(sums + {place.format(k)}, tap_{k}.to(sums.dtype.element_ty), mask=here)"
            for k in range(count + 1)
        ]
        return self.kernel("sums", ["slope", *self.near], self.near, body, start="\n".join(start), end="\n".join(end))

    def inputs(self) -> str:
        """Every tap backwards, from the slope of the result to that of what it read."""
        body = [*self.places(), f"carried = tl.zeros((ROWS, COLS), tl.{self.wide})"]
        for k in range(len(self.plan.shifts)):
            lines, inside = self.tap(k, back=True)
            found = f"beside(slope, {AT}, slope_at, {self.shift('slope', k, back=True)}, {inside}).to(tl.{self.wide})"
            body += [*lines, f"carried += {self.weight(k)} * {found}"]
        body += [self.read(near, f"{near}_now") for near in self.near]
        renamed = {n: f"{near}_now" for n, near in zip(self.plan.before, self.near, strict=True)}
        lines, results = spelled(self.before.backward, "in_", {**renamed, "grad": "carried"})
        body += [*lines, *self.written(self.plan.before, self.before_grads, results)]
        outs = [f"{n}_grad" for n in self.before_grads]
        return self.kernel("inputs", [*outs, "slope", *self.near, self.plan.weight], ["slope"], body)

    def _full(self, value: str | None) -> str:
        return f"tl.zeros((ROWS, COLS), tl.{self.wide}) + ({value})"

    # -- launchers --------------------------------------------------------------------------------------------------

    def views(self) -> str:
        lines = [f"{near} = seen({n})" for n, near in zip(self.plan.before, self.near, strict=True)]
        return "\n    ".join([*lines, f"{self.plan.weight}_taps = {self.plan.weight}.contiguous()"])

    def constant_pairs(self) -> list[str]:
        pairs = [f"({self.plan.weight}_taps, TAPS)"]
        return [*pairs, f"({self.plan.bias}.contiguous(), 1)"] if self.plan.bias else pairs

    def launch(self) -> str:
        return FORWARD.format(
            name=self.name, operands=", ".join(self.plan.operands), views=self.views(),
            shapes=", ".join(f"{n}.shape" for n in (*self.near, *self.plan.behind)),
            shaped="".join(f"{n}, " for n in (*self.near, *self.plan.behind)), read=self._read(), near=", ".join(self.near),
        )  # fmt: skip

    def _read(self) -> str:
        near = [f"({n}, None)" for n in self.near]
        return ", ".join([*near, *self.constant_pairs(), *(f"({n}, None)" for n in self.plan.behind)])

    def pull(self) -> str:
        plan, needs = self.plan, {n: f"needs[{i}]" for i, n in enumerate(self.plan.operands)}
        constants = {plan.weight: f"weight_grad(totals, {plan.weight})"}
        if plan.bias:
            constants[plan.bias] = f"bias_grad(totals, {plan.bias})"
        rooms = [f"    {n}_grad = room_for_gradient({n}, full) if {needs[n]} else None" for n in self.behind_grads]
        rooms += [f"    {n}_in_grad = room_for_gradient({BESIDES.format(n)}, full) if {needs[n]} else None"
                  for n in self.before_grads]  # fmt: skip
        settle = [f"    {n}_grad = reduced({n}_grad, {n})" for n in self.behind_grads]
        settle += [f"    {n}_in_grad = unseen({n}_in_grad, {n})" for n in self.before_grads]
        results = {n: [*([f"{n}_grad"] * (n in self.behind_grads)), *([f"{n}_in_grad"] * (n in self.before_grads))]
                   for n in plan.operands}  # fmt: skip
        text = {n: (" + ".join(r) if len(r) < 2 else f"{' + '.join(r)} if {needs[n]} else None") or "None"
                for n, r in results.items()}  # fmt: skip
        text |= {n: f"{grad} if {needs[n]} else None" for n, grad in constants.items()}
        return BACKWARD.format(
            name=self.name, operands=", ".join(plan.operands), views=self.views(),
            needs=tuple(n in constants or bool(results[n]) for n in plan.operands),
            shaped="".join(f"{n}, " for n in (*self.near, *plan.behind)), rooms="\n".join(rooms),
            slopes_out="".join(f"({n}_grad, None), " for n in self.behind_grads),
            inputs_out="".join(f"({n}_in_grad, None), " for n in self.before_grads),
            read=self._read(), near=", ".join(self.near),
            inputs_read=", ".join([*(f"({n}, None)" for n in self.near), f"({plan.weight}_taps, TAPS)"]),
            weights_needed=" or ".join(needs[n] for n in constants),
            inputs_needed=" or ".join(needs[n] for n in self.before_grads) or "False",
            settle="\n".join(settle), results=", ".join(text[n] for n in plan.operands),
        )  # fmt: skip
