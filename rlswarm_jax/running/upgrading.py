"""A swarm that goes to another version together, in a round that its coordinator names.

A node never changes its own version. It says what is coming; and, where its config has it follow, it does not play
rounds that are another version's: it ends, so that whoever supervises it starts what is installed by then.
"""

import logging
from collections.abc import Callable

from rlswarm_jax.chain.upgrade import Upgrade
from rlswarm_jax.errors import TransientError, UsageError

log = logging.getLogger("rlswarm_jax.chain")


class Upgrades:
    """What a node of a version does about them. heard: as last, and in which of the coordinator's rounds it is."""

    def __init__(self, version: str, heard: Callable[[], tuple[Upgrade | None, int]], follow: bool):
        self._version, self._heard, self._follow = version, heard, follow
        self._said: Upgrade | None = None
        self._began: int | None = None  # in which round this process first heard of the chain

    def stop(self) -> bool:
        """Whether this node does not play now. What is new is said, once."""
        upgrade, round_ = self._heard()
        if round_ >= 0 and self._began is None:
            self._began = round_
        if upgrade is None or round_ < 0:
            return False
        if upgrade != self._said and upgrade.version != self._version:
            what = f"from its round {upgrade.round} on (now {round_}) the swarm plays records {upgrade.version}"
            log.warning("the coordinator says: %s; here is %s: install that version by then", what, self._version)
        self._said = upgrade
        return self._follow and not upgrade.fits(self._version, round_)

    def check(self) -> None:
        """Raises UsageError if another version must be installed first, TransientError if a later start may play."""
        if not self.stop() or self._said is None:
            return
        of, at, own = self._said.version, self._said.round, self._version
        if own == of:
            raise TransientError(f"the swarm plays records {of} from the coordinator's round {at} on, and not yet.")
        if self._began is not None and self._said.is_due(self._began):
            raise UsageError(
                f"the swarm plays records {of} since the coordinator's round {at}; here is {own}: install that version."
            )
        raise TransientError(
            f"the swarm plays records {of} from the coordinator's round {at} on; here is {own}: start anew."
        )
