"""Routers and mixtures: weights over experts or streams."""

import torch
from snippets import IMAGE, ROWS, STEP, TOKENS, D, H, has
from torch import nn
from torch.nn import functional as F

E = 4


class Expert(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(D, E, bias=False), nn.ModuleList(Expert() for _ in range(E))
        self.w1, self.w2 = nn.Parameter(torch.randn(E, D, H)), nn.Parameter(torch.randn(E, H, D))


@has("router")
class DenseSoftmax(Experts):
    """MMoE: all experts stacked."""

    def forward(self, x):
        stacked = torch.stack([e(x) for e in self.experts], dim=-2)
        weights = F.softmax(self.gate(x), dim=-1)
        return (stacked * weights.unsqueeze(-1)).sum(-2)


@has("router", given=(STEP,))
class DenseEinsum(Experts):
    def forward(self, x):
        out = torch.stack([e(x) for e in self.experts], dim=1)
        return torch.einsum("be,bed->bd", self.gate(x).softmax(-1), out)


@has("router", given=(STEP,))
class DenseBmm(Experts):
    def forward(self, x):
        out = torch.stack([e(x) for e in self.experts], dim=1)
        return torch.bmm(F.softmax(self.gate(x), dim=1).unsqueeze(1), out).squeeze(1)


@has("router")
class DenseLoop(Experts):
    def forward(self, x):
        weights = torch.softmax(self.gate(x), dim=-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out + weights[..., i : i + 1] * expert(x)
        return out


@has("router", given=(ROWS,))
class MixtralMasked(Experts):
    """Mixtral's normalised top-k, experts run densely and masked."""

    def forward(self, x):
        router_logits = self.gate(x)
        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected = torch.topk(routing_weights, 2, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(x.dtype)
        mask = F.one_hot(selected, num_classes=E).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            weight = (routing_weights * mask[i].transpose(0, 1)).sum(-1, keepdim=True)
            out = out + expert(x) * weight
        return out


@has("router", given=(ROWS,))
class BatchedExperts(Experts):
    """All experts as one batched product, weights scattered back."""

    def forward(self, x):
        top, index = torch.topk(self.gate(x), 2, dim=-1)
        scores = torch.zeros_like(self.gate(x)).scatter_(1, index, top.softmax(-1))
        h = torch.bmm(x.unsqueeze(0).expand(E, -1, -1), self.w1)
        out = torch.bmm(F.gelu(h), self.w2)
        return (out * scores.transpose(0, 1).unsqueeze(-1)).sum(dim=0)


@has("router", given=(ROWS,))
class GatheredExperts(Experts):
    """The weights of the chosen experts gathered for every token."""

    def forward(self, x):
        weights, index = torch.topk(F.softmax(self.gate(x), -1), 2, -1)
        h = F.relu(torch.einsum("nd,nkdh->nkh", x, self.w1[index]))
        out = torch.einsum("nkh,nkhd->nkd", h, self.w2[index])
        return (out * weights.unsqueeze(-1)).sum(1)


@has("router", given=(ROWS,))
class SigmoidRouter(Experts):
    """DeepSeek-V3: sigmoid scores, biased choice, weights of the unbiased ones."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bias", torch.zeros(E))

    def forward(self, x):
        scores = self.gate(x).sigmoid()
        index = torch.topk(scores + self.bias, k=2, dim=-1, sorted=False)[1]
        weights = scores.gather(1, index)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * 2.5
        h = F.silu(torch.einsum("nd,nkdh->nkh", x, self.w1[index]))
        return (torch.einsum("nkh,nkhd->nkd", h, self.w2[index]) * weights.unsqueeze(-1)).sum(dim=1)


@has("router", given=(ROWS,))
class SwitchTop1(Experts):
    def forward(self, x):
        probs = F.softmax(self.gate(x), dim=-1)
        top, index = probs.max(dim=-1)
        onehot = F.one_hot(index, E).to(x.dtype)
        out = sum(onehot[:, i, None] * e(x) for i, e in enumerate(self.experts))
        return top.unsqueeze(-1) * out


@has("router", given=(IMAGE,))
class PooledRouter(nn.Module):
    """Experts are convolutions, the router sees the pooled image."""

    def __init__(self):
        super().__init__()
        self.router, self.convs = nn.Linear(D, 2), nn.ModuleList(nn.Conv2d(D, D, 3, padding=1) for _ in range(2))

    def forward(self, x):
        g = F.softmax(self.router(x.mean((2, 3))), dim=1)
        return sum(g[:, i].view(-1, 1, 1, 1) * conv(x) for i, conv in enumerate(self.convs))


@has("router")
class LoRAExperts(nn.Module):
    """Low-rank experts beside a base layer."""

    def __init__(self):
        super().__init__()
        self.base, self.router = nn.Linear(D, D), nn.Linear(D, 3)
        self.a, self.b = nn.Parameter(torch.randn(3, D, 2)), nn.Parameter(torch.randn(3, 2, D))

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        low = torch.einsum("btd,edr->bter", x, self.a)
        return self.base(x) + torch.einsum("bte,bter,erd->btd", weights, low, self.b)


@has("router", "router", given=(STEP,))
class MMoE(Experts):
    """Two tasks, each with its own gate over the shared experts."""

    def __init__(self):
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(D, E) for _ in range(2))

    def forward(self, x):
        out = torch.stack([e(x) for e in self.experts], 1)
        return tuple((F.softmax(g(x), dim=1).unsqueeze(2) * out).sum(dim=1) for g in self.gates)


@has("router", given=(STEP,))
class LinearRouter(Experts):
    """Weights that nothing bounds."""

    def forward(self, x):
        out = torch.stack([expert(x) for expert in self.experts], dim=1)
        return torch.einsum("be,bed->bd", self.gate(x), out)


@has("router", given=(TOKENS, STEP))
class PooledLinearRouter(Experts):
    """Weights summed up over what was seen before, by products with a query; the experts are numbers."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(D, 1) for _ in range(E))
        self.score = nn.Bilinear(D, D, 1)

    def forward(self, seen, x):
        a = self.score(seen.contiguous(), x.unsqueeze(1).expand_as(seen).contiguous())
        weights = (a.transpose(1, 2) @ self.gate(seen)).squeeze(1)
        return (torch.cat([head(x) for head in self.heads], dim=-1) * weights).sum(-1)


@has("router")
class NumbersOfExperts(Experts):
    """Each expert is one output of a layer."""

    def forward(self, x):
        return torch.sum(F.softmax(self.gate(x) / 0.5, dim=-1) * self.experts[0][0](x)[..., :E], dim=-1)


@has("router", given=(ROWS,))
class NestedExperts(Experts):
    """The largest of the scores says how many experts run, the first ones first."""

    def forward(self, x):
        runs = (self.gate(x).argmax(dim=-1, keepdim=True) >= torch.arange(E)).to(x.dtype)
        return sum(runs[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


@has("router", given=(STEP,))
class StepsOfOneRouter(Experts):
    """One router at each of several steps."""

    def forward(self, x):
        for _ in range(3):
            weights = self.gate(x).softmax(-1)
            x = x + sum(weights[:, [i]] * expert(x) for i, expert in enumerate(self.experts))
        return x


# -- mixtures ---------------------------------------------------------------------------------------------------------


@has("mixture", given=(IMAGE,))
class SelectiveKernel(nn.Module):
    """SKNet: softmax over the branches, from their pooled sum."""

    def __init__(self):
        super().__init__()
        self.conv3, self.conv5 = nn.Conv2d(D, D, 3, padding=1), nn.Conv2d(D, D, 5, padding=2)
        self.reduce, self.select = nn.Conv2d(D, 4, 1), nn.Conv2d(4, 2 * D, 1)

    def forward(self, x):
        branches = torch.stack([self.conv3(x), self.conv5(x)], dim=1)
        pooled = branches.sum(1).mean((2, 3), keepdim=True)
        attn = self.select(F.relu(self.reduce(pooled))).view(-1, 2, D, 1, 1)
        return (branches * torch.softmax(attn, dim=1)).sum(dim=1)


@has("mixture")
class ScalarMix(nn.Module):
    """ELMo: layers under softmax of learned numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
        self.weights = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        outs = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            outs.append(x)
        normed = torch.softmax(self.weights, dim=0)
        return sum(w * o for w, o in zip(torch.split(normed, 1), outs, strict=True))


@has("mixture")
class StackedMix(nn.Module):
    """Weighted layer sum of speech models."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
        self.layer_weights = nn.Parameter(torch.ones(3) / 3)

    def forward(self, x):
        hidden = [x]
        for layer in self.layers[:2]:
            hidden.append(F.gelu(layer(hidden[-1])))
        norm_weights = F.softmax(self.layer_weights, dim=-1)
        return (torch.stack(hidden, dim=1) * norm_weights.view(-1, 1, 1)).sum(dim=1)


@has("mixture")
class FastNormalisedFusion(nn.Module):
    """BiFPN."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.w = nn.Linear(D, D), nn.Linear(D, D), nn.Parameter(torch.ones(2))

    def forward(self, x):
        w = F.relu(self.w)
        w = w / (w.sum() + 1e-4)
        return w[0] * self.a(x) + w[1] * self.b(x)


@has("mixture")
class TwoPaths(nn.Module):
    """GAM: local and global paths, each under its sigmoid."""

    def __init__(self):
        super().__init__()
        self.local, self.globe = nn.Conv1d(D, D, 3, padding=1, groups=D), nn.Linear(D, D)
        self.wl, self.wg = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, u):
        local = self.local(u.transpose(1, 2)).transpose(1, 2)
        return u + torch.sigmoid(self.wl(u)) * local + torch.sigmoid(self.wg(u)) * torch.tanh(self.globe(u))


@has("mixture", given=(STEP, STEP.flip(0), STEP.flip(1)))
class ModalityAttention(nn.Module):
    """Softmax over three modalities from all of them."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(3 * D, 3)

    def forward(self, a, b, c):
        w = F.softmax(self.score(torch.cat([a, b, c], -1)), dim=-1)
        return w[:, 0:1] * a + w[:, 1:2] * b + w[:, 2:3] * c


@has("mixture", given=(STEP, STEP.flip(0), STEP.flip(1)))
class ViewsSqueezed(nn.Module):
    """Squeeze and excite over three views, which are then summed."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, a, b, c):
        views = torch.stack((a, b, c), 1)
        score = self.fc2(F.relu(self.fc1(views.mean(-1)))).sigmoid()
        return (views * score[:, :, None]).sum(1)


@has("highway")
class CopiedMass(nn.Module):
    """How likely a word of a list is says which of two predictions counts."""

    def __init__(self):
        super().__init__()
        self.vocabulary, self.a, self.b = nn.Linear(D, H), nn.Linear(D, D), nn.Linear(D, D)
        self.register_buffer("listed", (torch.arange(H) % 3 == 0).float())

    def forward(self, x):
        p = F.softmax(self.vocabulary(x), dim=-1)
        lam = torch.sum(self.listed * p, dim=-1, keepdim=True)
        return (1.0 - lam) * self.b(x) + self.a(x) * lam


@has("highway")
class SlicedMass(CopiedMass):
    def forward(self, x):
        lam = self.vocabulary(x).softmax(-1)[..., 5:].sum(-1, keepdim=True)
        return lam * self.a(x) + (1 - lam) * self.b(x)


@has("mixture", given=(STEP,))
class FixedShares(Experts):
    """Experts under learned numbers that nothing bounds."""

    def __init__(self):
        super().__init__()
        self.shares = nn.Parameter(torch.ones(E))

    def forward(self, x):
        out = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (out * self.shares).sum(-1)


@has("glu", "router")
class SortedExperts(nn.Module):
    """Rows sorted by the expert that was chosen for each, a matrix for each group; what is chosen is summed as it is."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(D, E), nn.Parameter(torch.randn(E, D, 4 * D))
        self.down = nn.Parameter(torch.randn(E, 2 * D, D))

    def forward(self, x):
        rows = x.flatten(0, 1)
        expert, order = self.gate(rows).softmax(-1).argmax(-1).sort()
        ends = (expert[:, None] <= torch.arange(E)).sum(0, dtype=torch.int32)
        rows, up, down = (t.bfloat16() for t in (rows[order], self.up, self.down))
        a, b = F.grouped_mm(rows, up, offs=ends).chunk(2, -1)
        return F.grouped_mm(F.silu(a) * b, down, offs=ends)[order.argsort()].float().view_as(x)


@has("router", given=(ROWS,))
class LookedUpExpert(nn.Module):
    """One expert's matrix for each row, looked up by the largest score."""

    def __init__(self):
        super().__init__()
        self.gate, self.matrices = nn.Linear(D, E), nn.Parameter(torch.randn(E, D, D))

    def forward(self, x):
        return torch.einsum("nd,nde->ne", x, self.matrices[self.gate(x).argmax(-1)])
