"""What whoever starts whole nodes, as a user does, makes small: for all alike, so that they share what is compiled."""

LOCAL, SHARED = 2, 2  # groups of a round, and how many of their problems are criticised and revised
SHAPES = [
    f"--config.swarm.local_groups={LOCAL}",
    "--config.swarm.external_groups=2",
    f"--config.game.shared={SHARED}",
    "--config.sampling.group_size=4",
    "--config.evaluation.problems=16",
    "--config.evaluation.rows=16",
    # a model that knows its tasks, hot enough to be wrong now and then: there is something to learn in so few rounds
    "--config.model.path=rlswarm_jax/assets/tiny-qwen3-base",
    "--config.sampling.temperature=2.0",
    "--config.learn.positive_only_external=False",
]
