"""The runs of a sweep: every point of a config's `get_sweep()` with every seed, and how far each of them is."""

import importlib.util
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections

from configs import common, fields
from configs.sweeps import Sweep
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import SWEEP_FILE, cannot_write, write_whole
from rlswarm_jax.reporting import outcomes
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import folder

# how far a run is: what its folder says, that its outcome is known from a file, or what a running sweep makes of it
NEW, BEGUN, FINISHED, HAD = "new", "begun", "finished", "had"
RUNNING, ELSEWHERE, BROKEN = "running", "elsewhere", "broken"


@dataclass(frozen=True)
class Planned:
    """A run of a sweep. config: with all that it overrides. words: the arguments that give it.

    changes: what its point overrides. had: its outcome is known, from a file.
    """

    point: str
    seed: int
    workdir: Path
    config: ml_collections.ConfigDict
    words: Sequence[str]
    changes: Mapping[str, Any]
    had: bool = False

    @property
    def name(self) -> str:
        return f"{self.point}/{self.workdir.name}"

    @property
    def arguments(self) -> cli.Arguments:
        """To go on with it in its folder, or begin it there."""
        return cli.Arguments(self.config, self.workdir, resume=True, words=cli.of_config(self.words))

    @property
    def log(self) -> Path:
        """What it says where it is run beside others; not in its folder, which a run wants to itself."""
        return self.workdir.with_suffix(".log")

    def state(self) -> str:
        """NEW, BEGUN, FINISHED or HAD. Raises UsageError if the folder holds a run of another config."""
        if self.had:
            return HAD
        found, differs = folder.state(self.config, self.workdir)
        if differs:
            moved = f"move {self.workdir} away, or choose another --workdir"
            raise UsageError(f"{self.name} was played with another config.{differs} than its point has now: {moved}.")
        return found


@dataclass(frozen=True)
class Plan:
    """A sweep's runs in their order, point by point. name: of its config. chosen: those that are asked for."""

    name: str
    workdir: Path
    sweep: Sweep
    runs: Sequence[Planned]

    def chosen(self, points: str = "", seeds: str = "") -> list[Planned]:
        """Those of some points and seeds, each by commas; "": of all. Raises UsageError."""
        of_point = _some(points, list(self.sweep.points), "point")
        of_seed = _some(seeds, [str(seed) for seed in self.sweep.seeds], "seed")
        return [run for run in self.runs if run.point in of_point and str(run.seed) in of_seed]

    def record(self) -> None:
        """Writes what the sweep is into its folder, for reports. Raises UsageError."""
        said: dict[str, Any] = {"name": self.name, "baseline": self.sweep.baseline or next(iter(self.sweep.points))}
        said |= {"points": {name: _plain(changes) for name, changes in self.sweep.points.items()}}
        said |= {"seeds": [*self.sweep.seeds]}
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.workdir, error, "; choose another --workdir") from None
        path, text = self.workdir / SWEEP_FILE, json.dumps(said, indent=1) + "\n"
        if not path.exists() or path.read_text() != text:
            try:
                write_whole(path, text)
            except UsageError:
                if not path.exists():  # else another job of an array has just written it
                    raise


def plan(argv: Sequence[str], had: Sequence[outcomes.Outcome] = ()) -> Plan:
    """Reads `--config FILE[:variant] [--config.field=value ...] [--workdir DIR]` and the sweep that the file defines.

    Every point's config is made and checked, so that nothing is wrong with the last one when days have passed. Fields
    of the command line hold for all points, but where a point has a value of its own. had: outcomes that are known.
    Raises UsageError.
    """
    given = cli.parse(argv)
    if "config.seed" in cli.overrides(argv):
        raise UsageError("the seeds are the sweep's: choose some with --seeds 0,1 instead of --config.seed.")
    sweep, name = _load(given.file), given.config.name
    _check(sweep)
    known = {(one.seed, outcomes.fingerprint(one.settings)) for one in had}
    runs = []
    for point, changes in sweep.points.items():
        own = [f"--config.{field}={_word(value)}" for field, value in changes.items()]
        labels = [f"--config.wandb.group={name}", f"--config.wandb.tags={(point,)!r}"]
        words = [*_without(given.words, changes), *labels, *own]
        config = _config(words, point, changes)
        for seed in sweep.seeds:
            with_seed = config.copy_and_resolve_references()
            with_seed.seed = seed
            workdir = given.workdir / point / f"seed-{seed}"
            words_of_seed = [*words, f"--config.seed={seed}"]
            is_known = bool(known) and (seed, outcomes.fingerprint(outcomes.settings_of(with_seed))) in known
            runs.append(Planned(point, seed, workdir, with_seed, words_of_seed, changes, is_known))
    return Plan(name, given.workdir, sweep, runs)


def _load(file: str) -> Sweep:
    """What `get_sweep` of a config file returns, for the variant behind the colon. Raises UsageError."""
    path, _, variant = file.partition(":")
    spec = importlib.util.spec_from_file_location(f"sweep_{Path(path).stem}", path)
    assert spec and spec.loader  # the config was loaded from it
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_sweep"):
        raise UsageError(f"{path} has no get_sweep(): docs/sweeps.md shows one.")
    try:
        found = module.get_sweep(variant)
    except ValueError as error:  # a variant that there is not
        raise UsageError(str(error)) from None
    if not isinstance(found, Sweep):
        raise UsageError(f"get_sweep() of {path} returns a {type(found).__name__}; expected configs.sweeps.Sweep.")
    return found


def _check(sweep: Sweep) -> None:
    """Raises UsageError for what cannot be a sweep, whatever the config."""
    if not sweep.points or not sweep.seeds:
        raise UsageError(f"the sweep has {len(sweep.points)} points and {len(sweep.seeds)} seeds: give one at least.")
    for name in sweep.points:
        if not isinstance(name, str) or not re.fullmatch(r"[^.,/\s][^,/\n]{0,63}", name):
            raise UsageError(
                f"a point is named {name!r}; expected a folder's name of at most 64 characters, no comma among them."
            )
    try:
        for seed in sweep.seeds:
            common.FIELDS["seed"].range.check("seed", seed)
    except fields.FieldError as error:
        raise UsageError(str(error)) from None
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UsageError(f"the sweep names a seed twice: {', '.join(map(str, sweep.seeds))}.")
    if sweep.baseline and sweep.baseline not in sweep.points:
        raise UsageError(f"the sweep's baseline {sweep.baseline!r} is none of its points: {', '.join(sweep.points)}.")


def _config(words: Sequence[str], point: str, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A point's, checked. Raises UsageError."""
    try:
        config = cli.parse(words).config
        cli.check(config)
        for name, value in changes.items():
            # what the command line made of a value is what was meant
            if _plain(found := fields.value_of(config, name)) != _plain(value):
                raise UsageError(f"config.{name} is {value!r:.80}, and becomes {found!r:.80}; write it as that.")
    except (UsageError, fields.FieldError) as error:
        raise UsageError(f"point {point!r}: {error}") from None
    return config


def _without(words: Sequence[str], changes: Mapping[str, Any]) -> list[str]:
    """The arguments but for those that set one of these fields: of a tuple they would add up."""
    kept, dropped = list[str](), False
    for word in words:
        name = word.lstrip("-").partition("=")[0]
        if not word.startswith("--") and dropped:  # the value of a flag that went
            dropped = False
            continue
        gone = word.startswith("-") and name.partition(".")[2] in changes
        dropped = gone and "=" not in word
        kept += [] if gone else [word]
    return kept


def _word(value: Any) -> str:
    """As the command line takes it."""
    return value if isinstance(value, str) else repr(_raw(value))


def _raw(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(_raw(value), default=repr))


def _some(wanted: str, there: Collection[str], what: str) -> Collection[str]:
    names = [name for name in wanted.split(",") if name]
    for name in names:
        if name not in there:
            raise UsageError(f"the sweep has no {what} {name!r}; it has {', '.join(there)}.")
    return names or there
