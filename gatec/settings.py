"""Every setting that gatec reads from the environment, in one table.

GATEC_DEBUG  cumulative, on stderr: 1 every decision and the traceback of an error, 2 the rewritten code after each pass,
             3 near misses
GATEC_DUMP   a folder: the rewritten code after each pass, numbered, and every kernel that is loaded are written there
GATEC_INDUCTOR 1: torch.compile of a region is one of the ways that dispatch chooses among, verified and measured as all
GATEC_TRITON a folder that another triton was installed into (pip install --target): the one that compiles ahead of time
"""

import os
from pathlib import Path

DEBUG = int(os.environ.get("GATEC_DEBUG") or 0)
DUMP = Path(os.environ["GATEC_DUMP"]) if os.environ.get("GATEC_DUMP") else None
INDUCTOR = os.environ.get("GATEC_INDUCTOR") == "1"
TRITON = os.environ.get("GATEC_TRITON") or ""

# triton 3.10 changes its default for fusing multiply and add; kernels must not move with an upgrade.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

TUNE_KEY = 500.0  # milliseconds that measuring one region for one class of shapes may take from a forward
TUNE_TOTAL = 20_000.0  # and all of them in one process; 0 leaves every choice to `gatec tune`
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gatec"  # measured choices, per device
ENVIRONMENT = os.environ  # not to read settings from: what a user's forward asks for is guarded
