"""Concrete subspace learning: one learned mask over the parameters, shared by all task vectors that are merged.

Tang, Shen, Luo, Ding, Hu, Du, Tao, "Concrete Subspace Learning based Interference Elimination for Multi-task Model
Fusion", 2023, arXiv:2312.06173.

    m      = sigmoid((x + log u - log(1 - u)) / T),  u ~ Uniform(0, 1)
    tau_k' = tau_k * m / mean(m)
    theta  = theta_0 + lambda sum_k tau_k'

x: the logits of the mask, shaped as the parameter, 5 at first: m is nearly 1;  tau_k = theta_k - theta_0, frozen. Noise
in training alone. x is trained by the mean entropy of predictions on unlabelled test data; lambda = 0.3.
"""

import torch
from torch import nn
from torch.nn.utils import parametrize

GATES = [("feature", 2)]


class ConcreteMask(nn.Module):  # puts the masked task vectors onto a pretrained weight
    def __init__(self, task_vectors, temperature=0.5, scale=0.3):
        super().__init__()
        self.register_buffer("task_vectors", task_vectors)
        self.logits = nn.Parameter(torch.full(task_vectors.shape[1:], 5.0))
        self.temperature, self.scale = temperature, scale

    def forward(self, pretrained):
        logits = self.logits
        if self.training:
            u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + u.log() - (1 - u).log()
        mask = torch.sigmoid(logits / self.temperature)
        return pretrained + self.scale * (self.task_vectors * (mask / mask.mean())).sum(dim=0)


def entropy(logits):  # what the mask is trained by
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


class Classifier(nn.Module):
    def __init__(self, width, classes, experts):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        for layer in (self.fc1, self.fc2):
            tau = 0.1 * torch.randn(experts, *layer.weight.shape)
            parametrize.register_parametrization(layer.requires_grad_(False), "weight", ConcreteMask(tau))

    def forward(self, x):
        return self.head((x + self.fc2(torch.relu(self.fc1(self.norm(x))))).amax(dim=1))


def module(experts=3):
    return Classifier(width=16, classes=5, experts=experts)


def inputs(batch, length):
    return (torch.randn(batch, length, 16),)
