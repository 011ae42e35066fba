"""What fusing saves is counted from sizes: bytes, launches, operations, and the time that a machine's roofline expects."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.roofline import Machine, Price, machine


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 64), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


X = torch.randn(10, 16)
HIDDEN = 10 * 64 * 4  # bytes of one hidden tensor


LAYER = (16 * 64 + 64) * 4  # bytes of a weight and a bias


def test_a_swiglu_reads_rows_and_weights_and_writes_one_where_eager_moves_seven():
    (saving,) = gatec.scan(MLP(), X).savings
    p, rows = saving.price, 10 * 16 * 4
    apart = 2 * (rows + LAYER + HIDDEN)
    assert (p.launches, p.before, p.after, p.flops) == (4, apart + 5 * HIDDEN, rows + 2 * LAYER + HIDDEN, 2 * 640)
    assert (p.products, p.apart) == (2 * 2 * 640 * 16, apart)
    assert p.saved == rows + 6 * HIDDEN and p.intensity == pytest.approx((2 * 640 + p.products) / p.after)
    assert p.seconds(Machine("slow products", 1e9, 1e9, 100), fused=False) == pytest.approx(p.products / 100, rel=1e-3)


def test_time_is_bound_by_memory_or_by_arithmetic():
    p = Price(launches=2, before=400, after=200, flops=1000)
    assert p.seconds(Machine("slow memory", 100, 1e9), fused=False) == 4
    assert p.seconds(Machine("slow memory", 100, 1e9)) == 2
    assert p.seconds(Machine("slow units", 1e9, 100)) == 10


def test_half_precision_halves_the_bytes():
    whole, half = (gatec.scan(m, x).savings[0].price for m, x in ((MLP(), X), (MLP().half(), X.half())))
    assert (half.before, half.after, half.flops) == (whole.before // 2, whole.after // 2, whole.flops)


def test_census_and_report_print_it():
    census = gatec.scan(nn.Sequential(MLP(), MLP()), X)
    data = json.loads(census.json())
    assert data["totals"]["bytes_saved"] == 2 * (640 + 6 * HIDDEN) and data["totals"]["regions"] == 2
    assert data["regions"][0]["bytes_fused"] == 640 + 2 * LAYER + HIDDEN and data["regions"][0]["anchor"] == "gemm"
    assert "4 -> 1" in str(census) and "27.9 kB" in str(census)
    report = gatec.report(gatec.fuse(MLP(), X))
    assert "model.glu_silu: 4 launches -> 1, 27.9 kB -> 11.9 kB, 3.55 flop/B" in str(report)
    assert report.priced("a100")[0].endswith("on A100 80GB SXM")


def test_an_unknown_machine_is_an_error():
    with pytest.raises(gatec.GatecError, match="h200, h100"):
        machine("abacus")


class Looked(nn.Module):
    """Experts as matrices that are looked up for each of 10 x 2 pairs."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.first, self.down = nn.Parameter(torch.randn(4, 64, 16)), nn.Parameter(torch.randn(4, 16, 32))

    def forward(self, x):
        scale, chosen = self.router(x).softmax(-1).topk(2)
        which, rows = chosen.flatten(), x.repeat_interleave(2, 0)
        a, b = torch.bmm(self.first[which], rows.unsqueeze(-1)).squeeze(-1).chunk(2, -1)
        out = torch.bmm(self.down[which], (F.silu(a) * b).unsqueeze(-1)).squeeze(-1)
        return (out * scale.flatten().unsqueeze(-1)).unflatten(0, (-1, 2)).sum(1)


def test_a_mixture_is_priced_with_its_products_and_with_what_lies_between_them():
    (saving,) = (s for s in gatec.scan(Looked(), X).savings if s.anchor == "mixture")
    p, pairs = saving.price, 10 * 2
    assert (p.kernels, p.products) == (4, 2 * pairs * (64 * 16 + 16 * 32))
    operands = 10 * 16 + 10 * 2 + 4 * 64 * 16 + 4 * 16 * 32
    assert p.after == 4 * (operands + 10 * 16 + 2 * pairs * (32 + 16)) + 8 * pairs
    assert p.after < p.before / 5
