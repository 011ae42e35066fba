"""`gatec bench moe`: every way computes the same from the same weights."""

from __future__ import annotations

import pytest
import torch

from gatec.bench.experts import MLP, PEERS, SPLITS, experts, theirs
from gatec.bench.experts_onnx import experts_onnx
from gatec.pipeline import convert

pytest.importorskip("transformers")


@pytest.mark.parametrize("way", PEERS)
def test_the_peer_computes_what_the_converted_mlp_does(way: str) -> None:
    x = torch.randn(9, 16)
    routed = convert(MLP(16, 32), "moe", experts=8, top_k=2, inputs=x).eval()
    torch.testing.assert_close(theirs(routed, way)(x), routed(x))


def test_a_row_for_many_tokens_and_one_for_a_single_one() -> None:
    rows = experts(width=16, hidden=128, tokens=40, repeats=1)
    assert [r["tokens"] for r in rows] == [40, 1] * 4
    assert all(r[f"{way} / gatec"] > 0 for r in rows for way in ("dense", "eager", "grouped_mm"))
    assert ["batched_mm" in r for r in rows] == [False, True] * 4


@pytest.mark.parametrize("splits", [SPLITS[:1], pytest.param(SPLITS, marks=pytest.mark.sweep)], ids=["one", "all"])
def test_every_file_of_the_layer_is_timed(splits, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(experts_onnx.__globals__, "SPLITS", splits)
    rows = experts_onnx(width=16, hidden=128, tokens=40, repeats=1)
    assert [r["tokens"] for r in rows] == [40, 1] * len(splits)
    assert all(r["dense / standard"] > 0 and r["dense / own operator"] > 0 for r in rows)
