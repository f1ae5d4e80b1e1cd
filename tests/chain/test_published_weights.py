"""Published weights come to be on the chain after the newest settled round: once, in order, whatever is killed."""

import pytest

from rlswarm_jax.chain.coordinator import Coordinator
from tests.chain.client_world import COMMITMENT, SETTINGS, World, make_world, original_world, settle, wish_settlement

A, B, C = (bytes([byte]) * 32 for byte in b"abc")


@pytest.fixture
def world():
    return make_world()


def published(world: World) -> list[tuple[int, bytes, str]]:
    return [(one["round"], one["weights"], one["uri"]) for one in world.events("WeightsPublished")]


def test_it_waits_for_a_settlement_and_is_said_once(world, tmp_path):
    client = world.client(tmp_path)
    assert client.record_weights(A, "hf://ada/qwen@1") is None and not client.wishes()
    wish_settlement(client, world)
    assert [client.record_weights(A, "hf://ada/qwen@1") for _ in range(3)] == [world.round] * 3
    settle(client, world)
    assert client.record_weights(A, "hf://ada/qwen@1") == world.round
    assert published(world) == [(world.round, A, "hf://ada/qwen@1")] and len(client.wishes()) == 2


def test_after_a_kill_at_any_point_it_is_there_once(world, tmp_path):
    def client() -> Coordinator:
        return world.client(tmp_path)

    first = client()
    wish_settlement(first, world)
    first.close()  # killed between the upload and the wish
    second = client()
    assert second.record_weights(A, "u") == world.round
    second.close()  # between the wish and the transaction
    third = client()
    third.step()
    world.chain.mine()
    third.step()
    third.close()  # between the transaction and the block
    last = client()
    assert last.record_weights(A, "u") == world.round
    settle(last, world)
    assert published(world) == [(world.round, A, "u")]


def test_newer_weights_wait_for_a_newer_settlement_and_other_places_are_others(world, tmp_path):
    client = world.client(tmp_path)
    wish_settlement(client, world)
    assert client.record_weights(A, "u") == world.round
    assert client.record_weights(B, "u") is None is client.record_weights(A, "elsewhere")
    client.settle(world.round + 1, world.beacon, COMMITMENT, [0, 0, 0], [])
    assert client.record_weights(C, "u") == world.round + 1
    assert client.record_weights(A, "u") == world.round


def test_what_fell_with_its_settlement_is_said_again_after_the_next(world, tmp_path):
    client = world.client(tmp_path)
    client.settle(world.round, world.beacon, COMMITMENT, [0, 0, 10**6 + 1], [])  # the contract refuses that
    assert client.record_weights(A, "u") == world.round
    settle(client, world)
    assert {wish.state for wish in client.wishes()} == {"refused", "dropped"} and not published(world)
    assert client.record_weights(A, "u") is None  # not after that round
    client.settle(world.round + 1, world.beacon, COMMITMENT, [0, 0, 0], [])
    assert client.record_weights(A, "u") == world.round + 1


def test_the_original_s_contracts_take_none(world, tmp_path):
    world = original_world(world)
    client = world.client(tmp_path, settings=SETTINGS)
    client.connect()
    client.settle(0, b"", None, [1, 0, 0], [])
    assert client.record_weights(A, "u") is None


@pytest.mark.parametrize(("digest", "uri"), [(b"short", "u"), (bytes(32), "u"), (A, "u" * 257)])
def test_what_the_contract_would_not_take_is_an_error(world, tmp_path, digest, uri):
    client = world.client(tmp_path)
    wish_settlement(client, world)
    with pytest.raises(ValueError, match="a hash of 32 bytes"):
        client.record_weights(digest, uri)
