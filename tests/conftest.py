"""One thread per worker, one seed per test, no network, and torchvision made to load."""

import os

# Two workers on two cores: a BLAS that starts its own threads makes both slower. Read at import.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# Triton chooses when it is first imported, for the whole process; the gpu tier asks for 0.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest  # noqa: E402
import torch  # noqa: E402
from sampled import left_out  # noqa: E402

from gatec.dispatch.choose import FAILED  # noqa: E402
from gatec.zoo import torchvision_loads  # noqa: E402

torch.set_num_threads(1)
torchvision_loads()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    FAILED.clear()  # what one test's kernels failed at is no other's


def pytest_addoption(parser):
    parser.addoption("--accept", action="store_true", help="rewrite the golden files")


@pytest.fixture
def accept(request):
    return request.config.getoption("--accept")


def pytest_collection_modifyitems(config, items):
    out = left_out(items)
    config.hook.pytest_deselected(items=[i for i in items if i.nodeid in out])
    items[:] = [i for i in items if i.nodeid not in out]
    if not torch.cuda.is_available():
        missing = "needs a CUDA device, and there is none"
    elif os.environ["TRITON_INTERPRET"] == "1":
        missing = "needs a process of its own: TRITON_INTERPRET=0 python -m pytest -m gpu"
    else:
        return
    reason = pytest.mark.skip(reason=missing)
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(reason)
