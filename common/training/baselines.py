"""Baselines without a network: the majority class, and a random forest on features of windows.

Both are kept as plain tensors: the constant probability, or the arrays of all trees one after the
other (`start`: first node of each tree and the end; `left`, `right`: children, counted within the
tree, -1 in a leaf; `feature`, `threshold`: a window goes left where feature <= threshold;
`positive`: share of positives in a node). A forest's probability is the mean over its trees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.data.dataset import Windows

Array = npt.NDArray[np.float64]
TREES = 200  # otherwise scikit-learn's defaults
BLOCK = 256  # windows whose features are computed at a time
# A loss needs probabilities apart from 0 and 1; scores are those of the probabilities themselves.
SMALLEST = 1e-7


@dataclass(frozen=True)
class Baseline:
    """probabilities: of features [windows, features] the probability of class 1 [windows]. state:
    what best_model.pt keeps.
    """

    probabilities: Callable[[Windows], Array]
    state: dict[str, Tensor]

    def score(self, windows: Windows) -> tuple[npt.NDArray[Any], float]:
        """Probability of class 1 of every window [windows], and the mean cross-entropy."""
        p, y = self.probabilities(windows), windows.y.numpy()
        likelihood = np.where(y == 1, p, 1 - p)
        return p, float(-np.log(np.clip(likelihood, SMALLEST, 1 - SMALLEST)).mean())


def fit_baseline(mode: str, train: Windows, seed: int) -> Baseline:
    """The baseline `mode`, learnt from `train`."""
    return _majority(train) if mode == "majority" else _forest(train, seed)


def _majority(train: Windows) -> Baseline:
    """Constant probability: the share of positives, so that 0.5 gives the majority class."""
    share = train.positives / len(train)
    return Baseline(
        lambda windows: np.full(len(windows), share),
        {"positive": torch.tensor([share], dtype=torch.float64)},
    )


def _forest(train: Windows, seed: int) -> Baseline:
    from sklearn.ensemble import RandomForestClassifier  # a second and more: only when needed

    forest = RandomForestClassifier(n_estimators=TREES, n_jobs=1, random_state=seed % 2**32)
    forest.fit(features(train), train.y.numpy().astype(np.int64))
    positive = [number for number, value in enumerate(forest.classes_) if value == 1]

    def probabilities(windows: Windows) -> Array:
        # one class alone in the training windows has one column
        found: Array = forest.predict_proba(features(windows))[:, positive].sum(axis=1)
        return found

    trees = [tree.tree_ for tree in forest.estimators_]
    arrays = {
        "left": np.concatenate([tree.children_left for tree in trees]),
        "right": np.concatenate([tree.children_right for tree in trees]),
        "feature": np.concatenate([tree.feature for tree in trees]),
        "threshold": np.concatenate([tree.threshold for tree in trees]),
        "positive": np.concatenate([tree.value[:, 0, positive].sum(axis=1) for tree in trees]),
        "start": np.cumsum([0, *(tree.node_count for tree in trees)]),
    }
    return Baseline(probabilities, {name: torch.from_numpy(a) for name, a in arrays.items()})


def features(windows: Windows) -> Array:
    """Features of all windows, float64 [windows, 7 * channels + channels * (channels - 1) / 2]."""
    blocks = [window_features(x.numpy()) for x, _ in windows.batches(BLOCK)]
    return np.concatenate(blocks)


def window_features(x: npt.NDArray[np.float32]) -> Array:
    """Features of windows [windows, channels, samples]: mean, SD, the three quartiles, energy (mean
    square) and dominant frequency of each channel, in this order, each for all channels; then the
    correlation of each pair of channels (0 where one is constant).

    The dominant frequency is that of the largest magnitude in the spectrum of the window without
    its mean, in cycles per sample: 0 for a constant channel, at most 0.5.
    """
    x64 = x.astype(np.float64)
    samples = x64.shape[2]
    mean = x64.mean(axis=2)
    centred = x64 - mean[:, :, None]
    sd = np.sqrt(np.square(centred).mean(axis=2))
    quartiles = np.quantile(x64, [0.25, 0.5, 0.75], axis=2)
    spectrum = np.abs(np.fft.rfft(centred, axis=2))
    spectrum[:, :, 0] = 0.0  # the mean, but for rounding
    dominant = np.where(sd > 0, spectrum.argmax(axis=2) / samples, 0.0)
    first, second = np.triu_indices(x64.shape[1], k=1)
    # einsum, not BLAS: the same bytes whatever the number of threads
    covariance = np.einsum("wcs,wcs->wc", centred[:, first], centred[:, second]) / samples
    scale = sd[:, first] * sd[:, second]
    correlation = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    energy = np.square(x64).mean(axis=2)
    return np.concatenate([mean, sd, *quartiles, energy, dominant, correlation], axis=1)
