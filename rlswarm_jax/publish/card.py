"""The model card of a publication: what its weights were trained on, by whom, how well, and how to check that.

It is made from a run's files alone. Much in these is text from outside (names of tasks, paths, what peers are called):
all of it is escaped, and what is only this machine's business (addresses, keys, where things lie) is left out.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rlswarm_jax.audit import commit
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.evaluation import wilson
from rlswarm_jax.files import JOURNAL_FILE, METRICS_FILE
from rlswarm_jax.identity import friendly_name, peer_id
from rlswarm_jax.journal import look
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.publish.queue import Entry
from rlswarm_jax.records.envelope import open_envelope

SECTIONS = ("seed", "rounds", "tasks", "swarm", "game", "sampling", "learn", "lora", "evaluation", "audit")
PRIVATE = ("key", "host", "port", "bootnodes", "peers", "path")  # fields of those that say where, not what
PACKAGES = ("rlswarm_jax", "jax", "flax", "optax", "numpy", "reasoning-gym")
SPOILED = (
    "The embedded model was taught small tasks and then spoiled: a gain in these is a skill brought back, not "
    "knowledge gained.\n"
)
LONGEST = 160  # characters of a text from outside
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~&$:@^=])")


class Records(NamedTuple):
    """A node's own, as far as its journal has them. author: the key that signed them. root: over their hashes.

    number: of them. first, last: rounds.
    """

    author: bytes
    root: bytes
    number: int
    first: int
    last: int


def escaped(text: object) -> str:
    """A text of anyone's as Markdown that shows it, in one line: no markup, link, HTML or invisible character."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return _MARKUP.sub(r"\\\1", shown[:LONGEST])


def base_of(path: str) -> str:
    """What a model is called to others: a hub id or "embedded" as it is, of a directory its name alone."""
    return (Path(path).expanduser().absolute().name if is_here(path) else path)[:LONGEST]


def is_here(path: str) -> bool:
    """Whether a text is a path of this machine's, which is nobody's business."""
    if path.startswith(("/", "~", ".", "file:")) or "\\" in path:
        return True
    return len(path) < 256 and "\0" not in path and Path(path).exists()


def own_records(folder: Path, node: int) -> Records | None:
    """None where there are none. Raises JournalError, RecordError for a journal that cannot be read."""
    rows = [entry for entry in look(folder / JOURNAL_FILE, ["Publish"]) if entry.node == node]
    signed = [open_envelope(msgspec.msgpack.decode(entry.result, type=bytes)) for entry in rows]
    if not signed:
        return None
    root = commit.root([one.hash for one in signed])
    return Records(signed[0].record.author, root, len(signed), signed[0].record.round, signed[-1].record.round)


def render(folder: Path, config: Mapping[str, Any], entry: Entry, adapter: bool) -> str:
    """folder: with the node's metrics and journal. config: its own, as config.json has it.

    Raises JournalError, RecordError, OSError for files that cannot be read.
    """
    path = folder / METRICS_FILE
    rows = [row for row in (read_rows(path) if path.exists() else []) if row.get("node") == entry.node]
    rows = [row for row in rows if row.get("round", 0) <= entry.round]
    records = own_records(folder, entry.node)
    parts = [
        _front_matter(config["model"]["path"], adapter),
        f"# {escaped(entry.name)} after round {entry.round}\n",
        _about(config, entry, adapter, rows),
        "## What it learned\n",
        _learned(rows),
        *([SPOILED] if config["model"]["path"] == "embedded" else []),
        "## What it was trained on\n",
        _tasks(config),
        "## How to check it\n",
        _check(config, entry, adapter, records),
        "## Use it\n",
        _use(config["model"]["path"], adapter),
        "## How it was made\n",
        f"```json\n{json.dumps(_shown(config), indent=1)}\n```\n",  # no line of JSON can end the block
        f"{', '.join(_versions())}.\n",
    ]
    return "\n".join(parts)


def _front_matter(base: str, adapter: bool) -> str:
    """JSON is YAML; and a hub id that is none, of a base, would be refused."""
    told: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    told["tags"] = ["rlswarm_jax", "grpo", "reinforcement-learning"]
    if re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", base, re.ASCII) and not is_here(base):
        told |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    return "".join(["---\n", *(f"{name}: {json.dumps(value)}\n" for name, value in told.items()), "---\n"])


def _about(config: Mapping[str, Any], entry: Entry, adapter: bool, rows: Sequence[Mapping[str, Any]]) -> str:
    groups = Counter[str]()
    for row in rows:
        groups.update({name: int(n) for name, n in row.items() if name.startswith("learned_from/")})
    peers = {friendly_name(bytes.fromhex(name.partition("/")[2])): n for name, n in groups.items() if n}
    own = sum(int(row.get("groups/local", 0)) for row in rows)
    kind = "a LoRA adapter for" if adapter else "all weights of"
    text = [f"This is {kind} {escaped(base_of(config['model']['path']))}, as a node of the swarm"]
    text += [f"{escaped(config['swarm']['name'])} has trained it by reinforcement learning (GRPO) in"]
    text += [f"{entry.round + 1} rounds, on {own:,} groups of its own completions"]
    if peers:
        most = ", ".join(escaped(name) for name in sorted(peers, key=lambda name: (-peers[name], name))[:16])
        text += [f"and {sum(peers.values()):,} of {len(peers)} other node{'s' * (len(peers) > 1)} ({most})"]
    else:
        text += ["and nobody else's"]
    made = "Made with rlswarm\\_jax, which is [RL Swarm](https://github.com/gensyn-ai/rl-swarm) rebuilt in JAX."
    return f"{' '.join(text)}. {made}\n"


def _learned(rows: Sequence[Mapping[str, Any]]) -> str:
    """Held-out accuracy at first and at last, of all and by task, with 95 % Wilson intervals."""
    first = next((row for row in rows if "held_out/accuracy" in row), None)
    if first is None:
        return "Its held-out accuracy was not measured.\n"
    last = next((row for row in reversed(rows) if {"held_out/accuracy", "final/accuracy"} & row.keys()), first)
    when = "final" if "final/accuracy" in last else "held_out"
    after = last["round"] + (when == "final")
    n, m = int(first.get("held_out/problems", 0)), int(last.get(f"{when}/problems", 0))
    lines = [f"| held out | before learning | after {after} rounds |", "| :-- | --: | --: |"]
    lines += [f"| all | {_interval(first['held_out/accuracy'], n)} | {_interval(last[f'{when}/accuracy'], m)} |"]
    prefix = "held_out/accuracy/"
    for task in sorted(name.removeprefix(prefix) for name in first if name.startswith(prefix)):
        values = first[prefix + task], last.get(f"{when}/accuracy/{task}")
        lines.append(f"| {escaped(task)} | {' | '.join(_interval(value, 0) for value in values)} |")
    return "\n".join(lines) + f"\n\nAccuracy on {n:,} problems that nobody was trained on, 95 % Wilson intervals.\n"


def _interval(accuracy: float | None, n: int) -> str:
    if accuracy is None:
        return "not measured"
    if not n:
        return f"{100 * accuracy:.1f} %"
    low, high = wilson(accuracy, n)
    return f"{100 * accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _tasks(config: Mapping[str, Any]) -> str:
    weights = {name: float(options.get("weight", 1.0)) for name, options in config["tasks"].items()}
    total = sum(weights.values()) or 1.0
    share = [f"{escaped(name)} ({100 * one / total:.0f} %)" for name, one in weights.items()]
    return f"Problems of {', '.join(share)}. What it read of peers it scored itself.\n"


def _check(config: Mapping[str, Any], entry: Entry, adapter: bool, records: Records | None) -> str:
    what = "of the adapter's tensors" if adapter else "of the weights, by which its records name them"
    lines = [f"- Hash {what}: `{entry.weights}`"]
    if records:
        author, account = records.author, account_of(records.author)
        lines += [f"- Node: `{peer_id(author)}`, whose account is `{account}`"]
        lines += [f"- Its records of rounds {records.first} to {records.last}, {records.number:,} of them, are the"]
        lines[-1] += f" leaves of the Merkle tree (RFC 6962) of root `{records.root.hex()}`"
    chain, live = config["chain"], config["driver"] != "simulate"
    if live and chain["endpoint"] != "none" and chain["contract"]:
        on = f"--contract {chain['contract']} --chain-id {chain['id']}"
        lines += [f"- Coordinator: `{escaped_code(chain['contract'])}` on chain `{int(chain['id'])}`"]
        lines += ["", "Who published weights of that hash is on the chain; this hashes them anew, and asks it:"]
        lines += ["", "```bash", f"python -m experiments.publish --verify URI --rpc URL {escaped_code(on)}", "```"]
        lines += ["", "What nodes claimed for their records, and whether they sampled as they say, `experiments.audit`"]
        lines[-1] += " finds out."
    else:
        lines += ["", "It is on no chain: whoever published this says so, and nobody else."]
    return "\n".join(lines) + "\n"


def escaped_code(text: object) -> str:
    """The same within backticks, or a fenced block."""
    return "".join(c if c.isprintable() and c != "`" else " " for c in str(text))[:LONGEST]


def _use(base: str, adapter: bool) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if adapter:
        named = json.dumps(base_of(base))
        lines = ["from peft import PeftModel", *lines, f"base = AutoModelForCausalLM.from_pretrained({named})"]
        lines += ['model = PeftModel.from_pretrained(base, "HERE")']
    else:
        lines += ['model = AutoModelForCausalLM.from_pretrained("HERE")']
        lines += ['tokenizer = AutoTokenizer.from_pretrained("HERE")']
    return "\n".join(["```python", *lines, "```\n"])


def _shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config says what was played; of paths of this machine the name alone."""

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return (Path(value).name if is_here(value) else value)[:LONGEST]
        if isinstance(value, Mapping):
            return {str(name)[:LONGEST]: cut(one) for name, one in value.items()}
        return [cut(one) for one in value] if isinstance(value, list | tuple) else value

    found = {name: cut(config[name]) for name in SECTIONS if name in config}
    for name, section in found.items():
        if name != "tasks" and isinstance(section, dict):
            found[name] = {field: value for field, value in section.items() if field not in PRIVATE}
    return {"model": base_of(config["model"]["path"])} | found


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue  # of a checkout that is not installed
    return found
