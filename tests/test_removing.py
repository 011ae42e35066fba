"""What closed slots meet on their way: layers and idioms of other people's models, from which they go exactly."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import gatec
from gatec.capture import emptied
from gatec.pruning.exact import exactly
from gatec.verify import distance

IMAGE = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8).double()
TOKENS = torch.linspace(-2, 2, 2 * 6 * 16).reshape(2, 6, 16).double()


class Standardised(nn.Conv2d):
    """Weights less their mean over their deviation, as BiT has them."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Norm(nn.Module):
    """A layer norm with a name of its own for its epsilon and no bias."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(width)), 1e-5

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class NormAct(nn.GroupNorm):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


class Response(nn.Module):
    """Features times their own norm over the tokens, relative to the mean of all features' norms."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width)), 1e-3

    def forward(self, x):
        norm = x.norm(dim=1, keepdim=True)
        return x + self.bias + self.weight * x * norm / (norm.mean(-1, keepdim=True) + self.eps)


class Apart(nn.Module):
    """A packed projection whose bias is put together of two parameters and zeros, and a table of places for each head."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias, self.v_bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.register_buffer("k_bias", torch.zeros(width))

    def forward(self, x):
        packed = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        q, k, v = packed.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Positions(nn.Module):
    """A table of numbers that is a buffer is added to what a norm looks at."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(16, 12), nn.LayerNorm(12), nn.Linear(12, 4)
        self.register_buffer("table", torch.rand(6, 12))

    def forward(self, x):
        return self.down(self.norm(self.up(x) + self.table))


class Periods(nn.Module):
    """Queries and keys that are normed, then turned by angles: positions over periods, which are a buffer."""

    def __init__(self):
        super().__init__()
        self.qkv, self.norm, self.out = nn.Linear(16, 24), nn.RMSNorm(8, elementwise_affine=False), nn.Linear(8, 4)
        self.register_buffer("periods", 10.0 ** torch.linspace(0, 2, 4))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        angles = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None] / self.periods
        q, k = (self.turned(self.norm(t), angles.cos(), angles.sin()) for t in (q, k))
        return self.out(F.softmax(q @ k.mT, -1) @ v)

    @staticmethod
    def turned(x, cos, sin):
        one, two = x.chunk(2, -1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


class Windows(nn.Module):
    """Overlapping windows of a sequence as a view with steps."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        y = self.up(x).contiguous()
        batch, along, across = y.stride()
        return self.down(y.as_strided((2, 2, 4, y.shape[-1]), (batch, 2 * along, along, across)))


class Noisy(nn.Module):
    """Draws numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.down(F.relu(self.up(x))) * torch.rand(x.shape[1], 1, dtype=x.dtype)


class Angles(nn.Module):
    """Products of numbers that are asked to be float32, one of them counted here."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 12), nn.Linear(12, 4)
        self.register_buffer("steps", torch.rand(1, 4))

    def forward(self, x):
        places = torch.arange(x.shape[1]).float()[:, None]
        return self.down(self.up(x)) * (places @ self.steps.float()).cos()


class Computed(nn.Module):
    """Two readers, one of them with a weight that is computed first."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.other = nn.Linear(16, 12), nn.Linear(12, 4), weight_norm(nn.Linear(12, 4))

    def forward(self, x):
        y = self.up(x)
        return self.down(y) + self.other(y)


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.down = nn.EmbeddingBag(12, 8, mode="mean"), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(self.table(x).relu())


class Extended(nn.Module):
    """A head over a table and a second one, which is empty for these sizes."""

    def __init__(self):
        super().__init__()
        self.up, self.table, self.more = (
            nn.Linear(16, 12),
            nn.Linear(12, 20, bias=False),
            nn.Parameter(torch.empty(0, 20)),
        )

    def forward(self, x):
        return self.up(x) @ torch.cat([self.table.weight.t(), self.more])


class Remembered(nn.Module):
    """Attention whose biases are looked up once for each length, beside a table of numbers that stays as it is."""

    def __init__(self):
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(16, 48), nn.Linear(16, 4)
        self.biases, self.cache = nn.Parameter(torch.rand(4, 8)), {}
        self.tables = {"scale": torch.tensor(0.5, dtype=torch.float64)}

    def forward(self, x):
        batch, tokens, _ = x.shape
        if tokens not in self.cache:
            places = torch.arange(tokens)
            self.cache[tokens] = self.biases[:, (places[:, None] - places).abs()]
        q, k, v = self.qkv(x).view(batch, tokens, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        weights = (q @ k.transpose(-1, -2) * self.tables["scale"] + self.cache[tokens]).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Mixed(nn.Module):
    """Tokens mixed as learned queries and keys say, whose scores are computed once."""

    def __init__(self):
        super().__init__()
        self.places, self.q, self.k, self.out = (
            nn.Embedding(6, 16),
            nn.Linear(16, 12),
            nn.Linear(16, 12),
            nn.Linear(16, 4),
        )
        self.cache = {}

    def forward(self, x):
        if "mixed" not in self.cache:
            q, k = (f(self.places.weight)[None] for f in (self.q, self.k))
            self.cache["mixed"] = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out(self.cache["mixed"] @ x)


class Product(nn.Module):
    def forward(self, a, b):
        return a @ b


class Apiece(nn.Module):
    """Attention whose products are modules of their own, without parameters."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.out = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(16, 4)
        self.scores, self.mixed = Product(), Product()

    def forward(self, x):
        q, k = self.q(x), self.k(x)
        weights = (self.scores(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out(self.mixed(weights, x))


class Packed(nn.Module):
    """Queries, keys and values of each head beside each other, scaled by what they are given."""

    def __init__(self):
        super().__init__()
        self.heads, self.key, self.value, self.qkv, self.out = 3, 4, 4, nn.Linear(16, 36), nn.Linear(12, 4)

    def forward(self, x):
        packed = self.qkv(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        q, k, v = packed.split([self.key, self.key, self.value], -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Rounded(nn.Module):
    """Attention by the root of its width in float32, whatever it is given."""

    def __init__(self):
        super().__init__()
        self.heads, self.q, self.k, self.v = 4, *(nn.Linear(16, 12) for _ in range(3))
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scale = torch.sqrt(torch.tensor(q.shape[-1], dtype=torch.float) * 3)
        weights = (q @ (k.transpose(-1, -2) / scale.to(q.dtype))).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def convolutions(middle, *more):
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding="valid"), middle, *more, nn.Conv2d(16, 4, 1))


def rows(*middle):
    return nn.Sequential(weight_norm(nn.Linear(16, 12)), *middle, weight_norm(nn.Linear(6, 8)), nn.Linear(8, 4))


# A model, its input, and whether everything that is closed can be removed.
MODELS = {
    "padding in words": (lambda: convolutions(nn.ReLU()), IMAGE, True),
    "standardised weights": (lambda: convolutions(nn.ReLU(), Standardised(16, 16, 1), nn.ReLU()), IMAGE, False),
    "groups with a norm": (lambda: convolutions(nn.GroupNorm(4, 16)), IMAGE, True),
    "a norm that activates": (lambda: convolutions(NormAct(4, 16)), IMAGE, True),
    "an epsilon by another name": (lambda: nn.Sequential(nn.Linear(16, 12), Norm(12), nn.Linear(12, 4)), TOKENS, True),
    "a response norm": (lambda: nn.Sequential(nn.Linear(16, 12), Response(12), nn.Linear(12, 4)), TOKENS, True),
    "queries in two parameters": (lambda: nn.Sequential(nn.Linear(16, 16), Apart(), nn.Linear(16, 4)), TOKENS, True),
    "a table that does not learn": (Positions, TOKENS, True),
    "windows": (Windows, TOKENS, True),
    "draws": (Noisy, TOKENS, True),
    "angles": (Angles, TOKENS, True),
    "rows over their own norms": (lambda: rows(nn.GLU(), nn.LayerNorm(6)), TOKENS, True),
    "weights that are computed": (Computed, TOKENS, True),
    "bags of rows": (Bags, torch.arange(12).reshape(2, 6), True),
    "biases that are looked up once": (Remembered, TOKENS, True),
    "products that are modules": (lambda: nn.Sequential(nn.Linear(16, 16), Apiece()), TOKENS, True),
    "mixtures that are computed once": (Mixed, TOKENS, True),
    "an empty parameter": (Extended, TOKENS, True),
}  # fmt: skip


def gated(build, x, seed=0, share=0.5, **options):
    torch.manual_seed(seed)
    model = gatec.prune(build().double().eval(), x, **options)
    draw = np.random.default_rng(seed)
    gatec.close(model, {name: draw.random(gate.size) < share for name, gate in gatec.channel_gates(model).items()})
    return model


def computed(model, x):
    torch.manual_seed(1)
    with torch.no_grad(), exactly():
        return model(x)


def staying(small):
    return [e.why for e in gatec.report(small).edits if "stay, in zeros" in e.why and "all are closed" not in e.why]


@pytest.mark.parametrize("build, x, whole", MODELS.values(), ids=[k.replace(" ", "-") for k in MODELS])
@pytest.mark.parametrize("seed", range(3))
def test_slots_go_exactly(build, x, whole, seed):
    model = gated(build, x, seed)
    before = computed(model, x)
    small = gatec.compact(model, x)
    assert distance(computed(small, x), before) <= 1e-12
    assert not whole or not staying(small)
    assert "has not come by" not in gatec.report(small).edits[-1].why


@pytest.mark.parametrize("kind", [Rounded, Packed])
def test_a_width_that_scales_is_undone(kind):
    """A root in float32 is no rounding of float64; queries are found beside keys."""
    torch.manual_seed(0)
    gates = gatec.prune(kind().double().eval(), TOKENS, kinds="head dims")
    gatec.close(gates, {name: [1] for name in gatec.channel_gates(gates)})
    small = gatec.compact(gates, TOKENS)
    assert sum(map(torch.numel, small.parameters())) < sum(map(torch.numel, kind().parameters())) and not staying(small)
    assert distance(computed(small, TOKENS), computed(gates, TOKENS)) <= 1e-12


# -- what a forward keeps for the next one ------------------------------------------------------------------------------


def test_what_is_kept_for_one_size_is_made_anew():
    """Filled before the gates are put on, and with the gates: the compacted model looks up biases of its own heads."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Remembered()).double().eval()
    before = computed(model, TOKENS)
    gates = gatec.prune(model, TOKENS, kinds="heads")
    assert not gates[1].cache and distance(computed(gates, TOKENS), before) <= 1e-12
    assert set(model[1].cache) == {6}
    computed(gates, TOKENS[:, :4])
    gatec.close(gates, {name: [1, 3] for name in gatec.channel_gates(gates)})
    small = gatec.compact(gates, TOKENS)
    assert small[1].heads == 2 and not staying(small) and not small[1].cache
    gates[1].cache.clear()
    for x in (TOKENS, TOKENS[:, :4], TOKENS[:, :2]):
        assert distance(computed(small, x), computed(gates, x)) <= 1e-12
    assert {n: t.shape[0] for n, t in small[1].cache.items()} == {6: 2, 4: 2, 2: 2}
    assert small[1].tables["scale"] == 0.5


class Tally(nn.Module):
    """Keeps what it was given last, and how it began."""

    def __init__(self):
        super().__init__()
        self.last, self.first = {"x": torch.zeros(1)}, [torch.ones(1)]

    def forward(self, x):
        self.last["x"] = self.last.get("x", 0) * 0.5 + x
        return x * self.first[0]


def test_what_a_forward_writes_every_time_is_no_cache():
    model = Tally().eval()
    emptied(model, (TOKENS,), {})
    assert torch.equal(model.last["x"], torch.zeros(1)) and torch.equal(model.first[0], torch.ones(1))


def test_what_was_kept_before_is_seen_through():
    """Groups of a model that has run are those of one that has not; what it has kept stays."""
    model = Remembered().double().eval()
    fresh = [(g.name, g.kind, g.refused) for g in gatec.groups(model, TOKENS)]
    assert not model.cache
    computed(model, TOKENS)
    kept = model.cache[6]
    assert [(g.name, g.kind, g.refused) for g in gatec.groups(model, TOKENS)] == fresh
    assert model.cache[6] is kept


# -- parameters that cannot be cut ------------------------------------------------------------------------------------


def layers():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("call", [gatec.groups, gatec.prune, gatec.compact])
def test_sharded_parameters_are_told(mesh, call):
    model = gatec.prune(layers(), TOKENS.float()) if call is gatec.compact else layers()
    for layer in (model[0], model[2]):
        whole = layer._parameters["weight"].detach()
        layer._parameters["weight"] = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
    with pytest.raises(gatec.GatecError, match=r"a DTensor(.|\n)*0\.weight"):
        call(model, TOKENS.float())
    assert model[0]._parameters["weight"].shape == (32, 16)


class Coded(torch.Tensor):
    """Numbers as small integers, as libraries for quantization keep them."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        plain = [a.codes.float() if isinstance(a, Coded) else a for a in args]
        return function(*plain, **(kwargs or {}))


@pytest.mark.parametrize("call", [gatec.groups, gatec.prune])
def test_quantized_parameters_are_told(call):
    model = layers()
    codes = torch.ones(4, 32, dtype=torch.int8)
    model[2]._parameters["weight"] = torch.nn.Parameter(Coded(codes), requires_grad=False)
    with pytest.raises(gatec.GatecError, match=r"found a Coded\n  where 2\.weight\n  try   prune and compact"):
        call(model, TOKENS.float())
    assert torch.equal(model[2].weight.codes, codes)


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_are_told():
    model = torch.ao.quantization.quantize_dynamic(layers().eval(), {nn.Linear}, dtype=torch.qint8)
    before = model(TOKENS.float())
    with pytest.raises(gatec.GatecError, match="found quantized weights, as in 0"):
        gatec.prune(model, TOKENS.float())
    assert torch.equal(model(TOKENS.float()), before)


def test_what_is_divided_by_is_left_alone():
    torch.manual_seed(0)
    gated = gatec.prune(Periods().double().eval(), TOKENS)
    gatec.close(gated, {name: range(gate.size // 2) for name, gate in gatec.channel_gates(gated).items()})
    assert gated(TOKENS).isfinite().all()
    assert distance(gatec.compact(gated, TOKENS)(TOKENS), gated(TOKENS)) <= 1e-12


class Bytes(nn.Module):
    """Numbers on their way through bytes, as autoencoders of images keep them."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 4, 1)
        self.back = nn.Conv2d(12, 3, 1)

    def forward(self, x):
        y = self.back(self.up(x).relu()).sigmoid()
        return self.down(y.mul(255).round().byte() / 255)


def test_whole_numbers_are_divided_in_float64():
    torch.manual_seed(0)
    with exactly():
        gated = gatec.prune(Bytes().double().eval(), IMAGE)
        gatec.close(gated, {name: [0, 3] for name, gate in gatec.channel_gates(gated).items() if gate.size == 12})
        small = gatec.compact(gated, IMAGE)
        assert small.up.out_channels == 10 and distance(small(IMAGE), gated(IMAGE)) <= 1e-12
