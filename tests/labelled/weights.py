"""Weights of layers that are mixed or masked before the layer is called."""

import torch
from snippets import IDS, IMAGE, ROWS, STEP, D, H, has, looks_like
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

T = 3


class Checkpoints(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("base", torch.randn(H, D))
        self.register_buffer("deltas", torch.randn(T, H, D))
        self.kernels = nn.Parameter(torch.randn(T, H, D, 3, 3))
        self.row, self.score = nn.Parameter(torch.zeros(T)), nn.Linear(D, T)
        self.fc = nn.Linear(D, H)


@has("mixture")
class TaskArithmetic(Checkpoints):
    """Pretrained plus each task's difference, times a learned number."""

    def forward(self, x):
        weight = self.base
        for i in range(T):
            weight = weight + self.row[i] * self.deltas[i]
        return F.linear(x, weight)


@has("mixture")
class TaskArithmeticAtOnce(Checkpoints):
    def forward(self, x):
        return x @ (self.base + torch.einsum("t,toi->oi", self.row.sigmoid(), self.deltas)).T


@has("mixture", given=(IMAGE,))
class SoupOfKernels(Checkpoints):
    """Kernels under a softmax of learned numbers, without a base."""

    def forward(self, x):
        return F.conv2d(x, (self.row.softmax(0).view(-1, 1, 1, 1, 1) * self.kernels).sum(0), padding=1)


@has("mixture")
class SharedBases(Checkpoints):
    """Each layer's weight is made of bases that all layers share."""

    def forward(self, x):
        return F.linear(x, torch.tensordot(self.row, self.deltas, dims=1))


@has("router", given=(STEP,))
class ConditionalWeights(Checkpoints):
    """A weight for each sample, out of stored ones."""

    def forward(self, x):
        attention = F.softmax(self.score(x), dim=-1)
        weight = self.base + (attention[:, :, None, None] * self.deltas).sum(1)
        return torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1)


@has("router", given=(IMAGE,))
class ConditionalKernels(Checkpoints):
    """A kernel for each image, by a grouped convolution."""

    def forward(self, x):
        b, c, h, w = x.shape
        attention = torch.softmax(self.score(x.mean((2, 3))), dim=1)
        kernels = torch.mm(attention, self.kernels.view(T, -1)).view(b * H, D, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b).view(b, H, h, w)


@has("router", given=(IMAGE,))
class SigmoidKernels(Checkpoints):
    """CondConv: numbers that need not sum to one."""

    def forward(self, x):
        b, c, h, w = x.shape
        routing = torch.sigmoid(self.score(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        kernels = (routing @ self.kernels.flatten(1)).view(b * H, D, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b).view(b, H, h, w)


@has("router", given=(IMAGE,))
class OneKernelEach(Checkpoints):
    """The kernel of the largest score, for each image."""

    def forward(self, x):
        b, c, h, w = x.shape
        kernels = self.kernels[self.score(x.mean((2, 3))).argmax(-1)].view(b * H, D, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b).view(b, H, h, w)


@has("feature")
class MaskedWeight(Checkpoints):
    """A soft mask over the entries of a frozen weight."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(H, D))

    def forward(self, x):
        return F.linear(x, self.base * torch.sigmoid(self.mask))


@has("feature", given=(IDS,))
class MaskedTable(nn.Module):
    """One number for each row of a table."""

    def __init__(self):
        super().__init__()
        self.table, self.mask, self.fc = nn.Embedding(10, D), nn.Parameter(torch.zeros(10)), nn.Linear(D, H)

    def forward(self, ids):
        return self.fc(F.embedding(ids, self.table.weight * torch.sigmoid(5 * self.mask).unsqueeze(1)))


@has("spatial")
class Injected(nn.Module):
    """A learned direction, added to the tokens that ask for it."""

    def __init__(self):
        super().__init__()
        self.ask, self.direction, self.fc = nn.Linear(D, 1), nn.Parameter(torch.ones(D)), nn.Linear(D, D)

    def forward(self, x):
        return self.fc(x) + self.direction * torch.sigmoid(self.ask(x) / 0.2)


# -- and what is no gate ----------------------------------------------------------------------------------------------


@looks_like()
class LowRank(Checkpoints):
    """LoRA: one product of two matrices, under a fixed scale."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.zeros(H, 2))

    def forward(self, x):
        return F.linear(x, self.base + 2.0 * self.b @ self.a)


@looks_like()
class MagnitudeAndDirection(LowRank):
    """Weight normalisation of what is adapted."""

    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.ones(H, 1))

    def forward(self, x):
        v = self.base + self.b @ self.a
        return F.linear(x, self.m * v / v.norm(dim=1, keepdim=True))


@looks_like()
class StandardisedWeight(Checkpoints):
    def forward(self, x):
        w = self.fc.weight
        return F.linear(x, (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True))


@looks_like(given=(ROWS,))
class StoredMemory(Checkpoints):
    """Attention to stored keys and values."""

    def forward(self, x):
        return F.softmax(x @ self.base.T, dim=-1) @ self.base


@looks_like()
class Householder(Checkpoints):
    """A reflection: a stored vector against itself."""

    def forward(self, x):
        v = self.fc.weight[0]
        return x - 2 * (x * v).sum(-1, keepdim=True) * v / (v * v).sum()


@looks_like()
class HiddenLayerOfMatrices(Checkpoints):
    """A matrix per class, of what a hidden layer of another size makes."""

    def forward(self, x):
        return torch.sigmoid(self.fc(x)) @ self.deltas.reshape(H, -1)


@looks_like()
class NormalisedWeight(Checkpoints):
    """torch's own weight normalisation, as a parametrization."""

    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.fc)

    def forward(self, x):
        return self.fc(x)


class Softened(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(H, D))

    def forward(self, weight):
        return weight * self.scores.sigmoid()


@has("feature")
class MaskedByParametrization(Checkpoints):
    def __init__(self):
        super().__init__()
        parametrize.register_parametrization(self.fc, "weight", Softened())

    def forward(self, x):
        return torch.relu(self.fc(x))
