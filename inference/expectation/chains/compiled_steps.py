r"""The scaled recursions as loops for numba: one chain after another, step by step.

What ``scaled.py`` does for a step of all chains at once is done here for all steps of one chain,
while its numbers are in the processor's nearest memory. Steps are read in chunks, exponentiated,
and what they give is written to an array of the strides of the emissions. Inside, states are
padded with zeros to ``Kp``, a multiple of four, so that four terms of a sum are taken at a time.
"""

import numpy as np

from ember.inference.expectation.chains.compiled_chunks import (
    CHUNK,
    FLOOR,
    NONE,
    Floats,
    Integers,
    compiled,
    exponentials,
    load,
)

__all__ = ["backward", "forward"]

# compiled_chunks.py: 4d6b4ce0ccf57559


@compiled()
def _times(vector: Floats, matrix: Floats, out: Floats) -> None:
    """``vector @ matrix``; four rows of the matrix at a time."""
    padded = len(vector)
    for j in range(padded):
        out[j] = 0.0
    for i in range(0, padded, 4):
        a, b, c, d = vector[i], vector[i + 1], vector[i + 2], vector[i + 3]
        for j in range(padded):
            out[j] += (
                a * matrix[i, j]
                + b * matrix[i + 1, j]
                + c * matrix[i + 2, j]
                + d * matrix[i + 3, j]
            )


@compiled()
def _add_pairs(earlier: Floats, later: Floats, count: int, states: int, pairs: Floats) -> None:
    """Adds ``earlier' @ later`` of ``count`` steps, four steps at a time."""
    padded = pairs.shape[1]
    whole = count - count % 4
    for i in range(states):
        for t in range(0, whole, 4):
            a, b, c, d = earlier[t, i], earlier[t + 1, i], earlier[t + 2, i], earlier[t + 3, i]
            for j in range(padded):
                pairs[i, j] += (
                    a * later[t, j]
                    + b * later[t + 1, j]
                    + c * later[t + 2, j]
                    + d * later[t + 3, j]
                )
        for t in range(whole, count):
            a = earlier[t, i]
            for j in range(padded):
                pairs[i, j] += a * later[t, j]


@compiled("boolean(f8[:,:,:],i8[:],f8[:,::1],f8[:,:,:,::1],i8,b1,f8,i8,i8,f8[:,:,::1],f8[::1])")
def forward(
    emission: Floats,
    lengths: Integers,
    first: Floats,
    matrices: Floats,
    every: int,
    near_zero: bool,
    least: float,
    begin: int,
    end: int,
    filtered: Floats,
    evidence: Floats,
) -> bool:
    """``f_t`` of chains ``begin`` to ``end``; whether nothing was lost.

    Args:
        emission: Log probabilities ``(T, R, K)``.
        lengths: Steps of each chain ``(R,)``.
        first: Probabilities of the first state, up to a factor, ``(R, K)``.
        matrices: Transition matrices ``(T - 1 or 1, G, Kp, Kp)``.
        every: After how many steps to scale.
        near_zero: Whether entries are held up.
        least: What a sum must exceed that is divided by.
        begin: The first chain.
        end: One past the last.
        filtered: ``(R, T, Kp)``, written here.
        evidence: The log of all that was divided by, ``(R,)``, written here.
    """
    states = emission.shape[2]
    rows, _, padded = filtered.shape
    group_size = rows // matrices.shape[1]
    own_step = 1 if len(matrices) > 1 else 0
    length = max(16, CHUNK // padded)
    likelihood = np.empty((length, padded))
    scale = np.empty(length * padded)
    flat, bits = likelihood.reshape(-1), scale.view(np.int64)
    top = np.empty((1, length))
    now = np.zeros(padded)
    sound = True
    for r in range(begin, end):
        for k in range(states):
            now[k] = first[r, k]
        group = r // group_size
        total = 0.0
        steps = lengths[r]
        for start in range(0, steps, length):
            count = min(length, steps - start)
            sound = load(emission, lengths, r, 1, start, count, likelihood, top) and sound
            exponentials(flat[: count * padded], scale, bits)
            for i in range(count):
                t = start + i
                own = filtered[r, t]
                total += top[0, i]
                for k in range(padded):
                    own[k] = now[k] * likelihood[i, k]
                if t == 0 or t == steps - 1 or (t + 1) % every == 0:
                    divided = 0.0
                    for k in range(padded):
                        divided += own[k]
                    sound = sound and divided > least
                    total += np.log(divided)
                    inverse = 1.0 / divided
                    for k in range(padded):
                        own[k] *= inverse
                if near_zero:
                    for k in range(states):
                        own[k] = max(own[k], FLOOR)
                if t < steps - 1:
                    _times(own, matrices[t * own_step, group], now)
        if steps == 0:
            divided = 0.0
            for k in range(states):
                divided += first[r, k]
            sound = sound and divided > least
            total = np.log(divided)
        evidence[r] = total
        if not sound:
            break
    return sound


@compiled(
    "Tuple((boolean,f8))(f8[:,:,:],i8[:],f8[:,:,:,::1],f8[:,:,::1],f8[:],i8,b1,f8,i8,i8,"
    "f8[:,:,:],f8[:,:,:,::1])"
)
def backward(
    emission: Floats,
    lengths: Integers,
    turned: Floats,
    filtered: Floats,
    weights: Floats,
    every: int,
    near_zero: bool,
    least: float,
    begin: int,
    end: int,
    marginals: Floats,
    pairs: Floats,
) -> tuple[bool, float]:
    """Posterior marginals and sums of ``f_t(i) y_(t+1)(j)`` of chains ``begin`` to ``end``.

    Args:
        emission: Log probabilities ``(T, R, K)``.
        lengths: Steps of each chain ``(R,)``.
        turned: Transition matrices, transposed, ``(T - 1 or 1, G, Kp, Kp)``.
        filtered: As ``forward`` left it.
        weights: Of each chain ``(R,)``.
        every: As in ``forward``, as are the next four.
        near_zero: Likewise.
        least: Likewise.
        begin: Likewise.
        end: Likewise.
        marginals: ``(T, R, K)``, weighed, written here; zero past the end of a chain.
        pairs: ``(T - 1 or 1, groups, Kp, Kp)`` for the groups from that of ``begin`` on, weighed,
            added to here.

    Returns:
        Whether nothing was lost; the share of the evidence that entries held up have, summed over
        steps and chains.
    """
    longest, rows, states = emission.shape
    padded = filtered.shape[2]
    group_size = rows // turned.shape[1]
    own_step = 1 if len(turned) > 1 else 0
    length = max(16, CHUNK // padded)
    likelihood = np.empty((length, padded))
    scale = np.empty(length * padded)
    flat, bits = likelihood.reshape(-1), scale.view(np.int64)
    top = np.empty((1, length))
    posterior = np.zeros((length, padded))
    earlier = np.zeros((length, padded))
    later = np.zeros((length, padded))
    future, shown, back = np.zeros(padded), np.zeros(padded), np.zeros(padded)
    sound, share = True, 0.0
    for r in range(begin, end):
        weight = weights[r]
        group = r // group_size
        steps = lengths[r]
        for k in range(states):
            for t in range(steps, longest):
                marginals[t, r, k] = 0.0
        chunks = (steps + length - 1) // length
        for chunk in range(chunks - 1, -1, -1):
            start = chunk * length
            count = min(length, steps - start)
            sound = load(emission, lengths, r, 1, start, count, likelihood, top) and sound
            exponentials(flat[: count * padded], scale, bits)
            for i in range(count - 1, -1, -1):
                t = start + i
                own = filtered[r, t]
                if t == steps - 1:
                    for k in range(padded):
                        back[k] = 1.0 if k < states else 0.0
                        shown[k] = 0.0
                else:
                    _times(future, turned[t * own_step, group], back)
                    if near_zero:
                        for k in range(states):
                            back[k] = max(back[k], FLOOR)
                agreement = 0.0
                for k in range(padded):
                    later[i, k] = shown[k]
                    posterior[i, k] = own[k] * back[k]
                    agreement += posterior[i, k]
                inverse = 1.0 / agreement
                weighed = weight * inverse
                for k in range(padded):
                    posterior[i, k] *= inverse
                    earlier[i, k] = own[k] * weighed
                    future[k] = back[k] * likelihood[i, k]
                if t == steps - 1 or (t + 1) % every == 0:
                    divided = 0.0
                    for k in range(padded):
                        divided += future[k]
                    sound = sound and (divided > least or not near_zero)
                    inverse = 1.0 / divided
                    for k in range(padded):
                        future[k] *= inverse
                for k in range(padded):
                    shown[k] = future[k]
                if near_zero:
                    for k in range(states):
                        if own[k] <= FLOOR or back[k] <= FLOOR:
                            share += posterior[i, k]
                        if posterior[i, k] < NONE:
                            posterior[i, k], earlier[i, k], shown[k] = 0.0, 0.0, 0.0
            for k in range(states):
                for i in range(count):
                    marginals[start + i, r, k] = weight * posterior[i, k]
            own_group = group - begin // group_size
            if own_step == 0:
                _add_pairs(earlier, later, count, states, pairs[0, own_group])
            else:
                for i in range(min(count, longest - 1 - start)):
                    _add_pairs(earlier[i:], later[i:], 1, states, pairs[start + i, own_group])
        if not sound:
            break
    return sound, share
