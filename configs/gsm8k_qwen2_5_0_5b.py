"""GSM8K by GRPO: one Qwen2.5-0.5B-Instruct on one card.

    python -m experiments.run --config configs/gsm8k_qwen2_5_0_5b.py              all weights
    python -m experiments.run --config configs/gsm8k_qwen2_5_0_5b.py:lora         an adapter of rank 32
    python -m experiments.run --config configs/gsm8k_qwen2_5_0_5b.py --plan --memory 16GB
    python -m experiments.run --config configs/gsm8k_qwen2_5_0_5b.py:files        from train.jsonl and test.jsonl here

Without `files` the data come from the hub by name (`pip install 'rlswarm_jax[datasets]'`); the files of
github.com/openai/grade-school-math are the same ones, at other places with --config.tasks.gsm8k.path=... and
--config.tasks.gsm8k.held_out_path=...

Hardware: one NVIDIA card of 16 GB (computed: 11.5 GB at the peak), or of 8 GB with `lora` (computed: 4.5 GB).
NOT YET MEASURED: neither time nor accuracy; tests play it with random weights of the same layout.
To beat, of this model on the same 1,319 test problems, as verl's docs/algo/baseline.md has them: GRPO-LoRA 54.3, PPO
56.7, PRIME 58.7 (and 36.4 before). Ours is greedy, at once, without examples in the prompt.

Of verl's GRPO-LoRA are the 512 tokens of a prompt and rank 32; 16 problems of 8 completions a round, 512 new tokens,
three times through the 7,473 problems, the learning rates and that there is no KL penalty are ours.
"""

import ml_collections

from configs import common


def lora(config: ml_collections.ConfigDict) -> None:
    config.lora.rank, config.lora.alpha = 32, 32.0
    config.learn.learning_rate = 1e-5


def files(config: ml_collections.ConfigDict) -> None:
    config.tasks.gsm8k = _gsm8k(path="train.jsonl", held_out_path="test.jsonl")


def _gsm8k(**source: str) -> ml_collections.ConfigDict:
    """How a row is read, wherever it comes from: a solution ends with #### and the number."""
    columns = {"question": "question", "answer": "answer", "answer_after": "####", "check": "numeric"}
    return ml_collections.ConfigDict({"kind": "dataset", "weight": 1.0} | columns | source)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = common.swarm("gsm8k_qwen2_5_0_5b")
    common.simulate(config)
    config.model.path = "Qwen/Qwen2.5-0.5B-Instruct"
    config.tasks = {"gsm8k": _gsm8k(path="openai/gsm8k", subset="main", held_out_split="test")}
    config.rounds = 1400
    config.swarm.nodes = config.game.stages = 1
    config.swarm.local_groups, config.swarm.external_groups = 16, 0
    config.sampling.max_prompt_tokens = config.sampling.max_new_tokens = 512
    config.sampling.dtype = config.learn.dtype = "bfloat16"
    config.learn.loss, config.learn.kl_weight = "grpo", 0.0
    config.learn.learning_rate, config.learn.microbatch_rows = 1e-6, 4
    config.evaluation.problems, config.evaluation.rows, config.evaluation.every = 1319, 64, 100
    config.checkpoint_every = 100
    config.chain.endpoint = "none"  # a study: problems follow from the seed
    common.apply(config, variant, lora, files, common.smoke)
    return config
