"""Branches on what Python can know: shapes, flags, None, dtype, device, types, names."""

import enum
from typing import Any

import torch
from torch import nn

from odd import Block, X, after, call, odd, rows


@odd(X, others=[rows(2), rows(3), rows(5), rows(1)])
class OnShape(Block):
    def forward(self, x):
        if x.shape[0] > 3 and x.size(-1) == 8:
            return self.mlp(x) * 2
        if x.shape[0] == 1:
            return self.mlp(x).squeeze(0)
        return self.mlp(x) - 1


@odd(rows(4, 4), others=[rows(4, 3), rows(2, 2), rows(3, 4), rows(1, 1)])
class TwoSizesCompared(Block):
    def forward(self, x):
        return self.mlp(x).transpose(0, 1) if x.shape[0] == x.shape[1] else self.mlp(x)


@odd(X, others=[rows(6), rows(5), rows(1)])
class Parity(Block):
    def forward(self, x):
        half, odd_one = divmod(len(x), 2)
        return self.mlp(x)[: half + odd_one] if odd_one else self.mlp(x)[:half]


@odd(X, others=[rows(2, 3), rows(2, 2, 2), rows()])
class OnRank(Block):
    def forward(self, x):
        y = self.mlp(x)
        return {1: lambda: y * 3, 2: lambda: y.mean(0), 3: lambda: y.flatten(0, 1)}.get(x.ndim, lambda: y)()


@odd(
    X,
    others=[call(X, True), call(X, flag=True), call(X, flag=0), call(X, flag=1), call(X, flag=None), call(X, flag="")],
)
class OnFlag(Block):
    def forward(self, x, flag=False):
        return self.mlp(x) if flag else x * 2


@odd(X, others=[call(X, mask=X > 0), call(X, X < 0, X), call(X, bias=X), call(X, None, None)])
class OnNone(Block):
    def forward(self, x, mask=None, bias=None):
        y = self.mlp(x)
        y = y if mask is None else y.masked_fill(mask, 0.5)
        return y if bias is None else y + bias


@odd(X, others=[X.double(), X.to(torch.int64), X > 0])
class OnDtype(Block):
    def forward(self, x):
        if x.dtype is torch.float64:
            return self.mlp(x.float()).double()
        return self.mlp(x) if x.is_floating_point() else x + 1


@odd(X, others=[rows(3)])
class OnDevice(Block):
    def forward(self, x):
        on = x.device.type
        scale = {"cpu": 2, "cuda": 3}[on] if on in ("cpu", "cuda") else 1
        return self.mlp(x) * scale + torch.zeros(1, device=x.device if x.is_cuda else self.up.weight.device)


@odd(X, others=[call(X, X), call(X, X, X), call()])
class OnNumberOfArguments(Block):
    def forward(self, *args):
        if len(args) == 0:
            return self.up.bias
        return self.mlp(args[0]) if len(args) == 1 else sum(args[1:], self.mlp(args[0]))


@odd(X, others=[call((X, X)), call([X, X * 2]), call({"x": X, "y": X}), call({"x": X})])
class OnType(Block):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            return self.mlp(x)
        if isinstance(x, dict):
            return {k: self.mlp(v) for k, v in x.items()}
        return type(x)(self.mlp(v) for v in x)


@odd(X, others=[after(lambda m: setattr(m, "scale", 3.0), X), after(lambda m: delattr(m, "scale"), X)])
class OnHasattr(Block):
    def forward(self, x):
        y = self.mlp(x)
        if hasattr(self, "scale"):
            y = y * self.scale
        return y * getattr(self, "shift", 1.5)


@odd(X, others=[call(X, "mean"), call(X, "sum"), call(X, reduction="none"), call(X, "nothing")])
class OnString(Block):
    def forward(self, x, reduction="none"):
        y = self.mlp(x)
        if reduction == "none":
            return y
        if reduction.startswith("m"):
            return y.mean()
        if reduction in {"sum"}:
            return y.sum()
        raise ValueError(f"a reduction, not {reduction}")


class Mode(enum.Enum):
    ADD = 1
    MUL = 2


@odd(call(X, Mode.ADD), others=[call(X, Mode.MUL), call(X, mode=Mode["ADD"])])
class OnEnum(Block):
    def forward(self, x, mode: Mode = Mode.ADD):
        match mode:
            case Mode.ADD:
                return self.mlp(x) + x
            case Mode.MUL:
                return self.mlp(x) * x


@odd(X, others=[after(lambda m: m.train(), X), after(lambda m: m.eval(), rows(3))])
class OnTraining(Block):
    def forward(self, x):
        return self.mlp(x) * 2 if self.training else self.mlp(x)


@odd(X, others=[after(lambda m: m.up.train(), X), after(lambda m: m.up.requires_grad_(False), X)])
class OnChild(Block):
    """Asks its child whether it trains, and whether its weight does."""

    def forward(self, x):
        y = self.mlp(x) * 2 if self.up.training else self.mlp(x)
        return y + 1 if self.up.weight.requires_grad else y


@odd(
    X, others=[after(lambda m: setattr(m, "extra", None), X), after(lambda m: setattr(m, "extra", nn.Linear(8, 8)), X)]
)
class OnOptionalChild(Block):
    def __init__(self):
        super().__init__()
        self.extra = nn.Identity()

    def forward(self, x):
        return self.mlp(x) if self.extra is None else self.mlp(self.extra(x))


@odd(X, others=[rows(4).clone().requires_grad_(), rows(4).t().contiguous().t()])
class OnRequiresGrad(Block):
    def forward(self, x):
        y = self.mlp(x)
        if x.requires_grad:
            y = y + 1
        return y * 2 if x.is_contiguous() else y


@odd(X, others=[rows(3, 8).transpose(0, 1), rows(8).t(), rows(8).t()[:, :8]])
class OnStride(Block):
    def forward(self, x):
        y = self.mlp(x)
        return y * 2 if x.stride(-1) == 1 and x.storage_offset() == 0 else y


@odd(rows(2, 4, 4, width=4), others=[rows(2, 4, 4, width=4).to(memory_format=torch.channels_last)])
class OnMemoryFormat(nn.Module):
    def forward(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        return x.sin() * 3 if last else x.cos()


@odd(call(X, [1, 2]), others=[call(X, [1, 2, 3]), call(X, []), call(X, (1,)), call(X, [2, 2])])
class OnListOfNumbers(Block):
    def forward(self, x, scales: Any = ()):
        y = self.mlp(x)
        for scale in scales:
            y = y * scale
        return y if scales else -y


@odd(call(X, 2), others=[call(X, 3), call(X, 2.0), call(X, True), call(X, 0), call(X, -1), call(X, 2**40)])
class OnNumber(Block):
    def forward(self, x, times=1):
        y = self.mlp(x)
        return y * times if times > 0 else y - times


@odd(X, others=[rows(0), rows(1)])
class OnEmpty(Block):
    def forward(self, x):
        if x.numel() == 0:
            return x.new_zeros(0, 8)
        return self.mlp(x)


@odd(
    call(X, eps=0.0),
    others=[call(X, eps=-0.0), call(X, eps=float("nan")), call(X, eps=float("inf")), call(X, eps=1e-30)],
)
class OnSpecialFloat(Block):
    def forward(self, x, eps=1e-5):
        if eps != eps:
            return self.mlp(x)
        return torch.atan2(self.mlp(x) * 0, torch.full((), eps))


@odd(X, others=[rows(3)])
class OnClass(Block):
    """Asks its children and its own parameters what they are."""

    def forward(self, x):
        for child in (self.up, self.down):
            if isinstance(child, nn.Linear) and child.bias is not None and type(child).__name__ == "Linear":
                x = child(x)
        return x if isinstance(self.up.weight, nn.Parameter) and torch.is_tensor(x) else -x
