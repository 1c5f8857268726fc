"""`python -m tests.chaos --minutes 5 [--seed N] [--log FILE]`: see `make chaos`."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.driver import run


def main() -> int:
    """Run chaos, and return 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--log", type=Path, help="where to keep the daemon's log")
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    sys.stdout.flush()
    report = run(arguments.seed, 60 * arguments.minutes, arguments.log)
    sys.stdout.write(f"{report}\n")
    sys.stdout.writelines(f"VIOLATION {violation}\n" for violation in report.violations)
    sys.stdout.write(f"{len(report.violations)} violations, seed {arguments.seed}\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
