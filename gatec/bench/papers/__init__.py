"""The literature as test bed: what gatec makes of blocks as their authors write them."""

from gatec.bench.papers.paper import FOLDER, Paper, papers

__all__ = ["FOLDER", "Paper", "papers"]
