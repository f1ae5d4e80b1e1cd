"""What a replay of nodes' samples has found: samples.json, and the same for the terminal."""

import collections
from typing import Any

from rich.console import Console

from rlswarm_jax.audit.samples import Samples
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.records.schema import NOT_PRODUCED, PRODUCED, UNDECIDED
from rlswarm_jax.reporting.blocks import print_table

SAMPLES_FILE = "samples.json"
SHOWN = 50  # lines of what is wrong, in the terminal


def samples_json(found: Samples) -> dict[str, Any]:
    """samples.json: of each author how many groups are of each finding, and each group that was replayed."""
    authors = sorted({one.author for one in found.replayed} | found.left.keys())
    return {
        "authors": {author.hex(): found.of(author) | {"left": dict(found.left.get(author, {}))} for author in authors},
        "groups": [
            {
                "author": one.author.hex(),
                "record": one.record.hex(),
                "round": one.round,
                "stage": one.stage,
                "index": one.index,
                "finding": one.finding,
                "tokens": one.judgement.tokens,
                "bits": one.judgement.bits,
                "statistic": one.judgement.statistic,
            }
            for one in found.replayed
        ],
        "wrong": bool(found.wrong),
    }


def print_samples(found: Samples, seconds: float, console: Console) -> None:
    rows = [["", "groups", PRODUCED, NOT_PRODUCED, UNDECIDED, "tokens", "bits"]]
    left = collections.Counter[str]()
    for author in sorted({one.author for one in found.replayed} | found.left.keys()):
        own = [one for one in found.replayed if one.author == author]
        counts, bits = found.of(author), sum(one.judgement.bits for one in own)
        figures = [counts[PRODUCED], counts[NOT_PRODUCED], counts[UNDECIDED], sum(one.judgement.tokens for one in own)]
        rows.append([friendly_name(author), str(len(own)), *map(str, figures), f"{bits:,.0f}"])
        left.update(found.left.get(author, {}))
    print_table(rows, console)
    why = ", ".join(f"{count:,} ({cause})" for cause, count in sorted(left.items()))
    more = f"; not replayed: {why}" if why else ""
    console.print(f"{len(found.replayed):,} groups replayed in {seconds:.1f} s{more}", highlight=False, soft_wrap=True)
    for one in found.wrong[:SHOWN]:
        what = f"round {one.round}, {friendly_name(one.author)}, {one.stage} {one.index}"
        console.print(f"{what}: NOT SAMPLED with the weights and keys that its record names", highlight=False)
    if len(found.wrong) > SHOWN:
        console.print(f"... and {len(found.wrong) - SHOWN} more")
