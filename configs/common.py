"""What several configs share."""

import ml_collections


def tiny_tasks() -> ml_collections.ConfigDict:
    """The problems that the embedded tiny model was made from: a little language, logic and arithmetic."""
    return ml_collections.ConfigDict(
        {
            "spell_backward": {"weight": 1.0, "min_word_len": 3, "max_word_len": 5},
            "number_sorting": {
                "weight": 1.0,
                "min_numbers": 4,
                "max_numbers": 5,
                "min_decimals": 0,
                "max_decimals": 0,
                "min_value": 0,
                "max_value": 9,
            },
            "chain_sum": {"weight": 1.0, "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        }
    )


def swarm(name: str) -> ml_collections.ConfigDict:
    """A swarm of simulated nodes on the embedded model: every field, with what it means."""
    config = ml_collections.ConfigDict()
    config.name = name
    config.seed = 0
    config.rounds = 200

    config.model = ml_collections.ConfigDict()
    config.model.path = "embedded"  # a Hugging Face directory or hub id, or the embedded tiny Qwen
    config.model.prompts = "auto"  # chat where the checkpoint has a chat template, else compact

    config.tasks = tiny_tasks()  # reasoning-gym datasets, their weights and options

    config.swarm = ml_collections.ConfigDict()
    config.swarm.nodes = 4
    config.swarm.local_groups = 4  # problems a node answers, and shares, each round
    config.swarm.external_groups = 4  # peers' groups it learns from each round
    config.swarm.max_staleness = 4  # rounds after which a peer's group is too old

    config.sampling = ml_collections.ConfigDict()
    config.sampling.group_size = 8  # completions of a problem
    config.sampling.temperature = 1.0
    config.sampling.max_prompt_tokens = 0  # 0: 16 for compact prompts, 512 for chat
    config.sampling.max_new_tokens = 0  # 0: 12 for compact prompts, 256 for chat
    config.sampling.exact = False  # bit-identical in any batch, slower
    config.sampling.exact_rows = 32  # the fixed tile of exact mode

    config.learn = ml_collections.ConfigDict()
    config.learn.learning_rate = 3e-4
    config.learn.weight_decay = 0.0
    config.learn.max_grad_norm = 1.0
    config.learn.clip_low = 0.2
    config.learn.clip_high = 0.28
    config.learn.advantage_scale = "std"  # or "none" (Dr. GRPO)
    config.learn.positive_only_external = True  # of peers' completions only the better ones
    config.learn.external_correction = "reencode"  # on-policy by assertion (SAPO), or "behaviour"
    config.learn.updates_per_round = 1
    config.learn.microbatch_rows = 0  # 0: the whole batch at once

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.problems = 512  # held out, common to all nodes
    config.evaluation.every = 20  # rounds
    config.evaluation.rows = 512  # decoded at once

    config.simulation = ml_collections.ConfigDict()  # virtual seconds
    config.simulation.sample = 1.0
    config.simulation.learn = 1.0
    config.simulation.evaluate = 0.5
    config.simulation.slowdown = ()  # factors on a node's own effects, by node index
    config.simulation.deadline = 5.0  # a stage waits no longer for its peers
    config.simulation.latency = 0.05
    config.simulation.jitter = 0.05
    config.simulation.loss = 0.0  # probability per message and receiver
    config.simulation.partitions = ()  # ((start, end, ((0, 1), (2, 3))), ...)

    config.checkpoint_every = 20  # rounds
    config.wandb = ml_collections.ConfigDict()
    config.wandb.mode = "auto"  # online if logged in, else offline; or online, offline, disabled
    config.wandb.project = "rlswarm_jax"
    return config


def smoke(config: ml_collections.ConfigDict) -> None:
    """The same path in a minute: few rounds, few problems."""
    config.name += "-smoke"
    config.rounds = 6
    config.evaluation.problems = config.evaluation.rows = 64
    config.evaluation.every = 3
    config.checkpoint_every = 2
    config.wandb.mode = "disabled"
