"""A network of one's own: what it answers (to web3.py), what it keeps when killed, and what it refuses."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import rlp
from eth_utils import keccak, to_checksum_address
from hypothesis import given, settings
from hypothesis import strategies as st
from trie import HexaryTrie
from web3.exceptions import ContractCustomError, ContractLogicError, ContractPanicError, TransactionNotFound

from rlswarm_jax.chain import anvil, contracts, devnet
from rlswarm_jax.chain.deployment import Rules
from rlswarm_jax.chain.devnet import rpc
from rlswarm_jax.chain.devnet.chain import Chain
from rlswarm_jax.chain.devnet.errors import DevnetError
from rlswarm_jax.chain.devnet.rpc import Interface
from rlswarm_jax.chain.devnet.store import FILE, Store
from tests.chain import counter
from tests.chain.counter import account, connect, deploy, sign

KEY = account(0)


class Network:
    """A network in this process. now: its clock, in seconds."""

    def __init__(self, directory: Path):
        self.now, self.store = 1_800_000_000.5, Store(directory)
        try:
            self.chain = Chain(self.store, now=lambda: self.now)
        except DevnetError:
            self.store.close()
            raise
        self.interface = Interface(self.chain, self.store)

    def ask(self, method, *params):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        return json.loads(self.interface.answer(body.encode()))

    def get(self, method, *params):
        answer = self.ask(method, *params)
        assert "error" not in answer, answer
        return answer["result"]

    def send(self, raw: bytes) -> dict:
        return self.get("eth_getTransactionReceipt", self.get("eth_sendRawTransaction", "0x" + raw.hex()))

    def refusal(self, raw: bytes) -> str:
        return self.ask("eth_sendRawTransaction", "0x" + raw.hex())["error"]["message"]

    def deploy(self) -> str:
        return to_checksum_address(self.send(sign(KEY, 0, data=counter.CODE + "00" * 32))["contractAddress"])

    def total(self, contract: str, block: str = "latest") -> int:
        return int(self.get("eth_call", {"to": contract, "data": call("total")}, block), 16)

    def answers(self) -> list:
        """Everything about all blocks."""
        numbers = range(self.chain.head.block_number + 1)
        blocks = [self.get("eth_getBlockByNumber", hex(number), True) for number in numbers]
        hashes = [one["hash"] for block in blocks for one in block["transactions"]]
        receipts = [self.get("eth_getTransactionReceipt", one) for one in hashes]
        return [blocks, receipts, self.get("eth_getLogs", {"fromBlock": "0x0"})]


@contextlib.contextmanager
def opened(directory):
    network = Network(directory)
    try:
        yield network
    finally:
        network.store.close()


@pytest.fixture
def network(tmp_path):
    with opened(tmp_path / "chain") as found:
        yield found


def call(name: str, *numbers: int) -> str:
    types = ",".join(["uint256"] * len(numbers))
    return "0x" + (keccak(f"{name}({types})".encode())[:4] + b"".join(n.to_bytes(32) for n in numbers)).hex()


# what it answers, to web3.py


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with devnet.running(tmp_path_factory.mktemp("devnet")) as running:
        yield running.url


@pytest.fixture(scope="module")
def w3(url):
    return connect(url)


@pytest.fixture(scope="module")
def contract(w3):
    return deploy(w3, account(1), start=7)


keys = itertools.count(1000)


@pytest.fixture
def key():
    """Of an account that nobody else in these tests uses."""
    return account(next(keys))


def send(w3, key, contract_call, nonce, **fields):
    data = contract_call._encode_transaction_data()
    sent = w3.eth.send_raw_transaction(sign(key, nonce, contract_call.address, data=data, **fields))
    return w3.eth.wait_for_transaction_receipt(sent)


def test_a_transaction_makes_a_block_of_its_own_and_a_receipt(w3, contract, key):
    assert w3.is_connected() and w3.eth.chain_id == 7498867 == devnet.CHAIN_ID and w3.net.version == "7498867"
    before = w3.eth.get_block("latest")
    receipt = send(w3, key, contract.functions.count(3), 0)
    assert receipt["status"] == 1 and receipt["blockNumber"] == before["number"] + 1 == w3.eth.block_number
    block = w3.eth.get_block(receipt["blockNumber"], full_transactions=True)
    assert (block["hash"], block["parentHash"]) == (receipt["blockHash"], before["hash"])
    (transaction,) = block["transactions"]
    assert transaction == w3.eth.get_transaction(receipt["transactionHash"])
    assert transaction["from"] == key.address and transaction["to"] == contract.address
    assert w3.eth.get_block(block["hash"])["transactions"] == [receipt["transactionHash"]]
    assert w3.eth.get_transaction_count(key.address) == 1 == w3.eth.get_transaction_count(key.address, "pending")
    assert w3.eth.get_transaction_count(key.address, before["number"]) == 0


def test_a_block_s_hash_is_that_of_its_header_and_its_roots_those_of_what_it_holds(w3, contract, key):
    """From the answers, by the Yellow Paper and another library's tries."""
    receipt = send(w3, key, contract.functions.count(5), 0)
    block = w3.provider.make_request("eth_getBlockByNumber", [hex(receipt["blockNumber"]), False])["result"]
    names = "parentHash sha3Uncles miner stateRoot transactionsRoot receiptsRoot logsBloom difficulty number gasLimit"
    names += " gasUsed timestamp extraData mixHash nonce baseFeePerGas withdrawalsRoot blobGasUsed excessBlobGas"
    names += " parentBeaconBlockRoot requestsHash"
    octets = {name for name in names.split() if len(block[name]) in (42, 66, 514)} | {"extraData", "nonce"}
    header = [
        bytes.fromhex(block[name][2:]) if name in octets else int(block[name], 16).to_bytes(32).lstrip(b"\0")
        for name in names.split()
    ]
    assert keccak(rlp.encode(header)) == bytes(receipt["blockHash"])
    sent = sign(key, 0, contract.address, data=contract.functions.count(5)._encode_transaction_data())
    assert keccak(sent) == bytes(receipt["transactionHash"])
    assert root_of(sent).hex() == block["transactionsRoot"][2:]
    logs = [[bytes.fromhex(log["address"][2:]), list(log["topics"]), log["data"]] for log in receipt["logs"]]
    gas = receipt["gasUsed"].to_bytes(32).lstrip(b"\0")
    assert root_of(b"\2" + rlp.encode([b"\1", gas, receipt["logsBloom"], logs])).hex() == block["receiptsRoot"][2:]


def root_of(item: bytes) -> bytes:
    trie = HexaryTrie({})
    trie[rlp.encode(0)] = item
    return trie.root_hash


def test_our_coordinator_is_deployed_and_called_by_web3(w3, key):
    artifact, words = contracts.coordinator(), key._key_obj.public_key.to_bytes()
    x, y = int.from_bytes(words[:32]), int.from_bytes(words[32:])
    made = w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
    code = made.constructor(key.address, tuple(Rules(min_seconds=0, max_seconds=60, quorum=2))).data_in_transaction
    sent = w3.eth.send_raw_transaction(sign(key, 0, data=code, gas=15_000_000))
    receipt = w3.eth.wait_for_transaction_receipt(sent)
    expected = keccak(rlp.encode([bytes.fromhex(key.address[2:]), b""]))[12:]
    assert bytes.fromhex(receipt["contractAddress"][2:]) == expected and receipt["to"] is None
    coordinator = w3.eth.contract(address=receipt["contractAddress"], abi=artifact["abi"])
    assert len(w3.eth.get_code(coordinator.address)) * 2 + 2 == len(artifact["runtime_bytecode"])
    registered = send(w3, key, coordinator.functions.register(x, y), 1)
    assert registered["status"] == 1 and len(registered["logs"]) == 1
    with pytest.raises(ContractCustomError):  # it is not this sender's key
        coordinator.functions.register(x, y).call({"from": account(1).address})


def test_reverts_are_told_with_their_reasons(w3, contract, key):
    with pytest.raises(ContractLogicError, match="execution reverted") as caught:
        contract.functions.count(0).call()
    assert b"a step is not zero" in bytes.fromhex(caught.value.data[2:])
    with pytest.raises(ContractCustomError) as caught:
        contract.functions.count(101).call()
    selector = keccak(b"TooMuch(uint256,uint256)")[:4]
    assert caught.value.data == "0x" + (selector + (101).to_bytes(32) + (100).to_bytes(32)).hex()
    with pytest.raises(ContractPanicError):
        contract.functions.doubt().call()
    with pytest.raises(ContractCustomError):
        contract.functions.count(101).estimate_gas({"from": key.address})
    total = contract.functions.total().call()
    receipt = send(w3, key, contract.functions.count(101), 0)
    assert receipt["status"] == 0 and receipt["logs"] == [] and receipt["gasUsed"] < 1_000_000
    assert contract.functions.total().call() == total and w3.eth.get_transaction_count(key.address) == 1


def test_a_call_changes_nothing_sees_its_block_and_may_ask_about_an_old_one(w3, contract, key):
    at, then = w3.eth.get_block("latest"), contract.functions.total().call()
    assert contract.functions.count(9).call({"from": key.address}) == then + 9
    send(w3, key, contract.functions.count(9), 0)
    assert contract.functions.total().call(block_identifier=at["number"]) == then
    assert contract.functions.total().call() == then + 9
    seen = contract.functions.here().call(block_identifier=at["number"])
    assert seen == [at["number"], at["timestamp"], at["parentHash"], devnet.CHAIN_ID, at["baseFeePerGas"]]


def test_estimated_gas_is_enough_and_little_more_than_what_is_used(w3, contract, key):
    tried = [contract.functions.count(2), contract.functions.deeper(20), contract.functions.clear()]
    for nonce, asked in enumerate(tried):
        estimate = asked.estimate_gas({"from": key.address})
        receipt = send(w3, key, asked, nonce, gas=estimate)
        assert receipt["status"] == 1, asked
        assert receipt["gasUsed"] <= estimate <= 1.27 * receipt["gasUsed"], asked  # a fifth may be given back
    plain = {"from": key.address, "to": account(1).address, "value": 0}
    assert w3.eth.estimate_gas(plain) == 21_000
    floor = 21_000 + 10 * 4 * 100  # EIP-7623
    assert floor <= w3.eth.estimate_gas(plain | {"data": "0x" + "ab" * 100}) <= 1.015 * floor


def test_logs_are_found_by_address_topics_and_blocks(w3, contract, key):
    first = w3.eth.block_number + 1
    receipts = [send(w3, key, contract.functions.count(step), step - 1) for step in (1, 2, 3)]
    shouted = send(w3, key, contract.functions.shout(4), 3)
    who = "0x" + key.address[2:].lower().rjust(64, "0")
    signature = "0x" + keccak(b"Counted(address,uint256,uint256)").hex()

    def steps(**wanted):
        found = w3.eth.get_logs({"fromBlock": first, "toBlock": "latest"} | wanted)
        assert all(log["address"] == contract.address and not log["removed"] for log in found)
        return [int.from_bytes(log["data"]) for log in found]

    assert steps() == [1, 2, 3, 0, 1, 2, 3] == steps(address=contract.address, topics=[signature, who])
    assert steps(topics=[None, who]) == steps(topics=[[signature, who]]) == steps(topics=[]) == steps()
    assert steps(toBlock=first + 1) == [1, 2] and steps(fromBlock=first + 2, toBlock=first + 2) == [3]
    totals = [log["topics"][2] for receipt in receipts for log in receipt["logs"]]
    assert steps(topics=[None, None, [totals[0], totals[1]]]) == [1, 2]
    assert steps(topics=[who]) == steps(address=key.address) == steps(topics=[None] * 4) == []  # it has no fourth
    by_hash = w3.eth.get_logs({"blockHash": shouted["blockHash"], "address": [contract.address, key.address]})
    assert [log["logIndex"] for log in by_hash] == [0, 1, 2, 3] and by_hash == shouted["logs"]
    events = contract.events.Counted().get_logs(from_block=first, argument_filters={"who": key.address})
    assert [event["args"]["step"] for event in events] == steps()


def test_what_is_not_there_is_null_and_a_batch_is_answered_request_by_request(w3, url):
    with pytest.raises(TransactionNotFound):
        w3.eth.get_transaction(bytes(32))
    for method, params in {
        "eth_getBlockByNumber": ["0xffffff", False],
        "eth_getBlockByHash": ["0x" + "11" * 32, True],
        "eth_getTransactionReceipt": ["0x" + "11" * 32],
    }.items():
        assert w3.provider.make_request(method, params)["result"] is None
    body = b'[{"jsonrpc":"2.0","id":1,"method":"eth_chainId"},{"jsonrpc":"2.0","id":"b","method":"no_such"}]'
    found = json.loads(http_answer(url, body)[1])
    assert found[0] == {"jsonrpc": "2.0", "id": 1, "result": hex(devnet.CHAIN_ID)}
    assert found[1]["id"] == "b" and found[1]["error"]["code"] == -32601
    with w3.batch_requests() as batch:
        batch.add(w3.eth.get_block("latest"))
        batch.add(w3.eth.get_balance(KEY.address))
        block, balance = batch.execute()
    assert block["number"] == w3.eth.block_number and balance == 0


# what it keeps


def test_everything_is_there_again(tmp_path):
    """Also what was so after each block."""
    with opened(tmp_path) as network:
        contract = network.deploy()
        for nonce in range(1, 11):
            network.now += nonce % 3
            network.send(sign(KEY, nonce, contract, data=call("count", nonce)))
        before = network.answers()
    for _ in range(2):
        with opened(tmp_path) as network:
            assert network.answers() == before and network.total(contract) == 55
            assert [network.total(contract, hex(number)) for number in (1, 3, 11)] == [0, 3, 55]
    with opened(tmp_path) as network:
        network.send(sign(KEY, 11, contract, data=call("count", 1)))
        assert network.total(contract) == 56 and network.chain.head.parent_hash.hex() == before[0][-1]["hash"][2:]


WRITER = """
import os, signal, sys
from pathlib import Path
from rlswarm_jax.chain.devnet import chain as devnet
from rlswarm_jax.chain.devnet.store import Store

directory, instant, *transactions = sys.argv[1:]
store = Store(Path(directory))
chain = devnet.Chain(store)
head = chain.head.block_number

def die(said):
    if chain.head.block_number == head + 2 and said.startswith(instant):
        os.kill(os.getpid(), signal.SIGKILL)

store._db.set_trace_callback(die if instant not in ("any", "reply") else None)
print("ready", flush=True)
for raw in transactions:
    sent = chain.send(bytes.fromhex(raw))
    if instant == "reply" and chain.head.block_number == head + 3:
        os.kill(os.getpid(), signal.SIGKILL)
    print("0x" + sent.hex(), hex(chain.head.block_number), "0x" + chain.head.hash.hex(), flush=True)
"""


@pytest.mark.parametrize("instant", ["any", "INSERT INTO blocks", "INSERT OR REPLACE INTO state", "COMMIT", "reply"])
def test_a_process_killed_at_any_instant_keeps_every_block_it_answered_and_only_whole_ones(tmp_path, instant):
    with opened(tmp_path) as network:
        contract = network.deploy()
    raws = [sign(KEY, nonce, contract, data=call("count", 1)).hex() for nonce in range(1, 100)]
    command = [sys.executable, "-c", WRITER, str(tmp_path), instant, *raws]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})
    assert process.stdout.readline() == "ready\n"
    said = [process.stdout.readline() for _ in range(2)]
    if instant == "any":
        time.sleep(random.random() * 0.1)
        process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    answered = [line.split() for line in [*said, *rest.splitlines(keepends=True)] if line.endswith("\n")]
    with opened(tmp_path) as network:
        for sent, number, block_hash in answered:
            block = network.get("eth_getBlockByNumber", number, False)
            assert (block["hash"], block["transactions"]) == (block_hash, [sent])
        counted = network.chain.head.block_number - 1
        assert counted - len(answered) in {"any": (0, 1), "reply": (1,)}.get(instant, (0,))
        assert network.total(contract) == counted == len(network.get("eth_getLogs", {"fromBlock": "0x0"}))
        assert int(network.get("eth_getTransactionCount", KEY.address), 16) == counted + 1
        assert network.refusal(bytes.fromhex(raws[counted - 1])) == "already known"  # if an answer was lost
        network.send(bytes.fromhex(raws[counted]))


@pytest.mark.parametrize("damage", ["not a database", "another's", "an older format", "no state"])
def test_a_damaged_or_foreign_file_is_named_in_one_sentence(tmp_path, damage):
    with opened(tmp_path) as network:
        network.deploy()
    statements = {
        "another's": "DROP TABLE blocks; CREATE TABLE things (one); PRAGMA user_version=0",
        "an older format": "PRAGMA user_version=2",
        "no state": "DELETE FROM state",
    }
    if damage in statements:
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as database:
            database.executescript(statements[damage])
    else:
        (tmp_path / FILE).write_bytes(os.urandom(4096))
    with (
        pytest.raises(DevnetError, match=r"chain\.sqlite.*(damaged|format [02]|not a database).*\.$"),
        opened(tmp_path),
    ):
        pass


def test_a_block_that_cannot_be_written_never_was(tmp_path):
    """As if the disk was full at each of its statements."""
    with opened(tmp_path) as network:
        contract, real = network.deploy(), network.store._db
        before, sent = network.answers(), sign(KEY, 1, contract, data=call("count", 1))

        class Failing:
            def __init__(self, step):
                self.step = step

            def __getattr__(self, name):
                def execute(statement, *values):
                    if statement.startswith(self.step):
                        raise sqlite3.OperationalError("database or disk is full")
                    return getattr(real, name)(statement, *values)

                return execute if name in ("execute", "executemany") else getattr(real, name)

            def __enter__(self):
                return real.__enter__()

            def __exit__(self, *raised):
                if self.step == "COMMIT":
                    real.rollback()
                    raise sqlite3.OperationalError("database or disk is full")
                return real.__exit__(*raised)

        for step in ("INSERT INTO blocks", "INSERT OR REPLACE INTO state", "COMMIT"):
            network.store._db = Failing(step)
            error = network.ask("eth_sendRawTransaction", "0x" + sent.hex())["error"]
            assert error["code"] == -32603 and "database or disk is full" in error["message"]
            network.store._db = real
            assert network.answers() == before
        assert network.send(sent)["blockNumber"] == "0x2" and network.total(contract) == 1


# starting and stopping


def test_a_network_starts_again_on_its_port_after_it_was_killed(tmp_path):
    with devnet.running(tmp_path) as network:
        w3 = connect(network.url)
        contract = deploy(w3, KEY)
        receipt = send(w3, KEY, contract.functions.count(3), 1)
        network.process.kill()
        network.process.wait()
        with devnet.running(tmp_path, port=int(network.url.rsplit(":", 1)[1])):  # the same client goes on
            assert w3.eth.get_block("latest")["hash"] == receipt["blockHash"]
            assert w3.eth.get_transaction_receipt(receipt["transactionHash"]) == receipt
            assert contract.functions.total().call() == 3


@pytest.mark.parametrize("how", ["a folder in use", "a port in use", "no folder"])
def test_what_keeps_it_from_starting_is_said_in_one_sentence(tmp_path, how):
    with contextlib.ExitStack() as stack:
        directory, port = tmp_path / "chain", 0
        if how == "a folder in use":
            stack.enter_context(opened(directory))
        elif how == "a port in use":
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        else:
            directory.write_text("a file")
        with pytest.raises(DevnetError) as caught:
            devnet.start(directory, port=port)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and "Traceback" not in said
    words = {"a folder in use": "another process", "a port in use": f"port {port}"}
    assert words.get(how, str(directory)) in said


def test_it_ends_with_the_process_that_started_it(tmp_path):
    script = f"import os; from pathlib import Path; from rlswarm_jax.chain import devnet; \
        found = devnet.start(Path({str(tmp_path)!r})); print(found.process.pid, flush=True); os._exit(1)"
    environment = os.environ | {"PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{done.stdout.strip()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with opened(tmp_path):  # it let go of the folder
        pass


def test_neither_the_client_nor_the_network_imports_what_it_has_no_use_for():
    for program, unwanted in {
        "import rlswarm_jax.chain.devnet, rlswarm_jax.chain.anvil": ("eth", "aiohttp", "jax", "web3"),
        "import rlswarm_jax.chain.devnet.__main__": ("jax", "numpy", "web3", "trio"),
    }.items():
        script = f"import sys; {program}; sys.exit(' '.join(m for m in {unwanted!r} if m in sys.modules) or 0)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), program


# what it refuses


def http_answer(url: str, body: bytes, method: str = "POST", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_hostile_requests_over_http_get_errors_and_others_are_served(tmp_path):
    with devnet.running(tmp_path) as network:
        chain_id = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}'
        assert http_answer(network.url, b" " * 3 * 2**20)[0] == 413
        assert http_answer(network.url, b"", "GET")[0] == 405
        assert http_answer(network.url, chain_id, Origin="http://evil.example")[0] == 403  # a page in a browser
        assert http_answer(network.url, chain_id, Host="evil.example:80")[0] == 403  # a page whose name moved to us
        assert http_answer(network.url, chain_id, Host="localhost:80")[0] == 200
        for body, code in {
            b"": -32700,
            b"{": -32700,
            b"\xff\xfe": -32700,
            b"[" * 100_000: -32700,
            b'{"id":1,"method":"eth_call","params":' + b"[" * 500_000: -32700,
            b'{"a":' * 90_000: -32700,
            b"[]": -32600,
            b"7": -32600,
            b'{"id":{},"method":"eth_chainId"}': -32600,
            b'{"id":1}': -32600,
            b'{"id":1,"method":"eth_mine"}': -32601,
            b'{"id":1,"method":"' + b"[" * 90_000 + b'","params":[]}': -32601,
            b'{"id":1,"method":"eth_chainId","params":[1]}': -32602,
            b'{"id":1,"method":"eth_chainId","params":{"a":1}}': -32602,
            b'{"id":1,"method":"eth_getBalance","params":["0x12"]}': -32602,
        }.items():
            status, answer = http_answer(network.url, body)
            assert status == 200 and json.loads(answer)["error"]["code"] == code, body[:50]
        port = int(network.url.rsplit(":", 1)[1])
        for junk in (b"\0" * 1000, b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"POST / HTTP/1.1\r\nHost: "):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as stream:
                stream.sendall(junk)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as stream:  # who sends half holds up nobody
            stream.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
            assert json.loads(http_answer(network.url, chain_id)[1])["result"] == hex(devnet.CHAIN_ID)
        assert (tmp_path / devnet.LOG).read_text() == ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**300) | st.floats(-1e9, 1e9) | st.text(max_size=70)
    | st.sampled_from(["0x", "0x0", "latest", "0x" + "00" * 20, "0x" + "ab" * 32, "0x" + "f" * 64]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["to", "from", "data", "value", "gas", "fromBlock", "topics", "address"]), inner),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("shared")) as network:
        network.deploy()
        yield network


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_parameters_whatever_do_more_than_be_refused(shared, data):
    method = data.draw(st.sampled_from(sorted(shared.interface.methods)))
    answer = shared.ask(method, *data.draw(st.lists(json_values, max_size=3)))
    assert ("result" in answer) != ("error" in answer)
    if "error" in answer:
        assert answer["error"]["code"] in (-32602, -32000, -32005, 3) and "\n" not in answer["error"]["message"]


@settings(deadline=None, max_examples=60)
@given(
    st.data(),
    st.sampled_from(
        [
            {},
            {"gasPrice": 0},
            {"gasPrice": 0, "accessList": [{"address": account(2).address, "storageKeys": ["0x" + "01" * 32]}]},
        ]
    ),
)
def test_no_bytes_whatever_are_a_transaction_unless_their_signer_made_them(shared, data, fields):
    good = sign(KEY, 1, account(1).address, data="0xabcd", gas=50_000, **fields)
    at = data.draw(st.integers(0, len(good) - 1))
    mangled = data.draw(st.binary(max_size=200) | st.just(good[:at]) | st.just(good + b"\0"))
    before = shared.get("eth_getTransactionCount", KEY.address, "latest")
    assert "\n" not in shared.refusal(mangled)
    flipped = good[:at] + bytes([good[at] ^ 1 << data.draw(st.integers(0, 7))]) + good[at + 1 :]
    shared.ask("eth_sendRawTransaction", "0x" + flipped.hex())  # may be somebody else's, who needs no funds
    assert shared.get("eth_getTransactionCount", KEY.address, "latest") == before


def test_what_can_never_be_in_a_block_is_refused_and_leaves_no_trace(network):
    somewhere, before = account(1).address, network.answers()
    fields = rlp.decode(sign(KEY, 0, somewhere)[1:])
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    other, s = (1 - int.from_bytes(fields[9])).to_bytes(1).lstrip(b"\0"), order - int.from_bytes(fields[11])
    malleated = [*fields[:9], other, fields[10], s.to_bytes(32)]  # the same statement under another hash
    unprotected = {"nonce": 0, "gas": 21_000, "gasPrice": 0, "value": 0, "data": "0x", "to": somewhere}
    for raw, said in {
        b"\2" + rlp.encode([fields[0], b"\0", *fields[2:]]): "not minimal length",
        b"\2" + rlp.encode(malleated): "signature S value",
        b"\2" + rlp.encode([*fields[:6], [], *fields[7:]]): "only form",  # the same under another hash, too
        sign(KEY, 0, somewhere, gas=20_999): "minimum needed 21000",
        sign(KEY, 0, somewhere, data="0x" + "ab" * 100, gas=24_999): "minimum needed 25000",  # EIP-7623
        sign(KEY, 0, data="0x" + "ab" * 64, gas=50_000): "minimum needed 54028",  # EIP-3860
        sign(KEY, 0, somewhere, data="0x" + "ab" * 131_072): "oversized",
        b"\3" + sign(KEY, 0, somewhere)[1:]: "not supported: 0x03",
        b"": "not supported",
        bytes(KEY.sign_transaction(unprotected).raw_transaction): "have None want 7498867",
        bytes(KEY.sign_transaction(unprotected | {"chainId": 1}).raw_transaction): "have 1 want 7498867",
        sign(KEY, 0, somewhere, value=1): "insufficient funds",
        sign(KEY, 0, somewhere, maxFeePerGas=10**9): "insufficient funds",
        sign(KEY, 0, somewhere, gas=30_000_001): "exceeds gas limit",
        sign(KEY, 1, somewhere): "nonce too high: next nonce 0",
    }.items():
        assert said in network.refusal(raw), (said, network.refusal(raw))
    assert network.answers() == before
    network.send(sign(KEY, 0, somewhere))
    assert network.store._added == {}  # neither of these nor of that is written again with the next
    assert network.refusal(sign(KEY, 0, somewhere)) == "already known"
    assert "nonce too low" in network.refusal(sign(KEY, 0, somewhere, data="0x01"))


def test_a_contract_that_calls_itself_as_deep_as_its_gas_goes_ends_as_on_any_network(network):
    contract = network.deploy()
    receipt = network.send(sign(KEY, 1, contract, data=call("deeper", 5000), gas=30_000_000))
    assert receipt["status"] == "0x0" and int(receipt["gasUsed"], 16) > 200_000  # some 650 levels: a 64th stays behind
    assert network.chain.head.base_fee_per_gas == 0  # as ever, though the block may have been more than half full


def test_an_answer_with_too_many_logs_is_refused_and_a_smaller_one_given(network, monkeypatch):
    monkeypatch.setattr(rpc, "MAX_ANSWER", 60 * 600)
    contract = network.deploy()
    for nonce in (1, 2, 3):
        network.send(sign(KEY, nonce, contract, data=call("shout", 25)))
    error = network.ask("eth_getLogs", {"fromBlock": "0x0"})["error"]
    assert error["code"] == -32005 and "ask for less" in error["message"]
    assert len(network.get("eth_getLogs", {"fromBlock": "0x3"})) == 50


def test_times_follow_the_clock_and_never_go_back(network):
    start, found = network.chain.head.timestamp, []
    for nonce, moved in enumerate([0, -50, 150]):
        network.now += moved
        network.send(sign(KEY, nonce, account(1).address))
        found.append(network.chain.head.timestamp - start)
    assert start == 1_800_000_000 and found == [0, 0, 100]


@pytest.mark.parametrize("fields", [{"gasPrice": 0}, {"gasPrice": 0, "accessList": []}, {}])
def test_all_three_types_of_transactions_are_taken(network, fields):
    receipt = network.send(sign(KEY, 0, account(1).address, **fields))
    sent = network.get("eth_getTransactionByHash", receipt["transactionHash"])
    kind = 2 if not fields else len(fields) - 1
    assert int(sent["type"], 16) == kind == int(receipt["type"], 16) and sent["gasPrice"] == "0x0"
    assert receipt["status"] == "0x1" and receipt["gasUsed"] == "0x5208"


@pytest.mark.skipif(not anvil.find(), reason="anvil is not installed: npm install @foundry-rs/anvil, or set ANVIL")
def test_gas_is_to_the_unit_what_it_is_on_anvil(tmp_path):
    found = {}
    with anvil.running() as theirs, devnet.running(tmp_path) as ours:
        for network in (theirs, ours):
            w3 = connect(network.url)
            contract, used = deploy(w3, KEY), found.setdefault(network.url, [])
            calls = [("count", 1), ("count", 2), ("shout", 9), ("deeper", 30), ("count", 0), ("count", 101), ("clear",)]
            for nonce, (name, *arguments) in enumerate([*calls, ("deeper", 5000)], 1):
                receipt = send(w3, KEY, contract.functions[name](*arguments), nonce, gas=20_000_000)
                used.append((name, receipt["status"], receipt["gasUsed"]))
    assert found[theirs.url] == found[ours.url]
