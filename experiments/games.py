"""The game that a config describes, without the weights of whoever plays it."""

import dataclasses

import ml_collections

from experiments.cli import UsageError, check
from rlswarm_jax import assets, tasks
from rlswarm_jax.game.prompts import choose_format
from rlswarm_jax.game.rewards import Rewards
from rlswarm_jax.game.rules import Game
from rlswarm_jax.qwen.tokenizer import Tokenizer
from rlswarm_jax.qwen.weights import read_model, resolve
from rlswarm_jax.records.schema import MAX_TOKENS, STAGES
from rlswarm_jax.tasks.verifier import Verifier

EMBEDDED = {"embedded": assets.SPOILED, "embedded:base": assets.BASE}
# prompt and completion tokens, where the config says 0: of a game of one stage, and of one that shows what others said
BUDGETS = {"compact": ((16, 12), (96, 12)), "chat": ((512, 256), (3072, 256))}


def path(config: ml_collections.ConfigDict) -> str:
    """The model's directory or hub id."""
    return str(EMBEDDED.get(config.model.path, config.model.path))


def make_game(
    config: ml_collections.ConfigDict, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...], weights_fingerprint: str
) -> Game:
    """Nobody's yet: its author is empty. Raises UsageError or TaskError that says which field cannot be."""
    game, stages = config.game, STAGES[: config.game.stages]
    prompt_format = choose_format(
        config.model.prompts,
        tokenizer,
        config.model.thinking,
        (game.answer_tokens, game.critique_tokens),
        game.personas,
    )
    prompt_budget, completion_budget = BUDGETS[prompt_format.name.partition("-")[0]][len(stages) > 1]
    max_prompt_tokens = config.sampling.max_prompt_tokens or prompt_budget
    answers, critiques = ((0, 0), (game.shown, 0), (game.shown + 1, game.critics))[len(stages) - 1]
    shown = answers * prompt_format.budgets.answer + critiques * prompt_format.budgets.critique
    if shown >= max_prompt_tokens:
        what = f"a prompt of {max_prompt_tokens} tokens cannot show {shown} of what was written"
        raise UsageError(f"{what}: raise config.sampling.max_prompt_tokens, or show less (config.game).")
    return Game(
        swarm=config.swarm.name,
        seed=config.seed,
        author=b"",
        mixture=tasks.make_mixture(config.tasks.to_dict()),
        tokenizer=tokenizer,
        prompt_format=prompt_format,
        tokenizer_fingerprint=tokenizer.fingerprint,
        weights_fingerprint=weights_fingerprint,
        eos_token_ids=eos_token_ids,
        rounds=config.rounds,
        local_groups=config.swarm.local_groups,
        external_groups=config.swarm.external_groups,
        group_size=config.sampling.group_size,
        temperature=config.sampling.temperature,
        max_new_tokens=config.sampling.max_new_tokens or completion_budget,
        max_staleness=config.swarm.max_staleness,
        evaluate_every=config.evaluation.every,
        stages=stages,
        shared=game.shared if len(stages) > 1 else 0,
        shown=game.shown,
        critics=game.critics,
        show_votes=game.show_votes,
        rewards=Rewards(game.form_reward, game.improvement_reward, game.consensus_reward),
        weights=tuple(game.weights),
        max_prompt_tokens=max_prompt_tokens,
        chain_every=0 if config.chain.endpoint == "none" else config.chain.every,
        chain_id=config.chain.id,
        contract=config.chain.contract,
    )


def make_verifier(config: ml_collections.ConfigDict, game: Game) -> Verifier:
    return Verifier(config.tasks.to_dict(), game.mixture, config.scoring.workers)


def described(config: ml_collections.ConfigDict) -> Game:
    """As its player has it, but that no weights are loaded.

    Raises UsageError for a config that cannot be, or whose model is not there.
    """
    check(config)
    try:
        model, tokenizer = read_model(resolve(path(config)))
        return make_game(config, tokenizer, model.eos_token_ids, "")
    except (tasks.TaskError, ValueError) as error:
        raise UsageError(str(error)) from error


def observed(config: ml_collections.ConfigDict) -> Game:
    """For somebody who only looks on: as `described`, but a player's own limits are not its measure."""
    return dataclasses.replace(described(config), max_prompt_tokens=2**31, max_new_tokens=MAX_TOKENS)
