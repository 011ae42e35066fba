"""ConKD's gate between two teachers: how much a dialogue model itself wants to name an item says which one to follow.

Jung, Jung, Chen, "Towards a Unified Conversational Recommendation System: Multi-task Learning via Contextualized
Knowledge Distillation", EMNLP 2023, arXiv:2310.18119.

    m_t   = sum_{v in items} P_dial(v | context_t)
    lam_t = m_t  (soft gate)      or      1[m_t >= eta]  (hard gate)
    L_t   = lam_t * KL(P_rec || P_student)_t + (1 - lam_t) * KL(P_dial || P_student)_t

The teachers (recommender and dialogue model) are frozen: only their logits come in. logits: batch, length, vocabulary;
m, lam, L: batch, length. eta = 0.5 and the plain softmax mass of the item words are a reading: the paper's own code is
not public. The student's forward is that of any language model, the gate stands in its loss alone.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("cell", 1), ("highway", 1)]


class ContextualisedDistillation(nn.Module):
    def __init__(self, is_item, eta=None):
        super().__init__()
        self.eta = eta  # None: the soft gate
        self.register_buffer("is_item", is_item)

    def forward(self, student, recommender, dialogue):
        p_rec, p_dial = recommender.softmax(-1), dialogue.softmax(-1)
        mass = (p_dial * self.is_item).sum(-1)
        lam = mass if self.eta is None else (mass >= self.eta).float()
        log_q = F.log_softmax(student, dim=-1)
        kl_rec = F.kl_div(log_q, p_rec, reduction="none").sum(-1)
        kl_dial = F.kl_div(log_q, p_dial, reduction="none").sum(-1)
        return lam * kl_rec + (1 - lam) * kl_dial


class Student(nn.Module):
    """A small decoder, with its loss for each token."""

    def __init__(self, vocab, width, items, eta):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab)
        self.decoder = nn.LSTM(width, width, batch_first=True)
        self.loss = ContextualisedDistillation((torch.arange(vocab) >= vocab - items).float(), eta)

    def forward(self, ids, recommender, dialogue):
        logits = self.head(self.decoder(self.embed(ids))[0])
        return self.loss(logits, recommender, dialogue)


def module(eta=None):
    return Student(vocab=50, width=16, items=10, eta=eta)


def inputs(batch, length):
    return torch.randint(0, 50, (batch, length)), torch.randn(batch, length, 50), torch.randn(batch, length, 50)
