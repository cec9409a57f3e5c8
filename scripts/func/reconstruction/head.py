"""What the network sees of a case: cut to the head, in network units, the T1w laid upon the T2w."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from func.networks.guidance import LARGEST_T1_OFFSET, t1_offset
from func.reconstruction.working_grid import WorkingCase, silence
from func.scans.head import box_around
from func.scans.intensity import Scale, zero_based_scale
from func.slices.geometry import SliceGeometry

MARGIN = 6  # voxels of air kept around the head


@dataclass(frozen=True)
class Head:
    """The part of a working case around the head, float32, air 0 and the 99th percentile 1.

    Attributes:
        t1, t2: T1w and cubic up-sampled T2w, shape (X, Y, Z); cut in-plane only, since slices need all planes.
        slices: the measured slices, shape (X, Y, geometry.count); None where they are not known.
        geometry: of the slices, along axis 2; None where it is not known.
        box: where this part lies in the working grid.
        scale: from the T2w's own intensities to network units.
        t1_offset: how many voxels the T1w lay off the T2w; None where the slices are not known.
    """

    t1: np.ndarray
    t2: np.ndarray
    slices: np.ndarray | None
    geometry: SliceGeometry | None
    box: tuple[slice, slice, slice]
    scale: Scale
    t1_offset: float | None = None

    @classmethod
    def of(cls, working: WorkingCase) -> Head:
        """The head of a working case; a T1w that lies clearly off the T2w is moved onto it.

        Raises:
            BabyAIError: one of the scans has no voxel above zero.
        """
        t1_scale, scale = zero_based_scale(working.t1), zero_based_scale(working.t2)
        occupied = [(np.abs(scan) > 0.01 * np.abs(scan).max()).any(axis=2) for scan in (working.t1, working.t2)]
        box = (*box_around(occupied[0] | occupied[1], MARGIN), slice(None))
        t1 = t1_scale.apply(working.t1[box]).astype(np.float32)
        t2 = scale.apply(working.t2[box]).astype(np.float32)
        if working.geometry is None:
            return cls(t1, t2, None, None, box, scale)
        slices = scale.apply(working.slices[box]).astype(np.float32)
        shift = t1_offset(t1, slices, working.geometry)
        distance = round(float(np.linalg.norm(shift)), 2)
        if distance > LARGEST_T1_OFFSET:
            t1 = silence(ndimage.shift(t1, shift, order=3))
        return cls(t1, t2, slices, working.geometry, box, scale, distance)

    def volume(self, values: np.ndarray, working: WorkingCase) -> np.ndarray:
        """The finished volume of the whole working grid, in the T2w's intensities, from its values in the head.

        Args:
            values: shape (X, Y, Z) of this part, in network units.
            working: outside the head its T2w stays as it is; where that has no negative values, the volume has none.
        """
        result = np.array(working.t2, dtype=np.float32)
        result[self.box] = self.scale.invert(values)
        if working.t2.min() >= 0 or working.slices is None or working.slices.min() >= 0:
            np.maximum(result, 0, out=result)
        return result

    def difference(self, values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """Differences of intensity, in the T2w's intensities, on all of a grid of ``shape``: zero outside the head."""
        result = np.zeros(shape, np.float32)
        result[self.box] = values * (self.scale.high - self.scale.low)
        return result
