"""The child process of `math_checking`: reads one JSON request a line, answers one JSON line, until its input closes.

It is a script of its own because symbolic mathematics on model output can hang inside C code or ask for gigabytes. A
child can be limited and killed; a thread cannot. It imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import json
import sys


def limit_memory(megabytes: int) -> None:
    """Cap this process's address space where the platform knows how."""
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def judge(request: dict[str, str], seconds: int) -> str:
    """``yes`` or ``no`` for a response, ``unreadable`` when the reference answer itself cannot be parsed."""
    from math_verify import parse, verify

    gold = request["gold"]
    anchored = gold if any(mark in gold for mark in ("$", "\\boxed", "\\(", "\\[")) else f"${gold}$"
    wanted = parse(anchored, fallback_mode="no_fallback", parsing_timeout=seconds)
    if not wanted:
        return "unreadable"
    found = parse(request["response"], parsing_timeout=seconds)
    return "yes" if verify(wanted, found, timeout_seconds=seconds) else "no"


def main() -> None:
    """Serve requests; the first argument is the memory limit in MB, the second the soft time limit in seconds."""
    limit_memory(int(sys.argv[1]))
    seconds = int(sys.argv[2])
    import math_verify  # noqa: F401  # loaded before the first request, which would otherwise pay for it

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        try:
            verdict = judge(json.loads(line), seconds)
        except Exception:
            verdict = "no"  # whatever the library cannot digest in a response is not a proof of correctness
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
