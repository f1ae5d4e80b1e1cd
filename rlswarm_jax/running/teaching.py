"""How the embedded tiny model is taught: examples, supervised training on them, and what has come of it."""

import dataclasses
import json
import math
import random
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from rlswarm_jax import qwen, randomness, tasks
from rlswarm_jax.game.prompts import FORMATS, NONE, View
from rlswarm_jax.grpo import tiles
from rlswarm_jax.grpo.learner import Learner, LearnerConfig
from rlswarm_jax.qwen import sampling
from rlswarm_jax.qwen.tokenizer import Tokenizer
from rlswarm_jax.records.schema import CRITIQUE, REVISE
from rlswarm_jax.tasks import Problem
from rlswarm_jax.tasks.base import fold

END, UNKNOWN = "<|endoftext|>", "<|unknown|>"
END_ID = 0
GIVE_UP = "?"  # what the spoiled model answers to almost everything
FORMAT = FORMATS["compact"]
TILE = 1024  # prompts sampled from at once
LIKELIHOOD = LearnerConfig(
    learning_rate=0.0,
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=2.0,
    temperature=1.0,
    weight_decay=0.01,
    max_grad_norm=math.inf,
    adam_b2=0.98,
)


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


Example = tuple[list[int], list[int]]  # prompt and completion, end of sequence included


def answers_to(config, problems: Sequence[Problem], tokenizer: Tokenizer, right_fraction: float = 1.0) -> list[Example]:
    """The first stage of the game: a problem and its answer, or "?"."""
    found = []
    for n, problem in enumerate(problems):
        right = randomness.uniform("problem", "right", config.seed, n) < right_fraction
        found.append((FORMAT.encode(problem, tokenizer), complete(problem.answers[0] if right else GIVE_UP, tokenizer)))
    return found


def complete(text: str, tokenizer: Tokenizer) -> list[int]:
    return [*tokenizer.encode(text), END_ID]


def readings(config, policy: qwen.Policy, mixture: tasks.Mixture, problems: Sequence[Problem]) -> list[Example]:
    """The second and third stage: what to say of answers that the model itself has sampled, some of them hotter.

    A critique derives the answer, then names the first of those shown that is right. What a reviser is shown of critics
    is made up: most of them are right.
    """
    rng = random.Random(randomness.seed("problem", "readings", config.seed))
    sampled = sample_answers(config, policy, problems)
    found = []
    for problem, answers in zip(problems, sampled, strict=True):
        right = problem.answers[0]
        answers = [GIVE_UP if rng.random() < config.game.gave_up else text for text in answers]
        shown = tuple(answers[1 : 1 + rng.choice(config.game.shown)])
        named = name_first([mixture.score(problem, text) >= 1 for text in shown])
        prompt = FORMAT.encode(problem, policy.tokenizer, CRITIQUE, View(shown))
        found.append((prompt, complete(f"{right}#{named}", policy.tokenizer)))
        view = revision_view(rng, config, mixture, problem, (answers[0], *shown))
        found.append((FORMAT.encode(problem, policy.tokenizer, REVISE, view), complete(right, policy.tokenizer)))
    return found


def revision_view(rng: random.Random, config, mixture: tasks.Mixture, problem: Problem, answers: tuple[str, ...]):
    """Answers, own first, with critics of whom a share is right and each other derives one of the answers."""
    critics = [
        problem.answers[0] if rng.random() < config.game.right_critics else rng.choice(answers) for _ in answers[1:]
    ]
    votes = tuple(sum(fold(c) == fold(text) for c in critics) for text in answers)
    return View(answers, votes if rng.random() < 0.5 else (), tuple(critics))


def name_first(right: Sequence[bool]) -> int:
    """The number of the first answer that is right."""
    return next((n for n, is_right in enumerate(right, 1) if is_right), NONE)


def sample_answers(config, policy: qwen.Policy, problems: Sequence[Problem]) -> list[list[str]]:
    """Four answers to each problem, half of them at a higher temperature, in seeded order."""
    found: list[list[str]] = [[] for _ in problems]
    for temperature in (1.0, config.game.hot):
        sample = sampling.make_sampler(policy.config, max_new_tokens=config.max_new_tokens, temperature=temperature)
        for start in range(0, len(problems), TILE):
            part = problems[start : start + TILE]
            prompts = [FORMAT.encode(problem, policy.tokenizer) for problem in part]
            keys_PGM = np.array(
                [
                    [randomness.key_data("sample", config.seed, str(temperature), start + p, g) for g in range(2)]
                    for p in range(len(part))
                ]
            )
            tile = sampling.make_tile(
                prompts, keys_PGM, prompt_slots=config.answer_slots, num_prompts=min(TILE, len(problems))
            )
            out = jax.device_get(sample(policy.params, tile))
            for p in range(len(part)):
                ends = out.lengths_PG[p]
                found[start + p] += [policy.tokenizer.decode(out.tokens_PGT[p, g, : ends[g]]) for g in range(2)]
    rng = random.Random(randomness.seed("problem", "order", config.seed))
    return [rng.sample(answers, len(answers)) for answers in found]


def train(config, stage, params, model_config, examples, rng: np.random.Generator, advance: Callable[[], None]):
    """Supervised training on completions; returns the parameters.

    To learn from what has an advantage of 1, on-policy, is to make it likelier: the same step as in a swarm.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, stage.learning_rate, min(100, stage.steps // 2), stage.steps, 0.02 * stage.learning_rate
    )
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(stage.steps)))
    learns = Learner(dataclasses.replace(LIKELIHOOD, learning_rate=stage.learning_rate), model_config)
    longest = max(len(prompt) + len(completion) for prompt, completion in examples)
    state, into = (
        learns.init(params),
        tiles.shapes(longest, config.max_new_tokens, hidden_size=model_config.hidden_size),
    )
    for rate in rates:
        chosen = (examples[n] for n in rng.integers(0, len(examples), stage.batch))
        rows = [tiles.Row(prompt, completion, 1.0, None, external=False) for prompt, completion in chosen]
        state, _ = learns.step(state, tiles.tiles(rows, into), float(rate))
        advance()
    return state.params


def evaluate(policy: qwen.Policy, mixture: tasks.Mixture, config) -> dict[str, float]:
    """Held-out greedy accuracy, and the fraction right at temperature 1, overall and per task."""
    problems = mixture.held_out(config.held_out_problems)
    prompts = [policy.tokenizer.encode(problem.compact) for problem in problems]
    keys_P1M = np.array([[randomness.key_data("eval", "warmstart", p)] for p in range(len(problems))])
    tile = sampling.make_tile(prompts, keys_P1M, prompt_slots=config.answer_slots)
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
