"""FND-CLIP: CLIP's own agreement of text and image gates what its features add, then one weight for each modality.

Zhou, Ying, Qian, Li, Zhang, "Multimodal Fake News Detection via CLIP-Guided Learning", 2022, arXiv:2205.14304.

    s      = cos(clip_text, clip_image)
    f_clip = sigmoid((s - mean) / std) * f_clip
    F      = [f_text; f_image; f_clip]
    a      = sigmoid(W2 gelu(W1 pool(F)))
    out    = sum_m a_m F_m

s: batch, 1, standardised by its running statistics;  F: batch, 3, width;  pool over the width; a: batch, 3.
The order of pooling and activation, and the statistics, are this file's reading of the abstract.
"""

import torch
from torch import nn
from torch.nn import functional as F

GATES = [("cell", 1), ("spatial", 1), ("mixture", 1)]


class ModalityAttention(nn.Module):
    """Squeeze and excite over modalities."""

    def __init__(self, modalities, hidden=6):
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool1d(1)
        self.excite = nn.Sequential(
            nn.Linear(modalities, hidden), nn.GELU(), nn.Linear(hidden, modalities), nn.Sigmoid()
        )

    def forward(self, features):  # batch, modalities, width
        attention = self.excite(self.squeeze(features).squeeze(-1))
        return (attention.unsqueeze(-1) * features).sum(dim=1)


def projection(width_in, width):
    return nn.Sequential(nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))


class FakeNewsDetector(nn.Module):
    def __init__(self, vocab, width, clip_width):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.text = nn.GRU(width, width, batch_first=True)
        self.image = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.project_text = projection(width + clip_width, width)
        self.project_image = projection(width + clip_width, width)
        self.project_clip = projection(2 * clip_width, width)
        self.standardise = nn.BatchNorm1d(1, affine=False)
        self.fusion = ModalityAttention(3)
        self.classifier = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, ids, image, clip_text, clip_image):
        text, _ = self.text(self.embed(ids))
        f_text = self.project_text(torch.cat([text.mean(dim=1), clip_text], dim=-1))
        f_image = self.project_image(torch.cat([self.image(image), clip_image], dim=-1))
        similarity = F.cosine_similarity(clip_text, clip_image, dim=-1).unsqueeze(-1)
        weight = torch.sigmoid(self.standardise(similarity))
        f_clip = weight * self.project_clip(torch.cat([clip_text, clip_image], dim=-1))
        return self.classifier(self.fusion(torch.stack([f_text, f_image, f_clip], dim=1)))


def module():
    return FakeNewsDetector(vocab=40, width=16, clip_width=12)


def inputs(batch, length):  # length: of the text
    ids, image = torch.randint(0, 40, (batch, length)), torch.randn(batch, 3, 16, 16)
    return ids, image, torch.randn(batch, 12), torch.randn(batch, 12)
