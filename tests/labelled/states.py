"""Cells and recurrences: a step, a loop over steps, a parallel form."""

import torch
from snippets import IMAGE, SERIES, STATE, STEP, TOKENS, D, H, has
from torch import nn
from torch.nn import functional as F

STREAM = torch.stack([TOKENS, TOKENS.flip(1)], 1)  # batch, heads, positions, features
MEMORY = torch.linspace(-1, 1, 2 * D * D).sin().reshape(2, D, D)


class Gates(nn.Module):
    def __init__(self):
        super().__init__()
        self.x2h, self.h2h = nn.Linear(D, 4 * D), nn.Linear(D, 4 * D)
        self.x3h, self.h3h = nn.Linear(D, 3 * D), nn.Linear(D, 3 * D)
        self.wz, self.wh = nn.Linear(D, D), nn.Linear(D, D)


@has("cell", given=(STEP, STATE, STATE.flip(0)))
class LSTMCell(Gates):
    def forward(self, x, h, c):
        i, f, g, o = (self.x2h(x) + self.h2h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c)


@has("cell")
class LSTMLoop(Gates):
    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], D)
        outs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x2h(x[:, t]) + self.h2h(h)).chunk(4, 1)
            c = c * f.sigmoid() + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outs.append(h)
        return torch.stack(outs, 1)


@has("cell", given=(STEP, STATE))
class GRUCell(Gates):
    def forward(self, x, h):
        i_r, i_z, i_n = self.x3h(x).chunk(3, 1)
        h_r, h_z, h_n = self.h3h(h).chunk(3, 1)
        r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        n = torch.tanh(i_n + r * h_n)
        return n + z * (h - n)


@has("cell", given=(STEP, STATE))
class ConcatGRU(nn.Module):
    """EDU4FD: gates of both vectors side by side, the reset inside the concatenation."""

    def __init__(self):
        super().__init__()
        self.wz, self.wr, self.w = nn.Linear(2 * D, D), nn.Linear(2 * D, D), nn.Linear(2 * D, D)

    def forward(self, s, h):
        hx = torch.cat([s, h], dim=-1)
        z, r = torch.sigmoid(self.wz(hx)), torch.sigmoid(self.wr(hx))
        n = torch.tanh(self.w(torch.cat([s, r * h], -1)))
        return (1 - z) * h + z * n


@has("cell")
class GRULoop(Gates):
    def forward(self, x):
        h = torch.zeros(x.shape[0], D)
        for t in range(x.shape[1]):
            ir, iz, inn = self.x3h(x[:, t]).chunk(3, -1)
            hr, hz, hn = self.h3h(h).chunk(3, -1)
            r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
            h = (1 - z) * torch.tanh(inn + r * hn) + z * h
        return h


@has("cell", given=(IMAGE, IMAGE.flip(0), IMAGE.flip(1)))
class ConvLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2 * D, 4 * D, 3, padding=1)

    def forward(self, x, h, c):
        cc_i, cc_f, cc_o, cc_g = torch.split(self.conv(torch.cat([x, h], dim=1)), D, dim=1)
        i, f, o = torch.sigmoid(cc_i), torch.sigmoid(cc_f), torch.sigmoid(cc_o)
        c_next = f * c + i * torch.tanh(cc_g)
        return o * torch.tanh(c_next), c_next


@has("cell", given=(IMAGE, IMAGE.flip(0)))
class ConvGRU(nn.Module):
    """RAFT."""

    def __init__(self):
        super().__init__()
        self.convz, self.convr, self.convq = (nn.Conv2d(2 * D, D, 3, padding=1) for _ in range(3))

    def forward(self, h, x):
        hx = torch.cat([h, x], dim=1)
        z, r = torch.sigmoid(self.convz(hx)), torch.sigmoid(self.convr(hx))
        q = torch.tanh(self.convq(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q


@has("cell", given=(STEP, STATE, STATE.flip(0)))
class ReTCell(nn.Module):
    """An LSTM-like cell over layers: forget the query, take in two modalities."""

    def __init__(self):
        super().__init__()
        self.wit, self.wiv, self.wft, self.wfv = (nn.Linear(D, D) for _ in range(4))
        self.t, self.v = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, q, text, image):
        h_t, h_v = self.t(text), self.v(image)
        i_t, i_v = torch.sigmoid(self.wit(h_t)), torch.sigmoid(self.wiv(h_v))
        f = torch.sigmoid(self.wft(h_t) + self.wfv(h_v))
        return f * q + i_t * h_t + i_v * h_v


@has("cell", given=(TOKENS,))
class TorchLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(D, D, batch_first=True), nn.Linear(D, D)

    def forward(self, x):
        return self.out(self.lstm(x)[0])


@has("cell", given=(TOKENS,))
class TorchGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.out = nn.GRU(D, D, batch_first=True), nn.Linear(D, D)

    def forward(self, x):
        y, _ = self.gru(x)
        return self.out(y[:, -1])


@has("cell", given=(STEP, STATE))
class TorchGRUCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(D, D)

    def forward(self, x, h):
        return self.cell(x, h)


@has("cell", given=(STEP, STATE, STATE.flip(0)))
class TorchLSTMCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(D, D)

    def forward(self, x, h, c):
        h, c = self.cell(x, (h, c))
        return h + c


@has("cell", given=(TOKENS,))
class LoopOfACell(nn.Module):
    """One cell at every step."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(D, D)

    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
        return h


# -- recurrences ------------------------------------------------------------------------------------------------------


@has("recurrence")
class MinGRULoop(Gates):
    def forward(self, x):
        z, n = torch.sigmoid(self.wz(x)), self.wh(x)
        h, outs = torch.zeros_like(n[:, 0]), []
        for t in range(x.shape[1]):
            h = (1 - z[:, t]) * h + z[:, t] * n[:, t]
            outs.append(h)
        return torch.stack(outs, dim=1)


@has("recurrence", given=(STEP, STATE))
class DecayStep(Gates):
    def forward(self, x, h):
        a = torch.sigmoid(self.wz(x))
        return a * h + self.wh(x)


@has("recurrence", given=(STEP, STATE))
class RGLRUStep(nn.Module):
    """One step of the real-gated linear recurrent unit."""

    def __init__(self):
        super().__init__()
        self.wa, self.wx, self.lam = nn.Linear(D, D), nn.Linear(D, D), nn.Parameter(torch.ones(D))

    def forward(self, x, h):
        r, i = torch.sigmoid(self.wa(x)), torch.sigmoid(self.wx(x))
        log_a = -8.0 * r * F.softplus(self.lam)
        a = torch.exp(log_a)
        return a * h + torch.sqrt(1 - a**2) * (i * x)


@has("recurrence")
class RGLRULoop(RGLRUStep):
    def forward(self, x):
        r, i = torch.sigmoid(self.wa(x)), torch.sigmoid(self.wx(x))
        log_a = -8.0 * r * F.softplus(self.lam)
        a, gated = torch.exp(log_a), i * x * torch.sqrt(1 - torch.exp(2 * log_a))
        h, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = a[:, t] * h + gated[:, t]
            outs.append(h)
        return torch.stack(outs, 1)


@has("recurrence")
class SelectiveScan(nn.Module):
    """Mamba's slow path."""

    def __init__(self):
        super().__init__()
        self.A_log, self.D = nn.Parameter(torch.randn(D, 3)), nn.Parameter(torch.ones(D))
        self.x_proj, self.dt_proj = nn.Linear(D, 2 + 6), nn.Linear(2, D)

    def forward(self, x):
        A = -torch.exp(self.A_log.float())
        dt, B, C = torch.split(self.x_proj(x), [2, 3, 3], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        dA = torch.exp(A[None, None] * dt[..., None])
        dBx = dt[..., None] * B[:, :, None, :] * x[..., None]
        state, ys = x.new_zeros(x.shape[0], D, 3), []
        for i in range(x.shape[1]):
            state = dA[:, i] * state + dBx[:, i]
            ys.append(torch.matmul(state, C[:, i, :, None])[..., 0])
        return torch.stack(ys, 1) + x * self.D


@has("recurrence", given=(STREAM, STREAM.flip(2), STREAM.flip(3)))
class GLALoop(nn.Module):
    """fla's naive gated linear attention."""

    def __init__(self):
        super().__init__()
        self.gk = nn.Linear(D, D)

    def forward(self, q, k, v):
        gk = F.logsigmoid(self.gk(q)) / 16
        h = q.new_zeros(*q.shape[:2], D, D)
        outs = []
        for i in range(q.shape[2]):
            kv = k[:, :, i][..., None] * v[:, :, i][..., None, :]
            h = h * gk[:, :, i].exp()[..., None] + kv
            outs.append((q[:, :, i][..., None] * h).sum(-2))
        return torch.stack(outs, -2)


@has("recurrence", given=(STEP, STATE, MEMORY))
class StateUpdate(nn.Module):
    """S = g S + k v^T, one step."""

    def __init__(self):
        super().__init__()
        self.g, self.k, self.v = nn.Linear(D, 1), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x, y, S):
        S = torch.sigmoid(self.g(x)).unsqueeze(-1) * S + torch.einsum("bk,bv->bkv", self.k(x), self.v(x))
        return torch.einsum("bk,bkv->bv", y, S)


@has("recurrence", given=(STREAM, STREAM.flip(2), STREAM.flip(3)))
class DeltaRule(nn.Module):
    """Qwen3-Next's recurrent gated delta rule."""

    def __init__(self):
        super().__init__()
        self.b, self.a = nn.Linear(D, 1), nn.Linear(D, 1)
        self.A_log, self.dt_bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, query, key, value):
        beta = self.b(query).sigmoid().squeeze(-1)
        g = (-self.A_log.float().exp() * F.softplus(self.a(query).float() + self.dt_bias)).squeeze(-1)
        state, outs = query.new_zeros(*query.shape[:2], D, D), []
        for i in range(query.shape[2]):
            q_t, k_t, v_t = query[:, :, i], key[:, :, i], value[:, :, i]
            g_t, beta_t = g[:, :, i].exp().unsqueeze(-1).unsqueeze(-1), beta[:, :, i].unsqueeze(-1)
            state = state * g_t
            kv_mem = (state * k_t.unsqueeze(-1)).sum(dim=-2)
            delta = (v_t - kv_mem) * beta_t
            state = state + k_t.unsqueeze(-1) * delta.unsqueeze(-2)
            outs.append((state * q_t.unsqueeze(-1)).sum(dim=-2))
        return torch.stack(outs, 2)


@has("recurrence", given=(STEP, STATE, MEMORY))
class DeltaStep(nn.Module):
    """The delta rule without decay: only beta lets something in."""

    def __init__(self):
        super().__init__()
        self.beta, self.k, self.v = nn.Linear(D, 1), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x, y, S):
        k, v = self.k(x), self.v(x)
        old = torch.einsum("bk,bkv->bv", k, S)
        return S + torch.sigmoid(self.beta(x))[..., None] * torch.einsum("bk,bv->bkv", k, v - old)


@has("recurrence")
class ParallelScan(Gates):
    """minGRU in log space: heinsen's scan."""

    def forward(self, x):
        k = self.wz(x)
        log_z, log_coeffs = -F.softplus(-k), -F.softplus(k)
        log_h = torch.log(F.softplus(self.wh(x)) + 1e-3)
        a_star = torch.cumsum(log_coeffs, dim=1)
        return torch.exp(a_star + torch.logcumsumexp(log_z + log_h - a_star, dim=1))


@has("recurrence")
class CumulativeProduct(Gates):
    """h_t = a_t h_{t-1} + b_t by cumulative sums of logarithms."""

    def forward(self, x):
        log_a = F.logsigmoid(self.wz(x))
        total = log_a.cumsum(dim=1)
        return torch.exp(total) * (self.wh(x) * torch.exp(-total)).cumsum(dim=1)


@has("recurrence")
class StepsOfTheirOwn(nn.Module):
    """A state space in parallel: the step that lets a state go also weighs what flows in."""

    def __init__(self):
        super().__init__()
        self.wh, self.dt, self.a = nn.Linear(D, D), nn.Linear(D, D), nn.Parameter(torch.zeros(D))

    def forward(self, x):
        dt = F.softplus(self.dt(x)).clamp(min=0.01)
        total = (-self.a.exp() * dt).cumsum(1)
        last = total[:, -1:]
        entered = F.silu(self.wh(x)) * dt
        return total.exp() * (entered * (-total).exp()).cumsum(1) + (last - total).exp()


@has("recurrence")
class LearnedDecay(nn.Module):
    """Exponential smoothing with a learned rate per channel (MEGA, ETSformer), in a loop."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(D))

    def forward(self, x):
        a = torch.sigmoid(self.alpha)
        h, outs = x[:, 0], []
        for t in range(1, x.shape[1]):
            h = a * x[:, t] + (1 - a) * h
            outs.append(h)
        return torch.stack(outs, dim=1)


@has("recurrence", "highway")
class SRU(nn.Module):
    """A light recurrence and a highway around it."""

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(D, 3 * D)

    def forward(self, x):
        u, f, r = self.w(x).chunk(3, -1)
        f, r = torch.sigmoid(f), torch.sigmoid(r)
        c, cs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            c = f[:, t] * c + (1 - f[:, t]) * u[:, t]
            cs.append(c)
        c = torch.stack(cs, 1)
        return r * torch.tanh(c) + (1 - r) * x


@has("recurrence", given=(SERIES,))
class RetentionLoop(nn.Module):
    """A learned decay and outer products, channels first."""

    def __init__(self):
        super().__init__()
        self.k, self.v, self.q = (nn.Conv1d(D, 4, 1) for _ in range(3))
        self.log_decay = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        k, v, q = self.k(x), self.v(x), self.q(x)
        gamma = torch.exp(-torch.exp(self.log_decay)).view(1, 4, 1)
        s, outs = x.new_zeros(x.shape[0], 4, 4), []
        for t in range(x.shape[2]):
            s = gamma * s + k[:, :, t].unsqueeze(2) * v[:, :, t].unsqueeze(1)
            outs.append(torch.bmm(q[:, :, t].unsqueeze(1), s).squeeze(1))
        return torch.stack(outs, 2)


# -- states whose decay has several factors, whose steps are calls of a module, which are read out through a gate -------


@has("recurrence")
class ResetAtBoundaries(nn.Module):
    """Leaky integration that starts anew where a segment starts."""

    def __init__(self):
        super().__init__()
        self.rate, self.drive = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x):
        new = (torch.arange(x.shape[1]) % 3 == 0).view(1, -1, 1)
        keep = torch.sigmoid(self.rate(x)) * ~new
        drive, h, out = self.drive(x), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = keep[:, t] * h + drive[:, t]
            out.append(h)
        return torch.stack(out, 1)


@has("recurrence")
class ZeroedByMask(ResetAtBoundaries):
    def forward(self, x):
        new = (torch.arange(x.shape[1]) % 3 == 0).view(1, -1, 1)
        keep = torch.sigmoid(self.rate(x)).masked_fill(new, 0.0).unbind(1)
        h, out = torch.zeros_like(x[:, 0]), []
        for a, b in zip(keep, self.drive(x).unbind(1), strict=True):
            h = torch.addcmul(b, a, h)
            out.append(h)
        return torch.stack(out, 1)


@has("cell", given=(IMAGE, IMAGE.flip(0), IMAGE.flip(1)))
class SensoryMemory(nn.Module):
    """XMem: a forget gate beside the update gate."""

    def __init__(self):
        super().__init__()
        self.transform = nn.Conv2d(2 * D, 3 * D, 3, padding=1)

    def forward(self, a, b, c):
        h = torch.zeros_like(a)
        for g in (a, b, c):
            values = self.transform(torch.cat([g, h], 1))
            forget, update = torch.sigmoid(values[:, :D]), torch.sigmoid(values[:, D : 2 * D])
            h = forget * h * (1 - update) + update * torch.tanh(values[:, 2 * D :])
        return h


class NodeUpdate(nn.Module):
    def __init__(self):
        super().__init__()
        self.z, self.r, self.n = nn.Linear(2 * D, D), nn.Linear(2 * D, D), nn.Linear(2 * D, D)

    def forward(self, message, h):
        z = self.z(torch.cat([h, message], -1)).sigmoid()
        r = self.r(torch.cat([h, message], -1)).sigmoid()
        return torch.lerp(h, self.n(torch.cat([r * h, message], -1)).tanh(), z)


@has("cell")
class MessagePassing(nn.Module):
    """The same cell at every step, as a module of its own."""

    def __init__(self):
        super().__init__()
        self.enter, self.message, self.update = nn.Linear(D, D), nn.Linear(D, D), NodeUpdate()

    def forward(self, x):
        h = self.enter(x)
        for _ in range(3):
            h = self.update(self.message(h).mean(1, keepdim=True).expand_as(h), h)
        return h


class Fuse(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Linear(2 * D, D)

    def forward(self, a, b):
        g = torch.sigmoid(self.both(torch.cat([a, b], -1)))
        return g * a + (1 - g) * b


@has("highway", given=(TOKENS, TOKENS.flip(0), TOKENS.flip(1)))
class SharedFusion(nn.Module):
    """One gate with one set of weights, called for each further view."""

    def __init__(self):
        super().__init__()
        self.fuse, self.view = Fuse(), nn.Linear(D, D)

    def forward(self, x, y, z):
        return sum(self.fuse(torch.relu(self.view(other)), x) for other in (y, z))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.keep_a, self.keep_b, self.forget = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.a, self.b = nn.MultiheadAttention(D, 2, batch_first=True), nn.MultiheadAttention(D, 2, batch_first=True)
        self.ff = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))

    def forward(self, state, first, second):
        a, b = self.a(state, first, first)[0], self.b(state, second, second)[0]
        new = self.forget(a + b).sigmoid() * state.tanh() + self.keep_a(a).sigmoid() * a + self.keep_b(b).sigmoid() * b
        return new + self.ff(new)


@has("cell", given=(TOKENS, TOKENS.flip(1)))
class DepthCell(nn.Module):
    """A state of learned queries goes through two readings of two streams."""

    def __init__(self):
        super().__init__()
        self.start, self.read = nn.Parameter(torch.randn(3, D)), Reader()

    def forward(self, x, y):
        state = self.start.expand(x.shape[0], -1, -1)
        return self.read(self.read(state, x, y), x.flip(1), y.flip(1))


@has("recurrence", "glu", given=(STREAM,))
class GatedReadout(nn.Module):
    """What a matrix state returns, normed, under a swish of the input."""

    def __init__(self):
        super().__init__()
        self.qkv, self.decay, self.gate = nn.Linear(D, 3 * D), nn.Linear(D, 1), nn.Linear(D, D)
        self.norm, self.out = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        a = self.decay(x).sigmoid().unsqueeze(-1)
        state, outs = x.new_zeros(*x.shape[:2], D, D), []
        for t in range(x.shape[2]):
            state = a[:, :, t] * state + k[:, :, t].unsqueeze(-1) @ v[:, :, t].unsqueeze(-2)
            outs.append((q[:, :, t].unsqueeze(-2) @ state).squeeze(-2))
        return self.out(self.norm(torch.stack(outs, 2)) * F.silu(self.gate(x)))


@has("recurrence", "glu")
class GriffinBranch(Gates):
    """A gelu branch beside a recurrence."""

    def forward(self, x):
        a, b = torch.sigmoid(self.wz(x)), self.wh(x)
        h, outs = torch.zeros_like(b[:, 0]), []
        for t in range(x.shape[1]):
            h = a[:, t] * h + (1 - a[:, t]) * b[:, t]
            outs.append(h)
        return F.gelu(self.x2h(x)[..., :D]) * torch.stack(outs, 1)


@has("recurrence", "recurrence")
class BothDirections(nn.Module):
    """Two decays from one layer, one for each direction, as sums of logarithms between any two positions."""

    def __init__(self):
        super().__init__()
        self.decays, self.value = nn.Linear(D, 2 * D), nn.Linear(D, D)

    def scan(self, v, log_a):
        total = log_a.cumsum(1)
        between = (total[:, :, None] - total[:, None]).masked_fill(~torch.ones(6, 6).tril().bool()[..., None], -1e9)
        return (between.exp() * v[:, None]).sum(2)

    def forward(self, x):
        v = self.value(x)
        forth, back = F.logsigmoid(self.decays(x)).chunk(2, -1)
        return self.scan(v, forth) + self.scan(v.flip(1), back.flip(1)).flip(1)


@has("cell", given=(STEP, STATE))
class CellLoop(nn.Module):
    """torch's cell over its own state, a few times: one gate."""

    def __init__(self):
        super().__init__()
        self.cell, self.look = nn.GRUCell(D, D), nn.Linear(D, D)

    def forward(self, x, h):
        for _ in range(3):
            h = self.cell(self.look(x), h)
        return h


@has("cell", "cell", given=(STEP, STATE))
class TwoCells(nn.Module):
    """A stack: each its own."""

    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList(nn.GRUCell(D, D) for _ in range(2))

    def forward(self, x, h):
        for cell in self.cells:
            x = cell(x, h)
        return x
