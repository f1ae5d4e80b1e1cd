import errno
import os
import platform
import re
import shutil
import stat
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlswarm_jax.tasks import TaskError, make_mixture, sandbox, seccomp
from tests.tasks.escapes import needs_sandbox

# --- refusing


@pytest.fixture
def anew():
    """Nothing is known yet of the machine, nor is what the test finds out remembered."""

    def forget():
        sandbox.probe.cache_clear()
        sandbox._machine.cache_clear()

    forget()
    yield
    forget()


def assert_refused(reason: str, marker: Path) -> None:
    """All that would run a program says why it does not, in one sentence, and does not."""
    assert not sandbox.probe().active
    assert re.search(reason, sandbox.probe().reason), sandbox.probe().reason
    assert str(sandbox.probe()).startswith("sandbox: refused (")
    with pytest.raises(sandbox.SandboxRefused, match=reason):
        sandbox.run(f"open({str(marker)!r}, 'w')")
    with pytest.raises(TaskError, match=reason) as refused:
        make_mixture({"mbpp": {"kind": "code", "path": "embedded:programs"}})
    assert "'mbpp' needs a sandbox" in str(refused.value)
    assert not marker.exists()


def fake_unshare(folder: Path, script: str, monkeypatch) -> None:
    fake = folder / "unshare"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: str(fake) if name == "unshare" else real(name))


linux = pytest.mark.skipif(sys.platform != "linux", reason="the reason would be another")


@linux
def test_refused_without_unshare(anew, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused("`unshare` is not installed", tmp_path / "marker")


@linux
def test_refused_where_namespaces_are_forbidden(anew, monkeypatch, tmp_path):
    fake_unshare(tmp_path, "echo unshare failed: Operation not permitted >&2; exit 1", monkeypatch)
    assert_refused("Operation not permitted", tmp_path / "marker")


def test_refused_on_another_system(anew, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert_refused("this is darwin", tmp_path / "marker")


@linux
def test_refused_on_a_processor_whose_system_calls_are_not_known(anew, monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert_refused("'riscv64' are not known", tmp_path / "marker")


@linux
def test_refused_where_unshare_does_nothing(anew, monkeypatch, tmp_path):
    """Above all, what builds the sandbox does not begin to mount in the namespaces of the machine."""
    mounts = Path("/proc/self/mounts").read_text()
    fake_unshare(tmp_path, 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"', monkeypatch)
    assert_refused("namespace is not a new one", tmp_path / "marker")
    assert Path("/proc/self/mounts").read_text() == mounts


@needs_sandbox
@pytest.mark.parametrize("left_out", ["mount", "pid", "net", "ipc", "uts"])
def test_refused_where_one_namespace_is_missing(anew, monkeypatch, tmp_path, left_out):
    monkeypatch.setattr(sandbox, "UNSHARE", tuple(o for o in sandbox.UNSHARE if o != f"--{left_out}"))
    assert_refused("namespace is not a new one", tmp_path / "marker")


@needs_sandbox
@pytest.mark.parametrize(("call", "number", "able"), [("clone", 56, "fork"), ("socket", 41, "open a socket")])
def test_refused_where_the_filter_does_not_hold(anew, monkeypatch, tmp_path, call, number, able):
    if platform.machine() != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    monkeypatch.setitem(seccomp.ALLOWED, call, (number, None))
    assert_refused(f"able .*to {able}", tmp_path / "marker")


@needs_sandbox
def test_refused_where_a_file_of_the_machine_can_be_read(anew, monkeypatch, tmp_path):
    unshare, plan = sandbox._machine()
    shown = {"at": "/tmp/shown", "is": str(tmp_path)}
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    seen = plan | {"visible": [*plan["visible"], shown | {"at": str(tmp_path)}]}
    monkeypatch.setattr(sandbox, "_machine", lambda: (unshare, seen))
    assert not sandbox.probe().active
    assert "to read a file of the machine" in sandbox.probe().reason
    sandbox.probe.cache_clear()
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("knob", "value", "named"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns is 1"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces is 0"),
        ("user/max_user_namespaces", "100", ""),
        ("kernel/ostype", "Linux", ""),
    ],
)
def test_the_reason_names_the_setting_that_forbids_it(tmp_path, knob, value, named):
    file = tmp_path / knob
    file.parent.mkdir(parents=True)
    file.write_text(f"{value}\n")
    assert sandbox._knobs(tmp_path).removeprefix("; ") == named


def test_the_command_line_says_in_one_line_what_there_is():
    done = subprocess.run([sys.executable, "-m", "rlswarm_jax.tasks.sandbox"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == f"{sandbox.probe()}\n"
    assert re.fullmatch(r"sandbox: (active|refused) \(.+\)\n", done.stdout)


def test_tasks_need_no_jax_to_be_imported():
    source = "import sys, rlswarm_jax.tasks.code\nassert not {'jax', 'reasoning_gym'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", source], check=True)


# --- running


@needs_sandbox
def test_what_a_program_reads_and_writes():
    outcome = sandbox.run("import sys\nprint(sys.stdin.read()[::-1])\nprint('é', file=sys.stderr)\nsys.exit(3)", b"abc")
    assert (outcome.ended, outcome.code) == ("itself", 3)
    assert (outcome.stdout, outcome.stderr) == (b"cba\n", "é\n".encode())
    assert outcome.seconds is not None and 0 < outcome.seconds < 5


@needs_sandbox
def test_large_input_and_output_arrive_whole():
    data = os.urandom(3_000_000)
    program = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())"
    assert sandbox.run(program, data, sandbox.Limits(output=len(data))).stdout == data


@needs_sandbox
def test_what_is_printed_before_the_time_is_over_is_kept():
    outcome = sandbox.run("import time\nprint('so far', flush=True)\ntime.sleep(600)", b"", sandbox.Limits(seconds=2.0))
    assert (outcome.ended, outcome.code, outcome.stdout) == ("time", None, b"so far\n")


@needs_sandbox
def test_the_standard_library_works():
    modules = "bisect bz2 collections ctypes dataclasses datetime decimal fractions functools hashlib heapq itertools "
    modules += "json lzma math operator random re statistics string typing zlib xml.etree.ElementTree"
    program = f"import {', '.join(modules.split())}\nprint(hashlib.sha256(zlib.compress(b'1')).digest_size, exit)"
    assert sandbox.run(program).stdout.startswith(b"32 ")


@needs_sandbox
def test_sets_have_one_order_in_all_runs():
    orders = {sandbox.run("print(list({'tide', 'moon', 'sand', 'salt', 'gull'}))").stdout for _ in range(4)}
    assert len(orders) == 1


@needs_sandbox
def test_programs_run_side_by_side_and_each_gets_its_own():
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda i: sandbox.run("print(input())", str(i).encode()).stdout, range(12)))
    assert outcomes == [f"{i}\n".encode() for i in range(12)]


@needs_sandbox
def test_no_file_and_no_child_is_left_with_the_caller():
    sandbox.run("pass")
    before = set(os.listdir("/proc/self/fd"))
    for program in ("pass", "while True: print('x' * 1000)", "import time; time.sleep(600)", "\ud800"):
        sandbox.run(program, b"", sandbox.Limits(seconds=0.2, output=1000))
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# --- the filter, by an interpreter of its instructions


def verdict(code: bytes, architecture: int, number: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    instructions = list(struct.iter_unpack("=HBBI", code))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, value = instructions[position]
        position += 1
        if operation == 0x20:
            accumulator = int.from_bytes(data[value : value + 4], "little")
        elif operation == 0x15:
            position += if_true if accumulator == value else if_false
        elif operation == 0x06:
            return value
        else:
            raise AssertionError(f"an instruction {operation:#x}")


ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE = 0x50000 | errno.EPERM


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_the_filter_allows_what_is_listed_and_nothing_else(machine, architecture):
    code = seccomp.make_filter(machine)
    column = ("x86_64", "aarch64").index(machine)
    listed = {numbers[column] for numbers in seccomp.ALLOWED.values()} - {None}
    special = {seccomp.IOCTL[column], seccomp.PRLIMIT[column]}
    for number in (*range(700), 0x40000000, 0x40000000 | 39, 2**32 - 1):
        if number not in special:
            assert verdict(code, architecture, number) == (ALLOW if number in listed else REFUSE), number
        assert verdict(code, 0x40000003, number) == KILL  # i386
    assert verdict(code, architecture, seccomp.IOCTL[column]) == 0x50000 | errno.ENOTTY
    assert verdict(code, architecture, seccomp.PRLIMIT[column], (0, 4, 0, 9, 0, 0)) == ALLOW
    for pointer in (1, 2**31, 2**32, 2**63):
        assert verdict(code, architecture, seccomp.PRLIMIT[column], (0, 4, pointer, 9, 0, 0)) == REFUSE


@pytest.mark.parametrize(
    ("header", "column", "prefix"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0, "__NR_"), ("/usr/include/asm-generic/unistd.h", 1, "__NR_")],
)
def test_the_numbers_are_those_of_the_kernel(header, column, prefix):
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    defined = {
        "newfstatat" if name == "fstatat" and column else name: int(number)
        for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", Path(header).read_text())
    }
    ours = {name: numbers[column] for name, numbers in seccomp.ALLOWED.items()}
    ours |= {"ioctl": seccomp.IOCTL[column], "prlimit64": seccomp.PRLIMIT[column]}
    assert {name: defined.get(name) for name in ours} == ours


def test_an_unknown_machine_has_no_filter():
    with pytest.raises(ValueError, match="'mips' are not known, expected x86_64 or aarch64"):
        seccomp.make_filter("mips")
