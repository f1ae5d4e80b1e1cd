"""An endpoint may be slow, broken or hostile; and the process that asks it may be killed."""

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from rlswarm_jax.chain.errors import AnswerTooLarge, EndpointDown, MalformedAnswer, Refused
from rlswarm_jax.chain.rpc import MAX_ANSWER_BYTES, Backoff, Endpoint, parse_answer
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


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_endpoint_is_tried_again_later(status):
    with pytest.raises(EndpointDown, match=f"busy .HTTP {status}"):
        ask(saying(b"wait", status))


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


def test_a_redirection_is_not_followed():
    visited = []

    def move(handler, _):
        visited.append(handler.path)
        handler.send_response(307)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with pytest.raises(MalformedAnswer):
        ask(move)
    assert visited == ["/"]


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


NODE = """
import sys, threading
from pathlib import Path
from rlswarm_jax.chain.coordinator import Coordinator
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.chain.sender import Settings
from rlswarm_jax.identity import simulated

url, contract, directory, chain_id, last, beacon = sys.argv[1:]
client = Coordinator(
    Endpoint(url), contract, simulated(0, 0), Path(directory), chain_id=int(chain_id),
    settings=Settings(confirmations=1, retry_seconds=0.05),
)
stop = threading.Event()
threading.Thread(target=client.run, args=(stop,), daemon=True).start()
for offset in range(3):  # the rounds before: all their stages are open
    hashes = [bytes([n]) * 32 for n in (1, 2, 3, 4)]
    round_ = int(last) - offset
    client.commit(round_, bytes.fromhex(beacon.split(",")[offset]), *hashes)
    for stage in range(3):
        client.reward(round_, stage, stage)
    print("wished", flush=True)
while client.counts() != {"done": 12}:
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
    assert len(world.events("Committed")) == 3
    rewards = [(one["roundNumber"], one["stageNumber"]) for one in world.events("RewardSubmitted")]
    assert sorted(rewards) == [(world.round - 1 - offset, stage) for offset in (2, 1, 0) for stage in range(3)]
    assert chain.transactions(ACCOUNT)[1:] == [(nonce, True) for nonce in range(1, 13)]
