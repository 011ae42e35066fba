"""Binaries are made in processes of their own, so this tier may share one with any other."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
