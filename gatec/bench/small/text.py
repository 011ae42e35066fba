"""Python's own standard library as bytes: text that every installation has."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SIZE = 4_000_000  # bytes
HELD_OUT = 0.05  # the share, at the end, that no model is trained on


@dataclass(frozen=True)
class Text:
    train: Tensor
    held_out: Tensor

    def batches(self, count: int, *, batch: int, length: int, seed: int, held_out: bool = False) -> Iterator[Tensor]:
        """`count` tensors [batch, length + 1] of bytes from random places."""
        text = self.held_out if held_out else self.train
        places = torch.Generator().manual_seed(seed)
        for _ in range(count):
            starts = torch.randint(len(text) - length - 1, (batch, 1), generator=places)
            yield text[starts + torch.arange(length + 1)].long()


def standard_library(size: int = SIZE) -> Text:
    """The first `size` bytes of the library's files, in an order drawn once, so that both shares are alike."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if not {"site-packages", "dist-packages", "test"} & {*p.parts})
    random.Random(0).shuffle(files)
    found = bytearray()
    for file in files:
        found += file.read_bytes()
        if len(found) >= size:
            break
    data = torch.frombuffer(found[:size], dtype=torch.uint8)
    cut = int(len(data) * (1 - HELD_OUT))
    return Text(data[:cut], data[cut:])
