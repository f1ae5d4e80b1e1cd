"""A contract to try a network with, and what tests and benchmarks do with it over HTTP."""

import json
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import HTTPProvider, Web3
from web3.contract import Contract

from rlswarm_jax.chain.devnet import CHAIN_ID

# npm solc 0.8.30, evmVersion paris, optimizer on (200 runs), no metadata, of
#
# // SPDX-License-Identifier: Apache-2.0
# pragma solidity 0.8.30;
#
# contract Counter {
#     event Counted(address indexed who, uint256 indexed total, uint256 step);
#     error TooMuch(uint256 asked, uint256 allowed);
#     uint256 public total;
#     mapping(address => uint256) public counts;
#
#     constructor(uint256 start) payable { total = start; }
#
#     function count(uint256 step) external returns (uint256) {
#         require(step != 0, "a step is not zero");
#         if (step > 100) revert TooMuch(step, 100);
#         total += step;
#         counts[msg.sender] += step;
#         emit Counted(msg.sender, total, step);
#         return total;
#     }
#
#     function shout(uint256 times) external {
#         for (uint256 i = 0; i < times; i++) emit Counted(msg.sender, total, i);
#     }
#
#     function clear() external { total = 0; delete counts[msg.sender]; }
#
#     function doubt() external pure { assert(false); }
#
#     function deeper(uint256 levels) external returns (uint256) {
#         return levels == 0 ? 0 : 1 + this.deeper(levels - 1);
#     }
#
#     function here() external view returns (uint256, uint256, bytes32, uint256, uint256) {
#         return (block.number, block.timestamp, blockhash(block.number - 1), block.chainid, block.basefee);
#     }
# }
CODE = (
    "0x"
    "60806040526040516104593803806104598339810160408190526020916027565b600055603f565b600060208284031215603857600080"
    "fd5b5051919050565b61040b8061004e6000396000f3fe608060405234801561001057600080fd5b50600436106100885760003560e01c"
    "80633b3546c81161005b5780633b3546c8146100e657806352efea6e146100f9578063cc5ea9c314610110578063cf9009261461014057"
    "600080fd5b80630568e65e1461008d5780632ddbd13a146100c0578063301a1aa8146100c95780633aa844b0146100d3575b600080fd5b"
    "6100ad61009b366004610357565b60016020526000908152604090205481565b6040519081526020015b60405180910390f35b6100ad60"
    "005481565b6100d1610153565b005b6100d16100e1366004610387565b61015d565b6100ad6100f4366004610387565b6101ac565b6100"
    "d1600080805533815260016020526040812055565b61011861029e565b6040805195865260208601949094529284019190915260608301"
    "52608082015260a0016100b7565b6100ad61014e366004610387565b6102c4565b61015b6103a0565b565b60005b818110156101a85760"
    "005460405182815233907f6d5ac8cb8937b5a656fc2cba7f07defd379bc116df48f519cfaf883f294382369060200160405180910390a3"
    "600101610160565b5050565b6000816000036101f85760405162461bcd60e51b8152602060048201526012602482015271612073746570"
    "206973206e6f74207a65726f60701b60448201526064015b60405180910390fd5b606482111561022457604051636073b21f60e01b8152"
    "60048101839052606460248201526044016101ef565b8160008082825461023591906103cc565b90915550503360009081526001602052"
    "6040812080548492906102599084906103cc565b909155505060005460405183815233907f6d5ac8cb8937b5a656fc2cba7f07defd379b"
    "c116df48f519cfaf883f294382369060200160405180910390a3505060005490565b60008080808043426102b16001836103df565b9197"
    "909650904094504693504892509050565b6000811561034e573063cf9009266102dd6001856103df565b6040518263ffffffff1660e01b"
    "81526004016102fb91815260200190565b6020604051808303816000875af115801561031a573d6000803e3d6000fd5b50505050604051"
    "3d601f19601f8201168201806040525081019061033e91906103f2565b6103499060016103cc565b610351565b60005b92915050565b60"
    "006020828403121561036957600080fd5b81356001600160a01b038116811461038057600080fd5b9392505050565b6000602082840312"
    "1561039957600080fd5b5035919050565b634e487b7160e01b600052600160045260246000fd5b634e487b7160e01b6000526011600452"
    "60246000fd5b80820180821115610351576103516103b6565b81810381811115610351576103516103b6565b6000602082840312156104"
    "0457600080fd5b505191905056"
)
_UINT, _BYTES, _ADDRESS = {"type": "uint256"}, {"type": "bytes32"}, {"type": "address"}


def _function(name: str, takes: list[dict[str, str]], gives: list[dict[str, str]], mutability: str) -> dict[str, Any]:
    inputs, outputs = ([one | {"name": ""} for one in some] for some in (takes, gives))
    return {"type": "function", "name": name, "inputs": inputs, "outputs": outputs, "stateMutability": mutability}


ABI: list[dict[str, Any]] = [
    {"type": "constructor", "inputs": [_UINT | {"name": "start"}], "stateMutability": "payable"},
    _function("total", [], [_UINT], "view"),
    _function("counts", [_ADDRESS], [_UINT], "view"),
    _function("count", [_UINT], [_UINT], "nonpayable"),
    _function("shout", [_UINT], [], "nonpayable"),
    _function("clear", [], [], "nonpayable"),
    _function("doubt", [], [], "pure"),
    _function("deeper", [_UINT], [_UINT], "nonpayable"),
    _function("here", [], [_UINT, _UINT, _BYTES, _UINT, _UINT], "view"),
    {"type": "error", "name": "TooMuch", "inputs": [_UINT | {"name": "asked"}, _UINT | {"name": "allowed"}]},
    {
        "type": "event",
        "name": "Counted",
        "anonymous": False,
        "inputs": [
            _ADDRESS | {"name": "who", "indexed": True},
            _UINT | {"name": "total", "indexed": True},
            _UINT | {"name": "step", "indexed": False},
        ],
    },
]


def account(number: int) -> LocalAccount:
    """Of a key that anyone can have."""
    return Account.from_key((number + 1).to_bytes(32))


def connect(url: str) -> Web3:
    return Web3(HTTPProvider(url, request_kwargs={"timeout": 60}))


def sign(key: LocalAccount, nonce: int, to: str | None = None, **fields: Any) -> bytes:
    """The raw bytes of a transaction of type 2 that pays no fee, unless `fields` say otherwise."""
    transaction = {"nonce": nonce, "gas": 1_000_000, "value": 0, "data": "0x", "chainId": CHAIN_ID} | fields
    if to:
        transaction["to"] = to
    if "gasPrice" not in transaction:
        transaction = {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0} | transaction
    return bytes(key.sign_transaction(transaction).raw_transaction)


def deploy(w3: Web3, key: LocalAccount, start: int = 0, nonce: int = 0) -> Contract:
    code = w3.eth.contract(abi=ABI, bytecode=CODE).constructor(start).data_in_transaction
    receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(sign(key, nonce, data=code)))
    assert receipt["status"] == 1
    return w3.eth.contract(address=receipt["contractAddress"], abi=ABI)


def raw(w3: Web3, method: str, *params: Any) -> Any:
    """An answer as it is, less what says that it is JSON-RPC: {"result": ...} or {"error": ...}."""
    answer = w3.provider.make_request(method, list(params))  # type: ignore[arg-type]
    return json.loads(json.dumps({name: answer[name] for name in ("result", "error") if name in answer}))
