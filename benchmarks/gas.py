"""What each call of the coordinator costs, in gas, on the EVM of this process (the rules of Prague).

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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gas", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, help="the file to write the table to")
    to = parser.parse_args(arguments).write
    artifact = contracts.coordinator()
    result = {"compiler": artifact["compiler"], "settings": artifact["settings"], "evm": "prague", "gas": measure()}
    text = json.dumps(result, indent=1)
    print(text)
    if to:
        to.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
