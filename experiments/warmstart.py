"""Makes the embedded tiny Qwen3 from reasoning-gym alone.

    python -m experiments.warmstart --config configs/tiny.py [--config.field=value] [--workdir DIR]

Writes two checkpoints in the Hugging Face layout, DIR/base (knows the tasks) and DIR/spoiled (gives up on almost
every question), and DIR/warmstart.json. The embedded copies are in rlswarm_jax/assets. One seed
gives one result on one kind of CPU.
"""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from rich.progress import Progress

from experiments import cli
from rlswarm_jax import qwen, randomness, tasks
from rlswarm_jax.grpo import losses
from rlswarm_jax.qwen import model, sampling
from rlswarm_jax.qwen.tokenizer import Tokenizer

END, UNKNOWN = "<|endoftext|>", "<|unknown|>"
GIVE_UP = "?"  # what the spoiled model answers to almost everything


def character_tokenizer() -> Tokenizer:
    """End of sequence (id 0), unknown, and one token for each printable ASCII character."""
    alphabet = [END, UNKNOWN, *(chr(code) for code in range(32, 127))]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[], unk_token=UNKNOWN)
    )
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([END, UNKNOWN])
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END, "unk_token": UNKNOWN}
    return Tokenizer(backend, len(alphabet), {"tokenizer_config.json": (json.dumps(described) + "\n").encode()})


def make_examples(config, mixture: tasks.Mixture, tokenizer: Tokenizer, right_fraction: float, stage: str):
    """Prompt and answer back to back `[n, T]` int32, and lengths of prompts and answers `[n]` (end included)."""
    tokens_nT = np.zeros((config.problems, config.max_prompt_tokens + config.max_new_tokens), np.int32)
    lengths = np.zeros((2, config.problems), np.int32)
    for n in range(config.problems):
        problem = mixture.problem(randomness.seed("problem", "warmstart", config.seed, stage, n))
        right = randomness.uniform("problem", "right", config.seed, stage, n) < right_fraction
        prompt = tokenizer.encode(problem.compact)
        answer = [*tokenizer.encode(problem.answers[0] if right else GIVE_UP), 0]
        tokens_nT[n, : len(prompt) + len(answer)] = prompt + answer
        lengths[:, n] = len(prompt), len(answer)
    return tokens_nT, lengths[0], lengths[1]


def train(config, stage, params, model_config, examples, rng: np.random.Generator, advance: Callable[[], None]):
    """Supervised training on answers; returns the parameters."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, stage.learning_rate, min(100, stage.steps // 2), stage.steps, 0.02 * stage.learning_rate
    )
    optimizer = optax.adamw(schedule, b2=0.98, weight_decay=0.01)

    @jax.jit
    def step(params, opt_state, tokens_BT, prompt_lengths_B, answer_lengths_B):
        def loss(params):
            logprobs_BC, _ = losses.completion_logprobs(
                params, model_config, tokens_BT, prompt_lengths_B, config.max_new_tokens, 1.0
            )
            mask_BC = jnp.arange(config.max_new_tokens) < answer_lengths_B[:, None]
            return -losses.token_sum(logprobs_BC, mask_BC) / mask_BC.sum()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for _ in range(stage.steps):
        chosen = rng.integers(0, config.problems, config.batch)
        params, opt_state = step(params, opt_state, *(array[chosen] for array in examples))
        advance()
    return params


def evaluate(policy: qwen.Policy, mixture: tasks.Mixture, config) -> dict[str, float]:
    """Held-out greedy accuracy, and the fraction right at temperature 1, overall and per task."""
    problems = mixture.held_out(config.held_out_problems)
    prompts = [policy.tokenizer.encode(problem.compact) for problem in problems]
    keys_P1M = np.array([[randomness.key_data("eval", "warmstart", p)] for p in range(len(problems))])
    tile = sampling.make_tile(prompts, keys_P1M, prompt_slots=config.max_prompt_tokens)
    found = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        sample = sampling.make_sampler(policy.config, max_new_tokens=config.max_new_tokens, temperature=temperature)
        out = jax.device_get(sample(policy.params, tile))
        texts = [
            policy.tokenizer.decode(row[:n]) for row, n in zip(out.tokens_PGT[:, 0], out.lengths_PG[:, 0], strict=True)
        ]
        scores = np.array([mixture.score(p, text) for p, text in zip(problems, texts, strict=True)])
        found[name] = float(scores.mean())
        for task in mixture.tasks:
            found[f"{name}/{task}"] = float(scores[[p.task == task for p in problems]].mean())
    return found


def run(arguments: cli.Arguments) -> int:
    config, workdir = arguments.config, arguments.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    mixture = tasks.make_mixture(config.tasks.to_dict())
    tokenizer = character_tokenizer()
    model_config = qwen.QwenConfig(
        model_type="qwen3",
        vocab_size=tokenizer.vocab_size,
        **config.model.to_dict(),
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
        max_position_embeddings=128,
        eos_token_ids=(0,),
    )
    key = randomness.wrap(randomness.key_data("sample", "warmstart", config.seed))
    params = model.init_params(model_config, key, scale=0.05)
    rng = np.random.default_rng(randomness.seed("sample", "batches", config.seed))
    summary: dict = {"seed": config.seed, "parameters": model_config.num_parameters, "config": config.to_dict()}
    with Progress() as progress:
        for name in ("base", "spoil"):
            stage = config[name]
            bar = progress.add_task(name, total=stage.steps)
            examples = make_examples(config, mixture, tokenizer, stage.right_fraction, name)
            params = train(config, stage, params, model_config, examples, rng, functools.partial(progress.advance, bar))
            policy = qwen.Policy(model_config, params, tokenizer)
            directory = {"base": "base", "spoil": "spoiled"}[name]
            qwen.save(policy, workdir / directory)
            summary[directory] = evaluate(policy, mixture, config) | {"fingerprint": qwen.fingerprint(params)}
            progress.console.print(f"{directory}: {summary[directory]}")
    summary["seconds"] = round(time.monotonic() - started, 1)
    Path(workdir / "warmstart.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    cli.main(run, __doc__)
