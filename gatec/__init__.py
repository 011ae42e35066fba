"""gatec: finds, inserts, prunes and fuses gates in PyTorch models, and exports what comes out."""

from pathlib import Path

_here = Path(__file__).parent
if not (_here / "passes").is_dir():  # a checkout; in a wheel they lie inside
    __path__.append(str(_here.parent))

from gatec.vision import torchvision_loads  # noqa: E402 isort: skip

torchvision_loads()  # timm and transformers import torchvision, whose C++ operators a CPU build of torch cannot load

import gatec.attending  # noqa: E402
import gatec.attending_on_cuda  # noqa: E402
import gatec.grouping  # noqa: E402
import gatec.scanning  # noqa: E402, F401
from gatec import places  # noqa: E402
from gatec.backend import backend  # noqa: E402
from gatec.catalog import gates  # noqa: E402
from gatec.census import Census, scan  # noqa: E402
from gatec.compaction import compact  # noqa: E402
from gatec.distilling import Distillation  # noqa: E402
from gatec.ejection import eject  # noqa: E402
from gatec.equation import Activation, Equation, equation  # noqa: E402
from gatec.errors import GatecError, Refused  # noqa: E402
from gatec.explain import Explanation, explain  # noqa: E402
from gatec.folding import merge  # noqa: E402
from gatec.fusing import fuse, fuse_, kernels_of  # noqa: E402
from gatec.gate import Case, Gate  # noqa: E402
from gatec.gradient_routing import GradientRouting  # noqa: E402
from gatec.grouped import grouped_linear  # noqa: E402
from gatec.history import save  # noqa: E402
from gatec.layers import Inner, Layer  # noqa: E402
from gatec.linear_attention import gated_delta_rule, linear_attention  # noqa: E402
from gatec.match import Attention, Block, Branch, Features, Hole, Linear, Part, Projection, here  # noqa: E402
from gatec.moe import (  # noqa: E402
    Health,
    Pairs,
    Pooled,
    Router,
    StandIn,
    calibrate,
    copies,
    health,
    losses,
    mixture,
    pairs_of,
    router,
    router_named,
    splitting,
    task,
    upcycle,
    watching,
)
from gatec.onnx import export  # noqa: E402
from gatec.parallel import Experts, ep_plan, expert_parallel, tp_plan, transformers_plan  # noqa: E402
from gatec.partition import Coactivation, balanced_clusters, order, weight_features  # noqa: E402
from gatec.pipeline import convert, convert_, gate_parameters, load, why  # noqa: E402
from gatec.program import Edit  # noqa: E402
from gatec.pruning import (  # noqa: E402
    Group,
    Groups,
    budget,
    channel_gates,
    close,
    group_lasso,
    groups,
    profile,
    prune,
    remapped,
    schedule,
)
from gatec.recurrence import linear_recurrence  # noqa: E402
from gatec.report import Report, report  # noqa: E402
from gatec.rerolling import reroll, reroll_  # noqa: E402
from gatec.reverting import revert  # noqa: E402
from gatec.routed import routed_convolution  # noqa: E402
from gatec.selecting import Selector, anneal  # noqa: E402
from gatec.sharing import share_blocks  # noqa: E402
from gatec.site import Site  # noqa: E402
from gatec.timing import measure  # noqa: E402
from gatec.tuning import Tuning, tune  # noqa: E402

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022 - in the order in which a reader meets them
    # what a user calls
    "scan", "why", "convert", "convert_", "upcycle", "fuse", "fuse_", "reroll", "reroll_", "compact", "revert", "eject",
    "groups", "prune", "profile", "close", "budget", "schedule", "group_lasso", "channel_gates", "remapped",
    "export", "save", "load", "report", "gates", "explain", "kernels_of", "tune", "gate_parameters", "backend",
    "losses", "health", "watching", "task", "anneal", "GradientRouting",
    "merge", "measure", "calibrate", "share_blocks", "Distillation",
    "expert_parallel", "ep_plan", "tp_plan", "transformers_plan", "Experts",
    # what comes back
    "Census", "Edit", "Explanation", "GatecError", "Group", "Groups", "Health", "Refused", "Report", "Tuning",
    # what a pass is made of
    "Activation", "Attention", "Block", "Branch", "Case", "Coactivation", "Equation", "Features", "Gate", "Hole", "Inner",
    "Layer", "Linear", "Pairs", "Part", "Pooled", "Projection", "Router", "Selector", "Site", "StandIn", "balanced_clusters",
    "copies",
    "equation", "gated_delta_rule", "grouped_linear", "here", "linear_attention", "linear_recurrence", "mixture", "order",
    "pairs_of", "places", "routed_convolution", "router", "router_named", "splitting", "weight_features",
]  # fmt: skip
