"""Products of two branches, as models write them."""

import math

import torch
from snippets import COND, IMAGE, ROWS, SERIES, STATE, STEP, TOKENS, D, H, has
from torch import nn
from torch.nn import functional as F


class TwoBranches(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.gate_proj = nn.Linear(D, H, bias=bias)
        self.up_proj = nn.Linear(D, H, bias=bias)
        self.down_proj = nn.Linear(H, D, bias=bias)
        self.act_fn = nn.SiLU()


@has("glu")
class LlamaMLP(TwoBranches):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


@has("glu")
class GeluTanhMLP(TwoBranches):
    def forward(self, hidden_states):
        hidden_gelu = 0.5 * self.gate_proj(hidden_states)
        z = self.gate_proj(hidden_states)
        hidden_gelu = hidden_gelu * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * torch.pow(z, 3.0))))
        return self.down_proj(F.dropout(hidden_gelu * self.up_proj(hidden_states), 0.1, self.training))


@has("glu")
class Clamped(nn.Module):
    """Packed and interleaved, clamped, with a one beside the value."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Linear(D, 2 * H)
        self.down_proj = nn.Linear(H, D)

    def forward(self, x):
        gate_up = self.gate_up_proj(x)
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        gate, up = gate.clamp(min=None, max=7.0), up.clamp(min=-7.0, max=7.0)
        glu = gate * torch.sigmoid(gate * 1.702)
        return self.down_proj((up + 1) * glu)


@has("glu")
class PackedChunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.w12, self.w3 = nn.Linear(D, 2 * H), nn.Linear(H, D)

    def forward(self, x):
        x1, x2 = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(x1) * x2)


@has("glu")
class DiffusersGEGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj, self.out = nn.Linear(D, 2 * H), nn.Linear(H, D)

    def forward(self, hidden_states):
        hidden_states, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return self.out(hidden_states * F.gelu(gate))


@has("glu")
class ReGLU(TwoBranches):
    def forward(self, x):
        return self.down_proj(self.up_proj(x) * F.relu(self.gate_proj(x)))


@has("glu")
class Bilinear(TwoBranches):
    def forward(self, x):
        return self.down_proj(self.up_proj(x).mul_(self.gate_proj(x)))


@has("glu")
class ClassicGLU(TwoBranches):
    def forward(self, x):
        return self.down_proj(torch.sigmoid(self.gate_proj(x)) * self.up_proj(x))


@has("glu")
class SplitWithWeights(nn.Module):
    """Functional, with parameters of its own and einsum."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(D, H)), nn.Parameter(torch.randn(D, H))

    def forward(self, x):
        return F.silu(torch.einsum("btd,dh->bth", x, self.w1)) * torch.einsum("btd,dh->bth", x, self.w2)


@has("glu", given=(IMAGE,))
class GatedConv(nn.Module):
    """Free-form inpainting."""

    def __init__(self):
        super().__init__()
        self.feature, self.gating = nn.Conv2d(D, D, 3, padding=1), nn.Conv2d(D, D, 3, padding=1)

    def forward(self, x):
        return F.leaky_relu(self.feature(x), 0.2) * torch.sigmoid(self.gating(x))


@has("glu", given=(IMAGE,))
class SplitConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(D, 2 * D, 3, padding=1)

    def forward(self, x):
        a, b = torch.split(self.conv(x), D, dim=1)
        return F.gelu(a) * b


@has("glu", given=(SERIES,))
class WaveNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.dilated, self.skip = nn.Conv1d(D, 2 * D, 3, padding=2, dilation=2), nn.Conv1d(D, D, 1)

    def forward(self, x):
        filt, gate = self.dilated(x).chunk(2, dim=1)
        return x + self.skip(torch.tanh(filt) * torch.sigmoid(gate))


@has("glu", given=(SERIES,))
class ConformerConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.pointwise_conv1, self.depthwise = nn.Conv1d(D, 2 * D, 1), nn.Conv1d(D, D, 3, padding=1, groups=D)
        self.norm, self.pointwise_conv2 = nn.BatchNorm1d(D), nn.Conv1d(D, D, 1)

    def forward(self, x):
        x = F.glu(self.pointwise_conv1(x), dim=1)
        return self.pointwise_conv2(F.silu(self.norm(self.depthwise(x))))


@has("glu")
class NormedBranches(TwoBranches):
    """Activator: the same norm on both branches."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(H)

    def forward(self, x):
        return self.down_proj(self.norm(F.gelu(self.gate_proj(x))) * self.norm(self.up_proj(x))) + x


@has("glu")
class GatedNorm(nn.Module):
    """The gate of gated linear attention's output: a norm written out, then swish of a projection."""

    def __init__(self):
        super().__init__()
        self.v_proj, self.g_proj, self.o_proj = nn.Linear(D, H), nn.Linear(D, H), nn.Linear(H, D)
        self.weight = nn.Parameter(torch.ones(H))

    def forward(self, x):
        o, g = self.v_proj(x), self.g_proj(x)
        o = o.float()
        variance = o.pow(2).mean(-1, keepdim=True)
        o = self.weight * (o * torch.rsqrt(variance + 1e-6)).to(x.dtype)
        return self.o_proj(o * F.silu(g))


@has("glu", given=(STEP, STATE))
class TwoStreamBilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.v, self.p = nn.Linear(D, H), nn.Linear(D, H), nn.Linear(H, D)

    def forward(self, q, v):
        return self.p(torch.tanh(self.u(q)) * torch.tanh(self.v(v)))


@has("glu")
class MambaGate(nn.Module):
    """A short convolution on one half, silu of the other."""

    def __init__(self):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(D, 2 * H, bias=False), nn.Linear(H, D, bias=False)
        self.conv1d = nn.Conv1d(H, H, 3, groups=H, padding=2)

    def forward(self, x):
        h, gate = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        h = F.silu(self.conv1d(h)[..., : x.shape[1]])
        return self.out_proj((h * F.silu(gate)).transpose(1, 2))


@has("token-mixing")
class SpatialGatingUnit(nn.Module):
    """gMLP in timm: no activation on the gate."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, 2 * H), nn.Linear(H, D)
        self.norm, self.proj = nn.LayerNorm(H), nn.Linear(6, 6)

    def forward(self, x):
        u, v = F.gelu(self.fc1(x)).chunk(2, dim=-1)
        v = self.proj(self.norm(v).transpose(-1, -2))
        return self.fc2(u * v.transpose(-1, -2))


@has("token-mixing")
class SpatialGatingConv(nn.Module):
    """gMLP over tokens as channels of a convolution, as in lucidrains' code, with tanh."""

    def __init__(self):
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(D, 2 * H), nn.Linear(H, D)
        self.norm, self.proj = nn.LayerNorm(H), nn.Conv1d(6, 6, 1)

    def forward(self, x):
        res, gate = F.gelu(self.proj_in(x)).chunk(2, dim=-1)
        gate = F.conv1d(self.norm(gate), self.proj.weight, self.proj.bias)
        return self.proj_out(torch.tanh(gate) * res)


@has("token-mixing")
class MaximGate(nn.Module):
    """u * (Dense over positions of v, plus one)."""

    def __init__(self):
        super().__init__()
        self.inp, self.out = nn.Linear(D, 2 * H), nn.Linear(H, D)
        self.norm, self.spatial = nn.LayerNorm(H), nn.Linear(6, 6)

    def forward(self, x):
        u, v = torch.chunk(F.gelu(self.inp(x)), 2, dim=-1)
        v = self.spatial(self.norm(v).permute(0, 2, 1)).permute(0, 2, 1)
        return self.out(u * (v + 1.0)) + x


@has("token-mixing")
class BaseConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection, self.conv = nn.Linear(D, D), nn.Conv1d(D, D, 3, padding=2, groups=D)

    def forward(self, u):
        conv = self.conv(u.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2)
        return conv * self.projection(u) + u


@has("token-mixing", "token-mixing", given=(IMAGE,))
class HorNet(nn.Module):
    """Recursive gated convolution of order two."""

    def __init__(self):
        super().__init__()
        self.proj_in, self.proj_out = nn.Conv2d(D, 2 * D, 1), nn.Conv2d(D, D, 1)
        self.dwconv, self.pw = nn.Conv2d(12, 12, 7, padding=3, groups=12), nn.Conv2d(4, 8, 1)
        self.scale = 0.5

    def forward(self, x):
        pwa, abc = torch.split(self.proj_in(x), (4, 12), dim=1)
        dw_list = torch.split(self.dwconv(abc) * self.scale, (4, 8), dim=1)
        x = pwa * dw_list[0]
        x = self.pw(x) * dw_list[1]
        return self.proj_out(x)


@has("token-mixing", given=(IMAGE,))
class Conv2Former(nn.Module):
    """Convolutional modulation."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(D, D, 1), nn.GELU(), nn.Conv2d(D, D, 5, padding=2, groups=D))
        self.v, self.proj = nn.Conv2d(D, D, 1), nn.Conv2d(D, D, 1)

    def forward(self, x):
        return self.proj(self.a(x) * self.v(x))


@has("token-mixing", given=(IMAGE,))
class LargeKernelAttention(nn.Module):
    """VAN: the value is multiplied by a stack of convolutions of itself."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(D, D, 5, padding=2, groups=D)
        self.conv_spatial, self.conv1 = nn.Conv2d(D, D, 7, padding=9, groups=D, dilation=3), nn.Conv2d(D, D, 1)

    def forward(self, x):
        u = x.clone()
        attn = self.conv1(self.conv_spatial(self.conv0(x)))
        return u * attn


@has("product")
class SelfMask(nn.Module):
    """FCN: the mask is relu of the normed value itself."""

    def __init__(self):
        super().__init__()
        self.W, self.norm = nn.Linear(D, D // 2), nn.LayerNorm(D // 2)

    def forward(self, x):
        h = self.W(x)
        return torch.cat([h, h * F.relu(self.norm(h))], -1)


@has("product")
class ContextGating(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x):
        return x * torch.sigmoid(self.fc(x))


@has("product", given=(STEP, COND))
class ConditionGate(nn.Module):
    """A stream under the sigmoid of another one's layer."""

    def __init__(self):
        super().__init__()
        self.to_gate = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D), nn.Sigmoid())

    def forward(self, x, cond):
        return x * self.to_gate(cond)


@has("token-mixing", given=(IMAGE,))
class ActivatedLargeKernel(nn.Module):
    """VAN's block: an activation before the value and its convolutions part."""

    def __init__(self):
        super().__init__()
        self.proj_1, self.proj_2, self.point = nn.Conv2d(D, D, 1), nn.Conv2d(D, D, 1), nn.Conv2d(D, D, 1)
        self.depthwise = nn.Conv2d(D, D, 5, padding=2, groups=D)
        self.dilated = nn.Conv2d(D, D, 7, padding=9, dilation=3, groups=D)

    def forward(self, x):
        y = F.relu(self.proj_1(x))
        return x + self.proj_2(self.point(self.dilated(self.depthwise(y))) * y)


@has("token-mixing", given=(IMAGE,))
class CoarseGate(nn.Module):
    """A gate at half the resolution, from what lies around."""

    def __init__(self):
        super().__init__()
        self.around = nn.Conv2d(D, D, 3, padding=1, groups=D, bias=False)

    def forward(self, x):
        coarse = torch.sigmoid(self.around(F.avg_pool2d(x, 2)))
        return F.interpolate(coarse, size=x.shape[2:], mode="nearest").mul(x)


@has("product")
class BottleneckGate(nn.Module):
    """Two layers make the gate of the value itself, which comes out of a layer."""

    def __init__(self):
        super().__init__()
        self.inp, self.down, self.up = nn.Linear(D, H), nn.Linear(H, 4), nn.Linear(4, H)

    def forward(self, x):
        h = self.inp(x)
        return h * torch.sigmoid(self.up(F.relu(self.down(h))))


@has("product", given=(STEP, COND))
class ColdFusion(nn.Module):
    """A gate from both streams on one of them, which stays beside the other."""

    def __init__(self):
        super().__init__()
        self.lm, self.fine = nn.Sequential(nn.Linear(D, H), nn.ReLU()), nn.Linear(D + H, H)

    def forward(self, state, logits):
        h_lm = self.lm(logits)
        g = self.fine(torch.hstack([state, h_lm])).sigmoid()
        return torch.hstack([state, h_lm * g])


@has("glu", given=(TOKENS, COND))
class BroadcastBilinear(nn.Module):
    """One row of a question meets every token: both factors are bounded, neither is the other's condition."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(D, H), nn.Linear(D, H), nn.Linear(H, 3)

    def forward(self, tokens, question):
        return self.out(self.left(tokens).tanh() * self.right(question).tanh()[:, None, :])


@has("glu", given=(STEP, STATE))
class FactorisedBilinear(nn.Module):
    """Products of two inputs' projections, summed in groups, with a signed root."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(D, 3 * H), nn.Linear(D, 3 * H)

    def forward(self, image, text):
        joint = torch.mul(self.image(image), self.text(text)).reshape(-1, H, 3)
        pooled = torch.sum(joint, dim=2)
        return F.normalize(pooled.sign() * pooled.abs().sqrt(), dim=1)


@has("token-mixing", given=(IMAGE.repeat(1, 1, 2, 2)[..., :8, :8].permute(0, 2, 3, 1),))
class WindowGate(nn.Module):
    """A spatial gating unit whose layer runs over the cells that windows of a channels-last image have in common."""

    def __init__(self):
        super().__init__()
        self.expand, self.shrink, self.over_cells = nn.Linear(D, 2 * H), nn.Linear(H, D), nn.Linear(4, 4)

    def forward(self, x):
        b, h, w, _ = x.shape
        u, v = F.gelu(self.expand(x)).split(H, dim=-1)
        v = v.reshape(b, 2, h // 2, 2, w // 2, H).permute(0, 1, 3, 2, 4, 5).reshape(b, 4, h * w // 4, H)
        v = self.over_cells(v.swapaxes(1, 3)).swapaxes(1, 3)
        v = v.reshape(b, 2, 2, h // 2, w // 2, H).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, H)
        return x + self.shrink(v * u)


@has("token-mixing", given=(TOKENS, TOKENS.flip(0)))
class CrossGate(nn.Module):
    """The gate of one stream is made of two halves of the other, each mixed over the tokens."""

    def __init__(self):
        super().__init__()
        self.inp, self.first, self.second, self.fuse = (
            nn.Linear(D, D),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(D, D),
        )

    def forward(self, x, y):
        halves = y.mT.split(D // 2, dim=1)
        gate = self.fuse(torch.cat((self.first(halves[0]), self.second(halves[1])), dim=1).mT)
        return F.gelu(self.inp(x)) * gate


@has("token-mixing", given=(SERIES,))
class MemoryGate(nn.Module):
    """Both factors have a short convolution beside a skip; one of them has a second, dilated one."""

    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Conv1d(D, D, 1), nn.Conv1d(D, D, 1)
        self.near_u, self.near_v, self.far = (nn.Conv1d(D, D, 3, 1, d, d, groups=D) for d in (1, 1, 4))

    def forward(self, x):
        u, v = self.u(x), self.v(x)
        u, v = u + self.near_u(u), v + self.near_v(v)
        return x + (u + self.far(F.relu(u))) * v


@has("product")
class DeepSelfGate(nn.Module):
    """The signal comes out of two layers, of the very value that it gates."""

    def __init__(self):
        super().__init__()
        self.fc, self.gate = nn.Linear(D, H), nn.Sequential(nn.Linear(H, 4), nn.ReLU(), nn.Linear(4, H), nn.Sigmoid())

    def forward(self, x):
        y = self.fc(x)
        return self.gate(y) * y


@has("product", given=(ROWS, ROWS.unflatten(0, (-1, 6)).flip(1)[0]))
class SparseReadout(nn.Module):
    """Sparsemax over slots times a learned number for each, then over the slots' values."""

    def __init__(self):
        super().__init__()
        self.score, self.importance = nn.Linear(D, 6), nn.Parameter(torch.linspace(0.5, 1.5, 6))

    def forward(self, x, slots):
        z = self.score(x)
        top = torch.sort(z, dim=-1, descending=True)[0]
        steps = torch.arange(1.0, 7.0)
        inside = 1 + steps * top > top.cumsum(-1)
        k = inside.sum(-1, keepdim=True)
        tau = (torch.gather(top.cumsum(-1), -1, k - 1) - 1) / k
        return ((z - tau).clamp(min=0) * self.importance) @ slots
