"""Strategies of nodes that mean ill: what a node says in the place of what it has sampled, or does in its round.

One that says something else is a pure function of the node's game, of the turns of a stage as it played them, and of
its pool; what it returns is put into the record that the node signs, and read by others as any record is. The node
itself goes on learning from what it did sample, as a free rider would. One that does something else stands between the
round's generator and the driver. So the same strategy runs in a simulation and in a live node
(`simulation.adversaries`, `swarm.adversary`), and again from a journal.

What stands against them, and what a study can switch off:

- form and place: a record has one group at each place of its author's, of as many completions as the game says, whose
  text is what the tokens say ("misshapen group", "foreign problem", "text mismatch"); one author has a bounded part of
  an inbox. Part of what makes records readable at all: no switch.
- own scoring: whoever reads a completion scores it, and what scoring a peer's answers may cost is bounded
  (`tasks.verifier`). Nothing about correctness travels, so there is nothing to trust instead: no switch.
- the zero-advantage filter: a group whose completions all earn the same, as worthless ones do, is never drawn.
- authors taking turns, and no more than twice an even share of one author's groups in a round (`records.pool`).
- of peers only completions that are better than their group's mean: `learn.positive_only_external`.
- the correction and the bounds on what is unlikely here: `learn.external_correction`, `learn.external_min_ess`,
  `learn.external_min_prob`.
- a bound on how long it is, beside what the node says itself: `swarm.max_length_ratio`.
- audits, which see who has not sampled what they say, and nothing else: `audit.auditors`.

docs/attacks.md says of each strategy what sees it.
"""

from rlswarm_jax.adversaries.rounds import accuse, best_of, equivocate, other_key, own_vote, stale, vouch, withhold
from rlswarm_jax.adversaries.strategies import collude, copy, free_ride, lazy, lengthen, spam, style, wrong
from rlswarm_jax.game.rules import Strategy

_SAYS = (wrong, copy, spam, free_ride, style, lengthen, lazy, collude)
_PLAYS = (other_key, best_of, stale, withhold, accuse, vouch, equivocate, own_vote)
STRATEGIES: dict[str, Strategy] = {
    **{says.__name__: Strategy(says=says) for says in _SAYS},
    **{plays.__name__: Strategy(plays=plays) for plays in _PLAYS},
}
