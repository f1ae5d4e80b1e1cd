// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The owner's roles and the swarm's bootnodes
/// @notice The owner can: grant and revoke the three roles; strike out an attestation whose signatures do not hold (Peers).
/// A stage manager can advance stages and rounds before their time; nobody holds that role unless the owner grants it, and
/// without it, rounds advance all the same. A bootnode manager keeps the list of bootnodes.
/// No role can: change the rules (they are fixed at deployment), change this code (there is no upgrade), register a peer for
/// another, commit, reward or vote for another, touch a proven peer, or hold up the rounds.
abstract contract Roles {
    bytes32 public constant OWNER_ROLE = keccak256("OWNER_ROLE");
    bytes32 public constant STAGE_MANAGER_ROLE = keccak256("STAGE_MANAGER_ROLE");
    bytes32 public constant BOOTNODE_MANAGER_ROLE = keccak256("BOOTNODE_MANAGER_ROLE");
    /// @notice That of the original's upgrade interface. This contract is not behind a proxy: see `upgradeToAndCall`.
    string public constant UPGRADE_INTERFACE_VERSION = "5.0.0";
    uint256 public constant MAX_BOOTNODES = 64;
    uint256 public constant MAX_BOOTNODE_LENGTH = 256;

    mapping(bytes32 role => mapping(address account => bool)) public hasRole;
    string[] private bootnodes;

    event Initialized(uint64 version);
    event Upgraded(address indexed implementation);
    event RoleGranted(bytes32 indexed role, address indexed account, address indexed sender);
    event RoleRevoked(bytes32 indexed role, address indexed account, address indexed sender);
    event BootnodesAdded(address indexed manager, uint256 count);
    event BootnodeRemoved(address indexed manager, uint256 index);
    event AllBootnodesCleared(address indexed manager);

    error InvalidInitialization();
    error UUPSUnauthorizedCallContext();
    error OnlyOwner();
    error OnlyBootnodeManager();
    error InvalidBootnodeIndex();
    error TooManyBootnodes();
    error BootnodeTooLong();

    /// @param owner The first owner and bootnode manager; none (the zero address) makes a swarm that nobody owns.
    constructor(address owner) {
        if (owner != address(0)) {
            _grant(OWNER_ROLE, owner);
            _grant(BOOTNODE_MANAGER_ROLE, owner);
        }
        emit Initialized(1);
    }

    modifier onlyOwner() {
        if (!hasRole[OWNER_ROLE][msg.sender]) revert OnlyOwner();
        _;
    }

    modifier onlyBootnodeManager() {
        if (!hasRole[BOOTNODE_MANAGER_ROLE][msg.sender]) revert OnlyBootnodeManager();
        _;
    }

    /// @notice Part of the original's interface: the constructor has done it, so that nobody could come before the owner.
    function initialize(address) external pure {
        revert InvalidInitialization();
    }

    /// @notice Part of the original's interface. The code cannot be replaced, whoever asks: peers trust what they have read.
    function upgradeToAndCall(address, bytes calldata) external payable {
        revert UUPSUnauthorizedCallContext();
    }

    /// @notice Part of the original's interface, where it reverts, too, when it is called at the address that clients use.
    function proxiableUUID() external pure returns (bytes32) {
        revert UUPSUnauthorizedCallContext();
    }

    function grantRole(bytes32 role, address account) external onlyOwner {
        _grant(role, account);
    }

    function revokeRole(bytes32 role, address account) external onlyOwner {
        if (!hasRole[role][account]) return;
        hasRole[role][account] = false;
        emit RoleRevoked(role, account, msg.sender);
    }

    function addBootnodes(string[] calldata added) external onlyBootnodeManager {
        if (bootnodes.length + added.length > MAX_BOOTNODES) revert TooManyBootnodes();
        for (uint256 i = 0; i < added.length; i++) {
            if (bytes(added[i]).length > MAX_BOOTNODE_LENGTH) revert BootnodeTooLong();
            bootnodes.push(added[i]);
        }
        emit BootnodesAdded(msg.sender, added.length);
    }

    /// @notice Removes one; the last takes its place.
    function removeBootnode(uint256 index) external onlyBootnodeManager {
        if (index >= bootnodes.length) revert InvalidBootnodeIndex();
        bootnodes[index] = bootnodes[bootnodes.length - 1];
        bootnodes.pop();
        emit BootnodeRemoved(msg.sender, index);
    }

    function clearBootnodes() external onlyBootnodeManager {
        delete bootnodes;
        emit AllBootnodesCleared(msg.sender);
    }

    function getBootnodes() external view returns (string[] memory) {
        return bootnodes;
    }

    function getBootnodesCount() external view returns (uint256) {
        return bootnodes.length;
    }

    function _grant(bytes32 role, address account) private {
        if (hasRole[role][account]) return;
        hasRole[role][account] = true;
        emit RoleGranted(role, account, msg.sender);
    }
}
