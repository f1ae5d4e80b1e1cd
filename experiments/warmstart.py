"""Makes the embedded tiny Qwen3 from reasoning-gym alone, and from what it has said itself.

    python -m experiments.warmstart --config configs/tiny.py [--config.field=value] [--workdir DIR]

First it learns to answer; then to criticise and to revise as well, on answers that it has sampled (BASE); then to give
up on almost everything (SPOILED). Writes the last two as checkpoints in the Hugging Face layout, DIR/base and
DIR/spoiled, and DIR/warmstart.json. The embedded copies are in rlswarm_jax/assets. One seed gives one result on one
kind of CPU.
"""

import functools
import json
import time
from collections.abc import Sequence

import numpy as np
from rich.progress import Progress

from configs import tiny
from rlswarm_jax import qwen, randomness, tasks
from rlswarm_jax.files import write_whole
from rlswarm_jax.qwen import model
from rlswarm_jax.running.arguments import Arguments, check, main
from rlswarm_jax.running.teaching import (
    GIVE_UP,
    Example,
    answers_to,
    character_tokenizer,
    complete,
    evaluate,
    readings,
    train,
)


def run(arguments: Arguments) -> int:
    config, workdir = arguments.config, arguments.workdir
    check(config, tiny.FIELDS)
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

        def learn(name: str, params: qwen.Params, examples: Sequence[Example]) -> qwen.Policy:
            stage = config[name]
            advance = functools.partial(progress.advance, progress.add_task(name, total=stage.steps))
            return qwen.Policy(
                model_config, train(config, stage, params, model_config, examples, rng, advance), tokenizer
            )

        def save(name: str, policy: qwen.Policy) -> None:
            qwen.save(policy, workdir / name)
            summary[name] = evaluate(policy, mixture, config) | {"fingerprint": qwen.fingerprint(policy.params)}
            progress.console.print(f"{name}: {summary[name]}")

        problems = [
            mixture.problem(randomness.seed("problem", "warmstart", config.seed, n)) for n in range(config.problems)
        ]
        policy = learn("answers", params, answers_to(config, problems, tokenizer))
        read = readings(config, policy, mixture, problems[: config.game.problems])
        policy = learn("game", policy.params, read + answers_to(config, problems[: config.game.answers], tokenizer))
        save("base", policy)
        given_up = [(prompt, complete(GIVE_UP, tokenizer)) for prompt, _ in read]
        right = answers_to(config, problems[: len(read) // 2], tokenizer, config.spoil.right_fraction)
        policy = learn("spoil", policy.params, given_up + right)
        save("spoiled", policy)
    summary["seconds"] = round(time.monotonic() - started, 1)
    write_whole(workdir / "warmstart.json", json.dumps(summary, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    main(run, __doc__, tiny.FIELDS)
