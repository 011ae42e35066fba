"""Writing in place: slices, views, arguments, out=."""

import operator

import torch
from torch.nn import functional as F

from odd import Block, X, call, odd, rows


@odd(X, others=[rows(3), rows(2, 3)])
class Slices(Block):
    def forward(self, x):
        y = self.mlp(x)
        y[..., 0] = 0
        y[:, 1:3] = x[:, 1:3]
        y[0] += 1
        y[-1:, ::2] *= x[-1:, ::2]
        return y


@odd(X, others=[rows(3)])
class ThroughViews(Block):
    """What is written to a view shows in its base."""

    def forward(self, x):
        y = self.mlp(x)
        part = y[:, :4]
        flat = y.view(-1)
        part += 1
        flat[0] = 5
        part.mul_(2)
        y.t()[1].zero_()
        return y, part, flat


@odd(X, others=[rows(3)])
class AugmentedAttributes(Block):
    def forward(self, x):
        y = self.mlp(x)
        y -= x
        y /= 2
        y **= 2
        z = (y > 0.1).long()
        z |= 2
        z <<= 1
        z %= 5
        z //= 2
        z ^= 3
        return operator.iadd(y, 1), z


@odd(X, others=[rows(3)])
class ChainedInPlace(Block):
    def forward(self, x):
        y = self.mlp(x).clone().mul_(2).add_(x, alpha=3).clamp_(-3, 3).relu_()
        y.copy_(x).neg_().transpose_(0, 1).unsqueeze_(0).squeeze_(0)
        return F.relu(y, inplace=True), torch.relu_(y), F.leaky_relu_(y), torch.sigmoid_(y)


@odd(X, others=[rows(3), rows(2, 2)])
class WritesItsInput(Block):
    def forward(self, x):
        x += 1
        x[0] = 0
        return self.mlp(x)


@odd(call([X, X.clone()]), others=[call([rows(3), rows(3)])], refused="its forward changes a list that it was given")
class WritesItsList(Block):
    def forward(self, xs):
        xs.append(self.mlp(xs[0]))
        xs[1] = xs[1] * 2
        return xs[-1]


@odd(
    call({"x": X}),
    others=[call({"x": rows(3)}), call({"x": X, "y": X})],
    refused="its forward changes a dict that it was given",
)
class WritesItsDict(Block):
    def forward(self, batch):
        x = batch.pop("x")
        batch["y"] = self.mlp(x)
        return batch


@odd(X, others=[rows(3)])
class OutArgument(Block):
    def forward(self, x):
        y = torch.empty_like(x)
        torch.add(self.mlp(x).detach(), x.detach(), out=y)
        z = x.new_empty(x.shape)
        torch.sin(y, out=z)
        return z


@odd(X, others=[rows(3), rows(1)])
class FillsRowByRow(Block):
    def forward(self, x):
        y = torch.zeros(x.size(0), 8)
        for i in range(x.size(0)):
            y[i] = self.mlp(x[i]) + (y[i - 1] if i else 0)
        return y


@odd(X, others=[rows(3)])
class DataAttribute(Block):
    def forward(self, x):
        y = self.mlp(x)
        y.data.mul_(2)
        return y + x.data


@odd(X, others=[rows(3)], refused="it sets the attribute data of a tensor")
class SetsData(Block):
    def forward(self, x):
        y = self.mlp(x)
        y.data = y.data * 2
        return y


@odd(X, others=[rows(3)])
class Masks(Block):
    def forward(self, x):
        y = self.mlp(x)
        y.masked_fill_(torch.eye(len(x), 8, dtype=torch.bool), -1.0)
        y.fill_diagonal_(3)
        y.index_fill_(0, torch.tensor([0]), 2.0)
        return y.scatter_(1, torch.zeros(len(x), 1, dtype=torch.long), 7.0)


@odd(
    X,
    others=[rows(3)],
    refused="the tracer met TypeError: descriptor 'add_' for 'torch._C.TensorBase' objects doesn't apply to a 'Value' object",
)
class DeadWrite(Block):
    """Nothing reads what comes back of the call: only its writing counts."""

    def forward(self, x):
        y = self.mlp(x)
        y.index_add_(0, torch.tensor([0]), x[:1])
        torch.Tensor.add_(y, 1)
        y.narrow(1, 0, 2).zero_()
        torch.zero_(y[:, 3])
        return y


@odd(X, others=[rows(3)])
class Foreach(Block):
    def forward(self, x):
        pair = [self.mlp(x), x * 2]
        torch._foreach_mul_(pair, 2.0)
        return pair
