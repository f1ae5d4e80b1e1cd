// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The coordinator of a swarm: who takes part, which round it is, and what each peer says of its work
/// @notice Peers are secp256k1 keys, proven at registration; the libp2p peer id is a function of the key. Once a round a peer
/// settles: it commits to its records, claims what they earned, and votes for others. Claims are bounded, to be recomputed from
/// the committed records by anyone; the chain does not judge them.
///
/// Anyone advances to the next round: after the minimum time if a quorum has settled, or after the maximum time in any case. The
/// quorum is the larger of a fixed number of peers and two thirds of those who settled within the round before: of keys, not of
/// people, so that many made-up keys can hold a round up to its maximum time, and no longer.
///
/// Beacon of round n = keccak256(keccak256(beacon of n - 1, accumulator of settlements when n began), hash of the block after the
/// one in which n began). It is a function of the chain from that block on, and put on record by the first transaction that
/// needs it. Operators cannot predict it; whoever makes that block can choose between the blocks it could make, and whoever
/// advances chooses the moment. The EVM forgets hashes after 256 blocks: if nobody has put the beacon on record by then, nobody
/// can have settled in that round either, and `finalizeBeacon` takes the block after its own instead. A round that ends so takes
/// zero for the hash; nothing gets stuck.
///
/// The owner, if there is one, names the bootnodes, and the next owner. Nobody can change the rules or this code, register,
/// settle or vote for another, or hold up the rounds.
contract Coordinator {
    struct Rules {
        uint32 minSeconds; // of a round with a quorum
        uint32 maxSeconds; // of any round
        uint32 quorum; // settlements at least
        uint32 window; // past rounds that still take settlements
        uint64 maxReward; // of one peer for one stage, of either sign
    }

    /// @dev One storage slot.
    struct Peer {
        bool registered;
        uint32 since; // the round in which it was
        uint32 wins; // votes received
        uint32 votes; // rounds voted in
        int112 total; // of all claims
    }

    struct Registration {
        uint256 x;
        uint256 y;
        address payout;
        uint256 deadline;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// @dev Of a peer's records since its last settlement, in the order of publication: the Merkle root over their content
    /// hashes (RFC 6962), the first and the last of these, and their number; the hash of its model's state before and after
    /// them; and that of what its swarm agreed on.
    struct Commitment {
        bytes32 root;
        bytes32 first;
        bytes32 last;
        uint256 count;
        bytes32 stateBefore;
        bytes32 stateAfter;
        bytes32 config;
    }

    struct Status {
        uint256 round;
        uint256 started; // seconds since 1970
        uint256 settlements; // within the current round
        uint256 needed; // settlements that make a quorum
        bool advanceable; // by anyone, in the block in which this is asked
        bytes32 beacon; // zero if its block is not there yet, or was lost before it was put on record
        bool recorded;
        uint256 anchor; // the block after this one is the beacon's
        uint256 peers;
    }

    /// @dev One storage slot: all that a settlement reads and writes of the swarm's state.
    struct Tally {
        bytes20 accumulator; // of all settlements so far
        uint32 round;
        uint24 settlements; // of the current round within it
        bool recorded; // whether the current round's beacon is
        bytes4 tag; // its first bytes
    }

    /// @dev One storage slot.
    struct Clock {
        uint64 started; // seconds since 1970, of the round
        uint64 anchor; // block after which comes the one whose hash is in the round's beacon
        uint24 before; // settlements made within the previous round
        uint32 peers;
    }

    bytes32 private constant DOMAIN =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant REGISTER = keccak256("Register(address account,address payout,uint256 deadline)");
    uint256 private constant MAX_BATCH = 100; // registrations
    uint256 private constant MAX_WINNERS = 8;
    uint256 private constant MAX_BOOTNODES = 32;
    uint256 private constant MAX_TEXT = 256; // bytes of a bootnode's address or of a URI

    uint32 private immutable minSeconds;
    uint32 private immutable maxSeconds;
    uint32 private immutable quorum;
    uint32 private immutable window;
    uint64 private immutable maxReward;

    Tally private tally;
    Clock private clock;
    address public owner;
    string[] private bootnodes;
    mapping(address account => Peer) public peerOf;
    /// @notice Where an account's earnings go; zero: to the account itself.
    mapping(address account => address) public payoutOf;
    /// @dev Of the current round, until its beacon is on record: keccak256(beacon before, accumulator), what only lacks the hash.
    mapping(uint256 round => bytes32) private beacons;
    /// @notice keccak256(abi.encode(commitment, claims)) of a peer for a round; zero if none.
    mapping(uint256 round => mapping(address account => bytes32)) public settlementOf;
    /// @notice The hash of the weights that a peer published after a round; zero if none.
    mapping(uint256 round => mapping(address account => bytes32)) public weightsOf;

    event Registered(address indexed account, uint256 x, uint256 y);
    event PayoutSet(address indexed account, address indexed payout);
    event RoundAdvanced(uint256 indexed round);
    event BeaconFinalized(uint256 indexed round, bytes32 beacon);
    event BeaconPostponed(uint256 indexed round, uint256 blockNumber);
    event Settled(address indexed account, uint256 indexed round, Commitment commitment, int64[3] claims, address[] winners);
    event WeightsPublished(address indexed account, uint256 indexed round, bytes32 weights, string uri);
    event OwnerSet(address indexed owner);
    event BootnodesSet(string[] bootnodes);

    error InvalidRules();
    error InvalidKey();
    error InvalidSignature();
    error SignatureExpired();
    error TooMany();
    error TextTooLong();
    error AlreadyRegistered();
    error NotRegistered();
    error OnlyPayout();
    error OnlyOwner();
    error TooEarly();
    error BeaconNotReady();
    error WrongBeacon();
    error InvalidRound();
    error InvalidCommitment();
    error InvalidVote();
    error RewardOutOfBounds();
    error AlreadySettled();
    error NotSettled();
    error AlreadyPublished();

    /// @param first The owner; may be zero: a swarm that nobody owns.
    constructor(address first, Rules memory given) {
        bool sane = given.maxSeconds >= given.minSeconds && given.maxReward <= uint64(type(int64).max);
        if (!sane || given.maxSeconds == 0 || given.window == 0) revert InvalidRules();
        (minSeconds, maxSeconds, quorum) = (given.minSeconds, given.maxSeconds, given.quorum);
        (window, maxReward) = (given.window, given.maxReward);
        (clock.started, clock.anchor) = (uint64(block.timestamp), uint64(block.number));
        beacons[0] = keccak256(abi.encode("rlswarm_jax beacon 1", block.chainid, address(this)));
        owner = first;
        emit OwnerSet(first);
    }

    // --- peers

    /// @notice Registers the sender by its own key, the point (x, y), whose hash its account is. Reverts InvalidKey,
    /// AlreadyRegistered.
    function register(uint256 x, uint256 y) external {
        if (_account(x, y) != msg.sender) revert InvalidKey();
        if (peerOf[msg.sender].registered) revert AlreadyRegistered();
        _register(msg.sender, x, y);
    }

    /// @notice Registers other accounts, each by its EIP-712 signature of Register(account, payout, deadline) in the domain of
    /// name "rlswarm_jax coordinator", version "2", this chain and this contract, so that a node needs no funds. Those that are
    /// registered by now are passed over, so that nobody can spoil a batch; a payout address that is in force by now stays.
    /// Reverts TooMany (than MAX_BATCH), InvalidSignature, SignatureExpired.
    function registerFor(Registration[] calldata batch) external {
        if (batch.length > MAX_BATCH) revert TooMany();
        (bytes32 name, bytes32 version) = (keccak256("rlswarm_jax coordinator"), keccak256("2"));
        bytes32 domain = keccak256(abi.encode(DOMAIN, name, version, block.chainid, address(this)));
        for (uint256 i = 0; i < batch.length; i++) {
            Registration calldata one = batch[i];
            address account = _account(one.x, one.y);
            if (peerOf[account].registered) continue;
            bytes32 signed = keccak256(abi.encode(REGISTER, account, one.payout, one.deadline));
            bytes32 digest = keccak256(abi.encodePacked(hex"1901", domain, signed));
            if (ecrecover(digest, one.v, one.r, one.s) != account) revert InvalidSignature();
            if (block.timestamp > one.deadline) revert SignatureExpired();
            _register(account, one.x, one.y);
            if (one.payout != address(0) && payoutOf[account] == address(0)) _setPayout(account, one.payout);
        }
    }

    /// @notice Names the address that `account`'s earnings go to. The account itself names the first, and from then on only the
    /// address in force its successor: who steals a node's key cannot turn its earnings away. Reverts OnlyPayout.
    function setPayout(address account, address payout) external {
        address current = payoutOf[account];
        if (msg.sender != (current == address(0) ? account : current)) revert OnlyPayout();
        _setPayout(account, payout);
    }

    // --- settlements

    /// @notice All that the sender has to say of a round, once: what it commits to, what its records of each stage earned, and its
    /// votes, 0 to MAX_WINNERS accounts in strictly ascending order without itself. Current round or `window` rounds back; only
    /// the former counts for the quorum. Votes count between peers that were registered before that round; others have no effect,
    /// and are not in the event.
    /// tag: the first 4 bytes of that round's beacon, so that what was made for a beacon that a reorganisation undid is refused.
    /// Reverts NotRegistered, InvalidRound, BeaconNotReady (too early, or lost: call `finalizeBeacon`), WrongBeacon,
    /// InvalidCommitment (to nothing), RewardOutOfBounds, InvalidVote, AlreadySettled.
    function settle(
        uint256 round,
        bytes4 tag,
        Commitment calldata commitment,
        int64[3] calldata claims,
        address[] calldata winners
    ) external {
        Peer memory peer = peerOf[msg.sender];
        if (!peer.registered) revert NotRegistered();
        if (settlementOf[round][msg.sender] != 0) revert AlreadySettled();
        if (commitment.root == 0 || commitment.count == 0) revert InvalidCommitment();
        bytes32 hash = keccak256(abi.encode(commitment, claims));
        settlementOf[round][msg.sender] = hash;
        _count(round, tag, hash);
        int64 most = int64(maxReward);
        for (uint256 stage = 0; stage < 3; stage++) {
            if (claims[stage] > most || claims[stage] < -most) revert RewardOutOfBounds();
            peer.total += claims[stage];
        }
        address[] memory elected = _elect(round, peer.since, winners);
        if (elected.length > 0) peer.votes++;
        peerOf[msg.sender] = peer;
        emit Settled(msg.sender, round, commitment, claims, elected);
    }

    /// @notice Puts on record that the sender published the weights with this hash at this URI after a round it settled, once. Any
    /// round so far. Reverts NotSettled, InvalidCommitment (a zero hash), TextTooLong, AlreadyPublished.
    function publishWeights(uint256 round, bytes32 weights, string calldata uri) external {
        if (settlementOf[round][msg.sender] == 0) revert NotSettled();
        if (weights == 0) revert InvalidCommitment();
        if (bytes(uri).length > MAX_TEXT) revert TextTooLong();
        if (weightsOf[round][msg.sender] != 0) revert AlreadyPublished();
        weightsOf[round][msg.sender] = weights;
        emit WeightsPublished(msg.sender, round, weights, uri);
    }

    // --- rounds

    /// @notice Goes to the next round; anyone may once the rule allows it. Reverts TooEarly; BeaconNotReady if the beacon's block
    /// is not there yet (`finalizeBeacon` mines it on a chain that makes a block only for a transaction).
    function advanceRound() external {
        (Clock memory now_, Tally memory sums) = (clock, tally);
        if (!_advanceable(now_, sums)) revert TooEarly();
        if (!_finalize(sums, true)) revert BeaconNotReady();
        uint32 round = sums.round + 1;
        beacons[round] = keccak256(abi.encode(beacons[sums.round], sums.accumulator));
        clock = Clock(uint64(block.timestamp), uint64(block.number), sums.settlements, now_.peers);
        tally = Tally(sums.accumulator, round, 0, false, 0);
        emit RoundAdvanced(round);
    }

    /// @notice Puts the current round's beacon on record if its block's hash can be had, and takes the block after this one if
    /// that hash was lost. Does nothing if it is on record or too early. Never reverts.
    function finalizeBeacon() external {
        Tally memory sums = tally;
        if (sums.recorded) return;
        if (_finalize(sums, false)) {
            tally = sums;
        } else if (_due()) {
            clock.anchor = uint64(block.number);
            emit BeaconPostponed(sums.round, block.number + 1);
        }
    }

    /// @notice What the swarm was deployed with; nobody can change it.
    function rules() external view returns (Rules memory) {
        return Rules(minSeconds, maxSeconds, quorum, window, maxReward);
    }

    /// @notice A round's beacon, on record or as it will be. Reverts BeaconNotReady (too early, or lost: call `finalizeBeacon`),
    /// InvalidRound.
    function beacon(uint256 round) external view returns (bytes32 value) {
        if (round > tally.round) revert InvalidRound();
        value = _beacon(round);
        if (value == 0) revert BeaconNotReady();
    }

    /// @notice All that a client needs to know about the moment, in one call.
    function status() external view returns (Status memory now_) {
        (now_.round, now_.started, now_.anchor) = (tally.round, clock.started, clock.anchor);
        (now_.settlements, now_.needed, now_.peers) = (tally.settlements, _needed(clock.before), clock.peers);
        (now_.advanceable, now_.recorded) = (_advanceable(clock, tally), tally.recorded);
        now_.beacon = _beacon(now_.round);
    }

    /// @notice The accumulator of all settlements so far: accumulator = first 20 bytes of keccak256(accumulator padded to 32
    /// bytes on the right, account, round, settlement), from zero.
    function accumulator() external view returns (bytes20) {
        return tally.accumulator;
    }

    // --- the owner

    /// @notice Names the next owner; zero: none any more. Reverts OnlyOwner.
    function setOwner(address next) external {
        if (msg.sender != owner) revert OnlyOwner();
        owner = next;
        emit OwnerSet(next);
    }

    /// @notice Replaces the addresses at which to enter the swarm. Reverts OnlyOwner, TooMany, TextTooLong.
    function setBootnodes(string[] calldata given) external {
        if (msg.sender != owner) revert OnlyOwner();
        if (given.length > MAX_BOOTNODES) revert TooMany();
        delete bootnodes;
        for (uint256 i = 0; i < given.length; i++) {
            if (bytes(given[i]).length > MAX_TEXT) revert TextTooLong();
            bootnodes.push(given[i]);
        }
        emit BootnodesSet(given);
    }

    function getBootnodes() external view returns (string[] memory) {
        return bootnodes;
    }

    // --- within

    function _account(uint256 x, uint256 y) private pure returns (address) {
        return address(uint160(uint256(keccak256(abi.encode(x, y)))));
    }

    function _register(address account, uint256 x, uint256 y) private {
        clock.peers++;
        peerOf[account] = Peer(true, tally.round, 0, 0, 0);
        emit Registered(account, x, y);
    }

    function _setPayout(address account, address payout) private {
        payoutOf[account] = payout;
        emit PayoutSet(account, payout);
    }

    /// @dev Counts the sender's settlement for a round.
    function _count(uint256 round, bytes4 tag, bytes32 hash) private {
        Tally memory sums = tally;
        if (round > sums.round || sums.round - round > window) revert InvalidRound();
        bool current = round == sums.round;
        if (current && !_finalize(sums, false)) revert BeaconNotReady();
        if (tag != (current ? sums.tag : bytes4(beacons[round]))) revert WrongBeacon();
        if (current) sums.settlements++;
        sums.accumulator = bytes20(keccak256(abi.encode(sums.accumulator, msg.sender, round, hash)));
        tally = sums;
    }

    /// @dev Counts the sender's votes; returns those that count.
    function _elect(uint256 round, uint256 since, address[] calldata winners) private returns (address[] memory elected) {
        if (winners.length > MAX_WINNERS) revert InvalidVote();
        elected = new address[](winners.length);
        uint256 found = 0;
        for (uint256 i = 0; i < winners.length; i++) {
            address winner = winners[i];
            if (winner == msg.sender || (i > 0 && winner <= winners[i - 1])) revert InvalidVote();
            Peer storage peer = peerOf[winner];
            if (!peer.registered || peer.since >= round || since >= round) continue;
            peer.wins++;
            elected[found++] = winner;
        }
        assembly ("memory-safe") {
            mstore(elected, found)
        }
    }

    function _needed(uint256 before) private view returns (uint256) {
        uint256 share = (2 * before + 2) / 3;
        return share > quorum ? share : quorum;
    }

    function _advanceable(Clock memory now_, Tally memory sums) private view returns (bool) {
        uint256 elapsed = block.timestamp - now_.started;
        return elapsed >= maxSeconds || (elapsed >= minSeconds && sums.settlements >= _needed(now_.before));
    }

    /// @dev A round's beacon; zero if its block is not there yet, or further back than the EVM remembers.
    function _beacon(uint256 round) private view returns (bytes32) {
        if (round < tally.round || tally.recorded) return beacons[round];
        bytes32 hash = blockhash(uint256(clock.anchor) + 1);
        return hash == 0 ? hash : keccak256(abi.encode(beacons[round], hash));
    }

    /// @dev Whether the block of the current round's beacon is there, remembered or not.
    function _due() private view returns (bool) {
        return block.number > uint256(clock.anchor) + 1;
    }

    /// @dev Puts the current round's beacon on record if it is not and can be, with zero for a hash that was lost if the round
    /// `ends`; the caller stores `sums`.
    function _finalize(Tally memory sums, bool ends) private returns (bool) {
        if (sums.recorded) return true;
        bytes32 value = _beacon(sums.round);
        if (value == 0 && ends && _due()) value = keccak256(abi.encode(beacons[sums.round], bytes32(0)));
        if (value == 0) return false;
        beacons[sums.round] = value;
        (sums.recorded, sums.tag) = (true, bytes4(value));
        emit BeaconFinalized(sums.round, value);
        return true;
    }
}
