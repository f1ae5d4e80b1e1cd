"""Runs side by side, point by point: tables, curves with bands, Markdown, and one HTML file with all of it inside."""

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import write_whole
from rlswarm_jax.reporting import plots, statistics
from rlswarm_jax.reporting.blocks import Section, Table, markdown_table
from rlswarm_jax.reporting.outcomes import Outcome, Outcomes, by_point
from rlswarm_jax.reporting.results import MISSING, mean_sd

Quantity = Callable[[Outcome], float]  # NaN where it is not known
SMOOTHED = 10  # rounds
SAID = {
    "held out": "accuracy on held-out problems, %, mean over nodes, after the last round",
    "cumulative": "sum over rounds of the nodes' mean reward",
    "oscillation": f"standard deviation of a round's mean reward from the mean of it and the {SMOOTHED - 1} before",
}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}img{max-width:100%}.wide{overflow-x:auto}"""


def quantities(at: Sequence[int] = ()) -> dict[str, Quantity]:
    """What is measured of a run, by its name in tables. at: horizons, in rounds."""
    found: dict[str, Quantity] = {"held out": held_out, "cumulative": cumulative}
    for rounds in at:
        found[f"held out at {rounds}"] = partial(held_out, at=rounds)
        found[f"cumulative at {rounds}"] = partial(cumulative, at=rounds)
    return found | {"oscillation": lambda run: statistics.oscillation(run.rewards, SMOOTHED)}


def held_out(run: Outcome, at: int | None = None) -> float:
    """%, after the last round; or the last that was measured by then; NaN where the run did not come so far."""
    last = len(run.rewards) if at is None else at
    measured = [accuracy for learned, accuracy in run.held_out if learned <= last]
    return 100 * measured[-1] if measured and last <= len(run.rewards) else math.nan


def cumulative(run: Outcome, at: int | None = None) -> float:
    """The paper's (SAPO, arXiv:2509.08721), of the rounds up to a horizon; NaN where the run did not come so far."""
    last = len(run.rewards) if at is None else at
    return sum(run.rewards[:last]) if last <= len(run.rewards) else math.nan


def sections(found: Outcomes, at: Sequence[int] = (), baseline: str = "") -> list[Section]:
    """What a report says of them. Raises UsageError for a baseline that is none of the points."""
    points = by_point(found)
    if not points:
        raise UsageError("none of these runs is finished: there is nothing to compare.")
    reference = baseline or found.baseline
    if baseline and baseline not in points:
        raise UsageError(f"there is no point {baseline!r}; there are {', '.join(points)}.")
    reference = reference if reference in points else next(iter(points))
    against = [_differences(points, reference, at)] if len(points) > 1 else []
    return [_outcomes(found, points, at), *against, _cost(points)]


def _outcomes(found: Outcomes, points: Mapping[str, Sequence[Outcome]], at: Sequence[int]) -> Section:
    measured = quantities(at)
    rows = [["point", "n", *measured]]
    for name, runs in points.items():
        cells = [[value for run in runs if not math.isnan(value := of(run))] for of in measured.values()]
        short = [f" (n {len(c)})" * (len(c) < len(runs)) for c in cells]
        shown = [mean_sd(c, _form(n)) + s if c else MISSING for n, c, s in zip(measured, cells, short, strict=True)]
        rows.append([name, str(len(runs)), *shown])
    text = (
        "Mean ± standard deviation over seeds. " + "; ".join(f"*{name}*: {what}" for name, what in SAID.items()) + "."
    )
    if at:
        text += " At a horizon: after so many rounds, held out where it was last measured by then."
    if found.unfinished:
        text += f" Left out, as they are not finished: {', '.join(found.unfinished)}."
    if any(run.by_chance for run in found.runs):
        text += " Problems followed from the chain's beacons, so runs of one seed do not share them."
    return Section("Outcomes", text, rows, ["held_out.png", "reward.png"])


def _differences(points: Mapping[str, Sequence[Outcome]], reference: str, at: Sequence[int]) -> Section:
    """Of each point from the reference, seed by seed."""
    rows = [["point", "quantity", "seeds", "difference", "95 % interval", "sd", "p (t)", "p (Wilcoxon)"]]
    for name, runs in points.items():
        for quantity, of in quantities(at).items() if name != reference else ():
            own, other = _by_seed(runs, of), _by_seed(points[reference], of)
            if not (seeds := sorted(own.keys() & other.keys())):
                continue
            found, form = statistics.paired([own[s] - other[s] for s in seeds]), _form(quantity, "+")
            spread = [f"{found.low:{form}} to {found.high:{form}}", f"{found.sd:{_form(quantity)}}"]
            ps = ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in (found.p_t, found.p_wilcoxon)]
            known = [cell if "nan" not in cell else MISSING for cell in [*spread, *ps]]
            rows.append([name, quantity, str(found.n), f"{found.mean:{form}}", *known])
    text = (
        f"Each point less **{reference}**, by seed: mean of the differences, BCa bootstrap interval, sd "
        "of the differences, and two-sided paired t- and signed-rank tests. Nothing is corrected for how many are read."
    )
    return Section(f"Against {reference}", text, rows)


def _cost(points: Mapping[str, Sequence[Outcome]]) -> Section:
    columns: dict[str, tuple[Quantity, str]] = {
        "generated": (lambda run: run.generated, ",.0f"),
        "trained, own": (lambda run: run.trained_local, ",.0f"),
        "trained, peers'": (lambda run: run.trained_external, ",.0f"),
        "text tokens": (lambda run: run.text_tokens, ",.0f"),
        "FLOP": (lambda run: run.flops, ".3g"),
        "s": (lambda run: run.seconds, ",.0f"),
    }
    rows = [["point", "nodes", "rounds", *columns]]
    for name, runs in points.items():
        sizes = [sorted({run.nodes for run in runs}), sorted({len(run.rewards) for run in runs})]
        means = [f"{fmean(of(run) for run in runs):{form}}" for of, form in columns.values()]
        rows.append([name, *("–".join(map(str, {s[0]: 0, s[-1]: 0})) for s in sizes), *means])
    every = [run for runs in points.values() for run in runs]
    machines = "; ".join(dict.fromkeys(run.hardware for run in every))
    commits = ", ".join(dict.fromkeys(run.commit for run in every))
    text = (
        "Mean over seeds, of all honest nodes together: completions that were sampled and learned from, tokens and "
        f"floating-point operations of learning, wall time of a run. {machines}; collected at commit {commits}."
    )
    return Section("Cost", text, rows)


def _by_seed(runs: Sequence[Outcome], of: Quantity) -> dict[int, float]:
    """Mean over the runs of a seed, where there are several."""
    values: dict[int, list[float]] = {}
    for run in runs:
        if not math.isnan(value := of(run)):
            values.setdefault(run.seed, []).append(value)
    return {seed: fmean(own) for seed, own in values.items()}


def _form(quantity: str, sign: str = "") -> str:
    return f"{sign}.4f" if quantity == "oscillation" else f"{sign}.1f"


# --- curves


def plot(found: Outcomes, folder: Path) -> None:
    """Writes held_out.png and reward.png: means over seeds, and their 95 % intervals as bands."""
    import matplotlib

    points = by_point(found)
    with matplotlib.rc_context(plots.STYLE):
        held = {n: [{learned: 100 * a for learned, a in run.held_out} for run in runs] for n, runs in points.items()}
        plots.plot_bands(held, "Accuracy on held-out problems", "accuracy, %", 100.0, folder / "held_out.png")
        window = np.full(SMOOTHED, 1 / SMOOTHED)
        smooth = {
            name: [
                dict(enumerate(np.convolve(run.rewards, window, "valid").tolist(), SMOOTHED))
                for run in runs
                if len(run.rewards) >= SMOOTHED
            ]
            for name, runs in points.items()
        }
        top = max([1.0, *(value for curves in smooth.values() for curve in curves for value in curve.values())])
        heading = f"Mean reward of {SMOOTHED} rounds"
        plots.plot_bands(smooth, heading, "mean reward of a round", top, folder / "reward.png")


# --- what is written


def write(found: Outcomes, folder: Path, told: Sequence[Section]) -> list[Path]:
    """Writes report.md, report.html and the curves; returns the two reports. told: what `sections` says."""
    folder.mkdir(parents=True, exist_ok=True)
    plot(found, folder)
    title = found.name or "Runs side by side"
    paths = folder / "report.md", folder / "report.html"
    write_whole(paths[0], f"# {title}\n\n" + "\n".join(_markdown(section) for section in told))
    write_whole(paths[1], _page(title, told, folder))
    return list(paths)


def _markdown(section: Section) -> str:
    images = "".join(f"\n![{Path(image).stem.replace('_', ' ')}]({image})\n" for image in section.images)
    return f"## {section.title}\n\n{section.text}\n\n{markdown_table(section.table)}{images}"


def _page(title: str, told: Sequence[Section], folder: Path) -> str:
    """HTML that needs no other file."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in told:
        text = html.escape(section.text).replace("**", "").replace("*", "")
        parts += [f"<h2>{html.escape(section.title)}</h2><p>{text}</p>", _html_table(section.table)]
        for image in section.images:
            data = base64.b64encode((folder / image).read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(Path(image).stem)}" src="data:image/png;base64,{data}">')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in table[1:])
    return f"<div class=wide><table><thead>{row(table[0], 'th')}</thead><tbody>{body}</tbody></table></div>"
