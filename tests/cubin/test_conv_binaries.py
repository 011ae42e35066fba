"""Convolution kernels compile for GPUs that are not here, without spills."""

from pathlib import Path

import pytest
import torch

from gatec.derive import derive
from gatec.kernels.conv import Plan, render
from gatec.kernels.lint import complaints

PLANS = {
    "causal": (((4, 512, 256), (256, 1, 4), (256,), (4, 512, 256)), (0, 2, 1), (1,), [(k - 3,) for k in range(4)]),
    "time_last": (((4, 256, 512), (256, 1, 8), (256,), (4, 256, 512)), (0, 1, 2), (2,), [(k - 7,) for k in range(8)]),
    "image": (((4, 64, 56, 56), (64, 1, 3, 3), (64,), (4, 64, 56, 56)), (0, 1, 2, 3), (2, 3),
              [(i - 1, j - 1) for i in range(3) for j in range(3)]),
}  # fmt: skip


def gated(conv, gate):
    return conv * torch.sigmoid(conv) * gate


def activated(x):
    return torch.tanh(x)


def written(name: str, dtype: torch.dtype, folder: Path) -> tuple[Path, list[str]]:
    shapes, order, axes, shifts = PLANS[name]
    if name == "causal":
        shapes = ((4, 256, 512), *shapes[1:])
    x, gate = (torch.empty(s, dtype=dtype) for s in (shapes[0], shapes[3]))
    before, behind = derive(activated, [x]), derive(gated, [x.permute(order), gate])
    plan = Plan(("x", "weight", "bias", "gate"), (dtype,) * 4, ("x",), ("gate",), "weight", "bias", "conv", order,
                order.index(1), axes, tuple(shifts))  # fmt: skip
    source = render(name, "tests", plan, before, behind).source
    assert not complaints(source)
    file = folder / f"{name}_{str(dtype)[6:]}.py"
    file.write_text(source)
    return file, ["x".join(map(str, s)) for s in shapes]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_compiles_without_spills(target, tmp_path, binaries_of):
    for name, dtype in [(n, torch.bfloat16) for n in PLANS] + [("causal", torch.float32)]:
        file, shapes = written(name, dtype, tmp_path)
        binaries = binaries_of(file, target, shapes)
        assert [b["kernel"].rpartition("_")[2] for b in binaries] == ["forward", "slopes", "sums", "inputs"]
        for binary in binaries:
            assert binary["spills"] == binary["stack"] == 0 and binary["registers"] <= 168, binary
