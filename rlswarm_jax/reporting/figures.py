"""Measured figures for documents: what is in results/, and the tables and lines that it is written as."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import msgspec

from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import ALONE
from rlswarm_jax.reporting import results
from rlswarm_jax.reporting.blocks import Table
from rlswarm_jax.reporting.measures import Measure
from rlswarm_jax.reporting.results import Summary, duration, mean, mean_sd, percent, points
from rlswarm_jax.reporting.statistics import mean_interval


class Runs(msgspec.Struct, frozen=True):
    """results/NAME.json of an experiment: its finished runs, one for each seed."""

    runs: list[Summary]
    commit: str
    hardware: str


class Evaluation(msgspec.Struct, frozen=True):
    """evaluation.json of a run: measures by name, by task."""

    name: str
    seed: int
    before: dict[str, dict[str, Measure]]
    after: dict[str, dict[str, Measure]]


class Evaluations(msgspec.Struct, frozen=True):
    """results/NAME.json of a study: of configs/NAME.py and its variants, one for each seed."""

    evaluations: list[Evaluation]
    commit: str
    hardware: str


class Trial(msgspec.Struct, frozen=True):
    """How a run with other fields than its config's ended. first, vote, revised: share that is right, of problems that
    all nodes have, over the last fifth of its rounds. accuracy: held out, after the last.
    """

    changed: dict[str, Any]
    seed: int
    first: float
    vote: float
    revised: float
    accuracy: float


class Trials(msgspec.Struct, frozen=True):
    """results/NAME.json of what was tried."""

    trials: list[Trial]
    commit: str
    hardware: str


class Warmstart(msgspec.Struct, frozen=True):
    """results/warmstart.json: of both models `greedy`, `sampled`, both by `/<task>`, and `fingerprint`."""

    parameters: int
    base: dict[str, float | str]
    spoiled: dict[str, float | str]
    seconds: float


class Gas(msgspec.Struct, frozen=True):
    """results/gas.json: gas of each call of the coordinator, and of the court."""

    compiler: str
    evm: str
    gas: dict[str, int]
    court: dict[str, int] = {}


class Benchmark(msgspec.Struct, frozen=True):
    """A line of results/benchmarks/*.jsonl; `ratio` is the value's to that of `versus`."""

    benchmark: str
    value: float
    unit: str
    hardware: str
    config: dict[str, Any] = {}
    versus: str | None = None
    ratio: float | None = None
    measured: dict[str, float] = {}
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Block:
    """Figures for people: a table with a note below it for Markdown, plain lines for a docstring."""

    table: Table
    note: str
    lines: Sequence[str]


def runs_block(name: str, found: Runs) -> Block:
    """Accuracy before and after and the cost of each seed; mean ± sd; the un-spoiled base."""

    def column(field: str, scale: float = 1.0) -> list[float]:
        values = [getattr(run, field) for run in found.runs]
        return [scale * value for value in values if value is not None]

    befores, afters, shares = column("before", 100), column("after", 100), column("external_fraction", 100)
    walls, peaks = column("wall_seconds"), column("peak_memory_mb")
    if not len(befores) == len(afters) == len(found.runs) > 0:
        raise UsageError(f"results/{name}.json needs runs with accuracies before and after; collect it again.")
    gains = [after - before for before, after in zip(befores, afters, strict=True)]
    kinds = [kind for kind in ALONE if all(kind in run.alone for run in found.runs)]
    rows = [["seed", "before", "after", *(ALONE[kind] for kind in kinds), "gain, points", "rounds"]]
    rows[0] += ["wall time, s", "peak, MB", "external"]
    for run in found.runs:
        cells = [percent(run.before), percent(run.after), *(percent(run.alone[kind]) for kind in kinds)]
        cells += [points(run.before, run.after), f"{run.rounds:,}"]
        peak = results.MISSING if run.peak_memory_mb is None else f"{run.peak_memory_mb:,.0f}"
        rows.append([str(run.seed), *cells, f"{run.wall_seconds:,.0f}", peak, percent(run.external_fraction)])
    alone = {kind: [100 * (run.alone[kind] or 0.0) for run in found.runs] for kind in kinds}
    columns = [(befores, ".1f"), (afters, ".1f"), *((values, ".1f") for values in alone.values()), (gains, "+.1f")]
    columns += [([], ""), (walls, ",.0f"), (peaks, ",.0f"), (shares, ".1f")]
    rows.append(["mean ± sd", *(mean_sd(values, form) if values else "" for values, form in columns)])
    base = mean(run.held_out_accuracy.base for run in found.runs)
    if base is not None:
        rows.append(["un-spoiled base", "", percent(base), *[""] * (len(rows[0]) - 3)])
    first, seeds = found.runs[0], f"{len(gains)} seed{'s' * (len(gains) > 1)}"
    by_chance = any(run.by_chance for run in found.runs)
    nodes = "one node" if first.nodes == 1 else f"mean over {first.nodes} nodes"
    changed = sorted({field for run in found.runs for field in changed_fields(run)})
    origin = f"commit {found.commit}" + (f", before changes of {', '.join(changed)}" if changed else "")
    before, after = percent(fmean(befores) / 100), percent(fmean(afters) / 100)
    gain = f"{mean_sd(gains)} points over {seeds}, {min(gains):+.1f} with the worst"
    lines = [f"held-out accuracy {before} -> {after}: {gain}"]
    lines += [f"{ALONE[kind]}: {mean_sd(values, '.1f')} %" for kind, values in alone.items()]
    lines += [f"{mean_sd(walls, '.0f')} s a run on {found.hardware}", origin]
    lines += ["runs differ by seed and by chance beacons"] if by_chance else []
    note = f"Greedy accuracy on {first.held_out_problems:,} held-out problems, {nodes}. {found.hardware}; "
    chance = (
        " Runs differ by seed and by chance beacons: the chain's, from which their problems follow."
        if by_chance
        else ""
    )
    return Block(rows, f"{note}{origin}.{chance}", lines)


def changed_fields(run: Summary) -> set[str]:
    """Fields that say what was learned, in which a run differs from its config file."""
    fields = results.overrides(run) or {}
    return {f for f in fields if f != "seed" and f.split(".")[0] not in results.UNIMPORTANT}


COMPARED = [
    ("majority of the swarm", "first answer"),
    ("critic names a best answer", "critic at random"),
    ("critic names a best answer", "best constant critic"),
    ("contested: critic names a best answer", "contested: critic at random"),
    ("contested: critic names a best answer", "contested: best constant critic"),
    ("vote of the critics", "first answer"),
    ("revised", "first answer"),
    ("revised", "vote of the critics"),
    ("majority of revised", "vote of the critics"),
]


def evaluations_block(found: Evaluations) -> Block:
    """A row for each measure, a column for each variant after training: means over seeds, and their standard errors.

    Below, what measures differ by within the same seeds.
    """
    variants = list(dict.fromkeys(e.name for e in found.evaluations))
    every = [e.before for e in found.evaluations[:1]] + [e.after for e in found.evaluations]
    names = list(dict.fromkeys(name for tasks in every for name in tasks["all tasks"]))
    columns = {"before": [e.before for e in found.evaluations if e.name == variants[0]]}
    columns |= {v: [e.after for e in found.evaluations if e.name == v] for v in variants}

    def values(of: Sequence[dict[str, dict[str, Measure]]], name: str) -> list[float]:
        return [100 * tasks["all tasks"][name].mean for tasks in of if name in tasks["all tasks"]]

    def cell(found: Sequence[float], sign: str = "") -> str:
        if not found:
            return ""
        error = f" ± {stdev(found) / math.sqrt(len(found)):.1f}" if len(found) > 1 else ""
        return f"{fmean(found):{sign}.1f}{error}"

    def difference(of: Sequence[dict[str, dict[str, Measure]]], name: str, other: str) -> list[float]:
        both = [tasks["all tasks"] for tasks in of if {name, other} <= tasks["all tasks"].keys()]
        return [100 * (measured[name].mean - measured[other].mean) for measured in both]

    seeds = len(columns[variants[0]])
    headers = [name if len(of) == seeds else f"{name} ({len(of)} of {seeds} seeds)" for name, of in columns.items()]
    rows = [["held-out problems, % right", *headers]]
    rows += [[name, *(cell(values(of, name)) for of in columns.values())] for name in names]
    compared = [(a, b) for a, b in COMPARED if a in names and b in names]
    rows += [[f"{a}, less {b}", *(cell(difference(of, a, b), "+") for of in columns.values())] for a, b in compared]
    first = found.evaluations[0].before["all tasks"]
    problems = max(measured.problems for measured in first.values())
    note = f"{problems} problems, mean over nodes; ± standard error over {seeds} seeds, on the same problems. "
    note += f"{found.hardware}; "
    lines = [f"{row[0]}: {row[1]} -> {row[2]} %" for row in rows[1:] if row[1] and row[2]]
    return Block(
        rows, f"{note}commit {found.commit}.", [*lines, f"± standard error over {seeds} seeds; {found.commit}"]
    )


def trials_block(found: Trials) -> Block:
    """A row for each setting, in the order tried: means over its seeds, and what a revision is worth beside the first
    answer, with Student's 95 % interval where there are several seeds.
    """
    rows = [["setting", "seeds", "first answer", "critics' vote", "revised", "revised, less first", "held out"]]
    settings = list(dict.fromkeys(json.dumps(trial.changed) for trial in found.trials))
    common = {
        name: value
        for name, value in json.loads(settings[0]).items()
        if all(json.loads(setting).get(name) == value for setting in settings)
    }
    for setting in settings:
        of = [trial for trial in found.trials if json.dumps(trial.changed) == setting]
        means = [f"{100 * fmean(getattr(trial, name) for trial in of):.1f}" for name in ("first", "vote", "revised")]
        gains = [100 * (trial.revised - trial.first) for trial in of]
        low, high = mean_interval(gains)
        within = f" ({low:+.1f} to {high:+.1f})" if len(gains) > 1 else ""
        told = [f"`{name}={value}`" for name, value in json.loads(setting).items() if name not in common]
        accuracy = f"{100 * fmean(trial.accuracy for trial in of):.1f}"
        rows.append([", ".join(told) or "default", str(len(of)), *means, f"{fmean(gains):+.1f}{within}", accuracy])
    note = "% right, of all nodes' shared problems over the last fifth of the rounds; *held out* are first answers, "
    note += "greedy. " + (f"With {', '.join(f'`{n}={v}`' for n, v in common.items())}. " if common else "")
    lines = [f"{row[0].replace('`', '')}: revised, less first answer, {row[5]} points" for row in rows[1:]]
    return Block(rows, f"{note}{found.hardware}; commit {found.commit}.", [*lines, f"commit {found.commit}"])


def warmstart_block(found: Warmstart) -> Block:
    """Both stages of the embedded model, overall and by task."""

    def cells(suffix: str) -> list[str]:
        models = (found.base, found.spoiled)
        values = [model.get(how + suffix) for model in models for how in ("greedy", "sampled")]
        return [percent(value if isinstance(value, float) else None) for value in values]

    tasks = [key.removeprefix("greedy/") for key in found.base if key.startswith("greedy/")]
    rows = [["task", "base, greedy", "base, sampled", "spoiled, greedy", "spoiled, sampled"]]
    rows += [["all", *cells("")], *([task, *cells(f"/{task}")] for task in tasks)]
    made = f"{found.parameters:,} parameters, made in {duration(found.seconds)}"
    base, spoiled = (f"{rows[1][i]} greedy, {rows[1][i + 1]} sampled at temperature 1" for i in (1, 3))
    prints = [f"`{model.get('fingerprint', '?')}`" for model in (found.base, found.spoiled)]
    note = f"Accuracy on held-out problems; {made}. Weights: base {prints[0]}, spoiled {prints[1]}."
    return Block(rows, note, [f"base: {base}", f"spoiled: {spoiled}", made])


def gas_block(found: Gas, court: bool = False) -> Block:
    """A row for each call of the coordinator, or of the court."""
    calls = found.court if court else found.gas
    rows = [["call", "gas"], *([name, f"{gas:,}"] for name, gas in calls.items())]
    return Block(rows, f"solc {found.compiler.partition('+')[0]}, the EVM's {found.evm}.", [])


GWEI = (0.01, 1.0, 20.0)  # prices of gas
A_DAY = 24 * 60  # rounds of the chain, at one a minute


def gas_day_block(found: Gas) -> Block:
    """What a node pays a day at one round of the chain a minute, and what a swarm pays together."""
    gas = found.gas
    ending = gas["advanceRound"] + gas["settle, first of a round: records its beacon"] - gas["settle"]
    daily = {"**a node: its settlement**": gas["settle"], "the whole swarm: ending a round, its beacon": ending}
    once = {"a node: registration": gas["register"], "the whole swarm: deployment": gas["deployment"]}
    rows = [["", "gas", "times a day", *(f"coins at {price:g} gwei" for price in GWEI)]]
    for times, parts in ((A_DAY, daily), (1, once)):
        for name, used in parts.items():
            costs = [number(times * used * price / 1e9) for price in GWEI]
            rows.append([name, f"{used:,}", f"{times:,}" if parts is daily else "once", *costs])
    return Block(rows, "From results/gas.json (python -m benchmarks.gas).", [])


def benchmarks_block(found: Sequence[Benchmark]) -> Block:
    """A row for each measurement."""
    rows = [["benchmark", "config", "value", "against", "hardware"]]
    for b in found:
        config = " ".join(f"{name}={value}" for name, value in results.flatten(b.config).items())
        against = "" if b.ratio is None else f"{b.ratio:.2f} × {b.versus}"
        rows.append([b.benchmark, config, f"{number(b.value)} {b.unit}", against, b.hardware])
    versions = dict.fromkeys(", ".join(f"{name} {v}" for name, v in b.versions.items()) for b in found)
    lines = [f"{row[0]} ({row[1]}): {row[2]}" for row in rows[1:]]
    return Block(rows, f"Versions: {'; '.join(filter(None, versions))}.", lines)


def decode_block(found: Sequence[Benchmark]) -> Block:
    """A row for each side of each shape."""
    rows = [["model", "questions × completions", "prompt", "side", "tokens/s", "× ours", "% of roofline", "step, ms"]]
    rows[0] += ["first token, s", "compiles, s", "peak, MB"]
    for b in found:
        if b.benchmark != "decode":
            continue
        of, m = b.config, b.measured
        shape = [of["model"], f"{of['questions']} × {of['completions']}", str(of["prompt"])]
        speed = [
            number(b.value),
            "" if b.ratio is None else f"{b.ratio:.2f}",
            f"{100 * m['roofline']:.0f}" if "roofline" in m else "",
        ]
        seconds = [number(m[name]) if name in m else "" for name in ("step_ms", "first_token_s", "first_call_s")]
        rows.append([*shape, of["side"], *speed, *seconds])
        rows[-1].append(f"{m['peak_mb']:,.0f}")
    rates: dict[str, list[float]] = {}
    for b in found:
        if b.benchmark != "decode":
            rates.setdefault(f"{b.benchmark} by {b.config['method']}", []).append(b.value)
    spans = {name: "–".join(dict.fromkeys(number(f(of)) for f in (min, max))) for name, of in rates.items()}
    limits = ", ".join(f"{name} {span} GB/s" for name, span in spans.items())
    lines = [" ".join(row) for row in rows[1:]]
    threads = {str(b.config.get("threads")) for b in found}
    return Block(rows, f"{found[0].hardware}, {'/'.join(sorted(threads))} threads: {limits}.", lines)


def replay_block(found: Sequence[Benchmark]) -> Block:
    """What replay exposes, and below it what two honest computations differ by."""
    rows = [["what is not as it is said", "dtype", "tokens to expose it, on average"]]
    honest: dict[str, list[str]] = {}
    for b in found:
        if b.benchmark == "tokens to expose":
            none = "" if b.config["exposing"] else f"none in {b.config['replayed']:,}"
            rows.append([b.config["wrong"], b.config["weights"], none or number(b.value)])
        else:
            of = " ".join([b.config["weights"], b.config["cache"], b.config.get("shape", "")]).strip()
            honest.setdefault(of, []).append(f"{b.benchmark} {number(b.value)} {b.unit}")
    note = "; ".join(f"{of}: {', '.join(values)}" for of, values in honest.items())
    return Block(rows, f"Two honest computations, by dtype of weights and cache: {note}. {found[0].hardware}.", [])


def patches_block(found: Sequence[Benchmark]) -> Block:
    """What a step leaves of the weights, and what it takes to keep that and to make it again."""
    timed = ("hash", "encode", "apply")
    rows = [["dtype", "rate", "entries that stay", "patch", *timed, *(f"{name}, 0.5B" for name in timed)]]
    for b in found:
        sizes = [f"{100 - b.measured['changed']:.2f} %", "whole" if b.value > 99 else f"{number(b.value)} %"]
        times = [f"{number(b.measured[name])} ms" for name in timed]
        times += [f"{number(b.measured[f'{name} 0.5B'])} s" for name in timed]
        rows.append([b.config["dtype"], f"{b.config['rate']:.0e}".replace("e-0", "e-"), *sizes, *times])
    note = "A patch in % of the whole. Processor time; that of 0.5B is computed from copies of the same tensors"
    return Block(rows, f"{note}. {found[0].hardware}.", [])


def page_block(found: Sequence[Benchmark]) -> Block:
    """What a page costs whoever opens it, by the length of the run; below, what it costs the run."""
    by_rounds: dict[int, dict[str, Benchmark]] = {}
    for b in found:
        if "rounds" in b.config:
            by_rounds.setdefault(b.config["rounds"], {})[b.benchmark] = b
    rows = [["8 nodes, rounds", "first paint", "whole view", "received", "run read", "slowest answer", "its size"]]
    for rounds, of in by_rounds.items():
        paint, views = of["first paint"], of["views"]
        seen = [
            f"{number(paint.value)} ms",
            f"{number(paint.measured['whole'])} ms",
            f"{number(paint.measured['kB'])} kB",
        ]
        read = [
            f"{number(views.measured['read'])} ms",
            f"{number(views.value)} ms",
            f"{number(views.measured['kB'])} kB",
        ]
        rows.append([f"{rounds:,}", *seen, *read])
    beside = next(b for b in found if b.benchmark == "beside a run")
    note = f"Beside a run, with one browser that looks on: {number(beside.value)} {beside.unit}; before that, nothing"
    return Block(rows, f"{note}. Reading and answers in processor time. {found[0].hardware}.", [])


def roc_block(found: Sequence[Benchmark]) -> Block:
    """A row for each lie, a column for each size of an audit; below, the best of several, and who did not lie."""
    lies = [b for b in found if b.benchmark == "detected"]
    sizes = sorted({b.config["tokens"] for b in lies})
    rows = [["what is not as it is said", "temperature", "weights", "bits a token", *(f"{size:,}" for size in sizes)]]
    of: dict[tuple, dict[int, Benchmark]] = {}
    for b in lies:
        about = (b.config["lie"], f"{b.config['temperature']:g}", b.config["weights"])
        of.setdefault(about, {})[b.config["tokens"]] = b
    for about, by_size in of.items():
        bits = number(next(iter(by_size.values())).measured["bits_per_token"])
        rows.append([*about, bits, *(number(by_size[s].value) if s in by_size else "" for s in sizes)])
    groups = [
        f"{b.benchmark.partition(',')[0]}, {b.config['weights']} at {b.config['temperature']:g}: {number(b.value)} % "
        f"(computed {number(b.measured['computed'])} %)"
        for b in found
        if b.benchmark.endswith("one group")
    ]
    honest: dict[str, list[Benchmark]] = {}
    for b in found:
        if b.benchmark == "honest":
            honest.setdefault(f"{b.config['weights']} with a cache of {b.config['cache']}", []).append(b)
    worst = [
        f"{pair}: {sum(round(b.value * b.measured['audits'] / 100) for b in own)} of "
        f"{sum(int(b.measured['audits']) for b in own):,} audits accused, worst statistic "
        f"{number(max(b.measured['statistic'] for b in own))}, most of the allowance used "
        f"{100 * max(b.measured['allowance_share'] for b in own):.0f} %"
        for pair, own in honest.items()
    ]
    note = f"% of audits of so many tokens that are called *not produced*. One group of 8 found: {'; '.join(groups)}. "
    note += f"Honest samplers, {'; '.join(worst)}. " if worst else ""
    return Block(rows, f"{note}{found[0].hardware}.", [])


def plan_block(found: Sequence[Benchmark]) -> Block:
    """A row for each size, a column for each card; below, how well it foresaw what was measured."""
    planned = [b for b in found if b.benchmark == "plan"]
    cards = list(dict.fromkeys(b.config["card_gb"] for b in planned))
    rows = [["", *(f"{card} GB" for card in cards)]]
    for name in dict.fromkeys(b.config["model"] for b in planned):
        of = {b.config["card_gb"]: b for b in planned if b.config["model"] == name}
        cells = [f"{of[card].config['trains']}: {number(of[card].value)}" for card in cards if of[card].value]
        rows.append([name, *["-"] * (len(cards) - len(cells)), *cells])
    said = [
        f"{number(b.value)} GB with remat {b.config['remat']}, {b.ratio:.2f} of what was planned"
        for b in found
        if b.benchmark == "plan, measured"
    ]
    return Block(rows, f"Peak in GB, computed. Measured, {found[0].hardware}: {'; '.join(said)}.", [])


def number(value: float) -> str:
    """Three significant figures, or all of the whole part where that has more."""
    digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:,.{max(digits, 0)}f}"


BLOCKS_OF_THEIR_OWN = {
    "benchmarks/chain": benchmarks_block,
    "benchmarks/decode": decode_block,
    "benchmarks/page": page_block,
    "benchmarks/patches": patches_block,
    "benchmarks/plan": plan_block,
    "benchmarks/replay": replay_block,
    "benchmarks/roc": roc_block,
}
