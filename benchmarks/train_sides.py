"""The sides of benchmarks/train_step.py and benchmarks/grpo_iteration.py, each a worker process of its own.

    python -m benchmarks.train_sides SIDE CHECKPOINT ROW

A worker says hello with its versions, then answers each line that it reads with what one turn took: JSON both ways. At
module level this file imports nothing but Python's own library and numpy: torch in a process with JAX is crippled.
"""

import dataclasses
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("jax", "torch", "transformers", "trl", "numpy")
TEMPERATURE, CLIP_LOW, CLIP_HIGH, DUAL_CLIP, RATE = 1.0, 0.2, 0.28, 3.0, 1e-4
SHAPES = {  # random weights; (width, layers, heads, inner width, vocabulary)
    "10m": (320, 6, 5, 960, 4096),
    "50m": (640, 10, 10, 1920, 8192),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """groups of `group` completions each; "live" is what a quickstart's node learns from in a round."""

    model: str  # tiny, 10m, 50m, 0.5b
    groups: int
    group: int
    prompt: int  # tokens
    new_tokens: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.groups}x{self.group}-{self.prompt}+{self.new_tokens}"

    @property
    def is_live(self) -> bool:
        return self.groups == 0

    def texts(self, vocab: int) -> list[tuple[list[int], list[int], float]]:
        """Prompt, completion and advantage of each row, of both signs."""
        rng = np.random.default_rng(0)
        if self.is_live:  # five live groups: of short prompts, and of such as show what others said
            lengths, new = [*rng.integers(8, 20, 3), *rng.integers(30, 90, 2)], (2, 11)
        else:
            lengths, new = [self.prompt] * self.groups, (self.new_tokens, self.new_tokens + 1)
        found = []
        for length in lengths:
            prompt = rng.integers(2, vocab, length).tolist()
            for g in range(self.group):
                completion = rng.integers(2, vocab, rng.integers(*new)).tolist()
                found.append((prompt, completion, 1.0 if g % 2 else -1.0))
        return found


def parse_row(name: str) -> Row:
    """Raises ValueError on what is not a row's name, such as 0.5b-4x4-64+64 or tiny-0x7-0+11 (live)."""
    model, shape, lengths = name.split("-")
    groups, group = map(int, shape.split("x"))
    prompt, new_tokens = map(int, lengths.split("+"))
    return Row(model, groups, group, prompt, new_tokens)


Turn = Callable[[], float]  # a step; returns the gradient's norm


# --- the train step


def ours(checkpoint: Path, row: Row) -> Turn:
    import jax

    from rlswarm_jax import qwen
    from rlswarm_jax.grpo import learner, tiles

    policy = qwen.load(checkpoint)
    learns = learner.Learner(_config(), policy.config)
    rows = [
        tiles.Row(prompt, completion, advantage, None, external=False)
        for prompt, completion, advantage in row.texts(policy.config.vocab_size)
    ]
    longest = max(108 if row.is_live else 0, *(len(one.prompt) + len(one.completion) for one in rows))
    most = max(len(one.completion) for one in rows)
    held, hidden = [learns.init(policy.params)], policy.config.hidden_size
    del policy
    shapes = tiles.shapes(longest, most, int(os.environ["TRAIN_SEQUENCES"]), hidden_size=hidden)

    def turn() -> float:
        held[0], metrics = learns.step(held[0], tiles.tiles(rows, shapes), RATE)
        jax.block_until_ready(held[0])
        return float(metrics["grad_norm"])

    return turn


def torch_(checkpoint: Path, row: Row) -> Turn:
    """As a careful person writes it by hand: live rows padded to the longest, the head at completions alone."""
    import torch

    model = _torch_model(checkpoint).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    texts = row.texts(model.config.vocab_size)
    longest, most = max(len(p) + len(c) for p, c, _ in texts), max(len(c) for _, c, _ in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    attention = torch.zeros_like(ids)
    at, mask = torch.zeros(len(texts), most, dtype=torch.long), torch.zeros(len(texts), most, dtype=torch.bool)
    for b, (prompt, completion, _) in enumerate(texts):
        ids[b, : len(prompt) + len(completion)] = torch.tensor([*prompt, *completion])
        attention[b, : len(prompt) + len(completion)] = 1
        at[b] = (len(prompt) + torch.arange(most)).clamp(max=longest - 1)
        mask[b, : len(completion)] = True
    targets = ids.gather(1, at)
    advantages = torch.tensor([advantage for *_, advantage in texts])[:, None]

    def turn() -> float:
        states = model.model(ids, attention_mask=attention, use_cache=False).last_hidden_state
        states = states.gather(1, (at - 1)[..., None].expand(-1, -1, states.shape[-1]))
        logits = model.lm_head(states[mask]) / TEMPERATURE
        logprobs = torch.log_softmax(logits, -1).gather(1, targets[mask][:, None])[:, 0]
        ratio = torch.exp(logprobs - logprobs.detach())
        judged = advantages.expand(-1, most)[mask]
        bounded = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * judged
        loss = -torch.minimum(ratio * judged, bounded).sum() / mask.sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm)

    return turn


# --- a whole iteration: completions sampled, judged and learned from


def reward(text: str) -> float:
    """Of both kinds about as often, whatever the model says."""
    return float(sum(map(ord, text)) % 2)


def ours_iteration(checkpoint: Path, row: Row) -> Turn:
    import jax

    from rlswarm_jax import qwen
    from rlswarm_jax.grpo import learner, tiles
    from rlswarm_jax.grpo.advantages import group_advantages

    policy = qwen.load(checkpoint)
    learns, count = learner.Learner(_config(), policy.config), iter(range(1 << 30))
    state = learns.init(policy.params)
    held, prompts = [state], _prompts(row)
    hidden = policy.config.hidden_size
    shapes = tiles.shapes(row.prompt + row.new_tokens, row.new_tokens, hidden_size=hidden)

    def turn() -> float:
        now = dataclasses.replace(policy, params=held[0].params)
        out = qwen.generate(
            now, prompts, group_size=row.group, max_new_tokens=row.new_tokens, temperature=TEMPERATURE, seed=next(count)
        )
        rewards_PG = np.array([[reward(text) for text in texts] for texts in out.text], np.float32)
        advantages_PG = np.asarray(group_advantages(rewards_PG))
        rows = []
        for p, prompt in enumerate(prompts):
            ids = policy.tokenizer.encode(prompt)
            for g, length in enumerate(out.lengths_PG[p]):
                tokens, logprobs = (x[p, g, :length].tolist() for x in (out.tokens_PGT, out.logprobs_PGT))
                rows.append(tiles.Row(ids, tokens, float(advantages_PG[p, g]), logprobs, external=False))
        held[0], metrics = learns.step(held[0], tiles.tiles(rows, shapes), RATE)
        jax.block_until_ready(held[0])
        return float(metrics["grad_norm"])

    return turn


def trl(checkpoint: Path, row: Row) -> Turn:
    """Its GRPOTrainer, one step a turn, in the loop that its users run."""
    import queue
    import tempfile
    import threading

    import datasets
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    asked: queue.Queue[None] = queue.Queue()
    done: queue.Queue[float] = queue.Queue()

    class Pause(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            asked.get()

        def on_step_end(self, *_, **__):
            done.put(0.0)

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
    rollouts = row.groups * row.group
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rollouts,
        num_generations=row.group,
        max_completion_length=row.new_tokens,
        temperature=TEMPERATURE,
        learning_rate=RATE,
        beta=0.0,
        max_steps=10_000,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        gradient_checkpointing=False,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=_torch_model(checkpoint),
        reward_funcs=lambda completions, **_: [reward(text) for text in completions],
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": _prompts(row) * 50}),
        processing_class=tokenizer,
        callbacks=[Pause()],
    )
    threading.Thread(target=trainer.train, name="trainer", daemon=True).start()

    def turn() -> float:
        asked.put(None)
        return done.get(timeout=600)

    return turn


SIDES: dict[str, Callable[[Path, Row], Turn]] = {
    "ours": ours,
    "torch": torch_,
    "ours-iteration": ours_iteration,
    "trl-iteration": trl,
}


def _config() -> Any:
    from rlswarm_jax.grpo.learner import LearnerConfig

    bounds = {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "dual_clip": DUAL_CLIP}
    return LearnerConfig(learning_rate=RATE, temperature=TEMPERATURE, dtype=os.environ["TRAIN_DTYPE"], **bounds)


def _prompts(row: Row) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [(letters[p % 26] + letters[p // 26] + letters * row.prompt)[: row.prompt] for p in range(row.groups)]


def _torch_model(checkpoint: Path) -> Any:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="sdpa"
    )


def write_checkpoint(directory: Path, name: str) -> None:
    """Random weights of such a size, and a tokenizer of one token a character."""
    import jax
    import tokenizers

    from benchmarks.decode_sides import CHARACTERS, HALF_B
    from rlswarm_jax.qwen import config, model, tokenizer, weights

    if name == "0.5b":
        made = config.from_hf(HALF_B)
    else:
        width, layers, heads, inner, vocab = SHAPES[name]
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        sizes |= {"intermediate_size": inner, "vocab_size": vocab, "num_key_value_heads": 1}
        made = config.from_hf(HALF_B | sizes)
    vocab_of = {character: index for index, character in enumerate(CHARACTERS)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab_of, merges=[]))
    params = model.init_params(made, jax.random.key(0))
    weights.save_checkpoint(directory, made, params, tokenizer.Tokenizer(backend, made.vocab_size, {}))


# --- the process


def peak_mb() -> float:
    """The process's high-water mark, weights included; on an accelerator the device's instead."""
    jax = sys.modules.get("jax")
    if jax and (stats := jax.devices()[0].memory_stats()):
        return stats["peak_bytes_in_use"] / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main(side: str, checkpoint: str, row: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer

    def say(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    if side == "checkpoint":
        return write_checkpoint(Path(checkpoint), row)
    turn = SIDES[side](Path(checkpoint), parse_row(row))
    say(versions=versions())
    for line in sys.stdin:
        repeats = int(line)
        wall, cpu, norms = time.perf_counter(), time.process_time(), []
        for _ in range(repeats):
            norms.append(turn())
        spent = {"wall": (time.perf_counter() - wall) / repeats, "process": (time.process_time() - cpu) / repeats}
        say(**spent, grad_norm=norms[-1], peak_mb=peak_mb())


if __name__ == "__main__":
    main(*sys.argv[1:])
