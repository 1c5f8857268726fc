"""`mlx-sidecar doctor`: prints the result of every check of this machine, and the fix of each failure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from daemon.cli.exit_codes import REFUSED
from daemon.cli.flags import config_flags, resolve
from daemon.cli.output.formatting import examples, print_json
from daemon.cli.serving import look
from daemon.cli.session import Session, pass_session
from daemon.doctor.checkup import checkup
from daemon.doctor.finding import Finding, Verdict
from daemon.doctor.system import System
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.service import Service
from daemon.shared.wording import count

_COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "red", Verdict.SKIPPED: None}


@click.command(
    "doctor",
    epilog=examples("mlx-sidecar doctor", "mlx-sidecar doctor --json"),
)
@config_flags
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@pass_session
def command(session: Session, /, as_json: bool, **flags: object) -> None:
    """
    Check versions, system, device, memory, socket, log, service, and that a daemon answers warm as it does cold.

    A running daemon is asked for its figures only; the trial has one of its own. Exit status 1 if a check failed.
    """
    config = resolve(session.socket_flag, flags).config
    service = Service(Launchctl(), Path.home(), look)
    findings: list[Finding] = []
    for finding in checkup(config, System(), service, Path.home()):
        findings.append(finding)
        if not as_json:
            _show(finding)
    failures = [finding for finding in findings if finding.verdict is Verdict.FAILED]
    if as_json:
        print_json({"ok": not failures, "findings": [asdict(finding) for finding in findings]})
    elif failures:
        click.echo(f"\n{len(failures)} of {count(len(findings), 'check')} failed.")
    if failures:
        raise SystemExit(REFUSED)


def _show(finding: Finding) -> None:
    verdict = click.style(f"{finding.verdict:<8}", fg=_COLOURS[finding.verdict])
    click.echo(f"{verdict} {finding.check:<17} {finding.found}")
    if finding.fix:
        click.echo(f"{'':8} {'':17} {finding.fix}")
