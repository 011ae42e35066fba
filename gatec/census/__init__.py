"""scan(): the gates that a model has, the places where gates could go, and what could not be looked into."""

from gatec.census.census import Census, scan
from gatec.census.tree import Entry

__all__ = ["Census", "Entry", "scan"]
