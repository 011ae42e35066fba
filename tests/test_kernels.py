"""What can be said of generated kernels without running one."""

import linecache

import gemms
import pytest
import torch
from recurrences import RECURRENCES
from torch import Tensor

from gatec import settings
from gatec.derive import derive
from gatec.kernel import Kernel
from gatec.kernels import grouped, rowwise
from gatec.kernels.lint import complaints
from gatec.kernels.pointwise import render


def gate(x: Tensor, logit: Tensor) -> Tensor:
    return x * torch.sigmoid(logit)


def softmax_gate(x: Tensor, g: Tensor) -> Tensor:
    return x * torch.softmax(g, -1)


def source() -> str:
    derived = derive(gate, [torch.empty(2, 3, dtype=torch.bfloat16)] * 2)
    return render("gate", "tests", derived.forward, derived.backward).source


def rows() -> str:
    derived = derive(softmax_gate, [torch.empty(2, 3, dtype=torch.bfloat16)] * 2, rows=True)
    return rowwise.render("rows", "tests", derived.forward, derived.backward).source


def mixture() -> str:
    derived = derive(lambda a, b: torch.tanh(a) * b, [torch.empty(3, 5, dtype=torch.bfloat16)] * 2)
    plan = grouped.Experts.apart(2, biased=False, down_bias=False)
    return grouped.render("experts", "tests", plan, derived.forward, derived.backward, scale=torch.float32).source


def product() -> str:
    return gemms.gates(16, 16, 16)[0].kernel(torch.bfloat16).source


def scan() -> str:
    found = RECURRENCES[0]
    return found.kernel(found.operands(torch.empty, 8)).source


SOURCES = {"gate": source, "rows": rows, "mixture": mixture, "product": product, "scan": scan}

BROKEN = {
    "a load without mask and other": ("gate", ", other=0", ""),
    "a store without mask": ("gate", ", mask=inside)\n\n\n@triton.jit(", ")\n\n\n@triton.jit("),
    "a store which does not cast to the type it stores":
        ("gate", "value.to(out.dtype.element_ty)", "value"),
    "a program id of 32 bits": ("gate", "tl.program_id(0).to(tl.int64)", "tl.program_id(0)"),
    "a program id of 32 bits: of another axis": ("scan", "tl.program_id(1).to(tl.int64)", "tl.program_id(1)"),
    "a column's offset of 32 bits": ("gate", "col.to(tl.int64) *", "col *"),
    "writes over an operand": ("gate", "write(out, mul,", "write(x, mul,"),
    "writes over an operand: by a name for a place in it":
        ("mixture", "at = out + row.to(tl.int64) * strides[0]\n", "at = out\n    tl.load(at, mask=inside, other=0)\n"),
    "changes an operand in place": ("product", "kept = projected(", "x.mul_(2)\n    kept = projected("),
    "changes an operand in place: a part of it": ("product", "kept = projected(", "x[0] = 2\n    kept = projected("),
    "a launch leaves enable_fp_fusion to triton's default": ("gate", ", enable_fp_fusion=True", ""),
    "a float among a launch's arguments, whose width triton chooses":
        ("gate", "*operands, *strides,", "*operands, 0.5, *strides,"),
    "a size as a constexpr: each needs a compilation of its own": ("gate", "COLS=COLS", "COLS=shape[-1]"),
    "a tile whose size is no power of two": ("scan", "LANES=128", "LANES=96"),
    "a tile whose size is no power of two: in the kernel": ("scan", "tl.arange(0, LANES)", "tl.arange(0, 96)"),
    "a size that differs from call to call is specialised": ("gate", 'do_not_specialize=["rows", "across"]', ""),
    "computes with a float as it was loaded": ("gate", ".to(tl.float32)", ""),
    "computes with a float as it was loaded: summed": ("mixture", "each_y = y.to(tl.float32)", "each_y = y"),
    "float64 in a kernel of float32": ("gate", ".to(tl.float32)", ".to(tl.float64)"),
    "a product that leaves its precision to triton": ("product", ', input_precision="ieee"', ""),
    "transposes what a product gave: load it transposed":
        ("mixture", "tl.dot(grad,", "tl.dot(back.to(tl.bfloat16).T,"),
    "transposes what a product gave: load it transposed: by a call":
        ("mixture", "tl.dot(grad,", "tl.dot(tl.trans(back.to(tl.bfloat16)),"),
    "an extremum over what stands outside of a row too":
        ("rows", 'tl.max(tl.where(inside, g, float("-inf")), 1)', "tl.max(g, 1)"),
    "a reduction in two bytes": ("rows", "tl.sum(tl.where(inside, exp,", "tl.sum(tl.where(inside, exp.to(tl.bfloat16),"),
    "tanh_of is not the function whose error is known":
        ("mixture", "near = x + x * s * p", "near = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)"),
    "no header that says where it came from": ("gate", '"""gate: generated', 'x = """gate: generated'),
    "imports numpy": ("gate", "import math", "import numpy"),
    "the interpreter cannot run libdevice": ("gate", "tl.sigmoid", "tl.extra.libdevice.sigmoid"),
    "the interpreter cannot run assembly": ("gate", "tl.sigmoid(", "tl.inline_asm_elementwise("),
    "the interpreter lets every device_assert pass": ("gate", "tl.sigmoid(", "tl.device_assert("),
    "the interpreter rounds eight bits wrongly": ("gate", ".to(tl.float32)", ".to(tl.float8e5).to(tl.float32)"),
    "block pointers are gone from triton": ("gate", "tl.load(", "tl.make_block_ptr("),
    "atomics make results depend on their order": ("gate", "tl.store(", "tl.atomic_add("),
    "atomics make results depend on their order: any of them": ("gate", "tl.store(", "tl.atomic_max("),
    "autotuning needs a device; gatec.dispatch measures instead":
        ("gate", "@triton.jit\n", "@triton.autotune\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_generated_text_breaks_no_rule(kind: str) -> None:
    assert complaints(SOURCES[kind]()) == []


@pytest.mark.parametrize("why", BROKEN)
def test_each_rule_is_seen_when_broken(why: str) -> None:
    kind, good, bad = BROKEN[why]
    text = SOURCES[kind]()
    assert good in text
    found = complaints(text.replace(good, bad))
    assert any(": " in line and why.startswith(line.partition(": ")[2]) for line in found), found


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
