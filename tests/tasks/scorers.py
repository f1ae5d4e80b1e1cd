"""A kind of task whose answers say what scoring them does: for the tests of the verifier, in its workers."""

import contextlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

from rlswarm_jax.tasks.base import Problem
from rlswarm_jax.tasks.worker import Scored

WAIT = 60.0  # seconds, for what must happen if the test is to pass


class Scorers:
    """An answer is the name of a method of this class, and its arguments. folder: for what they leave behind."""

    def __init__(self, name, options):
        self.name, self.seconds = name, options.get("seconds", WAIT)
        self.folder = Path(options["folder"])
        if only := options.get("only_in"):
            assert os.getpid() == only, "the tasks' files are not here"
        self.fingerprint = f"{options}{os.getpid() if options.get('fickle') else ''}"

    def problem(self, seed, split="train"):
        return Problem(self.name, seed, "?", "?", (f"{split} {seed}",), split, data=seed)

    def canonical(self, answer_text):
        return answer_text

    def score(self, problem, answer_text):
        with (self.folder / "calls").open("a") as file:
            file.write(f"{answer_text[:80]!a}\n")
        verb, *arguments = answer_text.split()
        return getattr(self, verb)(problem, *arguments)

    def say(self, problem, value, *_):
        return {"np": np.float32(0.5), "text": "1", "none": None}.get(value) or float(value)

    def name_it(self, problem, *words):
        return float(" ".join(words) in problem.answers)

    def fail(self, problem, *_):
        raise RuntimeError("no\nsuch \x1b[31mthing")

    def leave(self, problem):
        sys.exit()

    def die(self, problem):
        os._exit(0)

    def put(self, problem, name):
        (self.folder / name).touch()
        return 1.0

    def wait_for(self, problem, name):
        until = time.monotonic() + WAIT
        while not (self.folder / name).exists():
            if time.monotonic() > until:
                return 0.0
            time.sleep(0.01)
        return 1.0

    def nap(self, problem, seconds, *_):
        time.sleep(float(seconds))
        return 1.0

    def meet(self, problem, own, other):
        self.put(problem, own)
        return self.wait_for(problem, other)

    def hang(self, problem):
        """With a child in a session of its own and an orphan, and deaf to all but SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        orphan = ["sh", "-c", "sleep 1000 > /dev/null 2>&1 & echo $!"]
        made = subprocess.run(orphan, capture_output=True, start_new_session=True, check=True)
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (self.folder / "new").write_text(json.dumps([os.getpid(), os.getppid(), child.pid, int(made.stdout)]))
        (self.folder / "new").rename(self.folder / "pids")
        while True:
            time.sleep(1000)

    def sockets(self):
        for fd in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):  # the listing's own
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    yield fd

    def garbage(self, problem, kind):
        forged = msgspec.msgpack.encode(Scored(bytes(8), 1.0, ""))
        bodies = {
            "long": b"\xff\xff\xff\xff",
            "noise": b"\x03\0\0\0abc",
            "forged": len(forged).to_bytes(4, "little") + forged,
            "empty": b"\0\0\0\0",
        }
        for fd in self.sockets():
            os.write(fd, bodies[kind])
        return 1.0

    def forge(self, problem):
        """Replies in the worker's stead, to whoever reads the log."""
        ask = sys._getframe(3).f_locals["ask"]
        forged = msgspec.msgpack.encode(Scored(ask.token, None, "\x1b[2J" + "x\n" * 500))
        for fd in self.sockets():
            os.write(fd, len(forged).to_bytes(4, "little") + forged)

    def late_garbage(self, problem):
        """Right, but when the next answer is being scored, something more is said."""

        def later():
            self.wait_for(problem, "next")
            self.garbage(problem, "forged")

        threading.Thread(target=later).start()
        return 1.0

    def late_death(self, problem):
        threading.Thread(target=lambda: self.wait_for(problem, "next") and os._exit(1)).start()
        return 1.0

    def be_next(self, problem):
        self.put(problem, "next")
        time.sleep(0.5)
        return 0.75

    def chatter(self, problem):
        for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
            print("x" * 2**20, file=stream, flush=True)
            os.write(fd, b"y" * 2**20)
        subprocess.run(["sh", "-c", "echo z; echo z >&2; cat"], check=True)  # and there is nothing to read
        return 1.0

    def hog(self, problem):
        hoard = bytearray(2**40)
        return float(len(hoard) > 0)

    def describe(self, problem):
        about = {"environ": dict(os.environ), "modules": sorted(sys.modules), "pid": os.getpid()}
        about["limits"] = [resource.getrlimit(which) for which in (resource.RLIMIT_CORE, resource.RLIMIT_AS)]
        about["to nowhere"] = [os.path.samestat(os.fstat(fd), os.stat(os.devnull)) for fd in (0, 1, 2)]
        (self.folder / "about").write_text(json.dumps(about))
        return 1.0


class Quick(Scorers):
    seconds = 0.0

    def __init__(self, name, options):
        super().__init__(name, {**options, "seconds": 0.0})
