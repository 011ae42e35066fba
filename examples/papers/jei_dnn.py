"""JEI-DNN: early exits whose gates see four numbers of an exit's own prediction, learned jointly with its heads.

Chataoui, Regol, Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network: JEI-DNN", ICLR 2024,
arXiv:2310.09163.

    p_l = softmax(head_l(h_l))
    u_l = [max p, entropy, margin, entropy of p^2 / sum p^2]        no gradient through it
    g_l = sigmoid(w_l . u_l + b_l)
    P_l = max(0, min(g_l, 1 - sum_{j<l} g_j))
    a_l = clip(P_l / prod_{j<l} (1 - a_j), 0, 1)
    at inference: out = head_l(h_l) of the first l with a_l >= 0.5, else the last head

    L_heads = sum_l P_l CE_l * stop_gradient(sum_l CE_l / sum_l P_l CE_l)
    L_gates = BCE(g_l, 1[l >= argmin_j (CE_j + lambda cost_j)])

h_l: batch, tokens, width behind block l;  p_l: batch, classes;  g, P, a: batch, exits. The two losses alternate. The
released code does not stop the gradient of the ratio, which cancels the weights: this is the paper's equation.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("exit", 2)]
SKIPS = 2


def statistics(logits):
    p = logits.detach().softmax(-1)
    top = p.topk(2, dim=-1).values
    squared = p.square() / p.square().sum(-1, keepdim=True)
    entropy = [-(q * (q + 1e-9).log()).sum(-1) for q in (p, squared)]
    return torch.stack([top[:, 0], entropy[0], top[:, 0] - top[:, 1], entropy[1]], dim=-1)


def exit_probabilities(gates):
    """P from g, both: batch, exits."""
    before = gates.cumsum(-1) - gates
    return torch.minimum(gates, 1 - before).clamp(min=0)


class EarlyExit(nn.Module):
    def __init__(self, width, classes, depth=3):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(4, 1) for _ in range(depth - 1))

    def forward(self, x):
        logits, gates = [], []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            logits.append(head(x[:, 0]))
        for gate, early in zip(self.gates, logits[:-1], strict=True):
            gates.append(torch.sigmoid(gate(statistics(early))))
        gates = torch.cat(gates, dim=-1)
        return (torch.stack(logits, dim=1), gates) if self.training else self.choose(logits, gates)

    def choose(self, logits, gates):
        left, stops = 1.0, []
        for reached in exit_probabilities(gates).unbind(-1):
            a = (reached / left).clamp(0, 1)
            stops.append(a >= 0.5)
            left = (left * (1 - a)).clamp(min=1e-6)
        out = logits[-1]
        for stop, early in zip(reversed(stops), reversed(logits[:-1]), strict=True):
            out = torch.where(stop.unsqueeze(-1), early, out)
        return out


def losses(logits, gates, target, costs, trade=1.0):
    ce = F.cross_entropy(logits.transpose(1, 2), target[:, None].expand(logits.shape[:2]), reduction="none")
    P = exit_probabilities(gates.detach())
    P = torch.cat([P, 1 - P.sum(-1, keepdim=True)], dim=-1)
    weighted = (P * ce).sum(-1).mean()
    heads = weighted * (ce.sum(-1).mean() / weighted).detach()
    best = (ce + trade * costs).argmin(-1, keepdim=True)
    stop = (torch.arange(gates.shape[1], device=gates.device) >= best).float()
    return heads, F.binary_cross_entropy(gates, stop)


def module():
    return EarlyExit(width=16, classes=5)


def inputs(batch, length):
    return (torch.randn(batch, length, 16),)
