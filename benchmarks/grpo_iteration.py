"""How fast a whole GRPO iteration is, against TRL's GRPOTrainer: completions sampled, judged and learned from.

    python -m benchmarks.grpo_iteration --peer-python ~/trl/bin/python         # needs trl and torch there
    python -m benchmarks.grpo_iteration --smoke                                # ours alone, the tiny model

Rows, lines and clocks are those of benchmarks/train_step.py, but that ours and TRL's sample completions of their own,
each until its model ends it or they are NEW TOKENS long. Ours is the front door (`qwen.generate`) and the train step.
"""

from collections.abc import Sequence

from benchmarks.train_step import parse_args, run

ROWS = "tiny-1x8-16+12,tiny-8x8-16+12,tiny-32x8-16+12"


def main(argv: Sequence[str] | None = None) -> None:
    run(parse_args("grpo_iteration", __doc__, ROWS, argv), "ours-iteration", "trl-iteration", "tiny-1x8-16+12")


if __name__ == "__main__":
    main()
