"""Where the head is in a volume."""

from __future__ import annotations

import numpy as np


def box_around(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask, ``margin`` voxels wider on every side; of an empty mask, all of it."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        first, last = (occupied[0], occupied[-1]) if len(occupied) else (0, mask.shape[axis] - 1)
        box.append(slice(max(int(first) - margin, 0), int(last) + margin + 1))
    return tuple(box)
