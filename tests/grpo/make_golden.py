"""Writes fixtures/trl.npz: what TRL's GRPOTrainer makes of given log-probs, loss by loss, with the gradient in each.

    python -m tests.grpo.make_golden        (needs torch and trl; written with trl 1.16.0)

Its own `_compute_loss` runs, on a trainer that is nothing but its settings and a model that is nothing but log-probs.
"""

import collections
import contextlib
import types
from pathlib import Path

import numpy as np

PATH = Path(__file__).parent / "fixtures" / "trl.npz"
B, C, MOST = 6, 5, 7
LENGTHS = np.array([5, 3, 1, 4, 5, 2])
# our names for what a loss is, and TRL's settings for it
BOUNDS = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 0.0}
LOSSES = {
    "grpo": (
        {**BOUNDS, "aggregation": "sequences", "kl_weight": 0.04},
        {"loss_type": "grpo", "beta": 0.04},
    ),
    "dr_grpo": ({**BOUNDS, "aggregation": "constant"}, {"loss_type": "dr_grpo"}),
    "dapo": ({**BOUNDS, "aggregation": "tokens"}, {"loss_type": "dapo"}),
    "bnpo": ({**BOUNDS, "aggregation": "tokens"}, {"loss_type": "bnpo"}),
    "two-sided": ({**BOUNDS, "dual_clip": 1.5, "aggregation": "tokens"}, {"loss_type": "bnpo", "delta": 1.5}),
    "gspo": (
        {**BOUNDS, "ratio": "sequence", "aggregation": "sequences"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    "cispo": (
        {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.28, "aggregation": "tokens"},
        {"loss_type": "cispo", "epsilon_high": 1.28},
    ),
    "sapo": (
        {"surrogate": "sapo", "tau_positive": 1.0, "tau_negative": 1.05, "aggregation": "sequences"},
        {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05},
    ),
    "corrected": ({**BOUNDS, "aggregation": "tokens"}, {"loss_type": "dapo", "use_vllm": True}),
    "high entropy": ({**BOUNDS, "aggregation": "tokens"}, {"loss_type": "dapo", "top_entropy_quantile": 0.4}),
}


def given() -> dict[str, np.ndarray]:
    rng = np.random.RandomState(3)
    now_BC = -rng.uniform(0.1, 3, (B, C))
    old_BC = now_BC + rng.uniform(-0.8, 0.8, (B, C))
    return {
        "now_BC": now_BC,
        "old_BC": old_BC,
        "reference_BC": now_BC + rng.uniform(-0.8, 0.8, (B, C)),
        "behaviour_BC": old_BC + rng.uniform(-1.2, 1.2, (B, C)),
        "entropy_BC": rng.uniform(0, 3, (B, C)),
        "advantages_B": np.array([1.2, -0.7, 0.5, -1.5, 0.9, -0.3]),
    }


def theirs(name: str) -> tuple[float, np.ndarray]:
    """Loss and gradient, by TRL."""
    import torch
    from trl import GRPOTrainer

    numbers = {key: torch.tensor(array, dtype=torch.float64) for key, array in given().items()}
    now_BC = numbers["now_BC"].clone().requires_grad_()
    mask_BC = torch.tensor(np.arange(C) < LENGTHS[:, None]).long()
    settings = {
        **{"importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.28},
        **{"use_vllm": False, "top_entropy_quantile": 1.0, "delta": None},
        **LOSSES[name][1],
    }
    delta = settings.pop("delta")
    temperatures = {key: settings.pop(key, 1.0) for key in ("sapo_temperature_pos", "sapo_temperature_neg")}
    trainer = types.SimpleNamespace(
        **settings,
        args=types.SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1, **temperatures),
        accelerator=types.SimpleNamespace(
            num_processes=1,
            gather=lambda x: x,
            reduce=lambda x, **_: x,
            pad_across_processes=lambda x, **_: x,
            sync_gradients=True,
        ),
        model=types.SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=MOST,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (now_BC, numbers["entropy_BC"], None),
    )
    trainer.get_high_entropy_mask = types.MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    ids = torch.zeros((B, 1), dtype=torch.long)
    ratio_BC = torch.exp(numbers["old_BC"] - numbers["behaviour_BC"]).clamp(max=2.0)
    inputs = {
        **{"prompt_ids": ids, "prompt_mask": ids, "completion_ids": mask_BC, "completion_mask": mask_BC},
        **{"advantages": numbers["advantages_B"], "old_per_token_logps": numbers["old_BC"]},
        **{"ref_per_token_logps": numbers["reference_BC"], "importance_sampling_ratio": ratio_BC},
        "num_items_in_batch": mask_BC.sum(),
    }
    with contextlib.redirect_stdout(None):
        loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert now_BC.grad is not None
    return loss.item(), now_BC.grad.numpy()


def main() -> None:
    found = {}
    for name in LOSSES:
        found[f"{name}/loss"], found[f"{name}/gradient_BC"] = theirs(name)
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, **found)


if __name__ == "__main__":
    main()
