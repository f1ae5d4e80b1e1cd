"""Notices that a node hears its peers and can use nothing of what they say, and says why."""

import collections
from collections.abc import Mapping

PATIENCE = 3  # rounds in which peers were heard in vain, before that is said
_UNUSED, _REJECTED = "groups/unused/", "records/rejected/"
_HARMLESS = {"own record", "duplicate"}
_SAME = "set the same as they have, or start in their config"
_HINTS = {
    "unknown beacon": "they play under another chain or contract than this node (or one of them under none): compare "
    "config.chain with theirs",
    "foreign problem": f"they draw other problems: config.seed, tasks or swarm.local_groups differ; {_SAME}",
    "unknown task": f"they have other config.tasks, or data; {_SAME}",
    "unknown prompt": f"they have another config.game or model.prompts; {_SAME}",
    "unknown stage": f"they have another config.game.stages; {_SAME}",
    "misshapen group": f"their config.sampling.group_size or max_new_tokens differs; {_SAME}",
    "text mismatch": "their checkpoint's files differ from this node's (end tokens, tokenizer): compare them",
    "wrong swarm": f"they have another config.swarm.name; {_SAME}",
    "out of window": "they are in rounds far from this node's: it follows when most of its peers are ahead",
    "undecodable": "they run another version of rlswarm_jax: run the same one",
}


class Hearing:
    """One node's. `on_round` takes a round's metrics and returns what there is to say, or nothing."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._rounds, self._wait = 0, PATIENCE
        self._causes = collections.Counter[str]()

    def on_round(self, metrics: Mapping[str, float]) -> str:
        """Says it after `PATIENCE` rounds in vain, and as long as nothing changes, each time twice as many."""
        if metrics.get("groups/received", 0):
            self._begin()
            return ""
        found = collections.Counter[str]()
        for name, count in metrics.items():
            prefix = next((one for one in (_UNUSED, _REJECTED) if name.startswith(one)), None)
            if prefix and (cause := name.removeprefix(prefix)) not in _HARMLESS:
                found[cause] += int(count)
        if not found.total():
            return ""
        self._causes += found
        self._rounds += 1
        if self._rounds < self._wait:
            return ""
        self._wait *= 2
        cause, count = self._causes.most_common(1)[0]
        why = _HINTS.get(cause, "the node's log names peers of other rules, if there are any")
        heard = f"in {self._rounds} rounds nothing that peers said could be used"
        return f"{heard}; {count} of {self._causes.total()} for the cause {cause!r}: {why}"
