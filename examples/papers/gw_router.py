"""Global workspace routing: an LSTM decides at each step which modules write into a shared workspace.

Chateau-Laurent, VanRullen, "Learning to Chain Operations by Routing Information Through a Global Workspace", 2025,
arXiv:2503.01906.

    g_t = softmax(W c_t),  c_t = LSTM(w_t-1)
    w_t = sum_i g_ti * enc_i(m_i)
    m_i <- dec_i(w_t)

w_t: batch, workspace;  m_i: batch, width of module i;  g_t: batch, modules. The modules differ: an input, operators
that change what was broadcast to them, an output. The number of steps and the sparsity of g are open in the paper:
a fixed number of unrolled steps, softmax in training and its largest entry alone afterwards.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("router", 1), ("cell", 1)]


class Workspace(nn.Module):
    def __init__(self, digits, widths, workspace, steps):
        super().__init__()
        self.read = nn.Linear(digits, widths[0])
        self.operators = nn.ModuleList(
            nn.Sequential(nn.Linear(w, 2 * w), nn.ReLU(), nn.Linear(2 * w, w)) for w in widths[1:]
        )
        self.encode = nn.ModuleList(nn.Linear(w, workspace) for w in widths)
        self.decode = nn.ModuleList(nn.Linear(workspace, w) for w in widths[1:])
        self.controller, self.select = nn.LSTMCell(workspace, workspace), nn.Linear(workspace, len(widths))
        self.out, self.steps = nn.Linear(workspace, digits), steps

    def choose(self, c):
        g = F.softmax(self.select(c), dim=-1)
        return g if self.training else F.one_hot(g.argmax(-1), g.shape[-1]).to(g.dtype)

    def forward(self, x):  # batch, digits
        given = self.encode[0](self.read(x))
        w = torch.zeros_like(given)
        h = c = torch.zeros_like(given)
        for _ in range(self.steps):
            h, c = self.controller(w, (h, c))
            g = self.choose(h)
            written = [given]
            for encode, decode, operator in zip(self.encode[1:], self.decode, self.operators, strict=True):
                written.append(encode(operator(decode(w))))
            w = torch.einsum("bm,bmd->bd", g, torch.stack(written, dim=1))
        return self.out(w)


def module(experts=3, steps=3):
    """`experts`: the input module and how many operators follow."""
    return Workspace(10, [12 + 4 * i for i in range(experts)], 16, steps)


def inputs(batch, length):  # rows of digits, nothing but their number varies
    return (torch.randn(batch, 10),)
