"""What a config describes, made real: the game, without weights too, and the engine with those of some nodes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_collections
from rich.console import Console

from rlswarm_jax import assets, compilation, parallel, qwen, tasks
from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.engine import Engine, EngineConfig
from rlswarm_jax.engines import Engines
from rlswarm_jax.errors import UsageError
from rlswarm_jax.game.prompts import PromptFormat, choose_format
from rlswarm_jax.game.readings import Readings
from rlswarm_jax.game.rewards import Rewards
from rlswarm_jax.game.rules import Game, Strategy
from rlswarm_jax.grpo.learner import Learner, LearnerConfig, TrainState, state_hash
from rlswarm_jax.grpo.objective import resolved
from rlswarm_jax.identity import Identity
from rlswarm_jax.parallel import DeviceConfig
from rlswarm_jax.qwen import peft
from rlswarm_jax.qwen.draw import Draw
from rlswarm_jax.qwen.lora import LoraConfig
from rlswarm_jax.qwen.tokenizer import Tokenizer
from rlswarm_jax.qwen.weights import read_model, resolve
from rlswarm_jax.records.agreement import differences
from rlswarm_jax.records.schema import MAX_TOKENS, STAGES
from rlswarm_jax.running.arguments import check
from rlswarm_jax.tasks.verifier import Verifier, VerifierError

Made = TypeVar("Made")
READ_RECORDS = 8  # of each node's, whose reading is kept for the others: a round's, and some that came late

EMBEDDED = {"embedded": assets.SPOILED, "embedded:base": assets.BASE}
# prompt and completion tokens, where the config says 0: of a game of one stage, and of one that shows what others said
BUDGETS = {"compact": ((16, 12), (96, 12)), "chat": ((512, 256), (3072, 256))}


def made_of(kind: type[Made], sections: Sequence[Mapping[str, Any]], **own: Any) -> Made:
    """A dataclass whose fields are what sections of a config call so, but for those that are given by name.

    So a setting has its line in the config's table and the one where it is used, and none here. What no section has
    is by default what the class says. Raises TypeError for a name that two sections have, or none and no default.
    """
    names = [field.name for field in dataclasses.fields(kind) if field.name not in own]  # type: ignore[arg-type]
    for name in names:
        values = [section[name] for section in sections if name in section]
        if len(values) > 1:
            raise TypeError(f"{kind.__name__}.{name} is in {len(values)} sections of the config.")
        if values:
            own[name] = values[0]
    return kind(**own)


def model_path(config: ml_collections.ConfigDict) -> str:
    """The model's directory or hub id."""
    return str(EMBEDDED.get(config.model.path, config.model.path))


def make_game(config: ml_collections.ConfigDict, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...]) -> Game:
    """Nobody's yet: its author is empty. Raises UsageError or TaskError that says which field cannot be."""
    game, stages, chained = config.game, STAGES[: config.game.stages], config.chain.endpoint != "none"
    prompt_format = choose_format(
        config.model.prompts,
        tokenizer,
        config.model.thinking,
        (game.answer_tokens, game.critique_tokens),
        game.personas,
    )
    prompt_budget, completion_budget = BUDGETS[prompt_format.name.partition("-")[0]][len(stages) > 1]
    max_prompt_tokens = config.sampling.max_prompt_tokens or prompt_budget
    shown = shown_tokens(config, prompt_format)[-1]
    if shown >= max_prompt_tokens:
        what = f"a prompt of {max_prompt_tokens} tokens cannot show {shown} of what was written"
        raise UsageError(f"{what}: raise config.sampling.max_prompt_tokens, or show less (config.game).")
    return made_of(
        Game,
        (config.swarm, config.sampling, config.game, config.chain, config.audit),
        swarm=config.swarm.name,
        seed=config.seed,
        author=b"",
        mixture=tasks.make_mixture(config.tasks.to_dict()),
        tokenizer=tokenizer,
        prompt_format=prompt_format,
        tokenizer_fingerprint=tokenizer.fingerprint,
        eos_token_ids=eos_token_ids,
        rounds=config.rounds,
        max_new_tokens=config.sampling.max_new_tokens or completion_budget,
        evaluate_every=config.evaluation.every,
        stages=stages,
        shared=game.shared if len(stages) > 1 else 0,
        rewards=Rewards(game.form_reward, game.improvement_reward, game.consensus_reward, game.derivation_reward),
        weights=tuple(game.weights),
        max_prompt_tokens=max_prompt_tokens,
        chain_every=config.chain.every if chained else 0,
        contract=config.chain.contract if chained else None,
        chain_id=config.chain.id,
    )


def shown_tokens(config: ml_collections.ConfigDict, prompt_format: PromptFormat) -> list[int]:
    """Of what others wrote, in the longest prompt of each stage."""
    game, budgets = config.game, prompt_format.budgets
    answers_and_critiques = ((0, 0), (game.shown, 0), (game.shown + 1, game.critics))[: game.stages]
    return [answers * budgets.answer + critiques * budgets.critique for answers, critiques in answers_and_critiques]


def make_verifier(config: ml_collections.ConfigDict, game: Game) -> Verifier:
    return Verifier(config.tasks.to_dict(), game.mixture, config.scoring.workers)


def described(config: ml_collections.ConfigDict) -> Game:
    """As its player has it, but that no weights are loaded.

    Raises UsageError for a config that cannot be, or whose model is not there.
    """
    check(config)
    try:
        model, tokenizer = read_model(resolve(model_path(config)))
        return make_game(config, tokenizer, model.eos_token_ids)
    except (tasks.TaskError, ValueError) as error:
        raise UsageError(str(error)) from error


def observed(config: ml_collections.ConfigDict) -> Game:
    """For somebody who only looks on: as `described`, but a player's own limits are not its measure."""
    return dataclasses.replace(described(config), max_prompt_tokens=2**31, max_new_tokens=MAX_TOKENS)


# --- with weights


@dataclasses.dataclass(frozen=True)
class Pieces:
    """games: one for each node. engine: the weights of all; of nodes of a simulation that differ, in several."""

    games: list[Game]
    engine: Engine | Engines

    @property
    def one_engine(self) -> Engine:
        """For who takes nodes that do not differ. Raises UsageError."""
        if isinstance(self.engine, Engines):
            raise UsageError("the nodes of config.simulation.own have several models; this takes nodes of one.")
        return self.engine

    def compile(self) -> None:
        """Compiles before the first round; of processes that share a cache, one compiles and the others wait for it."""
        self.engine.compile()

    def fingerprint(self, node: int) -> str:
        """Of the weights of a node, as they are now."""
        return qwen.fingerprint(parallel.fetch(self.engine.weights(node)))

    def base_accuracy(self, config: ml_collections.ConfigDict) -> dict[str, float] | None:
        """Held-out accuracy of the embedded model before it was spoiled; there is no such thing for other models."""
        if config.model.path != "embedded":
            return None
        return self.engine.evaluate_params(qwen.load(assets.BASE).params)


def make_learner_config(config: ml_collections.ConfigDict, max_new_tokens: int = 1) -> LearnerConfig:
    """max_new_tokens: of a completion; whoever only wants the form of a state need not know."""
    own = {"decay_rounds": config.rounds, "max_new_tokens": max_new_tokens, "dtype": config.learn.dtype}
    own["lora"] = make_lora_config(config)
    return made_of(LearnerConfig, (resolved(config.learn), config.sampling), **own)


def make_engine_config(config: ml_collections.ConfigDict, game: Game) -> EngineConfig:
    return made_of(
        EngineConfig,
        (config.sampling, resolved(config.learn)),
        dtype=config.sampling.dtype,
        merge=config.lora.merge,
        max_prompt_tokens=game.max_prompt_tokens,
        max_new_tokens=game.max_new_tokens,
        stages=list(
            zip(map(len, map(game.indices, game.stages)), shown_tokens(config, game.prompt_format), strict=True)
        ),
        kv_dtype=config.sampling.kv_dtype or config.sampling.dtype,
        evaluation_temperature=config.evaluation.temperature,
        evaluation=made_of(Draw, [config.evaluation]),
        held_out_problems=config.evaluation.problems,
        held_out_rows=min(config.evaluation.rows, config.evaluation.problems),
    )


def make_lora_config(config: ml_collections.ConfigDict) -> LoraConfig | None:
    """Of the adapter that is trained, if it is one. Raises ValueError for a directory that holds none."""
    if config.lora.path:
        found = peft.read_config(Path(config.lora.path))
        return dataclasses.replace(found, dropout=config.lora.dropout)
    if not config.lora.rank:
        return None
    return made_of(LoraConfig, [config.lora], targets=tuple(config.lora.targets), layers=tuple(config.lora.layers))


def load_policy(config: ml_collections.ConfigDict, place: Any = None) -> qwen.Policy:
    """What nodes begin with. What is never updated is in the dtype that it is computed with."""
    frozen = make_lora_config(config) is not None
    return qwen.load(model_path(config), config.learn.dtype if frozen else "float32", place)


def first_state(config: ml_collections.ConfigDict, policy: qwen.Policy) -> TrainState:
    """What a node of the config begins with, in the form in which checkpoints hold what it has become."""
    return Learner(make_learner_config(config), policy.config).init(policy.params)


def build(config: ml_collections.ConfigDict, identities: Sequence[Identity], console: Console | None = None) -> Pieces:
    """Raises UsageError that says which field of the config cannot be."""
    check(config)
    try:
        return _build(config, identities, console)
    except (tasks.TaskError, VerifierError, ValueError) as error:
        raise UsageError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What nodes with the same config of their own are made of."""

    game: Game
    policy: qwen.Policy
    engine: EngineConfig
    learner: LearnerConfig

    def shares_engine_with(self, other: "_Kind") -> bool:
        same = self.policy is other.policy
        return same and (self.engine, self.learner) == (other.engine, other.learner)


def _build(config: ml_collections.ConfigDict, identities: Sequence[Identity], console: Console | None) -> Pieces:
    fields = [own_fields(config, node) for node in range(len(identities))]
    names = [repr(sorted(one.items())) for one in fields]
    devices = made_of(DeviceConfig, [config.devices])
    kinds: dict[str, _Kind] = {}
    policies: dict[str, qwen.Policy] = {}
    for name, own in zip(names, fields, strict=True):
        if name not in kinds:
            kinds[name] = _kind(with_own(config, own), devices, policies, [*kinds.values()][:1])
    first, *others = kinds.values()
    _say(config, [first, *others], len(identities), console)
    verifier = make_verifier(config, first.game)
    cache = compilation.use_cache()
    programs = compilation.Programs(cache / "programs" if cache else None)
    unlike: list[_Kind] = []
    for kind in kinds.values():
        if not any(kind.shares_engine_with(other) for other in unlike):
            unlike.append(kind)
    number_of = {name: _place(kind, unlike) for name, kind in kinds.items()}
    numbers = [number_of[name] for name in names]
    engines = [
        Engine(
            *(
                kind.policy,
                verifier,
                kind.game.prompt_format,
                kind.engine,
                kind.learner,
                numbers.count(number),
                devices,
            ),
            programs.jit,
        )
        for number, kind in enumerate(unlike)
    ]
    engine = engines[0] if len(engines) == 1 else Engines(engines, numbers)
    readings: Readings | None = Readings(READ_RECORDS * len(identities)) if len(identities) > 1 else None
    games = []
    for node, identity in enumerate(identities):
        ill = strategy(config, node, fields[node].get("swarm.adversary", config.swarm.adversary))
        game = dataclasses.replace(kinds[names[node]].game, author=identity.author, strategy=ill)
        if config.chain.endpoint != "none":
            hash_ = state_hash(parallel.fetch(engine.state(node)), engine.base_of(node))
            game = dataclasses.replace(game, state_hash=hash_)
        games.append(dataclasses.replace(game, readings=readings))
    return Pieces(games, engine)


def _place(kind: _Kind, unlike: Sequence[_Kind]) -> int:
    return next(n for n, one in enumerate(unlike) if one.shares_engine_with(kind))


def own_fields(config: ml_collections.ConfigDict, node: int) -> dict[str, Any]:
    """What a node of a simulation has else than the others; of what is said twice the last holds."""
    own = config.simulation.own if config.driver == "simulate" else ()
    return {name: value for nodes, fields in own if node in nodes for name, value in fields.items()}


def with_own(config: ml_collections.ConfigDict, own: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Raises UsageError for what a field cannot be."""
    if not own:
        return config
    changed = ml_collections.ConfigDict(config.copy_and_resolve_references())
    with changed.unlocked(), changed.ignore_type():
        for name, value in own.items():
            section, _, leaf = name.partition(".")
            changed[section][leaf] = value
    check(changed)
    return changed


def _kind(
    config: ml_collections.ConfigDict, devices: DeviceConfig, policies: dict[str, qwen.Policy], first: Sequence[_Kind]
) -> _Kind:
    """policies: those that are loaded already. first: the swarm's first, by whose rules all play."""
    mesh = parallel.make_mesh(jax.devices(), devices.fsdp, devices.tensor)
    path, adapter = model_path(config), make_lora_config(config)
    key = f"{path} {adapter is not None and config.learn.dtype}"
    if key not in policies:
        policies[key] = load_policy(config, parallel.placer(mesh) if parallel.is_sharded(mesh) else None)
    policy = policies[key]
    game = make_game(config, policy.tokenizer, policy.config.eos_token_ids)
    if game.max_prompt_tokens + game.max_new_tokens > policy.config.context_length:
        prompt, completion = game.max_prompt_tokens, game.max_new_tokens
        what = f"config.sampling.max_prompt_tokens {prompt} and config.sampling.max_new_tokens {completion}"
        limit = f"the {policy.config.context_length} positions that {path} was made for (max_position_embeddings)"
        raise UsageError(f"{what} together exceed {limit}: lower one of them.")
    for other in first:
        if differ := differences(other.game.terms, game.terms):
            raise UsageError(f"a node with {path} cannot play with the others: it differs in {', '.join(differ)}.")
        game = dataclasses.replace(game, mixture=other.game.mixture)
    engine, learner = make_engine_config(config, game), make_learner_config(config, game.max_new_tokens)
    return _Kind(game, policy, engine, learner)


def _say(config: ml_collections.ConfigDict, kinds: Sequence[_Kind], number: int, console: Console | None) -> None:
    """Who plays."""
    if console is None:
        return
    nodes = "1 node" if number == 1 else f"{number} nodes"
    sizes = {id(kind.policy): kind.policy.config for kind in kinds}
    models = " and ".join(f"{one.model_type} with {one.num_parameters:,} parameters" for one in sizes.values())
    where = f" from {model_path(config)}" if len(sizes) == 1 else ""
    devices = f"{jax.device_count()} {jax.default_backend()} device(s)"
    console.print(f"{models}{where}, {nodes} on {devices}", soft_wrap=True)


def strategy(config: ml_collections.ConfigDict, node: int, own: str = "") -> Strategy | None:
    """Of a node that means ill. own: as its own config says."""
    ill = dict(config.simulation.adversaries) if config.driver == "simulate" else {}
    return STRATEGIES.get(ill.get(node, own or config.swarm.adversary))
