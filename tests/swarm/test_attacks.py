"""Each attack of the suite comes up against its limit, and whoever else speaks to the node is heard all the same."""

import threading
import time

import pytest

from tests.swarm.attacks import ATTACKS, Target
from tests.swarm.live import swarm
from tests.waits import wait_for

LEAST, MOST = 20, 90.0  # records that are said meanwhile; seconds
# what the node counts, as one of these at least; nothing where one stranger's process comes up against no limit
LIMITS = {
    "nothing": (),
    "half-open handshakes": ("network/half open", "network/refused"),
    "connecting and leaving": (),
    "slow readers": (),
    "streams": ("network/refused",),
    "windows": ("network/malformed",),
    "IHAVE": ("network/held_back",),
    "IWANT": ("network/held_back",),
    "GRAFT and PRUNE": (),
    "garbage": ("rejected/undecodable",),
    "records": ("network/held_back", "rejected/rate limit"),
    "announced records": ("network/held_back", "rejected/rate limit", "network/dropped/too many announcements"),
    "announcements never served": ("rejected/unavailable", "network/dropped/too many announcements"),
    "pulls": (),
    "equivocation": ("rejected/rate limit",),
    "replay": ("rejected/wrong swarm", "rejected/foreign sender"),
    "fresh keys": (),
    "unreadable addresses": ("network/refused", "network/malformed"),
}


def test_each_attack_has_its_limit_said():
    assert LIMITS.keys() == ATTACKS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_who_is_attacked_hears_the_others_and_the_attack_comes_up_against_its_limit(start, name):
    victim, honest = swarm(start, 2)
    victim.count("")
    before = victim.counts.copy()
    target, said = Target(victim.addresses[0], "tests", time.monotonic() + MOST), []
    attacker = threading.Thread(target=ATTACKS[name], args=(target,))
    attacker.start()
    while attacker.is_alive():
        said.append(honest.publish(len(said)))
        met = {limit for limit in LIMITS[name] if victim.count(limit) > before[limit]}
        if len(said) >= LEAST and (met or not LIMITS[name]):
            target.off.set()
        time.sleep(0.3)
    wait_for(lambda: set(said) <= set(victim.records), "all that the other one said is heard")
    assert victim.sees(honest)
    assert met or not LIMITS[name], victim.counts - before
