"""Runs of a sweep as an array of jobs on SLURM, through submitit."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rlswarm_jax.errors import UsageError
from rlswarm_jax.running.sweep import Planned


def submit(runs: Sequence[Planned], argv: Sequence[str], options: str, at_once: int, folder: Path) -> list[str]:
    """Submits each run as a job, which does nothing if the run is finished by then; returns the jobs' ids.

    argv: of the sweep, its config and folder. options: "NAME=VALUE ...", those of submitit's `update_parameters`, and
    `cluster`, such as "local" to try it without SLURM. folder: of the jobs' logs. Raises UsageError.
    """
    parameters: dict[str, int | str] = {"name": "sweep", "slurm_array_parallelism": at_once or len(runs)}
    for word in shlex.split(options):
        name, given, value = word.partition("=")
        if not given:
            raise UsageError(f"--slurm has {word!r}; expected NAME=VALUE, such as timeout_min=120.")
        parameters[name] = int(value) if value.isdecimal() else value
    try:
        import submitit
    except ImportError:
        raise UsageError("--slurm needs submitit: pip install 'rlswarm_jax[slurm]' installs it.") from None
    cluster = parameters.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**parameters)
        with executor.batch():
            jobs = [
                executor.submit(submitit.helpers.CommandFunction(_command(run, argv), cwd=Path.cwd())) for run in runs
            ]
    # RuntimeError: there is no sbatch; NameError, TypeError, ValueError: an option or its value is none of submitit's
    except (submitit.core.utils.FailedJobError, OSError, RuntimeError, NameError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"cannot submit to {cluster}: {said[:300]}") from None
    return [str(job.job_id) for job in jobs]


def _command(run: Planned, argv: Sequence[str]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "experiments.sweep",
        *argv,
        f"--points={run.point}",
        f"--seeds={run.seed}",
        "--index=0",
    ]
