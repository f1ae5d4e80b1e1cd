// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice Stands in for the original's coordinator, version 0.4.2, in tests: the calls that a node makes, with their
/// selectors and events, and no more. No role advances it; it keeps no leaderboard.
contract Original042 {
    uint256 public currentRound;
    uint256 public currentStage;
    mapping(string peerId => address) internal eoaOf;
    mapping(uint256 round => mapping(uint256 stage => mapping(address account => bool))) internal submitted;
    mapping(uint256 round => mapping(uint256 stage => mapping(address account => int256))) internal rewards;
    mapping(uint256 round => mapping(string voter => string[])) internal votes;

    event PeerRegistered(address indexed eoa, string peerId);
    event RewardSubmitted(
        address indexed account, uint256 indexed roundNumber, uint256 indexed stageNumber, int256 reward, string peerId
    );
    event WinnerSubmitted(address indexed account, string peerId, uint256 indexed roundNumber, string[] winners);
    event StageAdvanced(uint256 indexed roundNumber, uint256 newStage);
    event RoundAdvanced(uint256 indexed newRoundNumber);

    error PeerIdAlreadyRegistered();
    error InvalidRoundNumber();
    error InvalidStageNumber();
    error InvalidVoterPeerId();
    error RewardAlreadySubmitted();
    error WinnerAlreadyVoted();

    function registerPeer(string calldata peerId) external {
        if (eoaOf[peerId] != address(0)) revert PeerIdAlreadyRegistered();
        eoaOf[peerId] = msg.sender;
        emit PeerRegistered(msg.sender, peerId);
    }

    function getEoa(string[] calldata peerIds) external view returns (address[] memory accounts) {
        accounts = new address[](peerIds.length);
        for (uint256 i = 0; i < peerIds.length; i++) accounts[i] = eoaOf[peerIds[i]];
    }

    function submitReward(uint256 round, uint256 stage, int256 reward, string calldata peerId) external {
        _submit(round, stage, reward, peerId);
    }

    function submitWinners(uint256 round, string[] calldata winners, string calldata peerId) external {
        if (round > currentRound) revert InvalidRoundNumber();
        if (eoaOf[peerId] != msg.sender) revert InvalidVoterPeerId();
        if (votes[round][peerId].length > 0) revert WinnerAlreadyVoted();
        votes[round][peerId] = winners;
        emit WinnerSubmitted(msg.sender, peerId, round, winners);
    }

    function getVoterVotes(uint256 round, string calldata peerId) external view returns (string[] memory) {
        return votes[round][peerId];
    }

    function getRoundStageReward(uint256 round, uint256 stage, address[] calldata accounts)
        external
        view
        returns (int256[] memory found)
    {
        found = new int256[](accounts.length);
        for (uint256 i = 0; i < accounts.length; i++) found[i] = rewards[round][stage][accounts[i]];
    }

    function hasSubmittedRoundStageReward(uint256 round, uint256 stage, address account) external view returns (bool) {
        return submitted[round][stage][account];
    }

    function updateStageAndRound() external returns (uint256, uint256) {
        if (currentStage < 2) {
            currentStage++;
            emit StageAdvanced(currentRound, currentStage);
        } else {
            (currentStage, currentRound) = (0, currentRound + 1);
            emit RoundAdvanced(currentRound);
        }
        return (currentRound, currentStage);
    }

    function _submit(uint256 round, uint256 stage, int256 reward, string calldata peerId) internal {
        if (round > currentRound) revert InvalidRoundNumber();
        if (stage > currentStage) revert InvalidStageNumber();
        if (eoaOf[peerId] != msg.sender) revert InvalidVoterPeerId();
        if (submitted[round][stage][msg.sender]) revert RewardAlreadySubmitted();
        submitted[round][stage][msg.sender] = true;
        rewards[round][stage][msg.sender] = reward;
        emit RewardSubmitted(msg.sender, round, stage, reward, peerId);
    }
}
