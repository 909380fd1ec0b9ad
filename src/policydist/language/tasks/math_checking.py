"""Mathematical equivalence by `math-verify`, in a child process that is killed when it takes too long.

math-verify's own time limits use signals, which work only on the main thread and cannot interrupt every C routine.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from policydist.errors import PolicydistError

WORKER = Path(__file__).with_name("math_worker.py")


class MathChecker:
    """Answers whether a response is equal to a reference; usable from any thread and after a fork.

    The child starts at the first question and is replaced after a timeout. ``seconds`` limits one question as seen from
    here; ``megabytes`` limits the child's address space; ``start_seconds`` limits its start.
    """

    def __init__(self, seconds: float = 4.0, megabytes: int = 2048, start_seconds: float = 60.0) -> None:
        self.seconds, self.megabytes, self.start_seconds = seconds, megabytes, start_seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._owner = 0
        atexit.register(self.close)

    def equal(self, gold: str, response: str) -> bool:
        """Whether ``response`` states something equal to ``gold``; a response that takes too long is not.

        Raises:
            PolicydistError: when ``gold`` itself is nothing that math-verify can read, or the child cannot start.
        """
        with self._lock:
            verdict = self._ask(json.dumps({"gold": gold, "response": response}))
        if verdict == "unreadable":
            raise PolicydistError(
                f"the reference answer {gold[:60]!r} is no mathematics that math-verify can read; "
                "use grader=exact_match or mend the row"
            )
        return verdict == "yes"

    def close(self) -> None:
        """End the child; the next question starts a new one."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()

    def _ask(self, request: str) -> str:
        if self._child is None or self._owner != os.getpid():
            self._start()
        child = self._child
        assert child is not None
        assert child.stdin is not None
        try:
            child.stdin.write(request + "\n")
            child.stdin.flush()
            return str(json.loads(self._lines.get(timeout=self.seconds)))
        except (OSError, queue.Empty, json.JSONDecodeError):
            self.close()  # too slow, or out of memory: its next answer would belong to this question
            return "no"

    def _start(self) -> None:
        self._owner = os.getpid()
        soft = max(1, int(self.seconds) // 2)
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(self.megabytes), str(soft)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        assert self._child.stdout is not None
        self._lines = queue.Queue()
        threading.Thread(target=_pump, args=(self._child.stdout, self._lines), daemon=True).start()
        try:
            ready = self._lines.get(timeout=self.start_seconds)
        except queue.Empty:
            ready = ""
        if not ready:
            self.close()
            raise PolicydistError("math-verify's process did not start; is math-verify installed in this environment?")


def _pump(stream: IO[str], lines: queue.Queue[str]) -> None:
    """Move a stream's lines into a queue, an empty one at its end; a pipe itself cannot be read with a time limit."""
    try:
        for line in stream:
            lines.put(line)
    except ValueError:
        pass  # closed under us
    lines.put("")
