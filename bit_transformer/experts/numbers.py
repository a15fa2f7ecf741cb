"""Data made of numbers as a rich bank sees it: samples of sound, pixels, readings of a sensor, cells of a raster.

Numbers have one to four bytes and come in turn from one or more channels. Before each, its value is predicted four times: by two regressions on numbers
before it and, where data has rows, above it; and by two fixed rules. Each prediction stands for two logistic distributions around it: one as wide as its
errors were of late, one as they were beside and above. From them follows the probability of each bit of the number, given the bits before: inputs of the
bank's mixers.

A regression minimises the squared error of the numbers so far, of which older ones weigh less, all taken as differences from the number before in the
same channel. After each number its weights are solved for anew, by Cholesky's method. It is part of a stream's state, as the words of a text are, and not
of what the bank has learned: it begins anew with each stream, and follows what is read also where the bank does not learn.

Every number is made by IEEE additions, multiplications, divisions and square roots of float64, in the order in which they are written.

Sources: least squares with forgetting, Haykin, "Adaptive Filter Theory", chapter 10; of the pixels around, Wu and Memon 1997, "Context-based, adaptive,
lossless image coding", and Meyer and Tischer 1997, "TMW"; that a prediction is an input of a mixer of bits, the PAQ family.
"""

# Shapes: C channels, R regressions, N neighbours, P predictions.
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bit_transformer.compiled import compiled, inline, part
from bit_transformer.experts.layout import PLACE, age
from bit_transformer.experts.terms import Term

# Rows of `Shape.numbers`: bytes of a number; channels; whether the high byte comes first; 128 if numbers have a sign, else 0; bytes before the first.
SIZE, CHANNELS, BIG, TOP, BEGIN = range(5)
_COUNTS = (24, 8)  # neighbours of each regression
_KEPT = (0.998, 0.98)  # what a number weighs, of what the one after it does
REGRESSIONS = len(_COUNTS)
MOST = max(_COUNTS)
PREDICTIONS = REGRESSIONS + 2
WIDTHS = 2  # of distributions around a prediction
NUMBER_INPUTS = 2 * PREDICTIONS * WIDTHS
_RIDGE, _RELATIVE = 1.0, 2.0**-30  # added to the moments' diagonal; and this part of it
# Processors may treat the smallest numbers differently: less than the first is 0 among sums of products, and a mean error is not below the second.
_NEGLIGIBLE = 1e-12
_LEAST = 1e-6
_RATE = 1 / 32  # of the mean error
_PER_ERROR = 0.72  # the scale of a logistic distribution, by its mean absolute error: 1 / ln 4
_NARROWEST, _FLOOR = 0.02, 1e-6  # the least scale, of numbers; the least probability, of a byte's values
_UNSURE = 0.4 * 256.0  # the scale, of a byte's values, from which on a byte below unknown ones may be anything
_EDGE = 11.99
_ZERO, _HALF, _STEPS = np.float32(0), np.float32(0.5), np.float32(4096)
_LIFT = np.float32(4)


def layout_of(kind: str, channels: int, begin: int) -> NDArray[np.int64]:
    """`Shape.numbers` for a kind of `config.experts.KINDS`; empty where there is none."""
    if not kind:
        return np.zeros(0, dtype=np.int64)
    return np.array([int(kind[-1]), channels, kind[0] == ">", 128 * (kind[-2] == "i"), begin], dtype=np.int64)


def neighbours(numbers: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """How many bytes before a number those begin that it is predicted from, the nearest first; the one before in its channel is not among them.

    Args:
        width: bytes of a row, or 0.
    """
    if not len(numbers):
        return np.zeros(0, dtype=np.int64)
    size, channels = int(numbers[SIZE]), int(numbers[CHANNELS])
    step = size * channels
    # By squared distance, with channels side by side. Of rows that are very short, some would not have been read.
    near = [(float(k), k * step) for k in range(2, MOST + 2)]
    near += [(k + 0.5, k * step + other * size) for k in range(MOST) for other in range(1, channels)]
    if width:
        along = near
        places = [(row, column) for row in range(4) for column in range(-4, 5) if row or column < -1]
        near = [(float(row * row + column * column), row * width - column * step) for row, column in places]
        for other in range(1, channels):
            back = other * size
            near += [(0.5, back), (1.6, back + step), (1.6, back + width), (2.1, back + step + width)]
        near = [(distance, back) for distance, back in near if back >= size] + [(100 + k, back) for k, back in along]
    found = list(dict.fromkeys(back for _, back in sorted(near) if back != step))
    return np.array(found[:MOST], dtype=np.int64)


@inline
def _byte(shape, stream, back):
    """The byte so far back; 0 before the first."""
    return max(np.int64(age(stream, back)) - 1, 0) >> shape.text_shift


@inline
def _number(shape, stream, back):
    """The number that begins so far back, as one without a sign."""
    numbers, value = shape.numbers, np.int64(0)
    size = numbers[SIZE]
    for i in range(size):
        value = value << 8 | _byte(shape, stream, back - i if numbers[BIG] else back - (size - 1 - i))
    return np.float64(value ^ numbers[TOP] << (8 * size - 8))


@inline
def _channel(numbers, n):
    return n // numbers[SIZE] % numbers[CHANNELS]


@compiled
def begin_number(shape, stream):
    """Before a byte of a number: predict the number, or what is left of it."""
    numbers, terms, guesses = shape.numbers, stream.terms, stream.guesses
    size = numbers[SIZE]
    n = stream.place[PLACE] + size - numbers[BEGIN]
    at, channel = n % size, _channel(numbers, n)
    if at == 0:
        _predict(shape, stream, channel)
    so_far = np.int64(0)
    for i in range(at):
        so_far = so_far << 8 | _byte(shape, stream, at - i if numbers[BIG] else 1 + i)
    if numbers[BIG] and at:
        so_far ^= numbers[TOP] << (8 * at - 8)
    step = 1.0
    for _ in range(size - 1 - at if numbers[BIG] else at):
        step *= 256.0
    base = so_far * step * 256.0 if numbers[BIG] else np.float64(so_far)
    errors, place, row, channels = stream.errors, n // size, shape.width // size, numbers[CHANNELS]
    ring, long = len(errors) - 1, stream.spreads[channel]
    for p in range(PREDICTIONS):
        left = (guesses[p] - base) / step
        stream.left[p] = left
        before = errors[(place - channels) & ring, p]
        if row:
            right = errors[(place - row + channels) & ring, p] if row > channels else 0.0  # else it is still to come
            beside = errors[(place - row - channels) & ring, p] + right
            near = ((before + errors[(place - row) & ring, p]) * 2.0 + beside) / 6.0
        else:
            near = (before * 2.0 + errors[(place - 2 * channels) & ring, p]) / 3.0
        stream.wide[p, 0] = max(long[p] * _PER_ERROR, _NARROWEST) / step
        stream.wide[p, 1] = max((near * 3.0 + long[p]) * 0.25 * _PER_ERROR, _NARROWEST) / step
        expected = np.int64(np.floor(left + 0.5))
        whole = numbers[BIG] or at == size - 1
        terms[Term.EXPECTED_1 + p] = min(max(expected, -256), 511) if whole else expected & 255
    terms[Term.EXPECTED_PART] = np.int64(np.floor(stream.left[0] * 4.0))
    terms[Term.NUMBER_BYTE], terms[Term.CHANNEL] = at, channel
    terms[Term.SPREAD_LONG], terms[Term.SPREAD] = _size(stream.wide[0, 0] * step), _size(stream.wide[0, 1] * step)
    terms[Term.DISAGREED] = _size(abs(guesses[0] - guesses[1]))


@inline
def _size(x):
    """The number of bits of the integer part of 16 x, less 1, within 0 and 31."""
    whole, count = np.int64(x * 16.0), np.int64(0)
    while whole > 1:
        whole >>= 1
        count += 1
    return min(count, 31)


@inline
def _predict(shape, stream, channel):
    numbers, near, guesses, reach = shape.numbers, stream.near, stream.guesses, shape.reach
    step = numbers[SIZE] * numbers[CHANNELS]
    left = _number(shape, stream, step)
    near[MOST] = left
    most = 255.0
    for _ in range(numbers[SIZE] - 1):
        most = most * 256.0 + 255.0
    for i in range(MOST):
        near[i] = _number(shape, stream, reach[i]) - left
    for r in range(REGRESSIONS):
        weights, total = stream.weights[channel, r], 0.0
        for i in range(_COUNTS[r]):
            total += weights[i] * near[i]
        guesses[r] = left + total if abs(total) < most else left
    if shape.width:
        up = _number(shape, stream, shape.width)
        guesses[REGRESSIONS] = left + up - _number(shape, stream, shape.width + step)
        guesses[REGRESSIONS + 1] = (left + up) * 0.5
    else:
        guesses[REGRESSIONS] = left
        guesses[REGRESSIONS + 1] = 2.0 * left - _number(shape, stream, 2 * step)
    for p in range(PREDICTIONS):
        guesses[p] = min(max(guesses[p], 0.0), most)


@compiled
def note_number(shape, stream, unit):
    """After a byte of a number: learn from a number that is complete, before `Stream.place` advances."""
    numbers = shape.numbers
    size = numbers[SIZE]
    n = stream.place[PLACE] + size - numbers[BEGIN]
    if n % size != size - 1:
        return
    value = np.int64(0)
    for i in range(size):
        back = size - 1 - i if numbers[BIG] else i
        value = value << 8 | (_byte(shape, stream, back) if back else unit >> shape.text_shift & 255)
    number = np.float64(value ^ numbers[TOP] << (8 * size - 8))
    channel, near, guesses = _channel(numbers, n), stream.near, stream.guesses
    target, changes = number - near[MOST], False
    for i in range(MOST):
        changes = changes or near[i] != 0.0
    if changes or target != 0.0:
        for r in range(REGRESSIONS):
            moments, weights = stream.moments[channel, r], stream.weights[channel, r]
            _regress(moments, weights, stream.factor, near, target, _COUNTS[r], _KEPT[r])
    errors, spreads = stream.errors, stream.spreads[channel]
    for p in range(PREDICTIONS):
        error = abs(number - guesses[p])
        errors[n // size & (len(errors) - 1), p] = error
        spreads[p] = max(spreads[p] + (error - spreads[p]) * _RATE, _LEAST)


@part
def _regress(moments, weights, factor, near, target, count, kept):
    """Add a number to a regression, and solve it: the moments' lower triangle has the neighbours' products, the row after it theirs with the target."""
    for i in range(count + 1):
        x = near[i] if i < count else target
        for j in range(min(i + 1, count)):
            moment = moments[i, j] * kept + x * near[j]
            moments[i, j] = moment if abs(moment) > _NEGLIGIBLE else 0.0
    for i in range(count):
        for j in range(i):
            total = moments[i, j]
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            factor[i, j] = total / factor[j, j]
        ridge = _RIDGE + moments[i, i] * _RELATIVE
        total = moments[i, i] + ridge
        for k in range(i):
            total -= factor[i, k] * factor[i, k]
        factor[i, i] = np.sqrt(max(total, ridge))  # less than the ridge is an error of rounding
    for i in range(count):
        total = moments[count, i]
        for k in range(i):
            total -= factor[i, k] * weights[k]
        weights[i] = total / factor[i, i]
    for i in range(count - 1, -1, -1):
        total = weights[i]
        for k in range(i + 1, count):
            total -= factor[k, i] * weights[k]
        weights[i] = total / factor[i, i]


@inline
def _below(curves, z):
    """The part of a logistic distribution below z."""
    return np.float64(curves.probability[np.int64((min(max(z, -_EDGE), _EDGE) + 12.0) * 256.0)])


@inline
def _between(curves, a, b):
    """The part between a and b, from the side where numbers are small and so exact."""
    low, high = (-b, -a) if a > 0.0 else (a, b)
    return _below(curves, high) - _below(curves, low)


@part
def write_number_inputs(shape, stream, curves, node, depth, x, o):
    """What the predictions say of the bit at a node: two inputs for each prediction and width, from x[o] on."""
    numbers, terms = shape.numbers, stream.terms
    size, at = numbers[SIZE], terms[Term.NUMBER_BYTE]
    last = at == (0 if numbers[BIG] else size - 1)  # the highest byte
    if depth >= 8:
        for i in range(NUMBER_INPUTS):
            x[o + i] = _ZERO
        return
    half = 1 << (7 - depth)
    begin = (node << (8 - depth)) & 255
    turned = last and numbers[TOP] != 0
    if turned:
        begin = begin ^ 128 if depth else 0
    edge = 0.5
    if numbers[BIG]:
        for _ in range(size - 1 - at):
            edge *= 0.00390625
    repeats = not (numbers[BIG] or last)
    for p in range(PREDICTIONS):
        for s in range(WIDTHS):
            wide, from_left = stream.wide[p, s], begin - edge - stream.left[p]
            one = 0.5
            if not repeats or wide < _UNSURE:
                below, above = _FLOOR * half, _FLOOR * half
                if repeats:  # what is above this byte is not known: three numbers around the prediction are likely
                    from_left -= (np.floor(from_left * 0.00390625) + 2.0) * 256.0
                for _ in range(3 if repeats else 1):
                    a, m, b = from_left / wide, (from_left + half) / wide, (from_left + 2 * half) / wide
                    below += _between(curves, a, m)
                    above += _between(curves, m, b)
                    from_left += 256.0
                one = below / (below + above) if turned and depth == 0 else above / (below + above)
            probability = np.float32(one)
            x[o] = curves.logit[min(np.int64(probability * _STEPS), 4095)]
            x[o + 1] = (probability - _HALF) * _LIFT
            o += 2
