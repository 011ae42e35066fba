"""AdaMerging: coefficients of task vectors, one per task and layer, learned at test time from the entropy alone.

Yang, Wang, Shen, Liu, Guo, Wang, Tao, "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024,
arXiv:2310.02575.

    theta_l = theta0_l + sum_k clamp(lam_{k,l}, 0, 1) tau_{k,l}

theta0: the pretrained weights;  tau_k = theta_k - theta0: the task vector of task k;  lam: layers x tasks, 0.3 at the
start, which is task arithmetic. A layer is one tensor of the checkpoint, as in the authors' code. lam is trained by the
mean entropy of the predictions on unlabelled test data.
"""

import torch
from torch import nn
from torch.func import functional_call

GATES = [("mixture", 6)]


class AdaMerging(nn.Module):
    """The pretrained encoder, called with merged parameters."""

    def __init__(self, encoder, experts, prior=0.3):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.names = [name for name, _ in encoder.named_parameters()]
        self.lambdas = nn.Parameter(torch.full((len(self.names), experts), prior))
        self.task_vectors = nn.ParameterList(
            nn.Parameter(0.1 * torch.randn(experts, *p.shape), requires_grad=False) for p in encoder.parameters()
        )

    def merged(self):
        lambdas, pretrained = self.lambdas.clamp(0, 1), dict(self.encoder.named_parameters())
        return {
            name: pretrained[name]
            + sum(lam * tau for lam, tau in zip(lambdas[layer], self.task_vectors[layer], strict=True))
            for layer, name in enumerate(self.names)
        }

    def forward(self, x):
        return functional_call(self.encoder, self.merged(), (x,))


def entropy(logits):
    """What the coefficients are trained by: the mean entropy of the predictions."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def module(experts=3):
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    return AdaMerging(encoder, experts)


def inputs(batch, length):  # length: the side of an image, in blocks of four pixels
    return (torch.randn(batch, 3, 4 * length, 4 * length),)
