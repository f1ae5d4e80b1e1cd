"""What each call of the coordinator and of the court costs, in gas, on the EVM of this process (the rules of Prague).

python -m benchmarks.gas                              a few seconds
python -m benchmarks.gas --write results/gas.json     ... and writes them down
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evm import Account, Chain
from benchmarks.evm_court import ABSTAIN, GUILTY, Courtroom
from rlswarm_jax.chain import contracts

CLAIMS = (12_345_678, 2_345_678, 345_678)


def measure() -> dict[str, int]:
    """Gas of each call."""
    chain = Chain(nodes=12, minSeconds=0, maxSeconds=1, maxReward=10**9)
    first, second, third, relayed, *batch = chain.nodes
    used: dict[str, int] = {"deployment": chain.deployed.gasUsed}

    def send(row: str, sender: str, name: str, *values: Any) -> None:
        used[row] = chain.send(sender, name, *values).gasUsed

    def settle(row: str, sender: Account, round_: int, *winners: Account) -> None:
        used[row] = chain.settle(sender, round_, CLAIMS, *winners).gasUsed

    chain.register(first)
    send("register", second.address, "register", second.x, second.y)
    chain.register(third)
    send("registerFor, one with a payout address", first.address, "registerFor", [chain.signed(relayed, first.address)])
    send("registerFor, each of 6", first.address, "registerFor", [chain.signed(one) for one in batch[:6]])
    used["registerFor, each of 6"] //= 6
    send("setPayout", first.address, "setPayout", first.address, chain.owner)
    for _ in range(3):  # a round like any other: the swarm's sums are not zero, nor those of its members
        chain.next_round()
    ours = batch[:3]
    settle("settle, first of a round: records its beacon", first, 3, *ours)
    settle("settle", second, 3, *ours)
    settle("settle, without votes", third, 3)
    chain.pass_time(1)
    send("advanceRound", first.address, "advanceRound")
    send("finalizeBeacon, too early or done", first.address, "finalizeBeacon")
    chain.tester.mine_blocks(1)
    send("finalizeBeacon", first.address, "finalizeBeacon")
    settle("settle, late", relayed, 3, *ours)
    chain.pass_time(1)
    chain.send(first.address, "advanceRound")
    chain.pass_time(1)
    chain.tester.mine_blocks(2)
    send("advanceRound, and records the beacon", first.address, "advanceRound")
    uri = "ipfs://bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oc"
    send("publishWeights", first.address, "publishWeights", 3, b"\x07" * 32, uri)
    entries = [f"/ip4/203.0.113.{index}/tcp/4001/p2p/{first.peer_id}" for index in range(3)]
    send("setBootnodes, three", chain.owner, "setBootnodes", entries)
    return used


def measure_court(size: int = 5, stakers: int = 60) -> dict[str, int]:
    """Gas of each call, with a committee of `size`; the dearest draw is one from so many stakers that finds too few."""
    room = Courtroom(size + 3, {"size": size, "quorum": 3}, minSeconds=0, maxSeconds=1)
    accused, challenger, *_ = room.nodes
    used: dict[str, int] = {"deployment": room.court_deployed.gasUsed}

    def act(row: str, one: Account, name: str, *values: Any, value: int = 0) -> None:
        used[row] = room.act(one, name, *values, value=value).gasUsed

    room.register(*room.nodes)
    act("deposit", accused, "deposit", value=room.terms["stake"])
    room.stake(*room.nodes[1:])
    records = [bytes([number + 1]) * 32 for number in range(64)]
    room.next_round()
    room.commit(accused, 1, records)

    def case(row: str, drawn: str, index: int, *votes: int) -> int:
        question = room.question(accused, 1, records, 37, index)
        act(row, challenger, "challenge", *question, value=room.terms["bond"])
        room.next_round()
        number = room.ask("counts")[0]
        act(drawn, challenger, "draw", number)
        members = room.members(number)
        act("vote, first of a case", members[0], "vote", number, 0, votes[0])
        for seat in range(1, size):
            act("vote", members[seat], "vote", number, seat, votes[seat])
        return number

    number = case("challenge, first of a court", "draw", 0, *[ABSTAIN] * size)
    act("resolve, undecided", challenger, "resolve", number)
    number = case("challenge", "draw", 1, *[GUILTY] * size)
    act("resolve", challenger, "resolve", number)
    act("quit", challenger, "quit")
    for _ in range(room.terms["delay"] + 1):
        room.next_round()
    act("withdraw", challenger, "withdraw")
    act("collect", challenger, "collect", challenger.address)
    used["draw, the dearest there is"] = _dearest_draw(size, stakers)
    return used


def _dearest_draw(size: int, stakers: int) -> int:
    """All places that are looked at but the last few are of those who asked for their stakes before the challenge."""
    room = Courtroom(stakers, {"size": size, "quorum": 3}, minSeconds=0, maxSeconds=1)
    accused, challenger, *others = room.nodes
    room.register(*room.nodes)
    room.stake(*room.nodes)
    room.next_round()
    records = [b"\1" * 32, b"\2" * 32]
    room.commit(accused, 1, records)
    for one in others[size - 1 :]:
        room.act(one, "quit")
    number = room.challenge(challenger, accused, 1, records)
    room.next_round()
    used = room.act(challenger, "draw", number).gasUsed
    assert not room.members(number)  # one too few: every place that may be was looked at
    return used


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gas", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, help="the file to write the table to")
    to = parser.parse_args(arguments).write
    artifact = contracts.coordinator()
    result = {"compiler": artifact["compiler"], "settings": artifact["settings"], "evm": "prague", "gas": measure()}
    result["court"] = measure_court()
    text = json.dumps(result, indent=1)
    print(text)
    if to:
        to.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
