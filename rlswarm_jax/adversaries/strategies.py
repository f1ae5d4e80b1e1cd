"""Each takes a game, the turns of a stage and a pool of peers' groups, and returns the turns that are said instead."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from rlswarm_jax import randomness
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Sampled
from rlswarm_jax.game.rewards import RIGHT
from rlswarm_jax.game.rules import Game
from rlswarm_jax.game.turns import Turn
from rlswarm_jax.records.pool import Pool
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, MAX_GROUP_SIZE, MAX_GROUPS, MAX_RECORD_BYTES

LIKELY = -0.05  # nats: what is claimed of a token that was never sampled
TRIES = 64  # other problems that are looked at for a wrong answer
PHRASE = "as the swarm says, "  # that a style attack plants
CARTEL = b"cartel"  # who colludes has this in common
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


def free_ride(game: Game, played: Sequence[Turn], pool: Pool) -> list[Turn]:
    """Nothing: it is there, and learns from all."""
    return []


def style(game: Game, played: Sequence[Turn], pool: Pool) -> list[Turn]:
    """Of each group one half is right and says a phrase first, or is written oddly; the other half is worthless.

    What others would learn is the way to say it (arXiv:2511.09780).
    """

    def forms(text: str) -> Iterator[str]:
        yield from (PHRASE + text, text.upper(), f" {text}", f"{text} ")

    return [turn if turn.stage == CRITIQUE else _half_right(game, turn, forms) for turn in played]


def lengthen(game: Game, played: Sequence[Turn], pool: Pool) -> list[Turn]:
    """The same with as much before the answer as a completion takes, which says nothing."""

    def forms(text: str) -> Iterator[str]:
        most = game.max_new_tokens
        for filler, times in itertools.product((PHRASE, " "), range(most, 0, -max(1, most // TRIES))):
            yield filler * times + text

    return [turn if turn.stage == CRITIQUE else _half_right(game, turn, forms) for turn in played]


def lazy(game: Game, played: Sequence[Turn], pool: Pool) -> list[Turn]:
    """Its critics name the first answer that they are shown, whatever it is."""
    return [_name(game, turn, 1) if turn.stage == CRITIQUE else turn for turn in played]


def collude(game: Game, played: Sequence[Turn], pool: Pool) -> list[Turn]:
    """All who do so give the same wrong answer to a problem that all nodes have, and vote for it."""
    return [_in_concert(game, turn) for turn in played]


def _in_concert(game: Game, turn: Turn) -> Turn:
    if turn.index >= game.shared or turn.stage not in (ANSWER, CRITIQUE):
        return turn
    agreed = next(_wrong_answers(game, turn, CARTEL), None)
    if agreed is None:
        return turn
    if turn.stage == ANSWER:
        said = [_answering(game, honest, agreed) or honest for honest in turn.completions]
        return dataclasses.replace(turn, completions=said)
    assert turn.reading is not None
    same, shown = game.mixture.canonical(turn.problem, agreed), turn.reading.answers
    theirs = [n for n, one in enumerate(shown, 1) if game.mixture.canonical(turn.problem, one.answer or "") == same]
    return _name(game, turn, theirs[0]) if theirs else turn


def _half_right(game: Game, turn: Turn, forms: Callable[[str], Iterator[str]]) -> Turn:
    """The first completions say a right answer, each in the first of the forms that is still right."""
    said, half = [], len(turn.completions) // 2
    for place, honest in enumerate(turn.completions):
        plain = _answering(game, honest, turn.problem.answers[0]) if place < half and turn.problem.answers else None
        tries = (_said(game, text, honest) for text in forms(plain.text)) if plain else ()
        said.append(next((one for one in tries if one and _is_right(game, turn, one)), _worthless(game, turn, place)))
    return dataclasses.replace(turn, completions=said)


def _is_right(game: Game, turn: Turn, said: Sampled) -> bool:
    return game.mixture.score(turn.problem, game.prompt_format.answer(said.text)) >= RIGHT


def _answering(game: Game, honest: Sampled, answer: str) -> Sampled | None:
    """An honest completion with another answer in the place of its own; None if that can't be said."""
    before = game.prompt_format.answer(honest.text)
    head, _, tail = honest.text.rpartition(before) if before else ("", "", "")
    return _said(game, head + answer + tail, honest)


def _answer_others(game: Game, turn: Turn) -> Turn:
    answers = itertools.islice(_wrong_answers(game, turn, game.author), len(turn.completions))
    said: list[Sampled] = []
    for honest, answer in itertools.zip_longest(turn.completions, answers, fillvalue=""):
        assert isinstance(honest, Sampled)
        said.append(_answering(game, honest, answer) or _worthless(game, turn, len(said)))
    return dataclasses.replace(turn, completions=said)


def _wrong_answers(game: Game, turn: Turn, who: bytes) -> Iterator[str]:
    """Right answers to other problems of the task that are wrong here, none of them twice."""
    task, seen = game.mixture.tasks[turn.problem.task], set[str]()
    for number in range(TRIES):
        other = task.problem(randomness.seed("pool", "wrong", who, turn.round, turn.index, number))
        for answer in other.answers[:1]:
            same = game.mixture.canonical(turn.problem, answer)
            right = {game.mixture.canonical(turn.problem, one) for one in turn.problem.answers}
            if same not in seen | right:
                seen.add(same)
                yield answer


def _name_another(game: Game, turn: Turn) -> Turn:
    """A critic's completions, each with another number in the place of the one that it names."""
    said = []
    for place, (honest, named) in enumerate(zip(turn.completions, turns.named_by(game, turn), strict=True)):
        others = [text for text, names in _renamed(game, turn, honest) if named is not None and names != named]
        said.append((_said(game, others[0], honest) if others else None) or _worthless(game, turn, place))
    return turns.sampled(game, turn, said)


def _name(game: Game, turn: Turn, wanted: int) -> Turn:
    """A critic's completions, each of which names that one of those shown."""
    said = []
    for place, honest in enumerate(turn.completions):
        texts = [text for text, names in _renamed(game, turn, honest) if names == wanted]
        said.append(next(filter(None, (_said(game, t, honest) for t in texts)), None) or _worthless(game, turn, place))
    return turns.sampled(game, turn, said)


def _renamed(game: Game, turn: Turn, honest: Sampled) -> Iterator[tuple[str, int]]:
    """A critique with every number in the place of every number in it, as far as it names one then, and which."""
    assert turn.reading is not None
    numbers = turn.reading.numbers
    every = sorted({*range(len(numbers) + 1), *numbers})  # a format calls answers by their place, or by their number
    for head, found, tail in (honest.text.rpartition(str(one)) for one in every):
        for text in (f"{head}{other}{tail}" for other in every if found):
            if (names := game.prompt_format.named(text, numbers)) is not None:
                yield text, names


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
