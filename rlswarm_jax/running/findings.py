"""What was found of one thing that a run needs (see `doctor`)."""

import dataclasses
from collections.abc import Callable

FINE, LOOK, UNKNOWN, WAIT, WRONG = "fine", "look", "unknown", "wait", "mend"


@dataclasses.dataclass(frozen=True)
class Finding:
    """state: one of the above. said: what is so. advice: what to do, in a line; empty where there is nothing to do."""

    state: str
    said: str
    advice: str = ""


Check = Callable[[], Finding]
