"""Recommenders: click models of torchfm, and sequence, multi-task and cross models of torch-rechub."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gatec.bench.coverage.entry import Built, Entry

NEEDS: tuple[str, ...] = ()

FIELDS, WIDTH = [20, 30, 40, 50], 8
MLP = {"dims": [16, 8], "dropout": 0.1}

# File in torchfm.model, class, arguments after the field sizes.
CLICK: dict[str, tuple[str, str, dict[str, Any]]] = {
    "FM": ("fm", "FactorizationMachineModel", {"embed_dim": WIDTH}),
    "FFM": ("ffm", "FieldAwareFactorizationMachineModel", {"embed_dim": WIDTH}),
    "WideDeep": ("wd", "WideAndDeepModel", {"embed_dim": WIDTH, "mlp_dims": (16, 8), "dropout": 0.1}),
    "DeepFM": ("dfm", "DeepFactorizationMachineModel", {"embed_dim": WIDTH, "mlp_dims": (16, 8), "dropout": 0.1}),
    "xDeepFM": ("xdfm", "ExtremeDeepFactorizationMachineModel",
                {"embed_dim": WIDTH, "mlp_dims": (16, 8), "dropout": 0.1, "cross_layer_sizes": (8, 8)}),
    "DCN": ("dcn", "DeepCrossNetworkModel", {"embed_dim": WIDTH, "num_layers": 2, "mlp_dims": (16, 8), "dropout": 0.1}),
    "AFM": ("afm", "AttentionalFactorizationMachineModel", {"embed_dim": WIDTH, "attn_size": 8,
    "dropouts": (0.1, 0.1)}),
    "AFN": ("afn", "AdaptiveFactorizationNetwork", {"embed_dim": WIDTH, "LNN_dim": 16, "mlp_dims": (16, 8),
    "dropouts": (0.1, 0.1)}),
    "NFM": ("nfm", "NeuralFactorizationMachineModel", {"embed_dim": WIDTH, "mlp_dims": (16, 8),
    "dropouts": (0.1, 0.1)}),
    "PNN": ("pnn", "ProductNeuralNetworkModel", {"method": "inner", "embed_dim": WIDTH, "mlp_dims": (16, 8),
    "dropout": 0.1}),
    "AutoInt": ("afi", "AutomaticFeatureInteractionModel",
                {"embed_dim": WIDTH, "atten_embed_dim": 8, "num_heads": 2, "num_layers": 2, "mlp_dims": (16, 8),
                 "dropouts": (0.1, 0.1, 0.1)}),
}  # fmt: skip


def _features() -> dict[str, Any]:
    """torch-rechub's descriptions of columns: some sparse, one dense, a history and its target."""
    kinds = importlib.import_module("torch_rechub.basic.features")
    sparse = [kinds.SparseFeature(f"s{i}", vocab_size=n, embed_dim=WIDTH) for i, n in enumerate(FIELDS)]
    history = [kinds.SequenceFeature("history", vocab_size=50, embed_dim=WIDTH, pooling="concat", shared_with="target")]
    target = [kinds.SparseFeature("target", vocab_size=50, embed_dim=WIDTH)]
    return {"sparse": sparse, "dense": [kinds.DenseFeature("d0")], "history": history, "target": target}


def _batch(rows: int = 2, length: int = 6) -> dict[str, Tensor]:
    columns = {f"s{i}": torch.randint(0, n, (rows,)) for i, n in enumerate(FIELDS)}
    return {**columns, "d0": torch.rand(rows), "target": torch.randint(0, 50, (rows,)),
            "history": torch.randint(1, 50, (rows, length))}  # fmt: skip


TASKS = {"task_types": ["classification", "classification"], "tower_params_list": [{"dims": [8]}, {"dims": [8]}]}

# File in torch_rechub.models, and the arguments from the features.
RANKING: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "DeepFM": ("ranking", lambda f: {"deep_features": f["sparse"], "fm_features": f["sparse"], "mlp_params": MLP}),
    "DCN": ("ranking", lambda f: {"features": f["sparse"], "n_cross_layers": 2, "mlp_params": MLP}),
    "DCNv2": ("ranking", lambda f: {"features": f["sparse"], "n_cross_layers": 2, "mlp_params": MLP}),
    "EDCN": ("ranking", lambda f: {"features": f["sparse"], "n_cross_layers": 2, "mlp_params": MLP}),
    "FiBiNet": ("ranking", lambda f: {"features": f["sparse"], "reduction_ratio": 2, "mlp_params": MLP}),
    "DIN": ("ranking", lambda f: {"features": f["sparse"], "history_features": f["history"],
    "target_features": f["target"],
                                  "mlp_params": {"dims": [16, 8]}, "attention_mlp_params": {"dims": [8]}}),
    "BST": ("ranking", lambda f: {"features": f["sparse"], "history_features": f["history"],
    "target_features": f["target"],
                                  "mlp_params": {"dims": [16, 8]}, "nhead": 2}),
    "MMOE": ("multi_task", lambda f: {"features": f["sparse"], "n_expert": 4, "expert_params": MLP, **TASKS}),
    "PLE": ("multi_task", lambda f: {"features": f["sparse"], "n_level": 1, "n_expert_specific": 2,
    "n_expert_shared": 1,
                                     "expert_params": MLP, **TASKS}),
    "AITM": ("multi_task", lambda f: {"features": f["sparse"], "n_task": 2, "bottom_params": MLP,
                                      "tower_params_list": TASKS["tower_params_list"]}),
    "SharedBottom": ("multi_task", lambda f: {"features": f["sparse"], "bottom_params": MLP, **TASKS}),
}  # fmt: skip


def entries() -> Iterator[Entry]:
    if find_spec("torchfm"):
        yield from (Entry("recommenders", name, f"torchfm.{name}", partial(_click, name)) for name in CLICK)
    if find_spec("torch_rechub"):
        yield from (Entry("recommenders", name, f"rechub.{name}", partial(_ranking, name)) for name in RANKING)


def _click(name: str) -> Built:
    file, kind, arguments = CLICK[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(importlib.import_module(f"torchfm.model.{file}"), kind)
        return model(field_dims=FIELDS, **arguments).eval(), (
            (torch.stack([torch.randint(0, n, (2,)) for n in FIELDS], dim=1),),
            {},
        )


def _ranking(name: str) -> Built:
    folder, arguments = RANKING[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(importlib.import_module(f"torch_rechub.models.{folder}"), name)
        return model(**arguments(_features())).eval(), ((_batch(),), {})
