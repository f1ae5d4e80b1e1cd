"""How much of the held-out problems a policy gets right."""

from collections.abc import Sequence

import numpy as np

from rlswarm_jax import qwen, randomness
from rlswarm_jax.game.effects import Metrics
from rlswarm_jax.game.prompts import PromptFormat
from rlswarm_jax.qwen.sampler import Sampler
from rlswarm_jax.qwen.tokenizer import Tokenizer
from rlswarm_jax.tasks import Problem
from rlswarm_jax.tasks.verifier import Verifier


class Evaluator:
    """Held-out accuracy, on problems common to all nodes.

    If the sampler draws, then with the same noise each time: what differs between nodes and rounds are the weights.
    """

    def __init__(
        self, sampler: Sampler, verifier: Verifier, prompt_format: PromptFormat, tokenizer: Tokenizer, problems: int
    ):
        self._sampler, self._verifier, self._format, self._tokenizer = sampler, verifier, prompt_format, tokenizer
        self.problems = verifier.mixture.held_out(problems)
        self._prompts = [prompt_format.encode(problem, tokenizer) for problem in self.problems]
        self.longest = max(map(len, self._prompts))  # of the prompts, in tokens
        self._keys_P1M = np.array([[randomness.key_data("eval", "held-out", p)] for p in range(problems)])

    def __call__(self, params: qwen.Params) -> Metrics:
        """params: prepared for the sampler."""
        answers: list[tuple[Problem, str]] = []
        for part, out in self._sampler.parts(params, self._prompts, self._keys_P1M):
            texts = [self._tokenizer.decode(out.tokens_PGT[p, 0, : out.lengths_PG[p, 0]]) for p in range(len(part))]
            found = [(self.problems[p], self._format.answer(text)) for p, text in zip(part, texts, strict=True)]
            self._verifier.begin(found)  # while the device goes on
            answers += found
        return self._accuracy([problem.task for problem, _ in answers], self._verifier.score(answers).scores)

    def compile(self, params: qwen.Params) -> None:
        """Ahead of time, without evaluating."""
        self._sampler.compile(params, len(self._prompts), 1, self.longest)

    def _accuracy(self, tasks: Sequence[str], scores: Sequence[float]) -> Metrics:
        right, tasks_P = np.array(scores) >= 1.0, np.array(tasks)
        found = {"accuracy": float(right.mean()), "problems": float(len(right))}
        for task in self._verifier.mixture.tasks:
            if (tasks_P == task).any():
                found[f"accuracy/{task}"] = float(right[tasks_P == task].mean())
        return found
