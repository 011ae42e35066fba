"""What can be said of generated kernels without running one."""

import linecache

import pytest
import torch
from torch import Tensor

from gatec import settings
from gatec.derive import derive
from gatec.kernel import Kernel
from gatec.kernels.lint import complaints
from gatec.kernels.pointwise import render


def gate(x: Tensor, logit: Tensor) -> Tensor:
    return x * torch.sigmoid(logit)


def source() -> str:
    derived = derive(gate, [torch.empty(2, 3, dtype=torch.bfloat16)] * 2)
    return render("gate", "tests", derived.forward, derived.backward).source


BROKEN = {
    "a load without mask and other": (", other=0", ""),
    "a store without mask": (", mask=inside)\n\n\n@triton.jit(", ")\n\n\n@triton.jit("),
    "a store which does not cast to the type it stores":
        ("value.to(out.dtype.element_ty)", "value"),
    "a program id of 32 bits": ("tl.program_id(0).to(tl.int64)", "tl.program_id(0)"),
    "a column's offset of 32 bits": ("col.to(tl.int64) *", "col *"),
    "writes over an operand": ("write(out, mul,", "write(x, mul,"),
    "a launch leaves enable_fp_fusion to triton's default": (", enable_fp_fusion=True", ""),
    "no header that says where it came from": ('"""gate: generated', 'x = """gate: generated'),
    "imports numpy": ("import math", "import numpy"),
    "the interpreter cannot run libdevice": ("tl.sigmoid", "tl.extra.libdevice.sigmoid"),
    "atomics make results depend on their order": ("tl.store(", "tl.atomic_add("),
    "autotuning needs a device; gatec.dispatch measures instead":
        ("@triton.jit\n", "@triton.autotune\n"),
}  # fmt: skip


def test_generated_text_breaks_no_rule() -> None:
    assert complaints(source()) == []


@pytest.mark.parametrize("why", BROKEN)
def test_each_rule_is_seen_when_broken(why: str) -> None:
    good, bad = BROKEN[why]
    assert good in source()
    assert any(line.endswith(f": {why}") for line in complaints(source().replace(good, bad)))


def test_same_input_same_text() -> None:
    assert source() == source()


TWICE = '''"""twice"""


def forward(x):
    return 2 * x


def backward(g, x, needs=None):
    return (2 * g,)
'''


def test_a_kernel_is_loaded_once_and_tracebacks_show_it() -> None:
    kernel = Kernel("twice", TWICE)
    assert kernel.load() is kernel.load()
    assert torch.equal(kernel.forward(torch.ones(2)), torch.full((2,), 2.0))
    assert torch.equal(kernel.backward(torch.ones(2), torch.ones(2))[0], torch.full((2,), 2.0))
    linecache.checkcache()
    assert linecache.getline(kernel.load().__file__ or "", 5) == "    return 2 * x\n"


def test_a_dumped_kernel_is_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(settings, "DUMP", tmp_path)
    file = tmp_path / "kernels" / "twice.py"
    assert Kernel("twice", TWICE).load().__file__ == str(file)
    assert file.read_text() == TWICE
