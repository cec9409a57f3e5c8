"""The losses of the two recipes, one number for each sample of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def relative_error(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The compact recipe's loss: the error of the estimate over that of consistent cubic interpolation.

    The output is first made consistent with the measured slices, x - projection x + offset, as reconstruction does it.
    Then the mean absolute and the root-mean-square error are each divided by that of consistent cubic interpolation, so
    that thick and thin slices count alike, and averaged: 1 is no better than cubic.

    Args:
        output: of the network, shape (B, 1, X, Y, Z), the slices stacked along Z.
        batch: as func.dataset.ThickSliceSamples makes it: ``truth`` and ``offset`` (B, X, Y, Z), ``projection``
            (B, Z, Z), ``weight`` (B, X, Y, Z), how much an error counts, and ``baseline`` (B, 2), the two errors of
            consistent cubic interpolation.

    Returns:
        Shape (B,).
    """
    estimate = output[:, 0]
    seen = torch.einsum("bxyz,bwz->bxyw", estimate, batch["projection"])
    error, weight = estimate - seen + batch["offset"] - batch["truth"], batch["weight"]
    absolute = (weight * error.abs()).mean((1, 2, 3))
    root_mean_square = ((weight * error.square()).mean((1, 2, 3)) + 1e-7).sqrt()
    cubic = batch["baseline"] + 1e-3
    return (absolute / cubic[:, 0] + root_mean_square / cubic[:, 1]) / 2


def squared_error(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The published recipe's loss: the mean squared error of each patch.

    Args:
        output: of the network, shape (B, 1, X, Y, Z).
        batch: holds the ``truth`` of the same shape.

    Returns:
        Shape (B,).
    """
    return (output - batch["truth"]).square().mean((1, 2, 3, 4))


LOSSES = {"compact": relative_error, "babyai": squared_error}
