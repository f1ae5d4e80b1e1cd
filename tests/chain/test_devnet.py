"""What is so of our network alone: what it keeps, what it refuses, and what it costs."""

import contextlib
import http.client
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
from eth_utils import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from rlswarm_jax.chain import anvil, devnet
from rlswarm_jax.chain.devnet import store
from rlswarm_jax.chain.devnet.chain import MAX_QUEUED, Chain, Genesis
from rlswarm_jax.chain.devnet.errors import DevnetError, RpcError
from rlswarm_jax.chain.devnet.rpc import Interface
from rlswarm_jax.chain.devnet.store import FILE, Store
from rlswarm_jax.chain.devnet.transaction import Transaction
from tests.chain import counter
from tests.chain.counter import account, connect, deploy, sign

KEY = account(0)
ADDRESS = bytes.fromhex(KEY.address[2:])
ETHER = 10**18


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.5

    def __call__(self) -> float:
        return self.now


class Network:
    """A network in this process."""

    def __init__(self, directory: Path, **options):
        self.clock = Clock()
        self.store = Store(directory)
        genesis = Genesis(options.pop("base_fee", 0), balances={ADDRESS: 1000 * ETHER})
        try:
            self.chain = Chain(self.store, genesis, now=self.clock, **options)
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

    def send(self, raw_transaction: bytes) -> str:
        return self.get("eth_sendRawTransaction", "0x" + raw_transaction.hex())

    def deploy(self, nonce: int = 0) -> str:
        sent = self.send(sign(KEY, nonce, data=counter.CODE + "00" * 32))
        return self.get("eth_getTransactionReceipt", sent)["contractAddress"]

    def answers(self) -> list:
        """Everything about all blocks."""
        blocks = [self.get("eth_getBlockByNumber", hex(n), True) for n in range(self.chain.head.number + 1)]
        hashes = [one["hash"] for block in blocks for one in block["transactions"]]
        receipts = [self.get("eth_getTransactionReceipt", one) for one in hashes]
        return [blocks, receipts, self.get("eth_getLogs", {"fromBlock": "0x0"})]


@contextlib.contextmanager
def opened(directory, **options):
    network = Network(directory, **options)
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


def checksum(address: str) -> str:
    return counter.Web3.to_checksum_address(address)


# what it keeps


def test_everything_is_there_again_after_a_restart(tmp_path):
    with opened(tmp_path) as first:
        contract = checksum(first.deploy())
        for nonce in range(1, 6):
            first.send(sign(KEY, nonce, contract, data=call("count", nonce)))
        first.get("evm_mine")
        first.get("anvil_setBalance", account(9).address, hex(77))
        waiting = first.send(sign(KEY, 9, contract, data=call("count", 1)))
        first.get("evm_increaseTime", 500)
        before = first.answers()
    with opened(tmp_path) as again:
        assert again.answers() == before
        assert int(again.get("eth_getBalance", account(9).address, "latest"), 16) == 77
        total = {"to": contract, "data": call("total")}
        totals = [int(again.get("eth_call", total, hex(number)), 16) for number in range(1, 7)]
        assert totals == [0, 1, 3, 6, 10, 15]
        assert again.get("eth_getTransactionByHash", waiting)["blockNumber"] is None
        for nonce in (6, 7, 8):
            again.send(sign(KEY, nonce, contract, data=call("count", 1)))
        assert again.get("eth_getTransactionByHash", waiting)["blockNumber"] == hex(12)
        assert int(again.get("eth_call", total, "latest"), 16) == 19
        newest = again.get("eth_getBlockByNumber", "latest", False)
        assert int(newest["timestamp"], 16) >= again.clock.now + 500 - 1


def test_the_same_transactions_at_the_same_times_give_the_same_hashes(tmp_path):
    """The blocks are a function of what determines them: genesis, raw transactions, times."""
    chains = []
    for name in ("one", "other"):
        with opened(tmp_path / name) as network:
            contract = checksum(network.deploy())
            for nonce in range(1, 4):
                network.clock.now += 10
                network.send(sign(KEY, nonce, contract, data=call("shout", nonce)))
            chains.append(network.answers())
    assert chains[0] == chains[1]
    with opened(tmp_path / "third") as network:
        network.clock.now += 10
        assert network.deploy() and network.answers()[0][1]["hash"] != chains[0][0][1]["hash"]


WRITER = """
import json, os, signal, sys
from pathlib import Path
from rlswarm_jax.chain.devnet.chain import Chain, Genesis
from rlswarm_jax.chain.devnet.store import Store

directory, instant, *transactions = sys.argv[1:]
store = Store(Path(directory))
chain = Chain(store, Genesis())
head, append = chain.head.number, store.append

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def append_and_perhaps_die(row):
    if row.number == head + 3 and instant != "any":
        store._db.set_trace_callback(lambda statement: statement.startswith(instant) and kill())
    append(row)
    if row.number == head + 3 and instant == "reply":
        kill()

store.append = append_and_perhaps_die
print("ready", flush=True)
for raw in transactions:
    sent = chain.send(bytes.fromhex(raw))
    print("0x" + sent.hex(), hex(chain.head.number), "0x" + chain.head.hash.hex(), flush=True)
"""


@pytest.mark.parametrize("instant", ["any", "any", "INSERT INTO blocks", "COMMIT", "reply"])
def test_a_process_killed_at_any_instant_keeps_every_block_it_answered_and_only_whole_ones(tmp_path, instant):
    with opened(tmp_path) as network:
        contract = checksum(network.deploy())
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
        counted = network.chain.head.number - 1
        assert counted - len(answered) in {"any": (0, 1), "reply": (1,)}.get(instant, (0,))
        assert int(network.get("eth_call", {"to": contract, "data": call("total")}, "latest"), 16) == counted
        assert int(network.get("eth_getTransactionCount", KEY.address, "latest"), 16) == counted + 1
        assert len(network.get("eth_getLogs", {"fromBlock": "0x0"})) == counted
        blocks = [network.get("eth_getBlockByNumber", hex(n), False) for n in range(counted + 2)]
        assert all(older["hash"] == newer["parentHash"] for older, newer in itertools.pairwise(blocks))
        if counted:  # an answer that was lost: sent again, it is known, and not done again
            error = network.ask("eth_sendRawTransaction", "0x" + raws[counted - 1])["error"]
            assert error["message"] == "already known" and network.chain.head.number == counted + 1
        network.send(bytes.fromhex(raws[counted]))


@pytest.mark.parametrize("step", ["INSERT OR IGNORE INTO nodes", "INSERT INTO blocks", "INSERT INTO logs", "COMMIT"])
def test_a_block_that_cannot_be_written_never_was(tmp_path, step):
    """As if the disk was full at that statement: an error that says so, nothing half done, and it goes on after."""

    class Failing:
        """The database, which refuses one statement."""

        def __init__(self, database):
            self.database, self.full = database, True

        def __getattr__(self, name):
            def execute(statement, *values):
                if self.full and statement.startswith(step):
                    raise sqlite3.OperationalError("database or disk is full")
                return getattr(self.database, name)(statement, *values)

            return execute if name in ("execute", "executemany") else getattr(self.database, name)

    with opened(tmp_path) as network:
        contract = checksum(network.deploy())
        before = network.answers()
        network.store._db = failing = Failing(network.store._db)
        sent = sign(KEY, 1, contract, data=call("count", 1))
        error = network.ask("eth_sendRawTransaction", "0x" + sent.hex())["error"]
        assert error["code"] == -32603 and "database or disk is full" in error["message"]
        assert network.answers() == before
        failing.full = False
        network.send(sent)
        assert int(network.get("eth_call", {"to": contract, "data": call("total")}), 16) == 1


def test_a_waiting_transaction_whose_turn_came_just_before_a_kill_is_included_at_the_next_start(tmp_path):
    with opened(tmp_path) as network:
        second = network.send(sign(KEY, 1, account(1).address))
        network.chain._promote = lambda sender: None  # killed here
        network.send(sign(KEY, 0, account(1).address))
        assert network.get("eth_getTransactionReceipt", second) is None
    with opened(tmp_path) as network:
        assert network.get("eth_getTransactionReceipt", second)["blockNumber"] == "0x2"
    with opened(tmp_path) as network:
        assert network.chain.head.number == 2


def test_it_never_holds_more_than_so_many_waiting_transactions(network):
    for number in range(MAX_QUEUED):
        one = Transaction(number.to_bytes(20), 9, 21_000, bytes(20), 0, b"", 0, 0)
        network.chain._queue[number.to_bytes(32)] = one
    refused = network.ask("eth_sendRawTransaction", "0x" + sign(KEY, 5, account(1).address).hex())
    assert "txpool is full" in refused["error"]["message"]


# starting and stopping


def test_a_network_starts_by_itself_and_again_after_it_was_killed(tmp_path):
    with devnet.running(tmp_path, accounts=[KEY.address]) as network:
        w3 = connect(network.url)
        contract = deploy(w3, KEY)
        receipt = w3.eth.wait_for_transaction_receipt(
            w3.eth.send_raw_transaction(sign(KEY, 1, contract.address, data=contract.encode_abi("count", [3])))
        )
        port = int(network.url.rsplit(":", 1)[1])
        network.process.kill()
        network.process.wait()
        with pytest.raises(OSError):
            w3.eth.get_block("latest")
        with devnet.running(tmp_path, port=port):  # the same client goes on
            assert w3.eth.get_block("latest")["hash"] == receipt["blockHash"]
            assert w3.eth.get_transaction_receipt(receipt["transactionHash"]) == receipt
            assert contract.functions.total().call() == 3
            assert w3.eth.get_balance(KEY.address) == 1000 * ETHER


@pytest.mark.parametrize("how", ["a folder in use", "a port in use", "no folder"])
def test_what_keeps_it_from_starting_is_said_in_one_sentence(tmp_path, how):
    with contextlib.ExitStack() as stack:
        directory, port = tmp_path / "chain", 0
        if how == "a folder in use":
            stack.enter_context(opened(directory))
        elif how == "a port in use":
            taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = taken.getsockname()[1]
        else:
            directory.write_text("a file")
        with pytest.raises(DevnetError) as caught:
            devnet.start(directory, port=port)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and "Traceback" not in said
    words = {"a folder in use": "another process", "a port in use": f"port {port}"}
    assert words.get(how, str(directory)) in said


DAMAGES = ["not a database", "a newer format", "a state that is gone", "a changed node", "its clock", "its queue"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_in_one_sentence(tmp_path, damage):
    with opened(tmp_path) as network:
        contract = checksum(network.deploy())
    path = tmp_path / FILE
    if damage == "not a database":
        path.write_bytes(os.urandom(4096))
    else:
        with contextlib.closing(sqlite3.connect(path)) as database:
            if damage == "a newer format":
                database.execute("PRAGMA user_version=2")
            elif damage == "a state that is gone":
                database.execute("DELETE FROM nodes")
            elif damage == "its clock":
                database.execute("INSERT INTO meta VALUES ('clock', '[')")
            elif damage == "its queue":
                database.execute("INSERT INTO queue VALUES (x'01', x'02ff')")
            else:
                database.execute("UPDATE nodes SET node = CAST(node || x'00' AS BLOB)")
            database.commit()
    with pytest.raises(DevnetError, match=r"chain\.sqlite.*(damaged|format 2|not a database).*\.$"), opened(tmp_path):
        pass
    assert contract


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
        assert http_answer(network.url, chain_id)[0] == 200
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
            b'{"id":1,"method":"eth_chainId","params":' + b"[" * 5000 + b"]" * 5000 + b"}": None,
            b"[]": -32600,
            b"7": -32600,
            b'{"id":{},"method":"eth_chainId"}': -32600,
            b'{"id":1}': -32600,
            b'{"id":1,"method":"eth_mine"}': -32601,
            b'{"id":1,"method":"eth_chainId","params":[1]}': -32602,
            b'{"id":1,"method":"eth_getBalance","params":["0x12"]}': -32602,
        }.items():
            status, answer = http_answer(network.url, body)
            assert status == 200 and json.loads(answer)["error"]["code"] == (
                code or json.loads(answer)["error"]["code"]
            )
        port = int(network.url.rsplit(":", 1)[1])
        for junk in (
            b"\0" * 1000,
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as stream:
                stream.sendall(junk)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as stream:  # who sends half holds up nobody
            stream.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
            assert json.loads(http_answer(network.url, chain_id)[1])["result"] == hex(devnet.CHAIN_ID)
        assert (tmp_path / devnet.LOG).read_text() == ""


@pytest.mark.parametrize("depth", [65, 90_000, 1_000_000])
def test_a_request_that_nests_deeply_is_refused_before_a_decoder_overflows_the_stack(shared, depth):
    """py-evm raises Python's limit on recursion so far that decoders, which recurse in C, would end the process."""
    deep = b"[" * depth + b"]" * depth
    for body in (deep, b"[" * depth, b'{"id":1,"method":"eth_chainId","params":' + deep + b"}", b'{"a":' * depth):
        assert json.loads(shared.interface.answer(body))["error"]["code"] == -32700
    named = b'{"id":1,"method":"' + b"[" * depth + b'","params":[]}'  # in a text brackets are nothing
    assert json.loads(shared.interface.answer(named))["error"]["code"] == -32601


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


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_parameters_whatever_do_more_than_be_refused(shared, data):
    methods = sorted(set(shared.interface._methods) - {"evm_mine", "evm_revert", "evm_increaseTime"})
    method = data.draw(st.sampled_from(methods))
    answer = shared.ask(method, *data.draw(st.lists(json_values, max_size=3)))
    assert ("result" in answer) != ("error" in answer)
    if "error" in answer:
        assert answer["error"]["code"] in (-32602, -32000, -32005, 3) and "\n" not in answer["error"]["message"]


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_bytes_whatever_are_a_transaction_unless_their_signer_made_them(shared, data):
    good = sign(KEY, 1, account(1).address, data="0xabcd", gas=50_000)
    at = data.draw(st.integers(0, len(good) - 1))
    mangled = data.draw(st.binary(max_size=200) | st.just(good[:at]) | st.just(good + b"\0"))
    before = shared.get("eth_getTransactionCount", KEY.address, "latest")
    assert "error" in shared.ask("eth_sendRawTransaction", "0x" + mangled.hex())
    flipped = good[:at] + bytes([good[at] ^ 1 << data.draw(st.integers(0, 7))]) + good[at + 1 :]
    shared.ask(
        "eth_sendRawTransaction", "0x" + flipped.hex()
    )  # may be somebody else's, who has no funds but needs none
    assert shared.get("eth_getTransactionCount", KEY.address, "latest") == before


def test_transactions_that_are_no_one_s_or_of_other_networks_are_refused(network):
    def message(raw_transaction: bytes) -> str:
        return network.ask("eth_sendRawTransaction", "0x" + raw_transaction.hex())["error"]["message"]

    somewhere = account(1).address
    fields = rlp.decode(sign(KEY, 0, somewhere)[1:])
    assert "shortest form" in message(b"\2" + rlp.encode([fields[0], b"\0", *fields[2:]]))
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    other, s = (1 - int.from_bytes(fields[9])).to_bytes(1).lstrip(b"\0"), order - int.from_bytes(fields[11])
    malleated = [*fields[:9], other, fields[10], s.to_bytes(32)]  # the same statement under another hash
    assert "invalid sender" in message(b"\2" + rlp.encode(malleated))
    assert "minimum needed 25000" in message(sign(KEY, 0, somewhere, data="0x" + "ab" * 100, gas=24_999))  # EIP-7623
    assert "oversized" in message(sign(KEY, 0, somewhere, data="0x" + "ab" * 131_072))
    assert "initcode size" in message(sign(KEY, 0, data="0x" + "00" * 49_153))
    assert "not supported: 3" in message(b"\3" + sign(KEY, 0, somewhere)[1:])
    unprotected = {"nonce": 0, "gas": 21_000, "gasPrice": 0, "value": 0, "data": "0x", "to": somewhere}
    assert "EIP-155" in message(bytes(KEY.sign_transaction(unprotected).raw_transaction))
    assert "have 1 want 7498867" in message(bytes(KEY.sign_transaction(unprotected | {"chainId": 1}).raw_transaction))
    assert network.chain.head.number == 0


def test_a_contract_that_calls_itself_as_deep_as_its_gas_goes_ends_as_on_any_network(network):
    contract = checksum(network.deploy())
    sent = network.send(sign(KEY, 1, contract, data=call("deeper", 5000), gas=30_000_000))
    receipt = network.get("eth_getTransactionReceipt", sent)
    assert receipt["status"] == "0x0" and int(receipt["gasUsed"], 16) > 200_000  # some 650 levels: a 64th stays behind
    assert "error" in network.ask("eth_call", {"to": contract, "data": call("deeper", 5000)})


def test_an_answer_with_too_many_logs_is_refused_and_a_smaller_one_given(network, monkeypatch):
    monkeypatch.setattr(store, "MAX_LOGS", 50)
    contract = checksum(network.deploy())
    for nonce in (1, 2):
        network.send(sign(KEY, nonce, contract, data=call("shout", 25)))
    assert len(network.get("eth_getLogs", {"fromBlock": "0x0"})) == 50
    network.send(sign(KEY, 3, contract, data=call("shout", 1)))
    error = network.ask("eth_getLogs", {"fromBlock": "0x0"})["error"]
    assert error["code"] == -32005 and "fewer blocks" in error["message"]
    assert len(network.get("eth_getLogs", {"fromBlock": "0x3"})) == 26
    monkeypatch.setattr(store, "MAX_LOG_BYTES", 26 * 300)
    assert network.ask("eth_getLogs", {"fromBlock": "0x3", "toBlock": "0x4"})["error"]["code"] == -32005
    signature = "0x" + keccak(b"Counted(address,uint256,uint256)").hex()
    last = {"fromBlock": "0x4", "address": contract.lower()}
    assert len(network.get("eth_getLogs", last | {"topics": [signature, None, None]})) == 1
    assert network.get("eth_getLogs", last | {"topics": [signature, None, None, None]}) == []  # it has no fourth


# fees


def test_with_a_base_fee_who_has_nothing_can_do_nothing_until_funded(tmp_path):
    with opened(tmp_path, base_fee=7) as network:
        assert network.get("eth_gasPrice") == "0x7" and network.get("eth_maxPriorityFeePerGas") == "0x0"
        assert set(network.get("eth_feeHistory", "0x2", "latest", [50])["baseFeePerGas"]) == {"0x7"}
        poor, somewhere = account(1), account(2).address
        fees = {"gas": 21_000, "maxFeePerGas": 20, "maxPriorityFeePerGas": 2}
        sent = "0x" + sign(poor, 0, somewhere, **fees).hex()
        assert f"tx cost {21_000 * 20}" in network.ask("eth_sendRawTransaction", sent)["error"]["message"]
        assert (
            "block base fee"
            in network.ask("eth_sendRawTransaction", "0x" + sign(KEY, 0, somewhere).hex())["error"]["message"]
        )
        network.chain.fund({bytes.fromhex(poor.address[2:]): 21_000 * 20, ADDRESS: 1})
        assert network.chain.head.number == 1  # who has something is left as they are
        receipt = network.get("eth_getTransactionReceipt", network.get("eth_sendRawTransaction", sent))
        assert receipt["effectiveGasPrice"] == "0x9"
        assert int(network.get("eth_getBalance", poor.address), 16) == 21_000 * (20 - 9)
        assert int(network.get("eth_getBalance", "0x" + "00" * 20), 16) == 21_000 * 2  # the rest is burnt
        call_it = {"from": account(3).address, "to": somewhere}
        assert network.get("eth_estimateGas", call_it) == "0x5208"  # a call that names no fee needs no funds
        assert "insufficient" in network.ask("eth_call", call_it | {"gasPrice": "0x7"})["error"]["message"]
    with pytest.raises(DevnetError, match=r"base fee of 7 wei.*start it with these.*\.$"), opened(tmp_path):
        pass


# time


@pytest.mark.parametrize("tick", [0, 1])
def test_times_follow_the_clock_and_never_go_back(tmp_path, tick):
    with opened(tmp_path, tick=tick) as network:

        def timestamp():
            network.get("evm_mine")
            return int(network.get("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

        start = network.chain.head.timestamp
        assert start == 1_800_000_000
        assert [timestamp() for _ in range(3)] == [start + tick, start + 2 * tick, start + 3 * tick]
        network.clock.now -= 50
        assert timestamp() == start + 4 * tick
        network.clock.now += 150
        assert timestamp() == start + 100
        network.get("evm_setNextBlockTimestamp", start + 1000)
        network.clock.now += 3
        assert [timestamp(), timestamp()] == [start + 1000, start + 1000 + 3] or tick == 1


# what it costs


def test_answers_are_kept_until_the_chain_changes(network):
    contract = checksum(network.deploy())
    total = {"to": contract, "data": call("total")}
    assert int(network.get("eth_call", total, "latest"), 16) == 0
    ran = []
    network.chain.call = lambda *asked, run=network.chain.call: ran.append(1) or run(*asked)
    for _ in range(100):
        network.get("eth_call", total, "latest")
    assert not ran
    network.send(sign(KEY, 1, contract, data=call("count", 2)))
    assert [int(network.get("eth_call", total, "latest"), 16) for _ in range(3)] == [2, 2, 2] and len(ran) == 1
    network.ask("evm_revert", network.get("evm_snapshot"))


def test_a_look_up_does_not_read_the_chain_s_past(network, tmp_path):
    """SQLite's steps to a receipt, a block, an account and logs are as many after 200 blocks as after 20."""
    contract = checksum(network.deploy())
    steps = {}
    for blocks in (20, 200):
        while network.chain.head.number < blocks:
            nonce = network.chain.head.number
            sent = network.send(sign(KEY, nonce, contract, data=call("count", 1)))
        head = hex(network.chain.head.number)
        for method, params in {
            "eth_getTransactionReceipt": [sent],
            "eth_getBlockByNumber": ["latest", True],
            "eth_getTransactionCount": [KEY.address, "latest"],
            "eth_getLogs": [{"fromBlock": head, "toBlock": head, "address": contract}],
        }.items():
            count = [0]
            network.store._db.set_progress_handler(lambda c=count: c.__setitem__(0, c[0] + 1), 1)
            network.get(method, *params)
            network.store._db.set_progress_handler(None, 0)
            steps.setdefault(method, []).append(count[0])
    assert all(after <= before + 10 for before, after in steps.values()), steps


def test_an_idle_network_uses_no_processor_even_with_many_connected(tmp_path):
    with devnet.running(tmp_path) as network:
        port = int(network.url.rsplit(":", 1)[1])
        body = b'{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber"}'
        clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(256)]
        for client in clients:
            client.request("POST", "/", body)
        assert {json.loads(client.getresponse().read())["result"] for client in clients} == {"0x0"}

        def used() -> float:
            fields = Path(f"/proc/{network.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before = used()
        time.sleep(1.0)
        assert used() - before <= 0.03
        for client in clients:
            client.close()


@pytest.mark.skipif(not anvil.find(), reason="anvil is not installed: npm install @foundry-rs/anvil, or set ANVIL")
def test_gas_is_to_the_unit_what_it_is_on_anvil(tmp_path):
    found = {}
    with anvil.running() as theirs, devnet.running(tmp_path) as ours:
        for network in (theirs, ours):
            w3 = connect(network.url)
            contract = deploy(w3, KEY)
            used = found[network.url] = []
            calls = [("count", 1), ("count", 2), ("shout", 9), ("deeper", 30), ("count", 0), ("count", 101), ("clear",)]
            calls.append(("deeper", 5000))  # fails some 650 levels down
            for nonce, (name, *arguments) in enumerate(calls, 1):
                sent = sign(KEY, nonce, contract.address, data=contract.encode_abi(name, arguments), gas=20_000_000)
                receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(sent))
                used.append((name, receipt["status"], receipt["gasUsed"]))
            used.append(w3.eth.get_transaction_receipt(w3.eth.get_block(1)["transactions"][0])["gasUsed"])
    assert found[theirs.url] == found[ours.url]


def test_a_refusal_leaves_no_trace_in_the_state(network):
    before = network.answers()
    with pytest.raises(RpcError, match="insufficient funds"):
        network.chain.send(sign(account(1), 0, KEY.address, value=1))
    assert network.answers() == before
