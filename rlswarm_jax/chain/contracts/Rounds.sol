// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Peers} from "./Peers.sol";

/// @title Rounds, their beacons, and the commitments of each
/// @notice Anyone advances: to the next round after the minimum time if a quorum has committed, or after the maximum time in any
/// case. The quorum is the larger of a fixed number of peers and two thirds of those who committed within the round before: of
/// keys, not of people, so that many made-up keys can hold a round up to its maximum time, and no longer.
///
/// Beacon of round n = keccak256(keccak256(beacon of n - 1, accumulator of commitments when n began), hash of the block after the
/// one in which n began). It is a function of the chain from that block on, and put on record by the first transaction that
/// needs it. Operators cannot predict it; whoever makes that block can choose between the blocks it could make, and whoever
/// advances chooses the moment. The EVM forgets hashes after 256 blocks: if nobody has put the beacon on record by then, nobody
/// can have committed in that round either, and `finalizeBeacon` takes the block after the next one instead. A round that ends so
/// takes zero for the hash; nothing gets stuck.
abstract contract Rounds is Peers {
    struct Rules {
        uint32 minSeconds; // of a round with a quorum
        uint32 maxSeconds; // of any round
        uint32 quorum; // commitments at least
        uint32 window; // past rounds that still take commitments, rewards and votes
        uint64 maxReward; // of one peer for one stage, of either sign
    }

    struct Status {
        uint256 round;
        uint256 stage;
        uint256 started; // seconds since 1970
        uint256 commitments; // within the current round
        uint256 needed; // commitments that make a quorum
        bool advanceable; // by anyone, in the block in which this is asked
        bytes32 beacon; // zero if its block is not there yet, or was lost before it was put on record
        bool recorded;
        uint256 anchor; // the block after this one is the beacon's
        uint256 peers; // proven and attested
    }

    uint256 private constant STAGES = 3;

    uint32 private immutable minSeconds;
    uint32 private immutable maxSeconds;
    uint32 private immutable quorum;
    uint32 private immutable window;
    uint64 internal immutable maxReward;

    /// @dev Of the current round, until its beacon is on record: keccak256(beacon before, accumulator), what only lacks the hash.
    mapping(uint256 round => bytes32) private beacons;
    /// @notice keccak256(root, state before, state after, config hash) of a peer's commitment for a round; zero if none.
    mapping(uint256 round => mapping(address account => bytes32)) public commitmentOf;

    event RoundAdvanced(uint256 indexed newRoundNumber);
    event StageAdvanced(uint256 indexed roundNumber, uint256 newStage);
    event BeaconFinalized(uint256 indexed round, bytes32 beacon);
    event BeaconPostponed(uint256 indexed round, uint256 blockNumber);
    event Committed(
        address indexed account, uint256 indexed round, bytes32 root, bytes32 stateBefore, bytes32 stateAfter, bytes32 configHash
    );

    error InvalidRules();
    error TooEarly();
    error BeaconNotReady();
    error WrongBeacon();
    error InvalidRoundNumber();
    error AlreadyCommitted();
    error EmptyHash();

    constructor(Rules memory given) {
        bool sane = given.maxSeconds >= given.minSeconds && given.maxReward <= uint64(type(int64).max);
        if (!sane || given.maxSeconds == 0 || given.window == 0) revert InvalidRules();
        (minSeconds, maxSeconds, quorum) = (given.minSeconds, given.maxSeconds, given.quorum);
        (window, maxReward) = (given.window, given.maxReward);
        (clock.started, clock.anchor) = (uint64(block.timestamp), uint64(block.number));
        beacons[0] = keccak256(abi.encode("rlswarm_jax beacon 1", block.chainid, address(this)));
    }

    // --- rounds

    /// @notice Goes to the next round, whatever the stage. Anyone may once the rule allows it, a stage manager at any time.
    /// Reverts TooEarly; BeaconNotReady if the beacon's block is not there yet (`finalizeBeacon` mines it on a chain that
    /// makes a block only for a transaction).
    function advanceRound() external {
        _advanceRound();
    }

    /// @notice The original's call: goes to the next stage, or from the last one to the next round. Anyone may once the rule
    /// allows it: each stage has an equal share of the round's minimum time, and after the maximum time the round is over
    /// whatever its stage. A stage manager may at any time. Returns the round and stage it is now. Reverts as `advanceRound`.
    function updateStageAndRound() external returns (uint256, uint256) {
        uint256 next = clock.stage + 1;
        uint256 elapsed = block.timestamp - clock.started;
        if (elapsed >= maxSeconds || next == STAGES) {
            _advanceRound();
        } else {
            if (elapsed * STAGES < minSeconds * next && !_isManager()) revert TooEarly();
            clock.stage = uint8(next);
            emit StageAdvanced(tally.round, next);
        }
        return (tally.round, clock.stage);
    }

    /// @notice Puts the current round's beacon on record if its block's hash can be had, and takes a later block if that hash was
    /// lost. Does nothing if it is on record or too early. Never reverts.
    function finalizeBeacon() external {
        Tally memory sums = tally;
        if (sums.recorded) return;
        if (_finalize(sums, clock.anchor)) {
            tally = sums;
        } else if (block.number > uint256(clock.anchor) + 1) {
            clock.anchor = uint64(block.number);
            emit BeaconPostponed(sums.round, block.number + 1);
        }
    }

    /// @notice Commits the sender to its work of a round, once: the Merkle root of its rollouts, its model's state hash before and
    /// after, and the hash of its config. Current round or `window` rounds back; only the former counts for the quorum.
    /// tag: the first 4 bytes of that round's beacon, so that what was made for a beacon that a reorganisation undid is refused.
    /// Reverts NotRegistered, InvalidRoundNumber, BeaconNotReady (too early, or lost: call `finalizeBeacon`), WrongBeacon,
    /// EmptyHash (a zero root), AlreadyCommitted.
    function commit(
        uint256 round,
        bytes4 tag,
        bytes32 root,
        bytes32 stateBefore,
        bytes32 stateAfter,
        bytes32 configHash
    ) external {
        if (!_isCounted(peers[msg.sender].kind)) revert NotRegistered();
        Tally memory sums = tally;
        _checkWindow(round, sums.round);
        if (root == 0) revert EmptyHash();
        if (commitmentOf[round][msg.sender] != 0) revert AlreadyCommitted();
        if (round == sums.round) {
            if (!sums.recorded && !_finalize(sums, clock.anchor)) revert BeaconNotReady();
            if (tag != sums.tag) revert WrongBeacon();
            sums.commitments++;
        } else if (tag != bytes4(beacons[round])) {
            revert WrongBeacon();
        }
        bytes32 hash = keccak256(abi.encode(root, stateBefore, stateAfter, configHash));
        commitmentOf[round][msg.sender] = hash;
        sums.accumulator = bytes20(keccak256(abi.encode(sums.accumulator, msg.sender, round, hash)));
        tally = sums;
        emit Committed(msg.sender, round, root, stateBefore, stateAfter, configHash);
    }

    // --- views

    function currentRound() external view returns (uint256) {
        return tally.round;
    }

    function currentStage() external view returns (uint256) {
        return clock.stage;
    }

    function stageCount() public pure returns (uint256) {
        return STAGES;
    }

    /// @notice What the swarm was deployed with; nobody can change it.
    function rules() external view returns (Rules memory) {
        return Rules(minSeconds, maxSeconds, quorum, window, maxReward);
    }

    /// @notice A round's beacon, on record or as it will be. Reverts BeaconNotReady (too early, or lost: call `finalizeBeacon`),
    /// InvalidRoundNumber.
    function beacon(uint256 round) external view returns (bytes32) {
        if (round > tally.round) revert InvalidRoundNumber();
        if (round < tally.round || tally.recorded) return beacons[round];
        bytes32 hash = _hashAfter(clock.anchor);
        if (hash == 0) revert BeaconNotReady();
        return keccak256(abi.encode(beacons[round], hash));
    }

    /// @notice All that a client needs to know about the moment, in one call.
    function status() external view returns (Status memory now_) {
        (now_.round, now_.stage, now_.started) = (tally.round, clock.stage, clock.started);
        (now_.commitments, now_.needed) = (tally.commitments, _needed(clock.before));
        (now_.anchor, now_.peers) = (clock.anchor, clock.peers);
        (now_.advanceable, now_.recorded) = (_advanceable(clock, tally), tally.recorded);
        bytes32 hash = _hashAfter(clock.anchor);
        if (now_.recorded) now_.beacon = beacons[now_.round];
        else if (hash != 0) now_.beacon = keccak256(abi.encode(beacons[now_.round], hash));
    }

    /// @notice The accumulator of all commitments so far: accumulator = first 20 bytes of keccak256(accumulator padded to 32
    /// bytes on the right, account, round, commitment), from zero.
    function accumulator() external view returns (bytes20) {
        return tally.accumulator;
    }

    // --- within

    /// @dev Returns the current round. Reverts InvalidRoundNumber for one to come, or further back than the window.
    function _checkRound(uint256 round) internal view returns (uint256 current) {
        current = tally.round;
        _checkWindow(round, current);
    }

    function _checkWindow(uint256 round, uint256 current) private view {
        if (round > current || current - round > window) revert InvalidRoundNumber();
    }

    function _isManager() private view returns (bool) {
        return hasRole[STAGE_MANAGER_ROLE][msg.sender];
    }

    function _needed(uint256 before) private view returns (uint256) {
        uint256 share = (2 * before + 2) / 3;
        return share > quorum ? share : quorum;
    }

    function _advanceable(Clock memory now_, Tally memory sums) private view returns (bool) {
        uint256 elapsed = block.timestamp - now_.started;
        return elapsed >= maxSeconds || (elapsed >= minSeconds && sums.commitments >= _needed(now_.before));
    }

    function _advanceRound() private {
        Clock memory now_ = clock;
        Tally memory sums = tally;
        if (!_advanceable(now_, sums) && !_isManager()) revert TooEarly();
        if (!sums.recorded && !_finalize(sums, now_.anchor)) {
            if (block.number <= uint256(now_.anchor) + 1) revert BeaconNotReady();
            _record(sums, 0);
        }
        uint32 round = sums.round + 1;
        beacons[round] = keccak256(abi.encode(beacons[sums.round], sums.accumulator));
        // field by field: the compiler makes one write of each slot of it
        clock.stage = 0;
        clock.started = uint64(block.timestamp);
        clock.anchor = uint64(block.number);
        clock.before = sums.commitments;
        tally.round = round;
        tally.commitments = 0;
        tally.recorded = false;
        tally.tag = 0;
        emit RoundAdvanced(round);
    }

    /// @dev Zero if the block is not there yet, or further back than the EVM remembers.
    function _hashAfter(uint256 anchor) private view returns (bytes32) {
        return anchor + 1 < block.number ? blockhash(anchor + 1) : bytes32(0);
    }

    /// @dev Records the beacon, if its block's hash can be had; the caller stores `sums`.
    function _finalize(Tally memory sums, uint256 anchor) private returns (bool) {
        bytes32 hash = _hashAfter(anchor);
        if (hash == 0) return false;
        _record(sums, hash);
        return true;
    }

    function _record(Tally memory sums, bytes32 hash) private {
        bytes32 value = keccak256(abi.encode(beacons[sums.round], hash));
        beacons[sums.round] = value;
        (sums.recorded, sums.tag) = (true, bytes4(value));
        emit BeaconFinalized(sums.round, value);
    }
}
