"""An endpoint may be slow, broken or hostile; and the process that asks it may be killed."""

import gzip
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib

import pytest
from eth_utils import keccak

from rlswarm_jax.chain import eth
from rlswarm_jax.chain.answers import MAX_WAITING, parse_answer
from rlswarm_jax.chain.errors import (
    AnswerTooLarge,
    Busy,
    EndpointDown,
    MalformedAnswer,
    NoContract,
    Refused,
    WrongChain,
    WrongStatus,
)
from rlswarm_jax.chain.rpc import MAX_ANSWER_BYTES, Backoff, Endpoint, Patient
from tests.chain import fake_endpoint
from tests.chain.client_world import ACCOUNT, make_world
from tests.chain.local_chain import CHAIN_ID


def ask(respond, seconds: float = 5.0, path: str = ""):
    with fake_endpoint.serve(respond) as url:
        endpoint = Endpoint(url + path, seconds)
        try:
            return endpoint.request("eth_chainId", [])
        finally:
            endpoint.close()


def saying(body: bytes, status: int = 200):
    return lambda handler, _: fake_endpoint.answer(handler, body, status)


def test_an_answer_arrives():
    assert ask(saying(b'{"jsonrpc": "2.0", "id": 1, "result": "0x7a69"}')) == "0x7a69"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 520, 529])
def test_a_busy_endpoint_is_tried_again_later(status):
    with pytest.raises(Busy, match=f"busy .HTTP {status}"):
        ask(saying(b"wait", status))


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 418])
def test_a_status_that_no_waiting_mends_is_named(status):
    with pytest.raises(WrongStatus, match=f"HTTP {status}.*: check its address and its key"):
        ask(saying(b"<html>denied</html>", status))


@pytest.mark.parametrize("status", [400, 403, 500])
def test_an_error_of_json_rpc_says_more_than_its_status(status):
    error = {"code": 3, "message": "execution reverted", "data": "0x1614b50c"}
    with pytest.raises(Refused, match=f"reverted .HTTP {status}") as caught:
        ask(saying(json.dumps({"id": 1, "error": error}).encode(), status))
    assert caught.value.data == bytes.fromhex("1614b50c")


def test_a_question_or_answer_too_large_for_the_endpoint_is_asked_for_in_parts():
    with pytest.raises(AnswerTooLarge, match="HTTP 413"):
        ask(saying(b"too large", 413))


# as Infura, Alchemy, QuickNode, Ankr, Base, Cloudflare and a gateway before a server are known to say it
@pytest.mark.parametrize(
    "body",
    [
        {"id": 1, "error": {"code": -32005, "message": "request rate limited"}},
        {"id": 1, "error": {"code": -32005, "message": "daily request count exceeded, request rate limited"}},
        {"id": 1, "error": {"code": -32005, "message": "project ID request rate exceeded"}},
        {"id": 1, "error": {"code": -32005, "message": "limit exceeded"}},
        {"id": None, "error": {"code": 429, "message": "Your app has exceeded its compute units per second capacity."}},
        {"id": 1, "error": {"code": -32007, "message": "100/second request limit reached - upgrade your account"}},
        {"id": 1, "error": {"code": -32029, "message": "Too Many Requests"}},
        {"id": 1, "error": {"code": -32016, "message": "over rate limit"}},
        {
            "id": 1,
            "error": {"code": -32000, "message": "Too many requests, reason: call rate limit exhausted, retry in 10s"},
        },
        {"id": 1, "error": {"code": -32603, "message": "service temporarily unavailable"}},
        {"id": 1, "error": "rate limited"},
        {"message": "API rate limit exceeded"},
        {"code": 429, "message": "slow"},
        [{"id": 1, "error": {"code": -32005, "message": "request rate limited"}}],
    ],
)
def test_every_way_of_saying_later_is_known(body):
    with pytest.raises(Busy, match=r"asked too much: .*\.$"):
        ask(saying(json.dumps(body).encode()))
    with pytest.raises(Busy, match="HTTP 403"):
        ask(saying(json.dumps(body).encode(), 403))


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("eth_call", {"code": 3, "message": "execution reverted: too many requests"}),
        ("eth_call", {"code": -32000, "message": "execution reverted: rate limit"}),
        ("eth_call", {"code": -32005, "message": "rate limit", "data": "0x1614b50c"}),
        ("eth_getLogs", {"code": -32005, "message": "query returned more than 10000 results"}),
        ("eth_getLogs", {"code": -32005, "message": "exceed maximum block range: 50000"}),
        ("eth_estimateGas", {"code": -32000, "message": "gas required exceeds allowance (30000000)"}),
        ("eth_sendRawTransaction", {"code": -32000, "message": "tx fee (2.00 ether) exceeds the configured cap"}),
        ("eth_sendRawTransaction", {"code": -32000, "message": "txpool is full"}),
        ("eth_chainId", {"code": -32601, "message": "method not found"}),
        ("eth_chainId", {"code": -32600, "message": "unauthorized: no such key"}),
    ],
)
def test_what_waiting_does_not_mend_is_a_refusal(method, error):
    with pytest.raises(Refused):
        parse_answer(json.dumps({"id": 1, "error": error}).encode(), method, 1)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *[("7", 7), ("0", 0), ("-5", 0), ("1e30", MAX_WAITING), ("nan", 0), ("soon", 0), ("", 0)],
        *[("Fri, 01 Jan 2100 00:00:00 GMT", MAX_WAITING), ("Fri, 01 Jan 1999 00:00:00 GMT", 0)],
    ],
)
def test_how_long_an_endpoint_asks_to_wait_is_heard_in_bounds(header, seconds):
    def limit(handler, _):
        handler.send_response(503)
        handler.send_header("Retry-After", header)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with pytest.raises(Busy) as caught:
        ask(limit)
    assert caught.value.seconds == seconds
    rate = {"code": -32005, "message": "rate limited", "data": {"rate": {"backoff_seconds": 30}}}
    with pytest.raises(Busy) as caught:
        ask(saying(json.dumps({"id": 1, "error": rate}).encode()))
    assert caught.value.seconds == 30


class Limited:
    """Answers when it was waited for; time passes only by waiting."""

    def __init__(self, busy: int, seconds: float = 0.0):
        self.busy, self.seconds, self.now, self.waits, self.asked = busy, seconds, 0.0, [], 0

    def request(self, method: str, params: list) -> str:
        self.asked += 1
        if self.asked <= self.busy:
            raise Busy("busy.", self.seconds)
        return "0x1"

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def patient(self, seconds: float) -> Patient:
        return Patient(self, seconds, random.Random(0), lambda: self.now, self.sleep)


def test_a_limit_is_waited_for_ever_longer_and_not_for_ever():
    limited = Limited(4)
    assert limited.patient(60.0).request("eth_chainId", []) == "0x1"
    assert all(2.0**n / 2 <= wait <= 2.0**n for n, wait in enumerate(limited.waits)) and len(limited.waits) == 4
    limited = Limited(10**6)
    with pytest.raises(Busy):
        limited.patient(60.0).request("eth_chainId", [])
    assert limited.now <= 60.0 and limited.asked < 10
    limited = Limited(1, seconds=20.0)
    assert limited.patient(60.0).request("eth_chainId", []) == "0x1" and limited.waits == [20.0]


def coded(body: bytes, coding: str, status: int = 200, location: str = ""):
    def respond(handler, _):
        handler.send_response(status)
        if location:
            handler.send_header("Location", location)
        handler.send_header("Content-Encoding", coding)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


ANSWER = b'{"jsonrpc": "2.0", "id": 1, "result": "0x7a69"}'
RAW = zlib.compressobj(wbits=-15)
DEFLATED = RAW.compress(ANSWER) + RAW.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(ANSWER, mtime=0)),
        ("x-gzip", gzip.compress(ANSWER, mtime=0)),
        (" GZIP", gzip.compress(ANSWER, mtime=0)),
        ("deflate", zlib.compress(ANSWER)),
        ("deflate", DEFLATED),
        ("identity", ANSWER),
    ],
)
def test_an_answer_that_was_compressed_unasked_is_read(coding, body):
    assert ask(coded(body, coding)) == "0x7a69"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress"])
def test_any_other_coding_is_refused_by_name(coding):
    with pytest.raises(MalformedAnswer, match=f"coding '{coding}', which nobody asked for"):
        ask(coded(ANSWER, coding))
    with pytest.raises(WrongStatus, match="HTTP 403"):  # which says enough
        ask(coded(ANSWER, coding, status=403))


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", ANSWER),
        ("gzip", gzip.compress(ANSWER, mtime=0)[:-9]),
        ("deflate", zlib.compress(ANSWER)[:-3]),
        ("deflate", b"x"),
    ],
)
def test_a_broken_coding_is_named(coding, body):
    with pytest.raises(MalformedAnswer, match=f"{coding}"):
        ask(coded(body, coding))


def test_a_bomb_is_unpacked_up_to_the_bound():
    bomb = gzip.compress(bytes(1 << 28))  # a quarter of a megabyte on the wire
    tracemalloc.start()
    try:
        with pytest.raises(AnswerTooLarge):
            ask(coded(bomb, "gzip"))
        with pytest.raises(WrongStatus, match="302"):
            ask(coded(bomb, "gzip", 302, "/elsewhere"))
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_ANSWER_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"id": 1}',
        b'{"id": 2, "result": 1}',
        b'{"id": "1", "result": 1}',
        b'{"id": 1, "error": 5}',
        b"[" * 200_000,
        b'{"id": 1, "result": ' + b'[{"\\"]": ' * 99_999,
        b'["' + b'\\"' * 999_999,
        b'{"id": 1, "result": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_answer_is_named_so(body):
    with pytest.raises(MalformedAnswer, match=r"^the chain endpoint's .*\.$"):
        ask(saying(body))


def test_an_answer_is_read_up_to_a_bound():
    def flood(handler, _):
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
                sent[0] += 1 << 16
        except OSError:
            handler.close_connection = True

    sent = [0]
    with pytest.raises(AnswerTooLarge):
        ask(flood)
    assert sent[0] < MAX_ANSWER_BYTES + (16 << 20)  # what fits into the sockets' buffers


def test_a_trickle_ends_with_the_time_for_an_answer():
    def trickle(handler, _):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        try:
            while not over.wait(0.02):
                handler.wfile.write(b" ")
                handler.wfile.flush()
        except OSError:
            handler.close_connection = True

    over = threading.Event()
    try:
        with pytest.raises(EndpointDown, match=r"more than 0\.3 s"):
            ask(trickle, 0.3)
    finally:
        over.set()


def test_silence_ends_too():
    over = threading.Event()
    try:
        with pytest.raises(EndpointDown, match="does not answer"):
            ask(lambda handler, _: over.wait(30), 0.2)
    finally:
        over.set()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("https://other.example:8443/v3/hunter2?key=hunter2", "points to https://other.example:8443 "),
        ("https://hunter2:hunter2@other.example/", "points to https://other.example "),
        ("/v3/hunter2", "points to another of its paths "),
        ("https://[", "points to another of its paths "),
    ],
)
def test_a_redirection_is_not_followed_and_says_where_it_points(status, location, said):
    visited = []

    def move(handler, _):
        visited.append(handler.path)
        handler.send_response(status)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with pytest.raises(WrongStatus, match=f"HTTP {status}") as caught:
        ask(move)
    assert visited == ["/"] and said in str(caught.value) and "hunter2" not in str(caught.value)


def test_what_is_behind_an_address_s_host_is_never_shown():
    """The path of an endpoint often is a password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://user:hunter2@127.0.0.1:{free.getsockname()[1]}/v3/hunter2?key=hunter2", 0.5)
        with pytest.raises(EndpointDown) as caught:
            endpoint.request("eth_chainId", [])
    assert "127.0.0.1" in str(caught.value) and "hunter2" not in str(caught.value) + repr(endpoint)
    assert caught.value.__suppress_context__  # the cause names the whole address
    for wrong in ("", "ftp://hunter2", "localhost:8545", "http://"):
        with pytest.raises(ValueError, match="http://") as refused:
            Endpoint(wrong)
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("error", "data"),
    [
        ({"code": 3, "message": "execution reverted", "data": "0x1614b50c"}, "1614b50c"),
        ({"code": -32015, "message": "VM execution error.", "data": "Reverted 0x1614b50c"}, "1614b50c"),
        ({"code": -32000, "message": "revert", "data": {"data": "0x1614b50c"}}, "1614b50c"),
        ({"code": -32000, "message": "revert", "data": {"result": "0x1614b50c"}}, "1614b50c"),
        ({"code": 3, "message": "execution reverted", "data": "0x1"}, None),
        ({"code": 3, "message": "execution reverted", "data": ["0x"]}, None),
        ({"code": 10**30, "message": 5, "data": "0x" + "ab" * 10**5}, None),
        ({}, None),
    ],
)
def test_a_refusal_s_data_is_found_wherever_servers_put_it(error, data):
    with pytest.raises(Refused) as caught:
        parse_answer(json.dumps({"id": 1, "error": error}).encode(), "eth_call", 1)
    assert (caught.value.data.hex() if caught.value.data else None) == data
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_back_off_doubles_up_to_a_cap_and_begins_again():
    delays = Backoff(random.Random(0), first=1.0, most=60.0)
    found = [delays.failed() for _ in range(1000)]
    assert all(min(60, 2.0**n) / 2 <= delay <= min(60, 2.0**n) for n, delay in enumerate(found))
    again = Backoff(random.Random(0), first=1.0, most=60.0)
    assert [again.failed() for _ in range(1000)] == found != [Backoff(random.Random(1)).failed()] * 1000
    delays.succeeded()
    assert delays.failed() <= 1.0


# --- what web3 is given


class Saying:
    """An endpoint that answers with a test's words."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def request(self, method, params):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


HASH, OTHER_HASH = "0x" + "ab" * 32, "0x" + "cd" * 32
BLOCK = {"number": "0x5", "hash": HASH, "timestamp": "0x6", "baseFeePerGas": "0x7", "miner": ["anything"]}
RECEIPT = {"transactionHash": HASH, "blockNumber": "0x5", "status": "0x1", "gasUsed": "0x6", "effectiveGasPrice": "0x7"}
LOG = {
    "address": ACCOUNT.lower(),
    "blockNumber": "0x5",
    "blockHash": HASH,
    "logIndex": "0x0",
    "transactionHash": HASH,
    "topics": [HASH],
    "data": "0x",
}
NO_NUMBERS = [None, True, 5, "5", "0x", "0xg", "-0x1", ["0x1"], {}, "0x" + "0" * 65]
QUESTIONS = {
    "chain id": (lambda w3: w3.eth.chain_id, [*NO_NUMBERS, hex(1 << 63)]),
    "nonce": (lambda w3: w3.eth.get_transaction_count(ACCOUNT), [*NO_NUMBERS, hex(1 << 48)]),
    "balance": (lambda w3: w3.eth.get_balance(ACCOUNT), NO_NUMBERS),
    "gas price": (lambda w3: w3.eth.gas_price, [*NO_NUMBERS, hex(1 << 128)]),
    "tip": (lambda w3: w3.eth.max_priority_fee, [*NO_NUMBERS, hex(1 << 128)]),
    "estimate": (lambda w3: w3.eth.estimate_gas({"to": ACCOUNT}), [*NO_NUMBERS, hex(1 << 63)]),
    "code": (lambda w3: w3.eth.get_code(ACCOUNT), [None, 1, "12", "0x1", "0x" + "00" * (eth.MAX_CALL_BYTES + 1)]),
    "call": (lambda w3: w3.eth.call({"to": ACCOUNT}), [None, "0xzz", "0x" + "00" * (eth.MAX_CALL_BYTES + 1)]),
    "head": (
        lambda w3: w3.eth.get_block("latest"),
        [None, [], {}, *({**BLOCK, name: wrong} for name in ("number", "hash", "timestamp") for wrong in (None, "0x"))],
    ),
    "time": (lambda w3: w3.eth.get_block("latest"), [BLOCK | {"timestamp": hex(1 << 40)}]),
    "base fee": (lambda w3: w3.eth.get_block("latest"), [BLOCK | {"baseFeePerGas": hex(1 << 128)}]),
    "block": (lambda w3: eth.block_hash(w3, 6), [[], BLOCK, BLOCK | {"number": "0x7"}]),
    "receipt": (
        lambda w3: eth.receipt(w3, HASH),
        [
            *([], "", RECEIPT | {"transactionHash": OTHER_HASH}, RECEIPT | {"status": "0x2"}),
            *(RECEIPT | {name: "0x"} for name in RECEIPT),
            RECEIPT | {"effectiveGasPrice": hex(1 << 128)},
        ],
    ),
    "logs": (
        lambda w3: eth.Contract(w3, ACCOUNT).logs(5, 6),
        [None, {}, [None], [LOG, LOG], [LOG | {"removed": True}], [LOG | {"blockNumber": "0x4"}]]
        + [[LOG | {"blockNumber": "0x7"}], [LOG | {"address": "0x" + "12" * 20}], [LOG | {"topics": [HASH] * 5}]]
        + [[LOG | {"topics": [HASH[:-2]]}], [LOG | {"data": "0x1"}], [LOG] * (eth.MAX_LOGS + 1)]
        + [[LOG | {name: wrong}] for name in LOG for wrong in (None, "x")],
    ),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_no_answer_to_a_question_never_comes_to_web3(question):
    ask, wrong = QUESTIONS[question]
    for answer in wrong:
        with pytest.raises(MalformedAnswer, match=r"^the chain endpoint .*\.$") as caught:
            ask(eth.connect(Saying(answer)))
        assert len(str(caught.value)) < 300


def test_what_is_right_comes_to_who_asked():
    head = eth.connect(Saying(BLOCK)).eth.get_block("latest")
    assert (head["number"], head["hash"].to_0x_hex(), head["timestamp"], head["baseFeePerGas"]) == (5, HASH, 6, 7)
    assert "miner" not in head
    assert "baseFeePerGas" not in eth.connect(Saying(BLOCK | {"baseFeePerGas": None})).eth.get_block("latest")
    assert eth.block_hash(eth.connect(Saying(BLOCK)), 5) == HASH
    assert eth.block_hash(eth.connect(Saying(None)), 6) is None
    mined = eth.receipt(eth.connect(Saying(RECEIPT)), HASH)
    assert (mined["blockNumber"], mined["status"], mined["gasUsed"], mined["effectiveGasPrice"]) == (5, 1, 6, 7)
    for pending in (None, RECEIPT | {"blockNumber": None}):
        assert eth.receipt(eth.connect(Saying(pending)), HASH) is None
    assert eth.Contract(eth.connect(Saying([LOG])), ACCOUNT).logs(5, 5) == []  # none of ours
    advanced = LOG | {"topics": ["0x" + keccak(text="RoundAdvanced(uint256)").hex(), HASH]}
    places = [("0x6", "0x0"), ("0x5", "0x2"), ("0x5", "0x1")]
    logs = [advanced | {"blockNumber": block, "logIndex": index} for block, index in places]
    found = eth.Contract(eth.connect(Saying(logs)), ACCOUNT).logs(5, 6)
    assert [(one["blockNumber"], one["logIndex"]) for one in found] == [(5, 1), (5, 2), (6, 0)]
    assert {one["args"]["round"] for one in found} == {int(HASH, 16)}
    with pytest.raises(NoContract, match=f"no coordinator at {ACCOUNT}"):
        eth.Contract(eth.connect(Saying("0x")), ACCOUNT).view("status")
    for lie in (None, OTHER_HASH, {"x": 1}):
        assert eth.connect(Saying(lie)).eth.send_raw_transaction(b"abc") == keccak(b"abc")
    with pytest.raises(WrongChain, match="serves chain 5, not 6"):
        eth.connect(Saying("0x5"), 6)


NODE = """
import sys, threading
from pathlib import Path
from rlswarm_jax.chain.calls import Commitment
from rlswarm_jax.chain.coordinator import Coordinator
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.identity import simulated

url, contract, directory, chain_id, last, beacon = sys.argv[1:]
client = Coordinator(
    Endpoint(url), contract, simulated(0, 0), Path(directory), chain_id=int(chain_id),
    settings=Settings(confirmations=1, retry_seconds=0.05),
)
stop = threading.Event()
threading.Thread(target=client.run, args=(stop,), daemon=True).start()
word = bytes([1]) * 32
for offset in range(3):
    round_ = int(last) - offset
    client.settle(round_, bytes.fromhex(beacon.split(",")[offset]), Commitment(word, word, word, 1, word, word, word),
                  [round_, 0, 0], [])
    client.publish_weights(round_, word, "uri")
    print("wished", flush=True)
while client.counts() != {"done": 6}:
    stop.wait(0.05)
print("done", flush=True)
"""


def test_a_node_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path):
    """SIGKILL, over HTTP, at moments that nobody chose; a node that is not killed then finds everything done once."""
    world = make_world(rounds=3)
    chain, lock, over = world.chain, threading.Lock(), threading.Event()
    beacons = ",".join(one["beacon"].hex() for one in reversed(chain.events(world.contract, "BeaconFinalized")))
    rng = random.Random(0)

    def mine() -> None:
        while not over.wait(0.05):
            with lock:
                chain.mine()

    def start(url: str) -> subprocess.Popen:
        arguments = [url, world.contract, str(tmp_path), str(CHAIN_ID), str(world.round - 1), beacons]
        return subprocess.Popen([sys.executable, "-c", NODE, *arguments], stdout=subprocess.PIPE, text=True)

    miner = threading.Thread(target=mine)
    miner.start()
    try:
        with fake_endpoint.serve(fake_endpoint.speak(chain, lock)) as url:
            for _ in range(3):
                process = start(url)
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(rng.uniform(0.0, 0.4))
                process.send_signal(signal.SIGKILL)
                process.wait()
                process.stdout.close()
            process = start(url)
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 0 and out.endswith("done\n")
    finally:
        over.set()
        miner.join()
    rounds = [world.round - 1 - offset for offset in range(3)]
    assert sorted(one["round"] for one in world.events("Settled")) == sorted(rounds)
    assert sorted(one["round"] for one in world.events("WeightsPublished")) == sorted(rounds)
    assert chain.transactions(ACCOUNT)[1:] == [(nonce, True) for nonce in range(1, 7)]
