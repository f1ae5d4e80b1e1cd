"""What a study of configs/NAME.py came to, in the documents: tables of its points, and what may be claimed."""

import importlib
import math
from collections.abc import Mapping, Sequence

from rlswarm_jax.errors import UsageError
from rlswarm_jax.reporting import statistics
from rlswarm_jax.reporting.comparison import cumulative, held_out
from rlswarm_jax.reporting.figures import Block
from rlswarm_jax.reporting.outcomes import Outcome, Outcomes, by_point
from rlswarm_jax.reporting.results import MISSING, mean_sd
from rlswarm_jax.reporting.statistics import Paired

ENOUGH = 4  # seeds, of fewer of which nothing is claimed
SURE = 0.05  # of few seeds the bootstrap's interval is too narrow, so a paired t-test has to agree


def study_block(name: str, table: str, found: Outcomes) -> Block:
    """A table of the points that configs/NAME.py has under TABLES[table], each against the first of them.

    Raises UsageError where it has no such table.
    """
    tables = importlib.import_module(f"configs.{name}").TABLES
    if table not in tables:
        raise UsageError(f"unknown block {name}/{table}; expected one of {', '.join(tables)}, or claims.")
    points, horizons = tables[table]
    runs = {point: own for point, own in by_point(found).items() if point in points}
    runs = {point: runs[point] for point in points if point in runs}
    header = ["point", "seeds", *(f"held out, {at} rounds" for at in horizons), "less the first", "reward, all rounds"]
    rows = [[*header, "less the first", "sampled", "learned from"]]
    first = runs.get(points[0], [])
    for point, own in runs.items():
        cells = [_spread([held_out(run, at) for run in own]) for at in horizons]
        cells += [_against(own, first, held_out) if point != points[0] else ""]
        cells += [_spread([cumulative(run) for run in own])]
        cells += [_against(own, first, cumulative) if point != points[0] else ""]
        learned = [(run.trained_local + run.trained_external) / run.nodes for run in own]
        cells += [f"{_sampled(own):,.0f}"]
        rows.append([point, str(len(own)), *cells, f"{sum(learned) / len(own):,.0f}"])
    missing = [point for point in points if point not in runs]
    note = (
        "Held out: accuracy on 512 problems, %, mean over nodes; mean ± sd over seeds. Less the first: by seed, mean "
        f"and {statistics.LEVEL:.0%} BCa bootstrap interval. Sampled, learned from: completions a node, all rounds."
    )
    note += f" Not run yet: {', '.join(missing)}." if missing else ""
    used = [run for own in runs.values() for run in own]
    machines, commits = (", ".join(dict.fromkeys(of)) for of in ([r.hardware for r in used], [r.commit for r in used]))
    return Block(rows, f"{note} {machines}; commit {commits}." if used else note, [])


def attacks_block(table: str, found: Outcomes) -> Block:
    """A row for each attack, number of attackers and defence of configs/attacks.py; against the same with no attacker.

    Raises UsageError where there is no such table.
    """
    study = importlib.import_module("configs.attacks")
    if table not in study.TABLES:
        raise UsageError(f"unknown block attacks/{table}; expected one of {', '.join(study.TABLES)}.")
    attacks, nobody = study.TABLES[table]
    points, missing = by_point(found), dict[str, list[str]]()
    rows = [["attack", "attackers", "defence", "seeds", "learned from them, %", "held out, %", "less the unattacked"]]
    rows[0] += ["rounds until found out", "honest accused"]
    for attack, count in [(nobody, 0), *((attack, count) for attack in attacks for count in study.COUNTS)]:
        for defence in study.DEFENCES:
            runs = points.get(study.name(attack, count, defence), [])
            if not runs:
                missing.setdefault(attack, []).append(study.name(attack, count, defence))
                continue
            share = [100 * run.from_ill / run.from_peers for run in runs if run.from_peers]
            at = [run.found_after for run in runs if run.found_after is not None]
            within = (
                "–".join(str(n) for n in dict.fromkeys((min(at), max(at))))
                if at and len(at) == len(runs)
                else f"{len(at)} of {len(runs)} runs"
            )
            cells = [attack, str(count), defence, str(len(runs)), _spread(share) if count else ""]
            cells += [_spread([held_out(run) for run in runs])]
            cells += [_against(runs, points.get(study.name(nobody, 0, defence), []), held_out) if count else ""]
            audited = count and study.DEFENCES[defence].get("audit.auditors")
            rows.append([*cells, within if audited else "", str(sum(run.accused for run in runs))])
    note = (
        "Mean ± sd over seeds, of honest nodes. Learned from them: of peers' groups. Less the unattacked: by seed, "
        f"mean and {statistics.LEVEL:.0%} BCa bootstrap interval, with the same defence. Found out: until every honest "
        "node had distrusted every attacker. Accused: honest nodes that an honest one distrusted, all runs."
    )
    begun = {row[0] for row in rows}
    unknown = [name for attack, names in missing.items() for name in (names if attack in begun else [attack])]
    note += f" Not run yet: {', '.join(unknown)}." if unknown else ""
    used = [run for own in points.values() for run in own]
    machines, commits = (", ".join(dict.fromkeys(of)) for of in ([r.hardware for r in used], [r.commit for r in used]))
    return Block(rows, f"{note} {machines}; commit {commits}." if used else note, [])


def claims(name: str, found: Outcomes) -> list[str]:
    """A sentence for each comparison that configs/NAME.py has under CLAIMS, as far as there are seeds enough."""
    points, said = by_point(found), list[str]()
    for what, point, other, horizon in importlib.import_module(f"configs.{name}").CLAIMS:
        difference = compared(points, point, other, horizon)
        if difference is None or difference.n < ENOUGH:
            said.append(f"**{what}:** not measured enough yet.")
            continue
        verdict = (
            "cannot be told" if difference.p_t >= SURE else "holds" if difference.low > 0 else "the opposite holds"
        )
        verdict = verdict if difference.low > 0 or difference.high < 0 else "cannot be told"
        ours, theirs = (_spread([held_out(run, horizon) for run in points[p]]) for p in (point, other))
        said.append(
            f"**{what}: {verdict}.** After {horizon} rounds {ours} % held out ({point}) against {theirs} % ({other}): "
            f"{_interval(difference)} points, {difference.n} seeds."
        )
    return said


def headline(name: str, found: Outcomes) -> str:
    """The study's answer in two sentences, of the points that configs/NAME.py has under HEADLINE."""
    point, other, richer, horizons = importlib.import_module(f"configs.{name}").HEADLINE
    points = by_point(found)
    gains = [(at, compared(points, point, other, at)) for at in horizons]
    told = ", ".join(f"{_interval(gain)} points after {at} rounds" for at, gain in gains if gain)
    times = _sampled(points.get(richer, ())) / (_sampled(points.get(point, ())) or math.nan)
    last = compared(points, point, richer, horizons[-1])
    beside = f"; against one alone that samples {times:.1f} times as much, {_interval(last)}" if last else ""
    return f"Eight nodes that learn half of it from peers, against nodes alone: {told}{beside}."


def rarity(name: str, found: Outcomes) -> str:
    """The same of the comparison under RARITY: both as they are, since one of them is next to nothing."""
    point, other, horizon = importlib.import_module(f"configs.{name}").RARITY
    points = by_point(found)
    ours, theirs = (_spread([held_out(run, horizon) for run in points.get(p, ())]) for p in (point, other))
    return f"after {horizon} rounds {ours} % of new words are right, and {theirs} % of each by itself."


def _sampled(runs: Sequence[Outcome]) -> float:
    """Completions a node, mean over runs."""
    return sum(run.generated / run.nodes for run in runs) / len(runs) if runs else 0.0


def compared(points: Mapping[str, Sequence[Outcome]], point: str, other: str, horizon: int | None) -> Paired | None:
    """How much more accurate one is by seed; None where no seed has both."""
    ours, theirs = ({run.seed: held_out(run, horizon) for run in points.get(p, ())} for p in (point, other))
    seeds = [s for s in ours.keys() & theirs.keys() if not math.isnan(ours[s] - theirs[s])]
    return statistics.paired([ours[s] - theirs[s] for s in sorted(seeds)]) if seeds else None


def _against(runs: Sequence[Outcome], first: Sequence[Outcome], of) -> str:
    ours, theirs = ({run.seed: of(run) for run in own} for own in (runs, first))
    seeds = sorted(ours.keys() & theirs.keys())
    return _interval(statistics.paired([ours[s] - theirs[s] for s in seeds])) if seeds else MISSING


def _interval(found: Paired) -> str:
    between = f" ({found.low:+.1f} to {found.high:+.1f})" if not math.isnan(found.low) else ""
    return f"{found.mean:+.1f}{between}"


def _spread(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return mean_sd(known, ".1f") if known else MISSING
