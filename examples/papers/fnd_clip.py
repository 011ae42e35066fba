"""FND-CLIP: CLIP's own agreement of text and image gates what its features add, then one weight for each modality.

Zhou, Ying, Qian, Li, Zhang, "Multimodal Fake News Detection via CLIP-Guided Learning", 2022, arXiv:2205.14304.

    f_clip = sigmoid((s - mean) / std) * f_clip,   s = cos(clip_text, clip_image)
    a      = sigmoid(W2 gelu(W1 pool(F))),   F = [f_text; f_image; f_clip]
    out    = sum_m a_m F_m

s: batch, 1, standardised by its running statistics;  F: batch, 3, width;  pool over the width; a: batch, 3.
The order of pooling and activation, and the statistics, are this file's reading of the abstract.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("cell", 1), ("spatial", 1), ("mixture", 1)]


class ModalityAttention(nn.Module):  # squeeze and excite over modalities
    def __init__(self, modes, hidden=6):
        super().__init__()
        self.excite = nn.Sequential(nn.Linear(modes, hidden), nn.GELU(), nn.Linear(hidden, modes), nn.Sigmoid())

    def forward(self, features):  # batch, modalities, width
        attention = self.excite(features.mean(dim=-1))
        return (attention.unsqueeze(-1) * features).sum(dim=1)


def projection(width_in, width):
    return nn.Sequential(nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))


class FakeNewsDetector(nn.Module):
    def __init__(self, vocab, width, clip_width):
        super().__init__()
        self.embed, self.text = nn.Embedding(vocab, width), nn.GRU(width, width, batch_first=True)
        self.image = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.project_text, self.project_image = (projection(width + clip_width, width) for _ in range(2))
        self.project_clip = projection(2 * clip_width, width)
        self.standardise, self.fusion = nn.BatchNorm1d(1, affine=False), ModalityAttention(3)
        self.classifier = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, ids, image, clip_text, clip_image):
        text, _ = self.text(self.embed(ids))
        f_text = self.project_text(torch.cat([text.mean(dim=1), clip_text], dim=-1))
        f_image = self.project_image(torch.cat([self.image(image), clip_image], dim=-1))
        similarity = F.cosine_similarity(clip_text, clip_image, dim=-1).unsqueeze(-1)
        f_clip = self.project_clip(torch.cat([clip_text, clip_image], dim=-1))
        f_clip = torch.sigmoid(self.standardise(similarity)) * f_clip
        return self.classifier(self.fusion(torch.stack([f_text, f_image, f_clip], dim=1)))


def module():
    return FakeNewsDetector(vocab=40, width=16, clip_width=12)


def inputs(batch, length):  # length: of the text
    return torch.randint(0, 40, (batch, length)), torch.randn(batch, 3, 16, 16), *torch.randn(2, batch, 12)
