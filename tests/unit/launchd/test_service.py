"""The service under a launchd that refuses, dawdles or has others in it; with a daemon whose engine starts at once."""

from __future__ import annotations

import json
import os
import plistlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daemon import __version__
from daemon.cli.commands.service import _tell
from daemon.cli.exit_codes import INTERRUPTED
from daemon.cli.serving import look
from daemon.launchd.agent import DAEMON, JOIN, Agent, plist_path
from daemon.launchd.errors import AgentError, LaunchctlError, ServiceError
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.service import HOMEBREW_LABEL, Service
from mlx_sidecar import Client, ShuttingDown
from tests.support.daemons import END_SECONDS, alive, wait_until
from tests.unit.launchd.agents import agent_of
from tests.unit.launchd.mac import Mac

UID = os.getuid()


@pytest.fixture(name="service")
def _service(mac: Mac) -> Service:
    return Service(Launchctl(), mac.home, look)


def test_install_refuses_an_unwritable_log_directory(mac: Mac, service: Service) -> None:
    """Without this check, launchd would report only EX_CONFIG."""
    mac.logs.parent.mkdir(parents=True)
    mac.logs.write_text("not a directory")
    with pytest.raises(ServiceError, match=r"launchd\.log cannot be written \(.+\); it has to be in a directory"):
        service.install(agent_of(mac))
    assert not mac.calls()
    assert not mac.plist.exists()


def test_start_names_an_unwritable_log_directory(mac: Mac, service: Service) -> None:
    """launchd reports only EX_CONFIG; the service starts by itself once the directory is writable again."""
    service.install(agent_of(mac))
    mac.logs.rename(mac.logs.with_name("away"))
    mac.logs.write_text("in the way")
    with pytest.raises(ServiceError, match=r"last exit: 78: EX_CONFIG\); launchd could not start .+launchd\.log"):
        service.restart()
    mac.logs.unlink()
    mac.logs.with_name("away").rename(mac.logs)
    wait_until(lambda: service.status().ready, "launchd has tried again")


def test_unwritable_launch_agents_folder_is_reported(mac: Mac, service: Service) -> None:
    """The error is one sentence, and no job is loaded."""
    mac.plist.parent.parent.mkdir(parents=True)
    mac.plist.parent.write_text("in the way")
    with pytest.raises(AgentError, match=r"\.plist cannot be written \(.+\); make its directory writable"):
        service.install(agent_of(mac))
    assert not mac.calls()


def test_launchctl_refusal_is_shown_and_undone(mac: Mac, service: Service) -> None:
    """The plist is removed again, because launchd would retry it at each login."""
    mac.settings(fail={"bootstrap": [125, "Bootstrap failed: 125: Domain does not support specified action\n"]})
    with pytest.raises(LaunchctlError, match=r"status 125: Bootstrap failed: 125: Domain .+ \(there is no login"):
        service.install(agent_of(mac))
    assert not mac.plist.exists()


@pytest.mark.parametrize(
    ("status", "cure"),
    [
        (5, "run: mlx-sidecar service uninstall --join, then: mlx-sidecar service install --join"),
        (119, f"run: launchctl enable gui/{UID}/{JOIN.label}"),
        (125, "run: mlx-sidecar service install --join"),
        (134, "run: mlx-sidecar service install --join"),
    ],
)
def test_launchd_refusal_names_its_cure(mac: Mac, status: int, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the service that was refused: the other one may be well."""
    monkeypatch.setattr("daemon.launchd.launchctl._AGAIN_SECONDS", 0.0)
    mac.settings(fail={"bootstrap": [status, f"Bootstrap failed: {status}\n"]})
    with pytest.raises(LaunchctlError, match=re.escape(cure)):
        Launchctl().bootstrap(f"gui/{UID}", str(plist_path(mac.home, JOIN)))


def test_refused_upgrade_keeps_the_old_service_running(mac: Mac, service: Service) -> None:
    """The old plist is restored and loaded."""
    service.install(agent_of(mac))
    old = mac.plist.read_bytes()
    agent = agent_of(mac)(False)
    relative = Agent(("not/absolute",), agent.environment, agent.stderr)
    with pytest.raises(LaunchctlError, match="unsupported format"):
        service.install(lambda _: relative)
    assert mac.plist.read_bytes() == old
    wait_until(lambda: service.status().ready, "the old version serves again")


def test_install_restarts_the_service_for_new_code(mac: Mac, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """`uv tool upgrade` changes the code below the same paths, so the plist stays equal."""
    assert service.install(agent_of(mac))
    assert not service.install(agent_of(mac))
    pid = mac.job().pid
    monkeypatch.setattr("daemon.launchd.service.__version__", "9.9.9")
    assert service.install(agent_of(mac))
    assert mac.job().pid != pid
    serving = service.status().serving
    assert serving is not None
    assert serving[:3] == (mac.job().pid, __version__, True)


def test_install_restarts_service_of_older_files(mac: Mac, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `git pull` between releases: the files are newer than the process."""
    service.install(agent_of(mac))
    pid = mac.job().pid
    monkeypatch.setattr("daemon.launchd.service.installed_at", time.time)
    assert service.install(agent_of(mac))
    assert mac.job().pid != pid


def test_service_without_gui_login_uses_user_domain(mac: Mac, service: Service) -> None:
    """The job is a background job in the user's domain; other commands find it there."""
    mac.settings(gui=False)
    assert service.install(agent_of(mac))
    assert plistlib.loads(mac.plist.read_bytes())["LimitLoadToSessionType"] == "Background"
    assert (service.status().domain, service.status().ready) == (f"user/{UID}", True)
    mac.settings(gui=True)
    assert service.install(agent_of(mac)), "somebody has logged in: it moves over"
    assert service.status().domain == f"gui/{UID}"
    assert service.uninstall()


def test_restart_kills_a_daemon_that_hangs(mac: Mac, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process heeds no SIGTERM, and a process that hangs may not. `stop` kills it too, after as long."""
    service.install(agent_of(mac))
    pid = mac.job().pid
    assert pid is not None
    monkeypatch.setattr("daemon.launchd.service.EXIT_SECONDS", 0.3)
    os.kill(pid, signal.SIGSTOP)
    service.restart()
    assert not alive(pid)
    assert service.status().ready
    assert ["kill", "SIGKILL", mac.target] in mac.calls()


@pytest.mark.parametrize("command", ["stop", "uninstall"])
def test_service_stop_takes_no_wait_option(mac: Mac, command: str) -> None:
    """They wait for an end, as long as launchd does."""
    assert "No such option '--wait'" in mac.service(command, "--wait", "5", status=2)


def test_service_commands_can_be_repeated(mac: Mac, service: Service) -> None:
    """An operation that has nothing to do is no error, and the process stays the same."""
    assert "The service was not running" in mac.service("stop")
    assert service.install(agent_of(mac))
    pid = mac.job().pid
    assert not service.install(agent_of(mac))
    assert "Running already" in mac.service("start")
    assert mac.job().pid == pid
    assert service.stop()
    assert not service.stop()
    assert service.start()
    assert service.uninstall()
    assert not service.uninstall()
    assert "The service was not installed" in mac.service("uninstall")


def test_service_stop_drains_streams(mac: Mac, service: Service) -> None:
    """launchd asks with SIGTERM and waits; what is still running when the drain is over is told why."""
    service.install(agent_of(mac, MLX_SIDECAR_DRAIN_TIMEOUT="0.5"))
    with Client(mac.socket) as client, client.generate("hold", "a b") as stream:
        text = stream.text()
        assert next(text) == "a "
        assert service.stop()
        with pytest.raises(ShuttingDown):
            next(text)
    lines = [json.loads(line) for line in (mac.logs / "daemon.log").read_text().splitlines()]
    assert [line["event"] for line in lines if line["event"] in ("draining", "stopped")] == ["draining", "stopped"]
    assert lines[-1]["status"] == 0


def test_service_logs_follow_after_the_last_lines(mac: Mac, service: Service) -> None:
    """Each line is printed once, as soon as it is written."""
    service.install(agent_of(mac))
    command = [sys.executable, "-m", "daemon", "service", "logs", "-f", "-n", "1"]
    with subprocess.Popen(command, env=mac.environ, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        seen = [json.loads(follower.stdout.readline())["event"]]
        service.stop()
        while seen[-1] != "stopped":
            seen.append(json.loads(follower.stdout.readline())["event"])
        follower.send_signal(signal.SIGINT)
        assert follower.wait(END_SECONDS) == INTERRUPTED
    lines = [json.loads(line)["event"] for line in (mac.logs / "daemon.log").read_text().splitlines()]
    assert seen == lines[-len(seen) :]


def test_missing_service_logs_and_sudo_are_reported(mac: Mac) -> None:
    """Missing logs and sudo give an error of one sentence, not a traceback."""
    assert f"there is no log at {mac.logs / 'daemon.log'} yet" in mac.service("logs", status=1)
    assert f"there is no log at {mac.logs / 'launchd.log'} yet" in mac.service("logs", "--stderr", status=1)
    assert "as ada, run it without sudo" in mac.service("install", status=1, SUDO_USER="ada")
    assert not mac.calls()


def test_service_waits_for_a_bootout_in_progress(mac: Mac, service: Service) -> None:
    """launchd answers 36 while it ends a job; a bootstrap right after it would fail."""
    service.install(agent_of(mac))
    pid = mac.job().pid
    mac.settings(lazy_bootout=True)
    assert service.install(agent_of(mac, MLX_SIDECAR_MAX_QUEUE="3"))
    assert pid is not None
    assert not alive(pid)
    assert service.uninstall()


def test_install_loads_again_while_launchd_forgets_the_old_job(mac: Mac, service: Service) -> None:
    """After a bootout, launchd refuses a bootstrap with 5 or 37 for a moment, though it shows no job any more."""
    service.install(agent_of(mac))
    mac.settings(refused_bootstraps=2)
    assert service.install(agent_of(mac, MLX_SIDECAR_MAX_QUEUE="3"))
    assert service.status().ready
    assert len([call for call in mac.calls() if call[0] == "bootstrap"]) == 4


def test_install_enables_a_disabled_service(mac: Mac, service: Service) -> None:
    """`launchctl disable` outlives the plist, and a bootstrap would fail with a bare I/O error."""
    mac.launchctl("disable", mac.target)
    assert service.install(agent_of(mac))


def test_install_refuses_a_socket_of_another_daemon(mac: Mac, service: Service) -> None:
    """The daemon on the socket was started in a shell."""
    environ = {**mac.environ, **agent_of(mac)(False).environment}
    with subprocess.Popen([sys.executable, "-m", "tests.support.serve_fake"], env=environ) as other:
        wait_until(mac.socket.exists, "it listens")
        with pytest.raises(
            ServiceError, match=rf"another daemon \(pid {other.pid}\) serves {mac.socket}; end it first"
        ):
            service.install(agent_of(mac))
        assert not mac.plist.exists()
        shown = mac.service("status", status=3)
        assert f"another daemon (pid {other.pid}) has the socket" in shown
        assert other.poll() is None
        other.terminate()


def test_install_refuses_beside_homebrews_service(mac: Mac, service: Service) -> None:
    """Two services would compete for the socket."""
    plist = mac.folder / "brew.plist"
    tree = agent_of(mac)(False).properties() | {"Label": HOMEBREW_LABEL, "ProgramArguments": ["/bin/sleep", "1000"]}
    tree |= {"StandardOutPath": "/dev/null", "StandardErrorPath": "/dev/null"}
    plist.write_bytes(plistlib.dumps(tree))
    mac.launchctl("bootstrap", f"gui/{UID}", str(plist))
    with pytest.raises(ServiceError, match="brew services stop mlx-sidecar"):
        service.install(agent_of(mac))
    assert service.status().homebrew
    assert "Homebrew has a service of its own" in mac.service("status", status=3)
    assert mac.launchctl("bootout", f"gui/{UID}/{HOMEBREW_LABEL}").returncode == 0


def test_install_gives_up_if_the_daemon_never_serves(mac: Mac) -> None:
    """The daemon runs but never answers. Nothing is undone, because it can still come up."""
    impatient = Service(Launchctl(), mac.home, lambda socket: None, wait=0.0)
    with pytest.raises(ServiceError, match="does not serve after 0 s; see: mlx-sidecar service logs"):
        impatient.install(agent_of(mac))
    assert mac.job().pid is not None


def test_service_refuses_a_plist_of_another_program(mac: Mac, service: Service) -> None:
    """`start` does not overwrite a foreign plist either."""
    mac.plist.parent.mkdir(parents=True)
    mac.plist.write_text("something else")
    with pytest.raises(AgentError, match="is not a plist of this program"):
        service.start()
    assert mac.plist.read_text() == "something else"


def test_service_without_launchctl_names_alternatives(
    mac: Mac, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Linux, the error names the systemd unit and `serve`."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(LaunchctlError, match="the service is for macOS"):
        service.status()


def test_launchctl_calls_are_few_and_known(mac: Mac, service: Service) -> None:
    """docs/mac-checklist.md has a line for each subcommand of launchctl that is used."""
    service.install(agent_of(mac))
    service.restart()
    service.uninstall()
    domain = f"gui/{UID}"
    assert mac.calls() == [
        ["enable", f"{domain}/{DAEMON.label}"],
        ["bootstrap", domain, str(mac.plist)],
        ["kill", "SIGTERM", f"{domain}/{DAEMON.label}"],
        ["kickstart", "-k", f"{domain}/{DAEMON.label}"],
        ["bootout", f"{domain}/{DAEMON.label}"],
    ]


def test_plist_that_is_no_file_is_named(mac: Mac) -> None:
    """By each command that would replace or remove it, in a sentence."""
    mac.plist.mkdir(parents=True)
    for command in ("install", "uninstall", "status"):
        assert f"mlx-sidecar: {mac.plist} " in mac.service(command, status=1)
    assert mac.plist.is_dir()


def test_log_reader_that_goes_away_is_no_fault_of_the_log(mac: Mac) -> None:
    """As `head` does once it has enough."""
    mac.logs.mkdir(parents=True)
    (mac.logs / "daemon.log").write_text("a line\n")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        command = [sys.executable, "-m", "daemon", "service", "logs"]
        done = subprocess.run(command, env=mac.environ, stdout=output, stderr=subprocess.PIPE, timeout=END_SECONDS)
    assert (done.returncode, done.stderr) == (1, b"")


def test_path_that_no_socket_can_have_is_no_daemon() -> None:
    """A service with such a setting can be inspected all the same."""
    assert look(Path("/" + 300 * "a")) is None


def test_command_of_a_busy_service_says_so(mac: Mac, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon that is asked twice may be too busy the second time. Silence would not tell what was done."""
    _tell(Service(Launchctl(), mac.home, lambda _: None), "Restarted", as_json=False)
    assert capsys.readouterr().out.startswith("Restarted; it did not answer")
