"""Finds the blocks of figures in the README, docs/ and the configs' docstrings and fills them; collects what they show.

In Markdown a block stands between `<!-- rendered: NAME -->` and `<!-- /rendered -->`. In a config's docstring
it is the indented lines after `Measured (rendered: NAME):`.
"""

import json
import re
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import SUMMARY_FILE
from rlswarm_jax.reporting import outcomes, results
from rlswarm_jax.reporting.blocks import markdown_table
from rlswarm_jax.reporting.figures import (
    BLOCKS_OF_THEIR_OWN,
    Benchmark,
    Block,
    Evaluation,
    Evaluations,
    Gas,
    Runs,
    Trials,
    Warmstart,
    benchmarks_block,
    changed_fields,
    evaluations_block,
    gas_block,
    gas_day_block,
    runs_block,
    trials_block,
    warmstart_block,
)
from rlswarm_jax.reporting.study import attacks_block, claims, headline, rarity, study_block

OPEN, CLOSE = "<!-- rendered: ", "<!-- /rendered -->"
MARKDOWN_BLOCK = re.compile(f"({OPEN}(\\S+) -->\n).*?({CLOSE})", re.DOTALL)
CONFIG_BLOCK = re.compile(r'^(( *)Measured \(rendered: (\S+)\):\n)(?:\2 +(?!""")\S.*\n)*', re.MULTILINE)
LINE = 100


class NotMeasured(Exception):
    """There is no results file; the message names it."""


def find_block(root: Path, name: str) -> Block:
    """Raises NotMeasured if there are no results of that name, UsageError if there can be none."""
    path = root / "results" / f"{name}.json"
    if name == "warmstart":
        return warmstart_block(_read(path, Warmstart))
    if name in ("gas", "gas/day", "gas/court"):
        measured = _read(root / "results" / "gas.json", Gas)
        return gas_day_block(measured) if name == "gas/day" else gas_block(measured, name == "gas/court")
    if own := BLOCKS_OF_THEIR_OWN.get(name):
        return own(_read(root / "results" / f"{name}.jsonl", list[Benchmark]))
    if name == "benchmarks":
        paths = sorted((root / "results" / "benchmarks").glob("*.jsonl"))
        paths = [path for path in paths if f"benchmarks/{path.stem}" not in BLOCKS_OF_THEIR_OWN]
        if not paths:
            raise NotMeasured("results/benchmarks/*.jsonl")
        return benchmarks_block([b for path in paths for b in _read(path, list[Benchmark])])
    study, _, table = name.partition("/")
    if study == "attacks":
        return attacks_block(table, _study(root, study))
    if table and (root / "configs" / f"{study}.py").exists():
        return study_block(study, table, _study(root, study))
    if name == "reviser":
        return trials_block(_read(path, Trials))
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


def why_lines(root: Path) -> list[str]:
    """What speaks for a swarm, a sentence each, with what was measured."""

    def benchmark(name: str, **config: Any) -> Benchmark:
        of = _read(root / "results" / "benchmarks" / f"{name}.jsonl", list[Benchmark])
        (found,) = [b for b in of if b.config == b.config | config and "code" not in b.config]
        return found

    swarm = _read(root / "results" / "quickstart.json", Runs)
    study = _study(root, "sapo")
    alone, attacked = (benchmark("poison", keys=keys) for keys in (0, 8))
    shape = {"model": "0.5b", "questions": 1, "completions": 8}
    ours, theirs = (benchmark("decode", side=side, prompt=64, **shape) for side in ("ours", "genrl"))
    times, seconds = ours.value / theirs.value, fmean(run.wall_seconds for run in swarm.runs)
    return [
        "**Together they find what one finds too seldom.** Spelling six letters backwards, eight nodes whose model was "
        f"taught five, and gets none right: {rarity('sapo', study)}",
        f"**They share the cost of finding what teaches.** {headline('sapo', study)}",
        "**Others need not be trusted.** Each node scores everything itself: four honest ones reach "
        f"{alone.value:.1f} % in {alone.config['rounds']} rounds by themselves, and {attacked.value:.1f} % beside "
        f"{attacked.config['keys']} keys that send records made to spoil them.",
        f"**It is quick to try things in.** A quickstart run takes {seconds:.0f} s on two CPU cores, and "
        f"{shape['completions']} completions of a 0.5B model come {times:.1f} times as fast as RL Swarm's trainer's.",
    ]


def claim_lines(root: Path, name: str) -> list[str]:
    return claims(name, _study(root, name))


def _study(root: Path, name: str) -> outcomes.Outcomes:
    path = root / "results" / f"{name}.json"
    if not path.exists():
        raise NotMeasured(str(path.relative_to(root)))
    return outcomes.read(path)


def fill_markdown(text: str, root: Path) -> str:
    """The text with all its blocks as the results have them."""

    def fill(match: re.Match) -> str:
        try:
            if match[2] == "why" or match[2].endswith("/claims"):
                lines = why_lines(root) if match[2] == "why" else claim_lines(root, match[2].removesuffix("/claims"))
                body = "".join(f"- {line}\n" for line in lines)
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
        summary = _finished(workdir, name)
        if summary.seed in runs:
            raise UsageError(f"{workdir} has seed {summary.seed}, as another of these runs does.")
        run = json.loads((workdir / SUMMARY_FILE).read_bytes())
        run.pop("ledger", None)  # thousands of lines, and they are on the chain
        run["alone"] = {kind: other.summary.after for kind, other in results.load(workdir).alone.items()}
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
        summary = _finished(workdir, name, variants=True)
        try:
            evaluation = json.loads((workdir / "evaluation.json").read_bytes())
            msgspec.convert(evaluation, Evaluation)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{workdir} has no evaluation after training ({error}): run experiments.evaluate."
            ) from None
        found.append({key: evaluation[key] for key in ("name", "seed", "before", "after")})
        hardware.append(summary.hardware)
    found.sort(key=lambda e: (e["name"], e["seed"]))
    merged = {"evaluations": found, "commit": commit(root), "hardware": "; ".join(dict.fromkeys(hardware))}
    path = root / "results" / f"{name}.json"
    path.write_text(json.dumps(merged, indent=1) + "\n")
    return path


def collect_trials(root: Path, name: str, workdirs: Sequence[Path]) -> Path:
    """What finished runs with other fields than their configs' came to, in the order given, as results/NAME.json."""
    found, hardware = [], []
    for workdir in workdirs:
        run = results.load(workdir)
        summary, after = run.summary, run.summary.after
        if summary.status != "finished" or after is None or "game/revised" not in summary.game:
            raise UsageError(f"{workdir} is no finished run of a game in which answers are revised.")
        late = [row for own in run.rows.values() for row in own if row["round"] >= 0.8 * summary.rounds]
        measured = {key: fmean(row[f"game/{key}"] for row in late) for key in ("first", "vote", "revised")}
        fields = results.overrides(summary) or {}
        counted = [f for f in sorted(changed_fields(summary)) if not f.startswith(("name", "evaluation."))]
        found.append({"changed": {f: fields[f] for f in counted}, "seed": summary.seed, **measured, "accuracy": after})
        hardware.append(summary.hardware)
    merged = {"trials": found, "commit": commit(root), "hardware": "; ".join(dict.fromkeys(hardware))}
    path = root / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(merged, indent=1) + "\n")
    return path


def _finished(workdir: Path, name: str, variants: bool = False) -> results.Summary:
    """Of a finished run of configs/NAME.py as it stands, or of one of its variants. Raises UsageError."""
    summary = results.load_summary(workdir)
    own = summary.name.partition("-")[0] if variants else summary.name
    if (own, summary.status) != (name, "finished"):
        raise UsageError(f"{workdir} is a {summary.status} run of {summary.name}, not a finished {name}.")
    if changed := changed_fields(summary):
        fields = ", ".join(sorted(changed))
        raise UsageError(f"{workdir} is not configs/{name}.py as it stands: it has another {fields}.")
    return summary


def commit(root: Path) -> str:
    """The git commit of the code, and whether it has local changes."""

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)

    head = git("rev-parse", "--short=12", "HEAD")
    if head.returncode:
        return "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", "rlswarm_jax", "experiments", "configs").returncode
    return head.stdout.strip() + " with local changes" * bool(changed)
