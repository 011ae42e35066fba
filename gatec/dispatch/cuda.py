"""What dispatch asks of a CUDA device: its names and versions, room, time. Thin: everything else is tested without one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

from gatec.dispatch.identity import named, versions
from gatec.dispatch.measure import Thunk

AHEAD = 1_000_000  # cycles for which the device waits, so that the host is ahead of it and launches are not measured
ROOM = 2 << 30  # bytes that must be free before another process opens the device


class Device(Protocol):
    """The layer under dispatch; tests put another in its place."""

    def identity(self, device: torch.device) -> dict[str, str]: ...
    def capturing(self) -> bool: ...
    def room(self, device: torch.device) -> bool: ...
    def sample(self, run: Thunk) -> float: ...
    def aside(self, device: torch.device, work: Callable[[], Any]) -> Any: ...


class Cuda:
    """One NVIDIA or AMD device of this process."""

    def identity(self, device: torch.device) -> dict[str, str]:
        return {**named(device), **versions()}

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def room(self, device: torch.device) -> bool:
        return torch.cuda.mem_get_info(device)[0] > ROOM

    def sample(self, run: Thunk) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(AHEAD)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def aside(self, device: torch.device, work: Callable[[], Any]) -> Any:
        """In a thread of its own, on the caller's stream."""
        stream = torch.cuda.current_stream(device)

        def there() -> Any:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                return work()

        return in_thread(there)


def in_thread(work: Callable[[], Any]) -> Any:
    """In a thread of its own: the modes that the caller is in (autograd, autocast, tracing) are its own as well."""
    found: list[Any] = []

    def caught() -> None:
        try:
            found.append((work(), None))
        except Exception as e:
            found.append((None, e))

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join()
    value, error = found[0]
    if error is not None:
        raise error
    return value
