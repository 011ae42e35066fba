"""Concept-centric transformer: slots compete for the tokens, and the classes attend to the slots.

Hong, Park and Pavlic, "Concept-Centric Transformers: Enhancing Model Interpretability through Object-Centric Concept
Learning within a Shared Global Workspace", WACV 2024, arXiv:2305.15775.

    a = softmax over slots of <q(slot), k(token)>,   u = (a / sum over tokens of a) v(token)
    slot <- GRU(u, slot);   slot <- slot + MLP(LN slot)            repeated
    logits = mean over tokens of (softmax(<q'(token), k'(slot)>) slot W)

tokens: batch, N, width;  slots: batch, S, width. A reading of the abstract, with the slots of Locatello et al., 2020
(arXiv:2006.15055). The GRU cell is the gate; both softmaxes are attention. The second one is the explanation, returned.
"""

import torch
from torch import nn

GATES = [("cell", 1)]


class ConceptSlots(nn.Module):
    def __init__(self, slots, dim, iters=3, eps=1e-8):
        super().__init__()
        self.iters, self.eps, self.scale = iters, eps, dim**-0.5
        self.slots = nn.Parameter(torch.randn(1, slots, dim))
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.norm_input, self.norm_slots = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, inputs):
        b, d = inputs.shape[0], inputs.shape[-1]
        slots = self.slots.expand(b, -1, -1)
        inputs = self.norm_input(inputs)
        k, v = self.to_k(inputs), self.to_v(inputs)
        for _ in range(self.iters):
            slots_prev = slots
            q = self.to_q(self.norm_slots(slots))
            dots = torch.einsum("bid,bjd->bij", q, k) * self.scale
            attn = dots.softmax(dim=1) + self.eps
            attn = attn / attn.sum(dim=-1, keepdim=True)
            updates = torch.einsum("bjd,bij->bid", v, attn)
            slots = self.gru(updates.reshape(-1, d), slots_prev.reshape(-1, d)).reshape(b, -1, d)
            slots = slots + self.mlp(slots)
        return slots


class ConceptTransformer(nn.Module):
    def __init__(self, dim, concepts, classes):
        super().__init__()
        self.backbone, self.concepts = nn.Linear(12, dim), ConceptSlots(concepts, dim)
        self.q, self.k, self.values = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, classes)
        self.scale = dim**-0.5

    def forward(self, patches):
        if patches.shape[1] == 0:
            raise ValueError("an image without patches has no concepts")
        x = self.backbone(patches)
        concepts = self.concepts(x)
        explanation = torch.softmax(self.q(x) @ self.k(concepts).mT * self.scale, dim=-1)
        return (explanation @ self.values(concepts)).mean(dim=1), explanation


def module():
    return ConceptTransformer(24, concepts=5, classes=4)


def inputs(batch, length):
    return (torch.randn(batch, length, 12),)
