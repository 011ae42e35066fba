"""Tensors made in a forward: positions, masks, tables, and the reshapes around them."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from odd import Block, X, call, ids, odd, rows

S = rows(2, 5)


@odd(S, others=[rows(3, 5), rows(2, 7), rows(1, 1)])
class Positions(Block):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 8)

    def forward(self, x):
        b, n, _ = x.shape
        at = torch.arange(n, device=x.device).unsqueeze(0).expand(b, -1)
        return self.mlp(x + self.table(at)) + torch.arange(0, 2 * n, 2)[None, :, None]


@odd(S, others=[rows(3, 5), rows(2, 7), rows(1, 1), S.double().float()])
class CausalMask(Block):
    def forward(self, x):
        n = x.size(1)
        mask = torch.full((n, n), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)
        scores = x @ x.transpose(1, 2) / math.sqrt(x.size(-1)) + mask
        return self.mlp(scores.softmax(-1) @ x)


@odd(S, others=[rows(2, 7), rows(1, 1)])
class TrilOfOnes(Block):
    def forward(self, x):
        n = x.shape[1]
        keep = torch.tril(torch.ones(n, n, dtype=torch.bool))
        band = torch.ones_like(keep).triu(-2) & keep
        weights = (x @ x.mT).masked_fill(~band, float("-inf")).softmax(-1)
        return self.mlp(weights @ x)


@odd(X, others=[rows(3), rows(2, 2), X.double()])
class LikesAndNews(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x) + torch.ones_like(x, dtype=torch.float32) + torch.full_like(x, 0.5) + x.new_zeros(8)
        y = y + x.new_ones(x.shape) + x.new_full((x.size(0), *x.shape[1:]), 2.0) + x.new_tensor([1.0] * 8)
        return y + torch.empty_like(x).zero_() + x.new_empty(x.shape).fill_(1)


@odd(S, others=[rows(3, 5), rows(2, 7)])
class TensorOfSizes(Block):
    def forward(self, x):
        sizes = torch.tensor(x.shape) + torch.tensor([x.size(0), 1, len(x)])
        lengths = torch.tensor([x.shape[1]] * x.shape[0], dtype=torch.float32)
        return self.mlp(x) * sizes.sum() + lengths[:, None, None] / torch.tensor(x.shape[1] ** 0.5)


@odd(X, others=[rows(3), rows(9)])
class Factories(Block):
    def forward(self, x):
        n, d = x.shape
        y = (
            torch.eye(n, d)
            + torch.linspace(0, 1, d)
            + torch.logspace(0, 1, n)[:, None]
            + torch.zeros(n, 1)
            + torch.ones(())
        )
        y = y + torch.full((n, 1), 2.0) + torch.as_tensor([1.0] * d) + torch.scalar_tensor(3.0) + torch.hann_window(d)
        rows_at, columns_at = torch.tril_indices(n, n)
        return (
            self.mlp(x) + y + rows_at.sum() - columns_at.float().mean() + torch.empty(n, d).fill_(2) + torch.range(0, 7)
        )


@odd(X, others=[rows(3)])
class Grids(nn.Module):
    def forward(self, x):
        ys, xs = torch.meshgrid(torch.arange(x.size(0)), torch.arange(x.size(1)), indexing="ij")
        grid = torch.stack((ys, xs), -1).float()
        product = torch.cartesian_prod(torch.arange(len(x)), torch.arange(2))
        return grid.sum(-1) * x + product.sum()


@odd(S, others=[rows(3, 5), rows(2, 7)])
class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.proj = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 8)

    def forward(self, x):
        tokens = self.token.expand(x.shape[0], -1, -1)
        x = torch.cat((tokens, x, x.new_zeros(x.size(0), 2, 8)), dim=1)
        mask = torch.cat([torch.ones(x.size(0), 1), torch.zeros(x.size(0), x.size(1) - 1)], 1)
        return self.proj(x)[:, 0], mask


@odd(rows(2, 6), others=[rows(1, 4), rows(3, 2)])
class Heads(Block):
    """What einops would write: split heads, swap, merge."""

    def forward(self, x):
        b, n, d = x.shape
        h = x.view(b, n, 4, d // 4).permute(0, 2, 1, 3).reshape(b * 4, n, -1)
        y = torch.bmm(h, h.transpose(1, 2)).softmax(-1) @ h
        y = y.unflatten(0, (b, 4)).transpose(1, 2).flatten(2)
        return self.mlp(y) + x.reshape(b, n // 2, 2 * d).repeat_interleave(2, 1)[..., :d]


@odd(S, others=[rows(3, 5), rows(2, 7)])
class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 2))

    def forward(self, x):
        y = torch.einsum("bnd,hdk->bhnk", x, self.weight)
        scores = torch.einsum("... i k, ... j k -> ... i j", y, y)
        return torch.einsum("bhij,bhjk->bihk", [scores, y]), torch.tensordot(x, self.weight, dims=([2], [1]))


@odd(X, others=[rows(3)], refused="it calls torch.func.vmap")
class Vmapped(Block):
    def forward(self, x):
        return torch.func.vmap(lambda row: row * row.sum())(self.mlp(x))


@odd(X, others=[rows(3)], refused="it calls torch.vmap")
class VmappedModule(Block):
    def forward(self, x):
        return torch.vmap(self.mlp, in_dims=0)(x)


@odd(X, others=[rows(3)], refused="it calls torch.func.jacrev")
class Jacobian(Block):
    def forward(self, x):
        return torch.func.jacrev(torch.sin)(x[0]) @ self.mlp(x).T


@odd(rows(2, 5), others=[rows(2, 8), rows(2, 3), rows(2, 4)])
class PadsToMultiple(Block):
    def forward(self, x):
        n = x.shape[1]
        short = (4 - n % 4) % 4
        if short:
            x = F.pad(x, (0, 0, 0, short))
        windows = x.view(x.shape[0], -1, 4, x.shape[-1])
        return self.mlp(windows).flatten(1, 2)[:, :n].contiguous()


@odd(rows(2, 3, 6), others=[rows(1, 3, 5), rows(2, 3, 9)])
class Interpolates(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        small = F.adaptive_avg_pool2d(x, (x.shape[2] // 2, 2))
        back = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return back + F.interpolate(small, scale_factor=2.0)[:, :, :1, :1], F.interpolate(x, size=(x.size(2) * 2, 4))


@odd(rows(2, 3, 6), others=[rows(1, 3, 8), rows(2, 3, 4)])
class Unfolds(nn.Module):
    def forward(self, x):
        patches = F.unfold(x, 2, stride=2)
        folded = F.fold(patches, x.shape[-2:], 2, stride=2)
        return patches, folded, x.unfold(2, 2, 1), x.as_strided((2, 2), (1, 1))


@odd(call(X, ids(4) % 4), others=[call(rows(3), ids(3) % 3)])
class Scatters(Block):
    def forward(self, x, at):
        y = self.mlp(x)
        out = torch.zeros_like(y).index_add_(0, at, y)
        out = out.scatter_add(0, at[:, None].expand(-1, 8), y).index_copy(0, at[:1], y[:1])
        return (
            out.scatter_reduce_(0, at[:, None].expand_as(y), y, reduce="amax"),
            F.one_hot(at, 4),
            y.gather(1, at[:, None]),
        )


@odd(call(X, ids(4) % 4), others=[call(rows(5), ids(5) % 4)])
class IndexPuts(Block):
    def forward(self, x, at):
        y = self.mlp(x)
        y = y.index_put((at,), x[: at.size(0)], accumulate=True)
        z = y.clone()
        z[at, 0] = 1.0
        z[:, at % 8] += 2
        z[torch.arange(z.size(0)), at] *= 3
        return z, y[at], y.take_along_dim(at[:, None], 1), torch.take(y, at)


@odd(X, others=[rows(3), rows(2, 2)])
class MaskAssignment(Block):
    """x[mask] = number is of one size whatever the mask holds."""

    def forward(self, x):
        y = self.mlp(x)
        mask = y > 0
        y[mask] = 0
        y[x > 1] = x.mean()
        return y


@odd(X, others=[rows(3)], refused="a size or a value in it depends on data (aten.nonzero.default)")
class MaskedUpdate(Block):
    """y[mask] is read before it is written, and its size depends on the mask."""

    def forward(self, x):
        y = self.mlp(x)
        y[y > 0] *= 2  # refused
        return y


@odd(X, others=[rows(3)])
class Wheres(Block):
    def forward(self, x):
        y = self.mlp(x)
        y = torch.where(y > 0, y, -1.0).masked_fill_(x < 0, 0.0).masked_scatter(x > 1, x)
        return y.clamp(min=0), torch.maximum(y, x), y.sort(-1), y.topk(2, -1), y.max(-1).values, y.argmax().unsqueeze(0)


@odd(X, others=[rows(3), rows(7)])
class SortsAndWindows(nn.Module):
    def forward(self, x):
        values, at = torch.topk(x, k=min(3, x.shape[0]), dim=0)
        parts = x.chunk(4, -1) + x.split([3, 5], -1) + x.tensor_split(3, 0) + x.unbind(1)
        return values, at, x.roll(1, 0).flip(0), [p.sum() for p in parts], x.split(2, 0), torch.cumsum(x, 0)


@odd(X, others=[rows(3)])
class RotaryCosSin(Block):
    def forward(self, x):
        inverse = 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8))
        angle = torch.outer(torch.arange(x.shape[0], dtype=torch.float32), inverse)
        turn = torch.polar(torch.ones_like(angle), angle)
        turned = torch.view_as_complex(x.float().reshape(x.shape[0], -1, 2)) * turn
        return self.mlp(torch.view_as_real(turned).flatten(1).type_as(x)), angle.cos().to(dtype=x.dtype)


@odd(X, others=[rows(3)])
class MadeFromData(Block):
    """torch.tensor of tensors copies values; stack does not."""

    def forward(self, x):
        return self.mlp(x) + torch.stack([x.mean(), x.sum()]).sum() + torch.as_tensor(x) + torch.atleast_2d(x[0])


@odd(X, others=[rows(3)], refused="it uses a tensor that is no parameter, buffer or attribute of the module")
class ConstantOfModule(Block):
    """A list of numbers on the class becomes a tensor in every call."""

    scales = [0.1 * i for i in range(8)]  # noqa: RUF012

    def forward(self, x):
        return self.mlp(x) * torch.tensor(self.scales) + torch.tensor([[math.pi]]) + torch.FloatTensor([1.0] * 8)


@odd(X, others=[rows(3)], refused="it uses a tensor that is no parameter, buffer or attribute of the module")
class NewTensorClass(Block):
    def forward(self, x):
        return self.mlp(x) + torch.Tensor([1.0, 2.0] * 4) + torch.nn.Parameter(torch.ones(8))


@odd(S, others=[rows(3, 5), rows(2, 7)])
class RelativeBias(nn.Module):
    """T5's buckets: logs, clamps and gathers of a table, all from two sizes."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Embedding(8, 2)

    def forward(self, x):
        n = x.shape[1]
        away = torch.arange(n)[None, :] - torch.arange(n)[:, None]
        far = (away.abs().clamp(min=1).float().log() / math.log(8) * 4).long().clamp(max=3)
        return self.bias(torch.where(away > 0, far + 4, far)).permute(2, 0, 1)[None] + (x @ x.mT)[:, None]


@odd(S, others=[rows(3, 5), rows(2, 7)])
class Alibi(nn.Module):
    def forward(self, x):
        slopes = torch.tensor([2 ** (-8 * (i + 1) / 4) for i in range(4)], dtype=x.dtype)
        return slopes[:, None, None] * torch.arange(x.size(1)).view(1, 1, -1) + (x @ x.mT)[:, None]


@odd(X, others=[rows(3)])
class Attention(Block):
    def forward(self, x):
        q = self.mlp(x).view(1, len(x), 2, 4).transpose(1, 2)
        mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        a = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        return a + F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3)
