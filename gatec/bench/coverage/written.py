"""Plain PyTorch, as people write it without a library: the models of tutorials, papers and production code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec.bench.coverage.entry import Built, Entry

NEEDS: tuple[str, ...] = ()


class UNet(nn.Module):
    """Ronneberger's, with skips as a list and crops by size."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        sides = list(zip((3, *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in sides)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in sides[:0:-1])
        self.join = nn.ModuleList(DoubleConv(2 * a, a) for a, _ in sides[:0:-1])
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x)
            if i < len(self.down) - 1:
                skips.append(x)
                x = F.max_pool2d(x, 2)
        for up, join in zip(self.up, self.join, strict=True):
            x, skip = up(x), skips.pop()
            if x.shape != skip.shape:
                x = F.interpolate(x, size=skip.shape[2:])
            x = join(torch.cat([skip, x], dim=1))
        out: Tensor = self.head(x)
        return out


class DoubleConv(nn.Sequential):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(
            *(layer for c in (a, b) for layer in (nn.Conv2d(c, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(True)))
        )


class WaveNet(nn.Module):
    """Gated dilated causal convolutions; residual and skip sums."""

    def __init__(self, width: int = 16, dilations: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(WaveNetLayer(width, d) for d in dilations)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), 0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        out: Tensor = self.last(total)
        return out


class WaveNetLayer(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.pad = dilation
        self.conv = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.conv(F.pad(x, (self.pad, 0))).chunk(2, dim=1)
        h = torch.tanh(a) * torch.sigmoid(b)
        return x + self.residual(h), self.skip(h)


class Classifier(nn.Module):
    """The recurrent text classifier of every tutorial: embedding, two layers both ways, last state."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.recurrent = kind(width, width, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        _, state = self.recurrent(self.embedding(ids))
        state = state[0] if isinstance(state, tuple) else state
        out: Tensor = self.head(self.dropout(torch.cat([state[-2], state[-1]], dim=-1)))
        return out


class WrittenLSTM(nn.Module):
    """A cell unrolled in Python, its four gates in one projection."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.cell, self.width = LSTMCellByHand(width), width

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.width)
        steps = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], h, c)
            steps.append(h)
        return torch.stack(steps, dim=1)


class LSTMCellByHand(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width, bias=False)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class MiniGPT(nn.Module):
    """nanoGPT in miniature: fused qkv, a causal mask in a buffer, tied embeddings."""

    def __init__(self, width: int = 32, heads: int = 4, layers: int = 2, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(100, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(GPTBlock(width, heads, length) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        _, t = ids.size()
        assert t <= self.positions.num_embeddings, "longer than the context"
        x = self.tokens(ids) + self.positions(torch.arange(t, device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        loss = None if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return logits, loss


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, length)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = x + self.attention(self.before(x))
        out: Tensor = h + self.mlp(self.after(h))
        return out


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.tril(torch.ones(length, length)).view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (p.view(b, t, self.heads, c // self.heads).transpose(1, 2) for p in self.qkv(x).split(c, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.get_buffer("mask")[:, :, :t, :t] == 0, float("-inf"))
        y = (F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(b, t, c)
        out: Tensor = self.out(y)
        return out


class TokenMoE(nn.Module):
    """A mixture written as a loop over all experts, each weighted by its mask: no index depends on data."""

    def __init__(self, width: int = 16, experts: int = 4, chosen: int = 2) -> None:
        super().__init__()
        self.chosen, self.router = chosen, nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, picks = self.router(x).softmax(-1).topk(self.chosen, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            share = (weights * (picks == i)).sum(-1, keepdim=True)
            out = out + share * expert(x)
        return out


class Sequence2Sequence(nn.Module):
    """nn.Transformer with its masks made in forward."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.transformer = nn.Transformer(width, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(width, 100)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1), device=target.device)
        h = self.transformer(self.embedding(source), self.embedding(target), tgt_mask=mask, tgt_is_causal=True)
        out: Tensor = self.head(h)
        return out


class Encoder(nn.Module):
    """nn.TransformerEncoder over embeddings scaled and positioned, with a padding mask from the tokens."""

    def __init__(self, width: int = 32, length: int = 64) -> None:
        super().__init__()
        self.embedding, self.scale = nn.Embedding(100, width, padding_idx=0), math.sqrt(width)
        self.register_buffer("positions", torch.randn(1, length, width) * 0.02, persistent=False)
        layer = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids) * self.scale + self.get_buffer("positions")[:, : ids.shape[1]]
        h = self.encoder(h, src_key_padding_mask=ids == 0)
        out: Tensor = self.head(h.mean(dim=1))
        return out


class GatedConvLM(nn.Module):
    """Dauphin's: causal convolutions gated by F.glu, residual around each."""

    def __init__(self, width: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(width, 2 * width, 3)) for _ in range(layers)
        )
        self.head = nn.Linear(width, 100)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).transpose(1, 2)
        for conv in self.convs:
            x = x + F.glu(conv(F.pad(x, (2, 0))), dim=1)
        out: Tensor = self.head(x.transpose(1, 2))
        return out


class VAE(nn.Module):
    """An encoder of two heads and a sample; the decoder folds a vector into an image."""

    def __init__(self, latent: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.mean, self.logvar = nn.Linear(16 * 49, latent), nn.Linear(16 * 49, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 16 * 49), nn.Unflatten(1, (16, 7, 7)), nn.ConvTranspose2d(16, 8, 4, 2, 1),
                                     nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))  # fmt: skip

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.encoder(x)
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp() if self.training else mean
        return {"image": self.decoder(z).sigmoid(), "mean": mean, "logvar": logvar}


class DLRM(nn.Module):
    """Dense features through an MLP, sparse ones through bags, all pairs of products."""

    def __init__(self, tables: int = 4, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(50, width, mode="sum") for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = [x, *(table(sparse[:, i]) for i, table in enumerate(self.tables))]
        stacked = torch.stack(rows, dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        i, j = torch.tril_indices(len(rows), len(rows), offset=-1)
        out: Tensor = self.top(torch.cat([x, products[:, i, j]], dim=1))
        return out.sigmoid().squeeze(-1)


class GraphNetwork(nn.Module):
    """Message passing with scatter sums, edges gated by both ends."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.message, self.gate, self.update = (
            nn.Linear(width, width),
            nn.Linear(2 * width, 1),
            nn.GRUCell(width, width),
        )

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        for _ in range(3):
            gate = torch.sigmoid(self.gate(torch.cat([nodes[source], nodes[target]], dim=-1)))
            summed = torch.zeros_like(nodes).index_add_(0, target, gate * self.message(nodes[source]))
            nodes = self.update(summed, nodes)
        return nodes


def _ids(*size: int) -> Tensor:
    return torch.randint(1, 50, size)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "UNet": (UNet, lambda: (torch.randn(2, 3, 32, 32),)),
    "WaveNet": (WaveNet, lambda: (torch.randn(2, 1, 40),)),
    "LSTMClassifier": (partial(Classifier, nn.LSTM), lambda: (_ids(2, 9),)),
    "GRUClassifier": (partial(Classifier, nn.GRU), lambda: (_ids(2, 9),)),
    "WrittenLSTM": (WrittenLSTM, lambda: (torch.randn(2, 6, 16),)),
    "MiniGPT": (MiniGPT, lambda: (_ids(2, 9),)),
    "TokenMoE": (TokenMoE, lambda: (torch.randn(2, 9, 16),)),
    "Sequence2Sequence": (Sequence2Sequence, lambda: (_ids(2, 9), _ids(2, 5))),
    "TransformerEncoder": (Encoder, lambda: (_ids(2, 9),)),
    "GatedConvLM": (GatedConvLM, lambda: (_ids(2, 9),)),
    "VAE": (VAE, lambda: (torch.randn(2, 1, 28, 28),)),
    "DLRM": (DLRM, lambda: (torch.randn(2, 6), _ids(2, 4, 3))),
    "GraphNetwork": (GraphNetwork, lambda: (torch.randn(5, 16), torch.randint(0, 5, (2, 12)))),
}


def entries() -> Iterator[Entry]:
    for name in MODELS:
        yield Entry("plain", name, name, partial(build, name))


def build(name: str) -> Built:
    make, inputs = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval(), (inputs(), {})
