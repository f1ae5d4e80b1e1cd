"""The losses written out once more, token by token, from the papers' equations; gradients by hand, in float64.

Nothing of the code under test is used here, but the names of a config's fields.
"""

import math

import numpy as np

UNLIKELY = 1 / 16


def lengths(batch):
    return [int(n) for n in batch.completion_lengths_B]


def counted(now_BC, batch, o):
    """Which tokens of each row are learned from: of a peer's completion none, if too many of them are unlikely."""
    found = []
    for row, length in enumerate(lengths(batch)):
        mask = [True] * length
        if batch.external_B is not None and batch.external_B[row]:
            unlikely = [math.exp(now_BC[row][t]) < o.external_min_prob for t in range(length)]
            few = sum(unlikely) <= UNLIKELY * length
            mask = [few and not one for one in unlikely]
        found.append(mask)
    return found


def surrogate(ratio, logprob, advantage, o):
    """Value, slope in the log-prob (its ratio's own slope is the ratio), and which bound binds."""
    low, high = 1 - o.clip_low, 1 + o.clip_high
    if o.surrogate == "none":
        return ratio * advantage, ratio * advantage, ""
    if o.surrogate == "sapo":
        tau = o.tau_positive if advantage > 0 else o.tau_negative
        gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
        return 4 / tau * gate * advantage, 4 * gate * (1 - gate) * ratio * advantage, ""
    if o.surrogate == "cispo":
        weight = min(max(ratio, low), high)
        return (
            weight * advantage * logprob,
            weight * advantage,
            "low" if ratio < low else "high" if ratio > high else "",
        )
    if advantage > 0:  # it gains nothing above the bound
        return (high * advantage, 0.0, "high") if ratio > high else (ratio * advantage, ratio * advantage, "")
    if advantage < 0 and ratio < low:
        return low * advantage, 0.0, "low"
    if advantage < 0 and o.dual_clip and ratio > o.dual_clip:
        return o.dual_clip * advantage, 0.0, "dual"
    return ratio * advantage, ratio * advantage, ""


def weight_of(gaps, t, external, o):
    """The importance weight of a token, as it is and as used. gaps: log (proximal / behaviour), 0 where unknown."""
    raw = math.exp(sum(gaps) if o.correction == "sequence" else gaps[t])
    if o.correction == "none":
        return raw, 1.0
    outside = not o.correction_floor <= raw <= o.correction_cap
    if external and o.external_correction == "mask":
        return raw, 0.0 if outside else raw
    return raw, min(max(raw, o.correction_floor), o.correction_cap)


def kl_of(logprob, reference, o):
    """Estimate and its slope in the log-prob."""
    d = logprob - reference
    return {"k1": (d, 1.0), "k2": (d * d / 2, d), "k3": (math.exp(-d) + d - 1, 1 - math.exp(-d))}[o.kl]


def written_out(now_BC, entropy_BC, batch, o):
    """Loss, its gradient in each log-prob and in each entropy, and the metrics."""
    now_BC, entropy_BC = np.float64(now_BC), np.float64(entropy_BC)
    masks = counted(now_BC, batch, o)
    values, slopes, slopes_H = (np.zeros(now_BC.shape) for _ in range(3))
    ratios, raws, entropies, gaps_known, kls = [], [], [], [], []
    bound = dict.fromkeys(("low", "high", "dual", "cut"), 0)
    for row, mask in enumerate(masks):
        at = [t for t, counts in enumerate(mask) if counts]
        advantage = float(batch.advantages_B[row])
        external = batch.external_B is not None and bool(batch.external_B[row])
        proximal = {t: float(batch.old_logprobs_BC[row, t]) if batch.old_known_B[row] else now_BC[row, t] for t in at}
        known = batch.behaviour_known_B is not None and bool(batch.behaviour_known_B[row])
        gaps = [proximal[t] - float(batch.behaviour_logprobs_BC[row, t]) if known else 0.0 for t in at]
        logs = {t: now_BC[row, t] - proximal[t] for t in at}
        if o.ratio == "sequence" and at:
            logs = dict.fromkeys(at, sum(logs.values()) / len(at))
        for place, t in enumerate(at):
            ratio, entropy = math.exp(logs[t]), entropy_BC[row, t]
            value, slope, bind = surrogate(ratio, now_BC[row, t], advantage, o)
            raw, weight = weight_of(gaps, place, external, o)
            if batch.entropy_floor_B is not None and entropy < batch.entropy_floor_B[row]:
                weight = 0.0
            values[row, t], slopes[row, t] = -weight * value, -weight * slope
            if batch.reference_logprobs_BC is not None:
                kl, kl_slope = kl_of(now_BC[row, t], float(batch.reference_logprobs_BC[row, t]), o)
                values[row, t] += o.kl_weight * kl
                slopes[row, t] += o.kl_weight * kl_slope
                kls.append(kl)
            values[row, t] -= o.entropy_bonus * entropy
            slopes_H[row, t] = -o.entropy_bonus
            ratios.append(ratio)
            raws.append(raw)
            entropies.append(entropy)
            if known:
                gaps_known.append(abs(gaps[place]))
                bound["cut"] += not o.correction_floor <= raw <= o.correction_cap
            if bind and advantage:
                bound[bind] += 1
    shares = share_of_tokens(masks, o, now_BC.shape)
    tokens, raws = len(ratios), np.array(raws)
    metrics = {
        "loss": float((shares * values).sum()),
        "tokens": tokens,
        "ratio_mean": np.mean(ratios),
        "importance_mean": raws.mean(),
        "importance_max": raws.max(),
        "importance_cut_fraction": bound["cut"] / tokens,
        "ess_fraction": raws.sum() ** 2 / (tokens * (raws**2).sum()),
        "clip_fraction": (bound["low"] + bound["high"] + bound["dual"]) / tokens,
        "clip_low_fraction": bound["low"] / tokens,
        "clip_high_fraction": bound["high"] / tokens,
        "clip_dual_fraction": bound["dual"] / tokens,
        "entropy": np.mean(entropies),
        "logprob_gap": np.mean(gaps_known) if gaps_known else 0.0,
    } | ({"kl": np.mean(kls)} if kls else {})
    return shares * slopes, shares * slopes_H, metrics


def share_of_tokens(masks, o, shape):
    """What each token counts for in the whole loss, `[B, C]`; they sum to 1, but for "constant"."""
    counts = [sum(mask) for mask in masks]
    rows, tokens = sum(n > 0 for n in counts), sum(counts)
    found = np.zeros(shape)
    for row, mask in enumerate(masks):
        for t, counts_ in enumerate(mask):
            if counts_:
                found[row, t] = {
                    "tokens": 1 / max(tokens, 1),
                    "sequences": 1 / max(rows, 1) / max(counts[row], 1),
                    "constant": 1 / max(rows, 1) / o.max_new_tokens,
                }[o.aggregation]
    return found
