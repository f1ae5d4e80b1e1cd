// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Coordinator} from "./Coordinator.sol";

/// @title Stakes on what a coordinator's peers have committed to, and a committee of them that judges a challenge
/// @notice A case asks one thing: was this group of completions, in a record that a settlement covers, sampled as its author says?
/// Any staked peer may ask, with a bond. A committee is drawn from the stakers by the beacon of the round after: who is in it
/// nobody knew when it was asked. The stake of a guilty peer, or the bond of who accused wrongly, pays those of the committee who
/// decided, and half of the rest goes to the other side; the other half goes to nobody, so that to accuse oneself is a loss.
///
/// All times are rounds of the coordinator, so its minimum time bounds them from below. Calls touch no more than a committee and
/// MAX_TRIES stakers. Payments are kept until somebody collects them: no receiver can hold up a case. Nobody owns the court; the
/// coordinator does not know of it and pays nothing: `isPayable` is what whoever pays rewards should ask.
contract Court {
    struct Rules {
        uint96 stake; // wei that a peer stakes at least; in good standing is who has half of it left
        uint96 bond; // wei of a challenge
        uint96 fee; // wei for a member who votes with the majority, at most; and lost by one who does not vote
        uint32 claims; // rounds after its own in which a settlement can be challenged; more than the coordinator's window
        uint32 voting; // whole rounds that a committee has
        uint32 delay; // rounds from asking for a stake to its return; more than claims
        uint8 size; // of a committee
        uint8 quorum; // votes for guilty or not guilty that decide a case
    }

    /// @dev One storage slot.
    struct Peer {
        uint96 stake;
        uint32 since; // the round in which it came to good standing
        uint32 leaving; // the round in which it asked for its stake, and one; zero: it did not
        uint32 held; // open cases in which it is accused, challenger or member
        uint32 slot; // its place among the stakers, from one; zero: it has none
        bool accusing;
    }

    struct Case {
        address accused;
        uint32 round; // of the settlement
        uint32 opened; // the round in which
        uint32 until; // the last round in which members may vote; zero: they are not drawn yet
        address challenger;
        uint32 stakers; // how many there were
        uint32 index; // of the group within the record
        State state;
        bytes32 record; // its content hash
        address[] members;
        Vote[] votes; // of each member
    }

    enum State { None, Open, Guilty, NotGuilty, Undecided }
    enum Vote { None, Abstain, Guilty, NotGuilty }

    struct Standing {
        uint32 open; // cases on an account's settlement of a round
        bool convicted;
    }

    uint256 private constant MAX_SIZE = 15;
    uint256 private constant MAX_TRIES = 48; // stakers looked at for a committee
    uint256 private constant MAX_PROOF = 64; // hashes

    Coordinator public immutable coordinator;
    Rules private terms;
    address[] private stakers; // some may be zero, while cases wait for their beacon
    Case[] private cases;
    uint256 private waiting; // cases whose members are not drawn
    mapping(address account => Peer) public peerOf;
    /// @notice Wei that wait to be collected.
    mapping(address account => uint256) public creditOf;
    /// @notice The number of the case, from one, on keccak256(abi.encode(accused, round, record, index)); zero if there is none,
    /// or it was left undecided.
    mapping(bytes32 question => uint256) public caseOf;
    mapping(uint256 round => mapping(address account => Standing)) public standingOf;

    event Staked(address indexed account, uint256 total);
    event Leaving(address indexed account, uint256 round);
    event Withdrawn(address indexed account, uint256 amount);
    event Challenged(uint256 indexed number, address indexed accused, address indexed challenger, bytes32 record, uint256 index);
    event Drawn(uint256 indexed number, address[] members, uint256 until);
    event Voted(uint256 indexed number, address indexed member, Vote vote);
    event Closed(uint256 indexed number, State state);
    event Missed(uint256 indexed number, address indexed member, uint256 fine);
    event Collected(address indexed account, address indexed to, uint256 amount);

    error WrongCoordinator();
    error InvalidRules();
    error NotRegistered();
    error NotStaked();
    error StakeTooSmall();
    error AlreadyLeaving();
    error Held();
    error WrongBond();
    error SelfChallenge();
    error OneAtATime();
    error AlreadyChallenged();
    error TooFewStakers();
    error NotCommitted();
    error TooLate();
    error TooEarly();
    error NoSuchCase();
    error AlreadyDrawn();
    error NotMember();
    error AlreadyVoted();
    error InvalidVote();
    error NothingToCollect();
    error PaymentRefused();
    error NotEmpty();

    /// @dev Of another contract than this version's coordinator: WrongCoordinator.
    constructor(Coordinator of_, Rules memory given) {
        (bool there, bytes memory status) = address(of_).staticcall(abi.encodeCall(of_.status, ()));
        (bool ruled, bytes memory rules_) = address(of_).staticcall(abi.encodeCall(of_.rules, ()));
        if (!there || !ruled || status.length != 288 || rules_.length != 160) revert WrongCoordinator();
        uint256 least = given.stake < given.bond ? given.stake : given.bond;
        bool sane = given.size > 0 && given.size <= MAX_SIZE && given.quorum > 0 && given.quorum <= given.size;
        sane = sane && given.stake > 0 && given.bond > 0 && 2 * uint256(given.fee) * given.size <= least;
        sane = sane && given.voting > 0 && given.voting < 2 ** 16 && given.claims > of_.rules().window;
        if (!sane || given.delay <= given.claims || given.delay > 2 ** 24) revert InvalidRules();
        (coordinator, terms) = (of_, given);
    }

    // --- stakes

    /// @notice Adds to the sender's stake. Reverts NotRegistered (with the coordinator), AlreadyLeaving, StakeTooSmall.
    function deposit() external payable {
        (bool registered,,,,) = coordinator.peerOf(msg.sender);
        if (!registered) revert NotRegistered();
        Peer storage peer = peerOf[msg.sender];
        if (peer.leaving != 0) revert AlreadyLeaving();
        uint256 total = peer.stake + msg.value;
        if (total < terms.stake || total > type(uint96).max) revert StakeTooSmall();
        if (!_good(peer.stake, terms)) peer.since = _round();
        peer.stake = uint96(total);
        if (peer.slot == 0) {
            stakers.push(msg.sender);
            peer.slot = uint32(stakers.length);
        }
        emit Staked(msg.sender, total);
    }

    /// @notice Asks for the sender's stake, which can be withdrawn `delay` rounds later: until all that it has settled so far can be
    /// challenged no more. From now on it is drawn into no new case. Reverts NotStaked, AlreadyLeaving.
    function quit() external {
        Peer storage peer = peerOf[msg.sender];
        if (peer.slot == 0) revert NotStaked();
        if (peer.leaving != 0) revert AlreadyLeaving();
        peer.leaving = _round() + 1;
        emit Leaving(msg.sender, peer.leaving - 1);
    }

    /// @notice Credits the sender with its stake. Reverts TooEarly, Held (by an open case).
    function withdraw() external {
        Peer storage peer = peerOf[msg.sender];
        if (peer.leaving == 0 || _round() < peer.leaving + terms.delay) revert TooEarly();
        if (peer.held != 0) revert Held();
        uint256 amount = _take(msg.sender);
        creditOf[msg.sender] += amount;
        emit Withdrawn(msg.sender, amount);
    }

    /// @notice Sends an account's credit to where its earnings go. Anyone may. Reverts NothingToCollect, PaymentRefused.
    function collect(address account) external {
        uint256 amount = creditOf[account];
        if (amount == 0) revert NothingToCollect();
        creditOf[account] = 0;
        address to = coordinator.payoutOf(account);
        if (to == address(0)) to = account;
        emit Collected(account, to, amount);
        (bool paid,) = to.call{value: amount}("");
        if (!paid) revert PaymentRefused();
    }

    /// @notice Fills an empty place among the stakers by the last. Reverts Held (cases wait for their beacon), NotEmpty.
    function compact(uint256 place) external {
        if (waiting != 0) revert Held();
        if (stakers[place] != address(0)) revert NotEmpty();
        _fill(place);
    }

    // --- cases

    /// @notice Asks whether group `index` of a record was sampled as `accused` says, who settled `commitment` and `claims` for a
    /// round. proof: RFC 6962's that the record is the leaf at `position` beneath the commitment's root.
    /// Reverts WrongBond (value other than the rule's), SelfChallenge, NotStaked (either side, or the challenger's standing is not
    /// good), OneAtATime (open challenge of a challenger), TooFewStakers, TooLate, NotCommitted, AlreadyChallenged.
    function challenge(
        address accused,
        uint256 round,
        Coordinator.Commitment calldata commitment,
        int64[3] calldata claims,
        bytes32 record,
        uint256 position,
        bytes32[] calldata proof,
        uint32 index
    ) external payable returns (uint256 number) {
        Rules memory rules_ = terms;
        Peer storage challenger = peerOf[msg.sender];
        if (msg.value != rules_.bond) revert WrongBond();
        if (accused == msg.sender) revert SelfChallenge();
        if (!_good(challenger.stake, rules_) || challenger.leaving != 0 || peerOf[accused].stake == 0) revert NotStaked();
        if (challenger.accusing) revert OneAtATime();
        if (stakers.length < uint256(rules_.size) + 2) revert TooFewStakers();
        uint32 now_ = _round();
        if (round + rules_.claims < now_) revert TooLate();
        if (coordinator.settlementOf(round, accused) != keccak256(abi.encode(commitment, claims))) revert NotCommitted();
        if (!_covers(commitment, record, position, proof)) revert NotCommitted();
        bytes32 question = keccak256(abi.encode(accused, round, record, index));
        if (caseOf[question] != 0) revert AlreadyChallenged();
        Case storage one = cases.push();
        number = cases.length;
        caseOf[question] = number;
        (one.accused, one.round, one.opened, one.record) = (accused, uint32(round), now_, record);
        (one.challenger, one.stakers, one.index, one.state) = (msg.sender, uint32(stakers.length), index, State.Open);
        challenger.accusing = true;
        challenger.held++;
        peerOf[accused].held++;
        standingOf[round][accused].open++;
        waiting++;
        emit Challenged(number, accused, msg.sender, record, index);
    }

    /// @notice Draws the committee of a case, once the beacon of the round after its challenge is there; anyone may. With too few to
    /// draw from, or `claims` rounds too late, the case is left undecided. Reverts NoSuchCase (open), AlreadyDrawn, TooEarly, and
    /// the coordinator's BeaconNotReady.
    function draw(uint256 number) external {
        Case storage one = _open(number);
        if (one.until != 0) revert AlreadyDrawn();
        Rules memory rules_ = terms;
        uint32 now_ = _round();
        if (now_ <= one.opened) revert TooEarly();
        waiting--;
        if (now_ > one.opened + 1 + rules_.claims) return _close(number, one, State.Undecided, 0, Vote.None, rules_);
        bytes32 seed = keccak256(abi.encode(coordinator.beacon(one.opened + 1), number));
        (address[] memory found, uint256 count) = _draw(seed, one, rules_);
        if (count < rules_.size) return _close(number, one, State.Undecided, 0, Vote.None, rules_);
        (one.until, one.members, one.votes) = (now_ + rules_.voting, found, new Vote[](count));
        for (uint256 seat = 0; seat < count; seat++) peerOf[found[seat]].held++;
        emit Drawn(number, found, one.until);
    }

    /// @notice The sender's vote, once, from its place within the committee. Reverts NoSuchCase (open), TooEarly, TooLate, NotMember,
    /// NotStaked (any more), AlreadyVoted, InvalidVote.
    function vote(uint256 number, uint256 seat, Vote given) external {
        Case storage one = _open(number);
        if (one.until == 0) revert TooEarly();
        if (_round() > one.until) revert TooLate();
        if (seat >= one.members.length || one.members[seat] != msg.sender) revert NotMember();
        if (peerOf[msg.sender].stake == 0) revert NotStaked();
        if (one.votes[seat] != Vote.None) revert AlreadyVoted();
        if (given == Vote.None) revert InvalidVote();
        one.votes[seat] = given;
        emit Voted(number, msg.sender, given);
    }

    /// @notice Closes a case whose members have all voted, or whose time is over; anyone may. The majority of the votes for guilty or
    /// not guilty decides, if they make the quorum; else, and in a tie, it is undecided: the bond is given back, nobody wins, and
    /// the question can be asked again within `claims`. Who did not vote loses the fee. Reverts NoSuchCase (open), TooEarly.
    function resolve(uint256 number) external {
        Case storage one = _open(number);
        Rules memory rules_ = terms;
        uint256[4] memory count;
        for (uint256 seat = 0; seat < one.votes.length; seat++) count[uint256(one.votes[seat])]++;
        bool over = one.until != 0 && (count[0] == 0 || _round() > one.until);
        if (!over) revert TooEarly();
        (uint256 guilty, uint256 not) = (count[uint256(Vote.Guilty)], count[uint256(Vote.NotGuilty)]);
        if (guilty + not < rules_.quorum || guilty == not) _close(number, one, State.Undecided, 0, Vote.None, rules_);
        else if (guilty > not) _close(number, one, State.Guilty, guilty, Vote.Guilty, rules_);
        else _close(number, one, State.NotGuilty, not, Vote.NotGuilty, rules_);
    }

    // --- reading

    /// @notice Whether what an account claims for a round may be paid: it settled, has had its stake since, in good standing, nobody
    /// can challenge it any more, no challenge of it is open, and none proved right. Ask while the stake is here.
    function isPayable(address account, uint256 round) external view returns (bool) {
        (Peer memory peer, Standing memory standing) = (peerOf[account], standingOf[round][account]);
        bool over = round + terms.claims < _round() && coordinator.settlementOf(round, account) != 0;
        bool staked = peer.slot != 0 && peer.since <= round && _good(peer.stake, terms);
        return over && staked && standing.open == 0 && !standing.convicted;
    }

    function rules() external view returns (Rules memory) {
        return terms;
    }

    /// @notice How many cases there were, and how many stakers there are, with empty places among them.
    function counts() external view returns (uint256 cases_, uint256 stakers_) {
        return (cases.length, stakers.length);
    }

    /// @notice Reverts NoSuchCase.
    function caseAt(uint256 number) external view returns (Case memory) {
        if (number == 0 || number > cases.length) revert NoSuchCase();
        return cases[number - 1];
    }

    // --- within

    function _round() private view returns (uint32) {
        return uint32(coordinator.status().round);
    }

    function _good(uint256 stake, Rules memory rules_) private pure returns (bool) {
        return 2 * stake >= rules_.stake;
    }

    function _open(uint256 number) private view returns (Case storage one) {
        if (number == 0 || number > cases.length) revert NoSuchCase();
        one = cases[number - 1];
        if (one.state != State.Open) revert NoSuchCase();
    }

    /// @dev RFC 9162, section 2.1.3.2.
    function _covers(Coordinator.Commitment calldata commitment, bytes32 record, uint256 position, bytes32[] calldata proof)
        private
        pure
        returns (bool)
    {
        if (position >= commitment.count || proof.length > MAX_PROOF) return false;
        uint256 last = commitment.count - 1;
        bytes32 hash = sha256(abi.encodePacked(hex"00", record));
        for (uint256 i = 0; i < proof.length; i++) {
            if (last == 0) return false;
            if (position & 1 == 1 || position == last) {
                hash = sha256(abi.encodePacked(hex"01", proof[i], hash));
                while (position & 1 == 0 && position != 0) (position, last) = (position >> 1, last >> 1);
            } else {
                hash = sha256(abi.encodePacked(hex"01", hash, proof[i]));
            }
            (position, last) = (position >> 1, last >> 1);
        }
        return last == 0 && hash == commitment.root;
    }

    /// @dev Goes through the places that were there at the challenge in an order of the seed's (Fisher and Yates; what its swaps
    /// would move is kept aside), until a committee is found. Once the seed is known, nobody can make a staker eligible, or another than oneself not.
    function _draw(bytes32 seed, Case storage one, Rules memory rules_)
        private
        view
        returns (address[] memory found, uint256 count)
    {
        uint256 places = one.stakers;
        uint256 tries = places < MAX_TRIES ? places : MAX_TRIES;
        (uint256[] memory swapped, uint256[] memory by) = (new uint256[](tries), new uint256[](tries));
        found = new address[](rules_.size);
        for (uint256 i = 0; i < tries && count < rules_.size; i++) {
            uint256 j = i + uint256(keccak256(abi.encode(seed, i))) % (places - i);
            address candidate = stakers[_at(j, i, swapped, by)];
            (by[i], swapped[i]) = (_at(i, i, swapped, by), j);
            Peer storage peer = peerOf[candidate];
            bool there = peer.since <= one.opened && (peer.leaving == 0 || peer.leaving > one.opened + 1);
            bool party = candidate == one.accused || candidate == one.challenger;
            if (there && !party && _good(peer.stake, rules_)) found[count++] = candidate;
        }
    }

    /// @dev What is at a place after so many swaps.
    function _at(uint256 place, uint256 swaps, uint256[] memory swapped, uint256[] memory by) private pure returns (uint256) {
        for (; swaps > 0; swaps--) if (swapped[swaps - 1] == place) return by[swaps - 1];
        return place;
    }

    /// @dev decided: how many votes like `majority` there were.
    function _close(uint256 number, Case storage one, State state, uint256 decided, Vote majority, Rules memory rules_) private {
        one.state = state;
        (address accused, address challenger, uint256 bond) = (one.accused, one.challenger, rules_.bond);
        Standing storage standing = standingOf[one.round][accused];
        standing.open--;
        peerOf[accused].held--;
        peerOf[challenger].held--;
        peerOf[challenger].accusing = false;
        uint256 taken = 0;
        if (state == State.Guilty) (taken, standing.convicted) = (_take(accused), true);
        if (state == State.NotGuilty) (taken, bond) = (bond, 0);
        if (state == State.Undecided) delete caseOf[keccak256(abi.encode(accused, one.round, one.record, one.index))];
        uint256 fee = taken / (2 * uint256(rules_.size));
        if (fee > rules_.fee) fee = rules_.fee;
        for (uint256 seat = 0; seat < one.members.length; seat++) {
            (address member, Vote given) = (one.members[seat], one.votes[seat]);
            peerOf[member].held--;
            if (given == Vote.None) _fine(number, member, rules_.fee);
            else if (given == majority) creditOf[member] += fee;
        }
        uint256 won = (taken - fee * decided) / 2;
        creditOf[challenger] += bond + (state == State.Guilty ? won : 0);
        if (state == State.NotGuilty) creditOf[accused] += won;
        emit Closed(number, state);
    }

    function _fine(uint256 number, address member, uint96 fine) private {
        Peer storage peer = peerOf[member];
        if (fine > peer.stake) fine = peer.stake;
        peer.stake -= fine;
        emit Missed(number, member, fine);
    }

    /// @dev Takes a peer out of the stakers; its stake.
    function _take(address account) private returns (uint256 amount) {
        Peer storage peer = peerOf[account];
        uint256 place = peer.slot;
        amount = peer.stake;
        (peer.stake, peer.slot, peer.leaving) = (0, 0, 0);
        if (place == 0) return amount;
        stakers[place - 1] = address(0);
        if (waiting == 0) _fill(place - 1);
    }

    function _fill(uint256 place) private {
        address last = stakers[stakers.length - 1];
        stakers[place] = last;
        if (last != address(0)) peerOf[last].slot = uint32(place + 1);
        stakers.pop();
    }
}
