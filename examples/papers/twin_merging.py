"""Twin-Merging: a router mixes the task vectors of several checkpoints into the shared weights, for each sample anew.

Lu, Fan, Wei, Qu, Chen, Cheng, "Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging", NeurIPS 2024,
arXiv:2406.15479.

    theta(x) = theta* + sum_t w_t sparsify(theta_t - theta*)
    w        = softmax(R(mean over tokens of the shared model's last hidden state))

theta*: the merged checkpoint, frozen;  theta_t: the checkpoint of task t;  w: batch, tasks;  R: linear to twice the
width, batch norm, leaky ReLU, linear to the tasks - the only part that is trained. sparsify keeps the largest entries
of a task vector (here a fifth). The authors call the model once per sample; here a batch shares one batched product.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("router", 1)]


def sparsify(delta, keep=0.2):
    bound = delta.abs().flatten(1).quantile(1 - keep, dim=1)
    return delta * (delta.abs() >= bound[:, None, None])


class TwinLinear(nn.Module):
    """A layer of the shared checkpoint, and what each task changes in it."""

    def __init__(self, width_in, width_out, tasks):
        super().__init__()
        self.register_buffer("shared", torch.randn(width_out, width_in) / width_in**0.5)
        self.register_buffer("task_vectors", sparsify(0.3 * torch.randn(tasks, width_out, width_in) / width_in**0.5))
        self.register_buffer("bias", torch.zeros(width_out))

    def forward(self, x, w=None):
        if w is None:
            return F.linear(x, self.shared, self.bias)
        weight = self.shared + torch.einsum("bt,toi->boi", w, self.task_vectors)
        return torch.baddbmm(self.bias, x, weight.transpose(1, 2))


class Block(nn.Module):
    def __init__(self, width, tasks):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = TwinLinear(width, 3 * width, tasks), TwinLinear(width, width, tasks)
        self.fc1, self.fc2 = TwinLinear(width, 2 * width, tasks), TwinLinear(2 * width, width, tasks)

    def forward(self, x, w=None):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x), w).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(heads.transpose(1, 2).reshape(batch, length, width), w)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x), w)), w)


class TwinMerged(nn.Module):
    def __init__(self, vocab, width, classes, experts, layers=2):
        super().__init__()
        self.embed = nn.Embedding(vocab, width).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(width, experts) for _ in range(layers)).requires_grad_(False)
        self.router = nn.Sequential(
            nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width), nn.LeakyReLU(), nn.Linear(2 * width, experts)
        )
        self.head = nn.Linear(width, classes)

    def encode(self, ids, w=None):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, w)
        return x.mean(dim=1)

    def forward(self, ids):
        if ids.shape[1] == 0:
            raise ValueError("a sample needs at least one token")
        w = torch.softmax(self.router(self.encode(ids)), dim=-1)
        return self.head(self.encode(ids, w))


def module(experts=3):
    return TwinMerged(vocab=40, width=16, classes=5, experts=experts)


def inputs(batch, length):
    return (torch.randint(0, 40, (batch, length)),)
