"""The report of a run as a file that grows with each workload, so that a run that was ended can be gone on with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Result

_GROWING = ("left_out", "workloads")
"""Parts of a report that grow with each workload."""


@dataclass
class Report:
    """
    What a run measured; a file beside the report has what is known until the run has ended.

    Attributes:
        out: The report's file; None if nothing is written.
        tree: Its content.
    """

    out: Path | None
    tree: dict[str, Any]

    def go_on(self) -> None:
        """
        Take what the last run had measured, if it did not end.

        Raises:
            SystemExit: If there is none, or it was of another commit, machine or kind.
        """
        if self.out is None or not self._unfinished.exists():
            raise SystemExit("there is no run to go on with: only a whole run, and one with --out, can be gone on with")
        before = json.loads(self._unfinished.read_text())
        if other := [key for key, value in self.tree.items() if key not in _GROWING and before.get(key) != value]:
            raise SystemExit(f"the last run was another: {', '.join(other)} differ")
        self.tree["left_out"].extend(before["left_out"])
        self.tree["workloads"].update(before["workloads"])

    def add(self, name: str, result: Result) -> None:
        """Add the result of a workload."""
        self.tree["workloads"][name] = result.raw
        if self.out is not None:
            self._unfinished.write_text(json.dumps(self.tree, indent=1) + "\n")

    def end(self) -> None:
        """Give the report its name."""
        if self.out is not None:
            self._unfinished.replace(self.out)

    @property
    def _unfinished(self) -> Path:
        assert self.out is not None
        return self.out.with_suffix(".unfinished.json")
