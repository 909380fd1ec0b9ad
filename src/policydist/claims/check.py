"""``python -m policydist.claims.check``: fails where a recorded claim is invalid, or changed without a new version."""

from __future__ import annotations

import sys

from policydist.claims import record


def main() -> int:
    """Print every problem of the records in ``results/``; 1 if there is one."""
    found = record.problems()
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"claim records: {len(record.files(record.results_dir()))}, problems: {len(found)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
