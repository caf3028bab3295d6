"""HN_Adam in one pass on a GPU, in Triton: a step reads each gradient once and updates everything in place.

The counterpart of ``hn_adam.c``, with the same choices and the same power; `tune_fusion.optim.hn_adam_gpu` is
its caller. Imports Triton, so import this only where that may be missing and is caught.
"""

import triton
import triton.language as tl

BLOCK = 1024
"""Elements that one program works on."""
WARPS = 4


@triton.jit
def _power(x, y, ANY_X: tl.constexpr, ANY_RESULT: tl.constexpr):
    """x^y for x >= 0 and y in [1/4, 4], good to 6e-7; see ``hn_adam.c``, also for ANY_X and ANY_RESULT.

    Here y is divided into two parts whose products with the whole part of log2 x are exact: whether a
    compiler joins products and sums does not matter then.
    """
    scaled = x
    extra = tl.zeros_like(x)
    if ANY_X:
        tiny = x < 1.1754943508222875e-38  # 2^-126
        scaled = tl.where(tiny, x * 16777216.0, x)
        extra = tl.where(tiny, 24.0, 0.0)
    bits = scaled.to(tl.int32, bitcast=True) - 0x3F3504F3  # the mantissa from [sqrt(1/2), sqrt(2))
    exponent = (bits >> 23).to(tl.float32) - extra
    t = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    t2 = t * t
    t4 = t2 * t2
    first4 = (1.442695 + t * -0.72134733) + t2 * (0.48091063 + t * -0.36070368)
    next4 = (0.28791624 + t * -0.23894483) + t2 * (0.21571562 + t * -0.20726968)
    fraction = t * (first4 + t4 * (next4 + t4 * 0.1258369))
    # y log2 x = whole + rest, |rest| <= 1/2
    y_high = (y.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    high = y_high * exponent
    low = (y - y_high) * exponent + y * fraction
    whole = tl.floor(high + low + 0.5)
    rest = (high - whole) + low
    rest2 = rest * rest
    value = (1.0000001 + rest * 0.69314694) + rest2 * (0.2402212 + rest * 0.05550713)
    value = value + rest2 * rest2 * (0.009675541 + rest * 0.0013276471)
    if ANY_RESULT:  # in two steps
        n = tl.where(whole > -254.0, tl.where(whole < 254.0, whole, 254.0), -254.0).to(tl.int32)
        half = n >> 1
        value = value * ((half + 127) << 23).to(tl.float32, bitcast=True)
        value = value * ((n - half + 127) << 23).to(tl.float32, bitcast=True)
    else:
        n = tl.where(whole > -126.0, whole, -126.0).to(tl.int32)
        value = 2.0 * value * ((n + 126) << 23).to(tl.float32, bitcast=True)
    if ANY_X:
        value = tl.where(x == 0.0, 0.0, value)
        value = tl.where(x < float("inf"), value, x)
    return value


@triton.jit
def _update(p, g, m, v, v_max, lr, eps, lambda0, beta2, new1, new2, ROOT: tl.constexpr):
    """The new parameter, m, v and running maximum, and Λ."""
    size = tl.abs(g)
    past = tl.abs(m)
    ratio = tl.div_rn(past, tl.where(past > size, past, size))
    norm = lambda0 - tl.where(ratio == ratio, ratio, 0.0)  # noqa: PLR0124  (0/0 counts as 0)
    inverse = tl.div_rn(1.0, norm)
    first = m + new1 * (g - m)
    if ROOT:
        larger = tl.where(v > size, v, size)
        share = tl.div_rn(tl.where(v > size, size, v), larger)
        weight = tl.where(v > size, beta2, new2)  # of the larger one
        powered = _power(tl.where(share == share, share, 0.0), norm, False, False)  # noqa: PLR0124
        second = larger * _power(powered * (1.0 - weight) + weight, inverse, False, False)
    else:
        second = beta2 * v + new2 * _power(size, norm, False, True)
    largest = tl.where(v_max > second, v_max, second)
    divisor = tl.where(norm < 2.0, largest, second)
    v_max = tl.where(norm < 2.0, largest, v_max)
    if not ROOT:
        divisor = _power(divisor, inverse, True, False)
    return p - lr * (first / (divisor + eps)), first, second, v_max, norm


@triton.jit
def _tensor(address, ALIGNMENT: tl.constexpr):
    """What lies at an address from the table; where it is divisible by 16, memory can be read in vectors."""
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), ALIGNMENT)


@triton.jit
def _chunk(
    tensor,
    start,
    totals,
    numbers,
    observe,
    ROOT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Step BLOCK elements from `start` on; those that there are, unless WHOLE."""
    lr, eps, lambda0, beta2, new1, new2, sign, decay, keep = numbers
    offset = start + tl.arange(0, BLOCK)
    count = tl.load(tensor + 5)
    inside = (offset >= 0) if WHOLE else (offset < count)
    param = _tensor(tl.load(tensor), ALIGNMENT) + offset
    grad = _tensor(tl.load(tensor + 1), ALIGNMENT) + offset
    moment = _tensor(tl.load(tensor + 2), ALIGNMENT) + offset
    power = _tensor(tl.load(tensor + 3), ALIGNMENT) + offset
    address = tl.load(tensor + 4)
    maximum = _tensor(address, ALIGNMENT) + offset
    has_maximum = tl.where(inside, address, 0) != 0

    p = tl.load(param, mask=inside, other=0.0) * keep
    g = sign * tl.load(grad, mask=inside, other=0.0) + decay * p
    m = tl.load(moment, mask=inside, other=0.0)
    v = tl.load(power, mask=inside, other=0.0)
    v_max = tl.load(maximum, mask=has_maximum, other=0.0)
    p, m, v, v_max, norm = _update(p, g, m, v, v_max, lr, eps, lambda0, beta2, new1, new2, ROOT)
    tl.store(param, p, mask=inside)
    tl.store(moment, m, mask=inside)
    tl.store(power, v, mask=inside)
    tl.store(maximum, v_max, mask=has_maximum)
    if observe != 0:
        # Sums of float32 numbers from [1, 2^12] are exact in float64: the order of programs does not matter.
        below = tl.where(inside, tl.where(norm < 2.0, 1.0, 0.0), 0.0)
        tl.atomic_add(totals, tl.sum(below).to(tl.float64))
        tl.atomic_add(totals + 1, tl.sum(tl.where(inside, norm, 0.0)).to(tl.float64))


@triton.jit(do_not_specialize=["observe"])
def hn_adam(
    tensors,
    chunks,
    totals,
    lr,
    eps,
    lambda0,
    beta2,
    new1,
    new2,
    sign,
    decay,
    keep,
    observe,
    ROOT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step one chunk a program.

    tensors: int64 [n, 6]: addresses of parameter, gradient, m, v and its running maximum (0: there is none,
        because Λ cannot fall below 2), and the number of elements.
    chunks: int64 [programs, 2]: row of `tensors`, and its first element of the chunk, a multiple of BLOCK.
    totals: float64 [n, 2]; gains how many Λ are below 2, and their sum, where `observe` is not 0.
    ALIGNMENT: what all addresses are divisible by.
    The others are those of ``hn_adam.c``.
    """
    chunk = chunks + 2 * tl.program_id(0)
    row = tl.load(chunk)
    start = tl.multiple_of(tl.load(chunk + 1), BLOCK)
    tensor = tensors + 6 * row
    sums = totals + 2 * row
    numbers = (lr, eps, lambda0, beta2, new1, new2, sign, decay, keep)
    if start + BLOCK <= tl.load(tensor + 5):  # most are whole, and without a mask memory is read in vectors
        _chunk(tensor, start, sums, numbers, observe, ROOT, ALIGNMENT, BLOCK, True)
    else:
        _chunk(tensor, start, sums, numbers, observe, ROOT, ALIGNMENT, BLOCK, False)
