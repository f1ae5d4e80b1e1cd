"""The plots of a run's report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rlswarm_jax.evaluation import wilson
from rlswarm_jax.files import ALONE, aside
from rlswarm_jax.reporting.results import Run
from rlswarm_jax.reporting.statistics import mean_interval

STYLE = {"axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 11, "font.size": 9.5}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888"}
STYLE |= {"axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False}
STYLE |= {"figure.dpi": 150, "figure.constrained_layout.use": True}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")


def plot(run: Run) -> None:
    """Writes held_out.png, reward.png and, for a swarm, game.png, learned_from.png and alone.png."""
    import matplotlib  # half a second: only where it is used

    with matplotlib.rc_context(STYLE):
        if run.rows:
            _plot_held_out(run)
            _plot_reward(run)
            if run.alone:
                _plot_alone(run)
            if run.summary.game:
                _plot_game(run)
        if len(run.authors) > 1:
            _plot_learned_from(run)


def _axes(heading: str, quantity: str, top: float):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 3.8))
    axes = figure.add_subplot(title=heading, xlabel="round", ylabel=quantity, ylim=(0, 1.03 * top))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _pen(i: int) -> tuple[str, str]:
    """A node's colour and line style."""
    return COLOURS[i % len(COLOURS)], ("-", ":", "-.")[i // len(COLOURS) % 3]


def _save(figure, axes, path: Path) -> None:
    columns = 1 + (len(axes.get_legend_handles_labels()[0]) - 1) // 16
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, handlelength=1.4, ncols=max(columns, 1))
    with aside(path) as partial:
        figure.savefig(partial)


def plot_bands(
    curves: Mapping[str, Sequence[Mapping[int, float]]], heading: str, quantity: str, top: float, path: Path
) -> None:
    """A line for each name, the mean of its curves (value by round), in a band, the 95 % interval of that mean.

    A round counts where all curves of a name have it.
    """
    figure, axes = _axes(heading, quantity, top)
    for i, (name, own) in enumerate(curves.items()):
        rounds = sorted(set.intersection(*(set(curve) for curve in own))) if own else []
        values = [[curve[r] for curve in own] for r in rounds]
        bands = [mean_interval(found) for found in values]
        colour, line = _pen(i)
        low, high = [band[0] for band in bands], [band[1] for band in bands]
        axes.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(rounds, [fmean(found) for found in values], line, color=colour, linewidth=1.8, label=name)
    _save(figure, axes, path)


def _plot_held_out(run: Run) -> None:
    figure, axes = _axes("Greedy accuracy on held-out problems", "accuracy, %", 100)
    n, base = run.summary.held_out_problems, run.summary.held_out_accuracy.base
    if base is not None:
        axes.axhline(100 * base, color="#333333", linestyle="--", linewidth=1.2, label="un-spoiled base")
    for i, name in enumerate(run.names):
        found, (colour, line) = run.measured(name), _pen(i)
        rounds, accuracies = [r for r, _ in found], [100 * a for _, a in found]
        axes.plot(rounds, accuracies, line, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=name)
        if n and len(run.names) <= 4:
            low, high = ([100 * wilson(a, n)[side] for _, a in found] for side in (0, 1))
            axes.fill_between(rounds, low, high, color=colour, alpha=0.1, linewidth=0)
    _save(figure, axes, run.workdir / "held_out.png")


def _plot_alone(run: Run) -> None:
    figure, axes = _axes("This swarm, and nodes alone", "held-out accuracy, %", 100)
    runs = {"this swarm": run} | {ALONE[kind].replace("samples ", "samples\n"): one for kind, one in run.alone.items()}
    for i, (label, one) in enumerate(runs.items()):
        by_round: dict[int, list[float]] = {}
        for name in one.names:
            for at, accuracy in one.measured(name):
                by_round.setdefault(at, []).append(100 * accuracy)
        rounds, (colour, line) = sorted(by_round), _pen(i)
        axes.plot(rounds, [fmean(by_round[r]) for r in rounds], line, color=colour, linewidth=1.8, label=label)
        low, high = ([side(by_round[r]) for r in rounds] for side in (min, max))
        axes.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
    _save(figure, axes, run.workdir / "alone.png")


def _smooth(values: Sequence[float], part: int):
    """Running means over twice that part of a curve's values, or fewer at its ends."""
    import numpy as np

    window = np.ones(2 * (len(values) // part) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _plot_reward(run: Run) -> None:
    reward = "reward/mean"
    curves = {n: [(r["round"], r[reward]) for r in own if reward in r] for n, own in run.rows.items()}
    top = max([1.0, *(value for curve in curves.values() for _, value in curve)])
    figure, axes = _axes("Reward of sampled completions", "mean reward of a round", top)
    for i, name in enumerate(run.names):
        rounds, rewards = zip(*(curves.get(name) or [(math.nan, math.nan)]), strict=True)
        colour, line = _pen(i)
        axes.plot(rounds, rewards, color=colour, linewidth=0.6, alpha=0.25)
        axes.plot(rounds, _smooth(rewards, 40), line, color=colour, linewidth=1.8, label=name)
    _save(figure, axes, run.workdir / "reward.png")


def _plot_game(run: Run) -> None:
    shown = {
        "game/first": "first answer",
        "game/vote": "critics' vote",
        "game/revised": "revised answer",
        "critique/best": "contested: critic names a best",
        "critique/first": "contested: always the first",
    }
    figure, axes = _axes("What is right, stage by stage", "%, mean over nodes", 100)
    for i, (name, label) in enumerate(shown.items()):
        by_round: dict[int, list[float]] = {}
        for own in run.rows.values():
            for row in own:
                if name in row:
                    by_round.setdefault(row["round"], []).append(100 * row[name])
        if not by_round:
            continue
        rounds = sorted(by_round)
        smooth = _smooth([fmean(by_round[r]) for r in rounds], 20)
        line = "--" if name == "critique/first" else "-"
        axes.plot(rounds, smooth, line, color=COLOURS[i], linewidth=1.8, label=label)
    _save(figure, axes, run.workdir / "game.png")


def _plot_learned_from(run: Run) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    learned, names, authors = run.summary.learned_from, run.names, run.authors
    counts = np.array([[np.nan if a == n else learned.get(n, {}).get(a, 0) for a in authors] for n in names])
    figure = Figure(figsize=(2.6 + 0.6 * len(authors), 2.2 + 0.45 * len(names)))
    axes = figure.add_subplot(title="External groups learned from", xlabel="author", ylabel="learner")
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=max(1.5 * np.nanmax(counts), 1.0))
    axes.set(facecolor="#f0f0f0", xticks=range(len(authors)), yticks=range(len(names)), yticklabels=names)
    axes.set_xticklabels(authors, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(False)
    for (i, j), count in np.ndenumerate(counts):
        if i != j:
            colour = "white" if count > 0.8 * np.nanmax(counts) else "#222222"
            axes.text(j, i, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=8)
    with aside(run.workdir / "learned_from.png") as partial:
        figure.savefig(partial, bbox_inches="tight")
