// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title libp2p peer ids of secp256k1 keys
/// @notice Such an id is base58 of the identity multihash (0x00, length 0x25) of the protobuf {Type: Secp256k1 (0x08 0x02),
/// Data (0x12, length 0x21): the 33-byte compressed key}, so it holds the whole key, and the Ethereum account follows from it.
/// The 39 bytes always take 53 characters: a '1' for the leading zero byte, and 52 digits, handled here as two halves of 26.
library PeerId {
    uint256 private constant FIELD = 2 ** 256 - 2 ** 32 - 977;
    uint256 private constant HALF = 58 ** 26;
    // what comes before the key's x coordinate, less the leading zero byte; its last byte is the sign of y
    uint256 private constant EVEN = 0x250802122102;
    uint256 private constant ODD = 0x250802122103;
    // EVEN * 2**256 and ODD * 2**256, each divided by 58**26 (literals: the compiler computes them without bounds)
    uint256 private constant EVEN_LOW = (0x250802122102 * 2 ** 256) % 58 ** 26;
    uint256 private constant EVEN_HIGH = (0x250802122102 * 2 ** 256 - (0x250802122102 * 2 ** 256) % 58 ** 26) / 58 ** 26;
    uint256 private constant ODD_LOW = (0x250802122103 * 2 ** 256) % 58 ** 26;
    uint256 private constant ODD_HIGH = (0x250802122103 * 2 ** 256 - (0x250802122103 * 2 ** 256) % 58 ** 26) / 58 ** 26;

    /// @notice The peer id of the key with this x coordinate and an even or odd y; 53 characters.
    function encode(uint256 x, bool odd) internal pure returns (string memory id) {
        unchecked {
            uint256 low = (odd ? ODD_LOW : EVEN_LOW) + (x % HALF);
            uint256 high = (odd ? ODD_HIGH : EVEN_HIGH) + (x / HALF);
            if (low >= HALF) {
                low -= HALF;
                high += 1;
            }
            id = new string(53);
            assembly ("memory-safe") {
                let alphabet := mload(0x40) // beyond the free pointer: used here, then free again
                mstore(alphabet, "123456789ABCDEFGHJKLMNPQRSTUVWXY")
                mstore(add(alphabet, 32), "Zabcdefghijkmnopqrstuvwxyz")
                let start := add(id, 32)
                mstore8(start, 0x31)
                for { let spot := add(start, 52) } gt(spot, add(start, 26)) { spot := sub(spot, 1) } {
                    mstore8(spot, byte(0, mload(add(alphabet, mod(low, 58)))))
                    mstore8(sub(spot, 26), byte(0, mload(add(alphabet, mod(high, 58)))))
                    low := div(low, 58)
                    high := div(high, 58)
                }
            }
        }
    }

    /// @notice The key in a peer id; `valid` is false if the text is not that of a secp256k1 key (whether the x coordinate
    /// is one of the curve is for `lift` to say).
    function decode(string memory id) internal pure returns (bool valid, uint256 x, bool odd) {
        if (bytes(id).length != 53) return (false, 0, false);
        uint256 prefix;
        uint256 wrong;
        uint256 half = HALF;
        assembly ("memory-safe") {
            // the digit of each character from '1' to 'z', 0xff where there is none
            let digits := mload(0x40)
            mstore(digits, 0x000102030405060708ffffffffffffff090a0b0c0d0e0f10ff1112131415ff16)
            mstore(add(digits, 32), 0x1718191a1b1c1d1e1f20ffffffffffff2122232425262728292a2bff2c2d2e2f)
            mstore(add(digits, 64), 0x30313233343536373839ffffffffffffffffffffffffffffffffffffffffffff)
            let high := 0
            let low := 0
            let start := add(id, 32)
            wrong := iszero(eq(byte(0, mload(start)), 0x31))
            for { let spot := add(start, 1) } lt(spot, add(start, 27)) { spot := add(spot, 1) } {
                let h := sub(byte(0, mload(spot)), 0x31)
                let l := sub(byte(0, mload(add(spot, 26))), 0x31)
                // a character below '1' wraps round to a huge number, one above 'z' lies beyond the 74 digits
                if or(gt(h, 73), gt(l, 73)) {
                    wrong := 1
                    break
                }
                h := byte(0, mload(add(digits, h)))
                l := byte(0, mload(add(digits, l)))
                wrong := or(wrong, or(gt(h, 57), gt(l, 57)))
                high := add(mul(high, 58), h)
                low := add(mul(low, 58), l)
            }
            // prefix * 2**256 + x = high * 58**26 + low: the product's high word by the remainder modulo 2**256 - 1
            x := mul(high, half)
            let remainder := mulmod(high, half, not(0))
            prefix := sub(sub(remainder, x), lt(remainder, x))
            x := add(x, low)
            prefix := add(prefix, lt(x, low))
        }
        odd = prefix == ODD;
        valid = wrong == 0 && (odd || prefix == EVEN);
    }

    /// @notice The Ethereum account of a key; it says nothing of whether the point is on the curve.
    function account(uint256 x, uint256 y) internal pure returns (address owner) {
        assembly ("memory-safe") {
            mstore(0, x)
            mstore(32, y)
            owner := and(keccak256(0, 64), 0xffffffffffffffffffffffffffffffffffffffff)
        }
    }

    /// @notice Whether (x, y) is a point of secp256k1 in canonical form.
    function onCurve(uint256 x, uint256 y) internal pure returns (bool) {
        return x < FIELD && y < FIELD && mulmod(y, y, FIELD) == addmod(mulmod(mulmod(x, x, FIELD), x, FIELD), 7, FIELD);
    }

    /// @notice The y coordinate that goes with x, by a square root (the modexp precompile); `valid` is false if there is none.
    function lift(uint256 x, bool odd) internal view returns (bool valid, uint256 y) {
        uint256 square = addmod(mulmod(mulmod(x, x, FIELD), x, FIELD), 7, FIELD);
        uint256 field = FIELD;
        assembly ("memory-safe") {
            let input := mload(0x40)
            mstore(input, 32)
            mstore(add(input, 32), 32)
            mstore(add(input, 64), 32)
            mstore(add(input, 96), square)
            mstore(add(input, 128), shr(2, add(field, 1)))
            mstore(add(input, 160), field)
            valid := staticcall(gas(), 5, input, 192, 0, 32)
            y := mload(0)
        }
        if ((y & 1 == 1) != odd) y = FIELD - y;
        valid = valid && onCurve(x, y);
    }
}
