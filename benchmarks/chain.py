"""What the development network can take, and what a call costs it, against anvil where that is installed.

    python -m benchmarks.chain        two minutes on two idle CPU cores; `--smoke` five seconds

Prints one JSON line a row, of the CPU time of the network's process alone, so that other work on the machine matters
little. Transactions are signed beforehand and sent over as many connections as there are clients, each waiting for its
receipt before the next; every one writes two words of a contract's storage and a log. `blocks` is how many the chain
had already. Calls have other parameters each time, where they can, so that no kept answer serves. `polling` is 256
clients who ask for the block number, a receipt and the last block's logs, in turn, once a second each, while a block
comes every second.
"""

import argparse
import http.client
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_utils import to_checksum_address

from rlswarm_jax.chain import anvil, devnet
from rlswarm_jax.machine import hardware

CLIENTS = (1, 4, 16)
BLOCKS = (10, 1000)
TRANSACTIONS = 320  # of each measurement
CALLS = 600
POLLING, SECONDS = 256, 10

# CALLER SLOAD 1 ADD DUP1 CALLER SSTORE  DUP1 0 SSTORE  0 MSTORE  CALLER 32 0 LOG1 STOP
RUNTIME = bytes.fromhex("3354600101803355806000556000523360206000a100")
# PUSH1 length DUP1 PUSH1 offset PUSH1 0 CODECOPY PUSH1 0 RETURN, and the runtime at 11
CODE = bytes([0x60, len(RUNTIME), 0x80, 0x60, 11, 0x60, 0, 0x39, 0x60, 0, 0xF3]) + RUNTIME


class Connection:
    """One client's, kept alive."""

    def __init__(self, url: str):
        self._http = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)

    def ask(self, method: str, *params: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        self._http.request("POST", "/", body, {"Content-Type": "application/json"})
        answer = json.loads(self._http.getresponse().read())
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def receipt(self, transaction_hash: str) -> dict[str, Any]:
        while not (found := self.ask("eth_getTransactionReceipt", transaction_hash)):
            time.sleep(0.001)
        return found


class Sender:
    """An account, its next nonce and its connection."""

    def __init__(self, url: str, number: int):
        self.connection, self._nonce = Connection(url), 0
        self._key = Account.from_key((number + 1).to_bytes(32))

    def sign(self, to: str | None, data: bytes = b"") -> str:
        fields = {"chainId": devnet.CHAIN_ID, "nonce": self._nonce, "gas": 200_000, "value": 0, "data": data}
        fields |= {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0} | ({"to": to} if to else {})
        self._nonce += 1
        return self._key.sign_transaction(fields).raw_transaction.to_0x_hex()

    def send(self, raw: str) -> dict[str, Any]:
        return self.connection.receipt(self.connection.ask("eth_sendRawTransaction", raw))


def cpu_seconds(process: subprocess.Popen) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def together(acts: list[Any]) -> float:
    """Runs them in threads of their own; the seconds until all are done. Raises what one of them raised."""
    raised: list[Exception] = []

    def run(act: Any) -> None:
        try:
            act()
        except (RuntimeError, OSError, http.client.HTTPException) as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return time.perf_counter() - started


Row = tuple[dict[str, Any], float, str]


def measure(network: devnet.Devnet) -> Iterator[Row]:
    """(config, value, unit) of one network, in the same order for all."""
    senders = [Sender(network.url, number) for number in range(max(CLIENTS))]
    first = senders[0]
    contract = first.send(first.sign(None, CODE))["contractAddress"]
    to = to_checksum_address(contract)
    for blocks in BLOCKS:
        while int(first.connection.ask("eth_blockNumber"), 16) < blocks:
            receipt = first.send(first.sign(to))
        for clients in CLIENTS:
            work = [[sender.sign(to) for _ in range(TRANSACTIONS // clients)] for sender in senders[:clients]]
            used = cpu_seconds(network.process)
            together(
                [
                    lambda sender=sender, raws=raws: [sender.send(raw) for raw in raws]
                    for sender, raws in zip(senders, work, strict=False)
                ]
            )
            used, sent = cpu_seconds(network.process) - used, sum(map(len, work))
            config = {"clients": clients, "blocks": blocks}
            yield {"measure": "transactions", **config}, sent / max(used, 0.01), "tx/CPU s"
        receipt = first.send(first.sign(to))
        for name, asked in questions(first, receipt, CALLS).items():
            used = cpu_seconds(network.process)
            for params in asked:
                first.connection.ask(name, *params)
            used = cpu_seconds(network.process) - used
            yield {"measure": name, "blocks": blocks, "calls": CALLS}, 1000 * used / CALLS, "CPU ms"
    yield polling(network, contract, receipt["transactionHash"])


def questions(sender: Sender, receipt: dict[str, Any], calls: int) -> dict[str, list[tuple]]:
    """Parameters for each method's calls: none is asked twice, where they can differ."""
    head, to, each = int(receipt["blockNumber"], 16), to_checksum_address(receipt["to"]), range(calls)
    call = {"to": to, "from": receipt["from"]}
    return {
        "eth_call": [(call | {"gas": hex(100_000 + at)}, "latest") for at in each],
        "eth_estimateGas": [(call | {"gas": hex(100_000 + at)},) for at in each],
        "eth_getTransactionReceipt": [(receipt["transactionHash"],) for _ in each],
        "eth_getBlockByNumber": [(hex(at % head), True) for at in each],
        "eth_getTransactionCount": [(f"0x{at:040x}", "latest") for at in each],
        "eth_getLogs": [({"fromBlock": hex(at % head), "toBlock": hex(at % head), "address": to},) for at in each],
        "eth_blockNumber": [() for _ in each],
        "eth_sendRawTransaction": [(sender.sign(to),) for _ in each],
    }


def polling(network: devnet.Devnet, contract: str, transaction_hash: str) -> Row:
    """The share of a core that many clients take who poll once a second, while a block comes every second."""
    connections = [Connection(network.url) for _ in range(POLLING)]
    asked = (
        ("eth_blockNumber",),
        ("eth_getTransactionReceipt", transaction_hash),
        ("eth_getLogs", {"fromBlock": "latest", "address": contract}),
    )
    for connection in connections:
        connection.ask("eth_chainId")

    def poll(connection: Connection, at: int) -> None:
        start = time.perf_counter() + at / POLLING
        for second in range(SECONDS):
            time.sleep(max(0.0, start + second - time.perf_counter()))
            connection.ask(*asked[second % len(asked)])

    sender = Sender(network.url, 500)

    def advance() -> None:
        for _ in range(SECONDS):
            sender.send(sender.sign(to_checksum_address(contract)))
            time.sleep(1.0)

    used = cpu_seconds(network.process)
    seconds = together([advance, *(lambda c=c, at=at: poll(c, at) for at, c in enumerate(connections))])
    share = (cpu_seconds(network.process) - used) / seconds
    return {"measure": "polling", "clients": POLLING, "polls a second": POLLING}, 100 * share, "% of a core"


def rows() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory, devnet.running(Path(directory)) as ours:
        measured = list(measure(ours))
    theirs: list[Row | None] = [None] * len(measured)
    if anvil.find():
        with anvil.running() as network:
            theirs = list(measure(network))
    for (config, value, unit), other in zip(measured, theirs, strict=True):
        row = {"benchmark": "chain", "config": config, "value": round(value, 3), "unit": unit}
        if other:
            row |= {"versus": "anvil", "ratio": round(value / other[1], 3) if other[1] else None}
            row |= {"measured": {"anvil": round(other[1], 3)}}
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chain", description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few of everything, to see that it runs")
    if parser.parse_args().smoke:
        globals().update(CLIENTS=(1, 4), BLOCKS=(3, 20), TRANSACTIONS=16, CALLS=10, POLLING=16, SECONDS=2)
    versions = {package: importlib.metadata.version(package) for package in ("py-evm", "aiohttp")}
    if program := anvil.find():
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30).stdout
        versions["anvil"] = said.split()[2] if len(said.split()) > 2 else said.strip()
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    for row in rows():
        print(json.dumps(row | about), flush=True)


if __name__ == "__main__":
    main()
