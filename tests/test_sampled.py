"""Which cases are left to the sweep, and which of them a sweep takes."""

import pytest
import sampled
from sampled import left_out, some, swept


class Item:
    def __init__(self, nodeid, swept=True):
        self.nodeid, self.swept = nodeid, swept

    def get_closest_marker(self, name):
        return name == "sweep" and self.swept


def names(law, count):
    return [f"{law}[{i}]" for i in range(count)]


@pytest.fixture(autouse=True)
def sampling(monkeypatch):
    monkeypatch.setattr(sampled, "ALL", False)


def test_each_third_case_is_a_default_one():
    a, b, c, d, e = some(["a", "b", "c", "d", ("e", 1)], at=1)
    assert (b, e) == ("b", ("e", 1))
    assert [p.values for p in (a, c, d)] == [("a",), ("c",), ("d",)]
    assert all(m.name == "sweep" for p in (a, c, d) for m in p.marks)
    assert swept(("f", 2)).values == ("f", 2)


def test_half_of_many_cases_is_swept_and_all_of_a_few():
    items = [Item(n) for n in (*names("a", 9), *names("b", 3), "c")]
    out = left_out(items)
    assert len(out) == 4 and out < set(names("a", 9))
    assert out == left_out(items[::-1])
    assert left_out([Item(n, swept=False) for n in names("a", 9)]) == set()


def test_all_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(sampled, "ALL", True)
    assert left_out([Item(n) for n in names("a", 9)]) == set()
