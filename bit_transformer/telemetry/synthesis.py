"""Selects a few of many windows to look at: clusters them by their telemetry."""

# Shapes: N windows, M metrics, C clusters.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import ConfigError


@dataclass(frozen=True)
class Synthesis:
    """Clusters of windows.

    Attributes:
        informative: index of the window that represents each cluster. The first is the most typical of all; each further one
            is the least like the previous ones.
        cluster: for each window, the index of its cluster.
        size: number of windows in each cluster.
    """

    informative: tuple[int, ...]
    cluster: tuple[int, ...]
    size: tuple[int, ...]


class TelemetrySynthesizer:
    """Groups windows by their telemetry and selects the ones worth reading.

    Metrics are scaled to the same spread. The first selected window is the one nearest to the medians, each further one is the
    farthest from all selected so far. Every window joins the nearest selected one. The largest distance is then at most twice
    the optimum, and the result is deterministic.

    Args:
        clusters: most windows to select.

    Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance".
    """

    def __init__(self, clusters: int = 5) -> None:
        if clusters < 1:
            raise ConfigError(f"got clusters={clusters}; at least 1 is needed. Try 5")
        self.clusters = clusters

    def cluster(self, metrics: Mapping[str, Sequence[float]]) -> Synthesis:
        """Cluster windows.

        Args:
            metrics: for each name, one value per window.

        Raises:
            ConfigError: no windows, values that are not finite, or series of different lengths.
        """
        sizes = {len(values) for values in metrics.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ConfigError(
                f"got series of {sorted(sizes) or 'no'} values; each needs one value per window. Try K, C and S of a file"
            )
        points_NM = np.array([list(values) for values in metrics.values()], dtype=np.float64).T
        if not np.isfinite(points_NM).all():
            raise ConfigError(
                "got values that are not finite; finite numbers are needed. Try leaving those windows out"
            )
        spread_M = points_NM.std(0)
        points_NM = (points_NM - np.median(points_NM, 0)) / np.where(spread_M > 0, spread_M, 1)
        picked = [int((points_NM**2).sum(1).argmin())]
        far_NC = _distances(points_NM, picked[0])[:, None]
        while len(picked) < self.clusters and far_NC.min(1).max() > 0:
            picked.append(int(far_NC.min(1).argmax()))
            far_NC = np.column_stack((far_NC, _distances(points_NM, picked[-1])))
        cluster_N = far_NC.argmin(1)
        size_C = np.bincount(cluster_N, minlength=len(picked))
        return Synthesis(tuple(picked), tuple(cluster_N.tolist()), tuple(size_C.tolist()))


def _distances(points_NM: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    squared_N: NDArray[np.float64] = ((points_NM - points_NM[index]) ** 2).sum(1)
    return squared_N
