"""The coordinator of a simulation: the contract's rule of rounds, and beacons that follow from what was committed."""

import pytest

from rlswarm_jax.chain.virtual import VirtualCoordinator, quorum
from rlswarm_jax.identity import simulated

NODES = [simulated(0, node).author for node in range(4)]


def commit(chain: VirtualCoordinator, node: int, root: bytes = b"r" * 32, at: int | None = None) -> None:
    chain.commit(NODES[node], chain.moments()[-1][0] if at is None else at, root)


def test_a_round_ends_with_a_quorum_and_not_before():
    chain = VirtualCoordinator(0, quorum(4))
    first = chain.moments()[-1]
    assert first[0] == 0 and len(first[1]) == 32
    for node in (0, 1, 1, 0):  # saying it twice does not count twice
        commit(chain, node)
    assert chain.moments() == [first]
    commit(chain, 2)
    assert [number for number, _ in chain.moments()] == [0, 1]
    commit(chain, 3, at=0)  # late: taken, and nothing more
    assert chain.moments()[0] == first and chain.moments()[-1][0] == 1


def test_a_beacon_follows_from_the_seed_and_from_everything_committed():
    def beacon(seed: int, records: list[bytes], order=(0, 1, 2)) -> bytes:
        chain = VirtualCoordinator(seed, 3)
        for node in order:
            commit(chain, node, records[node])
        return chain.moments()[-1][1]

    records = [bytes([n]) * 32 for n in range(3)]
    assert beacon(0, records) == beacon(0, records, order=(2, 0, 1))  # not from when
    assert len({beacon(0, records), beacon(1, records), beacon(0, [*records[:2], b"x" * 32])}) == 3


def test_it_goes_on_where_it_was_saved():
    chain, other = VirtualCoordinator(0, 2), VirtualCoordinator(0, 2)
    for node in (0, 1, 2):
        commit(chain, node)
    other.restore(chain.save())
    for one in (chain, other):
        commit(one, 3)
    assert chain.moments() == other.moments() and chain.moments()[-1][0] == 2


@pytest.mark.parametrize(("nodes", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (6, 4), (100, 67)])
def test_a_quorum_is_two_thirds(nodes, needed):
    assert quorum(nodes) == needed
