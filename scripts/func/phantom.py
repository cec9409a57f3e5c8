"""A digital infant's head made by code, for the demo and for the tests.

The head is a set of smooth functions of position in world millimetres (RAS): depths below surfaces, positive inside.
Its anatomy is laid out in the adult MNI frame with the anterior commissure at the origin, and shrunk to the infant's
age. Any voxel grid, oblique, left-handed or anisotropic, therefore samples the same head, and every voxel holds the
average over its own volume.

The cortex is a ribbon of even thickness below a folded surface. Sulci are sheets: the zero level of a narrow-band
random field that is constant along the surface's normals, down to a depth that varies and so interrupts them.
Contrast follows the myelination of the first year: unmyelinated white matter is darker than cortex on T1w and brighter
on T2w; the order reverses from the centre outwards and from the back to the front, on T2w some months after T1w.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import nibabel as nib
import numpy as np
from scipy.ndimage import maximum_filter

from func.errors import BabyAIError

ATLAS_SHAPE = (182, 218, 182)
ATLAS_AFFINE = np.array([[1.0, 0, 0, -91], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])

LABELS = {
    "background": 0,
    "cerebrospinal fluid": 1,
    "cortex": 2,
    "white matter": 3,
    "deep grey matter": 4,
    "brainstem": 5,
    "cerebellar cortex": 6,
    "cerebellar white matter": 7,
    "skull": 8,
    "soft tissue": 9,
    "eye": 10,
    "airway": 11,
}

# Points inside named structures, in the adult MNI frame (mm).
LANDMARKS = {
    "genu of the corpus callosum": (0, 27, 9),
    "splenium of the corpus callosum": (0, -38, 12),
    "third ventricle": (0, -10, 2),
    "fourth ventricle": (0, -46, -33),
    "pons": (0, -25, -29),
    "vermis": (0, -70, -30),
    "left thalamus": (-11, -18, 7),
    "right thalamus": (11, -18, 7),
    "left caudate head": (-16, 16, 6),
    "right caudate head": (16, 16, 6),
    "left putamen": (-27, 3, 2),
    "right putamen": (27, 3, 2),
    "left atrium": (-27, -44, 9),
    "right atrium": (27, -44, 9),
    "left cerebellar hemisphere": (-26, -62, -36),
    "right cerebellar hemisphere": (26, -62, -36),
}

# The size of the infant's brain over the adult's along x, y and z, by age in months: the extents of real infants.
GROWTH_AGES = (0, 3, 6, 9, 12, 24)
GROWTH = (
    (0.69, 0.80, 0.90, 0.93, 0.96, 0.99),
    (0.70, 0.78, 0.84, 0.87, 0.89, 0.94),
    (0.75, 0.82, 0.87, 0.89, 0.91, 0.95),
)
CENTRE = np.array([0.0, -4.0, 7.0])  # where the anterior commissure lies on the atlas grid, world mm

# How far the head reaches in the adult frame (mm): without and with skull, scalp and face.
BRAIN_BOUNDS = ((-76, -110, -68), (76, 78, 86))
HEAD_BOUNDS = ((-92, -128, -110), (92, 100, 104))

T1_UNIT, T2_UNIT = 1000.0, 1600.0
LATTICE = 1.5  # mm between the points on which the functions are tabulated
CHUNK = 2048
EIGHTHS = np.array(list(np.ndindex(2, 2, 2))) / 2 - 0.25  # eight points spread evenly over a box


@dataclass(frozen=True)
class Phantom:
    """A T1w and a T2w scan of one digital infant, and what lies in each voxel (LABELS).

    `size` is the head's relative to its age's, `scale` to the adult's along x, y and z.
    """

    t1: nib.Nifti1Image
    t2: nib.Nifti1Image
    labels: nib.Nifti1Image
    size: float
    scale: np.ndarray

    def landmarks(self) -> dict[str, np.ndarray]:
        """Points inside named structures, in world mm."""
        return {name: CENTRE + self.scale * point for name, point in LANDMARKS.items()}


def infant_brain(
    shape: tuple[int, int, int] = ATLAS_SHAPE,
    affine: np.ndarray | None = None,
    age_months: float = 3,
    skull: bool = False,
    seed: int = 0,
    size: float | None = None,
) -> Phantom:
    """Scan a digital infant's head on any voxel grid.

    Args:
        shape: voxels along the three axes.
        affine: (4, 4), voxel index to world mm. By default the atlas grid's for its shape, and for any other
            1 mm voxels in RAS order with the brain in the middle.
        age_months: from 0 (newborn) to 24; it sets the size, the cortex and the contrast.
        skull: whether to draw skull, scalp, eyes and face; without them the background is exactly zero.
        seed: picks the folding pattern and the texture.
        size: the head's size relative to its age's. By default 1; where neither it nor an affine is given and the
            grid is too small for the head, as much as fits.

    Returns:
        float32 scans in units of their own (about 0 to 1000 for T1w, 0 to 1600 for T2w) and int16 labels.

    Raises:
        BabyAIError: the age is out of range or the affine is singular.
    """
    if not 0 <= age_months <= 24:
        raise BabyAIError(f"The phantom's age is {age_months} months: give one from 0 to 24.")
    growth = np.array([np.interp(age_months, GROWTH_AGES, factors) for factors in GROWTH])
    bounds = np.array(HEAD_BOUNDS if skull else BRAIN_BOUNDS, dtype=float)
    if size is None:
        size = (
            1.0 if affine is not None else min(1.0, ((np.array(shape) - 3) / (np.ptp(bounds, axis=0) * growth)).min())
        )
    scale = growth * size
    if affine is None:
        affine = ATLAS_AFFINE
        if tuple(shape) != ATLAS_SHAPE:
            affine = nib.affines.from_matvec(np.eye(3), CENTRE + scale * bounds.mean(0) - (np.array(shape) - 1) / 2)
    affine = np.asarray(affine, dtype=float)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BabyAIError("The phantom's affine is singular: give one whose three voxel axes span space.")
    head = _head(float(age_months), skull, seed, tuple(scale))
    t1, t2, labels = head.scan(tuple(shape), affine)
    images = (nib.Nifti1Image(array, affine) for array in (t1, t2, labels))
    return Phantom(*images, size=size, scale=scale)


class Head:
    """The functions of one head, tabulated on a lattice of world points, and how to scan them.

    Args:
        fields: name to (X, Y, Z) array of a smooth function at the lattice's points, most of them depths in mm.
        origin: world mm of the lattice's first point.
        age_months: sets the contrast.
        cortex: thickness of the cortical ribbon, mm.
    """

    def __init__(self, fields: dict[str, np.ndarray], origin: np.ndarray, age_months: float, cortex: float):
        self.names = list(fields)
        self.shape = next(iter(fields.values())).shape
        self.table = np.stack([field.ravel() for field in fields.values()], axis=1)
        self.origin = origin
        self.age_months = age_months
        self.cortex = cortex
        outer = fields["head" if "head" in fields else "brain"]
        self.occupied = maximum_filter(outer > -2.0, 3)

    def scan(self, shape: tuple[int, int, int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """T1w, T2w (float32) and labels (int16) on a grid."""
        axes = affine[:3, :3] / LATTICE
        start = (affine[:3, 3] - self.origin) / LATTICE
        pieces = np.maximum(1, np.round(np.linalg.norm(affine[:3, :3], axis=0) - 0.1)).astype(int)
        inner = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in pieces], indexing="ij"), -1).reshape(
            -1, 3
        )
        edges = (axes / pieces).astype(np.float32)
        scans = [np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.int16)]
        flat = [scan.reshape(-1) for scan in scans]
        voxels = self._occupied_voxels(shape, axes, start)
        step = max(1, CHUNK // len(inner))
        for first in range(0, len(voxels), step):
            chosen = voxels[first : first + step]
            index = np.stack(np.unravel_index(chosen, shape), axis=1)
            points = ((index[:, None, :] + inner) @ axes.T + start).reshape(-1, 3).astype(np.float32)
            t1, t2, labels = self._average(points, edges)
            flat[0][chosen] = t1.reshape(len(chosen), -1).mean(1)
            flat[1][chosen] = t2.reshape(len(chosen), -1).mean(1)
            flat[2][chosen] = labels.reshape(len(chosen), -1)[:, len(inner) // 2]
        return tuple(scans)

    def _occupied_voxels(self, shape, axes, start) -> np.ndarray:
        """Flat indices of the voxels that may hold any of the head."""
        last = np.array(self.shape) - 1
        corners = np.stack(np.meshgrid(*[(0, n) for n in last], indexing="ij"), -1).reshape(-1, 3)
        reach = (corners - start) @ np.linalg.inv(axes).T
        low = np.clip(np.floor(reach.min(0)).astype(int) - 1, 0, shape)
        high = np.clip(np.ceil(reach.max(0)).astype(int) + 2, 0, shape)
        ranges = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
        found = []
        for i in ranges[0]:
            j, k = np.meshgrid(ranges[1], ranges[2], indexing="ij")
            where = [axes[a, 0] * i + axes[a, 1] * j + axes[a, 2] * k + start[a] for a in range(3)]
            nearest = [np.clip(np.rint(w).astype(np.int32), 0, n) for w, n in zip(where, last, strict=True)]
            keep = self.occupied[tuple(nearest)]
            found.append(((i * shape[1] + j) * shape[2] + k)[keep])
        return np.concatenate(found) if found else np.zeros(0, dtype=int)

    def _average(self, points: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means over boxes with the given centres (N, 3) and edge vectors (columns), in lattice units.

        Within a box the functions are linear, and each is sampled at eight points of it; at each point a tissue's share
        rises from 0 to 1 over half a box, so that the mean is smooth in the position of every edge.
        """
        values, gradients = self._interpolate(points)
        width = LATTICE * np.linalg.norm(edges, axis=0).mean() / 2
        t1, t2, labels, clearance = self._tissues(values, width)
        mixed = np.flatnonzero(clearance < 2.3 * width)
        shifts = (EIGHTHS @ edges.T).astype(np.float32)
        moved = np.matmul(shifts, gradients[..., mixed]) + values[:, None, mixed]
        sampled = self._tissues(moved.reshape(len(values), -1), width)
        t1[mixed], t2[mixed] = (signal.reshape(8, -1).mean(0) for signal in sampled[:2])
        return t1, t2, labels

    def _interpolate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tri-linear values (F, N) of every function at points (N, 3) in lattice units, and derivatives (F, 3, N)."""
        last = np.array(self.shape) - 2
        base = np.clip(np.floor(points), 0, last).astype(np.int64)
        x, y, z = (np.clip(points - base, 0, 1).astype(np.float32)).T[..., None]
        _, ny, nz = self.shape
        flat = (base[:, 0] * ny + base[:, 1]) * nz + base[:, 2]
        corner = {c: self.table[flat + (c[0] * ny + c[1]) * nz + c[2]] for c in np.ndindex(2, 2, 2)}
        slopes = {c: corner[1, *c] - corner[0, *c] for c in np.ndindex(2, 2)}
        plane = {c: corner[0, *c] + x * slopes[c] for c in np.ndindex(2, 2)}
        rows = [plane[0, c] + y * (plane[1, c] - plane[0, c]) for c in (0, 1)]
        along_x = [slopes[0, c] + y * (slopes[1, c] - slopes[0, c]) for c in (0, 1)]
        along_y = [plane[1, c] - plane[0, c] for c in (0, 1)]
        value, slope_x, slope_y = (pair[0] + z * (pair[1] - pair[0]) for pair in (rows, along_x, along_y))
        return np.ascontiguousarray(value.T), np.stack([slope_x.T, slope_y.T, (rows[1] - rows[0]).T], axis=1)

    def _tissues(self, values: np.ndarray, width: float) -> tuple[np.ndarray, ...]:
        """T1w, T2w, label and distance from the nearest edge (mm) of points, from the functions' values (F, N) there.

        Tissues are painted one over another.
        """
        f = dict(zip(self.names, values, strict=True))
        sulcus = np.hypot(f["sulcus"], np.maximum(f["below sulcus"], 0))
        branch = np.hypot(f["branch"], np.maximum(f["below branch"], 0))
        sulci = np.minimum(sulcus, branch) - f["sulcal width"]
        fissure = np.hypot(f["fissure"], np.maximum(f["below fissure"], 0)) - 0.7
        pial = np.minimum(np.minimum(f["cerebrum"], sulci), np.minimum(fissure, -f["sylvian"]))
        folia = np.hypot(f["folia"], np.maximum(f["below folia"], 0)) - 0.3
        folia = np.minimum(folia, f["cerebellum"])
        layers = []
        if "head" in f:
            layers += [("soft tissue", f["head"]), ("eye", f["eyes"]), ("airway", f["airway"])]
            layers += [("skull", f["cranium"] + 3.0), ("cerebrospinal fluid", f["cranium"])]
        layers += [
            ("cerebrospinal fluid", f["brain"]),
            ("cortex", pial),
            ("white matter", pial - self.cortex),
            ("cerebellar cortex", folia),
            ("cerebellar white matter", folia - 0.5 * self.cortex),
            ("brainstem", f["brainstem"]),
            ("white matter", f["callosum"]),
            ("cerebrospinal fluid", f["ventricles"]),
            ("deep grey matter", f["nuclei"]),
            ("cerebrospinal fluid", f["midline ventricles"]),
        ]
        contrast = _contrast(self.age_months, f)
        t1 = np.zeros(values.shape[1], np.float32)
        t2 = np.zeros_like(t1)
        labels = np.zeros(t1.shape, np.int16)
        clearance = np.full_like(t1, np.inf)
        for tissue, depth in layers:
            share = np.clip(depth / width + 0.5, 0, 1)
            t1 += share * (contrast[tissue][0] - t1)
            t2 += share * (contrast[tissue][1] - t2)
            labels[depth > 0] = LABELS[tissue]
            clearance = np.minimum(clearance, np.abs(depth))
        return t1 * (T1_UNIT * (1 + f["texture"])), t2 * (T2_UNIT * (1 - f["texture"])), labels, clearance


def _contrast(age_months: float, f: dict[str, np.ndarray]) -> dict[str, tuple]:
    """T1w and T2w signal of each tissue, relative to white matter's and fluid's brightest."""
    grown = min(1.0, age_months / 12)
    on_t1 = _sigmoid((age_months - f["myelination"]) / 1.6)
    on_t2 = _sigmoid((age_months - f["myelination"] - 2.5) / 1.8)
    white = (0.45 + 0.38 * on_t1, 0.60 - 0.30 * on_t2)
    grey = (0.62 - 0.03 * grown, 0.40 + 0.05 * grown)
    return {
        "cerebrospinal fluid": (0.18, 1.0),
        "cortex": grey,
        "white matter": white,
        "deep grey matter": (0.64, 0.37),
        "brainstem": (0.62 + 0.16 * grown, 0.41 - 0.07 * grown),
        "cerebellar cortex": (0.60, 0.41 + 0.03 * grown),
        "cerebellar white matter": (0.62 + 0.18 * grown, 0.46 - 0.12 * grown),
        "skull": (0.06, 0.04),
        "soft tissue": (0.55 + 0.4 * np.exp(-(((f["head"] - 2.5) / 2) ** 2)), 0.42) if "head" in f else (0, 0),
        "eye": (0.22, 0.92),
        "airway": (0.01, 0.01),
    }


@lru_cache(maxsize=3)
def _head(age_months: float, skull: bool, seed: int, scale: tuple[float, float, float]) -> Head:
    """Tabulate the head's functions on a lattice that holds it."""
    scale = np.array(scale)
    low, high = CENTRE + scale * np.array(HEAD_BOUNDS if skull else BRAIN_BOUNDS)
    low = LATTICE * np.floor(low / LATTICE)  # one lattice, whatever part of it is needed
    axes = [np.arange(a, b + LATTICE, LATTICE) for a, b in zip(low, high, strict=True)]
    adult = [(axis - c) / s for axis, c, s in zip(axes, CENTRE, scale, strict=True)]
    x, y, z = np.meshgrid(*[axis.astype(np.float32) for axis in adult], indexing="ij")
    fields = _anatomy(x, y, z, float(scale.mean()), np.random.default_rng(seed))
    if skull:
        fields |= _skull_and_face(x, y, z, float(scale.mean()), fields)
    cortex = np.interp(age_months, (0, 12), (1.8, 2.5))
    fields = {name: np.asarray(field, np.float32) for name, field in fields.items()}
    return Head(fields, low, age_months, cortex)


def _anatomy(x, y, z, mm: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The brain's functions at points of the adult frame (x, y, z), whose millimetre is `mm` of the infant's."""
    x = x + 1.6 * np.sin((y + 17) / 55)  # the torque: right frontal and left occipital lobe reach across the midline
    side = np.tanh(x / 6)
    ax = np.sqrt(x * x + 0.3)
    cerebellum = _cerebellum(ax, y, z)
    cerebrum = _smooth_minimum(_cerebrum(ax, y, z), -cerebellum - 2.5, 4)
    brainstem = _brainstem(ax, x, y, z)
    brain = _smooth_maximum(_smooth_maximum(cerebrum + 2.0, cerebellum + 2.0, 8), brainstem + 1.2, 3)
    brain = np.minimum(brain, z + 54)
    below_fissure = _ellipsoid(0 * ax, y, z, (0, -6, 3), (1, 37, 28))  # the callosum and all that it encloses
    return {
        "brain": mm * brain,
        "cerebrum": mm * cerebrum,
        **_folding(x, y, z, cerebrum, below_fissure, mm, rng),
        "fissure": mm * x,
        "below fissure": mm * below_fissure,
        "sylvian": mm * _sylvian(ax, y, z, side),
        "callosum": mm * _callosum(ax, y, z, below_fissure),
        "ventricles": mm * _lateral_ventricles(ax, y, z, side, below_fissure),
        "midline ventricles": mm * _midline_ventricles(ax, y, z),
        "nuclei": mm * _nuclei(ax, y, z),
        "brainstem": mm * np.minimum(brainstem, brain - 0.5),
        "cerebellum": mm * cerebellum,
        **_folia(ax, x, y, z, cerebellum, mm),
        "myelination": _myelination(ax, y, z),
        "texture": 0.012 * _waves(np.stack([x, y, z]), 9.0 / mm, 24, rng),
    }


# Curved structures as chains of balls (x, y, z, radius) in the adult frame; x is the distance from the midline.
LATERAL_VENTRICLE = (
    (10, 31, 3, 2.0), (8, 20, 9, 5.6), (7, 0, 17, 6.0), (9, -20, 19, 6.0), (20, -38, 15, 6.5),
    (28, -47, 7, 6.0), (25, -64, 6, 3.2), (23, -76, 6, 1.2),
)  # fmt: skip
TEMPORAL_HORN = ((28, -46, 6, 5.0), (34, -36, -6, 3.2), (34, -20, -15, 2.2), (32, -8, -18, 1.6))
CAUDATE = ((15, 19, 3, 6.0), (15, 9, 11, 5.2), (16, -6, 17, 3.8), (20, -22, 19, 2.8), (29, -34, 15, 1.8))
HIPPOCAMPUS = ((23, -6, -19, 6.0), (27, -20, -16, 4.6), (29, -32, -8, 4.0), (23, -40, 2, 2.4))
BRAINSTEM = ((0, -21, -6, 9.5), (0, -24, -28, 12), (0, -33, -46, 8), (0, -39, -72, 6))
PEDUNCLES = ((6, -18, -12, 7), (15, -11, -1, 6))
CEREBELLAR_PEDUNCLES = ((8, -30, -28, 7), (17, -46, -34, 6))
PHARYNX = ((0, 34, -54, 8), (0, 16, -66, 8), (0, 8, -100, 7))
AQUEDUCT = ((0, -26, -4, 1.2), (0, -38, -24, 1.4))


def _cerebrum(ax, y, z):
    """Depth below the smooth hull of both hemispheres, mm of the adult frame."""
    main = _ellipsoid(ax, y, z, (0, -15, 17), (69 - 0.10 * (y + 15), 88, 63), power=2.2)
    main = _smooth_minimum(main, z + 21 + 0.10 * np.minimum(y - 10, 0), 10)
    temporal = _ellipsoid(ax, *_turned(y + 14, z + 20, 12), (44, 0, 0), (22, 42, 20))
    hull = _smooth_maximum(main, temporal, 9)
    cistern = _ellipsoid(ax, y, z, (0, -6, -34), (17, 24, 21))
    return _smooth_minimum(hull, -cistern, 5)


def _cerebellum(ax, y, z):
    hemispheres = _ellipsoid(ax, y, z, (23, -63, -33), (29, 25, 19))
    vermis = _ellipsoid(ax, y, z, (0, -66, -29), (12, 21, 19))
    return _smooth_maximum(hemispheres, vermis, 5)


def _brainstem(ax, x, y, z):
    depth = _tube(x, y, z, BRAINSTEM)
    depth = _smooth_maximum(depth, _ellipsoid(ax, y, z, (0, -17, -29), (15, 9, 11)), 4)
    depth = _smooth_maximum(depth, _tube(ax, y, z, PEDUNCLES), 4)
    return _smooth_maximum(depth, _tube(ax, y, z, CEREBELLAR_PEDUNCLES), 3)


def _callosum(ax, y, z, below_fissure):
    band = np.minimum(np.minimum(below_fissure - 0.2, 6.0 - below_fissure), 18 - ax)
    return np.minimum(band, np.maximum(z - 2, 0.8 * (y - 18) + (z + 2)))


def _lateral_ventricles(ax, y, z, side, below_fissure):
    bodies = _tube(ax, y, z, LATERAL_VENTRICLE, swell=1.0 - 0.12 * side)
    bodies = np.minimum(bodies, np.maximum(below_fissure - 5.5, ax - 18))  # the callosum is their roof
    return np.maximum(bodies, _tube(ax, y, z, TEMPORAL_HORN))


def _midline_ventricles(ax, y, z):
    third = _ellipsoid(ax, y, z, (0, -12, 1), (2.4, 13, 10))
    fourth = _ellipsoid(ax, y, z, (0, -46, -33), (6, 4.5, 9))
    return np.maximum(np.maximum(third, fourth), _tube(ax, y, z, AQUEDUCT))


def _sylvian(ax, y, z, side):
    """The lateral fissure and the cleft over the insula: open fluid between temporal, frontal and parietal lobe."""
    above = z + 6 - 15 * _sigmoid(-(y + 14) / 12) - 1.5 * side - 0.12 * (ax - 50)
    beyond_ends = np.maximum(np.abs(y + 6) - 30, 0)
    lateral = 1.1 - np.sqrt(above**2 + beyond_ends**2 + np.maximum(38 - ax, 0) ** 2)
    bow = ax - 40 + 0.011 * (y + 2) ** 2 - 0.2 * (above - 4) + 0.02 * (above - 4) ** 2
    beyond_ends = np.maximum(np.abs(y + 2) - 20, 0)
    insular = 1.1 - np.sqrt(bow**2 + np.maximum(np.abs(above - 4) - 13, 0) ** 2 + beyond_ends**2)
    return _smooth_maximum(lateral, insular, 2)


def _folding(x, y, z, cerebrum, below_fissure, mm: float, rng) -> dict[str, np.ndarray]:
    """Sulci and their branches: signed distance from a sheet, depth below its bottom, and half their width, mm."""
    medial = np.hypot(x, np.maximum(below_fissure, 0))
    surface = _smooth_minimum(cerebrum, medial, 8)
    shallower = np.where(medial < cerebrum, 0.6, 1)
    bare = np.minimum(below_fissure + 6, 40 - np.abs(x))  # no sulcus reaches the callosum
    step = LATTICE / mm
    normal = np.stack(np.gradient(surface))
    normal /= np.maximum(np.sqrt((normal**2).sum(0)), 1e-6)
    foot = np.stack([x, y, z]) - normal * surface
    # Where the feet of neighbours lie far apart, on the plane on which two faces of a gyrus meet, no sulcus goes.
    spread = np.sqrt(sum((slope**2).sum(0) for slope in np.gradient(foot, step, axis=(1, 2, 3))))
    bare = np.maximum(bare, np.clip(4 * (spread - 3), -10, 6))
    near = np.abs(surface - 12) < 18
    foot = foot[:, near]
    # The two hemispheres fold alike, but not the same.
    mirrored = np.stack([np.abs(foot[0]), foot[1], foot[2]])
    sided = np.stack([foot[0] + 30 * np.sign(x[near]), foot[1], foot[2]])
    wavelength = max(20.0, 14.0 / mm)
    turns = 2 * np.pi / (mm * wavelength)
    fields = {"sulcal width": 0.35 + 1.1 * np.exp(-np.maximum(surface, 0) / 2.5)}
    for name, mean, variation in (("sulcus", 16, 8), ("branch", 5, 6)):
        pattern = np.full(surface.shape, 9.0, np.float32)
        pattern[near] = 0.85 * _waves(mirrored, wavelength, 30, rng) + 0.55 * _waves(sided, wavelength, 30, rng)
        slope = np.sqrt(sum(along**2 for along in np.gradient(pattern, LATTICE)))
        depth = np.full(surface.shape, mean, np.float32)
        depth[near] += variation * _waves(mirrored, 2.2 * wavelength, 24, rng)
        fields[name] = pattern / np.sqrt(slope**2 + (0.35 * turns * pattern) ** 2)
        fields[f"below {name}"] = mm * np.maximum(surface - np.clip(shallower * depth, -2, 26), bare)
    return fields


def _folia(ax, x, y, z, cerebellum, mm: float) -> dict[str, np.ndarray]:
    """The cerebellum's fissures: cones that fan out from the fourth ventricle."""
    back, up = _turned(-(y + 40), z + 32, 20)
    angle = np.arctan2(up, np.hypot(back, 0.8 * ax)) + 0.04 * np.sin(x / 8)
    spacing = max(9.0, 7.0 / mm)
    phase = 2 * np.pi * 26 * angle / spacing
    depth = 8 + 3 * np.sin(phase / 4 + 1)
    return {
        "folia": mm * spacing / (2 * np.pi) * np.sin(phase),
        "below folia": mm * (cerebellum - depth),
    }


def _nuclei(ax, y, z):
    """Caudate, lentiform nucleus, thalamus, hippocampus and amygdala."""
    thalamus = _ellipsoid(*_turned(ax - 11, y + 18, 22), z, (0, 0, 7), (9, 16, 10))
    lentiform = _ellipsoid(*_turned(ax - 25, y - 2, -14), z, (0, 0, 2), (7.5, 19, 11))
    nuclei = np.maximum(thalamus, lentiform)
    nuclei = np.maximum(nuclei, _tube(ax, y, z, CAUDATE))
    return np.maximum(nuclei, _tube(ax, y, z, HIPPOCAMPUS))


def _myelination(ax, y, z):
    """Months at which white matter is half myelinated, as T1w shows it: the centre and the back first."""
    far = np.sqrt(((ax - 22) / 52) ** 2 + ((y + 22) / 75) ** 2 + ((z - 6) / 60) ** 2)
    frontal = _sigmoid((y - 15) / 14)
    temporal = _sigmoid(-(z + 10) / 8) * _sigmoid((y + 45) / 10)
    occipital = _sigmoid(-(y + 55) / 12)
    return 1.2 + 7.0 * far + 2.0 * frontal + 1.5 * temporal - 1.8 * occipital


def _skull_and_face(x, y, z, mm: float, brain: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What lies around the brain: the depths (mm) below scalp and inner table, the eyes and the nose's airway."""
    ax = np.abs(x)
    cerebrum, cerebellum, brainstem = (brain[name] / mm for name in ("cerebrum", "cerebellum", "brainstem"))
    cranium = _smooth_maximum(_smooth_maximum(cerebrum, cerebellum, 16), brainstem, 12) + 3.5
    face = _smooth_maximum(
        _ellipsoid(ax, y, z, (0, 34, -50), (56, 52, 62)), _ellipsoid(ax, y, z, (0, 84, -50), (10, 14, 16)), 10
    )
    neck = np.minimum(48 - np.hypot(ax, y + 26), -z - 30)
    head = _smooth_maximum(_smooth_maximum(cranium + 10, face, 16), neck, 24)
    airway = _smooth_maximum(_ellipsoid(ax, y, z, (0, 58, -50), (9, 26, 14)), _tube(ax, y, z, PHARYNX), 4)
    eyes = _ellipsoid(ax, y, z, (31, 59, -30), (13, 13, 13))
    return {"head": mm * head, "cranium": mm * cranium, "airway": mm * airway, "eyes": mm * eyes}


def _ellipsoid(x, y, z, centre, radii, power: float = 2.0):
    """Approximate depth inside an ellipsoid (power 2) or a squarer body."""
    scaled = [np.abs(p - c) / r for p, c, r in zip((x, y, z), centre, radii, strict=True)]
    total = scaled[0] ** power + scaled[1] ** power + scaled[2] ** power
    level = np.maximum(total, 1e-6) ** (1 / power)
    slope = np.sqrt(sum((s ** (power - 1) / r) ** 2 for s, r in zip(scaled, radii, strict=True)))
    return (1 - level) * level ** (power - 1) / np.maximum(slope, 1e-6)


def _turned(a, b, degrees: float):
    """Coordinates in axes turned from the first towards the second."""
    cosine, sine = np.float32(np.cos(np.deg2rad(degrees))), np.float32(np.sin(np.deg2rad(degrees)))
    return cosine * a + sine * b, cosine * b - sine * a


def _tube(x, y, z, chain, swell=1.0):
    """Depth inside a chain of balls (x, y, z, radius), joined by cones."""
    depth = None
    for (*a, ra), (*b, rb) in pairwise(chain):
        span = np.subtract(b, a)
        offset = (x - a[0], y - a[1], z - a[2])
        share = np.clip(sum(o * s for o, s in zip(offset, span, strict=True)) / float(span @ span), 0, 1)
        away = np.sqrt(sum((o - share * s) ** 2 for o, s in zip(offset, span, strict=True)))
        inside = swell * (ra + share * (rb - ra)) - away
        depth = inside if depth is None else np.maximum(depth, inside)
    return depth


def _waves(points: np.ndarray, wavelength: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """A random field of unit variance and one wavelength, give or take a fifth, at points (3, ...)."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions *= 2 * np.pi / (wavelength * rng.uniform(0.82, 1.22, (count, 1)))
    phases = rng.uniform(0, 2 * np.pi, count)
    total = np.zeros(points.shape[1:], np.float32)
    for k, phase in zip(directions.astype(np.float32), phases.astype(np.float32), strict=True):
        total += np.cos(k[0] * points[0] + k[1] * points[1] + k[2] * points[2] + phase)
    return total * np.float32(np.sqrt(2 / count))


def _smooth_minimum(a, b, reach: float):
    """The smaller of two depths, rounded where they differ by less than `reach`."""
    near = np.maximum(reach - np.abs(a - b), 0) / reach
    return np.minimum(a, b) - near * near * (reach / 4)


def _smooth_maximum(a, b, reach: float):
    return -_smooth_minimum(-a, -b, reach)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))
