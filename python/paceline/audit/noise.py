"""The engine's noise, recomputed: every random number is a function of its address (csrc/math/noise.h), here in NumPy and with its
logarithms, so that what the engine decided can be followed without any of its code."""

import numpy as np
from numpy.typing import NDArray

TOKEN, DRAFT, ACCEPT = 0, 1, 2  # purposes

Words = NDArray[np.uint64]  # 32-bit words in 64 bits, so that products do not overflow
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(key: Words, c0: Words, c1: Words, c2: Words, c3: Words) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 (Salmon et al. 2011, section 4.3). Arrays broadcast; keys have 64 bits, counters 32."""
    k0, k1 = key & _LOW, key >> _HALF
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ k0, b & _LOW, (a >> _HALF) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW
    return c0, c1, c2, c3


def accept_uniforms(seed: Words, position: NDArray[np.int64], cycle_start: NDArray[np.int64]) -> NDArray[np.float64]:
    """The u of `rejection` in [0, 1), 53 bits, one per address."""
    zero = np.zeros(len(seed), np.uint64)
    hi, lo = (philox(seed, zero, _words(position), _words(cycle_start), zero + np.uint64(ACCEPT | half << 8))[0] for half in (0, 1))
    return ((hi << _HALF | lo) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def gumbels(seed: Words, position: NDArray[np.int64], cycle_start: NDArray[np.int64], purpose: int, num_ids: int) -> NDArray[np.float64]:
    """[addresses, num_ids] Gumbel noise of every token id. cycle_start is not part of a TOKEN address."""
    group = np.arange((num_ids + 3) // 4, dtype=np.uint64)[None, :]
    key, c1 = seed[:, None], _words(position)[:, None]
    c2 = np.zeros_like(c1) if purpose == TOKEN else _words(cycle_start)[:, None]
    hi, lo = (np.stack(np.broadcast_arrays(*philox(key, group, c1, c2, np.full((1, 1), purpose | half << 8, np.uint64))), axis=-1) for half in (0, 1))
    uniform = hi.astype(np.float64) * 2.0**-32 + (lo.astype(np.float64) + 0.5) * 2.0**-64
    exponential = -np.log1p(-np.minimum(uniform, 1 - 2.0**-53))
    return -np.log(exponential).reshape(len(seed), -1)[:, :num_ids]


def _words(values: NDArray[np.int64]) -> Words:
    return np.asarray(values).astype(np.uint64)
