"""The labelled set: every gate found, under its kind and once, and nothing else, whichever front end made the graph."""

import json
from collections import Counter

import pytest
from levels import BUNDLE, BY_NAME, FAMILIES, HOW, SNIPPETS

from gatec.recognise import KINDS

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.xdist_group("labelled"),  # a capture of many snippets at once stays in one process
]


THIRDS = {"export": 0, "core": 0, "dynamo": 1, "make_fx": 2}


def marks(how, number):
    """By default each third bundle is looked at as each front end other than gatec's own sees it."""
    return pytest.mark.sweep if how in THIRDS and number // BUNDLE % 3 != THIRDS[how] else ()


@pytest.mark.parametrize(("how", "name"),
                         [pytest.param(h, n, marks=marks(h, i)) for h in HOW for i, n in enumerate(BY_NAME)])  # fmt: skip
def test_every_gate_is_found_and_nothing_else(how, name):
    found = HOW[how](name)
    assert sorted(f.kind for f in found) == BY_NAME[name].kinds, "\n".join(f"{f}  {f.equation}" for f in found)


@pytest.mark.parametrize("name", [s.name for s in SNIPPETS if s.kinds])
def test_a_find_says_everything(name):
    for find in HOW["fx"](name):
        data = json.loads(json.dumps(find.data()))
        assert data["kind"] in KINDS and all(data[k] for k in ("signal", "value", "equation", "where", "shape")), data
        made = data["signal"] != "given"  # what comes in from outside has no parameters
        assert (data["parameters"] > 0) == made and data["flops"] > 0, data
        assert "\n" not in data["equation"] and str(find).startswith(find.kind)


def test_the_set_is_large_and_names_every_kind():
    gates = Counter(kind for s in SNIPPETS for kind in s.kinds)
    assert set(gates) == set(KINDS)
    assert sum(gates.values()) >= 100 and sum(not s.kinds for s in SNIPPETS) >= 50
    assert len({s.name for s in SNIPPETS}) == len(SNIPPETS) and len(FAMILIES) == 7
