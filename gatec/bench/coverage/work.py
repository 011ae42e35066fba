"""What a worker of the sweep does: build one model and judge it, or ask one peer about it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gatec.bench.coverage.copies import copied
from gatec.bench.coverage.entry import Built, Entry
from gatec.bench.coverage.judge import judge
from gatec.bench.coverage.peers import ask
from gatec.bench.coverage.suites import entries

OURS = "gatec"
_warm: set[str] = set()


def work(task: tuple[str, str]) -> dict[str, Any]:
    """The answer to (model, who); whatever the libraries raise while they build becomes the answer's reason."""
    spec, who = task
    with built(entries()[spec]) as found:
        if isinstance(found, dict):
            return found
        _warmed(who)
        try:
            return judge(*found) if who == OURS else ask(who, *found)
        except Exception as error:
            return {"status": "refused", "reason": f"no verdict: {words(error)}"}


@contextmanager
def built(entry: Entry) -> Iterator[Built | dict[str, Any]]:
    """The model and its inputs, run once on one thread; an answer where that fails. Libraries warn of nothing inside."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, inputs = entry.make()
            with torch.no_grad():
                model(*copied(inputs)[0], **copied(inputs)[1])
        except Exception as error:
            yield {"status": "not built", "reason": words(error)}
        else:
            yield model, inputs


def _warmed(who: str) -> None:
    """The first use of a front end imports half of PyTorch; no model shall pay for that."""
    if who not in _warm:
        _warm.add(who)
        small: tuple[Any, Any] = torch.nn.Sequential(torch.nn.Linear(2, 2)), ((torch.ones(1, 2),), {})
        judge(*small) if who == OURS else ask(who, *small)


def words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if line.startswith("found")), lines[0] if lines else "")
    return f"{type(error).__name__}: {found}"[:200]
