"""What runs came to, in little: read from folders of runs and sweeps, or from a file that they were saved to."""

import collections
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from statistics import fmean
from typing import Any

import ml_collections
import msgspec

from configs import common, fields
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import SUMMARY_FILE, SWEEP_FILE, write_whole
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.reporting.results import Run, load

LEARNED_FROM, DISTRUSTED = "learned_from/", "audit/distrusted/"
POINT_FOLDER = re.compile(r"seed-\d+")
# of what is learned
SAYS_NOTHING = ("name", "seed", "wandb", "checkpoint_every", "checkpoints", "profile", "swarm.alone")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run. point: of its sweep; "" of a run by itself. settings: the fields in which its config differs
    from the defaults, but for those that say nothing of what is learned.

    All else is of honest nodes alone (not `simulation.adversaries`). rewards: by round, the mean of `reward/mean`.
    held_out: (rounds learned from by then, mean accuracy). Sums: generated, trained_local, trained_external
    (completions), sampled_tokens (of those not put aside), text_tokens (of texts learned from), flops (of learning).
    from_peers, from_ill: groups that were learned from, of all peers and of those that mean ill. found_after: rounds
    until each node distrusted all of these at some time; None if one never did. accused: honest nodes that one did.
    """

    name: str
    point: str
    seed: int
    settings: dict[str, Any]
    nodes: int
    rewards: list[float]
    held_out: list[tuple[int, float]]
    generated: float
    trained_local: float
    trained_external: float
    sampled_tokens: float
    text_tokens: float
    flops: float
    seconds: float
    from_peers: float = 0.0
    from_ill: float = 0.0
    found_after: int | None = None
    accused: int = 0
    by_chance: bool = False
    hardware: str = "unknown"
    versions: dict[str, str] = {}
    commit: str = "unknown"


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """What reports of several runs are made of. points: what each changes, in the order of tables; runs by themselves
    may have none. unfinished: runs that are not in it.
    """

    name: str = ""
    baseline: str = ""
    points: dict[str, dict[str, Any]] = {}
    runs: list[Outcome] = []
    unfinished: list[str] = []


def settings_of(config: ml_collections.ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """As `Outcome.settings`; a field that the config lacks has its default."""
    told = json.loads(ml_collections.ConfigDict(config).to_json_best_effort())
    defaults = {name: json.loads(json.dumps(field.default)) for name, field in common.FIELDS.items()}
    known = {name: fields.value_of(told, name) for name in common.FIELDS if fields.has(told, name)}
    known = {name: value for name, value in known.items() if not {name, name.split(".")[0]}.intersection(SAYS_NOTHING)}
    return {name: value for name, value in known.items() if value != defaults[name]}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The same for equal settings only."""
    return json.dumps(settings, sort_keys=True)


def of_run(run: Run, point: str = "", commit: str = "unknown") -> Outcome:
    """Of a finished run."""
    summary = run.summary
    ill = {node for node, _ in summary.config.get("simulation", {}).get("adversaries", ())}
    honest = {name: own for name, own in run.rows.items() if own[0].get("node") not in ill}
    rows = [row for own in honest.values() for row in own]
    rewards, held_out = (collections.defaultdict[int, list[float]](list) for _ in range(2))
    for row in rows:
        if "reward/mean" in row:
            rewards[row["round"]].append(row["reward/mean"])
    for name in honest:
        for learned, accuracy in run.measured(name):
            held_out[learned].append(accuracy)

    def total(metric: str) -> float:
        return float(sum(row.get(metric, 0.0) for row in rows))

    bad = {own[0]["name"] for own in run.rows.values()} - honest.keys()
    found = [_found_after(own, bad) for own in honest.values()]
    distrusted = {name for row in rows for name in _authors(row, DISTRUSTED)}
    return Outcome(
        name=summary.name,
        point=point,
        seed=summary.seed,
        settings=settings_of(summary.config),
        nodes=summary.nodes - len(ill),
        rewards=[round(fmean(rewards[r]), 6) for r in sorted(rewards)],
        held_out=[(learned, round(fmean(held_out[learned]), 6)) for learned in sorted(held_out)],
        generated=total("sample/completions"),
        trained_local=total("learn/rows_local"),
        trained_external=total("learn/rows_external"),
        sampled_tokens=total("sample/tokens"),
        text_tokens=total("learn/text_tokens"),
        flops=total("learn/flops"),
        seconds=summary.wall_seconds,
        from_peers=total("groups/external"),
        from_ill=float(sum(n for row in rows for name, n in _authors(row, LEARNED_FROM).items() if name in bad)),
        found_after=None if not bad or None in found else max(at for at in found if at is not None),
        accused=len(distrusted & honest.keys()),
        by_chance=summary.by_chance,
        hardware=summary.hardware,
        versions=summary.versions,
        commit=commit,
    )


def _authors(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """A metric that a row has of authors, by their nodes' names."""
    of = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
    return {friendly_name(bytes.fromhex(author)): value for author, value in of.items()}


def _found_after(rows: Sequence[Mapping[str, Any]], bad: Set[str]) -> int | None:
    """Rounds until a node had distrusted all of these at some time."""
    known = set[str]()
    for row in rows:
        known |= _authors(row, DISTRUSTED).keys()
        if known >= bad:
            return row["round"] + 1
    return None


def find(paths: Iterable[Path], commit: str = "unknown") -> Outcomes:
    """Of folders of runs, of points and of sweeps, and of saved files. Raises UsageError."""
    return merged([_find(path, commit) for path in paths])


def _find(path: Path, commit: str) -> Outcomes:
    if path.is_file():
        return read(path)
    if (path / SUMMARY_FILE).exists():
        folders, sweep = [path], path.parent.parent
    else:
        folders, sweep = [found.parent for found in path.glob(f"*/seed-*/{SUMMARY_FILE}")], path
        if not folders:
            folders, sweep = [found.parent for found in path.glob(f"seed-*/{SUMMARY_FILE}")], path.parent
        folders = [folder for folder in folders if POINT_FOLDER.fullmatch(folder.name)]
        folders.sort(key=lambda folder: (folder.parent.name, int(folder.name.removeprefix("seed-"))))
    if not folders:
        raise UsageError(f"{path / SUMMARY_FILE} does not exist: no run has ended in {path}.")
    found = _sweep(sweep) if POINT_FOLDER.fullmatch(folders[0].name) else Outcomes()
    runs, unfinished = list[Outcome](), list[str]()
    for folder in folders:
        run = load(folder)
        if run.summary.status == "finished":
            point = folder.parent.name if POINT_FOLDER.fullmatch(folder.name) else ""
            runs.append(of_run(run, point, commit))
        else:
            unfinished.append(str(folder))
    return msgspec.structs.replace(found, runs=runs, unfinished=unfinished)


def _sweep(folder: Path) -> Outcomes:
    """What a sweep says of itself in its folder."""
    if not (folder / SWEEP_FILE).exists():
        return Outcomes()
    return read(folder / SWEEP_FILE)


def read(path: Path) -> Outcomes:
    """A saved file. Raises UsageError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Outcomes)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is not what experiments.report --save writes: {error}.") from None


def save(path: Path, found: Outcomes) -> None:
    """A line for each run, so that a difference between two files can be read. Raises UsageError."""
    runs = ",\n".join(msgspec.json.encode(run).decode() for run in found.runs)
    head = msgspec.json.encode(msgspec.structs.replace(found, runs=[], unfinished=[])).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, head.replace('"runs":[]', f'"runs":[\n{runs}\n]') + "\n")


def merged(parts: Sequence[Outcomes]) -> Outcomes:
    """All of them; of a point and seed that is there twice with the same settings, under the same name, the last.

    Raises UsageError where runs of a point differ in more than their seed.
    """
    runs: dict[Any, Outcome] = {}
    settings: dict[str, Outcome] = {}
    for number, run in enumerate(run for part in parts for run in part.runs):
        runs[(run.name, run.point, run.seed) if run.point else number] = run
    for run in runs.values():
        other = settings.setdefault(run.point, run)
        if run.point and fingerprint(other.settings) != fingerprint(run.settings):
            differing = min(f for f in run.settings | other.settings if run.settings.get(f) != other.settings.get(f))
            raise UsageError(f"runs of the point {run.point!r} differ in more than their seed: config.{differing}.")
    return Outcomes(
        name=", ".join(dict.fromkeys(part.name for part in parts if part.name)),
        baseline=next((part.baseline for part in parts if part.baseline), ""),
        points={name: changes for part in parts for name, changes in part.points.items()},
        runs=list(runs.values()),
        unfinished=[name for part in parts for name in part.unfinished],
    )


def by_point(found: Outcomes) -> dict[str, list[Outcome]]:
    """The runs of each point, in the order of the sweep; those by themselves are grouped by what they differ in."""
    alone = [run for run in found.runs if not run.point]
    by_name = all(a.settings == b.settings for a in alone for b in alone if a.name == b.name)
    every = {field for run in alone for field in run.settings}
    differing = sorted(f for f in every if len({json.dumps(run.settings.get(f)) for run in alone}) > 1)
    defaults = {name: field.default for name, field in common.FIELDS.items()}
    groups: dict[str, list[Outcome]] = {name: [] for name in found.points}
    for run in found.runs:
        own = {field: run.settings.get(field, defaults.get(field)) for field in differing}
        told = run.name if by_name else " ".join(f"{field}={value}" for field, value in own.items())
        groups.setdefault(run.point or told, []).append(run)
    return {name: sorted(runs, key=lambda run: run.seed) for name, runs in groups.items() if runs}


def only(found: Outcomes, names: Sequence[str]) -> Outcomes:
    """The runs of some points, in that order, under the names that they have among all. Raises UsageError."""
    groups = by_point(found)
    if unknown := [name for name in names if name not in groups]:
        raise UsageError(f"there is no point {unknown[0]!r}; there are {', '.join(groups)}.")
    runs = [msgspec.structs.replace(run, point=name) for name in names for run in groups[name]]
    points = {name: found.points.get(name, {}) for name in names}
    return msgspec.structs.replace(found, runs=runs, points=points)
