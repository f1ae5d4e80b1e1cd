"""Process 1 of a sandbox: builds the little world in which process 2, the program, runs, and ends it.

Started by sandbox.py under `unshare`, alone and isolated (`python -I -S -B jail.py STATUS_FD`): only the standard
library, and as little of it as will do, since every program pays for its imports. The plan comes on standard input,
from the trusted parent; when that pipe closes, for whatever reason, this process ends and the kernel with it all
that lives in its namespace. What became of the program is written to STATUS_FD, of which the program knows nothing.
"""

import ctypes
import marshal
import os
import resource
import select
import struct
import sys
import time

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MNT_DETACH = 2
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 22, 24, 28, 38, 47
SECCOMP_MODE_FILTER = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECUREBITS = 0xEF  # no capabilities for user 0 on exec or by setuid, no ambient ones; locked, all of it
CAPABILITY_VERSION_3 = 0x20080522
EMPTY = b"mode=0755,size=64k,nr_inodes=64"

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | None) -> None:
    """A function of libc, integers as unsigned long. Raises OSError that names it."""
    passed = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    if getattr(libc, name)(*passed) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{name} {[a for a in arguments if isinstance(a, bytes)]}: {os.strerror(error)}")


def check_namespaces(outside: dict[str, str]) -> None:
    """Before anything is mounted: raises OSError for a namespace that is still the parent's."""
    for name, known in outside.items():
        if os.readlink(f"/proc/self/ns/{name}") == known:
            raise OSError(f"the {name} namespace is not a new one")
    if os.getpid() != 1:
        raise OSError("this is not process 1")


def mount_empty(path: str, flags: int, options: bytes) -> None:
    call("mount", b"none", path.encode(), b"tmpfs", flags | MS_NOSUID | MS_NODEV, options)


def make_read_only(path: str) -> None:
    kept = os.statvfs(path).f_flag & MS_NOEXEC  # what a mount forbids may not be allowed again
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept
    call("mount", None, path.encode(), None, flags, None)


def build_world(plan: dict) -> None:
    """A root of nothing but the interpreter, read-only, an empty /tmp of limited size, no /proc, /sys or devices."""
    size = 2**20 + len(plan["program"]) + len(plan["stdin"])
    mount_empty("/tmp", 0, b"mode=0755,size=%d,nr_inodes=1024" % size)
    os.chdir("/tmp")
    os.mkdir("old")
    call("pivot_root", b".", b"old")
    os.chdir("/")
    os.mkdir("/tmp")  # first: the interpreter may be below the machine's
    mount_empty("/tmp", MS_NOEXEC, b"mode=0700,size=%d,nr_inodes=%d" % (plan["disk"], plan["files"]))
    for path in plan["visible"]:
        shown = path["at"]
        if os.path.isdir("/old" + path["is"]):
            os.makedirs(shown, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(shown), exist_ok=True)
            os.close(os.open(shown, os.O_CREAT | os.O_WRONLY))
        call("mount", b"/old" + path["is"].encode(), shown.encode(), None, MS_BIND, None)  # not what is mounted below
        make_read_only(shown)
    for path in plan["hidden"]:
        mount_empty(path, MS_RDONLY, EMPTY)
    for name, content in (("/program.py", plan["program"]), ("/stdin", plan["stdin"])):
        with open(name, "wb") as file:
            file.write(content)
    call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    make_read_only("/")
    call("sethostname", b"sandbox", 7)
    os.chdir("/tmp")


def give_up_powers(filter_: bytes) -> None:
    """No capability is left or can be had again, and from here on the filter decides which system calls there are."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == -1:
            break  # past the last one that this kernel knows
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call("prctl", PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0)
    call("capset", struct.pack("=Ii", CAPABILITY_VERSION_3, 0), struct.pack("=6I", 0, 0, 0, 0, 0, 0))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    code = ctypes.create_string_buffer(filter_, len(filter_))
    head = struct.pack("@HP", len(filter_) // 8, ctypes.addressof(code))  # struct sock_fprog
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head, 0, 0)


def become_program(plan: dict) -> None:
    """Never returns: it is the program from here on, or raises OSError."""
    standard_input = os.open("/stdin", os.O_RDONLY)
    os.dup2(standard_input, 0)
    os.closerange(3, plan["status"])
    os.closerange(plan["status"] + 1, 1024)
    for name, limit in plan["limits"].items():
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(number, (limit, limit))
    give_up_powers(plan["filter"])
    os.execve(plan["command"][0], plan["command"], plan["environment"])


def run(plan: dict) -> str:
    """Runs the program until it ends, its time is over, or the parent is gone; what became of it, in words."""
    check_namespaces(plan["outside"])
    build_world(plan)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            become_program(plan)
        except OSError as error:
            os.write(plan["status"], f"failed {error}\n".encode())
        os._exit(1)
    poller = select.poll()
    poller.register(os.pidfd_open(pid), select.POLLIN)
    poller.register(0, 0)  # its end alone: nothing more is sent
    if not poller.poll(plan["seconds"] * 1000):
        return f"overtime 0 {time.monotonic() - started}"
    done, status = os.waitpid(pid, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status) if done else 0
    return f"exited {code} {time.monotonic() - started}"


def main() -> None:
    status = int(sys.argv[1])
    os.set_inheritable(status, False)
    with os.fdopen(0, "rb", closefd=False) as pipe:
        length = int(pipe.readline())
        plan = marshal.loads(pipe.read(length))
    plan["status"] = status
    try:
        outcome = run(plan)
    except (OSError, ValueError) as error:
        outcome = f"failed {error}"
    os.write(status, outcome.encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
