"""Reports of several runs: from folders or a saved file, by point, paired by seed."""

import base64
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from configs import quickstart
from experiments import report as report_command
from rlswarm_jax.errors import UsageError
from rlswarm_jax.identity import friendly_name, simulated
from rlswarm_jax.reporting import comparison, outcomes
from tests.reporting.test_report import PNG, make_run

POINTS = {"few": {"swarm.external_groups": 2}, "many": {"swarm.external_groups": 4}, "none": {}}
AFTERS = {"few": (0.5, 0.6, 0.55, 0.4), "many": (0.75, 0.9, 0.65, 0.8), "none": (0.3, 0.2, 0.4, 0.3)}


def run_of(workdir, point, seed, rate=0.1, rounds=24):
    config = quickstart.get_config("simulate")
    config.swarm.external_groups = {"few": 2, "many": 4, "none": 0}[point]
    make_run(workdir, rounds=rounds, seed=seed, after=(AFTERS[point][seed],) * 2, config=config)
    metrics = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        row |= {"reward/mean": rate * row["round"] + row["node"], "sample/completions": 2, "learn/flops": 3.0}
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


@pytest.fixture
def sweep(tmp_path):
    """Three points of four seeds, and one run that is not finished."""
    folder = tmp_path / "study"
    for point in POINTS:
        for seed in range(4):
            run_of(folder / point / f"seed-{seed}", point, seed, rate=0.1 + 0.01 * seed)
    make_run(folder / "none" / "seed-9", done=3, rounds=24)
    run_of(folder / "few" / "seed-0-20260101-000000", "few", 1)  # moved aside
    (folder / "sweep.json").write_text(json.dumps({"name": "study", "baseline": "few", "points": POINTS}))
    return folder


def table(sections, title):
    (found,) = [section for section in sections if section.title.startswith(title)]
    header, *rows = found.table
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_sweeps_tables_are_what_its_runs_came_to(sweep):
    found = comparison.sections(outcomes.find([sweep]), at=(8, 400))
    rows = {row["point"]: row for row in table(found, "Outcomes")}
    assert list(rows) == ["few", "many", "none"]  # as the sweep has them
    many = 100 * np.array(AFTERS["many"])
    assert rows["many"]["held out"] == f"{many.mean():.1f} ± {many.std(ddof=1):.1f}" and rows["many"]["n"] == "4"
    sums = [sum((0.1 + 0.01 * seed) * r + 0.5 for r in range(24)) for seed in range(4)]  # of two nodes, 1 apart
    assert rows["few"]["cumulative"] == f"{np.mean(sums):.1f} ± {np.std(sums, ddof=1):.1f}"
    # at 8 rounds the nodes had 0.1 + 0.05 * 8 and 0.2 + 0.05 * 8
    assert rows["few"]["held out at 8"] == "55.0 ± 0.0" and rows["few"]["held out at 400"] == "–"
    early = [sum((0.1 + 0.01 * seed) * r + 0.5 for r in range(8)) for seed in range(4)]
    assert rows["few"]["cumulative at 8"] == f"{np.mean(early):.1f} ± {np.std(early, ddof=1):.1f}"
    assert "seed-9" in found[0].text and "not finished" in found[0].text
    cost = {row["point"]: row for row in table(found, "Cost")}["few"]
    assert cost["FLOP"] == "144" and cost["generated"] == "96" and cost["nodes"] == "2"


def test_differences_are_paired_by_seed(sweep):
    found = comparison.sections(outcomes.find([sweep]))
    rows = {(row["point"], row["quantity"]): row for row in table(found, "Against few")}
    d_N = 100 * (np.array(AFTERS["many"]) - AFTERS["few"])
    row = rows["many", "held out"]
    assert row["difference"] == f"{d_N.mean():+.1f}" and row["seeds"] == "4"
    assert row["p (t)"] == f"{stats.ttest_1samp(d_N, 0).pvalue:.3f}" and row["sd"] == f"{d_N.std(ddof=1):.1f}"
    low, high = map(float, row["95 % interval"].split(" to "))
    assert d_N.min() <= low < d_N.mean() < high <= d_N.max()
    same = rows["none", "cumulative"]
    assert same["difference"] == "+0.0" and same["p (t)"] == "–"  # no spread: nothing to test
    assert ("few", "held out") not in rows
    other = comparison.sections(outcomes.find([sweep]), baseline="many")
    row = {(row["point"], row["quantity"]): row for row in table(other, "Against many")}["few", "held out"]
    assert row["difference"] == f"{-d_N.mean():+.1f}"


def test_a_seed_that_only_one_point_has_is_no_pair(sweep):
    run_of(sweep / "many" / "seed-3", "many", 3, rounds=40)  # longer: another setting
    with pytest.raises(UsageError, match=r"'many' differ in more than their seed: config\.rounds"):
        outcomes.find([sweep])
    (sweep / "many" / "seed-3" / "summary.json").unlink()
    rows = table(comparison.sections(outcomes.find([sweep])), "Against few")
    assert {row["seeds"] for row in rows if row["point"] == "many"} == {"3"}
    assert {row["seeds"] for row in rows if row["point"] == "none"} == {"4"}


def test_a_saved_file_gives_the_same_report(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    saved = tmp_path / "results" / "study.json"
    assert report_command.main([str(sweep), "--at", "8", "--save", str(saved)]) == 0
    assert f"report: {sweep / 'report.md'}" in capsys.readouterr().out
    first = (sweep / "report.md").read_text()
    out = tmp_path / "out"
    assert report_command.main([str(saved), "--at", "8", "--out", str(out)]) == 0
    second = (out / "report.md").read_text()
    assert "Left out" in first  # a file has finished runs alone
    assert re.sub(r" Left out, as.*", "", first) == re.sub(r" Left out, as.*", "", second)
    assert len(saved.read_text().splitlines()) == 14  # a line for each run
    again = tmp_path / "again.json"
    assert report_command.main([str(saved), "--out", str(out), "--save", str(again)]) == 0
    assert again.read_bytes() == saved.read_bytes()
    assert len(outcomes.find([saved, sweep]).runs) == 12  # the same runs, once


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.cells, self.loads, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.loads += [value for name, value in attributes if name in ("href", "src") and not value.startswith("data:")]
        self.images += [value for name, value in attributes if tag == "img" and name == "src"]

    def handle_data(self, data):
        if self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_has_tables_and_pictures_inside(sweep, tmp_path):
    found = outcomes.find([sweep])
    page = comparison.write(found, tmp_path / "out", comparison.sections(found))[1]
    read = Reader(page.read_text())
    pictures = [base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in read.images]
    assert len(pictures) == 2 and all(picture.startswith(PNG) for picture in pictures) and not read.loads
    assert {"few", "many", "none"} <= set(read.cells)


def test_what_a_name_says_stays_text(sweep, tmp_path):
    hostile = "<script>alert(1)</script>"
    (sweep / "few").rename(sweep / "a&b")
    found = outcomes.find([sweep])
    found.runs[0] = outcomes.msgspec.structs.replace(found.runs[0], hardware=hostile)
    text = comparison.write(found, tmp_path / "out", comparison.sections(found))[1].read_text()
    assert hostile not in text and "&lt;script&gt;" in text and "a&amp;b" in text


def test_runs_by_themselves_are_grouped_by_what_they_differ_in(tmp_path):
    folders = [run_of(tmp_path / f"{point}{seed}", point, seed) for point in ("few", "many") for seed in (0, 1)]
    rows = table(comparison.sections(outcomes.find(folders)), "Outcomes")
    assert [(row["point"], row["n"]) for row in rows] == [
        ("swarm.external_groups=2", "2"),
        ("swarm.external_groups=4", "2"),
    ]
    other = make_run(tmp_path / "other", seed=2, config=quickstart.get_config())
    named = table(comparison.sections(outcomes.find([folders[0], other])), "Outcomes")
    assert [row["point"] for row in named] == ["quickstart-simulate", "quickstart"]


def test_some_points_alone_are_shown_as_they_are_named_among_all(sweep, tmp_path):
    found = outcomes.only(outcomes.find([sweep]), ["none", "few"])
    tables = comparison.sections(found)
    assert [row["point"] for row in table(tables, "Outcomes")] == ["none", "few"]
    assert {row["point"] for row in table(tables, "Against few")} == {"none"}
    folders = [run_of(tmp_path / f"{point}{seed}", point, seed) for point in ("few", "many") for seed in (0, 1)]
    alone = outcomes.only(outcomes.find(folders), ["swarm.external_groups=2"])
    assert [row["point"] for row in table(comparison.sections(alone), "Outcomes")] == ["swarm.external_groups=2"]


def test_nodes_that_mean_ill_do_not_count(tmp_path):
    workdir = run_of(tmp_path / "run", "few", 0)
    summary = json.loads((workdir / "summary.json").read_text())
    summary["config"]["simulation"]["adversaries"] = [[1, "wrong"]]
    (workdir / "summary.json").write_text(json.dumps(summary))
    (honest,) = outcomes.find([workdir]).runs
    assert honest.nodes == 1 and honest.generated == 48
    assert honest.rewards == pytest.approx([0.1 * round_ for round_ in range(24)])  # of node 0, not of both
    assert honest.held_out[:2] == [(0, 0.1), (4, pytest.approx(0.3))]


def test_what_came_from_those_who_mean_ill_and_when_they_were_found_out(tmp_path):
    """Nodes 0 and 1 are honest, 2 and 3 are not: 0 finds both by round 4, 1 the second in round 6, and accuses 0."""
    workdir, keys = tmp_path / "run", [simulated(0, node).author for node in range(4)]
    names = [friendly_name(key) for key in keys]
    make_run(workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    summary["config"]["simulation"]["adversaries"] = [[3, "wrong"], [2, "copy"]]
    (workdir / "summary.json").write_text(json.dumps(summary | {"nodes": 4}))
    finds = {0: {1: [2], 3: [3], 4: [3]}, 1: {2: [3], 5: [2, 3], 7: [0]}, 2: {0: [0, 1]}}
    rows = []
    for node, round_ in itertools.product(range(4), range(8)):
        row = {"node": node, "name": names[node], "round": round_, "groups/external": 3.0}
        row |= {f"learned_from/{keys[(node + 1) % 4].hex()}": 1.0, f"learned_from/{keys[(node + 2) % 4].hex()}": 2.0}
        rows.append(row | {f"audit/distrusted/{keys[n].hex()}": 1.0 for n in finds.get(node, {}).get(round_, ())})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = outcomes.find([workdir]).runs
    assert (found.nodes, found.from_peers, found.from_ill) == (2, 48, 8 * (2 + 3))
    assert (found.found_after, found.accused) == (6, 1)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["round"] < 5))
    (found,) = outcomes.find([workdir]).runs
    assert (found.found_after, found.accused) == (None, 0)


def test_runs_of_one_seed_and_chance_problems_are_called_that(tmp_path):
    live = [make_run(tmp_path / f"{i}", seed=1, config=quickstart.get_config()) for i in range(3)]
    (section, *_) = comparison.sections(outcomes.find(live))
    assert section.table[1][1] == "3" and "the chain's beacons" in section.text
    (section, *_) = comparison.sections(outcomes.find([run_of(tmp_path / "x", "few", 1)]))
    assert "beacons" not in section.text


def test_a_run_of_an_earlier_version_has_the_defaults_of_new_fields():
    config = json.loads(quickstart.get_config("spoiled-simulate").to_json_best_effort())
    whole = outcomes.settings_of(config)
    del config["learn"]["clip_low"], config["wandb"]
    assert outcomes.settings_of(config) == whole == {"driver": "simulate", "evaluation.every": 30}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere/summary.json does not exist"),
        (["broken.json"], "is not what experiments.report --save writes"),
        (["stopped", "stopped"], "none of these runs is finished"),
        (["run", "run", "--baseline", "x"], "there is no point 'x'; there are quickstart"),
        (["run", "run", "--points", "quickstart,y"], "there is no point 'y'; there are quickstart"),
        (["run", "run", "--at", "ten"], "--at is 'ten'; expected rounds by commas"),
        (["run", "run", "--at", "0"], "--at is '0'; expected rounds by commas"),
    ],
    ids=["nothing", "no outcomes", "unfinished", "no baseline", "no point", "no number", "no round"],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"runs": [{"name": 3}]}')
    make_run(tmp_path / "stopped", done=3)
    make_run(tmp_path / "run")
    assert report_command.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and said in message
