"""Scores answers: in place where that is quick, else in worker processes, in parallel and bounded in time.

A scorer that raises, hangs or kills its worker costs its item a counted failure and score 0, and nothing else. But
what runs inside a worker could say any score for the item it is asked for: a scorer that runs programs of strangers
must do so in a sandbox.
"""

import ast
import collections
import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import msgspec

from rlswarm_jax.tasks import Mixture, Problem
from rlswarm_jax.tasks.base import reason
from rlswarm_jax.tasks.process import WorkerProcess
from rlswarm_jax.tasks.worker import Setup, as_score

log = logging.getLogger("rlswarm_jax.tasks")
MAX_ANSWER_CHARACTERS = 65_536
MEMO = 65_536  # outcomes
QUICK, QUICK_CHARACTERS = 16_384, 512  # the same of what is scored in place, in a simulation once for all nodes
QUEUE = 4_096  # items that were begun and nobody waits for
SHARE = 10.0  # seconds that the answers of one peer, or twice so many that this node's own, may take in a round
SHARES = 4  # of these, what the answers of all peers may
GRACE = 2.0  # seconds for an item beyond its task's, on a busy machine
START_TRIES = 3

COSTLY = "costly"

Item = tuple[Problem, str]
Key = tuple[str, int, str, bytes]


class VerifierError(RuntimeError):
    """Nothing can be scored: workers cannot make the tasks, or the verifier was closed; the message says which."""


class NoWorkerError(VerifierError):
    """No process can be had: the machine may be short of memory, and later not."""


class Scores(msgspec.Struct, array_like=True, frozen=True):
    """scores: in the order of the items. failures: how many of these items failed, by cause.

    "error": the scorer raised, or returned no number in [0, 1]. "timeout": it took too long. "crash": its process
    ended, ran out of memory, or said nonsense. "costly": it was not scored, as its author's others took too long;
    costly: which these are, by their place.
    """

    scores: list[float]
    failures: dict[str, int]
    costly: list[int] = []


class Outcome(NamedTuple):
    """failure: its cause, empty if there is none. wrong: the same for people."""

    score: float
    failure: str = ""
    wrong: str = ""


@dataclass(eq=False)
class _Job:
    key: Key
    problem: Problem
    answer_text: str
    payers: set[bytes]  # nobody: it is scored whatever it costs
    outcome: Future[Outcome] = field(default_factory=Future)


class Verifier:
    """Scores the problems of a mixture. `score` and `begin` may be called by any thread.

    tasks: the config that `make_mixture` made the mixture from. workers: processes; the first item that needs one
    starts it. The outcome for an answer to a problem is remembered, failures too: it is paid for once.
    Raises VerifierError for a config that workers cannot be told.
    """

    def __init__(self, tasks: Mapping[str, Mapping[str, Any]], mixture: Mixture, workers: int = 2):
        if workers < 1:
            raise VerifierError(f"a verifier needs at least one worker, got {workers}.")
        self.mixture, self._workers = mixture, workers
        self._setup = Setup(repr({name: dict(fields) for name, fields in tasks.items()}), mixture.fingerprint)
        if any(task.seconds for task in mixture.tasks.values()):
            try:
                ast.literal_eval(self._setup.tasks)
            except (ValueError, SyntaxError) as error:
                raise VerifierError(f"the options of tasks must be plain numbers, texts and lists: {error}.") from None
        self._changed = threading.Condition()  # guards all that follows
        self._over: VerifierError | None = None
        self._threads: list[threading.Thread] = []
        self._processes: set[WorkerProcess] = set()
        self._memo: collections.OrderedDict[Key, Outcome] = collections.OrderedDict()
        self._quick: collections.OrderedDict[Item, Outcome] = collections.OrderedDict()  # of what needs no worker
        self._jobs: dict[Key, _Job] = {}  # without an outcome: in one of the queues, or with a worker
        self._wanted: collections.OrderedDict[Key, _Job] = collections.OrderedDict()
        self._begun: collections.OrderedDict[Key, _Job] = collections.OrderedDict()
        self._told: set[tuple[str, str]] = set()
        self._spent: dict[bytes, float] = collections.defaultdict(float)  # seconds, since the last scores; b"": own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, items: Sequence[Item], payers: Sequence[Collection[bytes]] = ()) -> None:
        """Scores in the background what is not known yet and needs a worker; returns at once. payers: as for `score`.

        Of more than `QUEUE` items that nobody waits for the oldest are forgotten: `score` asks for them again.
        """
        for (problem, answer_text), whose in zip(items, payers or [()] * len(items), strict=True):
            if self._needs_worker(problem, answer_text):
                self._ask(problem, answer_text, whose, wanted=False)

    def score(self, items: Sequence[Item], payers: Sequence[Collection[bytes]] = ()) -> Scores:
        """Waits for the scores of these items. Raises VerifierError, but for nothing that a scorer did.

        payers: whose each item is; nobody's is scored whatever it costs. What peers' take in workers, since the last
        call, is bounded for each and in all, and who has taken least comes first: of who takes more the rest is not
        scored.
        """
        asked = [
            self._ask(problem, answer_text, whose, wanted=True) if self._needs_worker(problem, answer_text) else None
            for (problem, answer_text), whose in zip(items, payers or [()] * len(items), strict=True)
        ]
        found = [
            outcome.result() if outcome else self._in_place(problem, answer_text)
            for (problem, answer_text), outcome in zip(items, asked, strict=True)
        ]
        failures = collections.Counter(outcome.failure for outcome in found if outcome.failure)
        costly = [place for place, outcome in enumerate(found) if outcome.failure == COSTLY]
        with self._changed:
            self._spent.clear()
        return Scores([outcome.score for outcome in found], dict(sorted(failures.items())), costly)

    def close(self) -> None:
        """Kills the workers and what they started; whoever waits for a score gets a VerifierError."""
        self._end(VerifierError("the verifier was closed; make another one to score."))
        for thread in self._threads:
            thread.join()

    def _needs_worker(self, problem: Problem, answer_text: str) -> bool:
        return self.mixture.tasks[problem.task].seconds > 0 and len(answer_text) <= MAX_ANSWER_CHARACTERS

    def _in_place(self, problem: Problem, answer_text: str) -> Outcome:
        if len(answer_text) > MAX_ANSWER_CHARACTERS:
            return Outcome(0.0)
        item = problem, answer_text
        if known := self._quick.get(item):
            return known
        try:
            outcome = Outcome(as_score(self.mixture.score(problem, answer_text)))
        except Exception as error:  # a scorer's, as in a worker: it costs this item, not the run
            outcome = Outcome(0.0, "error", reason(error))
            self._tell(problem, outcome)
        if len(answer_text) <= QUICK_CHARACTERS:
            with self._changed:
                self._quick[item] = outcome._replace(wrong="")
                if len(self._quick) > QUICK:
                    self._quick.popitem(last=False)
        return outcome

    def _ask(self, problem: Problem, answer_text: str, payers: Collection[bytes], *, wanted: bool) -> Future[Outcome]:
        """What is known, or will be, of an item. wanted: somebody waits for it, so it goes first."""
        digest = hashlib.sha256(answer_text.encode("utf-8", "surrogatepass")).digest()
        key = (problem.task, problem.seed, problem.split, digest)  # the fingerprint is the same for a whole mixture
        with self._changed:
            job = self._jobs.get(key) or _Job(key, problem, answer_text, set(payers))
            job.payers = job.payers | set(payers) if job.payers and payers else set()
            if known := self._memo.get(key):
                self._memo.move_to_end(key)
                job.outcome.set_result(known)
            elif self._over:
                job.outcome.set_exception(self._over)
            elif key not in self._jobs:
                self._jobs[key] = job
                (self._wanted if wanted else self._begun)[key] = job
                self._changed.notify_all()
                self._start_threads()
            elif wanted and key in self._begun:
                self._wanted[key] = self._begun.pop(key)
            if len(self._begun) > QUEUE:
                dropped, _ = self._begun.popitem(last=False)
                del self._jobs[dropped]
        return job.outcome

    def _start_threads(self) -> None:
        """One for each worker; it starts the worker when it has a job for it."""
        while len(self._threads) < self._workers:
            thread = threading.Thread(target=self._dispatch, name=f"verifier {len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _dispatch(self) -> None:
        """Hands jobs to a worker, and to the next one when that is of no more use, until all is over."""
        job, process = None, None
        try:
            while job := self._take():
                if self._too_costly(job):
                    self._finish(job, Outcome(0.0, COSTLY, "its author's others took too long"))
                    continue
                outcome, process = self._carry_out(job, process)
                self._finish(job, outcome)
        except VerifierError as error:
            self._end(error)
        finally:  # nobody waits for a thread that is gone, whatever ended it
            self._end(VerifierError("a thread of the verifier failed; its traceback says why."))
            if job and not job.outcome.done():
                job.outcome.set_exception(self._over)
            if process:
                self._discard(process)

    def _take(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._wanted or self._begun)
            if self._over:
                return None
            queue = self._wanted or self._begun
            return queue.pop(min(queue, key=lambda key: self._least(queue[key])))

    def _least(self, job: _Job) -> float:
        """What the cheapest of its payers has spent; nothing where it is nobody's."""
        return min((self._spent.get(payer, 0.0) for payer in job.payers), default=0.0)

    def _too_costly(self, job: _Job) -> bool:
        with self._changed:
            share = max(SHARE, 2 * self._spent[b""])
            of_peers = sum(self._spent.values()) - self._spent[b""]
            return bool(job.payers) and (self._least(job) >= share or of_peers >= SHARES * share)

    def _charge(self, job: _Job, seconds: float) -> None:
        with self._changed:
            for payer in job.payers or {b""}:
                self._spent[payer] += seconds / max(1, len(job.payers))

    def _carry_out(self, job: _Job, process: WorkerProcess | None) -> tuple[Outcome, WorkerProcess | None]:
        """The outcome, and the process if it can take another job. Raises VerifierError."""
        seconds = self.mixture.tasks[job.problem.task].seconds + GRACE
        while True:
            fresh, process = process is None, process or self._start()
            began = time.monotonic()
            try:
                score, wrong = process.score(job.problem, job.answer_text, seconds)
            except TimeoutError:
                outcome = Outcome(0.0, "timeout", f"it took more than {seconds:g} s")
            except (OSError, msgspec.MsgspecError) as error:
                outcome = Outcome(0.0, "crash", reason(error))
            else:
                return Outcome(0.0, "error", wrong) if score is None else Outcome(score), process
            finally:
                self._charge(job, time.monotonic() - began)
            self._discard(process)
            if self._over:
                raise self._over
            if fresh or outcome.failure == "timeout":
                return outcome, None
            process = None  # an earlier item may have ruined the other: a new one tells what this item does by itself

    def _finish(self, job: _Job, outcome: Outcome) -> None:
        with self._changed:
            self._jobs.pop(job.key, None)
            if outcome.failure != COSTLY:  # it may be asked for by somebody else
                self._memo[job.key] = outcome._replace(wrong="")
            if len(self._memo) > MEMO:
                self._memo.popitem(last=False)
        if outcome.failure:
            self._tell(job.problem, outcome)
        job.outcome.set_result(outcome)

    def _tell(self, problem: Problem, outcome: Outcome) -> None:
        """Logs the first failure of a kind."""
        with self._changed:
            known = (problem.task, outcome.failure) in self._told
            self._told.add((problem.task, outcome.failure))
        if not known:
            log.warning(
                "scoring an answer to task %r, problem %d, failed (%s): %s; more of this are only counted.",
                *(problem.task, problem.seed, outcome.failure, outcome.wrong),
            )

    def _start(self) -> WorkerProcess:
        """A process that is ready. Raises VerifierError."""
        wrong = ""
        for attempt in range(START_TRIES):
            with self._changed:  # where there was no process for a passing reason, another try may get one
                self._changed.wait_for(lambda: self._over, timeout=attempt)
            with contextlib.ExitStack() as undo:
                try:
                    process = WorkerProcess()
                    undo.callback(self._discard, process)
                    self._add(process)
                    unfit = process.start(self._setup)
                except OSError as error:
                    wrong = reason(error)
                    continue
                if unfit:
                    raise VerifierError(f"answers cannot be scored, a worker cannot make the tasks: {unfit}")
                undo.pop_all()
                return process
        raise NoWorkerError(f"answers cannot be scored, no worker starts: {wrong}")

    def _add(self, process: WorkerProcess) -> None:
        with self._changed:
            if self._over:
                raise self._over
            self._processes.add(process)  # from now on `_end` reaches it

    def _discard(self, process: WorkerProcess) -> None:
        with self._changed:
            self._processes.discard(process)
        process.end()
        process.reap()

    def _end(self, error: VerifierError) -> None:
        """The first reason counts."""
        with self._changed:
            self._over = self._over or error
            waiting = [*self._wanted.values(), *self._begun.values()]
            self._wanted.clear()
            self._begun.clear()
            self._jobs.clear()
            for process in self._processes:
                process.end()
            self._changed.notify_all()
        for job in waiting:
            job.outcome.set_exception(self._over)
