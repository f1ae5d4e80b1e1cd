"""What any client may expect of a network, tried with web3.py on ours and on anvil."""

import itertools
import json
import os
import subprocess
import sys
import urllib.request

import pytest
import rlp
from eth_utils import keccak
from trie import HexaryTrie
from web3.exceptions import ContractCustomError, ContractLogicError, ContractPanicError, TransactionNotFound

from rlswarm_jax.chain import anvil, devnet
from tests.chain import counter
from tests.chain.counter import account, connect, deploy, raw, sign

ETHER = 10**18
keys = itertools.count(1000)


@pytest.fixture(scope="module", params=["devnet", "anvil"])
def url(request, tmp_path_factory):
    if request.param == "anvil":
        if not anvil.find():
            pytest.skip("anvil is not installed: npm install @foundry-rs/anvil, or set ANVIL")
        with anvil.running() as network:
            yield network.url
    else:
        with devnet.running(tmp_path_factory.mktemp("devnet")) as network:
            yield network.url


@pytest.fixture(scope="module")
def w3(url):
    return connect(url)


@pytest.fixture(scope="module")
def contract(w3):
    return deploy(w3, account(0), start=7)


@pytest.fixture
def key():
    """Of an account that nobody else in these tests uses."""
    return account(next(keys))


def send(w3, key, contract_call, nonce, **fields):
    data = contract_call._encode_transaction_data()
    sent = w3.eth.send_raw_transaction(sign(key, nonce, contract_call.address, data=data, **fields))
    return w3.eth.wait_for_transaction_receipt(sent)


def refusal(w3, raw_transaction: bytes) -> str:
    answer = raw(w3, "eth_sendRawTransaction", "0x" + raw_transaction.hex())
    assert "result" not in answer and answer["error"]["code"] < 0
    return answer["error"]["message"].lower()


def test_a_network_says_who_it_is(w3):
    assert w3.is_connected() and w3.eth.chain_id == 7498867 == devnet.CHAIN_ID
    assert w3.net.version == "7498867" and w3.net.listening and w3.eth.syncing is False
    assert "/" in w3.client_version


def test_a_transaction_makes_a_block_of_its_own_and_a_receipt(w3, contract, key):
    before = w3.eth.block_number
    receipt = send(w3, key, contract.functions.count(3), 0)
    assert receipt["status"] == 1 and receipt["blockNumber"] == before + 1 == w3.eth.block_number
    block = w3.eth.get_block(receipt["blockNumber"], full_transactions=True)
    assert block["hash"] == receipt["blockHash"] and block["gasUsed"] == receipt["gasUsed"]
    (transaction,) = block["transactions"]
    assert transaction == w3.eth.get_transaction(receipt["transactionHash"])
    assert transaction["from"] == key.address and transaction["to"] == contract.address
    assert w3.eth.get_block(block["hash"])["transactions"] == [receipt["transactionHash"]]
    assert w3.eth.get_block(before)["hash"] == block["parentHash"]
    assert w3.eth.get_transaction_count(key.address) == 1 == w3.eth.get_transaction_count(key.address, "pending")


@pytest.mark.parametrize("fields", [{"gasPrice": 3}, {"gasPrice": 3, "accessList": []}, {"maxFeePerGas": 3}])
def test_all_three_types_of_transactions_are_taken(w3, contract, key, fields):
    raw(w3, "anvil_setBalance", key.address, hex(ETHER))
    receipt = send(w3, key, contract.functions.count(1), 0, **fields)
    found = w3.eth.get_transaction(receipt["transactionHash"])
    assert receipt["status"] == 1 and found["type"] == len(fields) - 1 if "gasPrice" in fields else 2
    assert found["gasPrice"] == receipt["effectiveGasPrice"]
    spent = ETHER - w3.eth.get_balance(key.address)
    assert spent == receipt["gasUsed"] * receipt["effectiveGasPrice"]


def test_a_block_s_hash_is_that_of_its_header_and_its_roots_those_of_what_it_holds(w3, contract, key):
    """From the answers, by the Yellow Paper and another library's tries."""
    receipt = send(w3, key, contract.functions.count(5), 0)
    block = raw(w3, "eth_getBlockByNumber", hex(receipt["blockNumber"]), False)["result"]
    names = ["parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom"]
    names += ["difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce"]
    names += [
        "baseFeePerGas",
        "withdrawalsRoot",
        "blobGasUsed",
        "excessBlobGas",
        "parentBeaconBlockRoot",
        "requestsHash",
    ]
    quantities = set(names) - {name for name in names if len(block[name]) in (42, 66, 514)} - {"extraData", "nonce"}
    header = [
        int(block[name], 16).to_bytes(32).lstrip(b"\0") if name in quantities else bytes.fromhex(block[name][2:])
        for name in names
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


def test_a_deployment_leaves_code_and_storage_where_the_receipt_says(w3, key):
    raw(w3, "anvil_setBalance", key.address, hex(ETHER))
    code = w3.eth.contract(abi=counter.ABI, bytecode=counter.CODE).constructor(99).data_in_transaction
    receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(sign(key, 0, data=code, value=5)))
    expected = keccak(rlp.encode([bytes.fromhex(key.address[2:]), b""]))[12:]
    assert bytes.fromhex(receipt["contractAddress"][2:]) == expected and receipt["to"] is None
    deployed = w3.eth.get_code(receipt["contractAddress"])
    assert deployed and deployed.hex() in counter.CODE
    assert w3.eth.get_storage_at(receipt["contractAddress"], 0) == (99).to_bytes(32)
    assert w3.eth.get_balance(receipt["contractAddress"]) == 5 == ETHER - w3.eth.get_balance(key.address)
    assert w3.eth.get_code(key.address) == b"" and w3.eth.get_storage_at(key.address, 3) == bytes(32)


def test_reverts_are_told_with_their_reasons(w3, contract, key):
    with pytest.raises(ContractLogicError, match="execution reverted: a step is not zero"):
        contract.functions.count(0).call()
    asked = contract.encode_abi("count", [101])
    with pytest.raises(ContractCustomError) as caught:
        contract.functions.count(101).call()
    selector = keccak(b"TooMuch(uint256,uint256)")[:4]
    assert caught.value.data == "0x" + (selector + (101).to_bytes(32) + (100).to_bytes(32)).hex()
    with pytest.raises(ContractPanicError):
        contract.functions.doubt().call()
    with pytest.raises(ContractCustomError):
        contract.functions.count(101).estimate_gas({"from": key.address})
    answer = raw(w3, "eth_call", {"to": contract.address, "data": asked}, "latest")
    assert answer["error"]["code"] == 3 and answer["error"]["data"] == caught.value.data


def test_a_transaction_that_reverts_is_in_a_block_with_status_0_and_changes_nothing(w3, contract, key):
    total = contract.functions.total().call()
    receipt = send(w3, key, contract.functions.count(101), 0)
    assert receipt["status"] == 0 and receipt["logs"] == [] and receipt["gasUsed"] < 1_000_000
    assert contract.functions.total().call() == total and w3.eth.get_transaction_count(key.address) == 1
    receipt = send(w3, key, contract.functions.deeper(1000), 1, gas=60_000)
    assert receipt["status"] == 0 and 40_000 < receipt["gasUsed"] <= 60_000  # an inner call ran out of gas


def test_a_call_changes_nothing_and_may_ask_about_an_old_block(w3, contract, key):
    at = w3.eth.block_number
    then = contract.functions.total().call()
    assert contract.functions.count(9).call({"from": key.address}) == then + 9
    assert w3.eth.block_number == at and contract.functions.total().call() == then
    send(w3, key, contract.functions.count(9), 0)
    assert contract.functions.total().call() == then + 9
    assert contract.functions.total().call(block_identifier=at) == then
    assert w3.eth.get_transaction_count(key.address, at) == 0
    assert contract.functions.deeper(100).call() == 100


def test_a_contract_sees_its_block(w3, contract):
    head = w3.eth.get_block("latest")
    number, timestamp, parent, chain_id, base_fee = contract.functions.here().call(block_identifier=head["number"])
    assert (chain_id, base_fee) == (devnet.CHAIN_ID, head["baseFeePerGas"])
    assert (number, timestamp, parent) == (head["number"], head["timestamp"], head["parentHash"])


def test_estimated_gas_is_enough_and_little_more_than_what_is_used(w3, contract, key):
    for nonce, call in enumerate(
        [contract.functions.count(2), contract.functions.deeper(20), contract.functions.clear()]
    ):
        estimate = call.estimate_gas({"from": key.address})
        receipt = send(w3, key, call, nonce, gas=estimate)
        assert receipt["status"] == 1, call
        assert receipt["gasUsed"] <= estimate <= 1.27 * receipt["gasUsed"], call  # a fifth may be given back
    assert w3.eth.estimate_gas({"from": key.address, "to": account(1).address, "value": 0}) == 21_000


def test_gas_used_is_what_the_protocol_says(w3, key):
    """Of plain transfers with data: EIP-2028's price, or EIP-7623's floor, whichever is more."""
    target = account(2).address
    for nonce, (zeros, others) in enumerate([(0, 0), (10, 0), (0, 100), (64, 64)]):
        data = "0x" + "00" * zeros + "ab" * others
        sent = w3.eth.send_raw_transaction(sign(key, nonce, target, data=data))
        used = w3.eth.wait_for_transaction_receipt(sent)["gasUsed"]
        assert used == 21_000 + max(4 * zeros + 16 * others, 10 * (zeros + 4 * others))


def test_logs_are_found_by_address_topics_and_blocks(w3, contract, key):
    first = w3.eth.block_number + 1
    receipts = [send(w3, key, contract.functions.count(step), step - 1) for step in (1, 2, 3)]
    shouted = send(w3, key, contract.functions.shout(4), 3)
    who = "0x" + bytes.fromhex(key.address[2:]).rjust(32, b"\0").hex()
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
    assert steps(topics=[who]) == steps(address=key.address) == []
    by_hash = w3.eth.get_logs({"blockHash": shouted["blockHash"], "address": [contract.address, key.address]})
    assert [log["logIndex"] for log in by_hash] == [0, 1, 2, 3] and by_hash == shouted["logs"]
    assert {log["transactionHash"] for log in by_hash} == {shouted["transactionHash"]}
    events = contract.events.Counted().get_logs(from_block=first, argument_filters={"who": key.address})
    assert [event["args"]["step"] for event in events] == steps()


def test_a_transaction_sent_twice_is_executed_once(w3, contract, key):
    before = contract.functions.counts(key.address).call()
    sent = sign(key, 0, contract.address, data=contract.encode_abi("count", [4]))
    w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(sent))
    assert any(words in refusal(w3, sent) for words in ("already known", "already imported", "nonce too low"))
    assert contract.functions.counts(key.address).call() == before + 4
    assert "nonce too low" in refusal(w3, sign(key, 0, contract.address, data=contract.encode_abi("count", [5])))


def test_what_can_never_be_in_a_block_is_refused(w3, contract, key):
    somewhere, other = account(3).address, {"chainId": 1}
    at = w3.eth.block_number
    assert "insufficient funds" in refusal(w3, sign(key, 0, somewhere, value=1))
    assert "insufficient funds" in refusal(w3, sign(key, 0, somewhere, maxFeePerGas=10**9))
    assert "gas" in refusal(w3, sign(key, 0, somewhere, gas=20_999))
    assert "gas" in refusal(w3, sign(key, 0, somewhere, gas=30_000_001))
    assert "chain" in refusal(w3, sign(key, 0, somewhere, **other))
    refusal(w3, sign(key, 0, somewhere, maxFeePerGas=1, maxPriorityFeePerGas=2))
    refusal(w3, b"")
    refusal(w3, b"\2" + sign(key, 0, somewhere)[:-7])
    refusal(w3, b"\x7f" + sign(key, 0, somewhere)[1:])
    assert w3.eth.block_number == at and w3.eth.get_transaction_count(key.address) == 0


def test_transactions_wait_for_an_earlier_nonce_and_then_follow_it(w3, contract, key):
    later = [
        w3.eth.send_raw_transaction(sign(key, nonce, contract.address, data=contract.encode_abi("count", [nonce])))
        for nonce in (2, 1)
    ]
    assert w3.eth.get_transaction(later[0])["blockHash"] is None
    assert raw(w3, "eth_getTransactionReceipt", later[0].to_0x_hex())["result"] is None
    send(w3, key, contract.functions.count(10), 0)
    for sent in later:
        assert w3.eth.wait_for_transaction_receipt(sent)["status"] == 1
    assert contract.functions.counts(key.address).call() == 13 and w3.eth.get_transaction_count(key.address) == 3


def test_a_waiting_transaction_is_replaced_by_one_that_pays_more(w3, contract, key):
    raw(w3, "anvil_setBalance", key.address, hex(ETHER))
    call = contract.encode_abi("count", [1])
    first = w3.eth.send_raw_transaction(sign(key, 1, contract.address, data=call, gasPrice=1000))
    assert "underpriced" in refusal(w3, sign(key, 1, contract.address, data=call, gasPrice=1000, gas=900_000))
    second = w3.eth.send_raw_transaction(sign(key, 1, contract.address, data=call, gasPrice=2000))
    send(w3, key, contract.functions.count(1), 0)
    assert w3.eth.wait_for_transaction_receipt(second)["status"] == 1
    with pytest.raises(TransactionNotFound):
        w3.eth.get_transaction(first)


def test_what_is_not_there_is_null(w3):
    with pytest.raises(TransactionNotFound):
        w3.eth.get_transaction(bytes(32))
    for method, params in {
        "eth_getBlockByNumber": ["0xffffff", False],
        "eth_getBlockByHash": ["0x" + "11" * 32, True],
        "eth_getTransactionReceipt": ["0x" + "11" * 32],
    }.items():
        assert raw(w3, method, *params) == {"result": None}


def test_time_can_be_moved_and_blocks_dropped(w3, contract, key):
    state = raw(w3, "evm_snapshot")["result"]
    at = w3.eth.get_block("latest")
    total = contract.functions.total().call()
    raw(w3, "evm_increaseTime", 3600)
    receipt = send(w3, key, contract.functions.count(1), 0)
    assert 3600 <= w3.eth.get_block(receipt["blockNumber"])["timestamp"] - at["timestamp"] < 3600 + 600
    wanted = at["timestamp"] + 10_000
    assert "error" not in raw(w3, "evm_setNextBlockTimestamp", wanted)
    raw(w3, "evm_mine")
    head = w3.eth.get_block("latest")
    assert (head["timestamp"], head["number"], head["transactions"]) == (wanted, at["number"] + 2, [])
    assert "error" in raw(w3, "evm_setNextBlockTimestamp", wanted - 5)
    assert raw(w3, "evm_revert", state)["result"] is True
    assert w3.eth.get_block("latest") == at and contract.functions.total().call() == total
    assert raw(w3, "eth_getTransactionReceipt", receipt["transactionHash"].to_0x_hex())["result"] is None
    assert not [log for log in contract.events.Counted().get_logs(from_block=0) if log["blockNumber"] > at["number"]]
    assert send(w3, key, contract.functions.count(1), 0)["blockNumber"] == at["number"] + 1


def test_fees_are_those_of_a_network_that_costs_nothing(w3):
    history = w3.eth.fee_history(3, "latest", [10, 50])
    count = len(history["gasUsedRatio"])
    assert count and len(history["baseFeePerGas"]) == count + 1 and len(history["reward"]) == count
    assert all(0 <= ratio <= 1 for ratio in history["gasUsedRatio"])
    assert w3.eth.get_block("latest")["baseFeePerGas"] == history["baseFeePerGas"][-2] == 0


def test_a_batch_is_answered_request_by_request(w3, url):
    body = b'[{"jsonrpc":"2.0","id":1,"method":"eth_chainId"},{"jsonrpc":"2.0","id":"b","method":"no_such"}]'
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)
    assert found[0] == {"jsonrpc": "2.0", "id": 1, "result": hex(devnet.CHAIN_ID)}
    assert found[1]["id"] == "b" and found[1]["error"]["code"] == -32601
    with w3.batch_requests() as batch:
        batch.add(w3.eth.get_block("latest"))
        batch.add(w3.eth.get_balance(account(0).address))
        block, balance = batch.execute()
    assert block["number"] == w3.eth.block_number and balance == w3.eth.get_balance(account(0).address)


CLIENT = """
import sys
from tests.chain.counter import ABI, account, connect, sign

url, number, address, transactions = sys.argv[1:]
w3, key = connect(url), account(5000 + int(number))
call = w3.eth.contract(address=address, abi=ABI).encode_abi("count", [1])
for nonce in range(int(transactions)):
    sent = w3.eth.send_raw_transaction(sign(key, nonce, address, data=call))
    receipt = w3.eth.wait_for_transaction_receipt(sent)
    print(int.from_bytes(receipt["logs"][0]["topics"][2]))
"""


def test_four_client_processes_at_once_lose_and_double_nothing(w3, url, contract):
    before, each, processes = contract.functions.total().call(), 15, []
    for number in range(4):
        command = [sys.executable, "-c", CLIENT, url, str(number), contract.address, str(each)]
        environment = os.environ | {"PYTHONPATH": "."}
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    found = [[int(line) for line in process.communicate(timeout=120)[0].split()] for process in processes]
    assert sorted(itertools.chain(*found)) == list(range(before + 1, before + 4 * each + 1))
    assert all(totals == sorted(totals) for totals in found)
    for number in range(4):
        assert contract.functions.counts(account(5000 + number).address).call() == each
