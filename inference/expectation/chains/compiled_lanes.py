"""The loops of ``compiled_steps.py`` for many chains of few states: several of them side by side.

An instruction then serves some chains at once, where the states of one would leave it half empty.
Those side by side share a transition matrix; where one ends before another, it stays as it is.
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

LANES = 32  # chains side by side, at most


@compiled()
def _times(vector: Floats, matrix: Floats, states: int, lanes: int, out: Floats) -> None:
    """``vector @ matrix`` of each lane; four rows of the matrix at a time."""
    v, w = vector.reshape(states, lanes), out.reshape(states, lanes)
    whole = states - states % 4
    for j in range(states):
        for lane in range(lanes):
            w[j, lane] = 0.0
        for i in range(0, whole, 4):
            a, b, c, d = matrix[i, j], matrix[i + 1, j], matrix[i + 2, j], matrix[i + 3, j]
            for lane in range(lanes):
                w[j, lane] += (
                    a * v[i, lane] + b * v[i + 1, lane] + c * v[i + 2, lane] + d * v[i + 3, lane]
                )
        for i in range(whole, states):
            a = matrix[i, j]
            for lane in range(lanes):
                w[j, lane] += a * v[i, lane]


@compiled()
def _sums(x: Floats, states: int, lanes: int, out: Floats) -> None:
    """The sum over states in each lane."""
    each = x.reshape(states, lanes)
    for lane in range(lanes):
        out[lane] = 0.0
    for k in range(states):
        for lane in range(lanes):
            out[lane] += each[k, lane]


@compiled()
def _multiply(x: Floats, factors: Floats, states: int, lanes: int, out: Floats) -> None:
    """All states of each lane times a factor of its own."""
    each, there = x.reshape(states, lanes), out.reshape(states, lanes)
    for k in range(states):
        for lane in range(lanes):
            there[k, lane] = each[k, lane] * factors[lane]


@compiled()
def _add_pairs(
    earlier: Floats, later: Floats, count: int, states: int, lanes: int, pairs: Floats
) -> None:
    """Adds ``sum_t earlier_t(i) later_t(j)`` of ``count`` steps, four steps at a time."""
    whole = count - count % 4
    x = earlier.reshape(len(earlier), states, lanes)
    y = later.reshape(len(later), states, lanes)
    total = np.empty(lanes)
    for i in range(states):
        for j in range(states):
            for lane in range(lanes):
                total[lane] = 0.0
            for t in range(0, whole, 4):
                for lane in range(lanes):
                    total[lane] += (
                        x[t, i, lane] * y[t, j, lane]
                        + x[t + 1, i, lane] * y[t + 1, j, lane]
                        + x[t + 2, i, lane] * y[t + 2, j, lane]
                        + x[t + 3, i, lane] * y[t + 3, j, lane]
                    )
            for t in range(whole, count):
                for lane in range(lanes):
                    total[lane] += x[t, i, lane] * y[t, j, lane]
            added = 0.0
            for lane in range(lanes):
                added += total[lane]
            pairs[i, j] += added


@compiled()
def _lanes(row: int, end: int, group_size: int) -> int:
    """How many chains from this one on go side by side: those that share a matrix."""
    return min(LANES, end - row, group_size - row % group_size)


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
    """``f_t`` of chains ``begin`` to ``end``, as in ``compiled_steps.py``."""
    states = emission.shape[2]
    rows, most, padded = filtered.shape
    group_size, own_step = rows // matrices.shape[1], 1 if len(matrices) > 1 else 0
    all_filtered = filtered.reshape(-1)
    divided, inverse = np.empty(LANES), np.empty(LANES)
    sound, row = True, begin
    while row < end and sound:
        lanes = _lanes(row, end, group_size)
        width = states * lanes
        shortest, longest = lengths[row : row + lanes].min(), lengths[row : row + lanes].max()
        length = max(8, CHUNK // width)
        likelihood, scale = np.empty((length, width)), np.empty(length * width)
        flat, bits, top = likelihood.reshape(-1), scale.view(np.int64), np.empty((lanes, length))
        now = np.zeros(width)
        for lane in range(lanes):
            total = 0.0
            for k in range(states):
                now[k * lanes + lane] = first[row + lane, k]
                total += first[row + lane, k]
            if lengths[row + lane] == 0:
                sound = sound and total > least
            evidence[row + lane] = np.log(total) if lengths[row + lane] == 0 else 0.0
        for start in range(0, longest, length):
            count = min(length, longest - start)
            sound = load(emission, lengths, row, lanes, start, count, likelihood, top) and sound
            exponentials(flat[: count * width], scale, bits)
            for i in range(count):
                t = start + i
                place = row * most * padded + t * width
                own = all_filtered[place : place + width]
                for e in range(width):
                    own[e] = now[e] * likelihood[i, e]
                if t == 0 or (t + 1) % every == 0 or t >= shortest - 1:
                    _sums(own, states, lanes, divided)
                    for lane in range(lanes):
                        if t < lengths[row + lane]:
                            sound = sound and divided[lane] > least
                            evidence[row + lane] += np.log(divided[lane])
                        inverse[lane] = 1.0 / divided[lane]
                    _multiply(own, inverse, states, lanes, own)
                if near_zero:
                    for e in range(width):
                        own[e] = max(own[e], FLOOR)
                if t < longest - 1:
                    _times(own, matrices[t * own_step, row // group_size], states, lanes, now)
            for lane in range(lanes):
                for i in range(count):
                    evidence[row + lane] += top[lane, i]
        row += lanes
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
    """Marginals and sums of pairs of the same chains, as in ``compiled_steps.py``."""
    states = emission.shape[2]
    rows, most, padded = filtered.shape
    group_size, own_step = rows // turned.shape[1], 1 if len(turned) > 1 else 0
    all_filtered = filtered.reshape(-1)
    summed, inverse, weighed = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    sound, share, row = True, 0.0, begin
    while row < end and sound:
        lanes = _lanes(row, end, group_size)
        width = states * lanes
        ends, group = lengths[row : row + lanes], row // group_size
        shortest, longest = ends.min(), ends.max()
        length = max(8, CHUNK // width)
        likelihood, scale = np.empty((length, width)), np.empty(length * width)
        flat, bits, top = likelihood.reshape(-1), scale.view(np.int64), np.empty((lanes, length))
        posterior, earlier = np.zeros((length, width)), np.zeros((length, width))
        later = np.zeros((length, width))
        future, shown, back = np.zeros(width), np.zeros(width), np.zeros(width)
        for lane in range(lanes):
            for k in range(states):
                for t in range(longest, most):
                    marginals[t, row + lane, k] = 0.0
        for chunk in range((longest + length - 1) // length - 1, -1, -1):
            start = chunk * length
            count = min(length, longest - start)
            sound = load(emission, lengths, row, lanes, start, count, likelihood, top) and sound
            exponentials(flat[: count * width], scale, bits)
            for i in range(count - 1, -1, -1):
                t = start + i
                place = row * most * padded + t * width
                own = all_filtered[place : place + width]
                if t < longest - 1:
                    _times(future, turned[t * own_step, group], states, lanes, back)
                    if near_zero:
                        for e in range(width):
                            back[e] = max(back[e], FLOOR)
                if t >= shortest - 1:
                    for lane in range(lanes):
                        if t >= ends[lane] - 1:
                            for k in range(states):
                                back[k * lanes + lane], shown[k * lanes + lane] = 1.0, 0.0
                for e in range(width):
                    later[i, e] = shown[e]
                    posterior[i, e] = own[e] * back[e]
                    future[e] = back[e] * likelihood[i, e]
                _sums(posterior[i], states, lanes, summed)
                for lane in range(lanes):
                    inverse[lane] = 1.0 / summed[lane] if t < ends[lane] else 0.0
                    weighed[lane] = weights[row + lane] * inverse[lane]
                _multiply(posterior[i], inverse, states, lanes, posterior[i])
                _multiply(own, weighed, states, lanes, earlier[i])
                if (t + 1) % every == 0 or t >= shortest - 1:
                    _sums(future, states, lanes, summed)
                    for lane in range(lanes):
                        lost = near_zero and t < ends[lane] and not summed[lane] > least
                        sound = sound and not lost
                        inverse[lane] = 1.0 / summed[lane]
                    _multiply(future, inverse, states, lanes, future)
                for e in range(width):
                    shown[e] = future[e]
                if near_zero:
                    for e in range(width):
                        if own[e] <= FLOOR or back[e] <= FLOOR:
                            share += posterior[i, e]
                        if posterior[i, e] < NONE:
                            posterior[i, e], earlier[i, e], shown[e] = 0.0, 0.0, 0.0
            for lane in range(lanes):
                for k in range(states):
                    for i in range(count):
                        value = weights[row + lane] * posterior[i, k * lanes + lane]
                        marginals[start + i, row + lane, k] = value
            first_group = group - begin // group_size
            if own_step == 0:
                _add_pairs(earlier, later, count, states, lanes, pairs[0, first_group])
            else:
                for i in range(min(count, most - 1 - start)):
                    there = pairs[start + i, first_group]
                    _add_pairs(earlier[i:], later[i:], 1, states, lanes, there)
        row += lanes
    return sound, share
