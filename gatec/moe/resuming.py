"""Fits on disk, each under a digest of all that it depends on."""

from __future__ import annotations

import hashlib
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gatec.moe.fitted import Options
from gatec.moe.splits import Split


def keyed(site: Split, x: Tensor, options: Options, before: str) -> str:
    """A digest of all that the result depends on."""
    told = hashlib.sha256(repr((before, site.name, astuple(options), site.router, site.stand_in)).encode())
    for tensor in (x, *site.read):
        told.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        told.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:32]


def keep(site: Split, folder: Path, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{key}.part"
    save_file({k: v.contiguous() for k, v in site.written.items()}, part)
    part.rename(folder / f"{key}.safetensors")


def kept(site: Split, folder: Path, key: str) -> bool:
    """Load an earlier result, if there is one."""
    try:
        found: dict[str, Any] = load_file(folder / f"{key}.safetensors")
    except (OSError, SafetensorError):
        return False
    with torch.no_grad():
        for name, tensor in site.written.items():
            tensor.copy_(found[name])
    return True
