"""Refresh the tables and figures of README and docs from the claim records, and the counts of implemented papers.

python scripts/render_results.py            write what is out of date
python scripts/render_results.py --check    write nothing; exit code 1 if something is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from policydist.errors import PolicydistError
from policydist.report.markdown import refresh

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Refresh tables and figures of README and docs from the claim records."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="source checkout with README.md and docs/")
    parser.add_argument("--results", type=Path, help="folder of claim records; results/ of the checkout by default")
    asked = parser.parse_args()
    try:
        stale = refresh(asked.root, asked.results or asked.root / "results", asked.check)
    except PolicydistError as problem:
        print(f"render_results: {problem}", file=sys.stderr)
        return 2
    for line in stale:
        print(("out of date: " if asked.check else "refreshed: ") + line)
    if stale and asked.check:
        print("run python scripts/render_results.py", file=sys.stderr)
    return 1 if stale and asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
