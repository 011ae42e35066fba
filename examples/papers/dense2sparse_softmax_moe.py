"""Dense-to-sparse mixture of Gaussian experts: a softmax gate with temperature, here over activated scores.

Nguyen, Akbarian, Ho, "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?", 2024,
arXiv:2401.13875.

    g(x) = softmax(act(beta^T x + b) / tau)
    E[y | x] = sum_e g_e(x) * (a_e^T x + c_e)

x: batch, width;  g: batch x experts;  tau > 0 is learned, from dense (large) to sparse (near zero). Without act it is
the standard gate, whose temperature and beta are entangled. The density is the mixture of normals around the means.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("router", 1)]
VARIANTS = [{"act": None}, {"act": torch.tanh}, {"act": F.gelu}]


class SoftmaxGaussianMoE(nn.Module):
    def __init__(self, width, experts, act, tau):
        super().__init__()
        self.beta, self.mean = nn.Linear(width, experts), nn.Linear(width, experts)
        self.log_sigma = nn.Parameter(torch.zeros(experts))
        self.log_tau = nn.Parameter(torch.tensor(math.log(tau)))
        self.act = act

    def forward(self, x):
        scores = self.beta(x) if self.act is None else self.act(self.beta(x))
        gate = F.softmax(scores / self.log_tau.exp(), dim=-1)
        return (gate * self.mean(x)).sum(-1, keepdim=True)

    def log_likelihood(self, x, y):
        scores = self.beta(x) if self.act is None else self.act(self.beta(x))
        log_gate = F.log_softmax(scores / self.log_tau.exp(), dim=-1)
        log_normal = -0.5 * ((y - self.mean(x)) / self.log_sigma.exp()) ** 2 - self.log_sigma - math.log(math.tau) / 2
        return torch.logsumexp(log_gate + log_normal, dim=-1)


class Regressor(nn.Module):
    def __init__(self, features, width, experts, act, tau):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width))
        self.moe = SoftmaxGaussianMoE(width, experts, act, tau)

    def forward(self, x, y):  # the prediction, and how likely what was observed is
        x = self.body(x)
        return self.moe(x), self.moe.log_likelihood(x, y)


def module(experts=4, act=torch.sigmoid, tau=2.0):
    return Regressor(6, 12, experts, act, tau)


def inputs(batch, length):  # length: observations in a series
    return torch.randn(batch, length, 6), torch.randn(batch, length, 1)
