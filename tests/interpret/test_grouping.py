"""Each way of the grouped operators goes through the verification that it meets on a device."""

import pickle

import pytest
import torch

from gatec.dispatch.forms import Form
from gatec.dispatch.verify import Trial, verified
from gatec.grouping import chosen, side

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["linear", "outer"])
def test_every_way_passes_the_verification_of_a_device(name: str, dtype: torch.dtype) -> None:
    ends = torch.tensor([11, 11, 40])
    x, second = torch.randn(40, 24).to(dtype), torch.randn(*((3, 16, 24) if name == "linear" else (40, 16))).to(dtype)
    here = side(name, dtype)
    assert here.ways
    for way in here.ways.values():
        forms = tuple(map(Form.of, (x, second, ends)))
        verified(pickle.loads(pickle.dumps(Trial(way, here.eager, here.exact, forms, "cpu"))))


def test_a_wrong_way_does_not_pass() -> None:
    forms = tuple(map(Form.of, (torch.randn(40, 24), torch.randn(3, 16, 24), torch.tensor([11, 11, 40]))))
    here = side("linear", torch.float32)
    with pytest.raises(Exception, match="result 0"):
        verified(Trial(lambda *xs: here.eager(*xs) * 1.01, here.eager, here.exact, forms, "cpu"))


@pytest.mark.parametrize("name", ["linear", "outer"])
def test_cuda_goes_through_the_choice(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gatec::grouped_{name}", "CUDA")
    other = (
        torch.randn(3, 16, 24, dtype=torch.float64) if name == "linear" else torch.randn(40, 16, dtype=torch.float64)
    )
    x, ends = torch.randn(40, 24, dtype=torch.float64), torch.tensor([11, 11, 40])
    # Types that no kernel takes run as they are.
    assert torch.equal(chosen(name, x, other, ends), side(name, x.dtype).eager(x, other, ends))
