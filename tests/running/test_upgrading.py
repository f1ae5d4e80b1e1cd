"""What a node does when its swarm goes to another version: it says so, or ends in time, and never changes itself."""

import pytest

from rlswarm_jax.chain.upgrade import Upgrade, read, without
from rlswarm_jax.errors import TransientError, UsageError
from rlswarm_jax.running.upgrading import Upgrades

NEXT = Upgrade("5.1", 40)


def node(version, heard, follow=True):
    return Upgrades(version, lambda: heard[-1], follow)


@pytest.mark.parametrize(
    ("version", "round_", "plays"),
    [
        ("4.1", 39, True),
        ("4.1", 40, False),
        ("5.1", 39, False),
        ("5.1", 40, True),
        ("6.0", 39, True),
        ("6.0", 41, False),
    ],
)
def test_each_round_is_played_by_one_version(version, round_, plays):
    assert NEXT.fits(version, round_) == plays
    assert node(version, [(NEXT, round_)]).stop() == (not plays)
    assert not node(version, [(NEXT, round_)], follow=False).stop()
    assert not node(version, [(None, round_)]).stop() and not node(version, [(NEXT, -1)]).stop()


def test_one_that_played_until_then_may_be_started_again_and_one_started_after_it_may_not():
    heard = [(NEXT, 30)]
    old = node("4.1", heard)
    assert not old.stop()
    old.check()
    heard.append((NEXT, 40))
    assert old.stop()
    with pytest.raises(TransientError, match=r"from the coordinator's round 40 on; here is 4.1") as caught:
        old.check()
    assert caught.value.code == 75
    with pytest.raises(UsageError, match="install that version") as caught:
        node("4.1", heard).check()
    assert caught.value.code == 2
    with pytest.raises(TransientError, match="and not yet"):
        node("5.1", [(NEXT, 30)]).check()


def test_what_is_coming_is_said_once_and_what_is_here_is_not(caplog):
    heard = [(NEXT, 30)]
    old = node("4.1", heard, follow=False)
    for _ in range(3):
        old.stop()
        heard.append((NEXT, 41))
    assert caplog.text.count("from its round 40 on (now 30) the swarm plays records 5.1; here is 4.1") == 1
    heard.append((Upgrade("5.1", 60), 42))
    old.stop()
    assert len(caplog.records) == 2
    node("5.1", [(NEXT, 41)]).stop()
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ip4/1.2.3.4/tcp/5/p2p/x",
        "/rlswarm_jax/upgrade//from-round/3",
        "/rlswarm_jax/upgrade/5.1/from-round/-3",
        "/rlswarm_jax/upgrade/5.1.1.1/from-round/3",
        "/rlswarm_jax/upgrade/5.1/from-round/99999999999",
        "/rlswarm_jax/upgrade/5.1/from-round/3\n",
        "/rlswarm_jax/upgrade/\u0665/from-round/3",
    ],
)
def test_what_says_something_else_says_nothing(text):
    assert read([text]) is None and without([text]) == [text]
    assert read([text, NEXT.text, text]) == NEXT and without([text, NEXT.text]) == [text]
    assert read([NEXT.text, Upgrade("6", 50).text]) == Upgrade("6", 50)
