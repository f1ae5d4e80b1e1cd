"""The verdict of a soak: what grows is named, what warms up or goes up and down is not."""

import math

import pytest

from benchmarks.soak import ROOM, grown, judge


def looks(**courses):
    """A look each half minute; of what is not given nothing changes. rounds: two a second."""
    steady = {name: (lambda at: 100.0) for name in ROOM} | {"disk_metrics_mb": lambda at: 0.0} | courses
    times = [30.0 * look for look in range(90)]
    return [{"seconds": at, "rounds": 2 * at, **{name: course(at) for name, course in steady.items()}} for at in times]


def test_what_stays_is_flat():
    found = judge(looks(rss_mb=lambda at: 500 + 20 * math.sin(at)))
    assert found["grew"] == [] and found["rss_mb"]["mean"] == pytest.approx(500, abs=5)


def test_a_warm_up_is_none_of_its_business():
    assert judge(looks(rss_mb=lambda at: 800 - 500 * math.exp(-at / 120)))["grew"] == []


@pytest.mark.parametrize("name", ROOM)
def test_what_grows_is_named(name):
    found = judge(looks(**{name: lambda at: 100 + at / 60}))
    assert found["grew"] == [name] and found[name]["growth"] == pytest.approx(30, abs=1)


def test_growth_on_the_disk_is_told_in_a_thousand_rounds():
    found = judge(looks(disk_metrics_mb=lambda at: 3e-3 * 2 * at))
    assert found["mb_per_1000_rounds"]["disk_metrics_mb"] == pytest.approx(3.0)
    assert grown([{"seconds": 1.0}], "rss_mb") == 0.0
