"""How a node's transactions are sent."""

from typing import NamedTuple

GWEI = 10**9


class Settings(NamedTuple):
    """confirmations: blocks on top of one until it counts as settled; 0 on a chain that is never reorganised.
    bump_blocks: blocks that a transaction, next in line, waits before it is offered at a higher price.
    max_fee, max_tip: wei per gas, whatever the endpoint suggests: it might be in league with who earns the fees.
    max_gas: of one transaction. in_flight: transactions at once. retry_seconds: between two tries at the same block.
    """

    confirmations: int = 6
    bump_blocks: int = 3
    max_fee: int = 200 * GWEI
    max_tip: int = 50 * GWEI
    max_gas: int = 2_000_000
    in_flight: int = 16
    retry_seconds: float = 5.0
    max_attempts: int = 3
