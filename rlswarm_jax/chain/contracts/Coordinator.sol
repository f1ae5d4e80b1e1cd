// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Rounds} from "./Rounds.sol";
import {Roles} from "./Roles.sol";

/// @title Rewards, votes and published weights
/// @notice What counted peers say about rounds they have committed to. Rewards are bounded claims, to be recomputed from the
/// committed records by anyone; the chain does not judge them.
///
/// Existing clients are served with the same calls as the original's, peer ids as text. They never commit. One that has only
/// a claim may go on calling: its `submitReward` and `submitWinners` pass with an `Uncounted` event, and leave no other trace. One
/// that has proven its key is told (NotCommitted), because it could count.
contract Coordinator is Rounds {
    struct Standing {
        address account;
        string peerId;
        Kind kind;
        uint256 registered; // the round
        uint256 wins; // votes received
        uint256 votes; // rounds voted in
        int256 total; // of all rewards
    }

    uint256 public constant MAX_WINNERS = 8;
    uint256 public constant MAX_URI_LENGTH = 256;

    /// @dev What a peer got for a round, in one slot: its reward for stage s in 64 bits from bit 64 * s, whether it submitted it
    /// in bit 192 + s, the votes it received from bit WINS_AT on.
    mapping(uint256 round => mapping(address account => uint256)) private earned;
    uint256 private constant SUBMITTED_AT = 192;
    uint256 private constant WINS_AT = 200;
    /// @dev Up to 8 peers in one slot, each as its index + 1 in 32 bits; zero if the voter has not voted.
    mapping(uint256 round => mapping(address voter => uint256)) private ballots;
    /// @notice The hash of the weights that an account published for a round; zero if none.
    mapping(uint256 round => mapping(address account => bytes32)) public weightsOf;

    event RewardSubmitted(
        address indexed account, uint256 indexed roundNumber, uint256 indexed stageNumber, int256 reward, string peerId
    );
    event CumulativeRewardsUpdated(address indexed account, string peerId, int256 totalRewards);
    event WinnerSubmitted(address indexed account, string peerId, uint256 indexed roundNumber, string[] winners);
    event Uncounted(address indexed account, string peerId, uint256 indexed roundNumber);
    event WeightsPublished(address indexed account, uint256 indexed round, bytes32 weightsHash, string uri);

    error InvalidStageNumber();
    error InvalidVoterPeerId();
    error InvalidVote();
    error NotCommitted();
    error RegisteredTooLate();
    error RewardOutOfBounds();
    error RewardAlreadySubmitted();
    error WinnerAlreadyVoted();
    error WeightsAlreadyPublished();
    error UriTooLong();

    /// @param owner See Roles; may be zero.
    constructor(address owner, Rules memory given) Roles(owner) Rounds(given) {}

    // --- rewards

    /// @notice The sender's reward for a stage of a round, once. Reverts NotRegistered, InvalidRoundNumber (to come, or out of the
    /// window), InvalidStageNumber (none such, or to come), NotCommitted, RewardOutOfBounds, RewardAlreadySubmitted.
    function reward(uint256 round, uint256 stage, int256 amount) external {
        _reward(round, stage, amount, _counterId());
    }

    /// @notice The original's call. Reverts as `reward`, and InvalidVoterPeerId if the id is not the sender's.
    function submitReward(uint256 round, uint256 stage, int256 amount, string calldata peerId) external {
        _submitReward(round, stage, amount, peerId);
    }

    /// @notice As above.
    function submitReward(uint256 round, uint256 stage, uint256 amount, string calldata peerId) external {
        if (amount > maxReward) revert RewardOutOfBounds();
        _submitReward(round, stage, int256(amount), peerId);
    }

    // --- votes

    /// @notice The sender's vote for the winners of a round, once: 1 to MAX_WINNERS accounts in strictly ascending order, all
    /// counted peers other than the sender; they and the sender were registered before that round. Reverts NotRegistered,
    /// InvalidRoundNumber, NotCommitted, RegisteredTooLate, InvalidVote, WinnerAlreadyVoted.
    function vote(uint256 round, address[] calldata winners) external {
        if (winners.length > MAX_WINNERS) revert InvalidVote();
        string memory id = _counterId();
        string[] memory ids = new string[](winners.length);
        for (uint256 i = 0; i < winners.length; i++) {
            if (i > 0 && winners[i] <= winners[i - 1]) revert InvalidVote();
            ids[i] = _idOf(winners[i]);
        }
        _vote(round, winners, ids, id);
    }

    /// @notice The original's call: peer ids in any order. Reverts as `vote`, and InvalidVoterPeerId if the id is not the sender's.
    function submitWinners(uint256 round, string[] calldata winners, string calldata peerId) external {
        if (winners.length == 0 || winners.length > MAX_WINNERS) revert InvalidVote();
        if (_isClaim(peerId)) {
            _checkRound(round);
            emit Uncounted(msg.sender, peerId, round);
            return;
        }
        address[] memory accounts = new address[](winners.length);
        string[] memory ids = new string[](winners.length);
        for (uint256 i = 0; i < winners.length; i++) {
            address account = _counted(winners[i]);
            uint256 spot = i;
            for (; spot > 0 && accounts[spot - 1] > account; spot--) {
                (accounts[spot], ids[spot]) = (accounts[spot - 1], ids[spot - 1]);
            }
            if (spot > 0 && accounts[spot - 1] == account) revert InvalidVote();
            (accounts[spot], ids[spot]) = (account, winners[i]);
        }
        _vote(round, accounts, ids, peerId);
    }

    // --- weights

    /// @notice Puts on record that the sender published the weights with this hash at this URI after a round it committed to,
    /// once. Any round so far. Reverts NotRegistered, InvalidRoundNumber, EmptyHash, NotCommitted, UriTooLong,
    /// WeightsAlreadyPublished.
    function publishWeights(uint256 round, bytes32 weightsHash, string calldata uri) external {
        if (!_isCounted(peers[msg.sender].kind)) revert NotRegistered();
        if (round > tally.round) revert InvalidRoundNumber();
        if (weightsHash == 0) revert EmptyHash();
        if (commitmentOf[round][msg.sender] == 0) revert NotCommitted();
        if (bytes(uri).length > MAX_URI_LENGTH) revert UriTooLong();
        if (weightsOf[round][msg.sender] != 0) revert WeightsAlreadyPublished();
        weightsOf[round][msg.sender] = weightsHash;
        emit WeightsPublished(msg.sender, round, weightsHash, uri);
    }

    // --- views

    /// @notice Peers by index from `start` to before `end`, in the order of registration; at most MAX_PAGE. Reverts PageTooLarge.
    function standings(uint256 start, uint256 end) public view returns (Standing[] memory page) {
        if (end > clock.peers) end = clock.peers;
        if (start > end) start = end;
        if (end - start > MAX_PAGE) revert PageTooLarge();
        page = new Standing[](end - start);
        for (uint256 i = 0; i < page.length; i++) {
            address account = _accountAt(start + i);
            Peer memory peer = peers[account];
            page[i] = Standing(account, _idOf(account), peer.kind, peer.registered, peer.wins, peer.votes, peer.total);
        }
    }

    function getRoundStageReward(uint256 round, uint256 stage, address[] calldata accounts)
        external
        view
        returns (int256[] memory amounts)
    {
        if (stage >= stageCount()) revert InvalidStageNumber();
        amounts = new int256[](accounts.length);
        for (uint256 i = 0; i < accounts.length; i++) {
            amounts[i] = int64(uint64(earned[round][accounts[i]] >> (64 * stage)));
        }
    }

    function getTotalRewards(string[] calldata peerIds) external view returns (int256[] memory totals) {
        totals = new int256[](peerIds.length);
        for (uint256 i = 0; i < peerIds.length; i++) {
            totals[i] = peers[_counted(peerIds[i])].total;
        }
    }

    function hasSubmittedRoundStageReward(uint256 round, uint256 stage, address account) public view returns (bool) {
        return stage < stageCount() && (earned[round][account] >> (SUBMITTED_AT + stage)) & 1 == 1;
    }

    function hasSubmittedRoundStageReward(uint256 round, uint256 stage, string calldata peerId) external view returns (bool) {
        return hasSubmittedRoundStageReward(round, stage, _counted(peerId));
    }

    function getTotalWins(string calldata peerId) external view returns (uint256) {
        return peers[_counted(peerId)].wins;
    }

    function getVoterVoteCount(string calldata peerId) external view returns (uint256) {
        return peers[_counted(peerId)].votes;
    }

    function getPeerVoteCount(uint256 round, string calldata peerId) external view returns (uint256) {
        return earned[round][_counted(peerId)] >> WINS_AT;
    }

    /// @notice The winners a peer voted for, in the order of their accounts.
    function getVoterVotes(uint256 round, string calldata peerId) external view returns (string[] memory winners) {
        uint256 ballot = ballots[round][_counted(peerId)];
        uint256 count = 0;
        while (count < MAX_WINNERS && ballot >> (32 * count) != 0) count++;
        winners = new string[](count);
        for (uint256 i = 0; i < count; i++) {
            winners[i] = _idOf(_accountAt(uint32(ballot >> (32 * i)) - 1));
        }
    }

    function uniqueVoters() external view returns (uint256) {
        return clock.voters;
    }

    function uniqueVotedPeers() external view returns (uint256) {
        return clock.voted;
    }

    /// @notice The peers with these indices that have voted, most votes first: the whole leaderboard while there are at most
    /// MAX_PAGE peers; beyond that, merge pages, or count events. Reverts PageTooLarge.
    function voterLeaderboard(uint256 start, uint256 end) external view returns (string[] memory ids, uint256[] memory counts) {
        return _leaderboard(start, end, false);
    }

    /// @notice As `voterLeaderboard`, for the votes that peers received.
    function winnerLeaderboard(uint256 start, uint256 end) external view returns (string[] memory ids, uint256[] memory counts) {
        return _leaderboard(start, end, true);
    }

    // --- within

    /// @dev The peer id of the sender, which must be counted.
    function _counterId() private view returns (string memory) {
        if (!_isCounted(peers[msg.sender].kind)) revert NotRegistered();
        return _idOf(msg.sender);
    }

    /// @dev Whether an id is no more than a claim of the sender's. Reverts InvalidVoterPeerId if it is not the sender's at all.
    function _isClaim(string calldata peerId) private view returns (bool) {
        bytes32 hash = keccak256(bytes(peerId));
        if (_isCounted(peers[msg.sender].kind) && hash == keccak256(bytes(_idOf(msg.sender)))) return false;
        if (claimants[hash] != msg.sender || _counted(peerId) != address(0)) revert InvalidVoterPeerId();
        return true;
    }

    function _submitReward(uint256 round, uint256 stage, int256 amount, string calldata peerId) private {
        if (_isClaim(peerId)) {
            _checkStage(round, stage);
            emit Uncounted(msg.sender, peerId, round);
        } else {
            _reward(round, stage, amount, peerId);
        }
    }

    function _checkStage(uint256 round, uint256 stage) private view {
        uint256 current = _checkRound(round);
        if (stage >= stageCount() || (round == current && stage > 0 && stage > clock.stage)) revert InvalidStageNumber();
    }

    function _reward(uint256 round, uint256 stage, int256 amount, string memory id) private {
        _checkStage(round, stage);
        if (commitmentOf[round][msg.sender] == 0) revert NotCommitted();
        int256 most = int256(uint256(maxReward));
        if (amount > most || amount < -most) revert RewardOutOfBounds();
        uint256 slot = earned[round][msg.sender];
        if ((slot >> (SUBMITTED_AT + stage)) & 1 == 1) revert RewardAlreadySubmitted();
        uint256 bits = uint256(uint64(int64(amount))) << (64 * stage);
        earned[round][msg.sender] = slot | bits | (1 << (SUBMITTED_AT + stage));
        int112 total = peers[msg.sender].total + int112(amount);
        peers[msg.sender].total = total;
        emit RewardSubmitted(msg.sender, round, stage, amount, id);
        emit CumulativeRewardsUpdated(msg.sender, id, total);
    }

    /// @dev winners: accounts, strictly ascending; ids: theirs.
    function _vote(uint256 round, address[] memory winners, string[] memory ids, string memory id) private {
        _checkRound(round);
        Peer storage voter = peers[msg.sender];
        if (winners.length == 0 || winners.length > MAX_WINNERS) revert InvalidVote();
        if (commitmentOf[round][msg.sender] == 0) revert NotCommitted();
        if (voter.registered >= round) revert RegisteredTooLate();
        if (ballots[round][msg.sender] != 0) revert WinnerAlreadyVoted();
        if (voter.votes++ == 0) clock.voters++;
        uint256 ballot = 0;
        for (uint256 i = 0; i < winners.length; i++) {
            ballot |= (_win(round, winners[i]) + 1) << (32 * i);
        }
        ballots[round][msg.sender] = ballot;
        emit WinnerSubmitted(msg.sender, id, round, ids);
    }

    /// @dev Counts a vote for a peer; returns its index.
    function _win(uint256 round, address winner) private returns (uint256) {
        Peer storage peer = peers[winner];
        if (!_isCounted(peer.kind) || winner == msg.sender) revert InvalidVote();
        if (peer.registered >= round) revert RegisteredTooLate();
        if (peer.wins++ == 0) clock.voted++;
        earned[round][winner] += 1 << WINS_AT;
        return peer.index;
    }

    function _leaderboard(uint256 start, uint256 end, bool wins) private view returns (string[] memory ids, uint256[] memory counts) {
        Standing[] memory page = standings(start, end);
        uint256 found = 0;
        for (uint256 i = 0; i < page.length; i++) {
            if (wins) page[i].votes = page[i].wins;
            if (page[i].votes == 0) continue;
            Standing memory one = page[i];
            uint256 spot = found++;
            for (; spot > 0 && page[spot - 1].votes < one.votes; spot--) {
                page[spot] = page[spot - 1];
            }
            page[spot] = one;
        }
        (ids, counts) = (new string[](found), new uint256[](found));
        for (uint256 i = 0; i < found; i++) {
            (ids[i], counts[i]) = (page[i].peerId, page[i].votes);
        }
    }
}
