"""deGraphCS's gated graph network over the variable flow of code: each node's state goes through a GRU per step.

Zeng, Yu, Li, Xia, Wang, Geng, Bai, Dong and Liao, "deGraphCS: Embedding Variable-based Flow Graph for Neural Code
Search", 2021, arXiv:2103.13020.

    a = [A_in (H W_in); A_out (H W_out)]
    z, r = sigmoid(W_z [a; h]), sigmoid(W_r [a; h])
    n = tanh(W [a; r * h])
    h = (1 - z) * h + z * n                          T steps, one set of weights
    code = tanh( sum_v sigmoid(f(h_v)) * h_v )

H: batch, nodes, width;  A: batch, nodes, nodes;  sigmoid(f(h_v)): one number per node.
"""

import torch
from torch import nn

GATES = [("cell", 1), ("spatial", 1)]


class Propagator(nn.Module):
    def __init__(self, state_dim):
        super().__init__()
        self.reset_gate = nn.Sequential(nn.Linear(state_dim * 3, state_dim), nn.Sigmoid())
        self.update_gate = nn.Sequential(nn.Linear(state_dim * 3, state_dim), nn.Sigmoid())
        self.transform = nn.Sequential(nn.Linear(state_dim * 3, state_dim), nn.Tanh())

    def forward(self, state_in, state_out, state_cur, A):
        a = torch.cat((torch.bmm(A, state_in), torch.bmm(A.transpose(1, 2), state_out)), 2)
        joined = torch.cat((a, state_cur), 2)
        r, z = self.reset_gate(joined), self.update_gate(joined)
        h_hat = self.transform(torch.cat((a, r * state_cur), 2))
        return (1 - z) * state_cur + z * h_hat


class GGNN(nn.Module):
    def __init__(self, vocabulary=40, state_dim=16, n_steps=4):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, state_dim)
        self.fc_in, self.fc_out = nn.Linear(state_dim, state_dim), nn.Linear(state_dim, state_dim)
        self.propagator = Propagator(state_dim)
        self.n_steps = n_steps
        self.self_attn = nn.Linear(state_dim, 1)
        self.out = nn.Linear(state_dim, state_dim)

    def forward(self, nodes, A):
        h = self.embed(nodes)
        for _ in range(self.n_steps):
            h = self.propagator(self.fc_in(h), self.fc_out(h), h, A)
        scores = torch.sigmoid(self.self_attn(h))
        return self.out(torch.tanh(torch.sum(scores * h, dim=1)))


def module():
    return GGNN()


def inputs(batch, length):
    return torch.randint(40, (batch, length)), (torch.rand(batch, length, length) > 0.7).float()
