"""What the replay of some completions proves, with an error that is bounded and not only observed.

Gumbel-max draws the token whose logit and noise are the largest together. Where logits a draw it and it is judged by
logits b, under the same noise, what it falls short of the best, x >= 0, has an expected value that is exactly
KL(softmax(a) || softmax(b)):

    E[x] = E[max(b + g)] - E[(b + g) of the drawn] = log Z_b - log Z_a + E[(a - b) of the drawn] = KL,

since E[max(a + g)] = log Z_a + Euler's constant. The draw's two levels add up to the KL of the whole by the chain rule.
So the sum of shortfalls grows by what the sampler's distribution is away from the claimed one, in nats a token, and
rounding, too, is a small KL: about a quarter of its mean square over the pairs of tokens, each as often as two keys
draw them (`Replay.open_T`). (Token-DiFR, arXiv:2511.20621, sums post-noise margins, with a threshold from honest runs.)

**Assumed** of an honest sampler: its noise is independent of its rounding (the beacon is drawn after weights are
named); no rounding of a margin reaches tau; and over an audit, rounding costs no more than `allowance`, in KL.

**Then** for each cap c and slope s, with x of either level cut off at c, exp(s sum(x)/c - (exp(s) - 1) allowance/c) is
at most a supermartingale from 1 (exp is convex, so E[exp(s x/c)] <= 1 + (exp(s) - 1) KL/c); so is the mean over all c
and s, and it ever exceeds 1/LEVEL with a probability of at most LEVEL (Ville 1939), whenever one stops and however many
completions are pooled. Nothing else is assumed of the errors' distribution.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rlswarm_jax.qwen.verdict import Replay, Verdict

LEVEL = 1e-6  # of an honest audit to be called not produced by its sum
MIN_BITS = -np.log2(LEVEL)  # of evidence for the key: another's completion is called produced as seldom
CAPS_OF_TAU = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
SLOPES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
FIRST = 16.0  # as open as so many tokens: in a few tokens the mean square of rounding may be far above that of many


@dataclasses.dataclass(frozen=True)
class Judgement:
    """bits: another key's draw would be taken for this one's once in 2^bits. statistic: log10 of the evidence against
    the claim, of many tokens together; from `threshold` on it is not produced.
    """

    verdict: Verdict
    tokens: int
    bits: float
    statistic: float
    threshold: float = -float(np.log10(LEVEL))


def judge(replays: Sequence[Replay]) -> Judgement:
    """Of completions of one author, with one rounding, drawn at a temperature above 0.

    Not produced: a token that no rounding can turn, or too much of what rounding could do once. Produced: neither, and
    at least MIN_BITS that only this key draws. Undecided: it proves nothing. Raises ValueError for none, or for
    roundings that differ.
    """
    if len({replay.rounding for replay in replays}) != 1:
        raise ValueError("a judgement needs completions, all of one rounding.")
    rounding = replays[0].rounding
    proven = sum(bits(replay.logprobs_T, rounding.tau).sum() for replay in replays)
    found = evidence([shortfalls(replay) for replay in replays], allowance(replays), rounding.tau)
    verdict = Verdict.PRODUCED if proven >= MIN_BITS else Verdict.UNDECIDED
    if found >= -np.log(LEVEL) or any(replay.verdict is Verdict.NOT_PRODUCED for replay in replays):
        verdict = Verdict.NOT_PRODUCED
    tokens = sum(len(replay.logprobs_T) for replay in replays)
    return Judgement(verdict, tokens, float(proven), float(found / np.log(10)))


def bits(logprobs_T: np.ndarray, tau: float) -> np.ndarray:
    """-log2 of the probability that another key would let each of these tokens pass, float64.

    That is drawing it, or coming within tau at both levels: 1 / (1 + (1/P - 1) exp(-tau)) for a level's probability P.
    How P is split into two levels is not told by its log-prob; the split that proves least is counted: the even one.
    """
    half_T = -np.minimum(np.asarray(logprobs_T, np.float64), 0) / 2
    return np.nan_to_num(2 * np.log1p(np.expm1(half_T) * np.exp(-tau)) / np.log(2), nan=0.0)


def shortfalls(replay: Replay) -> np.ndarray:
    """x of both levels of each token, `[T, 2]`: what is not a number proves nothing."""
    return np.maximum(np.nan_to_num(-replay.leads_T2.astype(np.float64), nan=0.0, posinf=np.inf), 0)


def allowance(replays: Sequence[Replay]) -> float:
    """KL that rounding may cost, in nats: a quarter of its mean square for as much as was open."""
    opened = sum(float(np.nan_to_num(replay.open_T).sum()) for replay in replays)
    return replays[0].rounding.rms ** 2 / 4 * (opened + FIRST)


def evidence(shortfalls_X: Sequence[np.ndarray], allowed: float, tau: float) -> float:
    """Log of the mean of the supermartingales: nats against a rounding that costs `allowed`."""
    x_X = np.concatenate([np.ravel(x) for x in shortfalls_X])
    caps_C1, slopes_S = tau * np.array(CAPS_OF_TAU)[:, None], np.array(SLOPES)
    count_C1 = np.minimum(x_X / caps_C1, 1).sum(axis=1, keepdims=True)
    logs_CS = slopes_S * count_C1 - np.expm1(slopes_S) * allowed / caps_C1
    return float(np.logaddexp.reduce(logs_CS, axis=None) - np.log(logs_CS.size))


def reach(allowed: float, tau: float) -> float:
    """Nats of shortfall that one who knows this test can spread over tokens, as small parts as he likes, and pass."""

    def passing(part: float) -> int:
        few, many = 0, 1
        while evidence([np.full(many, part)], allowed, tau) < -np.log(LEVEL):
            few, many = many, 2 * many
        while many - few > 1:
            half = (few + many) // 2
            few, many = (half, many) if evidence([np.full(half, part)], allowed, tau) < -np.log(LEVEL) else (few, half)
        return few

    return max(part * passing(part) for part in tau * np.array([*CAPS_OF_TAU[1:], 0.999, min(CAPS_OF_TAU) / 4]))


def spent(behaviour_logprobs: Sequence[np.ndarray], replays: Sequence[Replay]) -> float:
    """Share of the allowance that one's own completions cost, by the log-probs `[T]` each that the sampler named.

    Half the square of what a log-prob differs by has the divergence for its mean, to second order. It is above 1 long
    before `judge` accuses; a peer names what he likes, so of others it says nothing.
    """
    squares = sum(
        float(np.square(np.asarray(own_T, np.float64) - replay.logprobs_T).sum())
        for own_T, replay in zip(behaviour_logprobs, replays, strict=True)
    )
    return float(np.nan_to_num(squares, nan=np.inf)) / 2 / allowance(replays)
