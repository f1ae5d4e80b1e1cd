// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PeerId} from "./PeerId.sol";
import {Roles} from "./Roles.sol";

/// @title Who takes part
/// @notice Three classes. Proven: the peer id holds the secp256k1 key whose account registered, checked here. Attested: the id
/// is of another type of key; the account's signature is checked here and that of the peer's key is emitted for anyone to check.
/// Claimed: a name somebody called; it shows in the original's views and counts for nothing. A proof or an attestation displaces
/// a claim. Proven and attested peers are "counted": they commit, are rewarded, vote and make up the quorum.
abstract contract Peers is Roles {
    enum Kind {
        None,
        Proven,
        Attested,
        Struck
    }

    /// @dev One storage slot.
    struct Peer {
        Kind kind;
        bool odd; // of the key's y coordinate
        uint32 index; // in the order of registration
        uint32 registered; // the round in which it was
        uint32 wins; // votes received
        uint32 votes; // rounds voted in
        int112 total; // of all rewards
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

    struct Attestation {
        address account;
        string peerId;
        uint256 deadline;
        bytes publicKey;
        bytes peerSignature;
        bytes accountSignature; // r, s, v
    }

    /// @dev One storage slot: all that a commitment reads and writes of the swarm's state.
    struct Tally {
        bytes20 accumulator; // of all commitments so far
        uint32 round;
        uint24 commitments; // of the current round within it
        bool recorded; // whether the current round's beacon is
        bytes4 tag; // its first bytes
    }

    /// @dev One storage slot.
    struct Clock {
        uint8 stage;
        uint64 started; // seconds since 1970, of the round
        uint64 anchor; // block after which comes the one whose hash is in the round's beacon
        uint24 before; // commitments made within the previous round
        uint32 peers;
        uint32 voters;
        uint32 voted;
    }

    bytes32 public constant REGISTER_TYPEHASH = keccak256("Register(address account,address payout,uint256 deadline)");
    bytes32 public constant ATTEST_TYPEHASH = keccak256("Attest(address account,string peerId,uint256 deadline)");
    uint256 public constant MAX_PEER_ID_LENGTH = 128;
    uint256 public constant MAX_PROOF_LENGTH = 2048;
    uint256 public constant MAX_CLAIMS = 8;
    uint256 public constant MAX_PAGE = 100;

    Tally internal tally;
    Clock internal clock;
    mapping(address account => Peer) internal peers;
    /// @dev By index. A proven peer's x coordinate, an attested one's account.
    mapping(uint256 index => uint256) internal keys;
    mapping(address account => string) internal attestedIds;
    mapping(bytes32 idHash => address) internal attesters;
    mapping(bytes32 idHash => address) internal claimants;
    mapping(address account => string[]) internal claims;
    /// @notice Where an account's earnings go; zero: to the account itself.
    mapping(address account => address) public payoutOf;

    event PeerRegistered(address indexed eoa, string peerId);
    event PeerAttested(address indexed account, Attestation attestation);
    event AttestationStruck(address indexed account, string peerId);
    event PayoutSet(address indexed account, address indexed payout);

    error PeerIdAlreadyRegistered();
    error InvalidPeerId();
    error TooManyClaims();
    error NotTheSendersKey();
    error InvalidSignature();
    error SignatureExpired();
    error ProofTooLong();
    error NotRegistered();
    error NotAttested();
    error OnlyPayout();
    error PageTooLarge();

    // --- registration

    /// @notice Registers the sender under the peer id of its own key (x, y). Reverts NotTheSendersKey, or
    /// PeerIdAlreadyRegistered if it is registered.
    function registerKey(uint256 x, uint256 y) external {
        if (PeerId.account(x, y) != msg.sender || !PeerId.onCurve(x, y)) revert NotTheSendersKey();
        if (peers[msg.sender].kind != Kind.None) revert PeerIdAlreadyRegistered();
        _prove(msg.sender, x, y & 1 == 1);
    }

    /// @notice Registers other accounts, each by its EIP-712 signature of Register(account, payout, deadline), so that a node
    /// needs no funds. Those that are registered by now are passed over, so that nobody can spoil a batch.
    /// At most MAX_PAGE. Reverts InvalidSignature, SignatureExpired.
    function registerKeys(Registration[] calldata batch) external {
        if (batch.length > MAX_PAGE) revert PageTooLarge();
        for (uint256 i = 0; i < batch.length; i++) {
            Registration calldata one = batch[i];
            address account = PeerId.account(one.x, one.y);
            bytes32 digest = _digest(keccak256(abi.encode(REGISTER_TYPEHASH, account, one.payout, one.deadline)));
            if (!PeerId.onCurve(one.x, one.y) || ecrecover(digest, one.v, one.r, one.s) != account) revert InvalidSignature();
            if (block.timestamp > one.deadline) revert SignatureExpired();
            if (peers[account].kind != Kind.None) continue;
            _prove(account, one.x, one.y & 1 == 1);
            if (one.payout != address(0)) _setPayout(account, one.payout);
        }
    }

    /// @notice The original's registration. The peer id of the sender's own secp256k1 key is proven by that; any other text
    /// becomes a claim, of which an account has at most MAX_CLAIMS. Reverts PeerIdAlreadyRegistered, InvalidPeerId (empty or
    /// too long), TooManyClaims.
    function registerPeer(string calldata peerId) external {
        (address keyOwner, uint256 x, bool odd) = _keyOf(peerId);
        if (keyOwner != address(0) && peers[keyOwner].kind == Kind.Proven) revert PeerIdAlreadyRegistered();
        if (keyOwner == msg.sender && peers[msg.sender].kind == Kind.None) {
            return _prove(msg.sender, x, odd);
        }
        bytes32 hash = keccak256(bytes(peerId));
        if (attesters[hash] != address(0) || claimants[hash] != address(0)) revert PeerIdAlreadyRegistered();
        _checkId(peerId);
        if (claims[msg.sender].length >= MAX_CLAIMS) revert TooManyClaims();
        claimants[hash] = msg.sender;
        claims[msg.sender].push(peerId);
        emit PeerRegistered(msg.sender, peerId);
    }

    /// @notice Registers an account under the id of another type of key. The account signs the EIP-712 struct
    /// Attest(account, peerId, deadline), which is checked here; the peer's key signs the 32 bytes of the same digest, which anyone
    /// can check from the event. Reverts InvalidPeerId (empty, too long, or of a secp256k1 key: prove that),
    /// PeerIdAlreadyRegistered, ProofTooLong, InvalidSignature, SignatureExpired.
    function attestPeer(Attestation calldata given) external {
        _checkId(given.peerId);
        (address keyOwner,,) = _keyOf(given.peerId);
        if (keyOwner != address(0)) revert InvalidPeerId();
        if (given.publicKey.length + given.peerSignature.length > MAX_PROOF_LENGTH) revert ProofTooLong();
        if (block.timestamp > given.deadline) revert SignatureExpired();
        bytes32 hash = keccak256(bytes(given.peerId));
        _checkAttestation(given, hash);
        if (attesters[hash] != address(0) || peers[given.account].kind != Kind.None) revert PeerIdAlreadyRegistered();
        attesters[hash] = given.account;
        attestedIds[given.account] = given.peerId;
        _add(given.account, Kind.Attested, false, uint160(given.account));
        emit PeerRegistered(given.account, given.peerId);
        emit PeerAttested(given.account, given);
    }

    /// @notice For the owner, once somebody has shown that the peer's signature does not hold: the account counts no more, for
    /// good, and the id is free. What it did before stays on record.
    function strikeAttestation(address account) external onlyOwner {
        Peer storage peer = peers[account];
        if (peer.kind != Kind.Attested) revert NotAttested();
        peer.kind = Kind.Struck;
        string memory id = attestedIds[account];
        delete attesters[keccak256(bytes(id))];
        emit AttestationStruck(account, id);
    }

    /// @notice Names the address that `account`'s earnings go to. The account itself names the first, and from then on only the
    /// address in force its successor: who steals a node's key cannot turn its earnings away. Reverts OnlyPayout.
    function setPayout(address account, address payout) external {
        address current = payoutOf[account];
        if (msg.sender != (current == address(0) ? account : current)) revert OnlyPayout();
        _setPayout(account, payout);
    }

    // --- views

    /// @notice The accounts behind peer ids; zero where there is none.
    function getEoa(string[] calldata peerIds) external view returns (address[] memory accounts) {
        accounts = new address[](peerIds.length);
        for (uint256 i = 0; i < peerIds.length; i++) {
            accounts[i] = _counted(peerIds[i]);
            if (accounts[i] == address(0)) accounts[i] = claimants[keccak256(bytes(peerIds[i]))];
        }
    }

    /// @notice The peer ids of accounts: first the proven or attested one, then the claims that nothing has displaced.
    function getPeerId(address[] calldata accounts) external view returns (string[][] memory ids) {
        ids = new string[][](accounts.length);
        for (uint256 i = 0; i < accounts.length; i++) {
            ids[i] = _idsOf(accounts[i]);
        }
    }

    /// @notice What is known of an account; `peerId` is empty if it is neither proven nor attested.
    function peerOf(address account) external view returns (Peer memory peer, string memory peerId) {
        return (peers[account], _idOf(account));
    }

    /// @notice The EIP-712 domain separator: name "rlswarm_jax coordinator", version "1", this chain, this contract.
    function domainSeparator() public view returns (bytes32) {
        bytes32 domain = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
        return keccak256(abi.encode(domain, keccak256("rlswarm_jax coordinator"), keccak256("1"), block.chainid, address(this)));
    }

    // --- within

    function _prove(address account, uint256 x, bool odd) private {
        _add(account, Kind.Proven, odd, x);
        emit PeerRegistered(account, PeerId.encode(x, odd));
    }

    function _add(address account, Kind kind, bool odd, uint256 key) private {
        uint32 index = clock.peers++;
        peers[account] = Peer(kind, odd, index, tally.round, 0, 0, 0);
        keys[index] = key;
    }

    function _setPayout(address account, address payout) private {
        payoutOf[account] = payout;
        emit PayoutSet(account, payout);
    }

    function _checkId(string calldata peerId) private pure {
        if (bytes(peerId).length == 0 || bytes(peerId).length > MAX_PEER_ID_LENGTH) revert InvalidPeerId();
    }

    function _checkAttestation(Attestation calldata given, bytes32 hash) private view {
        bytes calldata signature = given.accountSignature;
        if (signature.length != 65 || given.account == address(0)) revert InvalidSignature();
        bytes32 digest = _digest(keccak256(abi.encode(ATTEST_TYPEHASH, given.account, hash, given.deadline)));
        address signer = ecrecover(digest, uint8(signature[64]), bytes32(signature[:32]), bytes32(signature[32:64]));
        if (signer != given.account) revert InvalidSignature();
    }

    function _digest(bytes32 structHash) private view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domainSeparator(), structHash));
    }

    function _isCounted(Kind kind) internal pure returns (bool) {
        return kind == Kind.Proven || kind == Kind.Attested;
    }

    /// @dev The secp256k1 key that a peer id holds, and its account, registered or not; zero if it holds none.
    function _keyOf(string memory peerId) private view returns (address owner, uint256 x, bool odd) {
        bool valid;
        uint256 y;
        (valid, x, odd) = PeerId.decode(peerId);
        if (!valid) return (address(0), 0, false);
        (valid, y) = PeerId.lift(x, odd);
        if (valid) owner = PeerId.account(x, y);
    }

    /// @dev The counted peer behind an id; zero if there is none.
    function _counted(string memory peerId) internal view returns (address account) {
        (account,,) = _keyOf(peerId);
        if (account == address(0)) return attesters[keccak256(bytes(peerId))];
        if (peers[account].kind != Kind.Proven) return address(0);
    }

    /// @dev The account of a registered index: it follows from the x coordinate, by trying both signs of y.
    function _accountAt(uint256 index) internal view returns (address account) {
        uint256 key = keys[index];
        (bool valid, uint256 y) = PeerId.lift(key, false);
        if (valid) {
            account = PeerId.account(key, y);
            if (peers[account].kind == Kind.Proven && peers[account].index == index) return account;
            (, y) = PeerId.lift(key, true);
            account = PeerId.account(key, y);
            if (peers[account].kind == Kind.Proven && peers[account].index == index) return account;
        }
        return address(uint160(key));
    }

    function _idOf(address account) internal view returns (string memory) {
        Peer storage peer = peers[account];
        if (peer.kind == Kind.Proven) return PeerId.encode(keys[peer.index], peer.odd);
        return attestedIds[account];
    }

    function _idsOf(address account) private view returns (string[] memory ids) {
        string[] storage claimed = claims[account];
        string[] memory found = new string[](claimed.length + 1);
        uint256 count = 0;
        if (_isCounted(peers[account].kind)) found[count++] = _idOf(account);
        for (uint256 i = 0; i < claimed.length; i++) {
            if (_counted(claimed[i]) == address(0)) found[count++] = claimed[i];
        }
        ids = new string[](count);
        for (uint256 i = 0; i < count; i++) {
            ids[i] = found[i];
        }
    }
}
