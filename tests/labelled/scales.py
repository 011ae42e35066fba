"""Channel and spatial gates, residual scales, learned features, modulation, attention outputs, blends."""

import math

import torch
from snippets import COND, IDS, IMAGE, SERIES, STATE, STEP, TOKENS, D, H, has
from torch import nn
from torch.nn import functional as F

# -- channels and positions -------------------------------------------------------------------------------------------


@has("channel", given=(IMAGE,))
class SqueezeExcite(nn.Module):
    """timm."""

    def __init__(self):
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(D, 4, 1), nn.Conv2d(4, D, 1)
        self.act1, self.gate = nn.ReLU(inplace=True), nn.Sigmoid()

    def forward(self, x):
        x_se = x.mean((2, 3), keepdim=True)
        x_se = self.conv_expand(self.act1(self.conv_reduce(x_se)))
        return x * self.gate(x_se)


@has("channel", given=(IMAGE[..., :1, :1],))
class OnePixel(SqueezeExcite):
    """A map that is as small as what it is pooled to."""


@has("channel", given=(IMAGE,))
class SELayer(nn.Module):
    """The first repository's: linear layers, expand_as."""

    def __init__(self):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(D, 4, bias=False), nn.ReLU(), nn.Linear(4, D, bias=False), nn.Sigmoid())

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


@has("channel", given=(IMAGE,))
class HardSE(nn.Module):
    """MobileNetV3, then a residual."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(D, 4, 1), nn.Conv2d(4, D, 1)

    def forward(self, x):
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = F.hardsigmoid(self.fc2(F.relu(self.fc1(scale))))
        return x + scale * x


@has("channel", given=(IMAGE,))
class EffectiveSE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(D, D, 1)

    def forward(self, x):
        x_se = x.mean((2, 3), keepdim=True)
        return x * (F.relu6(self.fc(x_se) + 3.0) / 6.0)


@has("channel", given=(IMAGE,))
class EcaModule(nn.Module):
    """timm: a 1-d convolution over the channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)

    def forward(self, x):
        y = x.mean((2, 3)).view(x.shape[0], 1, -1)
        y = self.conv(y)
        y = y.view(x.shape[0], -1, 1, 1).sigmoid()
        return x * y.expand_as(x)


@has("channel", given=(IMAGE,))
class EcaTransposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.avg_pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y)


@has("channel", "spatial", given=(IMAGE,))
class CBAM(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(D, 4, 1, bias=False), nn.Conv2d(4, D, 1, bias=False)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def mlp(self, x):
        return self.fc2(F.relu(self.fc1(x)))

    def forward(self, x):
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * self.spatial(pooled).sigmoid()


@has("channel", "spatial", given=(IMAGE,))
class CBAMPools(nn.Module):
    """avg and max pooling layers, torch.max with its indices."""

    def __init__(self):
        super().__init__()
        self.avg_pool, self.max_pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Sequential(nn.Conv2d(D, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, D, 1, bias=False))
        self.conv1, self.sigmoid = nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.Sigmoid()

    def forward(self, x):
        x = self.sigmoid(self.fc(self.avg_pool(x)) + self.fc(self.max_pool(x))) * x
        avg_out = torch.mean(x, dim=1, keepdim=True)
        max_out, _ = torch.max(x, dim=1, keepdim=True)
        return self.sigmoid(self.conv1(torch.cat([avg_out, max_out], dim=1))) * x


@has("channel", given=(SERIES,))
class SE1d(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(D, 4), nn.Linear(4, D)

    def forward(self, x):
        y = x.mean(-1)
        return x * torch.sigmoid(self.linear2(F.relu(self.linear1(y)))).unsqueeze(-1)


@has("channel")
class FieldSE(nn.Module):
    """FiBiNET's SENET over the fields of a recommender."""

    def __init__(self):
        super().__init__()
        self.excitation = nn.Sequential(
            nn.Linear(6, 3, bias=False), nn.ReLU(), nn.Linear(3, 6, bias=False), nn.Sigmoid()
        )

    def forward(self, fields):
        z = torch.mean(fields, dim=-1, out=None)
        return fields * self.excitation(z).unsqueeze(dim=2)


@has("channel", given=(IMAGE,))
class ChannelsLast(nn.Module):
    """Excitation of an image that keeps its channels last."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(D, 4), nn.Linear(4, D)

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean(dim=(1, 2), keepdim=True)))))


@has("spatial", given=(IMAGE,))
class AttentionGate(nn.Module):
    """Attention U-Net."""

    def __init__(self):
        super().__init__()
        self.w_g, self.w_x, self.psi = nn.Conv2d(D, 4, 1), nn.Conv2d(D, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        psi = F.relu(self.w_g(x.flip(-1)) + self.w_x(x))
        return x * torch.sigmoid(self.psi(psi))


@has("spatial")
class TokenGate(nn.Module):
    """One sigmoid per token, as on the shared expert of Qwen2-MoE."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, 1, bias=False)
        self.expert = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))

    def forward(self, x):
        return x + F.sigmoid(self.gate(x)) * self.expert(x)


@has("spatial", given=(SERIES,))
class FrameGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(D, 1, 3, padding=1)

    def forward(self, x):
        return x * self.conv(x).sigmoid()


@has("channel", "spatial", given=(IMAGE,))
class BothAtOnce(nn.Module):
    """scSE's two gates multiplied in one line."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.squeeze = nn.Conv2d(D, 4, 1), nn.Conv2d(4, D, 1), nn.Conv2d(D, 1, 1)

    def forward(self, x):
        c = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.squeeze(x).sigmoid() * (c * x)


@has("channel", "spatial", given=(IMAGE,))
class SideBySide(nn.Module):
    """scSE: the two gated images added."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.conv = nn.Conv2d(D, 4, 1), nn.Conv2d(4, D, 1), nn.Conv2d(D, 1, 1)

    def forward(self, x):
        cse = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return x * cse.sigmoid() + x * self.conv(x).sigmoid()


@has("channel", given=(IMAGE,))
class BornNeutral(nn.Module):
    """Twice a sigmoid of zero."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, 4), nn.Linear(4, D)

    def forward(self, x):
        scale = 2 * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))[..., None, None]
        return scale * x


@has("spatial", given=(IMAGE,))
class LargestMap(nn.Module):
    """The largest of a few maps."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(D, 1, 1) for _ in range(3))

    def forward(self, x):
        seen = torch.stack([torch.sigmoid(m(x)) for m in self.maps])
        return torch.amax(seen, dim=0) * x


@has("spatial", given=(IMAGE,))
class LargerMap(nn.Module):
    """The larger of two maps, and the largest channel of a third."""

    def __init__(self):
        super().__init__()
        self.near, self.far, self.several = nn.Conv2d(D, 1, 1), nn.Conv2d(D, 1, 5, padding=2), nn.Conv2d(D, 3, 1)

    def forward(self, x):
        pair = torch.maximum(self.near(x).sigmoid(), self.far(x).sigmoid())
        return x * torch.maximum(pair, self.several(x).sigmoid().amax(1, keepdim=True))


@has("channel", given=(IMAGE,))
class NamedDimensions(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, 4), nn.Linear(4, D)

    def forward(self, x):
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(torch.einsum("nchw->nc", x) / 16))))
        return torch.einsum("nchw,nc->nchw", x, gate)


# -- learned numbers --------------------------------------------------------------------------------------------------


@has("residual-scale", "residual-scale")
class LayerScaleBlock(nn.Module):
    """timm's vision transformer with LayerScale."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(D), nn.Linear(D, D), nn.LayerNorm(D)
        self.fc1, self.fc2 = nn.Linear(D, H), nn.Linear(H, D)
        self.gamma_1, self.gamma_2 = nn.Parameter(1e-5 * torch.ones(D)), nn.Parameter(1e-5 * torch.ones(D))

    def forward(self, x):
        x = x + self.attn(self.norm1(x)).mul_(self.gamma_1)
        return x + self.gamma_2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


@has("residual-scale", given=(IMAGE,))
class ConvNeXtBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(D, D, 7, padding=3, groups=D), nn.LayerNorm(D)
        self.pwconv1, self.pwconv2, self.gamma = nn.Linear(D, H), nn.Linear(H, D), nn.Parameter(torch.full((D,), 1e-6))

    def forward(self, x):
        input = x
        x = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        x = self.gamma * self.pwconv2(F.gelu(self.pwconv1(x)))
        return input + x.permute(0, 3, 1, 2)


@has("residual-scale")
class ReZero(nn.Module):
    def __init__(self):
        super().__init__()
        self.resweight, self.linear = nn.Parameter(torch.zeros(1)), nn.Linear(D, D)

    def forward(self, src):
        src2 = self.linear(F.relu(self.linear(src)))
        return src + F.dropout(src2 * self.resweight, 0.1, self.training)


@has("residual-scale", given=(IMAGE,))
class SkipInit(nn.Module):
    """NFNet: a constant, then the learned gain."""

    def __init__(self):
        super().__init__()
        self.conv, self.skipinit_gain = nn.Conv2d(D, D, 3, padding=1), nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        out = self.conv(F.silu(x) * 1.7881)
        return (out * self.skipinit_gain) * 0.2 + x


@has("residual-scale", "residual-scale")
class GatedSelfAttention(nn.Module):
    """GLIGEN: tanh of a number born at zero."""

    def __init__(self):
        super().__init__()
        self.linear, self.attn, self.ff = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)
        self.alpha_attn, self.alpha_dense = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        x = x + self.alpha_attn.tanh() * self.attn(self.norm(x))
        return x + self.alpha_dense.tanh() * self.ff(F.gelu(self.norm(x)))


@has("residual-scale")
class SigmoidGatedBranch(nn.Module):
    """HAG in a transformer block."""

    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.g = nn.LayerNorm(D), nn.Linear(D, D), nn.Parameter(torch.zeros(D))

    def forward(self, x):
        return x + self.attn(self.norm(x)) * torch.sigmoid(self.g)


@has("residual-scale")
class DepthGate(nn.Module):
    """FoldGPT: a polarising gate of one number per block."""

    def __init__(self):
        super().__init__()
        self.theta, self.block = (
            nn.Parameter(torch.ones(())),
            nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D)),
        )

    def forward(self, x):
        g = self.theta**2 / (self.theta**2 + 1e-4)
        return x + g * self.block(x)


@has("feature", given=(IMAGE,))
class ChannelMask(nn.Module):
    """HAG after a stage."""

    def __init__(self):
        super().__init__()
        self.conv, self.g = nn.Conv2d(D, D, 3, padding=1), nn.Parameter(torch.zeros(D))

    def forward(self, x):
        return self.conv(x) * torch.sigmoid(self.g).view(1, -1, 1, 1)


@has("feature")
class FeatureSelection(nn.Module):
    """Rescaled sigmoid."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(D))

    def forward(self, e):
        return e * (torch.sigmoid(5.0 * self.mask) / 0.5)


@has("feature")
class ClampedMask(nn.Module):
    """Stretched hard concrete in evaluation."""

    def __init__(self):
        super().__init__()
        self.fc, self.loga = nn.Linear(D, H), nn.Parameter(torch.zeros(H))

    def forward(self, x):
        z = torch.clamp(torch.sigmoid(self.loga) * 1.2 - 0.1, min=0, max=1)
        return self.fc(x) * z


@has("feature")
class TaskMask(nn.Module):
    """HAT: an embedding per task."""

    def __init__(self):
        super().__init__()
        self.fc, self.ec = nn.Linear(D, H), nn.Embedding(3, H)

    def forward(self, x):
        gc = torch.sigmoid(4.0 * self.ec(torch.tensor([1])))
        return F.relu(self.fc(x)) * gc


@has("feature", given=(SERIES,))
class LearnedWindow(nn.Module):
    """A small network over positions makes the window of each channel."""

    def __init__(self):
        super().__init__()
        self.window = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, D))

    def forward(self, x):
        at = torch.arange(x.shape[-1], dtype=x.dtype) / x.shape[-1]
        return self.window(at.unsqueeze(-1)).T * x


@has("scalar")
class LearnedGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.alpha = nn.Linear(D, D), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return F.relu(self.fc(x)) * torch.sigmoid(self.alpha)


@has("scalar")
class TanhScalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.alpha = nn.Linear(D, D), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.fc(x) * self.alpha.tanh()


@has("residual-scale", given=(TOKENS, torch.tensor(0.3)))
class Scheduled(nn.Module):
    """A learned number times one that the caller sets at each step."""

    def __init__(self):
        super().__init__()
        self.fc, self.gamma = nn.Linear(D, D), nn.Parameter(torch.zeros(()))

    def forward(self, x, strength):
        return x + self.fc(x) * (strength * self.gamma.tanh())


@has("residual-scale", given=(TOKENS, torch.tensor([[[0.3]], [[0.6]]])))
class ScheduledEach(nn.Module):
    """A number of the caller's for each sample."""

    def __init__(self):
        super().__init__()
        self.fc, self.gamma = nn.Linear(D, D), nn.Parameter(torch.zeros(D))

    def forward(self, x, t):
        return torch.addcmul(x, self.fc(x), t * self.gamma)


@has("residual-scale", given=(TOKENS, torch.tensor(2)))
class TaskAdapter(nn.Module):
    """A gate per task on an adapter's branch."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.scores = nn.Linear(D, 4), nn.Linear(4, D), nn.Embedding(3, D)

    def forward(self, x, task):
        return self.up(F.relu(self.down(x))) * self.scores(task).sigmoid() + x


@has("residual-scale", given=(TOKENS, COND))
class ConditionedBranch(nn.Module):
    """A bounded gate made of the condition alone."""

    def __init__(self):
        super().__init__()
        self.fc, self.mlp = nn.Linear(D, D), nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, D), nn.Tanh())

    def forward(self, x, c):
        return x + self.mlp(c)[:, None] * self.fc(x)


@has("residual-scale", given=(IDS,))
class FirstLayer(nn.Module):
    """The stream is still the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.alpha = nn.Embedding(20, D), nn.Linear(D, D), nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        h = self.embed(ids)
        return h + self.alpha * F.gelu(self.fc(h))


@has("feature", given=(IMAGE,))
class GatedStream(nn.Module):
    """A mask of channels, then a residual block: the mask is on the stream."""

    def __init__(self):
        super().__init__()
        self.conv, self.next, self.g = nn.Conv2d(D, D, 1), nn.Conv2d(D, D, 3, padding=1), nn.Parameter(torch.zeros(D))

    def forward(self, x):
        h = F.relu(self.conv(x)) * self.g.sigmoid()[:, None, None]
        return h + self.next(h)


@has("feature", given=(STEP,))
class Indicator(nn.Module):
    """A mask made of a learned vector alone."""

    def __init__(self):
        super().__init__()
        self.fc, self.mask, self.task = nn.Linear(D, H), nn.Linear(4, H), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return torch.sigmoid(self.mask(F.relu(self.task))) * self.fc(x)


@has("feature", "feature", given=(STEP, torch.tensor([1, 2])))
class MaskOfRows(nn.Module):
    """Rows of a table, by index and by one-hot product."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.masks = nn.Linear(D, H), nn.Linear(H, H), nn.Parameter(torch.zeros(3, H))

    def forward(self, x, domain):
        x = F.relu(self.fc1(x)) * self.masks[domain].sigmoid()
        return F.relu(self.fc2(x)) * torch.sigmoid(F.one_hot(domain, 3).to(x.dtype) @ self.masks)


@has("feature", given=(IDS,))
class GatedVocabulary(nn.Module):
    """A number for every word, on its embedding."""

    def __init__(self):
        super().__init__()
        self.table, self.score = nn.Embedding(20, D), nn.Parameter(torch.zeros(20, 1))

    def forward(self, ids):
        return F.embedding(ids, self.score).sigmoid() * self.table(ids)


# -- modulation -------------------------------------------------------------------------------------------------------


@has("modulation", given=(IMAGE, COND))
class FiLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma, self.beta, self.conv = nn.Linear(D, D), nn.Linear(D, D), nn.Conv2d(D, D, 3, padding=1)

    def forward(self, x, cond):
        gamma = self.gamma(cond).unsqueeze(2).unsqueeze(3)
        beta = self.beta(cond).unsqueeze(2).unsqueeze(3)
        return F.relu(gamma * self.conv(x) + beta)


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


@has("modulation", "modulation", "residual-scale", "residual-scale", given=(TOKENS, COND))
class DiTBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)
        self.attn, self.mlp = nn.Linear(D, D), nn.Sequential(nn.Linear(D, H), nn.GELU("tanh"), nn.Linear(H, D))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))

    def forward(self, x, c):
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


@has("modulation", given=(IMAGE, COND))
class AdaGN(nn.Module):
    """Scale and shift of a diffusion U-Net's residual block."""

    def __init__(self):
        super().__init__()
        self.norm, self.time_emb_proj, self.conv = (
            nn.GroupNorm(2, D),
            nn.Linear(D, 2 * D),
            nn.Conv2d(D, D, 3, padding=1),
        )

    def forward(self, x, temb):
        temb = self.time_emb_proj(F.silu(temb))[:, :, None, None]
        scale, shift = torch.chunk(temb, 2, dim=1)
        h = self.norm(x) * (1 + scale) + shift
        return x + self.conv(F.silu(h))


@has("modulation", given=(TOKENS, COND))
class ScaleOnly(nn.Module):
    """adaLN with a scale alone."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(D, D), nn.LayerNorm(D, elementwise_affine=False)

    def forward(self, x, temb):
        return self.norm(x) * (1 + self.linear(F.silu(temb)))[:, None, :]


@has("modulation", given=(TOKENS, TOKENS.flip(0)))
class ViLN(nn.Module):
    """LaVi: what the condition makes is added to the norm's own weight and bias."""

    def __init__(self):
        super().__init__()
        self.cond, self.gamma, self.beta = (
            nn.Linear(D, 2 * D),
            nn.Parameter(torch.ones(D)),
            nn.Parameter(torch.zeros(D)),
        )

    def forward(self, h, v):
        dgamma, dbeta = self.cond(torch.tanh(v)).chunk(2, dim=-1)
        normed = F.layer_norm(h, (D,))
        return (self.gamma + dgamma) * normed + (self.beta + dbeta)


@has("modulation", given=(IMAGE, IMAGE.flip(0)))
class SPADE(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.shared = (
            nn.InstanceNorm2d(D, affine=False),
            nn.Sequential(nn.Conv2d(D, H, 3, padding=1), nn.ReLU()),
        )
        self.mlp_gamma, self.mlp_beta = nn.Conv2d(H, D, 3, padding=1), nn.Conv2d(H, D, 3, padding=1)

    def forward(self, x, segmap):
        actv = self.shared(segmap)
        return self.norm(x) * (1 + self.mlp_gamma(actv)) + self.mlp_beta(actv)


@has("modulation")
class Recalibrated(nn.Module):
    """PSRP: from a shared bottleneck of the block's own input."""

    def __init__(self):
        super().__init__()
        self.down, self.uw, self.ub = nn.Linear(D, 4, bias=False), nn.Linear(4, D), nn.Linear(4, D)
        self.norm, self.mlp = nn.LayerNorm(D), nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))

    def forward(self, x):
        z = F.relu(self.down(x))
        return x + (self.ub(z) + (1 + self.uw(z)) * self.mlp(self.norm(x)))


@has("modulation", given=(TOKENS, COND))
class AdaLNSingle(nn.Module):
    """PixArt: a table of the block's own, added to what all blocks share."""

    def __init__(self):
        super().__init__()
        self.norm, self.t_block = nn.LayerNorm(D, elementwise_affine=False), nn.Linear(D, 2 * D)
        self.scale_shift_table = nn.Parameter(torch.randn(2, D) / D**0.5)

    def forward(self, x, t):
        shift, scale = (self.scale_shift_table[None] + self.t_block(F.silu(t)).reshape(-1, 2, D)).chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


@has("modulation", given=(TOKENS, COND))
class MovedWeight(nn.Module):
    """What a condition makes is added to the weight of an RMS norm."""

    def __init__(self):
        super().__init__()
        self.weight, self.move = nn.Parameter(torch.ones(D)), nn.Linear(D, D)

    def forward(self, h, c):
        return F.rms_norm(h, (D,), eps=1e-6) * (self.weight + self.move(F.silu(c)).unsqueeze(1))


@has("modulation", given=(IDS, COND))
class EmbeddedFiLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.film = nn.Embedding(20, D), nn.Linear(D, 2 * D)

    def forward(self, ids, speaker):
        scale, shift = self.film(speaker)[:, None].split(D, dim=-1)
        return self.embed(ids) * scale + shift


class FeatureSet(nn.Module):
    """A table, and a number for each of its rows that says whether the row is needed."""

    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(10, D), nn.Linear(D, 4)
        self.mask = nn.Parameter(torch.linspace(-1, 1, 10).unsqueeze(1))
        self.register_buffer("hard", torch.tensor(False))


@has("feature", given=(IDS,))
class GrowingTemperature(FeatureSet):
    """OptFS in training; the factor of every row is 1 at first."""

    def forward(self, ids):
        scale = 1.0 / torch.sigmoid(torch.tensor(0.5))
        return self.fc((self.table(ids) * scale * torch.sigmoid(20.0 * F.embedding(ids, self.mask))).sum(1))


@has("feature", given=(IDS,))
class SoftOrHard(FeatureSet):
    """In training the sigmoid, in the end a step; a stored flag says which."""

    def forward(self, ids):
        m = self.mask[ids]
        return self.fc((self.table(ids) * torch.where(self.hard, (m > 0).float(), torch.sigmoid(20.0 * m))).sum(1))


@has("hard", given=(IDS,))
class Ticket(FeatureSet):
    """OptFS in the end: rows are kept or dropped."""

    def forward(self, ids):
        return self.fc((self.table(ids) * (F.embedding(ids, self.mask) > 0).float()).sum(1))


@has("modulation", given=(COND,))
class GatedPrompt(nn.Module):
    """Learned tokens, gated by a condition."""

    def __init__(self):
        super().__init__()
        self.prompt, self.gate = nn.Parameter(torch.randn(5, D)), nn.Linear(D, D)

    def forward(self, c):
        return self.prompt.unsqueeze(0) * self.gate(c).sigmoid().unsqueeze(1)


# -- attention outputs ------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))
        self.gate, self.head_gate, self.qg = nn.Linear(D, D), nn.Linear(D, 2), nn.Linear(D, 2 * D)

    def split(self, x):
        return x.view(*x.shape[:-1], 2, D // 2).transpose(1, 2)


@has("attention-output")
class GatedAttention(Heads):
    """Before the output projection, per element."""

    def forward(self, x):
        out = F.scaled_dot_product_attention(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        out = out.transpose(1, 2).reshape(*x.shape)
        return self.o(out * torch.sigmoid(self.gate(x)))


@has("attention-output")
class HeadwiseGate(Heads):
    def forward(self, x):
        out = F.scaled_dot_product_attention(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        out = out.transpose(1, 2) * torch.sigmoid(self.head_gate(x)).unsqueeze(-1)
        return self.o(out.flatten(-2))


@has("attention-output")
class EagerAttention(Heads):
    """Scores, softmax and values written out, the gate packed into the query's projection."""

    def forward(self, x):
        query, gate = torch.chunk(self.qg(x).view(*x.shape[:-1], 2, -1), 2, dim=-1)
        gate = gate.reshape(*x.shape[:-1], -1)
        scores = torch.matmul(query.transpose(1, 2), self.split(self.k(x)).transpose(2, 3)) * 0.5
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)
        out = torch.matmul(F.dropout(weights, 0.0, self.training), self.split(self.v(x)))
        out = out.transpose(1, 2).contiguous().reshape(*x.shape).contiguous()
        return self.o(out * torch.sigmoid(gate))


@has("attention-output")
class TanhHeadGate(Heads):
    """LLaMA-Adapter: a learned number per head on the attention to the prompt."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, 2, 1, 1))

    def forward(self, x):
        scores = self.split(self.q(x)) @ self.split(self.k(x)).transpose(-1, -2) / math.sqrt(4)
        out = self.alpha.tanh() * (scores.softmax(-1) @ self.split(self.v(x)))
        return self.o(out.transpose(1, 2).reshape(*x.shape))


@has("attention-output")
class SquaredReluAttention(Heads):
    """A gated attention unit: silu of a projection times squared-relu attention."""

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), F.silu(self.v(x))
        weights = F.relu(torch.einsum("bnd,bmd->bnm", q, k) / x.shape[1]) ** 2
        return self.o(F.silu(self.gate(x)) * torch.einsum("bnm,bmd->bnd", weights, v))


@has("attention-output")
class NearAndFarAttention(Heads):
    """The sum of attention inside windows and of linear attention to all."""

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        near_q, near_k, near_v = (t.unflatten(1, (2, 3)) for t in (q, k, v))
        near = (near_q @ near_k.mT).softmax(-1) @ near_v
        far = (F.elu(q) + 1) @ ((F.elu(k) + 1).mT @ v) / 6
        return self.o((near.flatten(1, 2) + far) * self.gate(x).sigmoid())


# -- blends -----------------------------------------------------------------------------------------------------------


@has("highway", given=(STEP,))
class Highway(nn.Module):
    """AllenNLP: one projection, the gate biased to carry."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, 2 * D)

    def forward(self, inputs):
        projected = self.layer(inputs)
        nonlinear, gate = projected[:, :D], projected[:, D:]
        nonlinear, gate = torch.relu(nonlinear), torch.sigmoid(gate)
        return gate * inputs + (1 - gate) * nonlinear


@has("highway", given=(STEP, STATE))
class GatedFusion(nn.Module):
    """Gateformer, spectrum: a gate from both streams."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2 * D, D)

    def forward(self, a, b):
        z = torch.sigmoid(self.fc(torch.cat([a, b], dim=-1)))
        return z * a + (1 - z) * b


@has("highway", given=(STEP, STATE))
class LerpFusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.wa, self.wb = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, a, b):
        return torch.lerp(a, b, torch.sigmoid(self.wa(a) + self.wb(b)))


@has("highway")
class TanhBlend(nn.Module):
    """RTM: (1 - tanh g) x + tanh g * branch."""

    def __init__(self):
        super().__init__()
        self.g, self.branch = nn.Parameter(torch.zeros(1)), nn.Linear(D, D)

    def forward(self, x):
        return (1 - torch.tanh(self.g)) * x + torch.tanh(self.g) * self.branch(x)


@has("highway")
class LearnedBlend(nn.Module):
    """ConViT: content and position mixed by a sigmoid of one number per head."""

    def __init__(self):
        super().__init__()
        self.gating_param, self.a, self.b = nn.Parameter(torch.ones(D)), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x):
        gating = self.gating_param.view(1, 1, -1)
        return (1.0 - torch.sigmoid(gating)) * self.a(x) + torch.sigmoid(gating) * self.b(x)


@has("highway", given=(STEP, STATE, COND))
class SharedGateOfTwo(nn.Module):
    """One gate lets two values in at the first one's expense."""

    def __init__(self):
        super().__init__()
        self.gate, self.a, self.b = nn.Linear(3 * D, D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x, y, z):
        a, b = self.a(y).relu(), self.b(z).relu()
        g = torch.sigmoid(self.gate(torch.cat([x, a, b], -1)))
        return x * (1 - g) + a * g + b * g


@has("highway", given=(IMAGE,))
class PGN(nn.Module):
    """A convolutional blend."""

    def __init__(self):
        super().__init__()
        self.hid, self.conv = nn.Conv2d(D, D, 3, padding=1), nn.Conv2d(2 * D, 2 * D, 1)

    def forward(self, x):
        hid = self.hid(x)
        s, t = self.conv(torch.cat([x, hid], 1)).chunk(2, dim=1)
        s = torch.sigmoid(s)
        return hid * s + (1 - s) * torch.tanh(t)


@has("feature", "scalar")
class OnePlusLayers(nn.Module):
    """What layers make under a learned 1 + w, one for each feature and one for all; norms have weights of their own."""

    def __init__(self):
        super().__init__()
        self.fc, self.out, self.norm = nn.Linear(D, H), nn.Linear(H, D), nn.Parameter(torch.zeros(H))
        self.w, self.scale = nn.Parameter(torch.zeros(H)), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        h = F.gelu(self.fc(x) * (1 + self.w))
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.norm)
        return (1 + self.scale) * self.out(h)


@has("product")
class FieldsWeighedAndCrossed(nn.Module):
    """Fields weighed by what layers over their means say; then each under a layer times the next, which is no gate."""

    def __init__(self):
        super().__init__()
        self.squeeze, self.excite, self.layer = nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(D, D)

    def forward(self, x):
        first, second, third = (x * self.excite(self.squeeze(x.mean(-1)).relu()).relu()[:, :, None]).split(2, dim=1)
        return self.layer(first) * second, self.layer(second) * third
