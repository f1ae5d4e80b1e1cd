"""What each loss says of itself, by its paper: plain data, for who only reads of a run, too."""

from collections.abc import Mapping
from typing import Any

# What a loss may say of itself, and what holds where it does not: the default's, "swarm". That is GRPO with the bounds
# and the mean over tokens of DAPO, and dual-clip PPO's bound.
OWN: dict[str, Any] = {
    "advantage": "std",
    "ratio": "token",
    "surrogate": "clip",
    "clip_low": 0.2,
    "clip_high": 0.28,
    "dual_clip": 3.0,
    "tau_positive": 1.0,
    "tau_negative": 1.05,
    "aggregation": "tokens",
    "kl": "k3",
    "kl_weight": 0.0,
    "overlong_buffer": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "swarm": {},
    # arXiv:2402.03300 eq. 3 and 4, beta from section 4.2
    "grpo": {"clip_high": 0.2, "dual_clip": 0.0, "aggregation": "sequences", "kl_weight": 0.04},
    # arXiv:2503.20783: no deviation, no lengths
    "dr_grpo": {"advantage": "none", "clip_high": 0.2, "dual_clip": 0.0, "aggregation": "constant"},
    # arXiv:2503.14476 eq. 8, with 4,096 of 20,480 tokens for the soft overlong punishment
    "dapo": {"dual_clip": 0.0, "overlong_buffer": 0.2},
    # arXiv:2507.18071 eq. 5, bounds from section 5.1
    "gspo": {
        **{"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "dual_clip": 0.0, "aggregation": "sequences"},
    },
    # arXiv:2506.13585 eq. 4 and 5, without a lower bound; the upper one, 5, is that of arXiv:2510.13786
    "cispo": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0, "dual_clip": 0.0},
    # arXiv:2511.20347
    "sapo": {"surrogate": "sapo", "dual_clip": 0.0, "aggregation": "sequences"},
    # arXiv:2402.14740: REINFORCE of whole completions, so that a token counts alike whatever its completion's length
    "rloo": {"advantage": "leave_one_out", "surrogate": "none", "dual_clip": 0.0, "aggregation": "constant"},
}


def resolved(learn: Mapping[str, Any]) -> dict[str, Any]:
    """The section `learn` of a config, with what its loss says where a field is '' or -1. Raises ValueError."""
    if learn["loss"] not in PRESETS:
        raise ValueError(f"config.learn.loss is {learn['loss']!r}; expected one of {', '.join(PRESETS)}.")
    own = OWN | PRESETS[learn["loss"]]
    return {name: own[name] if name in own and value in ("", -1) else value for name, value in learn.items()}
