"""What each call of the coordinator costs, in gas, on the EVM of this process (the rules of Prague).

    python -m benchmarks.gas                              a few seconds
    python -m benchmarks.gas --write results/gas.json     ... and writes them down

`reward` and `vote` are what our own client calls; `submitReward` and `submitWinners` are the original's, peer ids as
text. A row says what was there before the call, because a storage slot's first use costs 17,100 more than its next.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eth_account import Account as Signer
from eth_account.messages import encode_typed_data

from benchmarks.evm import Account, Chain
from rlswarm_jax.chain import contracts

REWARD = "submitReward(uint256,uint256,int256,string)"
FAR = 2**32


def registration(chain: Chain, one: Account, payout: str, deadline: int = FAR, **domain: Any) -> tuple:
    """A registration that anyone may relay, as `registerKeys` takes it. domain: what differs from the chain's own."""
    types = {"Register": [("account", "address"), ("payout", "address"), ("deadline", "uint256")]}
    message = {"account": one.address, "payout": payout, "deadline": deadline}
    signed = sign_typed(chain, one, types, message, **domain)
    return one.x, one.y, payout, deadline, signed.v, signed.r.to_bytes(32), signed.s.to_bytes(32)


def sign_typed(
    chain: Chain, one: Account, types: dict[str, list[tuple[str, str]]], message: dict, **domain: Any
) -> Any:
    """A signature of EIP-712 typed data in the coordinator's domain, but for what `domain` says."""
    usual = {
        "name": "rlswarm_jax coordinator",
        "version": "1",
        "chainId": chain.web3.eth.chain_id,
        "verifyingContract": chain.coordinator.address,
    }
    fields = {name: [{"name": field, "type": type_} for field, type_ in row] for name, row in types.items()}
    return Signer.sign_message(encode_typed_data(usual | domain, fields, message), one.identity.expose_secret())


def measure() -> dict[str, int]:
    """Gas of each call."""
    chain = Chain(nodes=12, minSeconds=0, maxSeconds=1)
    first, second, third, fourth, relayed, *batch = chain.nodes
    used: dict[str, int] = {"deployment": chain.deployed.gasUsed}

    def send(row: str, sender: Account, name: str, *values: Any) -> None:
        used[row] = chain.send(sender.address, name, *values).gasUsed

    def commit(row: str, sender: Account, round_: int) -> None:
        words = [bytes([word]) * 32 for word in (1, 2, 3, 4)]
        send(row, sender, "commit", round_, chain.tag(round_), *words)

    chain.register(first)
    send("registerKey", second, "registerKey", second.x, second.y)
    send("registerPeer, proven", third, "registerPeer", third.peer_id)
    send("registerPeer, claimed", fourth, "registerPeer", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
    send("registerKeys, one", first, "registerKeys", [registration(chain, relayed, first.address)])
    several = [registration(chain, one, first.address) for one in batch[:6]]
    send("registerKeys, each of 6", first, "registerKeys", several)
    used["registerKeys, each of 6"] //= 6
    chain.next_round()
    chain.commit(first, 1)
    chain.next_round()
    commit("commit, first of a round: records its beacon", second, 2)
    commit("commit", first, 2)
    chain.commit(third, 2)
    ours = sorted(one.address for one in batch[:3])
    send("reward, first of a round", first, "reward", 2, 0, 12345)
    send("vote for one who has none yet", first, "vote", 2, [second.address])
    send("vote for one", third, "vote", 2, [second.address])
    send("vote for three who have none yet", second, "vote", 2, ours)
    send("submitReward, first of a round", second, REWARD, 2, 0, 12345, second.peer_id)
    send("submitReward, of a claim", fourth, REWARD, 2, 0, 12345, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
    chain.next_round()
    send("finalizeBeacon", first, "finalizeBeacon")
    send("finalizeBeacon, too early or done", first, "finalizeBeacon")
    send("reward, further stage", first, "reward", 2, 1, 12345)
    for one in (first, second, third):
        chain.commit(one, 3)
    chain.pass_time(1)
    send("submitWinners, one who has none yet", first, "submitWinners", 3, [relayed.peer_id], first.peer_id)
    send("submitWinners, one", second, "submitWinners", 3, [relayed.peer_id], second.peer_id)
    send("vote for three", third, "vote", 3, ours)
    send(
        "publishWeights",
        first,
        "publishWeights",
        3,
        b"\x07" * 32,
        "ipfs://bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oc",
    )
    send("advanceRound", first, "advanceRound")
    chain.pass_time(1)
    chain.tester.mine_blocks(2)
    send("advanceRound, and records the beacon", first, "advanceRound")
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
