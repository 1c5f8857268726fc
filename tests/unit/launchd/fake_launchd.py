"""
A launchd for tests, as a program named `launchctl`: it takes what launchctl's manual allows, refuses what launchd
refuses, with the same statuses and words, and really runs the jobs.

State is in the directory that FAKE_LAUNCHD names: a socket for each loaded job, behind which a process of this file
keeps the job alive; `calls`, the arguments of every call; `disabled`; and `settings.json`, by which a test changes
launchd's behaviour:

* `gui` (default true): whether somebody is logged in at the screen.
* `throttle` (default 0.2): seconds between two starts of a job that fails; launchd's own are 10.
* `fail`: {subcommand: [status, text]}: what such a call answers.
* `lazy_bootout`: whether `bootout` answers 36 and ends the job afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import plistlib
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

KEYS: dict[str, type | tuple[type, ...]] = {
    "Label": str,
    "ProgramArguments": list,
    "EnvironmentVariables": dict,
    "RunAtLoad": bool,
    "KeepAlive": (bool, dict),
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "SoftResourceLimits": dict,
    "Umask": int,
    "StandardOutPath": str,
    "StandardErrorPath": str,
    "LimitLoadToSessionType": str,
}
"""Keys of launchd.plist(5) that this one knows, with their types."""

SESSIONS = {"gui": "Aqua", "user": "Background"}
USAGE, NOT_RUNNING, NO_SERVICE, NO_DOMAIN = 64, 3, 113, 125
SHORT_EXIT_TIMEOUT, LONGEST_EXIT_TIMEOUT = 5, 60
IO_ERROR = "Bootstrap failed: 5: Input/output error\n"
POLL_SECONDS = 0.01


class Launchd:
    """What `launchctl` asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "settings.json"
        self.settings: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def call(self, arguments: list[str]) -> NoReturn:
        with (self.folder / "calls").open("a") as calls:
            calls.write(json.dumps(arguments) + "\n")
        name, *rest = arguments or [""]
        if name in self.settings.get("fail", {}):
            status, text = self.settings["fail"][name]
            answer(status, text)
        match name, rest:
            case "print", [target] if self._is_domain(target):
                self._check_domain(target, "Could not print domain")
                answer(0, f"{target} = {{\n}}\n")
            case "print", [target]:
                answer(0, self._ask(target, "Bad request.\n", print=True)["text"])
            case "bootstrap", [domain, plist] if self._is_domain(domain):
                self._bootstrap(domain, Path(plist))
            case "bootout", [target] if not self._is_domain(target):
                self._ask(target, "", bootout=bool(self.settings.get("lazy_bootout")))
                lazy = "Boot-out failed: 36: Operation now in progress\n"
                answer(36, lazy) if self.settings.get("lazy_bootout") else answer(0, "")
            case "kickstart", ["-k", target]:
                answer(0, self._ask(target, "", kickstart=True).get("text", ""))
            case "kill", [number, target] if number in signal.Signals.__members__:
                status = self._ask(target, "", kill=number)["status"]
                answer(status, "No process to signal.\n" if status else "")
            case (("enable" | "disable"), [target]):
                self._switch(target, disabled=name == "disable")
        answer(USAGE, f"Unrecognized or malformed: launchctl {' '.join(arguments)}\n")

    def _is_domain(self, target: str) -> bool:
        return re.fullmatch(rf"(gui|user)/{os.getuid()}", target) is not None

    def _check_domain(self, domain: str, what: str) -> None:
        if domain.startswith("gui") and not self.settings.get("gui", True):
            answer(NO_DOMAIN, f"{what}: 125: Domain does not support specified action\n")

    def _socket(self, domain: str, label: str) -> Path:
        return self.folder / f"{domain.partition('/')[0]}-{label}"

    def _ask(self, target: str, prefix: str, **request: object) -> dict[str, Any]:
        domain, _, label = target.rpartition("/")
        if not self._is_domain(domain) or not label:
            answer(USAGE, f"Unrecognized target specifier: {target}\n")
        try:
            return ask(self._socket(domain, label), request)
        except OSError:
            if "bootout" in request:
                answer(NOT_RUNNING, "Boot-out failed: 3: No such process\n")
            words = f'{prefix}Could not find service "{label}" in domain for user {domain.replace("/", ": ")}\n'
            answer(NO_SERVICE, words)

    def _bootstrap(self, domain: str, plist: Path) -> NoReturn:
        self._check_domain(domain, "Bootstrap failed")
        if refused := self.settings.get("refused_bootstraps", 0):
            self.settings["refused_bootstraps"] = refused - 1
            (self.folder / "settings.json").write_text(json.dumps(self.settings))
            answer(37, "Bootstrap failed: 37: Operation already in progress\n") if refused % 2 else answer(5, IO_ERROR)
        if plist.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            answer(122, "Bootstrap failed: 122: Path had bad ownership/permissions\n")
        job = plistlib.loads(plist.read_bytes())
        check(job)
        place = self._socket(domain, job["Label"])
        if job.get("LimitLoadToSessionType", "Aqua") != SESSIONS[domain.partition("/")[0]]:
            answer(134, "Bootstrap failed: 134: Service cannot load in requested session\n")
        if place.exists() or f"{domain}/{job['Label']}" in self._disabled():
            answer(5, IO_ERROR)
        command = [sys.executable, "-IS", __file__, "keep", str(place), domain, str(plist)]
        throttle = str(self.settings.get("throttle", 0.2))
        with (self.folder / "keeper.log").open("ab") as log:
            subprocess.Popen(
                [*command, throttle], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        while not place.exists():
            time.sleep(POLL_SECONDS)
        answer(0, "")

    def _disabled(self) -> set[str]:
        file = self.folder / "disabled"
        return set(file.read_text().split()) if file.exists() else set()

    def _switch(self, target: str, *, disabled: bool) -> NoReturn:
        domain, _, _ = target.rpartition("/")
        if not self._is_domain(domain):
            answer(USAGE, f"Unrecognized target specifier: {target}\n")
        now = self._disabled() | {target} if disabled else self._disabled() - {target}
        (self.folder / "disabled").write_text("\n".join(now))
        answer(0, "")


def check(job: dict[str, Any]) -> None:
    """Refuse a plist with an unknown key, a wrong type or a relative path, as no launchd does so clearly."""
    wrong = [key for key, value in job.items() if key not in KEYS or not isinstance(value, KEYS[key])]
    wrong += [key for key in ("StandardOutPath", "StandardErrorPath") if not job.get(key, "/").startswith("/")]
    strings = [*job["ProgramArguments"], *job.get("EnvironmentVariables", {}).values()]
    if wrong or not all(isinstance(one, str) for one in strings) or not job["ProgramArguments"][0].startswith("/"):
        answer(109, f"Bootstrap failed: 109: Service information has unsupported format: {wrong}\n")


def ask(place: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request to the keeper of a job and return its answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place))
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile() as reply:
            line = reply.readline()
    if not line:
        raise ConnectionResetError
    return dict(json.loads(line))


def answer(status: int, text: str) -> NoReturn:
    """Answer as launchctl does."""
    (sys.stderr if status else sys.stdout).write(text)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Keeper:
    """Keeps one job as its plist says, and answers for it, until it is booted out or its directory is gone."""

    def __init__(self, place: Path, domain: str, plist: Path, throttle: float) -> None:
        self.place, self.domain, self.plist, self.throttle = place, domain, plist, throttle
        self.job: dict[str, Any] = plistlib.loads(plist.read_bytes())
        self.process: subprocess.Popen[bytes] | None = None
        self.runs = 0
        self.last_exit = "last exit code = (never exited)"
        self.next_start: float | None = time.monotonic() if self.job.get("RunAtLoad") else None
        self.over = False

    def keep(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        hidden = self.place.with_name(self.place.name + ".new")
        listener.bind(str(hidden))
        listener.listen()
        listener.settimeout(POLL_SECONDS)
        hidden.rename(self.place)
        while not self.over and self.place.exists():
            self.look_after()
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection, connection.makefile() as asked:
                    reply = self.handle(json.loads(asked.readline()))
                    connection.sendall(json.dumps(reply).encode() + b"\n")
        self.end()
        self.place.unlink(missing_ok=True)

    def look_after(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            self.ended(self.process.returncode)
        if self.next_start is not None and time.monotonic() >= self.next_start:
            self.start()

    def start(self) -> None:
        self.next_start = None
        self.runs += 1
        began = time.monotonic()
        try:
            output = os.open(self.job["StandardErrorPath"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError:
            self.failed("last exit code = 78: EX_CONFIG", began)
            return
        environment = {
            "HOME": os.environ["HOME"],
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "XPC_SERVICE_NAME": self.job["Label"],
            **self.job.get("EnvironmentVariables", {}),
        }
        try:
            self.process = subprocess.Popen(
                self.job["ProgramArguments"],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                umask=self.job.get("Umask", 0o022),
                start_new_session=True,
                preexec_fn=self.limit,
            )
        except OSError:
            self.failed("last exit code = 78: EX_CONFIG", began)
        finally:
            os.close(output)
        self.began = began

    def limit(self) -> None:
        files = self.job.get("SoftResourceLimits", {}).get("NumberOfFiles", 256)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))

    def ended(self, status: int) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # AbandonProcessGroup is not set
        self.process = None
        if status < 0:
            words = str(signal.strsignal(-status)).partition(":")[0]  # macOS adds the number itself
            self.failed(f"last terminating signal = {words}: {-status}", self.began)
        elif status:
            self.failed(f"last exit code = {status}", self.began)
        else:
            self.last_exit = "last exit code = 0"
            if self.job.get("KeepAlive") is True:
                self.next_start = self.began + self.throttle

    def failed(self, how: str, began: float) -> None:
        self.last_exit = how
        if self.job.get("KeepAlive") in (True, {"SuccessfulExit": False}):
            self.next_start = began + self.throttle

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        if "print" in request:
            return {"text": self.text()}
        if "kill" in request:
            if self.process is None:
                return {"status": NOT_RUNNING}
            self.process.send_signal(signal.Signals[request["kill"]])
            return {"status": 0}
        if "kickstart" in request:
            if self.process is not None:
                self.process.kill()
                self.ended(self.process.wait())
            self.start()
            return {}
        self.over = True
        if not request["bootout"]:
            self.end()
            self.place.unlink(missing_ok=True)
        return {}

    def end(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.ended(self.process.wait(self.exit_timeout))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.ended(self.process.wait())

    @property
    def exit_timeout(self) -> int:
        return min(int(self.job.get("ExitTimeOut", SHORT_EXIT_TIMEOUT)), LONGEST_EXIT_TIMEOUT)

    def text(self) -> str:
        state = "running" if self.process else "spawn scheduled" if self.next_start is not None else "not running"
        arguments = "".join(f"\t\t{one}\n" for one in self.job["ProgramArguments"])
        environment = "".join(f"\t\t{k} => {v}\n" for k, v in self.job.get("EnvironmentVariables", {}).items())
        pid = f"\tpid = {self.process.pid}\n\timmediate reason = speculative\n" if self.process else ""
        return (
            f"{self.domain}/{self.job['Label']} = {{\n\tactive count = {int(bool(self.process))}\n"
            f"\tpath = {self.plist}\n\ttype = LaunchAgent\n\tstate = {state}\n\n"
            f"\tprogram = {self.job['ProgramArguments'][0]}\n\targuments = {{\n{arguments}\t}}\n\n"
            f"\tstdout path = {self.job['StandardOutPath']}\n\tstderr path = {self.job['StandardErrorPath']}\n"
            f"\tenvironment = {{\n{environment}\t}}\n\n\tdomain = {self.domain} [100005]\n\tasid = 100005\n"
            f"\tumask = {self.job.get('Umask', 0o022):o}\n\tminimum runtime = 10\n"
            f"\texit timeout = {self.exit_timeout}\n\truns = {self.runs}\n{pid}\t{self.last_exit}\n\n"
            f"\tresource coalition = {{\n\t\tID = 18110\n\t\tstate = active\n\t}}\n\n"
            "\tproperties = runatload | inferred program\n}\n"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        Keeper(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), float(sys.argv[5])).keep()
    else:
        Launchd(Path(os.environ["FAKE_LAUNCHD"])).call(sys.argv[1:])
