"""Programs that try to get out. What they did is looked up from outside; where it is harmless, the same program does
it without a sandbox, so that a test whose attack has ceased to work would fail."""

import os
import platform
import signal
import socket
import subprocess
import sys
import textwrap

import psutil
import pytest

from rlswarm_jax.tasks import sandbox
from tests.tasks.escapes import (
    namespaces_of,
    needs_sandbox,
    running,
    said,
    said_outside,
    status_of,
    wait_for_program,
    wait_until_gone,
)

pytestmark = needs_sandbox

TRY = """
import contextlib, ctypes, os, sys
def attempt(act):
    try:
        return act()
    except BaseException as error:
        return f"{type(error).__name__}"
"""


# --- reading


READ = TRY + textwrap.dedent("""
    path = PATH
    ways = [path, "/proc/1/root" + path, "/proc/self/root" + path, "/proc/%d/root" % os.getppid() + path]
    for way in (*ways, "../" * 40 + path[1:], "/old" + path):
        print(attempt(lambda: open(way).read()))
    attempt(lambda: os.symlink(path, "link"))
    print(attempt(lambda: open("link").read()))
    attempt(lambda: os.link(path, "hard"))
    print(attempt(lambda: open("hard").read()))
    for fd in range(3, 100):
        attempt(lambda: print(os.pread(fd, 1000, 0)))
        attempt(lambda: print(open(f"/proc/self/fd/{fd}").read()))
        attempt(lambda: print(open(os.open(path[1:], os.O_RDONLY, dir_fd=fd)).read()))
""")


def test_the_key_of_the_node_is_not_there_to_be_read(tmp_path):
    key = tmp_path / "node.key"
    key.write_text("very private")
    program = READ.replace("PATH", repr(str(key)))
    assert said_outside(program, tmp_path).count("very private") >= 6
    assert said(program).split() == ["FileNotFoundError"] * 8


def test_nothing_of_the_machine_is_there_but_the_interpreter():
    found = said(
        "import os\nfor d, _, files in os.walk('/'):\n    print(*(os.path.join(d, f) for f in files), sep='\\n')"
    )
    library = os.path.realpath(os.path.dirname(os.__file__))
    others = [path for path in found.split() if not path.startswith((library, os.path.dirname(os.__file__)))]
    names = {os.path.basename(path) for path in others}
    allowed = ("ld-", "lib", "ld.so.cache", "python", "program.py", "stdin")
    assert {"program.py", "stdin"} <= names
    assert [path for path in others if not os.path.basename(path).startswith(allowed)] == []
    assert not any("site-packages/" in path for path in found.split())


def test_the_environment_and_the_arguments_of_the_parent_are_not_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_SECRET", "token-4711")
    program = TRY + "print(dict(os.environ), sys.argv, sys.orig_argv)\nfor pid in (1, os.getppid(), 'self'):\n"
    program += "    for name in ('environ', 'cmdline', 'maps'):\n"
    program += "        print(attempt(lambda: open(f'/proc/{pid}/{name}').read()))\n"
    program += "print(attempt(lambda: os.listdir('/proc')), os.uname().nodename)"
    assert "token-4711" in said_outside(program, tmp_path)
    answer = said(program)
    assert "token-4711" not in answer and str(sandbox.JAIL) not in answer
    assert answer.splitlines()[-1] == "FileNotFoundError sandbox"
    assert answer.count("FileNotFoundError") == 10


def test_no_file_is_inherited(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("inherited words")
    program = TRY + "for fd in range(3, 256):\n    print(attempt(lambda: os.pread(fd, 100, 0)))"
    with secret.open() as file:
        os.set_inheritable(file.fileno(), True)
        assert "inherited words" in said_outside(program, tmp_path, close_fds=False)
        answer = said(program)
    assert set(answer.split()) == {"OSError"}


def test_two_programs_do_not_meet():
    write = "import os\nopen('/tmp/left', 'w').close()\nos.mkdir('/tmp/folder')\nprint(os.listdir('/tmp'))"
    assert "left" in said(write)
    assert said("import os\nprint(os.listdir('/tmp'), os.getcwd())") == "[] /tmp\n"
    assert not os.path.exists("/tmp/left")


# --- writing


WRITE = TRY + textwrap.dedent("""
    path = PATH
    for way in [path, "/proc/1/root" + path, "../" * 40 + path[1:], "/proc/1/cwd/marker"]:
        attempt(lambda: open(way, "w").write("was here"))
    attempt(lambda: os.mkfifo(path))
    attempt(lambda: os.mkdir(path))
    attempt(lambda: os.symlink("x", path))
    attempt(lambda: os.makedirs(os.path.dirname(path)))
    attempt(lambda: open(path, "w"))
""")


def test_nothing_is_written_outside(tmp_path):
    marker = tmp_path / "marker"
    program = WRITE.replace("PATH", repr(str(marker)))
    said_outside(program, tmp_path)
    assert marker.exists()
    marker.unlink()
    before = {os.path.join(folder, name) for folder in ("/", "/tmp") for name in os.listdir(folder)}
    said(program)
    assert not marker.exists()
    after = {os.path.join(folder, name) for folder in ("/", "/tmp") for name in os.listdir(folder)}
    assert not {path for path in after - before if "marker" in path}


def test_the_library_of_the_machine_cannot_be_changed():
    program = TRY + textwrap.dedent("""
        library = os.path.dirname(os.__file__)
        print(attempt(lambda: open(os.__file__, "a")))
        print(attempt(lambda: open(library + "/usercustomize.py", "w")))
        print(attempt(lambda: os.chmod(os.__file__, 0o777)))
        print(attempt(lambda: os.utime(os.__file__)))
        print(attempt(lambda: os.rename(os.__file__, "/tmp/os.py")))
        print(attempt(lambda: os.unlink(sys.executable)))
        print(attempt(lambda: os.link(os.__file__, "/tmp/os.py")))
        for path in ("/lib/x", "/etc/x", "/x"):
            print(attempt(lambda: open(path, "w")), attempt(lambda: os.mkdir(path)))
    """)
    before = os.stat(os.__file__)
    answer = said(program)
    assert set(answer.split()) <= {"OSError", "PermissionError"}, answer
    after = os.stat(os.__file__)
    assert (before.st_mtime_ns, before.st_mode, before.st_nlink) == (after.st_mtime_ns, after.st_mode, after.st_nlink)


def test_hooks_left_for_the_next_interpreter_are_not_run():
    """Not even by the next interpreter of the same program, which starts as isolated as the first."""
    said("for n in ('sitecustomize', 'usercustomize', 'json'):\n    open(f'/tmp/{n}.py', 'w').write('print(1234)')")
    assert said("import json, sys\nprint(json.dumps('/tmp' in sys.path), '' in sys.path)") == "false False\n"


# --- processes


MULTIPLY = TRY + textwrap.dedent("""
    import _thread, multiprocessing, subprocess
    libc = ctypes.CDLL(None, use_errno=True)
    def by_number(number, *arguments):
        pid = libc.syscall(number, *arguments)
        if pid == 0:
            os._exit(0)
        return pid if pid > 0 else "refused"
    def by_fork(fork):
        pid = fork()
        if pid == 0:
            os._exit(0)
        return pid
    numbers = dict(x86_64=(56, 57), aarch64=(220, 220))[os.uname().machine]  # clone, fork
    ways = [
        lambda: by_fork(os.fork),
        lambda: by_fork(os.forkpty),
        lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}),
        lambda: subprocess.run([sys.executable, "-c", ""]).returncode,
        lambda: 1 if os.system("exit 0") == 0 else "refused",
        lambda: multiprocessing.get_context("fork").Process(target=int).start() or 1,
        lambda: _thread.start_new_thread(int, ()),
        *(lambda n=n: by_number(n, 17, 0, 0, 0, 0) for n in numbers),
        lambda: by_number(435, ctypes.create_string_buffer(64), 64),
    ]
    results = [attempt(way) for way in ways]
    print(sum(isinstance(result, int) and result >= 0 for result in results), results)
""")


def test_a_fork_bomb_does_not_begin(tmp_path):
    multiplied = said_outside(MULTIPLY, tmp_path).splitlines()[-1]
    assert int(multiplied.split()[0]) >= 8, multiplied
    answer = said(MULTIPLY).splitlines()
    assert [line.split()[0] for line in answer if line.endswith("]")] == ["0"], answer


def test_the_classic_fork_bomb_ends_at_once():
    program = "import os\nwhile True:\n    os.fork()"
    with running("import time\ntime.sleep(600)", seconds=2.0) as (tree, _):
        assert len(tree) == 3  # one process of the sandbox, one program: so it would be seen if there were more
    outcome = sandbox.run(program)
    assert outcome.code == 1 and b"PermissionError" in outcome.stderr


def test_no_daemon_stays_behind(tmp_path):
    program = TRY + textwrap.dedent("""
        import time
        def daemon():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    for fd in range(3):
                        os.close(fd)
                    time.sleep(600)
                os._exit(0)
        print(attempt(daemon), flush=True)
        time.sleep(600)
    """)
    with running(program, seconds=2.0) as (tree, outcomes):
        assert len(tree) == 3
    assert wait_until_gone(tree) == []
    assert outcomes[0].ended == "time" and outcomes[0].stdout == b"PermissionError\n"


def test_a_program_ends_with_the_process_that_started_it():
    """Even if that is killed and can do nothing about it: the verifier kills its worker when that takes too long."""
    source = "from rlswarm_jax.tasks import sandbox\n"
    source += "sandbox.run('import time\\ntime.sleep(600)', b'', sandbox.Limits(seconds=600))"
    with subprocess.Popen([sys.executable, "-c", source]) as parent:
        tree = wait_for_program(psutil.Process(parent.pid))
        parent.kill()
    assert len(tree) == 3
    assert wait_until_gone(tree) == []


def test_signals_reach_nobody(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import time\ntime.sleep(600)"]) as victim:
        program = TRY + f"print(attempt(lambda: os.kill({victim.pid}, 9)))"
        inside = "\n".join(
            f"attempt(lambda: os.kill({pid}, {sig}))"
            for pid in (victim.pid, os.getpid(), -1, 0, 1, -victim.pid, "os.getppid()")
            for sig in (9, 15, 19)
        )
        inside += f"\nprint(attempt(lambda: os.pidfd_open({victim.pid})), attempt(lambda: os.setpriority(0, 0, -20)))"
        answer = said(TRY + inside + f"\nprint(attempt(lambda: os.kill({victim.pid}, 9)), 'still here')")
        assert victim.poll() is None
        assert status_of(victim.pid)["State"][0] == "S"  # neither killed nor stopped
        assert answer == "PermissionError PermissionError\nPermissionError still here\n"
        assert said_outside(program, tmp_path) == "None\n"
        assert victim.wait(10) == -signal.SIGKILL


# --- the network


def test_nothing_is_connected_to(tmp_path):
    program = TRY + textwrap.dedent("""
        import socket
        def connect(family, address):
            with socket.socket(family) as s:
                s.settimeout(2)
                s.connect(address)
        print(attempt(lambda: connect(socket.AF_INET, ("127.0.0.1", PORT))))
        print(attempt(lambda: connect(socket.AF_UNIX, "\\0" + NAME)))
        print(attempt(lambda: connect(socket.AF_UNIX, PATH)))
        print(attempt(lambda: socket.socketpair()))
        print(attempt(lambda: socket.getaddrinfo("localhost", 80)) and None)
        print(ctypes.CDLL(None).socket(2, 1, 0), attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)))
    """)
    with socket.socket() as inet, socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as unix:
        inet.bind(("127.0.0.1", 0))
        name = f"rlswarm-test-{os.getpid()}"
        abstract.bind("\0" + name)
        path = os.path.relpath(tmp_path / "s")
        unix.bind(path)
        path = str(tmp_path / "s")
        program = program.replace("PORT", str(inet.getsockname()[1]))
        program = program.replace("NAME", repr(name)).replace("PATH", repr(path) if len(path) < 100 else repr("s"))
        servers = (inet, abstract, unix)
        for server in servers:
            server.listen()
            server.settimeout(0)
        answer = said(program).splitlines()
        for server in servers:
            with pytest.raises(BlockingIOError):
                server.accept()
        assert answer[:4] == ["PermissionError"] * 4 and answer[5] == "-1 PermissionError"
        said_outside(program, tmp_path)
        for server in servers:
            server.accept()[0].close()


# --- the kernel


# Numbers of x86-64. Each fails before its arguments are looked at, so none are needed.
FORBIDDEN = {
    "ptrace": 101, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
    "clone": 56, "fork": 57, "vfork": 58, "clone3": 435, "execveat": 322, "kill": 62, "tkill": 200,
    "rt_sigqueueinfo": 129, "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "socket": 41,
    "socketpair": 53, "connect": 42, "bind": 49, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240,
    "memfd_create": 319, "memfd_secret": 447, "userfaultfd": 323, "io_uring_setup": 425, "io_setup": 206, "bpf": 321,
    "perf_event_open": 298, "keyctl": 250, "add_key": 248, "request_key": 249, "kexec_load": 246, "init_module": 175,
    "finit_module": 313, "delete_module": 176, "reboot": 169, "swapon": 167, "settimeofday": 164, "clock_settime": 227,
    "sethostname": 170, "setuid": 105, "setgid": 106, "setgroups": 116, "capset": 126, "prctl": 157, "seccomp": 317,
    "setrlimit": 160, "personality": 135, "process_vm_readv": 310, "process_vm_writev": 311, "open_by_handle_at": 304,
    "name_to_handle_at": 303, "fanotify_init": 300, "inotify_init1": 294, "fsopen": 430, "open_tree": 428,
    "move_mount": 429, "mount_setattr": 442, "mknod": 133, "mknodat": 259, "iopl": 172, "ioperm": 173, "acct": 163,
    "quotactl": 179, "syslog": 103, "sched_setaffinity": 203, "sched_setscheduler": 144, "setpriority": 141,
    "mlockall": 151, "setsid": 112, "openat2": 437, "landlock_create_ruleset": 444, "vmsplice": 278, "tee": 276,
}  # fmt: skip
x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")


@x86_64
def test_system_calls_that_nobody_needs_are_refused():
    program = TRY + textwrap.dedent(f"""
        libc = ctypes.CDLL(None, use_errno=True)
        def call(number):
            ctypes.set_errno(0)
            return libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno()
        assert call(39)[0] == os.getpid()
        for name, number in {FORBIDDEN}.items():
            if call(number) != (-1, 1):
                print(name)
        for number in range(450, 1000):  # what this kernel has and this list does not know, and what is yet to come
            if call(number) != (-1, 1):
                print(number)
        print(call(0x40000000 | 39), call(0x40000000 | 57))  # by the x32 interface
        print(libc.syscall(302, 0, 4, ctypes.create_string_buffer(16), 0), ctypes.get_errno())  # prlimit64 to set one
    """)
    assert said(program) == "(-1, 1) (-1, 1)\n-1 1\n"


@x86_64
def test_the_32_bit_interface_is_death():
    """`int 0x80` numbers its calls otherwise: 2 is fork there and open here."""
    program = textwrap.dedent("""
        import ctypes, mmap
        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(bytes.fromhex("b802000000cd80c3"))  # mov eax, 2; int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        print("before", flush=True)
        ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        print("after")
    """)
    outcome = sandbox.run(program)
    assert outcome.stdout == b"before\n" and outcome.code == -signal.SIGSYS


def test_what_the_kernel_says_of_the_program():
    """Seen from outside while it runs: no capability, no new ones, a filter, namespaces of its own, three files."""
    with running("import time\ntime.sleep(600)", seconds=600) as (tree, outcomes):
        program = tree[-1].pid
        status, namespaces = status_of(program), namespaces_of(program)
        files = {os.readlink(f"/proc/{program}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{program}/fd")}
        root = os.listdir(f"/proc/{program}/root") if os.geteuid() == 0 else []
        tree[1].kill()  # process 1: that is no verdict
    assert isinstance(outcomes[0], sandbox.SandboxRefused) and wait_until_gone(tree) == []
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    assert not namespaces.items() & namespaces_of("self").items()
    assert len(files) <= 3 and files <= {"/stdin (deleted)", "/stdin", "pipe"}
    assert "proc" not in root and "sys" not in root and "dev" not in root


def test_devices_are_not_there_and_cannot_be_made():
    program = TRY + textwrap.dedent("""
        for path in ("/dev/mem", "/dev/kmem", "/dev/vda", "/dev/tty", "/dev/shm/x", "/sys/kernel", "/proc/kcore"):
            print(attempt(lambda: open(path, "w")))
        print(attempt(lambda: os.mknod("/tmp/mem", 0o20600, os.makedev(1, 1))))
    """)
    assert said(program).split() == ["FileNotFoundError"] * 7 + ["PermissionError"]


def test_a_crash_leaves_no_core():
    program = TRY + textwrap.dedent("""
        import resource, signal
        print(resource.getrlimit(resource.RLIMIT_CORE))
        print(attempt(lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))), flush=True)
        ctypes.string_at(0)
    """)
    before = set(os.listdir("."))
    outcome = sandbox.run(program)
    assert outcome.code == -signal.SIGSEGV
    # the 1 is what stops the machine's crash reporter, unless a lower limit already holds here
    assert outcome.stdout in (b"(1, 1)\nValueError\n", b"(0, 0)\nValueError\n")
    assert set(os.listdir(".")) == before


# --- too much of everything


@pytest.mark.parametrize(
    "hoard",
    [
        "blocks.append(bytearray(2**24))",
        "blocks.append(mmap.mmap(-1, 2**24)); blocks[-1].write(b'x' * 2**24)",
        "blocks.append([0] * 2**21)",
    ],
)
def test_a_memory_bomb_is_small(hoard, tmp_path):
    program = "import mmap\nblocks = []\ntry:\n    while len(blocks) < COUNT:\n        " + hoard
    program += "\nexcept (MemoryError, OSError):\n    pass\nprint(len(blocks) * 2**24)"
    assert int(said_outside(program.replace("COUNT", "3"), tmp_path)) == 3 * 2**24
    assert 2**24 <= int(said(program.replace("COUNT", "1000"), memory=256 * 2**20)) < 256 * 2**20


def test_the_disk_is_small_and_has_few_files():
    program = TRY + textwrap.dedent("""
        written = files = 0
        with contextlib.suppress(OSError):
            while True:
                with open(f"/tmp/{files}", "wb") as file:
                    files += 1
                    written += file.write(bytes(2**20)) or 0
                    file.flush()
        for name in os.listdir("/tmp"):
            os.unlink(f"/tmp/{name}")
        few = 0
        with contextlib.suppress(OSError):
            while True:
                os.mkdir(f"/tmp/d{few}")
                few += 1
        print(written, few)
    """)
    written, files = map(int, said(program, disk=8 * 2**20, files=100).split())
    assert 2**20 <= written <= 9 * 2**20 and 50 <= files <= 100


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True:\n    os.write(1, b'x' * 65536)",
        "import sys\nwhile True:\n    print('x' * 1000, file=sys.stderr)",
        "raise ValueError('x' * 50_000_000)",
        "import contextlib, fcntl, os\nfcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)\nwhile True:\n"
        "    with contextlib.suppress(OSError):\n        os.write(1, b'x' * 100)",
    ],
)
def test_endless_output_is_cut_off(program):
    outcome = sandbox.run(program, b"", sandbox.Limits(output=100_000, seconds=10))
    assert outcome.ended == "output" and outcome.code is None
    assert 100_000 < len(outcome.stdout) + len(outcome.stderr) <= 100_000 + 2 * 65_536


def test_a_busy_loop_ends_with_its_processor_time():
    program = "import signal\nfor s in set(signal.Signals) - {9, 19}:\n    signal.signal(s, signal.SIG_IGN)\n"
    program += "while True:\n    pass"
    outcome = sandbox.run(program, b"", sandbox.Limits(seconds=30, cpu_seconds=1))
    assert outcome.ended == "itself" and outcome.code == -signal.SIGKILL


@pytest.mark.parametrize(
    "program",
    [
        "import signal\nsignal.raise_signal(signal.SIGSTOP)",
        "import os, time\nos.closerange(0, 10)\ntime.sleep(600)",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))\nsignal.pause()",
        "import os, sys\nr, w = os.pipe()\nos.read(r, 1)",
    ],
    ids=["stops itself", "closes its streams", "deaf", "deadlock"],
)
def test_what_hangs_is_killed(program):
    outcome = sandbox.run(program, b"", sandbox.Limits(seconds=0.5))
    assert (outcome.ended, outcome.code, outcome.stdout) == ("time", None, b"")


def test_deep_recursion_ends_the_program_alone():
    program = "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f()\nf()"
    outcome = sandbox.run(program, b"", sandbox.Limits(seconds=1.0, memory=128 * 2**20))
    assert outcome.code != 0
    assert said("print(1)") == "1\n"
