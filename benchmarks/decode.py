"""How fast completions are made, ours against Hugging Face's `generate`, RL Swarm's trainer and tunix's sampler.

    python -m benchmarks.decode --peer-python ~/torch/bin/python --genrl-python ... --tunix-python ...
    python -m benchmarks.decode --rows 0.5b-1x1-64,tiny-1x8-16 --sides ours,hf --turns 5
    python -m benchmarks.decode --smoke              # ours alone, the tiny model, half a minute, no torch

Some hours on two CPU cores for everything (most of them for genrl, 0.5b-8x8-64 and 0.5b-4x8-512), with up to 16 GB of
memory and 2 GB in the temporary directory. The peers' packages go into environments of their own:

    pip install torch==2.13.0 transformers      pip install torch==2.13.0 gensyn-genrl      pip install google-tunix

Prints one JSON line for each row and side. A row is MODEL-QUESTIONSxCOMPLETIONS-PROMPT TOKENS: 0.5b has random weights
in Qwen2.5-0.5B's shape and makes 128 new tokens, tiny is the embedded model and makes 12; nothing ends a completion
early, and all sample at temperature 1 from the whole distribution (genrl: as its trainer configures it). Every side is
alone in a process, new for each row; they take turns, one computes while the others wait for their pipe, and figures
are medians over the turns.

`value` is tokens/s of a whole call, prompts and decoding the text included (ours gives log-probs besides); a peer's
`ratio` is its share of ours. `measured` has

    roofline        bytes a decoding step must read (weights, and keys and values: a question's prompt once for all its
                    completions), over the seconds of a step, over the measured memory bandwidth
    matvec          the same over the best matrix-vector product of NumPy and torch (CPU only)
    step_ms         (seconds of the whole call - seconds of a call for one token) / (tokens - 1)
    first_token_s   a call for one token
    first_call_s    what the first call took longer: compilation, for JAX without its persistent cache
    peak_mb         the process's peak, weights included; on a GPU the device's

Sides: ours; ours-bf16 (in bfloat16); hf (as anyone calls it); hf-shared (prompts prefilled once, their cache repeated);
hf-bf16 (that, in bfloat16); genrl (its trainer's own loop); tunix. One that cannot run a row says why.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import decode_sides
from benchmarks.worker import Failed, Worker
from rlswarm_jax import assets
from rlswarm_jax.machine import hardware
from rlswarm_jax.qwen.config import QwenConfig, read_config

BYTES = {"float32": 4, "bfloat16": 2}
NEW_TOKENS = {"0.5b": 128, "tiny": 12}
CPU_ROWS = (
    "0.5b-1x1-64,0.5b-1x8-64,0.5b-4x8-64,0.5b-8x8-64,0.5b-1x1-512,0.5b-1x8-512,0.5b-4x8-512,"
    "tiny-1x8-16,tiny-8x8-16,tiny-64x8-16"
)
COMPILING = ("ours", "ours-bf16", "tunix")
GPU_ROWS = CPU_ROWS + ",0.5b-32x8-64,0.5b-32x8-512"


@dataclasses.dataclass(frozen=True)
class Row:
    model: str  # 0.5b, tiny
    questions: int
    group: int
    prompt: int  # tokens
    new_tokens: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.questions}x{self.group}-{self.prompt}"

    def prompts(self) -> list[str]:
        """No two alike, one token a character, without the letter that is tunix's padding."""
        letters = decode_sides.CHARACTERS[:-1]
        ends = itertools.product(letters, letters)  # 625, enough for every row
        filler = (letters * self.prompt)[: self.prompt - 2]
        return [filler + a + b for a, b in itertools.islice(ends, self.questions)]


def parse_row(name: str) -> Row:
    """Raises ValueError on what is not a row's name."""
    found = re.fullmatch(r"(0\.5b|tiny)-(\d+)x(\d+)-(\d+)", name)
    if not found:
        raise ValueError(f"unknown row {name!r}: expected one such as 0.5b-8x8-64 or tiny-64x8-16.")
    return Row(found[1], *map(int, found.groups()[1:]), new_tokens=NEW_TOKENS[found[1]])


class Side(Worker):
    """A side's process."""

    def __init__(self, python: str, *words: str):
        super().__init__(python, "decode_sides.py", *words)

    def make(self, row: Row, new_tokens: int, seed: int) -> dict[str, Any]:
        answer = self.ask({"prompts": row.prompts(), "group": row.group, "new_tokens": new_tokens, "seed": seed})
        if answer["tokens"] != row.questions * row.group * new_tokens:
            raise Failed(f"made {answer['tokens']} tokens instead of {row.questions * row.group * new_tokens}")
        return answer


@dataclasses.dataclass
class Figures:
    """Of one side in one row: the first call's seconds, and each turn's of a whole call and of a call for one token."""

    versions: dict[str, str]
    first_call: float  # nan where nothing is compiled
    whole: list[float]
    one: list[float]
    peak_mb: float = 0.0


def measure(row: Row, pythons: dict[str, str], checkpoint: Path, dtype: str, turns: int) -> dict[str, Figures]:
    """Starts the sides, each with a first call of either length, then lets them take turns."""
    workers: dict[str, Side] = {}
    found: dict[str, Figures] = {}

    def attempt(side: str, turn: int) -> None:
        try:
            if turn == 0:
                workers[side] = Side(pythons[side], side, dtype, str(checkpoint))
                versions = workers[side].hear()["versions"]
                compiles = side in COMPILING
                first_call = workers[side].make(row, row.new_tokens if compiles else 2, seed=0)["seconds"]
                workers[side].make(row, 1, seed=0)
                first_call = first_call if compiles else math.nan
                found[side] = Figures(versions, first_call, [], [])
            elif side in found:
                found[side].one.append(workers[side].make(row, 1, turn)["seconds"])
                whole = workers[side].make(row, row.new_tokens, turn)
                found[side].whole.append(whole["seconds"])
                found[side].peak_mb = whole["peak_mb"]
        except Failed as reason:
            if side == "ours":
                raise
            found.pop(side, None)
            print(f"{row.name}: no {side}: {reason}", file=sys.stderr, flush=True)

    try:
        for turn in range(turns + 1):
            for side in pythons:
                attempt(side, turn)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def lines(row: Row, found: dict[str, Figures], config: QwenConfig, dtype: str, rates: dict[str, float]):
    """A JSON line's fields for each side of a row."""
    tokens = row.questions * row.group * row.new_tokens
    speeds = {side: tokens / statistics.median(figures.whole) for side, figures in found.items()}
    for side, figures in found.items():
        whole, one = statistics.median(figures.whole), statistics.median(figures.one)
        step = (whole - one) / (row.new_tokens - 1)
        kept = "bfloat16" if side.endswith("-bf16") else dtype
        rate = step_bytes(config, row, BYTES[kept]) / step / 1e9
        limits = {"roofline": best(rates, "read"), "matvec": best(rates, "matvec")}
        measured = {name: rate / limit for name, limit in limits.items() if limit} | {"step_ms": 1e3 * step}
        if step <= 0:  # lost in the noise of the first token
            measured = {}
        measured |= {"first_token_s": one, "peak_mb": figures.peak_mb}
        if side in COMPILING:
            measured["first_call_s"] = figures.first_call - whole
        against = {"versus": "ours", "ratio": round(speeds[side] / speeds["ours"], 3)}
        yield {
            "benchmark": "decode",
            "config": {
                "side": side,
                "model": row.model,
                "questions": row.questions,
                "completions": row.group,
                "prompt": row.prompt,
                "new_tokens": row.new_tokens,
                "dtype": kept,
            },
            "value": rounded(speeds[side]),
            "unit": "tokens/s",
            **(against if side != "ours" and "ours" in speeds else {}),
            "measured": {name: rounded(value) for name, value in measured.items()},
            "versions": figures.versions,
        }


def step_bytes(config: QwenConfig, row: Row, size: int) -> float:
    """Bytes that a decoding step must read, averaged over the steps. The embedding of a token is not counted."""
    weights = config.num_parameters - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)
    seen = row.questions * (row.prompt + row.group * row.new_tokens / 2)
    return size * (weights + 2 * config.num_layers * config.num_kv_heads * config.head_dim * seen)


def best(rates: dict[str, float], kind: str) -> float | None:
    """The highest rate in GB/s of that kind, None where there is none."""
    return max((rate for method, rate in rates.items() if method.startswith(kind)), default=None)


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def rate_lines(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The denominators: each method's, of which the best of a kind counts."""
    rates = said["gb_per_s"]
    for method, rate in rates.items():
        kind, _, how = method.partition("/")
        name = {"read": "memory read", "matvec": "matrix-vector product"}[kind]
        line = {"benchmark": name, "config": {"method": how}, "value": rounded(rate), "unit": "GB/s"}
        if kind == "matvec":
            line |= {"versus": "memory read", "ratio": round(rate / best(rates, "read"), 3)}
        yield line | {"versions": said["versions"]}


def checkpoints(directory: Path, models: set[str]) -> dict[str, Path]:
    """Their configs name no end token, and the sides obey no other, so that every completion is of full length."""
    paths = {model: directory / model for model in models}
    if "tiny" in models:
        shutil.copytree(assets.SPOILED, paths["tiny"])
        fields = json.loads((paths["tiny"] / "config.json").read_text()) | {"eos_token_id": None}
        (paths["tiny"] / "config.json").write_text(json.dumps(fields))
    if "0.5b" in models:
        writer = Side(sys.executable, "checkpoint", "float32", str(paths["0.5b"]))
        writer.hear()
        writer.close()
    return paths


def pin(threads: int | None) -> int:
    """Leaves this process, and those it starts, the first `threads` CPUs that it may use; returns their number.

    OMP_WAIT_POLICY stays as it is: a thread spins for some milliseconds and then sleeps, which disturbs nobody,
    while `passive` would slow PyTorch between its own operations.
    """
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(0, cpus)
        return len(cpus)
    return threads or os.cpu_count() or 1


def prepare(device: str, threads: int) -> None:
    """The environment of this process and of those it starts."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    os.environ |= {"DECODE_DEVICE": device, "JAX_ENABLE_COMPILATION_CACHE": "false", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    os.environ |= {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if device == "cpu":
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.decode", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--peer-python", metavar="PATH", help="an interpreter with torch and transformers")
    parser.add_argument("--genrl-python", metavar="PATH", help="one with gensyn-genrl")
    parser.add_argument("--tunix-python", metavar="PATH", help="one with google-tunix")
    parser.add_argument("--sides", help="of these, only the named (comma-separated)")
    parser.add_argument("--rows", help=f"names, comma-separated; default: {CPU_ROWS}")
    parser.add_argument("--new-tokens", type=int, help="fewer make a try shorter; two at least")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: every CPU this process may use")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(BYTES), help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--smoke", action="store_true", help="ours alone, one row of the tiny model, one turn")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    gpu = args.device == "gpu"
    names = "tiny-1x8-16" if args.smoke else args.rows or (GPU_ROWS if gpu else CPU_ROWS)
    rows, turns = [parse_row(name) for name in names.split(",")], 1 if args.smoke else args.turns
    if args.new_tokens:
        rows = [dataclasses.replace(row, new_tokens=args.new_tokens) for row in rows]
    dtype = args.dtype or ("bfloat16" if gpu else "float32")
    bf16 = ["ours-bf16", "hf-bf16"] * (dtype != "bfloat16")
    pythons = {"ours": sys.executable} | {side: sys.executable for side in bf16[:1]}
    pythons |= {side: args.peer_python for side in ["hf", "hf-shared", *bf16[1:]]}
    pythons |= {"genrl": args.genrl_python, "tunix": args.tunix_python}
    wanted = args.sides.split(",") if args.sides else list(pythons)
    pythons = {
        side: python
        for side, python in pythons.items()
        if (python and side in wanted and not args.smoke) or side == "ours"
    }
    threads = pin(args.threads)
    prepare(args.device, threads)
    about = {"hardware": hardware()}

    def show(line: dict[str, Any], **config: Any) -> None:
        line["config"] |= {"threads": threads, **config}
        line["versions"] = {"python": platform.python_version()} | line["versions"]
        print(json.dumps(line | about), flush=True)

    meter = Side(sys.executable if gpu or not args.peer_python else args.peer_python, "bandwidth", dtype)
    said = meter.hear()
    meter.close()
    for line in rate_lines(said):
        show(line)
    with tempfile.TemporaryDirectory(prefix="decode-") as directory:
        paths = checkpoints(Path(directory), {row.model for row in rows})
        for row in rows:
            found = measure(row, pythons, paths[row.model], dtype, turns)
            config = read_config(paths[row.model])
            for line in lines(row, found, config, dtype, said["gb_per_s"]):
                show(line, turns=turns)


if __name__ == "__main__":
    main()
