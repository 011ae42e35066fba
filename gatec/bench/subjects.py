"""What `gatec bench kernels` measures: modules as their authors write them, each with the shapes it is called with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.bench.workloads import Workload
from gatec.derive import derive
from gatec.grouped import grouped_linear
from gatec.kernel import Kernel
from gatec.kernels import router
from gatec.linear_attention import linear_attention


class Subject(nn.Module):
    """`flops` are the operations of its matrix products, forward; `result` is its shape where operands do not broadcast to it."""

    shapes: tuple[tuple[int, ...], ...]
    result: tuple[int, ...] | None = None
    flops = 0

    def operands(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        return [torch.randn(shape, dtype=dtype, device=device) for shape in self.shapes]

    def kernel(self, dtype: torch.dtype) -> Kernel | None:
        """The one kernel that computes all of it, if there is one."""
        return None


class Function(Subject):
    """A function of tensors."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.work, self.shapes = work, work.shapes

    def forward(self, *operands: Tensor) -> Tensor:
        return self.work.fn(*operands)

    def kernel(self, dtype: torch.dtype) -> Kernel | None:
        return self.work.kernel(dtype)


class Packed(Subject):
    """SwiGLU whose halves lie side by side, as one projection writes them."""

    def __init__(self, rows: int, hidden: int) -> None:
        super().__init__()
        self.shapes, self.result = ((rows, 2 * hidden),), (rows, hidden)

    def forward(self, both: Tensor) -> Tensor:
        gate, value = both.chunk(2, -1)
        return F.silu(gate) * value


class MLP(Subject):
    """SwiGLU between projections."""

    def __init__(self, rows: int, width: int, hidden: int) -> None:
        super().__init__()
        sizes = (width, hidden), (width, hidden), (hidden, width)
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in sizes)
        self.shapes, self.flops = ((rows, width),), 6 * rows * width * hidden

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Lerp(Subject):
    """A highway layer: two projections, mixed with their input."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.transform, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.shapes, self.flops = ((rows, width),), 4 * rows * width * width

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.transform(x)) + (1 - gate) * x


class Router(Subject):
    """Softmax, the best experts, their weights over their sum."""

    def __init__(self, rows: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k, self.shapes, self.result = top_k, ((rows, experts),), (rows, top_k)

    def forward(self, logits: Tensor) -> Tensor:
        weights, _ = torch.topk(torch.softmax(logits.float(), -1), self.top_k, -1)
        return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype)

    def kernel(self, dtype: torch.dtype) -> Kernel | None:
        score = derive(_softmax, [torch.empty(self.shapes[0], dtype=dtype, device="meta")], rows=True)
        return router.render("router", "gatec.bench", score.forward, score.backward, choices=self.top_k, out=dtype)


def _softmax(logits: Tensor) -> Tensor:
    return F.softmax(logits, -1)


class Experts(Subject):
    """A mixture of SwiGLU experts, one after the other."""

    def __init__(self, rows: int, width: int, hidden: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.router, self.top_k = nn.Linear(width, experts, bias=False), top_k
        wide = experts, hidden, width
        self.gate, self.up = (nn.Parameter(torch.randn(wide) / math.sqrt(width)) for _ in range(2))
        self.down = nn.Parameter(torch.randn(experts, width, hidden) / math.sqrt(hidden))
        self.shapes, self.flops = ((rows, width),), 6 * rows * top_k * width * hidden

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = torch.topk(torch.softmax(self.router(x).float(), -1), self.top_k, -1)
        return (weights / weights.sum(-1, keepdim=True)).to(x.dtype), chosen

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, (gate, up, down) in enumerate(zip(self.gate, self.up, self.down, strict=True)):
            token, slot = (chosen == e).nonzero(as_tuple=True)
            rows = x[token]
            hidden = F.silu(F.linear(rows, gate)) * F.linear(rows, up)
            out = out.index_add(0, token, F.linear(hidden, down) * weights[token, slot].unsqueeze(-1))
        return out


class Grouped(Experts):
    """The same, every product for all experts at once."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        expert, order = torch.sort(chosen.flatten(), stable=True)
        numbers = expert.new_ones(len(self.down)).cumsum(0) - 1
        ends = (expert.unsqueeze(-1) <= numbers).sum(0)
        rows = x[order // self.top_k]
        hidden = F.silu(grouped_linear(rows, self.gate, ends)) * grouped_linear(rows, self.up, ends)
        pairs = grouped_linear(hidden, self.down, ends) * weights.flatten()[order].unsqueeze(-1)
        out: Tensor = pairs[torch.argsort(order)].unflatten(0, (-1, self.top_k)).sum(1)
        return out


class Loop(Subject):
    """A recurrence of vectors, behind its projections."""

    def __init__(self, batch: int, steps: int, width: int) -> None:
        super().__init__()
        self.shapes = ((batch, steps, width),) * 2

    def operands(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        decay, new = super().operands(dtype, device)
        return [torch.sigmoid(decay + 3), new]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        h, states = torch.zeros_like(b[:, 0]), []
        for t in range(b.shape[1]):
            h = a[:, t] * h + b[:, t]
            states.append(h)
        return torch.stack(states, 1)


class Attention(Subject):
    """Gated linear attention, step by step: a state of a matrix for each head."""

    def __init__(self, batch: int, heads: int, steps: int, width: int) -> None:
        super().__init__()
        self.shapes = ((batch, heads, steps, width),) * 4
        self.flops = 4 * batch * heads * steps * width * width

    def operands(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        q, k, v, gate = super().operands(dtype, device)
        return [q / math.sqrt(q.shape[-1]), F.normalize(k, dim=-1), v, F.logsigmoid(gate + 3)]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        state, read = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=torch.float32, device=q.device), []
        for t in range(q.shape[2]):
            new = k[:, :, t].float().unsqueeze(-1) * v[:, :, t].float().unsqueeze(-2)
            state = gate[:, :, t].float().exp().unsqueeze(-1) * state + new
            read.append((q[:, :, t].float().unsqueeze(-2) @ state).squeeze(-2))
        return torch.stack(read, 2).to(v.dtype)


class Chunked(Attention):
    """The same by gatec's operator."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return linear_attention(q, k, v, gate, log=True)[0]
