"""What `launchctl print` says, in the shapes that Macs were seen to print."""

from __future__ import annotations

import pytest

from daemon.launchd.job import Job

RUNNING = """gui/501/com.mlx-sidecar.daemon = {
\tactive count = 1
\tpath = /Users/ada/Library/LaunchAgents/com.mlx-sidecar.daemon.plist
\ttype = LaunchAgent
\tstate = running

\tprogram = /Users/ada/venv/bin/python
\targuments = {
\t\t/Users/ada/venv/bin/python
\t\tpid = 7
\t}

\tinherited environment = {
\t\tSSH_AUTH_SOCK => /private/tmp/com.apple.launchd.x/Listeners
\t}

\tdomain = gui/501 [100003]
\tasid = 100003
\tminimum runtime = 10
\texit timeout = 60
\truns = 3
\tpid = 893
\timmediate reason = speculative
\tforks = 3
\tlast terminating signal = Killed: 9

\tresource coalition = {
\t\tID = 1114
\t\ttype = resource
\t\tstate = active
\t}

\tspawn type = interactive (4)
\tproperties = runatload | inferred program
}
"""


def test_running_launchd_job_is_parsed() -> None:
    """Nested blocks repeat the key `state`, and arguments can look like fields."""
    assert Job.parse(RUNNING) == Job(
        "running", 893, 3, "Killed: 9", 60, "/Users/ada/Library/LaunchAgents/com.mlx-sidecar.daemon.plist"
    )


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("last exit code = 0", "0"),
        ("last exit code = 78: EX_CONFIG", "78: EX_CONFIG"),
        ("last exit code = (never exited)", None),
        ("last terminating signal = Segmentation fault: 11", "Segmentation fault: 11"),
        ("last exit reason = JETSAM_REASON_MEMORY_IDLE_EXIT", "JETSAM_REASON_MEMORY_IDLE_EXIT"),
        ("", None),
    ],
)
def test_launchd_job_reports_its_last_exit(line: str, meaning: str | None) -> None:
    """The last exit is a code, a signal, a reason of the system, or nothing yet."""
    job = Job.parse(f"gui/501/x = {{\n\tstate = spawn scheduled\n\truns = 4\n\t{line}\n}}\n")
    assert (job.state, job.pid, job.runs, job.last_exit) == ("spawn scheduled", None, 4, meaning)


def test_unknown_launchctl_output_is_reported_unknown() -> None:
    """Apple does not promise the format of `launchctl print`."""
    assert Job.parse("something new") == Job("unknown", None, 0, None, None, None)
