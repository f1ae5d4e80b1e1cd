"""The shipped interface serves the original's clients: the same selectors, topics, indexed fields and results."""

import hashlib
from pathlib import Path

import pytest
from eth_utils.abi import abi_to_signature, event_signature_to_log_topic, function_signature_to_4byte_selector
from web3 import Web3

from rlswarm_jax.chain import contracts

# Of the interface that existing nodes speak (contract versions 0.4.2 and 0.6.0, chain id 685685).
FUNCTIONS = {
    "BOOTNODE_MANAGER_ROLE()": ("0x7c8973c7", "view", "(bytes32)"),
    "OWNER_ROLE()": ("0xe58378bb", "view", "(bytes32)"),
    "STAGE_MANAGER_ROLE()": ("0x068dc322", "view", "(bytes32)"),
    "UPGRADE_INTERFACE_VERSION()": ("0xad3cb1cc", "view", "(string)"),
    "addBootnodes(string[])": ("0xd90d8573", "nonpayable", "()"),
    "clearBootnodes()": ("0x4179a759", "nonpayable", "()"),
    "currentRound()": ("0x8a19c8bc", "view", "(uint256)"),
    "currentStage()": ("0x5bf5d54c", "view", "(uint256)"),
    "getBootnodes()": ("0x6370ae4f", "view", "(string[])"),
    "getBootnodesCount()": ("0x48495bdb", "view", "(uint256)"),
    "getEoa(string[])": ("0x96bac35a", "view", "(address[])"),
    "getPeerId(address[])": ("0xb894a469", "view", "(string[][])"),
    "getPeerVoteCount(uint256,string)": ("0x4f4026c3", "view", "(uint256)"),
    "getRoundStageReward(uint256,uint256,address[])": ("0x098f027f", "view", "(int256[])"),
    "getTotalRewards(string[])": ("0x80c3d97f", "view", "(int256[])"),
    "getTotalWins(string)": ("0x099c4002", "view", "(uint256)"),
    "getVoterVoteCount(string)": ("0xdfb3c7df", "view", "(uint256)"),
    "getVoterVotes(uint256,string)": ("0x2bdd8ea6", "view", "(string[])"),
    "grantRole(bytes32,address)": ("0x2f2ff15d", "nonpayable", "()"),
    "hasRole(bytes32,address)": ("0x91d14854", "view", "(bool)"),
    "hasSubmittedRoundStageReward(uint256,uint256,address)": ("0x9291fee5", "view", "(bool)"),
    "hasSubmittedRoundStageReward(uint256,uint256,string)": ("0x1fcaf676", "view", "(bool)"),
    "initialize(address)": ("0xc4d66de8", "nonpayable", "()"),
    "proxiableUUID()": ("0x52d1902d", "view", "(bytes32)"),
    "registerPeer(string)": ("0x33e7fb45", "nonpayable", "()"),
    "removeBootnode(uint256)": ("0x4f52ca36", "nonpayable", "()"),
    "revokeRole(bytes32,address)": ("0xd547741f", "nonpayable", "()"),
    "stageCount()": ("0xf33261ac", "pure", "(uint256)"),
    "submitReward(uint256,uint256,int256,string)": ("0x5194e15f", "nonpayable", "()"),
    "submitReward(uint256,uint256,uint256,string)": ("0x06ca2dd3", "nonpayable", "()"),
    "submitWinners(uint256,string[],string)": ("0xfbe94d68", "nonpayable", "()"),
    "uniqueVotedPeers()": ("0x42d2c6a0", "view", "(uint256)"),
    "uniqueVoters()": ("0xb0c77404", "view", "(uint256)"),
    "updateStageAndRound()": ("0xe28b0586", "nonpayable", "(uint256,uint256)"),
    "upgradeToAndCall(address,bytes)": ("0x4f1ef286", "payable", "()"),
    "voterLeaderboard(uint256,uint256)": ("0x18a6fd88", "view", "(string[],uint256[])"),
    "winnerLeaderboard(uint256,uint256)": ("0x2f4be652", "view", "(string[],uint256[])"),
}
EVENTS = {
    "AllBootnodesCleared(address)": ("0x283fdacb5de1271ad7865bfc841f02966aea2bb4d0211745186c12b16a3ce1b8", "*manager"),
    "BootnodeRemoved(address,uint256)": (
        "0x82d82daba96d4df28e6cb421b83d49e88d4e4a448a9e768311afba927487f20c",
        "*manager,index",
    ),
    "BootnodesAdded(address,uint256)": (
        "0xa9a386aeb1871393ce021c503e25c80ac4d26812ec75539a703f472b818b5c6c",
        "*manager,count",
    ),
    "CumulativeRewardsUpdated(address,string,int256)": (
        "0x984ef3ae4724684ba8e48f5e1e384dc71ecf5115bc094785d9399a59daf5d410",
        "*account,peerId,totalRewards",
    ),
    "Initialized(uint64)": ("0xc7f505b2f371ae2175ee4913f4499e1f2633a7b5936321eed1cdaeb6115181d2", "version"),
    "PeerRegistered(address,string)": (
        "0x13ff856599d1c93e876f34e507293c64647043cc0171caa42d35f8015c56455c",
        "*eoa,peerId",
    ),
    "RewardSubmitted(address,uint256,uint256,int256,string)": (
        "0x3d9492e853616bfa85e7c758cbd89efdbe62254e78838c74c160192efa57f25f",
        "*account,*roundNumber,*stageNumber,reward,peerId",
    ),
    "RoleGranted(bytes32,address,address)": (
        "0x2f8788117e7eff1d82e926ec794901d17c78024a50270940304540a733656f0d",
        "*role,*account,*sender",
    ),
    "RoleRevoked(bytes32,address,address)": (
        "0xf6391f5c32d9c69d2a47ea670b442974b53935d1edc7fd64eb21e047a839171b",
        "*role,*account,*sender",
    ),
    "RoundAdvanced(uint256)": ("0x023811fd72d20a3eb734785eed809172b5c9c24019d493039c70ef9c276d4d97", "*newRoundNumber"),
    "StageAdvanced(uint256,uint256)": (
        "0x373b83833fa259ee8a1c96ccea2cb633a5b88dd292e40ff9f8c103d8ce10c577",
        "*roundNumber,newStage",
    ),
    "Upgraded(address)": ("0xbc7cd75a20ee27fd9adebab32041f755214dbc6bffa90cc0225b39da2e5c2d3b", "*implementation"),
    "WinnerSubmitted(address,string,uint256,string[])": (
        "0xc49e95fe7063aa0550cf4b88accd643a2eca314054a882fc705e1874a294aa30",
        "*account,peerId,*roundNumber,winners",
    ),
}
ERRORS = {
    "InvalidBootnodeIndex()": "0x7d8aaf0e",
    "InvalidInitialization()": "0xf92ee8a9",
    "InvalidRoundNumber()": "0x4197f6ea",
    "InvalidStageNumber()": "0xf7d20563",
    "InvalidVote()": "0xd5dd0c66",
    "InvalidVoterPeerId()": "0x1614b50c",
    "OnlyBootnodeManager()": "0x014c1cb5",
    "OnlyOwner()": "0x5fc483c5",
    "PeerIdAlreadyRegistered()": "0x723dc675",
    "RewardAlreadySubmitted()": "0xe39ce02e",
    "UUPSUnauthorizedCallContext()": "0xe07c8dba",
    "WinnerAlreadyVoted()": "0x3d51d827",
}


def entries(kind: str) -> dict[str, dict]:
    return {abi_to_signature(entry): entry for entry in contracts.coordinator()["abi"] if entry["type"] == kind}


@pytest.mark.parametrize("signature", FUNCTIONS)
def test_a_function_of_the_original_is_there(signature):
    selector, mutability, results = FUNCTIONS[signature]
    entry = entries("function")[signature]
    assert "0x" + function_signature_to_4byte_selector(signature).hex() == selector
    assert "(" + ",".join(result["type"] for result in entry["outputs"]) + ")" == results
    reads = entry["stateMutability"] in ("view", "pure")
    assert reads == (mutability in ("view", "pure")) or signature == "initialize(address)"  # which only ever refuses


@pytest.mark.parametrize("signature", EVENTS)
def test_an_event_of_the_original_is_there(signature):
    topic, fields = EVENTS[signature]
    entry = entries("event")[signature]
    assert "0x" + event_signature_to_log_topic(signature).hex() == topic
    assert ",".join("*" * field["indexed"] + field["name"] for field in entry["inputs"]) == fields


@pytest.mark.parametrize("signature", ERRORS)
def test_an_error_that_the_original_shares_has_its_name(signature):
    assert signature in entries("error")
    assert "0x" + function_signature_to_4byte_selector(signature).hex() == ERRORS[signature]


def test_a_bare_name_with_overloads_is_never_the_native_call():
    """A client that takes a name's first overload by accident must not reach one of ours."""
    names = [signature.partition("(")[0] for signature in entries("function")]
    doubled = {name for name in names if names.count(name) > 1}
    assert doubled == {"submitReward", "hasSubmittedRoundStageReward"}
    assert all(signature in FUNCTIONS for signature in entries("function") if signature.partition("(")[0] in doubled)


def test_roles_have_the_values_that_the_original_s_tools_send():
    source = Path(contracts.__file__).with_name("Roles.sol").read_text()
    for role in ("OWNER_ROLE", "STAGE_MANAGER_ROLE", "BOOTNODE_MANAGER_ROLE"):
        assert f'{role} = keccak256("{role}")' in source


def test_the_artifact_is_of_these_sources():
    """Without a compiler at hand; `.ci/run` compares every byte."""
    artifact = contracts.coordinator()
    folder = Path(contracts.__file__).parent
    sources = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.sol")}
    assert artifact["sha256"] == sources, "the sources have changed: make contracts"


def test_the_code_fits_a_chain_and_holds_each_selector():
    runtime = bytes.fromhex(contracts.coordinator()["runtime_bytecode"][2:])
    assert len(runtime) <= 24_576  # EIP-170
    for signature in FUNCTIONS:
        selector = Web3.keccak(text=signature)[:4]
        assert selector.lstrip(b"\0") in runtime, signature
