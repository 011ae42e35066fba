"""Scan: h[t] = a[t] * h[t-1] + b[t] over one dimension, where a and b are pointwise functions of operands.

Time is cut into chunks, and three launches follow each other: every chunk is reduced to one step (the product of its
decays, its state from zero); those steps are walked; every chunk is walked again from its true start. All other
dimensions are the lanes of a tile, found through strides as gatec.kernels.tile finds them. Backward is the same
recurrence on r = a * dh from the last step to the first, so no decay has to be shifted; a, b and their gradients are
computed again from the operands, and only the states are saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from gatec.derive import Derived
from gatec.kernel import Kernel
from gatec.kernels.apart import spelled
from gatec.kernels.functions import Wide, needed
from gatec.kernels.spelling import wide_of
from gatec.kernels.steps import BACKWARD, CARRIES, FORWARD, HEAD, KERNEL, LAUNCHERS, REGION, STEPS, STILL
from gatec.kernels.tile import CHECKS, MERGE, REDUCE, TILE


@dataclass(frozen=True)
class Plan:
    """A scan along a known dimension as a function of `operands`, one of which may be the `first` state."""

    operands: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    first: str | None
    rank: int
    dim: int
    reverse: bool


def render(name: str, origin: str, decay: Derived, new: Derived, plan: Plan | None = None) -> Kernel:
    """The decay and the new part, each a function of operands as gatec.derive makes it; equal names are one operand."""
    dtypes = {x.name: x.meta["val"].dtype for d in (decay, new) for x in d.forward.find_nodes(op="placeholder")}
    wide: Wide = "float64" if "float64" in (wide_of(decay.forward), wide_of(new.forward)) else "float32"
    out = new.forward.output_node().meta["val"][0].dtype
    types = plan.dtypes if plan else tuple(dtypes.values())
    head = HEAD.format(name=name, origin=origin, dtypes=types, out=out, wide=wide)
    made = Scan(name, list(dtypes), decay, new, wide, plan)
    kernels = [made.reduce(), made.apply(), made.fold(), made.backward()]
    functions = needed((line for text in kernels for line in text.splitlines()), wide)
    parts = [
        head,
        TILE,
        *functions,
        STEPS,
        CARRIES,
        *kernels,
        CHECKS,
        MERGE,
        REDUCE,
        LAUNCHERS,
        *([STILL] if made.still else []),
        made.launch(),
        made.pull(),
        *([made.region(plan)] if plan else []),
    ]
    return Kernel(name, "\n\n\n".join(part.strip("\n") for part in parts) + "\n")


class Scan:
    """The four kernels of one scan; what differs is what a step reads, computes and writes."""

    def __init__(
        self, name: str, names: list[str], decay: Derived, new: Derived, wide: Wide, plan: Plan | None = None
    ) -> None:
        self.name, self.names, self.decay, self.new, self.wide, self.plan = name, names, decay, new, wide, plan
        known = {x.name for d in (decay, new) for x in d.backward.find_nodes(op="placeholder")
                 if x.name != "grad" and x.meta["val"].is_floating_point()}  # fmt: skip
        self.grads = {n: f"{n}_grad" for n in names if n in known}
        ranks = {x.name: x.meta["val"].dim() for d in (decay, new) for x in d.forward.find_nodes(op="placeholder")}
        self.still = {n for n in self.grads if plan and ranks[n] < plan.rank - plan.dim}  # no dimension of time

    def used(self, *graphs: fx.Graph) -> list[str]:
        read = {n.name for g in graphs for n in g.find_nodes(op="placeholder") if n.users}
        return [n for n in self.names if n in read]

    def kernel(self, name: str, outs: Sequence[str], ins: Sequence[str], work: Sequence[str], start: Sequence[str],
               body: Sequence[str], end: Sequence[str]) -> str:  # fmt: skip
        pointers = [*outs, *ins]
        return KERNEL.format(
            name=f"{self.name}_{name}", pointers=", ".join(pointers), workspace=", ".join(work),
            strides=", ".join(f"{p}_at" for p in pointers), alongs=", ".join(f"{p}_along" for p in pointers),
            start="\n".join(f"    {line}" for line in start), body="\n".join(f"            {line}" for line in body),
            end="\n".join(f"    {line}" for line in end),
        ).replace("{}", "")  # fmt: skip

    def loads(self, names: Sequence[str]) -> list[str]:
        read = "{0}_t = step({0}, t, row, col, rows, shape, {0}_at, {0}_along).to(tl.{1})"
        return [read.format(n, self.wide) for n in names]

    def forward_lines(self, graphs: Sequence[Derived]) -> tuple[list[str], list[str]]:
        renamed = {n: f"{n}_t" for n in self.names}
        lines, values = [], []
        for prefix, derived in zip(("a_", "b_"), graphs, strict=False):
            made, results = spelled(derived.forward, prefix, renamed)
            lines += made
            values.append(str(results[0]))
        return lines, values

    def zeros(self, name: str, value: str) -> str:
        return f"{name} = tl.full((ROWS, COLS), {value}, tl.{self.wide})"

    def saved(self, *pairs: tuple[str, str]) -> list[str]:
        return [f"tl.store({to} + place_at, {x}.to({to}.dtype.element_ty), mask=inside)" for to, x in pairs]

    def start(self, name: str) -> list[str]:
        return [f"{name} = tl.load(start + place_at, mask=inside, other=0).to(tl.{self.wide})"]

    def reduce(self) -> str:
        ins = self.used(self.decay.forward, self.new.forward)
        lines, (a, b) = self.forward_lines([self.decay, self.new])
        body = [*self.loads(ins), *lines, f"local_h = ({a}) * local_h + ({b})", f"decays = decays * ({a})"]
        end = self.saved(("product", "decays"), ("local", "local_h"))
        return self.kernel("reduce", [], ins, ["product", "local"],
                           [self.zeros("local_h", "0.0"), self.zeros("decays", "1.0")], body, end)  # fmt: skip

    def apply(self) -> str:
        ins = self.used(self.decay.forward, self.new.forward)
        lines, (a, b) = self.forward_lines([self.decay, self.new])
        body = [*self.loads(ins), *lines, f"state = ({a}) * state + ({b})",
                "put(out, state, t, row, col, rows, shape, out_at, out_along)"]  # fmt: skip
        return self.kernel("apply", ["out"], ins, ["start"], self.start("state"), body, [])

    def fold(self) -> str:
        ins = self.used(self.decay.forward)
        lines, (a,) = self.forward_lines([self.decay])
        body = [
            *self.loads(["grad", *ins]),
            *lines,
            f"local_r = ({a}) * (grad_t + local_r)",
            f"decays = decays * ({a})",
        ]
        end = self.saved(("product", "decays"), ("local", "local_r"))
        return self.kernel("fold", [], ["grad", *ins], ["product", "local"],
                           [self.zeros("local_r", "0.0"), self.zeros("decays", "1.0")], body, end)  # fmt: skip

    def backward(self) -> str:
        """dh = grad + r; da = dh * h[t-1]; db = dh; then r = a * dh for the step before."""
        graphs = (self.decay.forward, self.decay.backward, self.new.backward)
        ins = self.used(*graphs)
        lines, (a,) = self.forward_lines([self.decay])
        renamed = {n: f"{n}_t" for n in self.names}
        of_a, da = spelled(self.decay.backward, "da_", renamed | {"grad": "decay_grad"})
        of_b, db = spelled(self.new.backward, "db_", renamed | {"grad": "state_grad"})
        parts: dict[str, list[str]] = {}
        for derived, results in ((self.decay, da), (self.new, db)):
            own = [x.name for x in derived.forward.find_nodes(op="placeholder")]
            for operand, value in zip(own, results, strict=True):
                parts.setdefault(operand, []).extend([] if value is None else [f"({value})"])
        outs, start, end = list(self.grads.values()), self.start("carried"), []
        body = [*self.loads(["grad", "before", *ins]), *lines, "state_grad = grad_t + carried",
                "decay_grad = state_grad * before_t", *of_a, *of_b]  # fmt: skip
        for operand, grad in self.grads.items():
            total = " + ".join([f"tl.zeros((ROWS, COLS), tl.{self.wide})", *parts[operand]])
            if operand in self.still:
                start.append(self.zeros(f"{grad}_sum", "0.0"))
                body.append(f"{grad}_sum += {total}")
                end += _written(grad, f"{grad}_sum", "chunk")
            else:
                body += _written(grad, total, "t")
        body.append(f"carried = ({a}) * state_grad")
        return self.kernel("backward", outs, ["grad", "before", *ins], ["start"], start, body, end)

    def launch(self) -> str:
        check = "" if self.plan else f"expect(({', '.join(self.names)},), DTYPES)\n    "
        return FORWARD.format(
            name=self.name, check=check, forward="states" if self.plan else "forward",
            operands=", ".join(self.names), shapes=", ".join(f"{n}.shape" for n in self.names),
            read=", ".join(self.used(self.decay.forward, self.new.forward)),
        )  # fmt: skip

    def pull(self) -> str:
        pairs = list(self.grads.items())
        rooms = {n: f"room_for_sums({n}, full, dim)" if n in self.still else f"room_for_gradient({n}, full)"
                 for n in self.grads}  # fmt: skip
        return BACKWARD.format(
            name=self.name, backward="pulled" if self.plan else "backward",
            needs=tuple(n in self.grads for n in self.names), operands=", ".join(self.names),
            fold=", ".join(self.used(self.decay.forward)),
            rooms="\n".join(f"    {g} = {rooms[n]} if needs[{self.names.index(n)}] else None" for n, g in pairs),
            grads=", ".join(g for _, g in pairs),
            read=", ".join(self.used(self.decay.forward, self.decay.backward, self.new.backward)),
            settle="\n".join(f"    {g} = reduced({g}, {n})" for n, g in pairs),
            results="(" + ", ".join(self.grads.get(n, "None") for n in self.names) + ",)",
        )  # fmt: skip

    def region(self, plan: Plan) -> str:
        """The same as functions of the region's operands alone."""
        at = {n: f"needs[{i}]" for i, n in enumerate(plan.operands)}
        own = [self.grads.get(n, "_") for n in self.names]
        results = [self.grads.get(n, "None") for n in plan.operands]
        if plan.first:
            first = plan.operands.index(plan.first)
            results[first] = f"dh0 if needs[{first}] else None"
        return REGION.format(
            operands=", ".join(plan.operands), names=", ".join(self.names), first=plan.first, dim=plan.dim,
            reverse=plan.reverse, needs=tuple(n in self.grads or n == plan.first for n in plan.operands),
            found=", ".join(own), first_grad="dh0" if plan.first else "_", asked=", ".join(at[n] for n in self.names),
            results=", ".join(results),
        )  # fmt: skip


def _written(grad: str, value: str, at: str) -> list[str]:
    """Only where the gradient is wanted."""
    return [
        f"if {grad} is not None:",
        f"    put({grad}, {value}, {at}, row, col, rows, shape, {grad}_at, {grad}_along)",
    ]
