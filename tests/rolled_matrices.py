"""Loops over time whose state is a matrix, as people write them: each a forward of (x, gate) of a module with three layers."""

import torch
from rolled import WIDTH
from torch.nn import functional as F

HEADS = 2


def qkv(m, x):
    """Keys of width 3 and values of width 5, for two heads."""
    q, k = (f(x).unflatten(1, (1, -1)).expand(-1, HEADS, -1, -1)[..., :3] for f in (m.one, m.two))
    v = torch.stack([m.three(x), x], 1)
    return q, k * x[:, None, :, :3], v


def empty(x, keys=3, values=WIDTH):
    return torch.zeros(x.shape[0], HEADS, keys, values)


def gated(m, x, a):
    q, k, v = qkv(m, x)
    gate = torch.stack([a, a.square()], 1)[..., :3]
    s, out = empty(x), []
    for t in range(x.shape[1]):
        s = s * gate[:, :, t].unsqueeze(-1) + k[:, :, t].unsqueeze(-1) * v[:, :, t].unsqueeze(-2)
        out.append((q[:, :, t].unsqueeze(-1) * s).sum(-2))
    return torch.stack(out, 2), s


def retention(m, x, a):
    q, k, v = qkv(m, x)
    gamma = 1 - 2.0 ** (-5 - torch.arange(HEADS)).view(HEADS, 1, 1)
    s, out = empty(x), []
    for t in range(x.shape[1]):
        s = gamma * s + k[:, :, t].unsqueeze(-1) @ v[:, :, t].unsqueeze(-2)
        out.append(q[:, :, t].unsqueeze(-2) @ s)
    return torch.cat(out, 2)


def number(m, x, a):
    q, k, v = qkv(m, x)
    s, out = empty(x), []
    for t in range(x.shape[1]):
        s = 0.9 * s + torch.einsum("bhk,bhv->bhkv", k[:, :, t], v[:, :, t])
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], s) * 0.5)
    return torch.stack(out, 1)


def state_space(m, x, a):
    """exp(dt A) for each head, dt in the input, the state values x keys, and a skip."""
    q, k, v = qkv(m, x)
    dt = F.softplus(a[..., :HEADS]).transpose(1, 2)
    s, out = empty(x, WIDTH, 3), []
    for t in range(x.shape[1]):
        d = dt[:, :, t]
        new = (d[..., None] * v[:, :, t])[..., None] * k[:, :, t, None, :]
        s = s * torch.exp(d * -1.5)[..., None, None] + new
        out.append((s * q[:, :, t, None, :]).sum(-1) + 2.0 * v[:, :, t])
    return torch.stack(out, 1)


def gated_delta_rule(m, x, a):
    """As transformers writes it."""
    query, key, value = qkv(m, x)
    key = F.normalize(key, dim=-1)
    g, beta = -a[..., :HEADS].transpose(1, 2), torch.sigmoid(x[..., :HEADS]).transpose(1, 2)
    out, last = torch.zeros_like(value), empty(x)
    for i in range(x.shape[1]):
        q_t = query[:, :, i]
        k_t = key[:, :, i]
        v_t = value[:, :, i]
        g_t = g[:, :, i].exp().unsqueeze(-1).unsqueeze(-1)
        beta_t = beta[:, :, i].unsqueeze(-1)
        last = last * g_t
        memory = (last * k_t.unsqueeze(-1)).sum(dim=-2)
        delta = (v_t - memory) * beta_t
        last = last + k_t.unsqueeze(-1) * delta.unsqueeze(-2)
        out[:, :, i] = (last * q_t.unsqueeze(-1)).sum(dim=-2)
    return out, last


def delta_rule(m, x, a):
    state, out = torch.zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        k = F.normalize(x[:, t], dim=-1)
        state = state * a[:, t, :1, None]
        seen = (state * k[..., None]).sum(-2)
        state = state + k[..., None] * (x[:, t] - seen)[..., None, :]
        out.append((state * k[..., None]).sum(-2))
    return torch.stack(out, 1)


def fast_weights(m, x, a):
    """The state is values x keys, and decays only after what is erased."""
    q, k, v = (f(x) for f in (m.one, m.two, m.three))
    k = F.normalize(k, dim=-1)
    w, out = torch.zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        key = k[:, t].unsqueeze(-1)
        w = a[:, t, :1, None] * (w - 0.5 * (w @ key) @ key.transpose(-1, -2)) + v[:, t].unsqueeze(-1) @ key.transpose(
            -1, -2
        )
        out.append((w @ q[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, 1)


def no_decay(m, x, a):
    """A delta rule that forgets nothing else, by einsum."""
    q, k, v = (f(x) for f in (m.one, m.two, m.three))
    k, s, out = F.normalize(k, dim=-1), x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        old = torch.einsum("bkv,bk->bv", s, k[:, t])
        s = s + torch.einsum("bk,bv->bkv", k[:, t], a[:, t, :1] * (v[:, t] - old))
        out.append(torch.einsum("bkv,bk->bv", s, q[:, t]))
    return torch.stack(out, 1)


def other_keys(m, x, a):
    """What is erased is not what is written: a diagonal decay and a matrix of rank one."""
    q, k, v = (f(x) for f in (m.one, m.two, m.three))
    e, s, out = F.normalize(x, dim=-1), x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        s = a[:, t].unsqueeze(-1) * s
        s = s - (e[:, t] * a[:, t]).unsqueeze(-1) * (e[:, t].unsqueeze(-2) @ s) + k[:, t].unsqueeze(-1) * v[:, t, None]
        out.append(q[:, t].unsqueeze(-2) @ s)
    return torch.cat(out, 1)


def backwards(m, x, a):
    q, k, v = qkv(m, x)
    s, out = x.mean(1)[:, None, :3, None] * torch.ones(HEADS, 1, WIDTH), []
    for t in range(x.shape[1] - 1, -1, -1):
        s = s * a[:, None, t, :3, None] + k[:, :, t, :, None] * v[:, :, t, None]
        out.append((s.transpose(-1, -2) @ q[:, :, t, :, None]).squeeze(-1))
    return torch.stack(out[::-1], 1), s


def gate_behind(m, x, a):
    """Two reads of one state, and a gate and a layer behind them."""
    q, k, v = (f(x) for f in (m.one, m.two, m.three))
    s, out = x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        s = a[:, t, :, None] * s + k[:, t, :, None] * v[:, t, None]
        first, second = ((s * y[:, t, :, None]).sum(1) for y in (q, k))
        out.append(torch.sigmoid(m.one(x[:, t])) * F.layer_norm(first, (WIDTH,)) + m.two(second))
    return torch.stack(out, 1)


def reads_before(m, x, a):
    """What is read is the state before the step."""
    s, out = x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        out.append((s * x[:, t, :, None]).sum(1))
        s = a[:, t, :, None] * s + x[:, t, :, None] * x[:, t, None]
    return torch.stack(out, 1)


MATRICES = {f.__name__: f for f in (
    gated, retention, number, state_space, gated_delta_rule, delta_rule, fast_weights, no_decay, other_keys, backwards,
    gate_behind, reads_before,
)}  # fmt: skip


def whole_states(m, x, a):
    """Its states are wanted, not only reads of them: a scan."""
    s, out = x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        s = a[:, t, :, None] * s + x[:, t, :, None] * x[:, t, None]
        out.append(F.layer_norm(s, (WIDTH,)).sum(1))
    return torch.stack(out, 1)


SCANS = {f.__name__: f for f in (whole_states,)}


def normed_state(m, x, a):
    s, out = x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        s = F.normalize(s, dim=-1) * a[:, t, :, None] + x[:, t, :, None] * x[:, t, None]
        out.append((s * x[:, t, :, None]).sum(1))
    return torch.stack(out, 1)


def erases_twice(m, x, a):
    s, out = x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        s = s - a[:, t, :, None] * (a[:, t, None] @ s)
        s = s - x[:, t, :, None] * (x[:, t, None] @ s) + x[:, t, :, None] * a[:, t, None]
        out.append((s * x[:, t, :, None]).sum(1))
    return torch.stack(out, 1)


def by_keyword(m, x, a):
    """Its arguments are spelled as nobody spells them."""
    s, out = x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        s = torch.mul(input=torch.relu(s), other=a[:, t, :, None]) + x[:, t, :, None] * x[:, t, None]
        out.append((s * x[:, t, :, None]).sum(1))
    return torch.stack(out, 1)


def erases_before_it_decays(m, x, a):
    """A decay for each key, behind what is erased."""
    s, out = x.new_zeros(x.shape[0], WIDTH, WIDTH), []
    for t in range(x.shape[1]):
        s = a[:, t, :, None] * (s - x[:, t, :, None] * (x[:, t, None] @ s)) + x[:, t, :, None] * x[:, t, None]
        out.append((s * x[:, t, :, None]).sum(1))
    return torch.stack(out, 1)


REFUSED = {f.__name__: f for f in (normed_state, erases_twice, by_keyword, erases_before_it_decays)}
