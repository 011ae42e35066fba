"""Omni-AVSR: one language model for three recognition tasks, each with low-rank weights of its own.

Cappellazzo, Liu, Ma, Petridis and Pantic, "Omni-AVSR: Towards Unified Multimodal Speech Recognition with Large Language
Models", 2025, arXiv:2511.07253.

    shared:  y = W x + B A x           per task:  y = W x + B_t A_t x
    both:    y = W x + B A x + B_t A_t x           t in {audio, video, audio and video}

x: batch, tokens, width;  W is frozen;  t: batch, given. Tokens are means of `rate` frames. Read from the abstract.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = []
VARIANTS = [{"strategy": "shared"}, {"strategy": "task"}]


class OmniLoRA(nn.Module):
    def __init__(self, width, out, tasks, rank, strategy):
        super().__init__()
        self.base, self.scale, self.strategy = nn.Linear(width, out).requires_grad_(False), 1 / rank, strategy
        if strategy != "task":
            self.a, self.b = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
        if strategy != "shared":
            self.task_a = nn.Parameter(torch.randn(tasks, width, rank) * width**-0.5)
            self.task_b = nn.Parameter(torch.randn(tasks, rank, out) * 0.1)

    def forward(self, x, task):
        y = self.base(x)
        if self.strategy != "task":
            y = y + self.b(self.a(x)) * self.scale
        if self.strategy != "shared":
            y = y + torch.bmm(torch.bmm(x, self.task_a[task]), self.task_b[task]) * self.scale
        return y


class Recogniser(nn.Module):
    def __init__(self, width, tasks, rank, strategy, rate):
        super().__init__()
        self.rate, self.norm, self.vocabulary = rate, nn.LayerNorm(width), nn.Linear(width, 30)
        self.audio, self.video = nn.Linear(20, width), nn.Linear(12, width)
        self.qkv, self.out = (OmniLoRA(width, n * width, tasks, rank, strategy) for n in (3, 1))

    def forward(self, audio, video, task):
        h = torch.cat([self.audio(audio), self.video(video)], dim=1).transpose(1, 2)
        x = F.avg_pool1d(h, self.rate, ceil_mode=True).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.norm(x), task).chunk(3, dim=-1))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.vocabulary(x + self.out(h, task))


def module(strategy="both", rate=2):
    return Recogniser(24, tasks=3, rank=4, strategy=strategy, rate=rate)


def inputs(batch, length):  # length: video frames, with two of audio each
    return torch.randn(batch, 2 * length, 20), torch.randn(batch, length, 12), torch.randint(0, 3, (batch,))
