import math

import pytest

from configs import attacks, sapo
from rlswarm_jax.errors import UsageError
from rlswarm_jax.reporting import outcomes, study
from rlswarm_jax.reporting.outcomes import Outcome, Outcomes
from rlswarm_jax.reporting.render import render


def run(point, seed, accuracy, rounds=300, nodes=8, **fields):
    """accuracy: by rounds learned from."""
    counts = {"generated": 800, "trained_local": 100, "trained_external": 60, "sampled_tokens": 0, "text_tokens": 0}
    known = {"name": "sapo", "settings": {}, "rewards": [0.5] * rounds, "flops": 0, "seconds": 1, "hardware": "a box"}
    known |= counts | {"commit": "abc", "nodes": nodes} | fields
    return Outcome(point=point, seed=seed, held_out=sorted(accuracy.items()), **known)


def made(*runs):
    return Outcomes(name="sapo", points={name: {} for name in sapo.get_sweep().points}, runs=list(runs))


def pairs(point, other, differences, at=100, base=0.5):
    """Runs of two points, one pair for each seed."""
    theirs = [run(other, seed, {at: base + 0.01 * seed}, rounds=at) for seed in range(len(differences))]
    ours = [run(point, seed, {at: base + 0.01 * seed + d}, rounds=at) for seed, d in enumerate(differences)]
    return made(*theirs, *ours)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1, 0.12, 0.09, 0.11, 0.1], "holds"),
        ([-0.1, -0.12, -0.09, -0.11, -0.1], "the opposite holds"),
        ([0.1, -0.12, 0.09, -0.11, 0.02], "cannot be told"),
        ([0.02, 0.01, 0.02, 0.01, 0.6], "cannot be told"),  # the bootstrap's interval is above 0, t is 1.1
        ([0.1, 0.12, 0.09], "not measured enough"),
    ],
)
def test_a_claim_is_what_the_paired_interval_says(differences, verdict):
    said = study.claims("sapo", pairs("4-4", "8-0", differences))
    assert f"{sapo.CLAIMS[0][0]}: {verdict}" in said[0].replace("**", "").replace(":  ", ": ")
    assert all("not measured enough" in other for other in said[1:])
    if "measured" not in verdict:
        mean = 100 * sum(differences) / len(differences)
        assert f"{mean:+.1f} (" in said[0] and "5 seeds" in said[0]


def test_a_comparison_is_paired_by_seed_and_leaves_out_what_has_no_pair():
    found = pairs("4-4", "8-0", [0.1] * 4)
    more = made(*found.runs, run("4-4", 7, {100: 0.9}), run("8-0", 6, {50: 0.1}, rounds=60))
    compared = study.compared(outcomes.by_point(more), "4-4", "8-0", 100)
    assert compared.n == 4 and math.isclose(compared.mean, 10)


def test_a_table_has_what_was_run_beside_its_first_point_and_says_what_was_not():
    runs = [run(point, seed, {100: a, 300: a}) for point, a in (("8-0", 0.5), ("4-4", 0.7)) for seed in range(2)]
    block = study.study_block("sapo", "splits", made(*runs, run("6-2", 0, {100: 0.6}, rounds=100, nodes=4)))
    head, *rows = block.table
    assert [row[:2] for row in rows] == [["8-0", "2"], ["6-2", "1"], ["4-4", "2"]]
    cells = {row[0]: dict(zip(head[1:5], row[1:5], strict=True)) for row in rows}
    assert cells["4-4"]["held out, 100 rounds"] == "70.0 ± 0.0" and cells["6-2"]["held out, 300 rounds"] == "–"
    assert rows[2][5] == "+20.0 (+20.0 to +20.0)" and rows[0][5] == "" and rows[2][6] == "150.0 ± 0.0"
    assert rows[2][-2:] == ["100", "20"] and rows[1][-2:] == ["200", "40"]
    assert "Not run yet: 7-1, 5-3, 3-5, 2-6, 1-7." in block.note and "a box; commit abc" in block.note


def test_the_study_s_tables_and_claims_name_points_that_it_has():
    points = sapo.get_sweep().points
    named = {point for those, _ in sapo.TABLES.values() for point in those}
    named |= {point for _, one, other, _ in sapo.CLAIMS for point in (one, other)}
    assert named <= points.keys() and set(points) - named == set()


def test_blocks_of_a_page_are_filled_from_what_was_saved(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sapo.py").write_text("")
    page = tmp_path / "docs" / "page.md"
    empty = "<!-- rendered: sapo/claims -->\n<!-- /rendered -->\n<!-- rendered: sapo/splits -->\n<!-- /rendered -->\n"
    page.write_text(empty)
    render(tmp_path)
    assert page.read_text().count("Not measured yet: `results/sapo.json` does not exist.") == 2
    outcomes.save(tmp_path / "results" / "sapo.json", pairs("4-4", "8-0", [0.1, 0.12, 0.09, 0.11, 0.1]))
    render(tmp_path)
    assert f"**{sapo.CLAIMS[0][0]}: holds.**" in page.read_text() and "| 4-4 | 5 |" in page.read_text()
    page.write_text(empty.replace("splits", "splitz"))
    with pytest.raises(UsageError, match="unknown block sapo/splitz; expected one of splits, controls"):
        render(tmp_path)


def test_a_table_of_attacks_has_what_was_run_against_the_same_defence_unattacked():
    def of(point, accuracies, **more):
        return [run(point, seed, {30: a}, rounds=30, from_peers=200.0, **more) for seed, a in enumerate(accuracies)]

    runs = [
        *of("nobody-scoring", [0.5, 0.6]),
        *of("nobody-audits", [0.9, 0.9]),
        *of("best_of-2-scoring", [0.45, 0.5], from_ill=50.0),
        *of("best_of-2-audits", [0.8, 0.9], from_ill=10.0, found_after=4, accused=1),
        *[of("spam-1-audits", [0.9] * 2, found_after=at)[seed] for seed, at in enumerate((3, 5))],
        *of("copy-1-audits", [0.8], from_ill=10.0, found_after=4),
        *of("copy-1-audits", [0.8, 0.8], from_ill=20.0)[1:],
    ]
    block = study.attacks_block("answers", Outcomes(name="attacks", runs=runs))
    head, *rows = block.table
    found = {tuple(row[:3]): dict(zip(head[3:], row[3:], strict=True)) for row in rows}
    assert list(found) == [
        *[("nobody", "0", "scoring"), ("nobody", "0", "audits")],
        *[("best_of", "2", "scoring"), ("best_of", "2", "audits"), ("copy", "1", "audits")],
        ("spam", "1", "audits"),
    ]
    scored, audited, copied, spammed = [*found.values()][2:]
    assert scored["learned from them, %"] == "25.0 ± 0.0" and scored["rounds until found out"] == ""
    assert scored["less the unattacked"].startswith("-7.5") and audited["less the unattacked"].startswith("-5.0")
    assert audited["rounds until found out"] == "4" and audited["honest accused"] == "2"
    assert spammed["rounds until found out"] == "3–5" and spammed["learned from them, %"] == "0.0 ± 0.0"
    assert copied["rounds until found out"] == "1 of 2 runs" and copied["learned from them, %"] == "7.5 ± 3.5"
    said = block.note.partition("Not run yet: ")[2].partition(".")[0].split(", ")
    assert {"wrong", "best_of-1-audits", "copy-2-none", "nobody-none"} <= set(
        said
    )  # whole attacks, or what lacks of one
    assert not {"best_of", "best_of-2-audits", "wrong-1-none"} & set(said)
    with pytest.raises(UsageError, match="expected one of answers, votes"):
        study.attacks_block("sums", Outcomes())


def test_the_attacks_that_a_table_names_are_points_and_all_points_are_in_a_table():
    named = set()
    for those, nobody in attacks.TABLES.values():
        cases = [(nobody, 0), *((attack, count) for attack in those for count in attacks.COUNTS)]
        named |= {attacks.name(attack, count, how) for attack, count in cases for how in attacks.DEFENCES}
    points = attacks.get_sweep().points
    assert named == points.keys()
    for name, point in points.items():
        ill = [node for node, _ in point.get("simulation.adversaries", [])]
        there, nodes = dict(point.get("simulation.present", [])), point.get("swarm.nodes", attacks.NODES)
        for round_ in range(attacks.ROUNDS):
            now = {n for n in range(nodes) if any(a <= round_ < b for a, b in there.get(n, [(0, attacks.ROUNDS)]))}
            assert len(now) == attacks.NODES
            assert len(now.intersection(ill)) == (0 if name.startswith("nobody") else int(name.split("-")[1]))
