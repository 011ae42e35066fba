"""A process in which ways run for the first time: an illegal address, a hang or a crash ends it and nothing else.

Questions are pickles on its standard input (of our own making, never read from a file), answers are JSON on its standard output.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import IO, Any, cast

import torch

from gatec.dispatch.verify import Trial, Unproven, Wrong, verified
from gatec.errors import in_short

START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from gatec.dispatch.worker import serve; serve()"
STARTING = 120.0  # seconds that importing torch may take on a busy machine
LONGEST = 60.0  # seconds for one way, its compilation included
IDLE = 120.0  # seconds without a question after which a worker gives back its memory of the device
STARTS = 3  # in a row that may fail, before no other is tried
KILLED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}  # by somebody else: says nothing about the way
WATCHDOG = 1  # faulthandler's own exit code
RIGHT = ""


class Unanswered(Exception):
    """There is no answer, and it is not the way's fault."""


class Worker:
    """The near end: started by the first question, started again after one that killed it."""

    def __init__(self, longest: float = LONGEST, start: str = START) -> None:
        self.longest, self.start = longest, start
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = 0

    def ask(self, trial: Trial) -> str:
        """Nothing where the way is right, else why it is not. Raises Unanswered."""
        try:
            question = pickle.dumps((self.longest, trial))
        except Exception as e:
            raise Unanswered(f"it cannot be sent to another process: {type(e).__name__}: {str(e)[:120]}") from e
        try:
            return self._asked(question)
        except OSError as e:
            self.stop()
            raise Unanswered(f"no process to verify in: {e}") from e

    def _asked(self, question: bytes) -> str:
        process, start = self._running(), time.monotonic()
        _send(_pipe(process.stdin), question)
        answer = _received(_pipe(process.stdout), self.longest + STARTING)  # it keeps time itself, and may import first
        if answer is not None:
            return self._told(answer)
        code = self.stop()
        if code is None or (code == WATCHDOG and time.monotonic() - start > self.longest):
            return f"it had not ended after {self.longest:g} seconds"
        if code in KILLED:
            raise Unanswered("the process was killed from outside")
        return f"it ended its process ({_cause(code)})"

    def _told(self, answer: dict[str, Any]) -> str:
        if answer["over"]:
            self.stop()
        if answer["unanswered"]:
            raise Unanswered(answer["why"])
        return str(answer["why"])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            if self._failed >= STARTS:
                raise OSError("it did not start before")
            self._failed += 1
            command = [sys.executable, "-c", self.start, json.dumps(sys.path)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
            )  # fmt: skip
            if _received(_pipe(self._process.stdout), STARTING) is None:
                self.stop()
                raise OSError("it does not start")
            self._failed = 0
        return self._process

    def stop(self) -> int | None:
        """Its exit code, or None where it had to be ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(OSError):
            _pipe(process.stdin).close()
        code = _ended(process)
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever compiler it started
        process.wait()
        _pipe(process.stdout).close()
        return code


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(1.0)
    except subprocess.TimeoutExpired:
        return None


def _cause(code: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    return cast("IO[bytes]", stream)


# -- messages: eight bytes of length, then so many bytes ---------------------------------------------------------------


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(len(message).to_bytes(8, "little") + message)
    stream.flush()


def _received(stream: IO[bytes], seconds: float) -> dict[str, Any] | None:
    """One answer, or None at the end of the stream and after so many seconds."""
    until = time.monotonic() + seconds
    head = _bytes(stream, 8, until)
    body = head and _bytes(stream, int.from_bytes(head, "little"), until)
    return cast("dict[str, Any]", json.loads(body)) if body else None


def _bytes(stream: IO[bytes], wanted: int, until: float) -> bytes | None:
    found, number = b"", stream.fileno()
    while len(found) < wanted:
        ready, _, _ = select.select([number], [], [], max(0.0, until - time.monotonic()))
        part = os.read(number, wanted - len(found)) if ready else b""
        if not part:
            return None
        found += part
    return found


# -- the far end ------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer questions until there are no more; a way's own prints go nowhere."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the watchdog writes to it when the process ends
    threading.Thread(target=_orphaned, args=(os.getppid(),), daemon=True).start()
    _send(answers, b'{"ready": true}')
    while select.select([questions], [], [], IDLE)[0] and (head := questions.read(8)):
        answer = answered(questions.read(int.from_bytes(head, "little")), log)
        _send(answers, json.dumps(answer).encode())
        if answer["over"]:
            return


def answered(question: bytes, log: IO[bytes]) -> dict[str, Any]:
    """`over` where the device may be in any state; `unanswered` where the way is not to blame."""
    try:
        longest, trial = pickle.loads(question)
    except Exception as e:  # of a function's module, which this process cannot import
        return {"why": f"it cannot be read in another process: {in_short(e)}", "over": False, "unanswered": True}
    # A thread in C: it works while a way holds Python, or waits for a device for ever.
    faulthandler.dump_traceback_later(longest, exit=True, file=log)
    try:
        return _tried(trial)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _tried(trial: Trial) -> dict[str, Any]:
    on_device = trial.device != "cpu"
    try:
        verified(trial)
        if on_device:
            torch.cuda.empty_cache()
    except Wrong as e:
        return {"why": str(e), "over": False, "unanswered": False}
    except (Unproven, torch.OutOfMemoryError, MemoryError, OSError) as e:  # a full disk is not the way's fault
        return {"why": in_short(e), "over": on_device, "unanswered": True}
    except Exception as e:
        return {"why": in_short(e), "over": on_device, "unanswered": False}
    return {"why": RIGHT, "over": False, "unanswered": False}


def _orphaned(parent: int) -> None:
    """End when the process that asks has ended, even if a copy of it still holds the pipe."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
