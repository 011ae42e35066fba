"""What looks like a gate and is none."""

import math

import torch
from snippets import COND, IDS, IMAGE, STATE, STEP, TOKENS, D, H, looks_like
from torch import nn
from torch.nn import functional as F

HEADS = TOKENS.view(2, 6, 2, 4).transpose(1, 2)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.up, self.out = nn.Linear(D, D), nn.Linear(D, H), nn.Linear(H, D)
        self.conv = nn.Conv2d(D, D, 3, padding=1)
        self.narrow, self.slim, self.pairs = nn.Linear(D, 1), nn.Linear(D, 1), nn.Conv1d(36, 6, 1)
        self.weight, self.bias, self.temperature = (
            nn.Parameter(torch.ones(D)),
            nn.Parameter(torch.zeros(D)),
            nn.Parameter(torch.ones(())),
        )
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("var", torch.ones(D))
        self.register_buffer("mask", torch.ones(6, 6).tril())


def looks(name, given=(TOKENS,)):
    """The function below as a module."""

    def register(function):
        looks_like(given)(type(name, (Plain,), {"forward": function, "__doc__": function.__doc__}))
        return function

    return register


# -- norms ------------------------------------------------------------------------------------------------------------


@looks("RMSNorm")
def _(self, x):
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return self.weight * (x * torch.rsqrt(variance + 1e-6)).to(x.dtype)


@looks("GemmaRMSNorm")
def _(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight.float())


@looks("LayerNormWritten")
def _(self, x):
    u = x.mean(-1, keepdim=True)
    s = (x - u).pow(2).mean(-1, keepdim=True)
    return self.weight * ((x - u) / torch.sqrt(s + 1e-6)) + self.bias


@looks("BatchNormWritten", given=(IMAGE,))
def _(self, x):
    view = (1, -1, 1, 1)
    scale = self.weight.view(view) * (self.var.view(view) + 1e-5).rsqrt()
    return x * scale + (self.bias.view(view) - self.mean.view(view) * scale)


@looks("InstanceNormWritten", given=(IMAGE,))
def _(self, x):
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


@looks("GlobalResponseNorm", given=(IMAGE,))
def _(self, x):
    x = F.gelu(self.conv(x)).permute(0, 2, 3, 1)
    gx = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
    return self.weight * (x * nx) + self.bias + x


@looks("NormAndResidual")
def _(self, x):
    return x + F.layer_norm(self.fc(x), (D,), self.weight, self.bias)


@looks("NormedResidual")
def _(self, x):
    y = self.fc(x)
    return x + self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6))


@looks("L2Normalised")
def _(self, x):
    return F.normalize(self.fc(x), dim=-1)


@looks("ScaleNorm")
def _(self, x):
    return self.temperature * x / torch.norm(x, dim=-1, keepdim=True).clamp(min=1e-5)


@looks("Whitening")
def _(self, x):
    x = x - x.mean((0, 1), keepdim=True)
    return x / x.std((0, 1), keepdim=True).clamp_min(1e-4)


@looks("WeightStandardised", given=(IMAGE,))
def _(self, x):
    w = self.conv.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return F.conv2d(x, w, self.conv.bias, padding=1)


@looks("PixelNorm", given=(IMAGE,))
def _(self, x):
    return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)


@looks("Affine")
def _(self, x):
    return self.fc(x) * self.weight + self.bias


# -- attention --------------------------------------------------------------------------------------------------------


@looks("Attention")
def _(self, x):
    w = torch.softmax(self.fc(x) @ self.fc(x).transpose(-1, -2) / math.sqrt(D), dim=-1)
    return w @ x


@looks("MaskedAttention")
def _(self, x):
    scores = self.fc(x) @ x.transpose(-1, -2)
    scores = scores.masked_fill(self.mask == 0, float("-inf"))
    return F.softmax(scores, -1) @ x


@looks("AdditiveMask")
def _(self, x):
    scores = x @ x.transpose(-1, -2) + (1.0 - self.mask) * torch.finfo(torch.float32).min
    return F.dropout(scores.softmax(-1), 0.1, self.training) @ self.fc(x)


@looks("EinsumAttention", given=(HEADS, HEADS.flip(1), HEADS.flip(2)))
def _(self, q, k, v):
    attn = torch.einsum("bhid,bhjd->bhij", q * 0.5, k).softmax(dim=-1)
    return torch.einsum("bhij,bhjd->bhid", attn, v)


@looks("AttentionPooling")
def _(self, x):
    w = torch.softmax(self.up(x).mean(-1, keepdim=True), dim=1)
    return (w * x).sum(dim=1)


@looks("SoftcappedLogits")
def _(self, x):
    scores = self.fc(x) @ x.transpose(-1, -2)
    return (50.0 * torch.tanh(scores / 50.0)).softmax(-1) @ x


@looks("LinearAttention", given=(HEADS, HEADS.flip(1), HEADS.flip(2)))
def _(self, q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    kv = torch.einsum("bhnd,bhne->bhde", k, v)
    z = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=2)) + 1e-6)
    return torch.einsum("bhnd,bhde->bhne", q, kv) * z.unsqueeze(-1)


@looks("SinkAttention", given=(HEADS,))
def _(self, x):
    scores = torch.matmul(x, x.transpose(-1, -2))
    sink = self.temperature.expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1] @ x


@looks("QueryKeyNorm", given=(HEADS, HEADS.flip(1)))
def _(self, q, k):
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return (q @ k.transpose(-2, -1) * self.temperature.clamp(max=4.6).exp()).softmax(-1) @ k


@looks("ALiBi")
def _(self, x):
    distance = torch.arange(6)[None, :] - torch.arange(6)[:, None]
    return (x @ x.transpose(-1, -2) + 0.25 * distance).softmax(-1) @ x


# -- positions --------------------------------------------------------------------------------------------------------


@looks("Rotary", given=(HEADS,))
def _(self, x):
    freq = 1.0 / (10000 ** (torch.arange(0, 4, 2).float() / 4))
    angle = torch.outer(torch.arange(6).float(), freq)
    emb = torch.cat((angle, angle), dim=-1)
    turned = torch.cat((-x[..., 2:], x[..., :2]), dim=-1)
    return x * emb.cos() + turned * emb.sin()


@looks("RotaryTables", given=(HEADS, HEADS[:1, :1].cos(), HEADS[:1, :1].sin()))
def _(self, q, cos, sin):
    x1, x2 = q[..., :2], q[..., 2:]
    return (q * cos) + (torch.cat((-x2, x1), dim=-1) * sin)


@looks("InterleavedRotary", given=(HEADS,))
def _(self, x):
    t = torch.arange(6).float()[:, None] * torch.tensor([1.0, 0.01])
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * t.cos() - b * t.sin(), a * t.sin() + b * t.cos()], -1).flatten(-2)


@looks("Sinusoids")
def _(self, x):
    angle = torch.arange(6).float()[:, None] * torch.exp(torch.arange(4) * -math.log(10000.0) / 4)
    return x * math.sqrt(D) + torch.cat([angle.sin(), angle.cos()], -1)


@looks("LearnedPositions")
def _(self, x):
    return self.fc(x) + self.bias


# -- activations ------------------------------------------------------------------------------------------------------


@looks("GeluWritten")
def _(self, x):
    x = self.up(x)
    return self.out(x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))))


@looks("NewGelu")
def _(self, x):
    x = self.up(x)
    return self.out(0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))))


@looks("SiluWritten")
def _(self, x):
    x = self.up(x)
    return self.out(x * torch.sigmoid(x))


@looks("QuickGelu")
def _(self, x):
    x = self.up(x)
    return self.out(x * torch.sigmoid(1.702 * x))


@looks("SquaredRelu")
def _(self, x):
    return self.out(torch.square(F.relu(self.up(x))))


@looks("StarRelu")
def _(self, x):
    return self.fc(self.temperature * F.relu(x) ** 2 + self.temperature)


@looks("PReLUWritten")
def _(self, x):
    y = self.fc(x)
    return torch.where(y > 0, y, self.weight * y)


@looks("Snake")
def _(self, x):
    return x + torch.sin(self.weight * x) ** 2 / (self.weight + 1e-9)


@looks("MishWritten")
def _(self, x):
    y = self.up(x)
    return self.out(y * torch.tanh(F.softplus(y)))


@looks("HardswishWritten")
def _(self, x):
    y = self.up(x)
    return self.out(y * F.relu6(y + 3) / 6)


@looks("LearnedSwish")
def _(self, x):
    y = self.fc(x)
    return y * torch.sigmoid(self.weight * y)


@looks("DynamicTanh")
def _(self, x):
    return self.weight * torch.tanh(self.temperature * x) + self.bias


# -- losses, scales and masks -----------------------------------------------------------------------------------------


@looks("Vocabulary")
def _(self, x):
    return F.log_softmax(self.up(x), dim=-1)


@looks("ExpectedValue")
def _(self, x):
    return (F.softmax(self.up(x), -1) * torch.arange(H).float()).sum(-1)


@looks("CrossEntropy", given=(STEP, STATE))
def _(self, x, y):
    return -(y.softmax(-1) * self.fc(x).log_softmax(-1)).sum(-1).mean()


@looks("LabelSmoothing", given=(STEP,))
def _(self, x):
    logp = F.log_softmax(self.up(x), dim=-1)
    smooth = F.one_hot(torch.tensor([1, 2]), H).float() * 0.9 + 0.1 / H
    return -(smooth * logp).sum(dim=-1).mean()


@looks("LossScale")
def _(self, x):
    return F.mse_loss(self.fc(x), x) * 1024.0


@looks("ContrastiveLogits", given=(STEP, STATE))
def _(self, a, b):
    a, b = F.normalize(self.fc(a), dim=-1), F.normalize(self.fc(b), dim=-1)
    return self.temperature.exp() * a @ b.t()


@looks("CosineSimilarity", given=(STEP, STATE))
def _(self, a, b):
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-8)


@looks("DotProduct", given=(STEP, STATE))
def _(self, user, item):
    return (self.fc(user) * self.fc(item)).sum(dim=-1)


@looks("FactorisationMachine")
def _(self, fields):
    square_of_sum = torch.sum(fields, dim=1) ** 2
    sum_of_square = torch.sum(fields**2, dim=1)
    return 0.5 * (square_of_sum - sum_of_square).sum(1, keepdim=True)


@looks("Dropout")
def _(self, x):
    return F.dropout(self.fc(x), 0.3, self.training)


@looks("StochasticDepth")
def _(self, x):
    if not self.training:
        return x + self.fc(x)
    return x + self.fc(x) * torch.bernoulli(torch.full((2, 1, 1), 0.9)) / 0.9


@looks("PaddingMask", given=(TOKENS, IDS))
def _(self, x, ids):
    return self.fc(x) * (ids != 0).unsqueeze(-1).float()


@looks("MaskedMean", given=(TOKENS, IDS))
def _(self, x, ids):
    mask = ids.ne(0).unsqueeze(-1).to(x.dtype)
    return (self.fc(x) * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


@looks("CausalProduct")
def _(self, x):
    return ((x @ x.transpose(-1, -2)) * self.mask) @ x


@looks("PaddedBranches", given=(TOKENS, IDS != 0))
def _(self, x, mask):
    """Two branches of one value, both padded."""
    m = mask.unsqueeze(-1).to(x.dtype)
    return torch.tanh(self.fc(x)) * m + self.out(F.relu(self.up(x))) * m


@looks("PaddedActivation", given=(TOKENS, IDS))
def _(self, x, ids):
    return torch.sigmoid(self.fc(x)) * (ids != 0).unsqueeze(-1)


@looks("PaddedBlock", given=(TOKENS, IDS != 0))
def _(self, x, mask):
    return x + self.fc(x) * mask.unsqueeze(-1)


@looks("MaskedModelling", given=(TOKENS, IDS > 3))
def _(self, x, masked):
    """A learned token where the input is hidden."""
    w = masked.unsqueeze(-1).type_as(x)
    return self.fc(self.fc(x) * (1 - w) + self.weight * w)


@looks("Stacked", given=(STEP,))
def _(self, x):
    """The mean and the dot product of what two layers made."""
    h = torch.stack([self.fc(x), self.out(self.up(x))], dim=1)
    return h.mean(1), torch.einsum("bnd,bd->bn", h, x)


@looks("MaskedReluAttention", given=(HEADS, HEADS.flip(1), HEADS.flip(2)))
def _(self, q, k, v):
    """Attention without a softmax, masked behind it."""
    weights = F.relu(torch.matmul(q, k.transpose(-1, -2)) / 6) ** 2
    return torch.matmul(weights * self.mask, v)


@looks("AffineOfAnActivation")
def _(self, x):
    """One activated value, scaled and shifted into two."""
    return F.silu(self.fc(x)) * self.weight + self.bias


@looks("MeanPooling")
def _(self, x):
    return self.fc(x).mean(dim=1) * 0.5


@looks("Residual")
def _(self, x):
    return x + self.out(F.gelu(self.up(x)))


@looks("ConstantResidual")
def _(self, x):
    return x * 0.7 + 0.3 * self.out(F.relu(self.up(x)))


@looks("ScaledEmbedding", given=(IDS,))
def _(self, ids):
    return F.embedding(ids, self.fc.weight) * math.sqrt(D)


@looks("PlacedEmbedding", given=(IDS,))
def _(self, ids):
    places = F.embedding(torch.arange(ids.shape[1]), self.up.weight)
    return self.fc(F.embedding(ids, self.fc.weight) * math.sqrt(D) + places * 0.5)


@looks("ScaledActivation")
def _(self, x):
    return self.weight * torch.tanh(self.fc(x)) + self.bias


@looks("AdditiveScores", given=(TOKENS, STATE))
def _(self, keys, query):
    scores = (torch.tanh(self.fc(keys) + self.fc(query)[:, None]) * self.weight).sum(-1)
    return scores.softmax(-1)


@looks("ExpectedEmbedding")
def _(self, x):
    return (self.up(x).softmax(-1).unsqueeze(-1) * self.up.weight).sum(-2)


@looks("EinsumScale")
def _(self, x):
    return torch.einsum("btd,d->btd", self.fc(x), self.weight)


@looks("Temperature")
def _(self, x):
    return self.fc(x) / self.temperature


@looks("FakeQuantised")
def _(self, x):
    scale = x.abs().amax(-1, keepdim=True) / 127
    q = torch.clamp(torch.round(x / scale), -128, 127)
    return self.fc(q * scale)


@looks("QuantisedSteps")
def _(self, x):
    y = self.fc(x)
    return y + (torch.round(y / 0.1) * 0.1 - y).detach()


@looks("GumbelNoise")
def _(self, x):
    logits = self.up(x)
    noise = -torch.log(-torch.log(torch.full_like(logits, 0.3) + 1e-9) + 1e-9)
    return F.softmax((logits + noise) / 0.5, dim=-1)


@looks("RunningMean")
def _(self, x):
    return 0.9 * self.mean + 0.1 * self.fc(x).mean((0, 1))


@looks("HuberLoss", given=(STEP, STATE))
def _(self, x, y):
    d = (self.fc(x) - y).abs()
    return torch.where(d < 1, 0.5 * d**2, d - 0.5).mean()


@looks("LowRankUpdate")
def _(self, x):
    return self.fc(x) + self.out(self.up(x)) * 2.0


@looks("Bias", given=(TOKENS, COND))
def _(self, x, c):
    return x + F.silu(self.fc(c)).unsqueeze(1)


@looks("Reparameterised", given=(STEP,))
def _(self, x):
    mu, logvar = self.fc(x), self.fc(x.flip(0))
    return mu + torch.full_like(mu, 0.3) * torch.exp(0.5 * logvar)


@looks("Denoised", given=(IMAGE,))
def _(self, x):
    sigma = torch.tensor(0.7)
    return x / (sigma**2 + 1) + self.conv(x) * (sigma / (1 + sigma**2).sqrt())


@looks("VanillaRNN")
def _(self, x):
    h = torch.zeros(2, D)
    for t in range(6):
        h = torch.tanh(self.fc(x[:, t]) + self.fc(h))
    return h


@looks("PlainLinearAttentionState", given=(STEP, STATE, TOKENS[:, :, None].sum(1).expand(2, D, D)))
def _(self, k, v, S):
    return S + k.unsqueeze(-1) * self.fc(v).unsqueeze(-2)


@looks("ExpectedBin")
def _(self, x):
    """The mean of a distribution over learned places."""
    return x + (self.up(x).softmax(-1) * self.out.weight[0]).sum(-1, keepdim=True)


@looks("NothingHappened", given=(STEP,))
def _(self, x):
    """How likely it is that none of several events takes place."""
    a, b = torch.sigmoid(self.fc(x)), torch.sigmoid(self.fc(x.flip(0)))
    return -torch.log((1 - a) * (1 - b)).mean()


@looks("WidthPrefix", given=(TOKENS, STEP.abs()[:, :1]))
def _(self, x, width):
    h = F.relu(self.fc(x))
    keep = torch.arange(h.size(-1)) < width.unsqueeze(-1) * h.size(-1)
    return h * keep


@looks("MaskedActivation", given=(TOKENS, IDS))
def _(self, x, ids):
    return F.gelu(self.fc(x)) * (ids > 0)[..., None]


@looks("Binarised")
def _(self, x):
    scale = self.fc.weight.abs().mean(1, keepdim=True)
    return F.linear(x, torch.sign(self.fc.weight) * scale, self.fc.bias)


@looks("LearnedScaleBinarised")
def _(self, x):
    return F.linear(x, torch.sign(self.fc.weight), self.fc.bias) + F.linear(
        x, self.weight[:, None] * torch.sign(self.fc.weight)
    )


@looks("BandedWeights")
def _(self, x):
    near = (torch.arange(D)[:, None] - torch.arange(D)[None]).abs() <= 2
    return F.linear(x, self.fc.weight * near)


@looks("MeanOfTheBest")
def _(self, x):
    scores = self.fc(x) @ x.mT
    best = (scores == scores.max(-1, keepdim=True).values).float()
    return (best / best.sum(-1, keepdim=True)) @ x


@looks("SignedRoot")
def _(self, x):
    y = self.up(x)
    return torch.sign(y) * torch.sqrt(torch.abs(y) + 1e-6)


@looks("Denormalised", given=(IMAGE,))
def _(self, x):
    std = torch.sqrt(x.var((2, 3), keepdim=True) + 1e-5)
    return self.conv((x - x.mean((2, 3), keepdim=True)) / std) * std


@looks("SquaredReluScores")
def _(self, x):
    return (F.relu(self.fc(x) @ x.mT / 6) ** 2) @ x


@looks("ExpectedWeight")
def _(self, x):
    return (self.fc(x).softmax(-1) * self.weight).sum(-1)


@looks("Sparsemax")
def _(self, x):
    z = self.fc(x) @ x.mT
    top = z.sort(dim=-1, descending=True).values
    sums = top.cumsum(-1) - 1
    k = (top * torch.arange(1, 7) > sums).sum(-1, keepdim=True)
    return F.relu(z - sums.gather(-1, k - 1) / k) @ x


# -- features crossed with each other ---------------------------------------------------------------------------------


@looks("CrossNetwork", given=(STEP,))
def _(self, x):
    """The input times a number that a layer makes of what came so far, added to it."""
    y = x
    for layer in (self.narrow, self.slim):
        y = x * layer(y) + self.weight + y
    return y


@looks("CompressedInteraction")
def _(self, x):
    """All pairs of fields, and what a convolution makes of them, with each field again."""
    pairs = (x[:, :, None] * x[:, None]).flatten(1, 2)
    return (x[:, :, None] * F.relu(self.pairs(pairs))[:, None]).flatten(1, 2)
