"""What a record costs on the wire and on the processor, against JSON of the same content.

    python -m benchmarks.records        ten seconds on one CPU core

Prints one JSON line a row. `ratio` is how many times as much JSON needs: ids as decimal numbers and log-probs as the
shortest decimals that give the float32 back, encoded and decoded by the same library, msgspec, and signed by the same
key. The comparison favours JSON: its numbers are made ready beforehand, and what it decodes is checked for its types
alone, while a record's bounds, numbers and canonical form are checked on both ways.
"""

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np

from rlswarm_jax.identity import simulated, verify
from rlswarm_jax.machine import hardware
from rlswarm_jax.records import envelope, schema
from rlswarm_jax.records.schema import Completion, Group, Record

NODE = simulated(0, 0)
SECONDS = 0.8  # of processor time for each measurement
WORDS = ["so", "the", "sum", "of", "all", "terms", "left", "over", "is", "taken", "twice,", "which", "gives", "12"]


class JsonCompletion(msgspec.Struct):
    tokens: list[int]
    logprobs: list[float]
    text: str


class JsonGroup(msgspec.Struct):
    task: str
    task_fingerprint: str
    index: int
    problem_seed: int
    parents: list[str]
    vote: int | None
    completions: list[JsonCompletion]


class JsonRecord(msgspec.Struct):
    version: int
    swarm: str
    author: str
    round: int
    stage: str
    prompt_format: str
    policy_version: int
    weights: str
    tokenizer_fingerprint: str
    temperature: float
    groups: list[JsonGroup]
    verdicts: list


def make_record(groups: int, completions: int, tokens: int, vocab_size: int, characters: int) -> Record:
    """A made-up record: `tokens` ids below `vocab_size`, and a text of `characters`, in each completion."""
    rng = np.random.default_rng(0)

    def completion() -> Completion:
        tokens_T = rng.integers(0, vocab_size, tokens)
        logprobs_T = -rng.exponential(1.0, tokens)
        text = " ".join(rng.choice(WORDS, characters))[:characters]
        return Completion(tokens_T.astype("<i4").tobytes(), logprobs_T.astype("<f4").tobytes(), text)

    def group(index: int) -> Group:
        seed = int(rng.integers(2**62))
        said = [completion() for _ in range(completions)]
        return Group("spell_backward", "0123456789abcdef", index, seed, [], None, said)

    return Record(
        version=schema.VERSION,
        swarm="benchmark",
        author=NODE.author,
        round=1000,
        stage="answer",
        beacon=b"",
        prompt_format="compact-2/01234567",
        policy_version=1000,
        weights=bytes(range(32)),
        tokenizer_fingerprint="0123456789abcdef",
        temperature=1.0,
        groups=[group(index) for index in range(groups)],
        verdicts=[],
    )


def as_json_record(record: Record) -> JsonRecord:
    groups = [
        JsonGroup(
            group.task,
            group.task_fingerprint,
            group.index,
            group.problem_seed,
            [],
            None,
            [
                JsonCompletion(c.tokens_T.tolist(), [float(str(x)) for x in c.logprobs_T], c.text)
                for c in group.completions
            ],
        )
        for group in record.groups
    ]
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return JsonRecord(**fields | {"author": record.author.hex(), "weights": record.weights.hex(), "groups": groups})


def json_seal(record: JsonRecord) -> bytes:
    payload = msgspec.json.encode(record)
    return payload + NODE.sign(payload)


json_decoder = msgspec.json.Decoder(JsonRecord)


def json_open(raw: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Verified, and as arrays again."""
    payload, signature = raw[:-64], raw[-64:]
    record = json_decoder.decode(payload)
    assert verify(bytes.fromhex(record.author), signature, payload)
    return [
        (np.array(c.tokens, "<i4"), np.array(c.logprobs, "<f4")) for group in record.groups for c in group.completions
    ]


def record_open(raw: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    record = envelope._open(raw).record  # what it costs the first time
    return [(c.tokens_T, c.logprobs_T) for group in record.groups for c in group.completions]


def microseconds(act: Callable[[], Any]) -> float:
    """Median processor time of a call."""
    times, end = [], time.process_time() + SECONDS
    while time.process_time() < end:
        started = time.process_time_ns()
        act()
        times.append((time.process_time_ns() - started) / 1000)
    return statistics.median(times)


def rows() -> Iterator[dict[str, Any]]:
    shapes = (
        {"groups": 4, "completions": 8, "tokens": 12, "vocab_size": 97, "characters": 12},
        {"groups": 1, "completions": 8, "tokens": 256, "vocab_size": 151_936, "characters": 1024},
    )
    for shape in shapes:
        record = make_record(**shape)
        json_record = as_json_record(record)
        sealed, json_sealed = envelope.seal(record, NODE), json_seal(json_record)
        for ours, theirs in zip(record_open(sealed), json_open(json_sealed), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), "JSON lost something"
        acts: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "encode and sign": (partial(envelope.seal, record, NODE), partial(json_seal, json_record)),
            "decode and verify": (partial(record_open, sealed), partial(json_open, json_sealed)),
        }
        measured = [("size", "bytes", float(len(sealed)), float(len(json_sealed)))]
        measured += [(name, "us", microseconds(ours), microseconds(theirs)) for name, (ours, theirs) in acts.items()]
        for measure, unit, value, of_json in measured:
            yield {
                "benchmark": "records",
                "config": {"measure": measure, **shape},
                "value": round(value, 1),
                "unit": unit,
                "versus": "signed JSON",
                "ratio": round(of_json / value, 2),
            }


def main() -> None:
    versions = {package: importlib.metadata.version(package) for package in ("msgspec", "coincurve", "numpy")}
    about = {"hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}
    for row in rows():
        print(json.dumps(row | about), flush=True)


if __name__ == "__main__":
    main()
