"""Runs one Python program that nobody trusts, on Linux, where it can do no harm: docs/sandbox.md says what that means.

    python -m rlswarm_jax.tasks.sandbox        what this machine offers

Namespaces by util-linux's `unshare`, a root of its own with next to nothing in it (jail.py), no capabilities, a list of
allowed system calls (seccomp.py), resource limits. There is no half of it: where one is missing, nothing is run.
"""

import contextlib
import dataclasses
import functools
import marshal
import os
import platform
import re
import selectors
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from rlswarm_jax.tasks import seccomp
from rlswarm_jax.tasks.base import TaskError

VERSION = 1  # changes when what a program can see or do does
JAIL = Path(__file__).with_name("jail.py")
MECHANISM = "unshare + seccomp"
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts")
UNSHARE = ("--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child")
PYTHON = ("-s", "-P", "-B")  # isolated but for the environment, which is ours
ENVIRONMENT = {"HOME": "/tmp", "LC_CTYPE": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0"}  # sets ordered alike
START_SECONDS = 20.0  # to start and to end, on a machine that is busy with other things
STACK = 64 * 2**20  # bytes: deep recursion is no crime
# Modules of the standard library that need a shared library besides what the interpreter needs.
LINKED = ("_bz2", "_ctypes", "_decimal", "_elementtree", "_hashlib", "_lzma", "pyexpat", "zlib")
KNOBS = {  # kernel settings that forbid what is needed, by the value that does
    "kernel/apparmor_restrict_unprivileged_userns": "1",
    "kernel/unprivileged_userns_clone": "0",
    "user/max_user_namespaces": "0",
}


class SandboxRefused(TaskError):
    """There is no sandbox on this machine; the message says why."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """seconds: by the clock, from the program's start. cpu_seconds: of the processor, whole ones.

    memory: bytes of address space. disk: bytes in /tmp, which is memory too. files: how many in /tmp. open_files: at a
    time. output: bytes of both streams together.
    """

    seconds: float = 5.0
    cpu_seconds: int = 5
    memory: int = 512 * 2**20
    disk: int = 16 * 2**20
    files: int = 256
    open_files: int = 64
    output: int = 2**20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """ended: by "itself" (a signal included), or stopped for its "time" by the clock or its "output".

    code: what it exited with, negative for a signal, None if it was stopped. seconds: by the clock, None if unknown.
    """

    ended: Literal["itself", "time", "output"]
    code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Probe:
    """active: whether programs can be run here. reason: by what, or why not."""

    active: bool
    reason: str

    def __str__(self) -> str:
        return f"sandbox: {'active' if self.active else 'refused'} ({self.reason})"


def run(program: str, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
    """Runs a program and returns when nothing of it is left. Several threads may call it at a time.

    Raises SandboxRefused if this machine cannot contain a program, before any is run.
    """
    require()
    return _run(program, stdin, limits or Limits())


def require() -> None:
    """Raises SandboxRefused if this machine cannot contain a program."""
    found = probe()
    if not found.active:
        raise SandboxRefused(f"programs cannot be run safely on this machine, so none are run: {found.reason}.")


@functools.cache
def probe() -> Probe:
    """Whether this machine can contain a program. It is tried, once in a process."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder, "canary")
        canary.write_text("to be read outside alone")
        try:
            outcome = _run(_CHECKS, str(canary).encode(), Limits(seconds=START_SECONDS))
        except SandboxRefused as refused:
            return Probe(False, str(refused))
    if outcome.stdout != b"contained\n":
        said = (outcome.stdout or outcome.stderr).decode(errors="replace").split("\n")
        return Probe(False, f"a program that should be contained was able {', '.join(filter(None, said))[-200:]}")
    return Probe(True, f"{MECHANISM}, {platform.machine()}, Linux {platform.release()}")


# The promises, tried from within. Prints what should not have been possible, else "contained".
_CHECKS = """
import _thread, ctypes, os, socket, sys
canary = sys.stdin.read()
def possible(what, act):
    try:
        act()
    except (OSError, RuntimeError):
        return False
    print("to " + what)
    return True
found = [
    possible("fork", os.fork),
    possible("start a thread", lambda: _thread.start_new_thread(print, ())),
    possible("open a socket", socket.socket),
    possible("read a file of the machine", lambda: open(canary)),
    possible("see processes", lambda: os.listdir("/proc")),
    possible("write outside /tmp", lambda: open("/outside", "w")),
    possible("write to the library", lambda: open(os.__file__, "a")),
    possible("signal its parent", lambda: os.kill(os.getppid(), 0)),
    possible("use files that it did not open", lambda: os.fstat(3)),
    ctypes.CDLL(None).unshare(0x10000000) == 0 and print("to make namespaces") is None,
]
open("/tmp/inside", "w").close()
if not any(found):
    print("contained")
os._exit(not sys.stdout.flush())
"""


def _run(program: str, stdin: bytes, limits: Limits) -> Outcome:
    unshare, plan = _machine()
    source = program.encode(errors="surrogatepass")  # then it is no Python, which Python will say
    message = marshal.dumps({**plan, **_limits(limits), "program": source, "stdin": stdin})
    status_out, status_in = os.pipe()
    command = [unshare, *UNSHARE, plan["command"][0], "-I", "-S", "-B", str(JAIL), str(status_in)]
    pipe = subprocess.PIPE
    with open(status_out, "rb", buffering=0) as status:
        try:
            process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                pass_fds=[status_in],
                env={},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxRefused(f"{unshare} cannot be run: {error}") from error
        finally:
            os.close(status_in)
        assert process.stdin and process.stdout and process.stderr  # for mypy
        streams = {stream.fileno(): bytearray() for stream in (process.stdout, process.stderr, status)}
        try:
            with contextlib.suppress(BrokenPipeError):  # then the status says why
                _write_all(process.stdin.fileno(), b"%d\n" % len(message) + message)
            ended = _follow(streams, status.fileno(), limits)
        finally:
            _end(process)
        stdout, stderr, words = (bytes(content) for content in streams.values())
    if ended == "itself":
        return _outcome(words.decode(errors="replace"), stdout, stderr)
    return Outcome(ended, None, stdout, stderr, None)


def _write_all(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def _follow(streams: dict[int, bytearray], status: int, limits: Limits) -> Literal["itself", "time", "output"]:
    """Reads until all of them end, which `unshare` sees to when nothing is left, or there is no more to wait for."""
    deadline = time.monotonic() + START_SECONDS + limits.seconds
    with selectors.DefaultSelector() as selector:
        for fd in streams:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready or time.monotonic() > deadline:
                return "time"
            for key, _ in ready:
                chunk = os.read(key.fd, 65_536)
                streams[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
            if sum(len(content) for fd, content in streams.items() if fd != status) > limits.output:
                return "output"
    return "itself"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leaves nothing alive: process 1 of the sandbox ends when its input does, and the kernel ends the rest."""
    assert process.stdin and process.stdout and process.stderr
    process.stdin.close()
    try:
        process.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # and with it process 1, by --kill-child
        process.wait()
    process.stdout.close()
    process.stderr.close()


def _outcome(words: str, stdout: bytes, stderr: bytes) -> Outcome:
    """Of what process 1 said last."""
    kind, _, rest = words.strip().partition(" ")
    if kind not in ("exited", "overtime"):
        reason = rest if kind == "failed" else stderr.decode(errors="replace").strip()[-300:] or "it ended at once"
        raise SandboxRefused(f"the sandbox could not be made ({reason}){_knobs()}")
    code, seconds = rest.split()
    if kind == "overtime":
        return Outcome("time", None, stdout, stderr, float(seconds))
    return Outcome("itself", int(code), stdout, stderr, float(seconds))


def _knobs(root: Path = Path("/proc/sys")) -> str:
    """The kernel settings that may be why."""
    found = []
    for knob, forbids in KNOBS.items():
        with contextlib.suppress(OSError):
            if (root / knob).read_text().strip() == forbids:
                found.append(f"{knob.replace('/', '.')} is {forbids}")
    return f"; {' and '.join(found)}" if found else ""


@functools.cache
def _machine() -> tuple[str, dict[str, Any]]:
    """Where `unshare` is, and what process 1 must know of this machine. Raises SandboxRefused."""
    if sys.platform != "linux":
        raise SandboxRefused(f"it takes Linux namespaces, and this is {sys.platform}")
    unshare = shutil.which("unshare")
    if unshare is None:
        raise SandboxRefused("util-linux's `unshare` is not installed")
    try:
        filter_ = seccomp.make_filter()
        outside = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    except (ValueError, OSError) as error:
        raise SandboxRefused(str(error)) from None
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    libraries = _standard_library()
    visible = {path: path for path in (python, *libraries, *map(os.path.realpath, libraries))}
    visible |= _shared_libraries(python)
    site_packages = [os.path.join(library, "site-packages") for library in libraries]
    plan = {
        "outside": outside,
        "visible": [{"at": at, "is": os.path.realpath(path)} for at, path in visible.items()],
        "hidden": [path for path in site_packages if os.path.isdir(path)],
        "command": [python, *PYTHON, "/program.py"],
        "environment": ENVIRONMENT,
        "filter": filter_,
    }
    return unshare, plan


def _standard_library() -> list[str]:
    base = {name: sys.base_prefix for name in ("base", "installed_base")}
    base |= {name: sys.base_exec_prefix for name in ("platbase", "installed_platbase")}
    return sorted({sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")})


def _shared_libraries(python: str) -> dict[str, str]:
    """Where the loader finds what the interpreter and its modules need, the loader included. Raises SandboxRefused."""
    folder = Path(sysconfig.get_config_var("DESTSHARED") or os.devnull)
    modules = [str(path) for name in LINKED for path in folder.glob(f"{name}.*.so")]
    try:
        listing = subprocess.run(["ldd", python, *modules], capture_output=True, text=True, env={"LC_ALL": "C"}).stdout
    except OSError as error:
        raise SandboxRefused(f"ldd, which lists what the interpreter needs, cannot be run: {error}") from None
    found = re.findall(r"^\t(?:.* => )?(/.*) \(0x[0-9a-f]+\)$", listing, re.MULTILINE)
    cache = ["/etc/ld.so.cache"] if os.path.exists("/etc/ld.so.cache") else []
    return {os.path.normpath(path): path for path in found + cache}


def _limits(limits: Limits) -> dict[str, Any]:
    return {
        "seconds": limits.seconds,
        "disk": limits.disk,
        "files": limits.files,
        "limits": {
            "RLIMIT_AS": limits.memory,
            "RLIMIT_CPU": limits.cpu_seconds,
            "RLIMIT_FSIZE": limits.disk,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_STACK": STACK,
            "RLIMIT_CORE": 1,  # 0 would still start the machine's crash reporter, if it has one; 1 never does
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_SIGPENDING": 64,
        },
    }


if __name__ == "__main__":
    print(probe())
