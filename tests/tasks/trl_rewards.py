"""Reward functions in the styles of TRL's documentation and of those who follow it, to be plugged in as they are."""

import re
from typing import Any

seen: list[dict[str, Any]] = []
not_a_function = 3


def accuracy_reward(completions, solution, **kwargs):
    """Of messages, against a column."""
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if f"${content}$" == right else 0.0 for content, right in zip(contents, solution, strict=True)]


def format_reward(completions, **kwargs):
    """Of messages, by their form alone."""
    matches = [
        re.match(r"^<think>.*?</think>\s*\d+$", completion[0]["content"], re.DOTALL) for completion in completions
    ]
    return [1.0 if match else 0.0 for match in matches]


def boxed_reward(completions, solution, **kwargs):
    """Of texts, against a column."""
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    return [1.0 if m and f"${m.group(1)}$" == s else 0.0 for m, s in zip(matches, solution, strict=True)]


def even_reward(prompts, completions, kind, **kwargs):
    """None where it does not apply."""
    return [
        (1.0 if completion else -1.0) if k == "even" else None for completion, k in zip(completions, kind, strict=True)
    ]


async def slow_reward(prompts, completions, **kwargs):
    return [float(completion in prompt) for prompt, completion in zip(prompts, completions, strict=True)]


def length_reward(completions, **kwargs):
    return [len(completion) for completion in completions]


def negative_reward(completions, **kwargs):
    return [-1 for _ in completions]


def spying_reward(**kwargs):
    seen.append(kwargs)
    kwargs["tags"][0].clear()
    return [0.5]


def token_reward(completions, completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]


def nan_reward(completions, **kwargs):
    return [float("nan")]


def two_rewards(completions, **kwargs):
    return [1.0, 1.0]


def text_reward(completions, **kwargs):
    return ["good"]


def failing_reward(completions, **kwargs):
    raise RuntimeError("no")
