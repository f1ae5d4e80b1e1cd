"""Each takes a game, the turns of a stage and a pool of peers' groups, and returns the turns that are said instead."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from rlswarm_jax import randomness
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Sampled
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.turns import Turn
from rlswarm_jax.records.pool import Pool
from rlswarm_jax.records.schema import CRITIQUE, MAX_GROUP_SIZE, MAX_GROUPS, MAX_RECORD_BYTES

LIKELY = -0.05  # nats: what is claimed of a token that was never sampled
TRIES = 64  # other problems that are looked at for a wrong answer
FILL = 0.9  # of a record's bytes: the rest is left for what is not completions


def wrong(game: Game, played: Sequence[Turn], pool: Pool) -> list[Turn]:
    """Wrong answers with plausible log-probs: the right answers to other problems of the task; critics name another."""
    return [_name_another(game, turn) if turn.stage == CRITIQUE else _answer_others(game, turn) for turn in played]


def copy(game: Game, played: Sequence[Turn], pool: Pool) -> list[Turn]:
    """A peer's completions of an earlier problem, log-probs and all, as one's own; honest while it has heard nobody."""
    return [_copied(game, turn, pool) for turn in played]


def spam(game: Game, played: Sequence[Turn], pool: Pool) -> list[Turn]:
    """As many groups and completions as a record takes, of worthless text.

    Those at the node's own places have the game's form, and are scored by whoever reads them; the others cost bytes.
    """
    if not played:
        return []
    first, said = played[0], [_noise(game, turn, game.group_size) for turn in played]
    room = int(FILL * MAX_RECORD_BYTES) - sum(map(_size, said))
    taken = {turn.index for turn in played}
    for index in (index for index in range(MAX_GROUPS) if index not in taken):
        problem = game.problem(game.author, first.round, index, first.chain)
        more = _noise(game, dataclasses.replace(first, index=index, problem=problem), MAX_GROUP_SIZE)
        room -= _size(more)
        if room < 0:
            break
        said.append(more)
    return said


def _answer_others(game: Game, turn: Turn) -> Turn:
    answers = itertools.islice(_wrong_answers(game, turn), len(turn.completions))
    said: list[Sampled] = []
    for honest, answer in itertools.zip_longest(turn.completions, answers, fillvalue=""):
        assert isinstance(honest, Sampled)
        before = game.prompt_format.answer(honest.text)
        head, _, tail = honest.text.rpartition(before) if before else ("", "", "")
        said.append(_said(game, head + answer + tail, honest) or _worthless(game, turn, len(said)))
    return dataclasses.replace(turn, completions=said)


def _wrong_answers(game: Game, turn: Turn) -> Iterator[str]:
    """Right answers to other problems of the task that are wrong here, none of them twice."""
    task, seen = game.mixture.tasks[turn.problem.task], set[str]()
    for number in range(TRIES):
        other = task.problem(randomness.seed("pool", "wrong", game.author, turn.round, turn.index, number))
        for answer in other.answers[:1]:
            same = game.mixture.canonical(turn.problem, answer)
            right = {game.mixture.canonical(turn.problem, one) for one in turn.problem.answers}
            if same not in seen | right:
                seen.add(same)
                yield answer


def _name_another(game: Game, turn: Turn) -> Turn:
    """A critic's completions, each with another number in the place of the one that it names."""
    assert turn.reading is not None
    numbers, said = turn.reading.numbers, []
    every = sorted({*range(len(numbers) + 1), *numbers})  # a format calls answers by their place, or by their number
    for place, (honest, named) in enumerate(zip(turn.completions, turns.named_by(game, turn), strict=True)):
        parts = [honest.text.rpartition(str(one)) for one in every]
        texts = [f"{head}{other}{tail}" for head, found, tail in parts if found for other in every]
        others = [t for t in texts if game.prompt_format.named(t, numbers) not in (named, None)]
        said.append(_said(game, others[0], honest) if named is not None and others else None)
        said[-1] = said[-1] or _worthless(game, turn, place)
    return turns.sampled(game, turn, [one for one in said if one])


def _copied(game: Game, turn: Turn, pool: Pool) -> Turn:
    """With the completions of a group that is drawn from those of its stage."""
    theirs = [g for g in pool.groups if g.stage == turn.stage and len(g.tokens) == game.group_size]
    if not theirs:
        return turn
    ranks = "copy", game.author, turn.round, turn.index
    group = min(theirs, key=lambda g: randomness.digest("pool", *ranks, *g.slot))
    known = group.logprobs or [[LIKELY] * len(tokens) for tokens in group.tokens]
    said = [Sampled(t, l, game.tokenizer.decode(t), True) for t, l in zip(group.tokens, known, strict=True)]
    return turns.sampled(game, turn, said)


def _noise(game: Game, turn: Turn, count: int) -> Turn:
    return turns.sampled(game, turn, [_worthless(game, turn, place) for place in range(count)])


def _worthless(game: Game, turn: Turn, place: int) -> Sampled:
    """As many tokens as may be, drawn from all that are text; the text is what they say."""
    tokenizer, length = game.tokenizer, max(1, game.max_new_tokens - 1)
    words = randomness.digest("pool", "spam", game.author, turn.round, turn.stage, turn.index, place)
    ends, size = frozenset(game.eos_token_ids) | tokenizer.control_ids, tokenizer.vocab_size
    drawn = [int.from_bytes(randomness.digest("pool", words, t)[:4], "little") % size for t in range(length)]
    tokens = [token for token in drawn if token not in ends] or [next(t for t in range(size) if t not in ends)]
    tokens += game.eos_token_ids[:1] if len(tokens) < game.max_new_tokens else ()
    return Sampled(tokens, [LIKELY] * len(tokens), tokenizer.decode(tokens), True)


def _said(game: Game, text: str, honest: Sampled) -> Sampled | None:
    """A text as if it had been sampled, with log-probs as an honest completion has them; None if it can't be."""
    try:
        tokens = [*game.tokenizer.encode(text), *game.eos_token_ids[:1]]
    except ValueError:
        return None
    if not text or len(tokens) > game.max_new_tokens or game.tokenizer.decode(tokens) != text:
        return None
    return Sampled(tokens, [p for p, _ in zip(itertools.cycle(honest.logprobs), tokens)], text, True)


def _size(turn: Turn) -> int:
    """Bytes that it takes in a record, about."""
    return sum(8 * len(s.tokens) + len(s.text.encode()) + 16 for s in turn.completions) + 64
