"""Lets torchvision, which timm and transformers import, load beside a PyTorch of another build."""

from importlib.util import find_spec
from pathlib import Path

import torch

_schemas: list[torch.library.Library] = []


def torchvision_loads() -> bool:
    """Whether `import torchvision` works from here on, which this function sees to.

    PyPI's torchvision is built for CUDA: beside a CPU build of PyTorch its library does not load,
    the operators it would bring do not exist, and the import dies while registering a fake for one
    of them. Declaring the two schemas is enough; models and transforms need nothing else.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    if not hasattr(torch.ops.torchvision, "nms") and not _library_loads(Path(spec.origin).parent):
        schemas = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _schemas.append(schemas)  # a Library that is collected takes its operators with it
    return True


def _library_loads(folder: Path) -> bool:
    for library in sorted(folder.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")
