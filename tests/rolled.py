"""Loops over time as people write them: each a forward of (x, gate) of a module with three linear layers."""

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 5


def listed(m, x, a):
    h, out = torch.zeros(x.shape[0], x.shape[2]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def unsqueezed(m, x, a):
    h, out = x.new_zeros(x.shape[0], x.shape[2]), []
    for t in range(x.shape[1]):
        h = a[:, t, :] * h + (1 - a[:, t, :]) * x[:, t, :]
        out.append(h.unsqueeze(1))
    return torch.cat(out, dim=1)


def in_place(m, x, a):
    y, h = torch.zeros_like(x), torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        y[:, t] = h
    return y


def in_place_state(m, x, a):
    y, h = torch.empty_like(x), torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h *= a[:, t]
        h += x[:, t]
        y[:, t] = h
    return y


def copied(m, x, a):
    y, h = torch.zeros_like(x), torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = a[:, t].mul(h).add(x[:, t])
        y[:, t].copy_(h)
    return y


def backwards(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1] - 1, -1, -1):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out[::-1], 1)


def backwards_in_place(m, x, a):
    h, y = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
    for t in reversed(range(x.size(1))):
        h = a[:, t] * h + x[:, t]
        y[:, t] = h
    return y


def both_ways(m, x, a):
    return torch.cat([listed(m, x, a), backwards(m, x, a)], -1)


def final(m, x, a):
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = torch.lerp(h, x[:, t], a[:, t])
    return h


def difference(m, x, a):
    h, out = x[:, 0], []
    for t in range(x.shape[1]):
        h = h + a[:, t] * (x[:, t] - h)
        out.append(h)
    return torch.stack(out, dim=1), h


def first_is_none(m, x, a):
    h, out = None, []
    for x_t, a_t in zip(x.unbind(1), a.unbind(1), strict=True):
        h = x_t if h is None else a_t * h + x_t
        out.append(h)
    return torch.stack(out, 1)


def from_number(m, x, a):
    h, out = 0, []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def parts(m, x, a):
    h, out = torch.zeros(x.shape[0], 1, x.shape[2]), []
    for x_t, a_t in zip(torch.split(x, 1, dim=1), a.chunk(a.shape[1], dim=1), strict=True):
        h = torch.addcmul(x_t, a_t, h)
        out.append(h)
    return torch.cat(out, 1)


def sliced(m, x, a):
    h, out = torch.zeros(x.shape[0], 1, x.shape[2]), []
    for t in range(x.shape[1]):
        h = a[:, t : t + 1] * h + x.narrow(1, t, 1)
        out += [h]
    return torch.cat(out, 1)


def channels_first(m, x, a):
    x, a = x.transpose(1, 2), a.permute(0, 2, 1)
    h, out = torch.zeros_like(x[..., 0]), []
    for t in range(x.shape[-1]):
        h = a[:, :, t] * h + x.select(2, t)
        out.append(h)
    return torch.stack(out, -1)


def time_first(m, x, a):
    h, out = torch.zeros(x.shape[0], x.shape[2]), []
    for x_t, a_t in zip(x.transpose(0, 1), a.transpose(0, 1), strict=True):
        h = a_t * h + x_t
        out.append(h)
    return torch.stack(out).transpose(0, 1)


def layers_inside(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        z = torch.sigmoid(m.one(x[:, t]))
        h = (1 - z) * h + z * F.linear(x[:, t], m.two.weight, m.two.bias).tanh()
        out.append(m.three(h))
    return torch.stack(out, 1)


def average(m, x, a):
    h, out = x[:, 0], []
    for t in range(1, x.shape[1]):
        h = 0.9 * h + 0.1 * x[:, t]
        out.append(h)
    return torch.stack([x[:, 0], *out], 1)


def real_gate(m, x, a):
    rate, h, out = F.softplus(m.one.bias), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        decay = torch.exp(-8 * rate * a[:, t])
        h = decay * h + torch.sqrt(1 - decay**2) * x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def read_out(m, x, a):
    h, out = torch.zeros(x.shape[0], x.shape[2], 3), []
    for t in range(x.shape[1]):
        h = a[:, t, :, None] * h + x[:, t, :, None] * a[:, t, None, :3]
        out.append(torch.matmul(h, x[:, t, :3].unsqueeze(-1))[:, :, 0] + m.one.bias * x[:, t])
    return torch.stack(out, dim=1)


def linear_attention(m, x, a):
    q, k, v = m.one(x), m.two(x), m.three(x)
    state, out = torch.zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        state = a[:, t][..., None] * state + k[:, t][..., None] * v[:, t][..., None, :]
        out.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(out, 1)


def contracted(m, x, a):
    state, out = torch.zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        state = state * a[:, t, :, None] + torch.einsum("bi,bj->bij", x[:, t], a[:, t])
        out.append(torch.einsum("bi,bij->bj", x[:, t], state))
    return torch.stack(out, 1)


def reset(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.where(a[:, t] > 0.7, x[:, t], 0.5 * h + x[:, t])
        h = h.masked_fill(a[:, t] < 0.1, 1.0)
        out.append(h)
    return torch.stack(out, 1)


def quotient(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = -(x[:, t] - h) / (1 + a[:, t])
        out.append(h)
    return torch.stack(out, 1)


def token_shift(m, x, a):
    before, h, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        mixed = a[:, t] * x[:, t] + (1 - a[:, t]) * before
        h = 0.8 * h + mixed
        before = x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def two_states(m, x, a):
    h, s, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        s = 0.5 * s + torch.tanh(h)
        out.append(h * s)
    return torch.stack(out, 1), s


def gates_in_a_list(m, x, a):
    gates = [torch.sigmoid(m.one(x[:, t])) for t in range(x.shape[1])]
    h, out = torch.zeros_like(x[:, 0]), []
    for g, x_t in zip(gates, x.unbind(1), strict=True):
        h = g * h + (1 - g) * x_t
        out.append(h)
    return torch.stack(out, 1)


def sizes_inside(m, x, a):
    h, out = torch.zeros(x.shape[0], 1, x.shape[2]), []
    for t in range(x.shape[1]):
        h = a[:, t].view(x.shape[0], 1, -1) * h + x[:, t].reshape(x.size(0), 1, x.size(2))
        out.append(h.flatten(1))
    return torch.stack(out, 1)


def normed(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t].softmax(-1)
        out.append(h / h.norm(dim=-1, keepdim=True).clamp(min=1e-3))
    return torch.stack(out, 1)


def cumulative(m, x, a):
    h, y = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = h + x[:, t]
        y.append(h)
    return torch.stack(y, 1)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.new = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, h):
        z = torch.sigmoid(self.gate(x))
        return (1 - z) * h + z * self.new(x)


def cell(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = m.cell(x[:, t], h)
        out.append(h)
    return torch.stack(out, 1)


LOOPS = {f.__name__: f for f in (
    listed, unsqueezed, in_place, in_place_state, copied, backwards, backwards_in_place, both_ways, final, difference,
    first_is_none, from_number, parts, sliced, channels_first, time_first, layers_inside, average, real_gate, read_out,
    linear_attention, contracted, reset, quotient, token_shift, two_states, gates_in_a_list, sizes_inside, normed, cumulative,
    cell,
)}  # fmt: skip


class Looped(nn.Module):
    def __init__(self, loop):
        super().__init__()
        self.loop = loop
        self.one, self.two, self.three = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.cell, self.gru = Cell(), nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x, a):
        return self.loop(self, x, a)


def inputs(steps, batch=2, dtype=torch.float64):
    torch.manual_seed(steps)
    return torch.randn(batch, steps, WIDTH, dtype=dtype), torch.rand(batch, steps, WIDTH, dtype=dtype)


# -- loops that are no recurrence ---------------------------------------------------------------------------------------


def squashed(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.tanh(a[:, t] * h + x[:, t])
        out.append(h)
    return torch.stack(out, 1)


def squared(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.1 * h * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def mixed(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = h @ m.one.weight + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def through_a_layer(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * m.two(h) + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def gru(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        z = torch.sigmoid(m.one(h))
        h = (1 - z) * h + z * x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def lstm(m, x, a):
    h, c, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        c = torch.sigmoid(m.one(h)) * c + x[:, t]
        h = a[:, t] * torch.tanh(c)
        out.append(h)
    return torch.stack(out, 1)


def one_step_differs(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + (x[:, t] if t != 6 else torch.relu(x[:, t]))
        out.append(h)
    return torch.stack(out, 1)


def every_second(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t // 2] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def two_back(m, x, a):
    h, before, out = x[:, 0], x[:, 1], []
    for t in range(x.shape[1]):
        h, before = a[:, t] * before + x[:, t], h
        out.append(h)
    return torch.stack(out, 1)


def rounded(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = (a[:, t] * h.float() + x[:, t]).to(x.dtype)
        out.append(h)
    return torch.stack(out, 1)


def cut_off(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h.detach() + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def noisy(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + torch.randn_like(h)
        out.append(h)
    return torch.stack(out, 1)


def maximum(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.maximum(a[:, t] * h, x[:, t])
        out.append(h)
    return torch.stack(out, 1)


def reads_what_it_writes(m, x, a):
    y = torch.zeros_like(x)
    for t in range(1, x.shape[1]):
        y[:, t] = a[:, t] * y[:, t - 1] + x[:, t]
    return y


def aliased(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h *= a[:, t]
        h += x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def by_a_cell(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = m.gru(x[:, t], h)
        out.append(h)
    return torch.stack(out, 1)


TRAPS = {f.__name__: f for f in (
    squashed, squared, mixed, through_a_layer, gru, lstm, one_step_differs, every_second, two_back, rounded,
    cut_off, noisy, maximum, reads_what_it_writes, aliased, by_a_cell,
)}  # fmt: skip
