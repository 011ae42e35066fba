"""Fisher merging: an average of models in which each weight counts by its Fisher information.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", 2021, arXiv:2111.09832.

    theta_j = sum_m lambda_m F_mj theta_mj / sum_m lambda_m F_mj

theta_m: the weights of model m;  F_m: the mean square of the gradients of its log-likelihood, as large as theta_m;
lambda_m: a number for each model, one here. F is measured once on the models' own data (`fisher`) and learned nowhere;
merged weights replace the models'.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = []


class MergedLinear(nn.Module):
    def __init__(self, models, inner, outer):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(models, outer, inner) * inner**-0.5)
        self.bias = nn.Parameter(torch.zeros(models, outer))
        self.register_buffer("weight_fisher", torch.rand(models, outer, inner))
        self.register_buffer("bias_fisher", torch.rand(models, outer))

    def forward(self, x):
        return F.linear(x, merge(self.weight, self.weight_fisher), merge(self.bias, self.bias_fisher))


def merge(theta, fisher, floor=1e-6):
    fisher = fisher + floor
    return (fisher * theta).sum(dim=0) / fisher.sum(dim=0)


def fisher(model, batches):
    """The diagonal of the Fisher information of one model's parameters, for labels drawn from the model."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for x in batches:
        log_p = F.log_softmax(model(x), dim=-1)
        label = torch.multinomial(log_p.exp(), 1)
        grads = torch.autograd.grad(log_p.gather(-1, label).sum(), list(model.parameters()))
        total = [t + g.square() / len(batches) for t, g in zip(total, grads, strict=True)]
    return total


def module(models=3):
    return nn.Sequential(MergedLinear(models, 16, 32), nn.ReLU(), MergedLinear(models, 32, 5))


def inputs(batch, length):
    return (torch.randn(batch, length, 16),)
