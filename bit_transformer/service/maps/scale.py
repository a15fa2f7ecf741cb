"""Bits as numbers of one byte, and as colours."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

STEPS = 10  # costs are kept in steps of a tenth of a bit: finer than a colour shows
TOP = 255  # 25.5 bits, and whatever is more
# Costs of single bits: most are next to nothing, so steps are finer there.
LEVELS = (0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 12)
FULL = 16.0  # bits of the last colour

# Lightness, chroma and hue in OKLCH, from no surprise to much. Lightness goes one way in even steps, so that the order is seen without colour too.
LIGHT = ((0.985, 0.005, 95), (0.86, 0.09, 82), (0.73, 0.15, 52), (0.59, 0.19, 20), (0.45, 0.17, 345), (0.30, 0.13, 300))
DARK = (
    (0.235, 0.015, 270),
    (0.37, 0.11, 290),
    (0.51, 0.17, 340),
    (0.66, 0.17, 25),
    (0.81, 0.13, 65),
    (0.96, 0.08, 100),
)
GREY_LIGHT = ((0.985, 0, 0), (0.15, 0, 0))
GREY_DARK = ((0.235, 0, 0), (1.0, 0, 0))


@cache
def _every_float16() -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        found = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return np.nan_to_num(found, nan=0.0, posinf=TOP / STEPS, neginf=0.0)


@cache
def _steps_of() -> NDArray[np.uint8]:
    return np.clip(np.rint(_every_float16() * STEPS), 0, TOP).astype(np.uint8)


@cache
def _levels_of() -> NDArray[np.uint8]:
    levels = np.array(LEVELS, dtype=np.float32)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, _every_float16()).astype(np.uint8)


def in_steps(costs: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Costs in tenths of bits, 25.5 bits at most. Not a number counts as 0."""
    return _steps_of()[np.ascontiguousarray(costs).view(np.uint16)]  # a table: float16 is slow to compute with


def finite(costs: NDArray[np.float16]) -> NDArray[np.float32]:
    """Costs to compute with. Not a number counts as 0, infinity as 25.5 bits."""
    return _every_float16()[np.ascontiguousarray(costs).view(np.uint16)]


def in_levels(bit_costs: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Costs of single bits, (N, 8), as the nearest of 16 levels, two in a byte: (N, 4). The first bit is in the upper half."""
    found = _levels_of()[np.ascontiguousarray(bit_costs).view(np.uint16)]
    return np.bitwise_or(found[:, 0::2] << 4, found[:, 1::2], dtype=np.uint8)


@cache
def colours(name: str) -> NDArray[np.uint8]:
    """(256, 3): the sRGB colour of every cost in tenths of bits. Each four bits more are half of what is left of the scale.

    Args:
        name: `light`, `dark`, `grey-light` or `grey-dark`.
    """
    path = np.array({"light": LIGHT, "dark": DARK, "grey-light": GREY_LIGHT, "grey-dark": GREY_DARK}[name], dtype=float)
    path[:, 2] = np.unwrap(path[:, 2], period=360)
    share = np.minimum((1 - 2 ** (-np.arange(256) / STEPS / 4)) / (1 - 2 ** (-FULL / 4)), 1)
    at = np.linspace(0, 1, len(path))
    lightness, chroma, hue = (np.interp(share, at, path[:, column]) for column in range(3))
    found = _srgb(lightness, chroma, hue)
    for _ in range(60):  # what a screen cannot show gets paler, not lighter or darker
        outside = ((found < -1e-4) | (found > 1 + 1e-4)).any(axis=1)
        chroma = np.where(outside, chroma * 0.95, chroma)
        found = _srgb(lightness, chroma, hue)
    return np.rint(np.clip(found, 0, 1) * 255).astype(np.uint8)


def _srgb(lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLCH to sRGB (Ottosson 2020, "A perceptual color space for image processing"); outside of 0 to 1 where a screen cannot show it."""
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=1,
    )
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055)


def number_of(value: float) -> float:
    """A number for a table or JSON, which have no infinity."""
    return round(float(value), 4) if math.isfinite(value) else 0.0
