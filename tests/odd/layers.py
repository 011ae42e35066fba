"""torch's own big layers: attention, transformers, recurrences, embeddings, and what stands around them."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from odd import Block, X, after, call, made, odd, rows

S = rows(2, 5)


class Attends(nn.Module):
    need_weights = False

    def __init__(self, **options):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x, mask=None, padding=None):
        y = self.norm(x)
        y, weights = self.attn(y, y, y, attn_mask=mask, key_padding_mask=padding, need_weights=self.need_weights)
        return (x + y, weights) if self.need_weights else x + y


PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)


@odd(S, others=[rows(3, 5), rows(2, 7), call(S, padding=PADDING), call(S, CAUSAL)])
class AttentionWithout(Attends):
    pass


@odd(S, others=[rows(3, 5), rows(2, 7), call(S, padding=PADDING), call(S, CAUSAL)])
class AttentionWithWeights(Attends):
    need_weights = True


@odd(S, others=[rows(3, 5), after(lambda m: m.eval(), S)], train=True)
def attention_with_extras():
    return Attends(dropout=0.1, add_bias_kv=True, add_zero_attn=True)


@odd(call(rows(5, 2), rows(7, 2)), others=[call(rows(3, 2), rows(7, 2)), call(rows(5), rows(7))])
class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, kdim=8, vdim=8)

    def forward(self, q, kv):
        return self.attn(q, kv, kv, average_attn_weights=False)


@odd(S, others=[rows(3, 5), rows(2, 7), after(lambda m: m.train(), S)])
def encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


@odd(S, others=[rows(3, 5), call(S, src_key_padding_mask=PADDING)])
def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True, batch_first=True)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)


@odd(
    call(rows(5, 2), rows(7, 2)),
    others=[call(rows(5, 3), rows(4, 3)), call(rows(5, 2), rows(7, 2), tgt_mask=CAUSAL, tgt_is_causal=True)],
)
def decoder():
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2)


@odd(call(rows(5, 2), rows(7, 2)), others=[call(rows(5, 3), rows(4, 3))])
class WholeTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0)

    def forward(self, src, tgt):
        mask = self.net.generate_square_subsequent_mask(tgt.size(0))
        return self.net(src, tgt, tgt_mask=mask, tgt_is_causal=True)


@odd(S, others=[rows(3, 5), rows(2, 7), rows(5)])
class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 8)

    def forward(self, x, state=None):
        y, (h, c) = self.rnn(x, state)
        return self.head(y), h[-1], c.mean()


@odd(S, others=[rows(3, 5), after(lambda m: m.eval(), S)], train=True)
class GruAndRnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.rnn = nn.GRU(8, 8, 2, dropout=0.3), nn.RNN(8, 8, nonlinearity="relu")

    def forward(self, x):
        self.gru.flatten_parameters()
        y, h = self.gru(x)
        return self.rnn(y, h[-1:])[0]


@odd(S, others=[rows(3, 4), rows(1, 1)])
class CellLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(8, 8), nn.GRUCell(8, 8)

    def forward(self, x):
        state, h, out = None, torch.zeros(x.size(0), 8), []
        for t in range(x.size(1)):
            state = self.lstm(x[:, t], state)
            h = self.gru(state[0], h)
            out.append(h)
        return torch.stack(out, 1), state


@odd(
    made(lambda: (pack_sequence([rows(4), rows(2)]),)),
    others=[made(lambda: (pack_sequence([rows(3), rows(3), rows(1)]),))],
)
class PackedBetween(nn.Module):
    """A PackedSequence goes in and out of a leaf; nobody asks for its lengths."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 8)

    def forward(self, packed):
        y, h = self.rnn(packed)
        return y.data * 2, h


@odd(call(S, torch.tensor([5, 3])), others=[call(rows(2, 7), torch.tensor([7, 2]))],
     refused="a size or a value in it depends on data (aten._pack_padded_sequence.default)")  # fmt: skip
class PacksItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)  # refused
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


@odd(
    call(torch.arange(8).view(2, 4)),
    others=[call(torch.arange(8), torch.tensor([0, 3])), call(torch.arange(6).view(3, 2))],
)
class EmbeddingBags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.sum = nn.EmbeddingBag(10, 8), nn.EmbeddingBag(10, 8, mode="sum", padding_idx=0)

    def forward(self, ids, offsets=None):
        return self.bag(ids, offsets) + self.sum(ids, offsets)


@odd(torch.arange(6).view(2, 3), others=[torch.arange(8)])
class NormedEmbedding(nn.Module):
    """max_norm rescales rows of the weight in place, in every forward."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 8, max_norm=0.5)

    def forward(self, ids):
        y = self.table(ids)
        return y + self.table.weight[0].detach() + F.embedding(ids, self.table.weight.detach(), padding_idx=0)


@odd(rows(2, 3, 6), others=[rows(1, 3, 5)])
class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", bias=False), nn.GroupNorm(2, 4), nn.SiLU(inplace=True),
                                 nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, padding_mode="reflect"))  # fmt: skip
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x):
        y = self.net(x)
        return F.max_pool2d(self.up(y, output_size=[2 * s for s in y.shape[-2:]]), 2), y.mean((-2, -1), keepdim=True)


@odd(X, others=[rows(3), after(lambda m: m.eval(), X)], train=True)
class Dropouts(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.alpha, self.linear = nn.Dropout(0.3), nn.AlphaDropout(0.2), nn.Linear(8, 8)

    def forward(self, x):
        y = F.dropout(self.alpha(self.linear(self.drop(x))), 0.1, self.training)
        return y + F.dropout(x, p=0.5) + F.dropout1d(x, training=self.training)


@odd(X, others=[rows(3), after(lambda m: m.eval(), X)], train=True)
class StochasticDepth(Block):
    def forward(self, x):
        y = self.mlp(x)
        if self.training:
            keep = torch.rand(x.shape[0], 1).lt(0.8).to(x.dtype)
            y = y * keep / 0.8 + torch.randn_like(x) * 0.1 + torch.empty_like(x).bernoulli_(0.5)
        return x + y


@odd(X, others=[rows(3)])
class Noises(Block):
    """Every source of torch's random numbers, in the order that they are asked."""

    def forward(self, x):
        y = self.mlp(x) + torch.rand(len(x), 1) + torch.randn(8) + torch.rand_like(x) + torch.randint(0, 5, (len(x), 1))
        y = (
            y
            + torch.normal(0.0, 1.0, (8,))
            + torch.randperm(8)
            + torch.bernoulli(torch.full((8,), 0.5))
            + torch.zeros(8).uniform_()
        )
        return (
            y
            + F.gumbel_softmax(x, hard=True)
            + torch.multinomial(x.softmax(-1), 1)
            + x.new_empty(8).normal_().exponential_()
        )


@odd(call(X, torch.tensor([1, 0, 3, 2])), others=[call(rows(3), torch.tensor([0, 1, 7]))])
class Losses(Block):
    def __init__(self):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x, labels=None):
        y = self.mlp(x)
        return (
            self.criterion(y, labels),
            F.mse_loss(y, x),
            F.kl_div(y.log_softmax(-1), x.softmax(-1), reduction="batchmean"),
            y,
        )


@odd(rows(2, 4), others=[rows(3, 4), rows(1, 6)])
class RmsAndScan(nn.Module):
    """A gated recurrence written as a Python loop, with norms written out."""

    def __init__(self):
        super().__init__()
        self.weight, self.gate = nn.Parameter(torch.ones(8)), nn.Linear(8, 8)

    def forward(self, x):
        dtype = x.dtype
        x32 = x.to(torch.float32)
        x = (self.weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6))).to(dtype)
        h, out = x.new_zeros(x.size(0), 8), []
        for step in x.unbind(1):
            a = torch.sigmoid(self.gate(step))
            h = a * h + (1 - a) * step
            out += [h]
        return torch.stack(out, dim=1)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))


@odd(X, others=[rows(3)])
class DenseExperts(Experts):
    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        weights = torch.zeros(len(x), 3).scatter(1, chosen, weights)
        return sum(w[:, None] * expert(x) for w, expert in zip(weights.unbind(1), self.experts, strict=True))


@odd(X, others=[rows(3)], refused="a size or a value in it depends on data (aten.nonzero.default)")
class SparseExperts(Experts):
    def forward(self, x):
        chosen, out = self.router(x).argmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            (at,) = torch.where(chosen == i)  # refused
            out.index_add_(0, at, expert(x[at]))
        return out


@odd(X, others=[rows(3)])
def orders_of_layers():
    return (
        nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.PReLU(), nn.Softmax(dim=1), nn.Threshold(0.1, 0.0))
        .double()
        .float()
    )
