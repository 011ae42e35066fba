"""Families of transformers and timm: a mixture of all experts is the dense model, wherever the pass goes.

Every 12th is listed, of which a sweep takes half; GATEC_FAMILIES=all lists all of them, which is an hour's work.
"""

import os
import warnings

import pytest
import torch

import gatec
from gatec.bench.coverage.suites import entries

SUITES = ("transformers", "timm")


def pytest_generate_tests(metafunc):
    """Families are listed only where they are run: that takes seconds."""
    asked = "not sweep" not in metafunc.config.getoption("-m")
    found = [e for e in entries().values() if e.suite in SUITES] if asked else [None]
    step = 1 if os.environ.get("GATEC_FAMILIES") == "all" else 12
    metafunc.parametrize("entry", found[::step], ids=lambda e: e.spec if e else "none")


@pytest.mark.sweep
def test_a_mixture_of_all_experts_is_the_dense_model(entry):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, inputs = entry.make()
        except Exception as e:  # what a library says of a family that it cannot build here
            pytest.skip(f"not built: {e!r:.100}")
        try:
            split = gatec.convert(model, "moe(experts=4,top_k=3,shared=1)", inputs=inputs)
        except gatec.GatecError as e:
            assert str(e).startswith("gatec: a place for moe in "), e
            return
    put = [e for e in gatec.report(split).edits if e.verdict == "put"]
    assert all(e.drift is not None and e.drift <= 1e-12 for e in put), str(gatec.report(split))
    back = gatec.revert(split).state_dict()
    assert all(torch.equal(v, back[n]) for n, v in model.state_dict().items())
