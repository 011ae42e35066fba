"""Generated kernels run in Triton's interpreter here, where there is no GPU."""

import os
import sys
from pathlib import Path

# Chosen when triton is first imported, for the whole process.
os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import triton_bf16

triton_bf16.install()
