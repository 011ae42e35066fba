"""FCN's self-mask: half of a cross layer's features filters the other half's noise.

Li et al., "FCN: Fusing Exponential and Linear Cross Network for Click-Through Rate Prediction", 2024, arXiv:2407.13349
(first called DCNv3).

    H = W x_l,   M = relu(LN(H)),   H' = [H, H * M]
    exponential cross: x_{l+1} = x_l * (H' + b) + x_l
    linear cross:      x_{l+1} = x_0 * (H' + b) + x_l

x_l: batch, D: the embeddings of all fields side by side;  W: D -> D / 2;  H': batch, D. Each of the two networks has a
logit of its own, which their losses need beside the mean.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("product", 4)]


class Cross(nn.Module):
    def __init__(self, width, depth, exponential):
        super().__init__()
        self.exponential = exponential
        self.w = nn.ModuleList(nn.Linear(width, width // 2, bias=False) for _ in range(depth))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(depth))
        self.layer_norm = nn.ModuleList(nn.LayerNorm(width // 2) for _ in range(depth))
        self.dropout, self.fc = nn.Dropout(0.1), nn.Linear(width, 1)

    def forward(self, x):
        x0 = x
        for w, b, norm in zip(self.w, self.b, self.layer_norm, strict=True):
            h = w(x)
            mask = F.relu(norm(h))
            h = torch.cat([h, h * mask], dim=-1)
            x = (x if self.exponential else x0) * (h + b) + x
            x = self.dropout(x)
        return self.fc(x)


class FCN(nn.Module):
    def __init__(self, fields=6, features=40, d=8, depth=2):
        super().__init__()
        self.embedding = nn.Embedding(features, d)
        self.ecn, self.lcn = Cross(fields * d, depth, True), Cross(fields * d, depth, False)

    def forward(self, ids):  # batch, fields
        x = self.embedding(ids).flatten(start_dim=1)
        deep, shallow = self.ecn(x), self.lcn(x)
        return torch.sigmoid((deep + shallow) / 2), torch.sigmoid(deep), torch.sigmoid(shallow)


def module():
    return FCN()


def inputs(batch, length):  # the fields are fixed
    return (torch.randint(40, (batch, 6)),)
