"""What someone is told who joins a swarm, and what everybody sees who hears much and can use nothing."""

import io
import shlex

import ml_collections
import pytest
from rich.console import Console

from configs import common, game, node, quickstart
from rlswarm_jax.errors import UsageError
from rlswarm_jax.identity import simulated
from rlswarm_jax.records.agreement import differences
from rlswarm_jax.running import account, build, joining
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running.hearing import Hearing
from rlswarm_jax.running.view import SwarmView

ADDRESS = f"/ip4/127.0.0.1/tcp/4001/p2p/{simulated(1, 1).peer_id}"
CONTRACT = "0x" + "Ab" * 20
CHAIN = {"endpoint": "http://127.0.0.1:8545", "contract": CONTRACT, "id": 31337, "confirmations": 0}


def of_node(config: ml_collections.ConfigDict, **chain) -> ml_collections.ConfigDict:
    """As the launcher writes it for one of its nodes."""
    config.chain.update(chain)
    return config


def with_more_tasks(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.tasks.update(common.HARD_TASKS)
    return config


def joined(command: str) -> ml_collections.ConfigDict:
    """The config of whoever pastes the command into a shell."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "experiments.run"]
    return cli.parse(words[3:]).config


@pytest.mark.parametrize(
    "config",
    [
        of_node(quickstart.get_config(), **CHAIN),
        of_node(quickstart.get_config("smoke"), **CHAIN, every=1),
        game.get_config("control"),
        game.get_config("novotes"),
        node.get_config(),
        with_more_tasks(node.get_config()),
    ],
    ids=["quickstart", "every", "control", "novotes", "node", "tasks"],
)
def test_who_pastes_the_line_plays_by_the_same_rules(config):
    config.seed, config.game.answer_tokens, config.swarm.name = 7, 8, "it's ours"
    config.sampling.max_prompt_tokens = 128
    theirs = joined(joining.command(config, ADDRESS))
    cli.check(theirs)
    ours, them = build.observed(config), build.observed(theirs)
    assert differences(ours.terms, them.terms) == [] and ours.agreement == them.agreement
    assert theirs.driver == "node" and list(theirs.swarm.bootnodes) == [ADDRESS]
    assert {**theirs.chain} == {**config.chain}
    assert ours.terms["chain.contract"] == (CONTRACT.lower() if config.chain.contract else "none")
    assert ours.terms.get("chain.id") == ("31337" if config.chain.contract else None)


def test_an_endpoint_with_a_secret_is_not_shown():
    for url in ("https://rpc.example/v3/s3cret", "https://user:s3cret@rpc.example", "https://rpc.example?key=s3cret"):
        assert "s3cret" not in account.shown(url)
        assert "s3cret" not in joining.command(of_node(quickstart.get_config(), **CHAIN | {"endpoint": url}), ADDRESS)
    line = joining.command(of_node(quickstart.get_config(), **CHAIN | {"endpoint": "$RPC_URL"}), ADDRESS)
    assert joined(line).chain.endpoint == "$RPC_URL"


@pytest.mark.parametrize("address", ["/dns4/localhost", "/dns/a.example", "/dns6/x", "/dnsaddr/x", "/ip6/::1"])
def test_a_bootnode_may_be_a_name(address):
    config = node.get_config()
    config.swarm.bootnodes = (ADDRESS.replace("/ip4/127.0.0.1", address),)
    cli.check(config)


@pytest.mark.parametrize("address", ["", "localhost:4001", ADDRESS.replace("/tcp/4001", ""), "/x" + ADDRESS, 7])
def test_a_bootnode_that_is_no_address_is_one_sentence(address):
    config = ml_collections.ConfigDict(node.get_config().to_dict())
    config.swarm.bootnodes = [address]
    with pytest.raises(UsageError, match=r"config\.swarm\.bootnodes.*expected .*/dns4/NAME/tcp/PORT"):
        cli.check(config)


def test_the_chain_s_bootnodes_are_taken_as_far_as_they_are_addresses():
    class Coordinator:
        def bootnodes(self) -> list[str]:
            key = ADDRESS.rpartition("/")[2]
            return [ADDRESS, f"/nonsense/p2p/{key}", "", f"/ip4/127.0.0.1/udp/1/p2p/{key}", "/ip4/1.2.3.4/tcp/1"]

    assert account.bootnodes(Coordinator()) == [ADDRESS]


# --- hearing in vain

IN_VAIN = {"records/received": 3.0, "groups/received": 0.0, "groups/unused/unknown beacon": 8.0}
OF_USE = {"records/received": 3.0, "groups/received": 4.0, "groups/unused/unknown beacon": 4.0}
SILENCE = {"records/received": 0.0, "groups/received": 0.0}


def test_rounds_in_vain_are_said_each_time_twice_as_many():
    hearing = Hearing()
    said = [round_ for round_ in range(1, 30) if hearing.on_round(IN_VAIN)]
    assert said == [3, 6, 12, 24]


def test_what_is_of_use_ends_the_count_and_silence_neither_ends_nor_adds_to_it():
    hearing = Hearing()
    rows = [IN_VAIN, SILENCE, IN_VAIN, OF_USE, IN_VAIN, SILENCE, SILENCE, IN_VAIN, IN_VAIN]
    assert [bool(hearing.on_round(row)) for row in rows] == [False] * 8 + [True]
    assert not any(Hearing().on_round(SILENCE) for _ in range(20))
    echoes = SILENCE | {"records/rejected/own record": 9.0, "records/rejected/duplicate": 9.0}
    hearing = Hearing()
    assert not any(hearing.on_round(echoes) for _ in range(20))


def test_the_main_cause_is_named_with_what_to_do():
    hearing = Hearing()
    row = IN_VAIN | {"groups/unused/text mismatch": 2.0, "records/rejected/unknown stage": 1.0}
    (said,) = filter(None, [hearing.on_round(row) for _ in range(3)])
    assert said.startswith("in 3 rounds nothing that peers said could be used; 24 of 33 for the cause 'unknown beacon'")
    assert "config.chain" in said and "\n" not in said
    hearing = Hearing()
    (said,) = filter(None, [hearing.on_round(SILENCE | {"records/rejected/unknown stage": 5.0}) for _ in range(3)])
    assert "config.game.stages" in said


def test_the_view_shows_what_is_used_and_says_when_nothing_is():
    written = io.StringIO()
    view = SwarmView(Console(file=written, width=160), ["deaf-owl", "keen-fox"], 10, [0, 0])
    common_ = {"reward/mean": 0.5, "records/published": 3.0, "groups/external": 2.0}
    for round_ in range(4):
        view.update(common_ | IN_VAIN | {"node": 0, "round": round_, "groups/external": 0.0})
        view.update(common_ | OF_USE | {"node": 1, "round": round_})
    shown = Console(file=io.StringIO(), width=160)
    shown.print(view._render())
    text = shown.file.getvalue()
    assert "usable/heard" in text and "0/0/32" in text and "8/16/32" in text
    said = [line for line in written.getvalue().splitlines() if "nothing that peers said" in line]
    assert len(said) == 1 and said[0].startswith("deaf-owl: in 3 rounds")
