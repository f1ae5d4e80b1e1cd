"""From which of its rounds on a swarm plays another version, as the coordinator's owner says.

It stands among the coordinator's bootnodes, as a text that is no address: so a coordinator that was deployed before has
a place for it, and whoever does not know of it passes it over.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

_FORM = re.compile(r"/rlswarm_jax/upgrade/([0-9]{1,6}(?:\.[0-9]{1,6}){0,2})/from-round/([0-9]{1,10})", re.ASCII)


class Upgrade(NamedTuple):
    """version: of records, as nodes tell it each other. round: the coordinator's, the first that is played so."""

    version: str
    round: int

    @property
    def text(self) -> str:
        return f"/rlswarm_jax/upgrade/{self.version}/from-round/{self.round}"

    def is_due(self, round_: int) -> bool:
        return round_ >= self.round

    def fits(self, version: str, round_: int) -> bool:
        """Whether a node of a version plays in a round: the new one from then on, any other before."""
        return (version == self.version) == self.is_due(round_)


def read(entries: Iterable[str]) -> Upgrade | None:
    """What a coordinator's list says; the last one, of several."""
    found = [match for one in entries if (match := _FORM.fullmatch(one))]
    return Upgrade(found[-1][1], int(found[-1][2])) if found else None


def without(entries: Iterable[str]) -> list[str]:
    """The others."""
    return [one for one in entries if not _FORM.fullmatch(one)]
