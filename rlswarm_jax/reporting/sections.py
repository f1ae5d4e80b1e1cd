"""What a report says of a run, in sections."""

import collections
import shlex
from collections.abc import Mapping

from configs import common
from rlswarm_jax.files import ALONE
from rlswarm_jax.records.schema import FINDINGS, NOT_PRODUCED, PRODUCED
from rlswarm_jax.reporting.blocks import Section, Table
from rlswarm_jax.reporting.ledger import ledger_sections, read_verified
from rlswarm_jax.reporting.results import (
    MISSING,
    Run,
    Summary,
    command,
    duration,
    interval,
    mean,
    percent,
    points,
)

SPOILED = (
    "The embedded model was taught these tasks and then spoiled: a gain here is a spoiled skill brought back by "
    "reinforcement learning, not knowledge gained; the un-spoiled base gets {}."
)
SPOILED_FOR_OTHERS = "The embedded model was taught other tasks than {} and then spoiled; the un-spoiled base gets {}."
NEW = "The embedded model was taught small tasks, {} not among them: a gain there is learned, not brought back."
NOTHING_TO_LEARN = (
    "No group of completions had an advantage: within each, all earned the same, so nothing was learned from any. {} "
    "`python -m experiments.show {}` shows completions and what they earned."
)
_REPLAYED = (
    "Groups of completions that nodes replayed with the weights that their records name: peers', drawn by a beacon "
    "that was not known when they were published, and their own."
)
_AUDITS = ("cases", *(f"found/{finding}" for finding in FINDINGS), "tokens", f"own_{PRODUCED}", f"own_{NOT_PRODUCED}")
CHANCE = (
    "Problems followed from the chain's beacons, which are never the same again: the same settings, other problems."
)
OPTIONAL = ("rounds", "before (95 % Wilson)")  # in a narrow terminal: the mean is in the text


def title(summary: Summary) -> str:
    """A run in a line."""
    nodes = "1 node" if summary.nodes == 1 else f"{summary.nodes} nodes"
    rounds = f"{summary.rounds or max(summary.rounds_done.values(), default=0)} rounds"
    return f"{summary.name}, seed {summary.seed}: {nodes}, {rounds}, {summary.status}"


def sections(run: Run) -> list[Section]:
    """The report's contents, in order."""
    exchange = [_exchange(run), _received(run), _records(run)] if len(run.authors) > 1 else []
    return [
        _learned(run),
        *([_alone(run)] if run.alone else []),
        _tasks(run),
        *([_game(run)] if run.summary.game else []),
        *exchange,
        *([_audits(run)] if any("audit/cases" in row for rows in run.rows.values() for row in rows) else []),
        *(ledger_sections(run.summary.ledger, read_verified(run.workdir)) if run.summary.ledger else []),
        _cost(run),
        _reproduce(run),
    ]


def _learned(run: Run) -> Section:
    summary, after, n = run.summary, run.after, run.summary.held_out_problems
    before, base = summary.held_out_accuracy.before, summary.held_out_accuracy.base
    start, end = summary.before, mean(after.values())
    rows = [["node", "rounds", "before (95 % Wilson)", "after (95 % Wilson)", "gain"]]
    for i, name in enumerate(run.names):
        old, new = before.get(name), after[name]
        done = str(summary.rounds_done[name])
        rows.append([f"{i} {name}", done, interval(old, n), interval(new, n), points(old, new)])
    if summary.nodes > 1:
        rows.append(["mean over nodes", "", percent(start), percent(end), points(start, end)])
    if base is not None:
        rows.append(["un-spoiled base", "", "", interval(base, n), ""])
    gain = "not measured after learning" if end is None else f"{percent(end)} after, {points(start, end)} points"
    text = [nothing_to_learn(run), f"Greedy accuracy on {n:,} held-out problems: {percent(start)} before, {gain}."]
    text += [_meaning(summary)]
    if any((summary.held_out_accuracy.after or {}).get(name) is None for name in run.names):
        last = max((r for name in run.names for r, _ in run.measured(name)), default=0)
        missed = f"Not all nodes reached round {summary.rounds}" if summary.rounds else "It ran until it was stopped"
        text += [f"{missed}; the latest figures are of round {last}."]
    images = ["held_out.png", "reward.png"] if run.rows else []
    return Section("What was learned", " ".join(filter(None, text)), rows, images, optional=OPTIONAL)


def nothing_to_learn(run: Run) -> str:
    """Says so of a run in which no group of completions had an advantage; else nothing."""
    rows = [row for own in run.rows.values() for row in own]
    if run.advantages is None or run.advantages:
        return ""
    reward = mean(row.get("reward/mean") for row in rows)
    if reward is None:
        why = ""
    elif reward < 0.01:
        why = (
            "Hardly any was right: the problems are too hard for this model, or its answers are not found in its texts."
        )
    elif reward > 0.99:
        why = "Nearly all were right: these problems have nothing more to teach."
    else:
        why = "Give it problems that it gets right some of the time, more completions of each, or a higher temperature."
    return NOTHING_TO_LEARN.format(why, shlex.quote(str(run.workdir)))


def _meaning(summary: Summary) -> str:
    """What a gain means: of the embedded model alone it is known what it was taught, and whether it was spoiled."""
    base = summary.held_out_accuracy.base
    if summary.config.get("model", {}).get("path") == "embedded:base":
        kinds = {name: {"dataset": name} | dict(options) for name, options in summary.config.get("tasks", {}).items()}
        known = [{"dataset": name} | dict(options) for name, options in (common.TINY_TASKS | common.HARD_TASKS).items()]
        new = [name for name, kind in kinds.items() if {**kind, "weight": 1.0} not in known]
        return NEW.format(" and ".join(new)) if new else ""
    if base is None or summary.config.get("model", {}).get("path") != "embedded":
        return ""
    taught = {*common.TINY_TASKS, *common.HARD_TASKS}
    played = {name: options.get("dataset", name) for name, options in summary.config.get("tasks", {}).items()}
    others = [name for name, dataset in played.items() if dataset not in taught]
    return SPOILED_FOR_OTHERS.format(" and ".join(others), percent(base)) if others else SPOILED.format(percent(base))


def _alone(run: Run) -> Section:
    """The swarm beside nodes alone, in the same rounds."""
    rows = [["mean over nodes", "after", "reward, sum of all rounds", "sampled", "learned from"]]
    for label, one in {"this swarm": run, **{ALONE[kind]: other for kind, other in run.alone.items()}}.items():
        nodes, samples = one.summary.nodes, one.summary.samples
        learned = samples.get("trained_local", 0) + samples.get("trained_external", 0)
        rewards = [mean(row.get("reward/mean") for row in own) for own in one.rows.values()]
        rounds = max((len(own) for own in one.rows.values()), default=0)
        total = mean(rewards)
        row = [label, percent(mean(one.after.values())), MISSING if total is None else f"{rounds * total:.1f}"]
        rows.append([*row, f"{samples.get('generated', 0) / nodes:,.0f}", f"{learned / nodes:,.0f}"])
    text = (
        "Held-out accuracy and first answers' reward, after the same rounds; completions by node. One run of each: "
        "docs/does-sharing-help.md has more, and what follows from them."
    )
    return Section("Beside nodes alone", text, rows, ["alone.png"] if run.rows else [])


def _tasks(run: Run) -> Section:
    per_task = run.summary.held_out_accuracy.per_task
    rows = [["task", "before", "after", "gain"] + ["un-spoiled base"] * bool(per_task.base)]
    for task, after in run.after_by_task.items():
        before = (per_task.before or {}).get(task)
        base = [percent(per_task.base.get(task))] if per_task.base else []
        rows.append([task, percent(before), percent(after), points(before, after), *base])
    text = "Held-out greedy accuracy" + (", mean over nodes." if run.summary.nodes > 1 else ".")
    return Section("By task", text, rows)


GAME = {
    "game/first": "first answers that are right",
    "game/vote": "votes of the critics that are right",
    "game/revised": "revised answers that are right",
    "critique/best": "contested problems: critiques that name a best answer",
    "critique/chance": "... critiques at random would",
    "critique/first": "... naming always the first would",
    "critique/majority": "... naming what most of those shown say would",
    "critique/none": "... naming none would",
}


def _game(run: Run) -> Section:
    rows = [["on the problems that all nodes share", "first tenth", "last tenth", "gain"]]
    for name, (start, end) in run.summary.game.items():
        rows.append([GAME.get(name, name), percent(start), percent(end), points(start, end)])
    text = (
        "Nodes answer, criticise what others answered, and revise. Sampled in training, mean over nodes and rounds; "
        "experiments.evaluate measures the same on held-out problems."
    )
    return Section("The game", text, rows, ["game.png"] if run.rows else [])


def _exchange(run: Run) -> Section:
    samples = run.summary.samples
    text = (
        f"{percent(run.summary.external_fraction)} of the samples trained on came from peers: "
        f"{samples.get('trained_external', 0):,.0f}, beside {samples.get('trained_local', 0):,.0f} of a "
        f"node's own; the nodes sampled {samples.get('generated', 0):,.0f}. "
        "A row is a learner, a column the author of the groups it learned from."
    )
    strangers = [f"{i} is {name}." for i, name in enumerate(run.authors) if name not in run.names]
    table = _by_author(run, "learner", run.summary.learned_from)
    return Section("From whom", " ".join([text, *strangers]), table, ["learned_from.png"])


def _by_author(run: Run, who: str, counts: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each node, a column for each author."""
    rows = [[who, *(str(i) for i in range(len(run.authors))), "sum"]]
    for i, name in enumerate(run.names):
        own = counts.get(name, {})
        cells = ["" if author == name else f"{own.get(author, 0):,.0f}" for author in run.authors]
        rows.append([f"{i} {name}", *cells, f"{sum(own.values()):,.0f}"])
    return rows


def _received(run: Run) -> Section:
    table = _by_author(run, "receiver", run.summary.received_from)
    return Section("Records received", "By author, valid and in time; columns as above.", table)


def _records(run: Run) -> Section:
    records = run.summary.records
    counts = {"records published": records.published, "records received": records.received}
    counts |= {f"records rejected: {cause}": n for cause, n in records.rejected.items()}
    counts |= {f"groups left unused: {cause}": n for cause, n in records.unused_groups.items()}
    text = "" if len(counts) > 2 else "No record was rejected, no group left unused."
    counts |= {f"network: {name.replace('_', ' ')}": n for name, n in run.summary.network.items()}
    return Section("Records", text, [["", "count"], *([name, f"{n:,.0f}"] for name, n in counts.items())])


def _audits(run: Run) -> Section:
    """What nodes found of each other's samples, and of their own."""
    rows = [["node", "checked", *FINDINGS, "tokens", "own produced", "own not produced"]]
    sums: collections.Counter[str] = collections.Counter()
    for name in run.names:
        every = run.rows.get(name, ())
        counts = {key: sum(row.get(f"audit/{key}", 0) for row in every) for key in _AUDITS}
        sums.update(counts)
        rows.append([name, *(f"{counts[key]:,.0f}" for key in _AUDITS)])
    wrong = sums[f"found/{NOT_PRODUCED}"] + sums[f"own_{NOT_PRODUCED}"]
    end = "Somebody did not sample as they said." if wrong else "Nobody was found who did not sample as they said."
    return Section("Audits", f"{_REPLAYED} {end}", rows)


def _cost(run: Run) -> Section:
    summary = run.summary
    memory = MISSING if summary.peak_memory_mb is None else f"{summary.peak_memory_mb:,.0f} MB"
    rows = [["", ""], ["wall time", duration(summary.wall_seconds)], ["peak memory", memory]]
    rows.append(["hardware", summary.hardware])
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items())])
    return Section("Cost", "", rows)


def _reproduce(run: Run) -> Section:
    code, text = command(run.summary), [CHANCE] if run.summary.by_chance else []
    if not code:
        text += ["It was not started by a command: the fields of its config are in summary.json."]
    if run.skipped:
        text += [f"Unreadable lines of metrics.jsonl, skipped: {run.skipped}."]
    if not run.rows:
        text += ["There are no curves: metrics.jsonl is missing or empty."]
    if code and run.summary.status == "stopped":
        code += f" --workdir {shlex.quote(str(run.workdir))} --resume   # goes on where it stopped"
    return Section("Reproduce", " ".join(text), code=code)
