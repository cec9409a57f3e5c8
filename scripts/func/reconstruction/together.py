"""Stacks put together: several stacks of one infant, or one in which the infant moved, as one volume.

Each stack is registered to the T1w, and where the infant moved each slice gets a place of its own. The network sees
every stack in its own frame, as if the head had lain still; the mean of its estimates in the common frame is made to
agree with all slices, each in its place. Without a T1w the stacks are registered to the first of them, and nothing is
inferred: the up-sampled stacks take the place of the network's estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from scipy import ndimage

from func.errors import warn
from func.networks.guidance import network_inputs
from func.processors import threads
from func.reconstruction.acquired import AcquiredCase, RawSettings
from func.reconstruction.consistency import HEAD, noise_of
from func.reconstruction.doubtful import FITS, likeness, shared
from func.reconstruction.head import MARGIN, Head
from func.reconstruction.uncertainty import half_width
from func.scans.case import Case
from func.scans.nifti import array_of, image_of, name_of
from func.scans.registration import register_rigid
from func.scans.resampling import resample
from func.slices.geometry import AXIS_ACROSS, SliceGeometry, acquire, slices_last, upsample
from func.slices.motion import PLACES, Contrast, Motion, find_motion, order_of_acquisition, t1_features, t1_terms
from func.slices.stacks import Stack, StackView, agree_with_stacks, outlying_slices

_VOXEL = 0.8  # mm: fine enough to find the slices' places and what the head looks like
_FINE_VOXEL = 0.5  # mm: a volume is linear between voxels so small; with 0.8 mm three stacks lost 0.4 dB, moving 0.65
_MOST_VOXELS = 3e7  # of these: two stacks of an adult's whole head take 4.0 GB, and took 4.5 with 4.4e7
_FINE_PIXEL = 0.6  # mm: smaller pixels are first brought to 1 mm
_SPARSE = 4.0  # mm between the voxels that tell how bright one stack is against another
_ROUGH_STEPS = 3  # of conjugate gradients, for a volume that slices are only laid upon
_CONTRADICTING = 1.3  # times the noise of the slices: what they contradict each other by, where some are out of place
# mm of Motion.spread upon the other stacks: still ones had up to 0.08, one that moved by 0.53 had 0.54.
_STILL_UPON_OTHERS = 0.25
_LEAST_LEFT = 0.7  # of a stack's slices: with fewer, the user is warned


@dataclass(frozen=True)
class PlacedStack:
    """A stack on its working grid, cut to its head, and where it lies in the common frame.

    Attributes:
        case: as read.
        working: its working grid.
        head: what the network sees of it.
        affine: voxel of the head's arrays -> world mm of the stack.
        to_stack: world mm of the common frame -> world mm of the stack.
        motion: of its slices; None where the head is taken to have lain still.
        searched: the motion that was found, however little; None where it was not looked for.
        brightness: what its network units are multiplied by to be those of the first stack.
        kept: shape (count,), False for slices that are left out.
    """

    case: Case
    working: AcquiredCase
    head: Head
    affine: np.ndarray
    to_stack: np.ndarray
    motion: Motion | None
    searched: Motion | None
    brightness: float
    kept: np.ndarray

    @classmethod
    def of(cls, case: Case, settings: RawSettings, used: bool = True) -> PlacedStack:
        """Register a stack to its T1w, if there is one, and look for motion in it.

        Args:
            case: as read.
            settings: of the result.
            used: whether its slices count; if not it need not fit the T1w.

        Raises:
            BabyAIError: as :class:`func.reconstruction.acquired.AcquiredCase`.
        """
        if not used:
            settings = replace(settings, motion="off", min_similarity=0.0)
        working = AcquiredCase(case, settings)
        head = Head.of(working)
        affine = working.affine @ from_matvec(np.eye(3), [part.start or 0 for part in head.box])
        kept = np.full(head.geometry.count, used)
        kept[list(head.left_out)] = False
        searched = None
        if settings.motion != "off" and head.t1 is not None:
            order = order_of_acquisition(case.sidecar, head.geometry.count)
            searched = find_motion(head.t1, head.slices, head.geometry, order, only_if_moved=settings.motion == "auto")
        motion = searched if searched and (searched.moved or settings.motion == "on") else None
        if motion and motion.unexplained >= 1:
            warn(f"The slices of {name_of(case.t2)} fit best where they lie; no motion of theirs was undone.")
            motion = None
        return cls(case, working, head, affine, working.t1_to_t2, motion, searched, 1.0, kept)

    @property
    def poses(self) -> np.ndarray:
        """World mm of the common frame -> world mm of the stack, while each slice was acquired: (count, 4, 4)."""
        count = self.head.geometry.count
        if self.motion is None:
            return np.repeat(self.to_stack[None], count, axis=0)
        return self.affine @ self.motion.matrices @ np.linalg.inv(self.affine) @ self.to_stack

    @property
    def stack(self) -> Stack:
        """The slices in the first stack's network units, with their own pixels unless these are very small."""
        t2, axis = self.case.t2, self.working.axis
        turn = slices_last(axis)
        if voxel_sizes(t2.affine)[turn[:2]].min() > _FINE_PIXEL:
            slices, affine = self.head.scale.apply(np.transpose(array_of(t2), turn)), t2.affine[:, [*turn, 3]]
        else:
            slices, affine = self.head.slices, self.head.geometry.affine_in(self.affine)
        thickness = float(self.working.report["SliceGeometry"]["SliceThickness"])
        slices = (self.brightness * slices).astype(np.float32)
        return Stack(slices, affine, thickness, self.head.geometry.profile, self.poses, self.kept)

    def still(self, image: nib.Nifti1Image) -> np.ndarray:
        """A volume of the common frame where the head lay on the whole: on the head's grid, in its network units."""
        seen = resample(image, self.head.t2.shape, self.affine, np.linalg.inv(self.to_stack))
        return seen / np.float32(self.brightness)

    def laid_upon(self, image: nib.Nifti1Image) -> PlacedStack:
        """The stack as a whole, moved to where it fits a volume of the common frame best."""
        seen = self.still(image)
        if not seen.any():
            return self
        together = np.zeros(self.head.geometry.count, int)
        found = find_motion(seen, self.head.slices, self.head.geometry, together, True)
        moved = self.affine @ found.matrices[0] @ np.linalg.inv(self.affine)
        return replace(self, to_stack=moved @ self.to_stack)

    def refined_upon(self, image: nib.Nifti1Image, wanted: str) -> PlacedStack:
        """The stack with each slice moved to where it fits a volume of the common frame; ``wanted``: RawSettings."""
        seen = self.still(image)
        if not seen.any():
            return self
        order = order_of_acquisition(self.case.sidecar, self.head.geometry.count)
        found = find_motion(seen, self.head.slices, self.head.geometry, order, True, self.motion)
        # Upon the same contrast much smaller motion shows than upon a T1w.
        moved = found.moved_beyond(_STILL_UPON_OTHERS)
        undone = found if self.motion or moved or (wanted == "on" and found.unexplained < 1) else None
        return replace(self, motion=undone, searched=self.searched or found)

    def brought_to(self, shape: tuple[int, int, int], affine: np.ndarray, volume: np.ndarray) -> np.ndarray:
        """A volume on the head's grid, in the first stack's units, on a grid of the common frame."""
        image = image_of(volume * np.float32(self.brightness), self.affine, self.case.t2)
        return resample(image, shape, affine, self.to_stack)

    def coverage(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Which voxels of a grid of the common frame lie between the stack's outermost slices, bool."""
        geometry = self.head.geometry
        to_head = np.linalg.inv(self.affine) @ self.to_stack @ affine
        low = [0, 0, geometry.first_center - geometry.spacing / 2]
        high = [*self.head.t2.shape[:2], geometry.centers[-1] + geometry.spacing / 2]
        inside = np.ones(shape, bool)
        ticks = np.ogrid[tuple(slice(n) for n in shape)]
        for axis in range(3):
            place = to_head[axis, 3] + sum(to_head[axis, other] * ticks[other] for other in range(3))
            inside &= (place >= low[axis]) & (place <= high[axis])
        return inside


class Together:
    """Stacks of one head on a common grid, on their way to one volume.

    Args:
        stacks: at least one, each registered to the T1w; without a T1w each in its own world.
        settings: of the result.
    """

    def __init__(self, stacks: Sequence[PlacedStack], settings: RawSettings) -> None:
        self.settings = settings
        self.t1 = stacks[0].case.t1
        self.stacks = list(stacks) if self.t1 else _registered_to_first(stacks)
        self.shape, self.affine = _common_grid(self.stacks, self.t1, _VOXEL)
        self._brighten()
        self._views: list[StackView] = []
        self.dampings: list[float] = []
        self.before: list[float] = []

    @property
    def first(self) -> PlacedStack:
        """The first stack that is used: the result has its intensities and, without a T1w, its frame."""
        return next((stack for stack in self.stacks if stack.kept.any()), self.stacks[0])

    @property
    def moved(self) -> bool:
        """Whether slices have places of their own, or such are still to be looked for."""
        return any(stack.motion for stack in self.stacks) or (self.t1 is None and self.settings.motion != "off")

    @property
    def views(self) -> list[StackView]:
        """What each stack sees of a volume on the common grid, made anew where it is not there."""
        if not self._views:
            with ThreadPoolExecutor(min(threads(), len(self.stacks))) as pool:
                views = pool.map(lambda stack: StackView(stack.stack, self.shape, self.affine), self.stacks)
                self._views = list(views)
        return self._views

    @property
    def voxel(self) -> float:
        """Of the common grid, mm."""
        return float(voxel_sizes(self.affine)[0])

    @property
    def noises(self) -> list[float]:
        """Of each stack, standard deviation of what its slices show that no volume on the common grid can."""
        noises = (stack.brightness * noise_of(stack.head.slices) for stack in self.stacks)
        return [
            stack.stack.noise_beside_volume(noise, self.voxel, HEAD)
            for stack, noise in zip(self.stacks, noises, strict=True)
        ]

    def on_finer_grid(self, estimates: np.ndarray) -> np.ndarray:
        """Estimates, shape (runs, X, Y, Z), on the finer common grid that all volumes lie on from here on.

        It is less fine for a large head, for want of memory.
        """
        coarse = self.voxel
        affordable = coarse * (np.prod(self.shape) / _MOST_VOXELS) ** (1 / 3)
        self.shape, self.affine = _common_grid(self.stacks, self.t1, min(coarse, max(_FINE_VOXEL, affordable)))
        self._views = []
        spacing = coarse / self.voxel
        # Both grids begin at the same corner.
        for axis, length in enumerate(self.shape, start=1):
            planes = SliceGeometry(axis, spacing, spacing, 0.0, estimates.shape[axis], "point")
            estimates = upsample(estimates, planes, length)
        return np.ascontiguousarray(estimates)

    def estimates(
        self, propose: Callable[[np.ndarray], np.ndarray] | None, volume: np.ndarray | None = None
    ) -> np.ndarray:
        """What is made of each stack as if the head had lain still, averaged on the common grid: (runs, X, Y, Z).

        Args:
            propose: the network, see :meth:`func.reconstruction.reconstructor.Reconstructor.propose`; None to up-sample
                the stacks and infer nothing, in one run.
            volume: :meth:`first_volume`, from which stacks that moved take the slices they would have shown.
        """
        if propose:
            self._views = []  # they are large, and so is what the network needs
        total, weights = np.zeros((1, *self.shape), np.float32), np.zeros(self.shape, np.float32)
        for stack in (stack for stack in self.stacks if stack.kept.any()):
            head, slices = stack.head, stack.head.slices
            if stack.motion and volume is not None:
                slices = acquire(stack.still(image_of(volume, self.affine, stack.case.t2)), head.geometry)
            upsampled = upsample(slices, head.geometry, head.t2.shape[2])
            made = upsampled[None]
            if propose:
                made = head.guided(propose(network_inputs(head.t1, upsampled, slices, head.geometry)), upsampled)
            covered = stack.coverage(self.shape, self.affine)
            weights += covered
            total = total + np.stack([covered * stack.brought_to(self.shape, self.affine, one) for one in made])
        return total / np.maximum(weights, 1)

    def agreed(self, estimate: np.ndarray) -> np.ndarray:
        """The estimate, made to agree with all slices but those that fit it far worse than the others."""
        self.before = [_misfit(view, estimate) for view in self.views]
        volume = self._near_to(estimate)
        if self._leave_out(volume):
            self._views = []
            volume = self._near_to(estimate)
        return np.maximum(volume, 0)

    def _near_to(self, estimate: np.ndarray) -> np.ndarray:
        """The volume near to an estimate that agrees with the slices as far as their noise and contradictions allow."""
        noises = self.noises
        self._weigh(estimate, noises)
        volume = agree_with_stacks(estimate, self.views, self.dampings)
        # Slices that do not lie where they should contradict each other: what no volume explains is noise to it.
        left = [_misfit(view, volume) for view in self.views]
        if any(misfit > _CONTRADICTING * noise for misfit, noise in zip(left, noises, strict=True)):
            self._weigh(estimate, np.maximum(left, noises))
            volume = agree_with_stacks(estimate, self.views, self.dampings)
        return volume

    def half_width(self, estimates: np.ndarray, volume: np.ndarray) -> np.ndarray:
        """Half-width of the 90 % interval on the common grid, in network units.

        Args:
            estimates: shape (runs, X, Y, Z), see :meth:`estimates`.
            volume: what came of their mean.
        """
        agreed = np.stack([agree_with_stacks(one, self.views, self.dampings) for one in estimates])
        return half_width(agreed, volume > HEAD)

    def image(self, volume: np.ndarray) -> nib.Nifti1Image:
        """A volume of the common grid as the image that the user gets, in the first stack's own intensities."""
        return self._image(self.first.head.scale.invert(volume))

    def image_of_widths(self, widths: np.ndarray) -> nib.Nifti1Image:
        """Half-widths on the common grid, likewise."""
        scale = self.first.head.scale
        return self._image(widths * (scale.high - scale.low))

    def _image(self, values: np.ndarray) -> nib.Nifti1Image:
        first = self.first
        source = image_of(np.maximum(values, 0).astype(np.float32), self.affine, self.t1 or first.case.t2)
        shape, affine = self._result_grid()
        matrix = np.linalg.inv(first.to_stack) if first.working.frame is None else None
        return image_of(resample(source, shape, affine, matrix), affine, source)

    def _result_grid(self) -> tuple[tuple[int, int, int], np.ndarray]:
        """The first stack's, without a T1w widened to hold what the other stacks show beyond it."""
        shape, affine = self.first.working.result_grid
        if self.t1:
            return shape, affine
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape) - 1)
        places = apply_affine(np.linalg.inv(affine) @ self.affine, corners)
        low = np.minimum(np.floor(places.min(axis=0) + 1e-3), 0).astype(int)
        high = np.maximum(np.ceil(places.max(axis=0) - 1e-3), np.array(shape) - 1).astype(int)
        return tuple(int(n) for n in high - low + 1), affine @ from_matvec(np.eye(3), low)

    def residual_images(self, volume: np.ndarray) -> tuple[nib.Nifti1Image, ...]:
        """What the slices of each stack show beyond the volume, in its own intensities; 0 where they are left out."""
        images = []
        for stack, view in zip(self.stacks, self.views, strict=True):
            slices = stack.stack
            unit = (stack.head.scale.high - stack.head.scale.low) / stack.brightness
            residual = np.zeros(slices.slices.shape, np.float32)
            residual.ravel()[view.pixels] = unit * view.residual(volume)
            images.append(image_of(residual, slices.affine, stack.case.t2))
        return tuple(images)

    def report(self, volume: np.ndarray) -> dict:
        """What was found, as plain values for the JSON sidecar: of the first stack, and of each.

        ``Weight`` is a stack's share in the agreement: how many of its pixels show the head, over the damping.
        """
        told, first = [], self.first
        weights = np.array(
            [(view.values > HEAD).sum() / damping for view, damping in zip(self.views, self.dampings, strict=True)]
        )
        weights = weights / max(weights.sum(), 1e-9)
        for stack, view, damping, before, weight in zip(
            self.stacks, self.views, self.dampings, self.before, weights, strict=True
        ):
            checks = {
                "SliceCount": len(stack.kept),
                "Weight": round(float(weight), 3),
                "Brightness": round(stack.head.scale.high / first.head.scale.high / stack.brightness, 4),
                "Damping": round(damping, 4),
                "SliceResidualBefore": round(before, 6),
                "SliceResidualAfter": round(_misfit(view, volume), 6),
                "SlicesLeftOut": np.flatnonzero(~stack.kept).tolist(),
            }
            plane = list(AXIS_ACROSS)[int(np.argmax(np.abs(stack.affine[:3, 2])))]
            entry = {"Name": name_of(stack.case.t2), "Plane": plane, **stack.working.report, "Checks": checks}
            told.append(entry | {"Motion": motion_told(stack)})
        return first.working.report | {"Checks": told[0]["Checks"], "Motion": told[0]["Motion"], "Stacks": told}

    def first_volume(self) -> np.ndarray:
        """A volume that agrees with the slices in their places, without the network; refines these places as well."""
        if self.t1 is None:
            self._lay_upon_others()
            self._views = []
        estimate = self._guess()
        if len(self.stacks) > 1:
            # Once: a second round before the network made the places of simulated slices worse.
            self._weigh(estimate, self.noises)
            self.refine(estimate)
            estimate = self._guess()
        return np.maximum(self._near_to(estimate), 0)

    def refine(self, estimate: np.ndarray) -> None:
        """Lay each slice, and each stack that lay still, where it fits best what the other stacks show.

        In these, of the same contrast, motion shows that the T1w did not show.

        A stack's own slices would hold it where it is. So there must be others; one that is alone keeps the places that
        the T1w gave it.

        Args:
            estimate: what the others are made to agree from, on the common grid.
        """
        refined = []
        for index, stack in enumerate(self.stacks):
            views, dampings = ([*of_all[:index], *of_all[index + 1 :]] for of_all in (self.views, self.dampings))
            shown = agree_with_stacks(estimate, views, dampings, _ROUGH_STEPS)
            image = image_of(np.maximum(shown, 0), self.affine, self.stacks[0].case.t2)
            by_slice = stack.refined_upon(image, self.settings.motion)
            refined.append(by_slice if by_slice.motion or self.t1 is None else stack.laid_upon(image))
        self.stacks = refined
        self._views = []

    def _lay_upon_others(self) -> None:
        """Lay each stack but the first, and then the slices of each, where the other stacks show the head.

        What a stack's own slices gave would hold them where they are.
        """
        for index, image in list(enumerate(self._shown_by_others()))[1:]:
            self.stacks[index] = self.stacks[index].laid_upon(image)
        for index, image in enumerate(self._shown_by_others()):
            self.stacks[index] = self.stacks[index].refined_upon(image, self.settings.motion)

    def _shown_by_others(self) -> list[nib.Nifti1Image]:
        """For each stack the mean of the others, up-sampled as they lie, on the common grid."""
        covered = [stack.coverage(self.shape, self.affine) for stack in self.stacks]
        shown = [
            inside * stack.brought_to(self.shape, self.affine, stack.head.t2)
            for stack, inside in zip(self.stacks, covered, strict=True)
        ]
        total, weights = sum(shown), np.sum(covered, axis=0, dtype=np.float32)
        return [
            image_of((total - own) / np.maximum(weights - inside, 1), self.affine, self.stacks[0].case.t2)
            for own, inside in zip(shown, covered, strict=True)
        ]

    def _guess(self) -> np.ndarray:
        """What the head looks like, without the network: the T1w in the slices' intensities, or the stacks' mean."""
        if self.t1 is None:
            return self.estimates(None)[0]
        features = t1_features(resample(self.t1, self.shape, self.affine), self.voxel)
        shown = np.concatenate([view.values for view in self.views])
        some = slice(None, None, len(shown) // PLACES + 1)
        seen = [np.concatenate([view.see(term) for view in self.views])[some] for term in t1_terms(features)]
        return Contrast.of(np.array(seen), shown[some]).volume(t1_terms(features))

    def _weigh(self, estimate: np.ndarray, noises: Sequence[float]) -> None:
        self.dampings = [view.damping(estimate, noise, HEAD) for view, noise in zip(self.views, noises, strict=True)]

    def _leave_out(self, volume: np.ndarray) -> bool:
        """Leave out slices that fit the volume far worse than the others; whether there were any."""
        found = False
        for index, (stack, view) in enumerate(zip(self.stacks, self.views, strict=True)):
            outlying = outlying_slices(view.residual(volume), view, len(stack.kept), HEAD) & stack.kept
            if not outlying.any():
                continue
            found = True
            kept = stack.kept & ~outlying
            self.stacks[index] = replace(stack, kept=kept)
            numbers = ", ".join(map(str, np.flatnonzero(outlying)))
            warn(f"Slices {numbers} (counted from 0) of {name_of(stack.case.t2)} fit nowhere and were left out.")
            if kept.mean() < _LEAST_LEFT:
                warn(f"Only {kept.sum()} of {len(kept)} slices of {name_of(stack.case.t2)} are left; look twice.")
        return found

    def _brighten(self) -> None:
        """Find how bright each stack is against the first: the median ratio where both show a head.

        One that shows something else there is left out.
        """
        steps = np.maximum(1, np.round(_SPARSE / voxel_sizes(self.affine))).astype(int)
        shape = tuple(int(n) for n in -(-np.array(self.shape) // steps))
        affine = self.affine @ from_matvec(np.diag(steps.astype(float)), np.zeros(3))
        shown = [
            stack.coverage(shape, affine) * stack.brought_to(shape, affine, ndimage.gaussian_filter(stack.head.t2, 2.0))
            for stack in self.stacks
        ]
        used = [index for index, stack in enumerate(self.stacks) if stack.kept.any()]
        reference = shown[used[0]].copy() if used else shown[0]
        for index in used[1:]:
            both = shared(shown[index], reference)
            if not both.any():
                warn(f"{name_of(self.stacks[index].case.t2)} shows nothing that the stacks before it show.")
                continue
            alike = likeness(shown[index], reference)
            if self.t1 and alike < FITS:
                warn(
                    f"{name_of(self.stacks[index].case.t2)} shows another head than the stacks before it, or lies "
                    f"wrong (correlation {alike:.2f}), and was left out."
                )
                self.stacks[index] = replace(self.stacks[index], kept=np.zeros_like(self.stacks[index].kept))
                continue
            brightness = float(np.median(reference[both] / shown[index][both]))
            self.stacks[index] = replace(self.stacks[index], brightness=brightness)
            reference = np.where(reference > 0, reference, brightness * shown[index])


def motion_told(stack: PlacedStack) -> dict:
    """What was found of a stack's motion, as plain values for the JSON sidecar.

    ``Poses`` take world mm of the common frame to where that lay while the slice was acquired; ``Path`` is, in order
    of acquisition, how far the head lay from its usual place, mm along and degrees about the slices' axes. For
    ``Spread`` and ``Unexplained`` see :class:`func.slices.motion.Motion`.
    """
    if stack.searched is None:
        return {"Searched": False}
    told = {
        "Searched": True,
        "Found": stack.motion is not None,
        "Spread": round(stack.searched.spread, 3),
        "Unexplained": round(stack.searched.unexplained, 3),
    }
    if stack.motion is None:
        return told
    return told | {
        "Order": stack.motion.groups.tolist(),
        "Path": np.round(stack.motion.path, 3).tolist(),
        "Poses": np.round(stack.poses, 6).tolist(),
    }


def _misfit(view: StackView, volume: np.ndarray) -> float:
    residual = view.residual(volume)[view.values > HEAD]
    return float(np.sqrt(np.mean(np.square(residual)))) if residual.size else 0.0


def _registered_to_first(stacks: Sequence[PlacedStack]) -> list[PlacedStack]:
    """Stacks without a T1w, in the frame of the first."""
    first = stacks[0]
    placed = [first]
    for stack in stacks[1:]:
        registration = register_rigid(first.case.t2, stack.case.t2)
        placed.append(replace(stack, to_stack=registration.matrix))
    return placed


def _common_grid(
    stacks: Sequence[PlacedStack], t1: nib.Nifti1Image | None, voxel: float
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Cubic voxels that hold the head, along the axes of the T1w, or without one of the first stack.

    They are of ``voxel`` mm, or smaller where the result's are.
    """
    voxel = min(voxel, float(voxel_sizes(stacks[0].working.result_grid[1]).min()))
    image = t1 or stacks[0].case.t2
    axes = image.affine[:3, :3] / voxel_sizes(image.affine)
    if t1:
        array = array_of(t1)
        points = apply_affine(t1.affine, np.argwhere(array > 0.01 * array.max()))
    else:
        points = np.concatenate(
            [
                apply_affine(np.linalg.inv(stack.to_stack) @ stack.affine, np.argwhere(stack.head.t2 > HEAD))
                for stack in stacks
            ]
        )
    places = points @ np.linalg.inv(axes).T
    low, high = places.min(axis=0) - MARGIN, places.max(axis=0) + MARGIN
    shape = tuple(int(n) for n in np.ceil((high - low) / voxel) + 1)
    return shape, from_matvec(voxel * axes, axes @ low)
