import itertools

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from rlswarm_jax.swarm.virtual import Partition, VirtualNetwork


def message(number: int) -> bytes:
    return number.to_bytes(32)


def test_arrivals_do_not_depend_on_the_order_of_asking():
    calls = [(sender, message(m), at) for sender in range(4) for m in range(5) for at in (0.0, 1.5)]
    one, other = (VirtualNetwork(3, 4, loss=0.3) for _ in range(2))
    forwards = {call: one.arrivals(*call) for call in calls}
    backwards = {call: other.arrivals(*call) for call in reversed(calls)}
    assert forwards == backwards == {call: one.arrivals(*call) for call in calls}


def test_each_of_seed_sender_receiver_and_content_has_fates_of_its_own():
    network = VirtualNetwork(3, 6, latency=0.0, jitter=1.0)
    delays = [
        delay
        for one in (network, VirtualNetwork(4, 6, latency=0.0, jitter=1.0))
        for sender in range(6)
        for m in range(3)
        for delay in one.arrivals(sender, message(m), 0.0).values()
    ]
    assert len(set(delays)) == len(delays) == 2 * 6 * 3 * 5


def test_a_node_more_does_not_change_the_fate_of_others_messages():
    small, large = VirtualNetwork(3, 4, loss=0.4), VirtualNetwork(3, 5, loss=0.4)
    for sender, m in itertools.product(range(4), range(50)):
        more = large.arrivals(sender, message(m), 2.0)
        more.pop(4, None)
        assert small.arrivals(sender, message(m), 2.0) == more


def test_nobody_hears_itself_and_without_loss_everybody_else_does():
    for sender in range(5):
        assert set(VirtualNetwork(0, 5).arrivals(sender, message(1), 0.0)) == set(range(5)) - {sender}
    assert VirtualNetwork(0, 1).arrivals(0, message(1), 0.0) == {}


@given(st.integers(0, 2**64), st.floats(0, 1e4), st.floats(0, 10), st.floats(0, 10), st.binary(max_size=32))
def test_a_message_takes_at_least_latency_and_at_most_jitter_more(seed, at, latency, jitter, content):
    for arrival in VirtualNetwork(seed, 4, latency, jitter).arrivals(0, content, at).values():
        assert at + latency <= arrival <= at + latency + jitter


def test_delays_are_uniform_between_their_bounds():
    network = VirtualNetwork(1, 2, latency=0.25, jitter=0.5)
    delays = [network.arrivals(0, message(m), 0.0)[1] for m in range(3000)]
    assert scipy.stats.kstest(delays, scipy.stats.uniform(0.25, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("loss", [0.05, 0.3, 0.9])
def test_as_many_are_lost_as_the_rate_says(loss):
    network, messages = VirtualNetwork(2, 3, loss=loss), 2000
    arrived = [set(network.arrivals(0, message(m), 0.0)) for m in range(messages)]
    for receiver in (1, 2):
        lost = sum(receiver not in found for found in arrived)
        assert scipy.stats.binomtest(lost, messages, loss).pvalue > 1e-3
    both = sum(not found for found in arrived)  # receivers lose independently of each other
    assert scipy.stats.binomtest(both, messages, loss**2).pvalue > 1e-3


def test_losses_of_none_and_all():
    assert all(len(VirtualNetwork(2, 3).arrivals(0, message(m), 0.0)) == 2 for m in range(500))
    assert not any(VirtualNetwork(2, 3, loss=1.0).arrivals(0, message(m), 0.0) for m in range(500))


def test_what_is_lost_says_nothing_about_the_delay_of_what_is_not():
    lossless, lossy = (VirtualNetwork(2, 2, jitter=1.0, loss=loss) for loss in (0.0, 0.5))
    kept = [lossy.arrivals(0, message(m), 0.0) for m in range(3000)]
    assert all(found == lossless.arrivals(0, message(m), 0.0) for m, found in enumerate(kept) if found)
    delays = [found[1] for found in kept if found]
    assert scipy.stats.kstest(delays, scipy.stats.uniform(0.05, 1.0).cdf).pvalue > 1e-3


def test_a_partition_cuts_exactly_between_its_groups_while_it_lasts():
    groups = ((0, 1), (2, 3, 4))
    network = VirtualNetwork(0, 5, latency=0.5, partitions=[Partition(10.0, 20.0, groups)])
    whole = VirtualNetwork(0, 5, latency=0.5)
    for at, sender in itertools.product((0.0, 9.999, 10.0, 15.0, 19.999, 20.0, 99.0), range(5)):
        cut = at in (10.0, 15.0, 19.999)
        reached, everybody = network.arrivals(sender, message(1), at), whole.arrivals(sender, message(1), at)
        (own,) = (group for group in groups if sender in group)
        assert reached == {r: t for r, t in everybody.items() if not cut or r in own}


def test_partitions_add_up_and_a_node_in_two_groups_bridges_them():
    partitions = [Partition(0, 10, ((0, 1, 2), (2, 3))), Partition(5, 9, ((0,), (1, 2, 3)))]
    network = VirtualNetwork(0, 4, partitions=partitions)

    def reached(sender, at):
        return set(network.arrivals(sender, message(1), at))

    assert [reached(sender, 1.0) for sender in range(4)] == [{1, 2}, {0, 2}, {0, 1, 3}, {2}]
    assert [reached(sender, 6.0) for sender in range(4)] == [set(), {2}, {1, 3}, {2}]


def test_a_node_that_a_partition_does_not_name_is_cut_off_from_all():
    network = VirtualNetwork(0, 4, partitions=[Partition(0, 10, ((0, 1),))])
    assert [set(network.arrivals(sender, message(1), 1.0)) for sender in range(4)] == [{1}, {0}, set(), set()]
