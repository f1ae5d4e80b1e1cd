"""Writes measured figures into the README, docs/ and the configs' docstrings, so that none is ever typed.

    python -m experiments.render                     fills the blocks from results/
    python -m experiments.render --check             changes nothing; exit code 1 if a block is stale
    python -m experiments.render --collect quickstart runs/seed-0 runs/seed-1 ...
                                                     merges finished runs into results/quickstart.json
    python -m experiments.render --evaluations game runs/game-0 runs/game-control-0 ...
                                                     merges their evaluation.json into results/game.json

In Markdown a block stands between `<!-- rendered: NAME -->` and `<!-- /rendered -->`. In a config's docstring
it is the indented lines after `Measured (rendered: NAME):`. NAME is warmstart, gas, gas/day, benchmarks/chain,
benchmarks/decode, benchmarks/replay, benchmarks (all other results/benchmarks/*.jsonl), why (sentences for the README),
or an experiment of configs/ such as quickstart (results/NAME.json); NAME/line is that in one line.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec

from experiments import results
from experiments.cli import UsageError
from experiments.results import Summary, duration, mean, mean_sd, percent, points
from experiments.sections import Table, markdown_table

ROOT = Path(__file__).resolve().parents[1]
OPEN, CLOSE = "<!-- rendered: ", "<!-- /rendered -->"
MARKDOWN_BLOCK = re.compile(f"({OPEN}(\\S+) -->\n).*?({CLOSE})", re.DOTALL)
CONFIG_BLOCK = re.compile(r'^(( *)Measured \(rendered: (\S+)\):\n)(?:\2 +(?!""")\S.*\n)*', re.MULTILINE)
LINE = 100


class NotMeasured(Exception):
    """There is no results file; the message names it."""


class Runs(msgspec.Struct, frozen=True):
    """results/NAME.json of an experiment: its finished runs, one for each seed."""

    runs: list[Summary]
    commit: str
    hardware: str


class Measured(msgspec.Struct, frozen=True):
    """One measure of an evaluation: a mean over problems and its standard error."""

    mean: float
    error: float | None
    problems: int


class Evaluation(msgspec.Struct, frozen=True):
    """evaluation.json of a run: measures by name, by task."""

    name: str
    seed: int
    before: dict[str, dict[str, Measured]]
    after: dict[str, dict[str, Measured]]


class Evaluations(msgspec.Struct, frozen=True):
    """results/NAME.json of a study: of configs/NAME.py and its variants, one for each seed."""

    evaluations: list[Evaluation]
    commit: str
    hardware: str


class Warmstart(msgspec.Struct, frozen=True):
    """results/warmstart.json: of both models `greedy`, `sampled`, both by `/<task>`, and `fingerprint`."""

    parameters: int
    base: dict[str, float | str]
    spoiled: dict[str, float | str]
    seconds: float


class Gas(msgspec.Struct, frozen=True):
    """results/gas.json: gas of each call of the coordinator."""

    compiler: str
    evm: str
    gas: dict[str, int]


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


# --- what the blocks say


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
    rows = [["seed", "before", "after", "gain, points", "rounds", "wall time, s", "peak, MB", "external"]]
    for run in found.runs:
        cells = [percent(run.before), percent(run.after), points(run.before, run.after), f"{run.rounds:,}"]
        peak = results.MISSING if run.peak_memory_mb is None else f"{run.peak_memory_mb:,.0f}"
        rows.append([str(run.seed), *cells, f"{run.wall_seconds:,.0f}", peak, percent(run.external_fraction)])
    columns = [(befores, ".1f"), (afters, ".1f"), (gains, "+.1f"), ([], ""), (walls, ",.0f"), (peaks, ",.0f")]
    columns.append((shares, ".1f"))
    rows.append(["mean ± sd", *(mean_sd(values, form) if values else "" for values, form in columns)])
    base = mean(run.held_out_accuracy.base for run in found.runs)
    if base is not None:
        rows.append(["un-spoiled base", "", percent(base), "", "", "", "", ""])
    first, seeds = found.runs[0], f"{len(gains)} seed{'s' * (len(gains) > 1)}"
    by_chance = any(run.by_chance for run in found.runs)
    nodes = "one node" if first.nodes == 1 else f"mean over {first.nodes} nodes"
    changed = sorted({field for run in found.runs for field in _changed(run)})
    origin = f"commit {found.commit}" + (f", before changes of {', '.join(changed)}" if changed else "")
    before, after = percent(fmean(befores) / 100), percent(fmean(afters) / 100)
    gain = f"{mean_sd(gains)} points over {seeds}, {min(gains):+.1f} with the worst"
    lines = [f"held-out accuracy {before} -> {after}: {gain}"]
    lines += [f"{mean_sd(walls, '.0f')} s a run on {found.hardware}", origin]
    lines += ["runs differ by seed and by chance beacons"] if by_chance else []
    note = f"Greedy accuracy on {first.held_out_problems:,} held-out problems, {nodes}. {found.hardware}; "
    chance = (
        " Runs differ by seed and by chance beacons: the chain's, from which their problems follow."
        if by_chance
        else ""
    )
    return Block(rows, f"{note}{origin}.{chance}", lines)


def _changed(run: Summary) -> set[str]:
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

    def values(of: Sequence[dict[str, dict[str, Measured]]], name: str) -> list[float]:
        return [100 * tasks["all tasks"][name].mean for tasks in of if name in tasks["all tasks"]]

    def cell(found: Sequence[float], sign: str = "") -> str:
        if not found:
            return ""
        error = f" ± {stdev(found) / math.sqrt(len(found)):.1f}" if len(found) > 1 else ""
        return f"{fmean(found):{sign}.1f}{error}"

    def difference(of: Sequence[dict[str, dict[str, Measured]]], name: str, other: str) -> list[float]:
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


def gas_block(found: Gas) -> Block:
    """A row for each call."""
    rows = [["call", "gas"], *([name, f"{gas:,}"] for name, gas in found.gas.items())]
    return Block(rows, f"solc {found.compiler.partition('+')[0]}, the EVM's {found.evm}.", [])


GWEI = (0.01, 1.0, 20.0)  # prices of gas
A_DAY = 24 * 60  # rounds of the chain, at one a minute


def gas_day_block(found: Gas) -> Block:
    """What a node pays a day at one round of the chain a minute, and what a swarm pays together."""
    gas = found.gas
    claims = gas["reward, first of a round"] + 2 * gas["reward, further stage"]
    ending = gas["advanceRound"] + gas["commit, first of a round: records its beacon"] - gas["commit"]
    daily = {
        "a node: commitment": gas["commit"],
        "a node: claims for three stages": claims,
        "a node: vote for three": gas["vote for three"],
        "**a node: all of these**": gas["commit"] + claims + gas["vote for three"],
        "the whole swarm: ending a round, its beacon": ending,
    }
    once = {"a node: registration": gas["registerKey"], "the whole swarm: deployment": gas["deployment"]}
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


def why_lines(root: Path) -> list[str]:
    """What speaks for a swarm, a sentence each, with what was measured."""

    def benchmark(name: str, **config: Any) -> Benchmark:
        of = _read(root / "results" / "benchmarks" / f"{name}.jsonl", list[Benchmark])
        (found,) = [b for b in of if b.config == b.config | config and "code" not in b.config]
        return found

    swarm = _read(root / "results" / "quickstart.json", Runs)
    external = [100 * run.external_fraction for run in swarm.runs if run.external_fraction is not None]
    studied = evaluations_block(_read(root / "results" / "game.json", Evaluations))
    gain = {row[0]: row[1] for row in studied.table}
    alone, attacked = (benchmark("poison", keys=keys) for keys in (0, 8))
    shape = {"model": "0.5b", "questions": 1, "completions": 8}
    ours, theirs = (benchmark("decode", side=side, prompt=64, **shape) for side in ("ours", "genrl"))
    times, seconds = ours.value / theirs.value, fmean(run.wall_seconds for run in swarm.runs)
    return [
        f"**Others' work is worth having.** {fmean(external):.0f} % of what a quickstart node learns from are its "
        "peers' completions, and the majority of four nodes' answers is "
        f"{gain['majority of the swarm, less first answer']} points better than the average node's.",
        "**Others need not be trusted.** Each node scores everything again itself: four honest ones reach "
        f"{alone.value:.1f} % in {alone.config['rounds']} rounds by themselves, and {attacked.value:.1f} % beside "
        f"{attacked.config['keys']} keys that send records made to spoil them.",
        f"**It is quick to try things in.** A quickstart run takes {seconds:.0f} s on two CPU cores, and "
        f"{shape['completions']} completions of a 0.5B model come {times:.1f} times as fast there as from RL Swarm's "
        "own trainer.",
    ]


def number(value: float) -> str:
    """Three significant figures, or all of the whole part where that has more."""
    digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:,.{max(digits, 0)}f}"


BLOCKS_OF_THEIR_OWN = {
    "benchmarks/chain": benchmarks_block,
    "benchmarks/decode": decode_block,
    "benchmarks/replay": replay_block,
}


# --- where they say it


def find_block(root: Path, name: str) -> Block:
    """Raises NotMeasured if there are no results of that name, UsageError if there can be none."""
    path = root / "results" / f"{name}.json"
    if name == "warmstart":
        return warmstart_block(_read(path, Warmstart))
    if name in ("gas", "gas/day"):
        measured = _read(root / "results" / "gas.json", Gas)
        return gas_block(measured) if name == "gas" else gas_day_block(measured)
    if own := BLOCKS_OF_THEIR_OWN.get(name):
        return own(_read(root / "results" / f"{name}.jsonl", list[Benchmark]))
    if name == "benchmarks":
        paths = sorted((root / "results" / "benchmarks").glob("*.jsonl"))
        paths = [path for path in paths if f"benchmarks/{path.stem}" not in BLOCKS_OF_THEIR_OWN]
        if not paths:
            raise NotMeasured("results/benchmarks/*.jsonl")
        return benchmarks_block([b for path in paths for b in _read(path, list[Benchmark])])
    if not (root / "configs" / f"{name}.py").exists():
        raise UsageError(f"unknown block {name!r}; expected warmstart, gas, benchmarks, or NAME of configs/NAME.py.")
    if "evaluations" in _read(path, dict[str, Any]):
        return evaluations_block(_read(path, Evaluations))
    return runs_block(name, _read(path, Runs))


def _read(path: Path, kind: Any) -> Any:
    shown = path.relative_to(path.parents[2] if path.suffix == ".jsonl" else path.parents[1])
    try:
        raw = path.read_bytes()
        lines = [line for line in raw.splitlines() if line.strip()]
        found = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(raw)
        return msgspec.convert(found, kind)
    except FileNotFoundError:
        raise NotMeasured(str(shown)) from None
    except ValueError as error:
        raise UsageError(f"{shown} is not what is written there: {error}.") from None


def fill_markdown(text: str, root: Path) -> str:
    """The text with all its blocks as the results have them."""

    def fill(match: re.Match) -> str:
        try:
            if match[2] == "why":
                body = "".join(f"- {line}\n" for line in why_lines(root))
            elif match[2].endswith("/line"):
                body = f"{'; '.join(find_block(root, match[2].removesuffix('/line')).lines)}.\n"
            else:
                block = find_block(root, match[2])
                body = f"{markdown_table(block.table)}\n{block.note}\n"
        except NotMeasured as missing:
            body = f"Not measured yet: `{missing}` does not exist.\n"
        return f"{match[1]}\n{body}\n{match[3]}"

    filled, count = MARKDOWN_BLOCK.subn(fill, text)
    if not count == text.count(OPEN) == text.count(CLOSE):
        raise UsageError(f"a block is not closed: each {OPEN}NAME --> needs its {CLOSE}.")
    return filled


def fill_config(text: str, root: Path) -> str:
    """The same for a config's docstring."""

    def fill(match: re.Match) -> str:
        indent = match[2] + "  "
        try:
            lines = find_block(root, match[3]).lines
        except NotMeasured:
            lines = ["not measured yet"]
        wrap = textwrap.TextWrapper(LINE, indent, indent + "  ", break_long_words=False, break_on_hyphens=False)
        return match[1] + "".join(wrap.fill(line) + "\n" for line in lines)

    return CONFIG_BLOCK.sub(fill, text)


def render(root: Path, check: bool = False) -> list[Path]:
    """Fills README.md, docs/*.md and configs/*.py; returns the stale ones. With `check` they stay as they are."""
    stale = []
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md")), *sorted((root / "configs").glob("*.py"))]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            filled = fill_markdown(text, root) if path.suffix == ".md" else fill_config(text, root)
        except UsageError as error:
            raise UsageError(f"{path.relative_to(root)}: {error}") from None
        if filled != text:
            stale.append(path)
            if not check:
                path.write_text(filled, encoding="utf-8")
    return stale


def collect(root: Path, name: str, workdirs: Sequence[Path]) -> Path:
    """Merges finished runs of configs/NAME.py as it stands, one for each seed, into results/NAME.json."""
    runs: dict[int, dict[str, Any]] = {}
    for workdir in workdirs:
        summary = results.load_summary(workdir)
        if (summary.name, summary.status) != (name, "finished"):
            raise UsageError(f"{workdir} is a {summary.status} run of {summary.name}, not a finished {name}.")
        if changed := _changed(summary):
            fields = ", ".join(sorted(changed))
            raise UsageError(f"{workdir} is not configs/{name}.py as it stands: it has another {fields}.")
        if summary.seed in runs:
            raise UsageError(f"{workdir} has seed {summary.seed}, as another of these runs does.")
        run = json.loads((workdir / "summary.json").read_bytes())
        run.pop("ledger", None)  # thousands of lines, and they are on the chain
        run["config"] = {k: v for k, v in summary.config.items() if k not in results.UNIMPORTANT}
        runs[summary.seed] = run
    ordered = [runs[seed] for seed in sorted(runs)]
    hardware = "; ".join(dict.fromkeys(run.get("hardware", "unknown") for run in ordered))
    found = {"runs": ordered, "commit": commit(root), "hardware": hardware}
    path = root / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    return path


def collect_evaluations(root: Path, name: str, workdirs: Sequence[Path]) -> Path:
    """Merges the evaluations of runs of configs/NAME.py and its variants into results/NAME.json."""
    found, hardware = [], []
    for workdir in workdirs:
        summary = results.load_summary(workdir)
        try:
            evaluation = json.loads((workdir / "evaluation.json").read_bytes())
            msgspec.convert(evaluation, Evaluation)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{workdir} has no evaluation after training ({error}): run experiments.evaluate."
            ) from None
        if summary.name.partition("-")[0] != name or summary.status != "finished":
            raise UsageError(f"{workdir} is a {summary.status} run of {summary.name}, not a finished {name}.")
        if changed := _changed(summary):
            fields = ", ".join(sorted(changed))
            raise UsageError(f"{workdir} is not configs/{name}.py as it stands: it has another {fields}.")
        found.append({key: evaluation[key] for key in ("name", "seed", "before", "after")})
        hardware.append(summary.hardware)
    found.sort(key=lambda e: (e["name"], e["seed"]))
    merged = {"evaluations": found, "commit": commit(root), "hardware": "; ".join(dict.fromkeys(hardware))}
    path = root / "results" / f"{name}.json"
    path.write_text(json.dumps(merged, indent=1) + "\n")
    return path


def commit(root: Path) -> str:
    """The git commit of the code, and whether it has local changes."""

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)

    head = git("rev-parse", "--short=12", "HEAD")
    if head.returncode:
        return "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", "rlswarm_jax", "experiments", "configs").returncode
    return head.stdout.strip() + " with local changes" * bool(changed)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser("python -m experiments.render", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="only say whether a block is stale")
    parser.add_argument("--collect", metavar="NAME", help="merge finished runs into results/NAME.json")
    parser.add_argument("workdirs", metavar="DIR", type=Path, nargs="*", help="folders of the runs to collect")
    parser.add_argument("--evaluations", metavar="NAME", help="merge evaluations of runs into results/NAME.json")
    arguments = parser.parse_args(argv)
    if bool(arguments.collect or arguments.evaluations) != bool(arguments.workdirs):
        parser.error("--collect NAME goes with the folders of its runs: --collect quickstart runs/seed-0 ...")
    try:
        if arguments.evaluations:
            print(f"wrote {collect_evaluations(root, arguments.evaluations, arguments.workdirs)}")
            return 0
        if arguments.collect:
            print(f"wrote {collect(root, arguments.collect, arguments.workdirs)}")
            return 0
        stale = render(root, arguments.check)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.check and stale:
        print(f"{stale[0].relative_to(root)} is stale: run python -m experiments.render", file=sys.stderr)
        return 1
    for path in stale:
        print(f"rendered {path.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
