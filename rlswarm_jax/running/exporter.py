"""A node's metrics for Prometheus: those of docs/metrics.md by the same names, and what it does at this moment.

`group/name` is `rlswarm_group_name`. What a round adds up to is a counter since the process began (`..._total`), any
other number the gauge of the latest round that has it. What names have at their end, such as a cause, is a label;
authors are none: keys are free.
"""

import collections
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rlswarm_jax import __version__
from rlswarm_jax.status import STATES, Status

if TYPE_CHECKING:
    from prometheus_client.core import Metric

SUMMED = re.compile(  # of names whose numbers are of one round alone, and add up
    r"sample/(completions|redrawn|tokens)|score/failed/.*|learn/updates|records/(published|received|again|rejected/.*)"
    r"|groups/(received|received_with_advantage|unused/.*|overlong|local|external)|peers/given_up|network/.*"
    r"|audit/(cases|found/.*|tokens|bytes_.*|weights_.*)|checkpoints/damaged|publish/(sent|failed)"
    r"|chain/(?!round$|upgrade_round$|waiting$).*|seconds/.*"
)
LABELLED = {  # the beginnings of names whose ends are a label
    "records/rejected/": ("records_rejected", "cause"),
    "groups/unused/": ("groups_unused", "cause"),
    "score/failed/": ("score_failed", "cause"),
    "network/dropped/": ("network_dropped", "cause"),
    "audit/found/": ("audit_found", "finding"),
    "held_out/accuracy/": ("held_out_accuracy_of", "task"),
    "final/accuracy/": ("final_accuracy_of", "task"),
    "seconds/": ("seconds", "effect"),
    "disk/": ("disk_mb", "part"),
}
AUTHORS = ("received_from/", "learned_from/", "audit/distrusted/")
CHAIN = {
    "round",
    "upgrade_round",
    "waiting",
    "challenged",
    "voted",
    "abstained",
    "crashed",
}  # any other is a cause by its name
MOST_VALUES = 64  # of a label
Key = tuple[str, str, str]  # of a sample: the metric, its label's name and value, or "" and ""


def key_of(name: str) -> Key | None:
    """What a metric of a node's round is called here; None of what is left out."""
    if name.startswith(AUTHORS):
        return None
    for begin, (metric, label) in LABELLED.items():
        if name.startswith(begin):
            return f"rlswarm_{metric}", label, name.removeprefix(begin)
    if name.startswith("chain/") and name.removeprefix("chain/") not in CHAIN:
        return "rlswarm_chain_problems", "cause", name.removeprefix("chain/")
    return "rlswarm_" + re.sub(r"\W", "_", name), "", ""


class Exporter:
    """One node's; a `prometheus_client` collector. `on_round` is its round's thread's, `collect` anybody's."""

    def __init__(self, status: Status, labels: Mapping[str, str]):
        self._status, self._labels = status, dict(labels)
        self._lock = threading.Lock()
        self._values: dict[bool, dict[str, dict[tuple[str, str], float]]] = {
            summed: collections.defaultdict(dict) for summed in (True, False)
        }
        self._rounds, self._ended = 0, 0.0

    def on_round(self, metrics: Mapping[str, float]) -> None:
        """Takes a finished round's."""
        with self._lock:
            self._rounds, self._ended = self._rounds + 1, time.time()
            for name, value in metrics.items():
                if (key := key_of(name)) is not None:
                    summed = bool(SUMMED.fullmatch(name))
                    self._take(self._values[summed][key[0]], key[1:], value, summed)

    def _take(self, values: dict[tuple[str, str], float], label: tuple[str, str], value: float, summed: bool) -> None:
        if label in values or len(values) < MOST_VALUES:
            values[label] = value + (values.get(label, 0.0) if summed else 0.0)

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield from self._of_now()
        with self._lock:
            found = [(summed, name, dict(values)) for summed, of in self._values.items() for name, values in of.items()]
        for summed, name, values in found:
            made: Any = CounterMetricFamily if summed else GaugeMetricFamily
            label = next(iter(values))[0]
            said = "sum over rounds since the process began" if summed else "of the latest round that has it"
            family = made(name, f"{said}; docs/metrics.md", labels=[label] if label else [])
            for (_, of), value in values.items():
                family.add_metric([of] if label else [], value)
            yield family

    def _of_now(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        told = self._status.read()
        yield InfoMetricFamily("rlswarm_node", "which this is", self._labels | {"version": __version__})
        states = GaugeMetricFamily("rlswarm_state", "1 for the state that the node is in", labels=["state"])
        for state in STATES:
            states.add_metric([state], float(state == told.state))
        yield states
        peers = GaugeMetricFamily("rlswarm_peers", "connected, in the mesh among these, or refused", labels=["are"])
        for which, number in {
            "connected": len(told.peers),
            "mesh": sum(one.mesh for one in told.peers),
            "refused": len(told.banned),
        }.items():
            peers.add_metric([which], number)
        yield peers
        if told.round is not None:
            yield GaugeMetricFamily("rlswarm_round", "in which the node is", told.round)
        yield GaugeMetricFamily("rlswarm_waiting", "peers that the node waits for at this moment", len(told.waiting))
        yield GaugeMetricFamily("rlswarm_step_seconds", "since the present step began", max(0.0, told.at - told.since))
        yield CounterMetricFamily("rlswarm_rounds", "that have ended since the process began", self._rounds)
        if self._rounds:
            yield GaugeMetricFamily("rlswarm_last_round_timestamp_seconds", "when the last one ended", self._ended)
        yield GaugeMetricFamily("rlswarm_threads", "of the process", threading.active_count())
