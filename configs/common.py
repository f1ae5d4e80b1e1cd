"""What several configs share: the table of all fields, with what each is by default, may be, and means.

python -m experiments.run --config configs/quickstart.py --config.learn.learning_rate=1e-4
"""

import difflib
import importlib
import ipaddress
import re
from collections.abc import Callable

import ml_collections

from configs import fields
from configs.fields import (
    Field,
    FieldError,
    Range,
    above,
    each,
    mapping,
    matching,
    one_of,
    plain,
    real,
    row,
    span,
    such,
    text,
    whole,
    yes_no,
    zero_or,
)
from rlswarm_jax.identity import author_of
from rlswarm_jax.publish import targets
from rlswarm_jax.records.schema import MAX_GROUP_SIZE, MAX_GROUPS, MAX_NAME, MAX_TOKENS, STAGES
from rlswarm_jax.swarm import addresses

LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
LOCAL_CHAINS = ("devnet", "anvil", "none")

TINY_TASKS = {  # the problems that the embedded tiny model was made from: a little language, logic and arithmetic
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
# what it was taught as well, but never gets right for sure
HARD_TASKS = {"products": {"weight": 1.0, "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}}


def tiny_tasks() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(TINY_TASKS)


def hard_tasks() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(HARD_TASKS)


# --- ranges that several fields have, or that take more than a word to say

OPTIONS = mapping("a mapping of options", plain(), named={"weight": above(0), "kind": text(1)})
TASKS = mapping("at least one task, a name with its options", OPTIONS, least=1)
FOLDER = matching(r"[^./\n][^/\n]{0,99}", "a name for a folder: 1 to 100 characters, no / among them")
ADDRESS = matching("(0x[0-9a-fA-F]{40})?", "an address, 0x and 40 hexadecimal digits, or nothing")
PEER = such(lambda peer: author_of(peer) is not None, "the peer id of a secp256k1 key")
BOOTNODE = such(lambda address: addresses.read(address) is not None, addresses.WANTED)
OWN = row(each(whole(0)), mapping("fields with values", plain()))
PRESENT = row(whole(0), each(row(whole(0), whole(1))))
PARTITION = row(real(0), real(0), each(each(whole(0))))
STRATEGIES = (
    *("wrong", "copy", "spam", "free_ride", "style", "lengthen", "lazy", "collude"),
    *("other_key", "best_of", "stale", "withhold", "accuse", "vouch", "equivocate", "own_vote"),
)
ROUNDS = span("() for none, or (first, end): two whole numbers from 0, the first one smaller")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 65_535


def own(allowed: Range) -> Range:
    """-1 has a meaning of its own: what the loss says."""
    return Range(f"-1 (the loss's own) or {allowed.expected}", lambda value: value == -1 or allowed.holds(value))


def known(table: str) -> Range:
    """Nothing, or a name in a table of the losses, which are asked only then: they take jax, and its second to load."""

    def holds(name: str) -> bool:
        return not name or name in getattr(importlib.import_module("rlswarm_jax.grpo.objective"), table)

    return such(holds, f"'' (the loss's own) or one of {table} in rlswarm_jax/grpo/objective.py")


LOSS = such(
    lambda name: name == "swarm" or (bool(name) and known("PRESETS").holds(name)),
    "a loss of docs/losses.md, such as grpo, dapo or gspo",
)
HOST = such(
    lambda host: host == addresses.ANY or _is_ip(host),
    "an address of this machine such as 127.0.0.1, or any for all of them, over IPv4 and IPv6",
)
HEALTH = such(
    lambda text: not text or (_is_ip(text.rpartition(":")[0].strip("[]")) and _is_port(text.rpartition(":")[2])),
    "'' or an address of this machine with a port, such as 127.0.0.1:9464",
)
ANNOUNCED = such(lambda text: addresses.read_endpoint(text) is not None, addresses.ANNOUNCED)
ENDPOINT = matching(
    rf"{'|'.join(LOCAL_CHAINS)}|https?://[^/].*|\$\w+",
    f"{', '.join(LOCAL_CHAINS)}, an http(s):// address, or $NAME of an environment variable that holds one",
    secret=True,  # an address may have a password in it
)
PLACE = such(
    lambda text: not text or targets.read(text.replace("{node}", "node")) is not None,
    f"'' or {targets.WANTED}",
    secret=True,
)
PROJECT = matching(r"[^/\\#?%:]{1,128}", "1 to 128 characters, none of / \\ # ? % :")

# --- every field: default, range, meaning

FIELDS = {
    "name": Field("swarm", FOLDER, "of the run and its folder: the config file's"),
    "driver": Field(
        "live", one_of("live", "simulate", "node", "bootnode"), "a process a node; all in one; one node; no model"
    ),
    "seed": Field(0, whole(0, 2**63 - 1), "of problems, noise and the keys of studies"),
    "rounds": Field(150, whole(0, 10_000_000), "0: until it is stopped, of a single node"),
    #
    "model.path": Field("embedded", text(1), 'or "embedded:base", not yet spoiled; a directory or hub id'),
    "model.prompts": Field("auto", one_of("auto", "compact", "chat"), "auto: chat for checkpoints with a template"),
    "model.thinking": Field("", one_of("", "on", "off"), "Qwen3's thoughts before an answer (\"\": its template's)"),
    #
    "tasks": Field(TINY_TASKS, TASKS, "a name, a weight and options each: reasoning-gym, or as docs/tasks.md says"),
    #
    "swarm.name": Field("rlswarm", text(1, MAX_NAME), "nodes of other swarms don't hear each other"),
    "swarm.nodes": Field(4, whole(1, 1024), "that this machine starts"),
    "swarm.local_groups": Field(4, whole(1, MAX_GROUPS), "problems a node answers each round"),
    "swarm.external_groups": Field(4, whole(0, 4096), "peers' groups it learns from each round"),
    "swarm.max_staleness": Field(4, whole(0), "rounds after which a peer's group is too old"),
    "swarm.min_staleness": Field(0, whole(0), "and before which it waits to be learned from, for studies"),
    "swarm.fill": Field(True, yes_no(), "one more of peers' groups for each of its own that teaches nothing"),
    "swarm.flat": Field(False, yes_no(), "groups that teach nothing, all rewards equal, are learned from as well"),
    "swarm.max_length_ratio": Field(0.0, zero_or(real(1, 1000)), "of peers' completions to its own; 0: any length"),
    "swarm.choose": Field("useful", one_of("turns", "reward", "variety", "useful"), "which of peers' groups are first"),
    "swarm.reads": Field(0, whole(0, 4096), "authors whose records a node reads in a round, drawn anew; 0: all"),
    "swarm.deadline": Field(60.0, real(0, 1_000_000), "seconds a stage waits for its peers at most (0: for ever)"),
    "swarm.host": Field("127.0.0.1", HOST, "to listen on; any for other machines to reach"),
    "swarm.port": Field(0, whole(0, 65535), "of a single node; 0: any that is free"),
    "swarm.announce": Field((), each(ANNOUNCED), "where others reach it, if elsewhere: ('/ip4/.../tcp/...',)"),
    "swarm.key": Field("", text(), "file with the key of a single node; '': node.key in its folder, made if not there"),
    "swarm.bootnodes": Field((), each(BOOTNODE), "addresses of running nodes: ('/ip4/.../tcp/.../p2p/...',)"),
    "swarm.peers": Field((), each(PEER), "peer ids to wait for before they have spoken (the launcher fills them in)"),
    "swarm.alone": Field(False, yes_no(), "beside a local swarm nodes alone are played, to compare with"),
    "swarm.health": Field(
        "127.0.0.1:0", HEALTH, "where a live node says whether it is well; port 0: any (node.json has it); '': nowhere"
    ),
    "swarm.target_peers": Field(6, whole(1, 1024), "peers to be connected with, if there are so many"),
    "swarm.adversary": Field("", one_of("", *STRATEGIES), "for studies of what ill-meaning nodes do: each is one"),
    "swarm.devices": Field("cpu", one_of("cpu", "gpu", "tpu"), "of a local swarm's nodes; gpu: shared out among them"),
    #
    "game.stages": Field(3, whole(1, len(STAGES)), "1: answer; 2: and criticise each other's; 3: and revise one's own"),
    "game.shared": Field(2, whole(0, MAX_GROUPS), "of a node's problems, those that all have: these are criticised"),
    "game.redraws": Field(0, whole(0, 64), "of a problem that not all have, while its answers all earn the same"),
    "game.shown": Field(3, whole(1, MAX_GROUPS // 2 - 1), "others' answers that a node is shown of a problem, at most"),
    "game.critics": Field(3, whole(0, MAX_GROUPS // 2), "critiques"),
    "game.show_votes": Field(True, yes_no(), "and for how many critics each answer is the best"),
    "game.stand_by": Field(True, yes_no(), "a compact revision that is ? stands by the first answer"),
    "game.weights": Field((1.0, 1.0, 1.0), each(real(0), len(STAGES)), "of the stages' samples in the loss"),
    "game.form_reward": Field(0.0, real(0), "for a completion that has an answer at all, or names one"),
    "game.improvement_reward": Field(0.0, real(0), "for a revision, by as much as it is better than the first answer"),
    "game.derivation_reward": Field(1.0, real(0), "for a compact critique that names and answers rightly itself"),
    "game.consensus_reward": Field(0.0, real(0), "for a revision as the swarm voted, where nothing can verify it"),
    "game.answer_tokens": Field(0, whole(0, MAX_TOKENS), "of an answer as shown, its end; 0: 9 compact, 384 chat"),
    "game.critique_tokens": Field(0, whole(0, MAX_TOKENS), "of a critique; 0: 9 and 256"),
    "game.personas": Field((), each(text(1)), "for chat: what nodes are told to be, each one of these"),
    #
    "scoring.workers": Field(2, whole(1, 1024), "processes for tasks whose scoring takes time"),
    #
    "sampling.group_size": Field(8, whole(2, MAX_GROUP_SIZE), "completions of a problem"),
    "sampling.temperature": Field(1.0, real(0.01, 100), "of training samples"),
    "sampling.max_prompt_tokens": Field(0, whole(0, 10**6), "0: 96 compact, 3072 chat; in a game of one stage 16, 512"),
    "sampling.max_new_tokens": Field(0, whole(0, MAX_TOKENS), "0: 12 for compact prompts, 256 for chat"),
    "sampling.exact": Field(False, yes_no(), "bit-identical in any batch, slower"),
    "sampling.exact_rows": Field(32, whole(1, 65536), "the fixed tile of exact mode"),
    "sampling.rows": Field(0, whole(0, 65536), "completions at a time, others wait for a row that is free (0: all)"),
    "sampling.dtype": Field("float32", one_of("float32", "bfloat16"), "of the weights while sampling: bfloat16 on GPU"),
    "sampling.kv_dtype": Field("", one_of("", "float32", "bfloat16", "int8"), "of the cache; '': as the weights"),
    #
    "learn.learning_rate": Field(3e-4, real(0, 1), "of AdamW"),
    "learn.decay_to": Field(1.0, real(0, 1000), "of it, at the last round; a node that plays without end keeps it"),
    "learn.weight_decay": Field(0.0, real(0, 1), "of AdamW"),
    "learn.max_grad_norm": Field(1.0, above(0), "longer gradients are shortened to it"),
    "learn.loss": Field("swarm", LOSS, "whose own the fields are, from here to kl_weight, that are '' or -1"),
    "learn.advantage": Field("", known("ADVANTAGES"), "what a completion's reward is compared with"),
    "learn.pass_k": Field(4, whole(1, MAX_GROUP_SIZE), "for pass_at_k: the best of so many counts"),
    "learn.ratio": Field("", known("RATIOS"), "of each token, or its completion's mean"),
    "learn.surrogate": Field("", known("SURROGATES"), "how what an update gains by moving on is bounded"),
    "learn.clip_low": Field(-1.0, own(real(0, 1)), "the ratio is clipped below 1 less this"),
    "learn.clip_high": Field(-1.0, own(real(0)), "and above 1 and this"),
    "learn.dual_clip": Field(-1.0, own(zero_or(above(1, 1000))), "where the advantage is negative, too; 0: no bound"),
    "learn.tau_positive": Field(-1.0, own(above(0, 1000)), "for sapo: the slope's, of good completions"),
    "learn.tau_negative": Field(-1.0, own(above(0, 1000)), "and of bad ones"),
    "learn.aggregation": Field("", known("AGGREGATIONS"), "what is a mean over what"),
    "learn.overlong_buffer": Field(-1.0, own(real(0, 1)), "share of a completion's tokens, the last, that cost reward"),
    "learn.kl": Field("", known("KL"), "estimator of the divergence from the reference"),
    "learn.kl_weight": Field(-1.0, own(real(0, 1000)), "of it in the loss; above 0 takes memory for the reference"),
    "learn.reference_every": Field(0, whole(0), "rounds after which the policy becomes the reference; 0: never"),
    "learn.entropy_bonus": Field(0.0, real(0, 10), "of the entropy in the loss"),
    "learn.entropy_top": Field(1.0, above(0, 1), "share of tokens, of the highest entropy, that are learned from"),
    "learn.mask_truncated": Field(False, yes_no(), "completions that are cut off are not learned from"),
    "learn.correction": Field(
        "token", one_of("token", "sequence", "none"), "of what the sampler's and the trainer's log-probs differ"
    ),
    "learn.correction_floor": Field(0.0, real(0, 1), "least weight of that"),
    "learn.correction_cap": Field(2.0, real(1, 1000), "and largest"),
    "learn.positive_only_external": Field(True, yes_no(), "of peers' completions only the better ones"),
    "learn.positive_only_local": Field(False, yes_no(), "the same of a node's own"),
    "learn.external_correction": Field("reencode", one_of("reencode", "behaviour", "mask"), "docs/losses.md says each"),
    "learn.external_min_ess": Field(0.25, real(0, 1), "but for reencode: effective samples of a peer's group, share"),
    "learn.external_min_prob": Field(1e-4, real(0, 0.999), "a peer's token that one says less likely is not learned"),
    "learn.updates_per_round": Field(1, whole(1, 100), "on the same samples"),
    "learn.optimizer": Field("adamw", one_of("adamw", "adamw_bf16", "adafactor"), "8, 6, or hardly a byte a weight"),
    "learn.dtype": Field("float32", one_of("float32", "bfloat16"), "of products; weights and their sums are float32"),
    "learn.remat": Field("auto", one_of("auto", "none", "dots", "layer"), "computed again when gradients are taken"),
    "learn.microbatch_rows": Field(0, whole(0, 65536), "sequences of texts at once, on each device; 0: as is quick"),
    # of an adapter that is trained beside the weights (LoRA)
    "lora.rank": Field(0, whole(0, 65536), "0: there is none, and the weights themselves are trained"),
    "lora.alpha": Field(16.0, above(0, 1_000_000), "what the adapter says counts alpha / rank"),
    "lora.dropout": Field(0.0, real(0, 0.9), "share of its inputs that are 0 while it is trained"),
    "lora.targets": Field(LORA_TARGETS, each(one_of(*LORA_TARGETS)), "the maps of a layer that have one"),
    "lora.layers": Field((), each(whole(0, 99999)), "numbers of the layers that have one; (): all"),
    "lora.merge": Field(True, yes_no(), "into a copy of the weights to sample with; else beside them: slower, no copy"),
    "lora.path": Field("", text(), "a PEFT directory to begin with, which says rank, alpha, targets and layers"),
    #
    "evaluation.problems": Field(512, whole(1, 10**6), "held out, common to all nodes"),
    "evaluation.every": Field(20, whole(1), "rounds"),
    "evaluation.rows": Field(512, whole(1, 65536), "decoded at once"),
    "evaluation.temperature": Field(0.0, zero_or(real(0.01, 100)), "0: greedy; else sampled, and cut off by:"),
    "evaluation.top_k": Field(0, whole(0), "0: all tokens"),
    "evaluation.top_p": Field(1.0, above(0, 1), "of the probability"),
    "evaluation.min_p": Field(0.0, real(0, 1), "of the likeliest token's"),
    # whether nodes sample as they say (docs/audit.md)
    "audit.auditors": Field(0, whole(0, 64), "peers' records that a node checks, drawn anew; all but simulations: 1"),
    "audit.rechecks": Field(
        0, whole(0, 4096), "own completions that a node replays in a round; all but simulations: 2"
    ),
    "audit.share": Field(0.05, real(0, 1), "of a live node's time that checking peers may take"),
    "audit.megabytes": Field(
        1024, whole(1, 1_000_000), "of its latest weights that it keeps to be checked, and fetches"
    ),
    # on which rounds and contributions are kept
    "chain.endpoint": Field("devnet", ENDPOINT, 'or "anvil", started with the swarm; "none"; a URL, or $NAME with one'),
    "chain.contract": Field("", ADDRESS, "at an endpoint of others: the coordinator's"),
    "chain.id": Field(0, whole(0, 2**63 - 1), "... and the chain's"),
    "chain.confirmations": Field(6, whole(0, 10**6), "... and blocks until a transaction counts as settled"),
    "chain.every": Field(5, whole(1, 10**6), "rounds between looks; a chain's round takes two (at 1 stages follow it)"),
    "chain.payout": Field("", ADDRESS, 'that a single node\'s earnings go to ("": that of its key)'),
    "chain.court": Field("", ADDRESS, 'of the contract that judges challenges ("": none; a local chain makes its own)'),
    "chain.stake": Field(
        0.0, real(0, 10**9), "coins that a node may stake there; 0: none, nor a court on a local chain"
    ),
    "chain.upgrades": Field("say", one_of("say", "follow"), "to a version that a coordinator names; or end then"),
    "chain.keep": Field(200, whole(0), "rounds whose records a node keeps, for whoever checks claims"),
    # how a process uses the devices that jax gives it: by default all, each
    "devices.backend": Field("shard_map", one_of("shard_map", "pmap"), "with all parameters and a part of the batch"),
    "devices.fsdp": Field(1, whole(1, 65536), "over which the parameters are split, for models that exceed one"),
    "devices.tensor": Field(1, whole(1, 65536), "the same within each layer; fsdp * tensor divides their number"),
    "devices.processes": Field(1, whole(0, 65536), "that are one node (driver node); 0: as a TPU pod says"),
    "devices.process": Field(0, whole(0, 65535), "which of them this is; 0 plays, the others compute with it"),
    "devices.coordinator": Field("", text(), "host:port of process 0 that the others can reach"),
    # of driver "simulate"; virtual seconds
    "simulation.sample": Field(1.0, real(0), "that sampling takes"),
    "simulation.learn": Field(1.0, real(0), "that an update takes"),
    "simulation.evaluate": Field(0.5, real(0), "that an evaluation takes"),
    "simulation.slowdown": Field((), each(above(0)), "factors on a node's own effects, by node index"),
    "simulation.deadline": Field(5.0, real(0), "a stage waits no longer for its peers (0: for ever)"),
    "simulation.latency": Field(0.05, real(0), "of a message"),
    "simulation.jitter": Field(0.05, real(0), "added to it, at most"),
    "simulation.loss": Field(0.0, real(0, 1), "probability per message and receiver"),
    "simulation.partitions": Field((), each(PARTITION), "((start, end, ((0, 1), (2, 3))), ...)"),
    "simulation.own": Field((), each(OWN), "(((4, 5), {'learn.learning_rate': 1e-3}), ...): what some nodes have else"),
    "simulation.bandwidth": Field(0.0, real(0), "bytes a second that a node can send (0: any number)"),
    "simulation.present": Field((), each(PRESENT), "((node, ((first round, end), ...)), ...); others are always there"),
    "simulation.adversaries": Field(
        (), each(row(whole(0), one_of(*STRATEGIES))), "((node, 'wrong'), ...), of a live swarm too"
    ),
    #
    "checkpoint_every": Field(20, whole(1), "rounds"),
    "checkpoints.keep": Field(2, whole(1, 1000), "newest ones"),
    "checkpoints.best": Field(False, yes_no(), "and the best on held-out problems: export and evaluate take --best"),
    "disk.megabytes": Field(0, whole(0), "that a live node's folder may take, by docs/operate.md; 0: no bound"),
    "publish.to": Field("", PLACE, "of weights: hf://USER/NAME, directory or URL; for each node with {node} in it"),
    "publish.every": Field(0, whole(0), "rounds, and after the last one; 0: after that alone"),
    "publish.private": Field(False, yes_no(), "a hub's repository that is made for it"),
    "profile.rounds": Field((), ROUNDS, "(10, 12): trace 10 and 11 of the first node, for TensorBoard or XProf"),
    "wandb.mode": Field(
        "auto", one_of("auto", "online", "offline", "disabled"), "auto: online where one is logged in, else disabled"
    ),
    "wandb.project": Field("rlswarm_jax", PROJECT, "there"),
    "wandb.group": Field(
        "", text(0, 128), "there, of a sweep: group, tags and seed give a run its id; '': name and seed"
    ),
    "wandb.tags": Field((), each(text(1, 64)), "there"),
}


def swarm(name: str) -> ml_collections.ConfigDict:
    """A swarm on the embedded model, as the table has it, whose nodes check each other."""
    config = fields.make(FIELDS)
    config.name = name
    config.audit.auditors, config.audit.rechecks = 1, 2
    return config


def check_together(config: ml_collections.ConfigDict) -> None:
    """Raises FieldError that names a field, in its range by itself, which cannot be what it is beside another."""
    for rule in (_rounds, _shared, _best_of, _devices, _chain, _published, _simulated):
        rule(config)


# what may differ from node to node of a swarm: neither a term on which all must agree nor the process's
OWN_SECTIONS = ("sampling", "learn", "lora", "evaluation")
OWN_FIELDS = (
    *("model.path", "swarm.external_groups", "swarm.max_staleness", "swarm.max_length_ratio", "swarm.reads"),
    *("swarm.adversary", "game.weights"),
    *(name for name in FIELDS if name.partition(".")[0] in OWN_SECTIONS and name != "sampling.group_size"),
)


# --- what a field may be beside others


def _rounds(config: ml_collections.ConfigDict) -> None:
    if config.driver not in ("node", "bootnode") and config.rounds < 1:
        raise FieldError(f"config.rounds is {config.rounds}; driver {config.driver} takes at least 1.")


def _shared(config: ml_collections.ConfigDict) -> None:
    shared, groups = config.game.shared, config.swarm.local_groups
    if config.game.stages > 1 and shared < 1:
        raise FieldError(f"config.game.shared is {shared}; expected at least 1 problem that nodes can criticise.")
    if config.game.stages > 1 and shared > groups:
        wrong = f"config.game.shared is {shared} of {groups} problems"
        raise FieldError(f"{wrong}: it must be at most config.swarm.local_groups.")


def _best_of(config: ml_collections.ConfigDict) -> None:
    best, group = config.learn.pass_k, config.sampling.group_size
    if config.learn.advantage == "pass_at_k" and best > group:
        raise FieldError(f"config.learn.pass_k is {best} of {group} completions (config.sampling.group_size).")


def _devices(config: ml_collections.ConfigDict) -> None:
    devices = config.devices
    if devices.backend == "pmap" and (devices.fsdp, devices.tensor, devices.processes) != (1, 1, 1):
        raise FieldError("config.devices.backend pmap is for one process and whole parameters: choose shard_map.")
    if devices.processes != 1 and config.driver != "node":
        raise FieldError(f"config.devices.processes is {devices.processes}; driver {config.driver} takes 1.")
    if devices.processes and devices.process >= devices.processes:
        raise FieldError(f"config.devices.process is {devices.process} of {devices.processes}; the first one is 0.")
    if devices.processes > 1 and not re.fullmatch(r".+:\d+", devices.coordinator):
        wanted = "host:port of process 0, the same for all, such as 10.0.0.1:8476"
        raise FieldError(f"config.devices.coordinator is {devices.coordinator!r}; expected {wanted}.")


def _chain(config: ml_collections.ConfigDict) -> None:
    chain = config.chain
    if chain.endpoint in ("devnet", "anvil"):
        if chain.court:
            own = f"{chain.endpoint} makes its own where config.chain.stake is above 0"
            raise FieldError(f"config.chain.court is given, but {own}.")
        if chain.stake and config.swarm.nodes < 3:
            raise FieldError("config.chain.stake needs three nodes at least: two sides, and one that judges.")
    if chain.endpoint in LOCAL_CHAINS:
        if config.driver in ("node", "bootnode") and chain.endpoint != "none":
            other = "give the address of one, with config.chain.contract and config.chain.id, or choose none"
            raise FieldError(f"config.chain.endpoint {chain.endpoint} is started for a whole swarm: {other}.")
        return
    if not chain.contract:
        raise FieldError("config.chain.contract is ''; expected the coordinator's address at config.chain.endpoint.")
    if chain.id < 1:
        raise FieldError(f"config.chain.id is {chain.id}; expected that of the endpoint's chain, such as 1.")


def _published(config: ml_collections.ConfigDict) -> None:
    if config.publish.to and not config.publish.every and not config.rounds:
        never = "a node that plays until it is stopped has no last round"
        raise FieldError(f"config.publish.every is 0, but {never}: say after how many rounds it publishes.")


def _simulated(config: ml_collections.ConfigDict) -> None:
    nodes = config.swarm.nodes
    if len(config.simulation.slowdown) > nodes:
        raise FieldError(f"config.simulation.slowdown has {len(config.simulation.slowdown)} factors for {nodes} nodes.")
    for node, times in config.simulation.present:
        if node >= nodes:
            raise FieldError(f"config.simulation.present names node {node} of {nodes}; the first one is 0.")
        rounds = [round_ for time in times for round_ in time]
        if rounds != sorted(set(rounds)):
            raise FieldError(f"config.simulation.present of node {node} has times out of order.")
    for owners, others in config.simulation.own:
        for node in owners:
            if node >= nodes:
                raise FieldError(f"config.simulation.own names node {node} of {nodes}; the first one is 0.")
        for name, value in others.items():
            if name not in FIELDS:
                raise FieldError(fields.unknown_sentence(name, FIELDS))
            if name not in OWN_FIELDS:
                raise FieldError(f"config.simulation.own has {name}, which all must have the same: no node's own.")
            FIELDS[name].range.check(name, value)
    late = [node for node, times in dict(config.simulation.present).items() if not times or times[0][0]]
    if len(late) == nodes:
        raise FieldError("config.simulation.present has no node in round 0; expected one at least.")
    for node, _ in config.simulation.adversaries:
        if node >= nodes:
            raise FieldError(f"config.simulation.adversaries names node {node} of {nodes}; the first one is 0.")
    for start, end, groups in config.simulation.partitions:
        if end < start:
            raise FieldError(f"config.simulation.partitions has one from {start} to {end}; it ends before it starts.")
        for node in (node for group in groups for node in group if node >= nodes):
            raise FieldError(f"config.simulation.partitions names node {node} of {nodes}; the first one is 0.")


# --- variants


def smoke(config: ml_collections.ConfigDict) -> None:
    """The same path in a minute: few rounds, few problems."""
    config.rounds = 6
    config.evaluation.problems = config.evaluation.rows = 64
    config.evaluation.every = 3
    config.checkpoint_every = 2
    config.swarm.alone = False
    config.wandb.mode = "disabled"


def simulate(config: ml_collections.ConfigDict) -> None:
    """The same nodes in one process, on a virtual clock and a virtual network; a study's own check nobody."""
    config.driver = "simulate"
    config.audit.auditors = config.audit.rechecks = 0


def apply(config: ml_collections.ConfigDict, variant: str, *known: Callable[[ml_collections.ConfigDict], None]) -> None:
    """Changes a config as a variant such as "simulate-smoke" says, whose words name functions. Raises ValueError."""
    by_name = {function.__name__: function for function in known}
    for word in variant.split("-") if variant else ():
        if word not in by_name:
            near = difflib.get_close_matches(word, by_name, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"there is no variant {word!r}; expected {' or '.join(by_name)}{hint}")
        by_name[word](config)
    config.name += f"-{variant}" if variant else ""
