"""Which system calls a program in a sandbox may make: a seccomp filter as bytes, for x86-64 and AArch64.

It is a list of what is allowed. Whatever is not on it fails with EPERM, what kernels will add included: above all
fork, vfork and clone (a program is one process with one thread, so neither a fork bomb nor a daemon can begin),
sockets, mounts, namespaces, ptrace, signals to others, System V and POSIX shared memory, keys, io_uring, bpf.
"""

import errno
import platform
import struct

_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32  # offsets in struct seccomp_data

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
# Number on x86-64, and on AArch64, which has only the newer of two calls that do the same.
# fmt: off
ALLOWED: dict[str, tuple[int, int | None]] = {
    # read and write what is open
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "fcntl": (72, 25), "pipe": (22, None), "pipe2": (293, 59),
    # files, which are those of the sandbox
    "open": (2, None), "openat": (257, 56), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291),
    "statfs": (137, 43), "fstatfs": (138, 44), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "symlink": (88, None), "symlinkat": (266, 36),
    "link": (86, None), "linkat": (265, 37), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "utimensat": (280, 88), "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47), "fsync": (74, 82),
    "fdatasync": (75, 83), "flock": (73, 32), "fadvise64": (221, 223), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "umask": (95, 166),
    # memory
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "madvise": (28, 233),
    "brk": (12, 214),
    # waiting
    "select": (23, None), "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    # signals to oneself, clocks
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "tgkill": (234, 131),
    "alarm": (37, None), "pause": (34, None), "getitimer": (36, 102), "setitimer": (38, 103),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153),
    # who and where one is
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getrandom": (318, 278), "getcpu": (309, 168),
    # to start, and to end
    "execve": (59, 221), "exit": (60, 93), "exit_group": (231, 94), "futex": (202, 98), "set_tid_address": (218, 96),
    "set_robust_list": (273, 99), "rseq": (334, 293), "arch_prctl": (158, None),
}
# fmt: on
IOCTL = (16, 29)  # fails with ENOTTY, as it does on whatever a program here can have open
PRLIMIT = (302, 261)  # allowed to read limits, not to set them: a lower RLIMIT_CORE than ours would permit core dumps


def make_filter(machine: str = "") -> bytes:
    """The filter for a machine as `platform.machine` names it ("": this one), as an array of struct sock_filter.

    Raises ValueError for a machine whose numbers are not listed here.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise ValueError(f"system calls of {machine!r} are not known, expected {' or '.join(ARCHITECTURES)}")
    column = list(ARCHITECTURES).index(machine)
    numbers = [both[column] for both in ALLOWED.values()]
    code = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),  # a 32-bit call, whose numbers mean something else
        (_LOAD_WORD, 0, 0, _NUMBER),
    ]
    for number in numbers:
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code += [
        (_JUMP_EQUAL, 0, 1, IOCTL[column]),
        (_RETURN, 0, 0, _ERRNO | errno.ENOTTY),
        (_JUMP_EQUAL, 0, 5, PRLIMIT[column]),
        (_LOAD_WORD, 0, 0, _THIRD_ARGUMENT),
        (_JUMP_EQUAL, 0, 3, 0),
        (_LOAD_WORD, 0, 0, _THIRD_ARGUMENT + 4),
        (_JUMP_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
