"""What several configs share."""

from collections.abc import Callable

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


def hard_tasks() -> ml_collections.ConfigDict:
    """What the embedded tiny model was taught as well, but never gets right for sure."""
    return ml_collections.ConfigDict(
        {"products": {"weight": 1.0, "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}}
    )


def swarm(name: str) -> ml_collections.ConfigDict:
    """A swarm on the embedded model: every field, with what it means."""
    config = ml_collections.ConfigDict()
    config.name = name
    config.driver = "live"  # a process for each node; "simulate": all in one; "node": this one, which joins others
    config.seed = 0
    config.rounds = 150

    config.model = ml_collections.ConfigDict()
    config.model.path = "embedded"  # or "embedded:base": before it was spoiled; or a Hugging Face directory or hub id
    config.model.prompts = "auto"  # chat where the checkpoint has a chat template, else compact
    config.model.thinking = ""  # "on" or "off": Qwen3's thoughts before an answer ("": as the chat template has it)

    config.tasks = tiny_tasks()  # reasoning-gym datasets, their weights and options

    config.swarm = ml_collections.ConfigDict()
    config.swarm.name = "rlswarm"  # nodes of other swarms don't hear each other
    config.swarm.nodes = 4  # that this machine starts
    config.swarm.local_groups = 4  # problems a node answers each round
    config.swarm.external_groups = 4  # peers' groups it learns from each round
    config.swarm.max_staleness = 4  # rounds after which a peer's group is too old
    config.swarm.deadline = 60.0  # seconds a stage waits for its peers (0: for ever)
    config.swarm.host = "127.0.0.1"  # address to listen on; 0.0.0.0 for other machines to reach
    config.swarm.port = 0  # of a single node; 0: any that is free
    config.swarm.key = ""  # file with the key of a single node; "": node.key in its folder, made if it isn't there
    config.swarm.bootnodes = ()  # addresses of running nodes, as they print them: ("/ip4/.../tcp/.../p2p/...",)
    config.swarm.peers = ()  # peer ids of nodes to wait for before they have spoken (the launcher fills them in)
    config.swarm.target_peers = 6  # peers to be connected with, if there are so many
    config.swarm.devices = "cpu"  # of the nodes of a local swarm: cpu, gpu (shared out among them) or tpu

    config.game = ml_collections.ConfigDict()
    config.game.stages = 3  # 1: answer; 2: and criticise each other's answers; 3: and revise one's own
    config.game.shared = 2  # of a node's problems, those that all nodes have: they are criticised and revised
    config.game.shown = 3  # answers of others that a node is shown of a problem, at most
    config.game.critics = 3  # critiques
    config.game.show_votes = True  # and for how many critics each answer is the best
    config.game.weights = (1.0, 1.0, 1.0)  # of the stages' samples in the loss
    config.game.form_reward = 0.0  # added for a completion that has an answer at all, or names one
    config.game.improvement_reward = 0.0  # for a revision, by as much as it is better than the first answer
    config.game.consensus_reward = 0.0  # for a revision as the swarm voted, where no verifier can say what is right
    config.game.answer_tokens = 0  # of an answer as it is shown, its end; 0: 9 for compact prompts, 384 for chat
    config.game.critique_tokens = 0  # of a critique; 0: 9 and 256
    config.game.personas = ()  # for chat: what nodes are told to be, each one of these

    config.scoring = ml_collections.ConfigDict()
    config.scoring.workers = 2  # processes for tasks whose scoring takes time

    config.sampling = ml_collections.ConfigDict()
    config.sampling.group_size = 8  # completions of a problem
    config.sampling.temperature = 1.0
    config.sampling.max_prompt_tokens = 0  # 0: 96 for compact prompts, 3072 for chat; in a game of one stage 16 and 512
    config.sampling.max_new_tokens = 0  # 0: 12 for compact prompts, 256 for chat
    config.sampling.exact = False  # bit-identical in any batch, slower
    config.sampling.exact_rows = 32  # the fixed tile of exact mode
    config.sampling.rows = 0  # completions computed at a time, the others wait for a row that is free (0: all)
    config.sampling.dtype = "float32"  # of the weights while sampling: bfloat16 on GPU and TPU
    config.sampling.kv_dtype = ""  # of the key/value cache: float32, bfloat16 or int8 ("": as the weights)

    config.learn = ml_collections.ConfigDict()
    config.learn.learning_rate = 3e-4
    config.learn.decay_to = 1.0  # of it, at the last round; a node that plays without end keeps it
    config.learn.weight_decay = 0.0
    config.learn.max_grad_norm = 1.0
    config.learn.clip_low = 0.2
    config.learn.clip_high = 0.28
    config.learn.advantage_scale = "std"  # or "none" (Dr. GRPO)
    config.learn.positive_only_external = True  # of peers' completions only the better ones
    config.learn.positive_only_local = False  # the same of a node's own
    config.learn.external_correction = "reencode"  # on-policy by assertion (SAPO), or "behaviour"
    config.learn.external_min_prob = 1e-4  # below it a peer's token is not learned: what one would never say (0: all)
    config.learn.updates_per_round = 1
    config.learn.microbatch_rows = 0  # 0: the whole batch at once

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.problems = 512  # held out, common to all nodes
    config.evaluation.every = 20  # rounds
    config.evaluation.rows = 512  # decoded at once
    config.evaluation.temperature = 0.0  # 0: greedy; else sampled, and cut off by:
    config.evaluation.top_k = 0  # 0: all tokens
    config.evaluation.top_p = 1.0
    config.evaluation.min_p = 0.0

    config.chain = ml_collections.ConfigDict()  # on which rounds and contributions are kept
    config.chain.endpoint = "devnet"  # or "anvil", started with the swarm; "none"; a URL, or $NAME that holds one
    config.chain.contract = ""  # at an endpoint of others: the coordinator's address
    config.chain.id = 0  # ... and the chain's
    config.chain.confirmations = 6  # ... and blocks until a transaction counts as settled
    config.chain.every = 5  # rounds between looks at it; a round of its own takes two of these (at 1 stages follow it)
    config.chain.payout = ""  # account that a single node's earnings go to ("": that of its key)
    config.chain.keep = 200  # rounds whose records a node keeps, for whoever checks claims (a disk for large swarms)

    config.devices = ml_collections.ConfigDict()  # how a process uses those that jax gives it: by default all, each
    config.devices.backend = "shard_map"  # ... with all parameters and a part of the batch; or "pmap"
    config.devices.fsdp = 1  # devices over which the parameters are split, for models that exceed one
    config.devices.tensor = 1  # the same within each layer; fsdp * tensor divides the number of devices
    config.devices.processes = 1  # that are one node together, of driver "node"; 0: as the cluster says (TPU pods)
    config.devices.process = 0  # which of them this is; process 0 plays, the others compute with it
    config.devices.coordinator = ""  # host:port of process 0 that the others can reach

    config.simulation = ml_collections.ConfigDict()  # of driver "simulate"; virtual seconds
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
    config.rounds = 6
    config.evaluation.problems = config.evaluation.rows = 64
    config.evaluation.every = 3
    config.checkpoint_every = 2
    config.wandb.mode = "disabled"


def simulate(config: ml_collections.ConfigDict) -> None:
    """The same nodes in one process, on a virtual clock and a virtual network."""
    config.driver = "simulate"


def apply(config: ml_collections.ConfigDict, variant: str, *known: Callable[[ml_collections.ConfigDict], None]) -> None:
    """Changes a config as a variant such as "simulate-smoke" says, whose words name functions. Raises ValueError."""
    by_name = {function.__name__: function for function in known}
    for word in variant.split("-") if variant else ():
        if word not in by_name:
            raise ValueError(f"configs/{config.name}.py has no variant {word!r}; expected {' or '.join(by_name)}.")
        by_name[word](config)
    config.name += f"-{variant}" if variant else ""
