"""A decoder of three layers, and how it is trained and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.bench.small.text import Text

WIDTH, LAYERS, HEADS, LENGTH = 96, 3, 4, 64
HIDDEN = {"relu": 384, "gelu": 384, "swiglu": 256}
BATCH, STEPS, RATE = 32, 600, 1.5e-3
HELD_OUT_BATCHES = 12


class MLP(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN[kind]), nn.Linear(HIDDEN[kind], WIDTH)
        self.act = nn.ReLU() if kind == "relu" else nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class GatedMLP(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN[kind], bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN[kind], WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Layer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp: nn.Module = GatedMLP(kind) if kind == "swiglu" else MLP(kind)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class LanguageModel(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Layer(kind) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tokens.weight)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(
    model: nn.Module, batches: Iterable[Tensor], *, steps: int = STEPS, rate: float = RATE, warmup: int = 50,
    extra: Callable[[], Tensor] | None = None,
) -> nn.Module:  # fmt: skip
    """AdamW with a warm-up; `extra` is added to the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / warmup))
    model.train()
    for tokens, _ in zip(batches, range(steps), strict=False):
        loss = loss_of(model, tokens)
        loss = loss if extra is None else loss + extra()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def trained(kind: str, text: Text, *, seed: int = 0, steps: int = STEPS) -> nn.Module:
    torch.manual_seed(seed)
    model = LanguageModel(kind)
    return train(model, text.batches(steps, batch=BATCH, length=LENGTH, seed=seed), steps=steps)


@torch.no_grad()
def held_out_loss(model: nn.Module, text: Text, batches: int = HELD_OUT_BATCHES) -> float:
    losses = [loss_of(model, t) for t in text.batches(batches, batch=BATCH, length=LENGTH, seed=1234, held_out=True)]
    return float(torch.stack(losses).mean())
