"""
`python -m tests.fuzz --minutes 10 [TARGET ...]`: see `make fuzz`.

Each target runs in a process of its own under atheris (coverage-guided, dependency group `fuzz`), begins with its
corpus, and ends at the first input that makes it raise, take more than 5 seconds (a chat template, whose process may
have to be started anew: 60) or more than 2 GB; that input is written to the current directory, and belongs in the
corpus once it is mended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

from tests.fuzz.targets import CORPUS, TARGETS

HANG_SECONDS = 5
TEMPLATE_SECONDS = 60
MOST_MB = 2048
LONGEST = 20_000


def fuzz(target: str, seconds: int) -> int:
    """Fuzz one target for so long, and return the status of its process."""
    found = tempfile.mkdtemp(prefix=f"mlxs-corpus-{target}-")  # what is new goes there; the corpus is kept by hand
    flags = [
        f"-max_total_time={seconds}",
        f"-timeout={TEMPLATE_SECONDS if target == 'templates' else HANG_SECONDS}",
        f"-rss_limit_mb={MOST_MB}",
        f"-max_len={LONGEST}",
    ]
    flags += [f"-artifact_prefix=fuzz-{target}-", "-print_final_stats=1", "-verbosity=0"]
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", target, *flags, found, str(CORPUS / target)]
    sys.stdout.write(f"{target}: {seconds} s\n")
    sys.stdout.flush()
    return subprocess.run(command).returncode


def main() -> int:
    """Share the time among the targets, and return 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    targets = arguments.targets or list(TARGETS)
    seconds = max(1, round(60 * arguments.minutes / len(targets)))
    failed = [target for target in targets if fuzz(target, seconds)]
    sys.stdout.write(f"failed: {', '.join(failed) or 'none'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
