"""Names and versions of everything that stands between a source and its numbers."""

from __future__ import annotations

import functools

import torch


@functools.cache
def versions() -> dict[str, str]:
    try:
        import triton

        compiler = str(triton.__version__)
    except ImportError:
        compiler = "none"
    return {"torch": str(torch.__version__), "triton": compiler}


@functools.cache
def named(device: torch.device) -> dict[str, str]:
    known = torch.cuda.get_device_properties(device)
    runtime = torch.version.hip or torch.version.cuda or ""
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: "")()
    return {"device": known.name, "arch": f"{known.major}.{known.minor}", "driver": f"{driver} {runtime}".strip()}
