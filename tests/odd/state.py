"""State in a forward: buffers written, attributes assigned, counters, caches."""

import torch
from torch import nn
from torch.nn import functional as F

from odd import Block, X, after, call, odd, rows


@odd(X, others=[rows(3), after(lambda m: m.eval(), X)], train=True)
class RunningMean(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("hidden", torch.zeros(8), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            self.seen += 1
            self.hidden[0] = self.hidden[0] + 1
        return self.mlp(x - self.mean) / (self.seen + 1)


@odd(X, others=[rows(3), after(lambda m: m.eval(), X), after(lambda m: m.train(), X)], train=True)
class BufferReassigned(Block):
    """self.mean = ... on a name that is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.mlp(x - self.mean)


@odd(rows(4), others=[rows(3), after(lambda m: m.eval(), rows(1)), after(lambda m: m.train(), rows(1))], train=True)
class BatchNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8, momentum=None))
        self.free = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x):
        return self.free(self.net(x))


@odd(X, others=[rows(3), after(lambda m: m.eval(), X)], train=True)
class Codebook(nn.Module):
    """A quantiser whose codebook follows its inputs: EMA buffers, a one-hot, a straight-through copy."""

    def __init__(self):
        super().__init__()
        self.register_buffer("code", torch.randn(5, 8))
        self.register_buffer("count", torch.ones(5))

    def forward(self, x):
        near = torch.cdist(x, self.code).argmin(-1)
        hot = F.one_hot(near, 5).to(x.dtype)
        if self.training:
            with torch.no_grad():
                self.count.lerp_(hot.sum(0), 0.1)
                self.code.data.copy_(torch.lerp(self.code, hot.T @ x / self.count[:, None], 0.1))
        found = F.embedding(near, self.code)
        return x + (found - x).detach(), near, (found.detach() - x).square().mean()


@odd(call(rows(2, 1), 0), others=[call(rows(2, 1), 1), call(rows(2, 3), 2), call(rows(2, 1), torch.tensor([5]))])
class CacheBuffer(Block):
    """A key cache of fixed size, written at a position that a number or a tensor gives."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(2, 8, 8))

    def forward(self, x, at):
        if isinstance(at, int):
            self.cache[:, at : at + x.size(1)] = self.up(x)[..., :8].detach()
        else:
            self.cache.index_copy_(1, at, x.detach())
        return self.mlp(x) + self.cache.sum(1, keepdim=True)


@odd(X, others=[rows(3), X])
class KeepsWeights(Block):
    """Leaves its attention weights behind for whoever wants to look."""

    def forward(self, x):
        self.attn = torch.softmax(x @ x.T, -1)
        self.shape = x.shape
        self.both = [self.attn, None]
        return self.mlp(self.attn @ x)


@odd(X, others=[rows(3), after(lambda m: m.eval(), X)], train=True)
class AuxiliaryLoss(Block):
    def __init__(self):
        super().__init__()
        self.aux_loss = None

    def forward(self, x):
        y = self.mlp(x)
        self.aux_loss = y.square().mean() if self.training else None
        return y


@odd(X, others=[rows(3), X, rows(1)])
class CountsCalls(Block):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.mlp(x) * self.calls


@odd(X, others=[X, rows(1), after(lambda m: setattr(m, "last", None), X)])
class RemembersTensor(Block):
    """self.last = None, then a tensor that the next call reads."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        y = self.mlp(x)
        if self.last is not None:
            y = y + self.last.mean()
        self.last = y.detach()
        return y


@odd(X, others=[X, X, X])
class RemembersOnce(Block):
    """A table built in the first call and read in all others."""

    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, x):
        if self.table is None or self.table.shape[0] < x.shape[0]:
            self.table = torch.arange(x.shape[0]).float()[:, None]
        return self.mlp(x) + self.table[: x.shape[0]]


@odd(X, others=[rows(3), X], refused="its forward changes what stands in self.seen")
class AppendsToList(Block):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape[0])  # refused
        return self.mlp(x)


@odd(X, others=[X, rows(3), rows(3), X], refused="its forward changes what stands in self.masks")
class CachesMasks(Block):
    def __init__(self):
        super().__init__()
        self.masks = {}

    def forward(self, x):
        n = x.shape[0]
        if n not in self.masks:
            self.masks[n] = torch.ones(n, 8).tril()  # refused
        return self.mlp(x) * self.masks[n]


@odd(X, others=[rows(3), X])
class WritesChild(Block):
    """Assigns to the child, and to a plain tensor that the child holds."""

    def __init__(self):
        super().__init__()
        self.up.scale = 2.0
        self.plain = torch.zeros(8)

    def forward(self, x):
        self.up.last = x.mean()
        self.plain += 1
        return self.mlp(x) * self.up.scale + self.plain


@odd(X, others=[rows(3)], refused="it sets the attribute data of a tensor")
class WritesParameter(Block):
    """Keeps its weight on the unit sphere, in every forward."""

    def forward(self, x):
        with torch.no_grad():
            self.up.weight.div_(self.up.weight.norm(dim=-1, keepdim=True))
            self.down.weight.data = F.normalize(self.down.weight.data, dim=0)
        return self.mlp(x)


@odd(X, others=[X, X])
class PowerIteration(Block):
    """Spectral norm by hand."""

    def __init__(self):
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(16), dim=0))

    def forward(self, x):
        w = self.up.weight
        with torch.no_grad():
            v = F.normalize(w.T @ self.u, dim=0)
            self.u.copy_(F.normalize(w @ v, dim=0))
        return self.down(F.linear(x, w / (self.u @ w @ v), self.up.bias))


@odd(X, others=[X, X, after(lambda m: m.reset(), X)])
class Stateful(nn.Module):
    """A recurrent cell that keeps its hidden state between calls."""

    def __init__(self):
        super().__init__()
        self.cell, self.state = nn.GRUCell(8, 8), None

    def reset(self):
        self.state = None

    def forward(self, x):
        self.state = self.cell(x, self.state)
        return self.state


@odd(X, others=[X, rows(3)])
class DeletesAttribute(Block):
    def forward(self, x):
        self.scratch = x * 2
        y = self.mlp(self.scratch)
        del self.scratch
        return y


@odd(X, others=[X, rows(3)])
class SwapsFlag(Block):
    """Switches a flag for the time of a call, and back."""

    scale = 1.0

    def helper(self, x):
        return self.mlp(x) * self.scale

    def forward(self, x):
        was, self.scale = self.scale, 2.0
        try:
            return self.helper(x)
        finally:
            self.scale = was


@odd(X, others=[X, rows(3), after(lambda m: m.train(), X)])
class SwitchesChildMode(Block):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.drop.eval()
        y = self.drop(self.mlp(x))
        self.drop.train(self.training)
        return y


@odd(X, others=[X, X])
class DynamicUpdateAfterRead(Block):
    """Reads a buffer, writes it, reads it again: the order counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.ones(8))

    def forward(self, x):
        a = x * self.n
        self.n.add_(1)
        b = x * self.n
        self.n += b.detach().mean()
        return self.mlp(a + b) * self.n
