"""torch's own attention with heads of any width: what it was, and of closed heads and head dims nothing is left."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gatec
from gatec.pruning.attention import attention
from gatec.pruning.norms import narrowed
from gatec.verify import distance

DRAWN = torch.Generator().manual_seed(0)
X, MEMORY = (torch.randn(2, n, 16, generator=DRAWN).double() for n in (5, 3))
CAUSAL = torch.ones(5, 5).triu(1).bool()
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
OPTIONS = {
    "plain": ({}, {}),
    "time first": ({"batch_first": False}, {}),
    "no biases": ({"bias": False}, {}),
    "a key of its own": ({"add_bias_kv": True}, {}),
    "a key of zeros": ({"add_zero_attn": True}, {"key_padding_mask": PADDED}),
    "causal": ({}, {"attn_mask": CAUSAL, "is_causal": True}),
    "padded": ({}, {"key_padding_mask": PADDED.double() * -3, "attn_mask": CAUSAL.double() * -2}),
    "a mask for each head": ({}, {"attn_mask": torch.randn(8, 5, 5, generator=DRAWN).double()}),
    "each head's weights": ({}, {"average_attn_weights": False}),
    "no weights": ({}, {"need_weights": False}),
}


@pytest.mark.parametrize("made, given", OPTIONS.values(), ids=[k.replace(" ", "-") for k in OPTIONS])
def test_it_is_what_it_was(made, given):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(16, 4, **{"batch_first": True, **made}).double().eval()
    other = copy.deepcopy(plain)
    narrowed(other, attention(other), [])
    x = X if plain.batch_first else X.transpose(0, 1)
    (wanted, weights), (found, its) = plain(x, x, x, **given), other(x, x, x, **given)
    assert distance(found, wanted) <= 1e-14
    assert (weights is None) == (its is None) and (weights is None or distance(its, weights) <= 1e-14)
    assert type(other).__name__ == "MultiheadAttention" and isinstance(other, nn.MultiheadAttention)


def test_one_sequence_alone():
    plain = nn.MultiheadAttention(16, 4).double().eval()
    other = copy.deepcopy(plain)
    narrowed(other, attention(other), [])
    for found, wanted in zip(other(X[0], X[0], X[0]), plain(X[0], X[0], X[0]), strict=True):
        assert distance(found, wanted) <= 1e-14


class Reader(nn.Module):
    """Attends to something else, of another width."""

    def __init__(self):
        super().__init__()
        self.up, self.memory = nn.Linear(16, 16), nn.Linear(16, 12)
        self.attention = nn.MultiheadAttention(16, 4, kdim=12, vdim=12, batch_first=True)
        self.down = nn.Linear(16, 4)

    def forward(self, x):
        memory = self.memory(MEMORY.to(x.dtype))
        return self.down(self.attention(self.up(x), memory, memory, need_weights=False)[0])


def encoder(first):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=first)
    return nn.Sequential(
        nn.Linear(16, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 4)
    )


MODELS = {"encoder": lambda: encoder(True), "time first": lambda: encoder(False), "another width": Reader}


@pytest.mark.parametrize("build", MODELS.values(), ids=[k.replace(" ", "-") for k in MODELS])
@pytest.mark.parametrize("seed", range(3))
def test_heads_and_their_dims_go(build, seed, tmp_path):
    torch.manual_seed(seed)
    model = build().double().eval()
    gated = gatec.prune(model, X)
    draw = np.random.default_rng(seed)
    gates = gatec.channel_gates(gated)
    gatec.close(gated, {n: draw.permutation(g.size)[: g.size // 2] for n, g in gates.items()})
    small = gatec.compact(gated, X)
    with torch.no_grad():  # where torch would run an encoder layer as one operator
        assert distance(small(X), gated(X)) <= 1e-12
    assert not [e for e in gatec.report(small).edits if "stay, in zeros" in e.why]
    gatec.save(small, tmp_path)
    assert torch.equal(gatec.load(tmp_path, build().double().eval())(X), small(X))
    small(X).square().sum().backward()
    again = gatec.compact(gatec.prune(small, X), X)
    assert [p.shape for p in again.parameters()] == [p.shape for p in small.parameters()]
