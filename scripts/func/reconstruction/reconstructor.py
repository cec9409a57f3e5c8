"""Reconstructs the isotropic T2w of a case, whatever its grid: one object, one path.

A case is brought onto a working grid with its slices along the last axis; the network proposes a volume; the volume is
made to agree with the measured slices; and it is put back where the user wants it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import nibabel as nib
import numpy as np
import torch
from torch import nn

from func.errors import BabyAIError, collect_warnings, warn
from func.networks.compact import MULTIPLE
from func.networks.devices import choose_device
from func.networks.guidance import network_inputs
from func.networks.patches import count_patches, run_patches
from func.networks.weights import Weights
from func.reconstruction.acquired import RawSettings
from func.reconstruction.consistency import HEAD, agree_with_slices
from func.reconstruction.doubtful import settled
from func.reconstruction.head import Head
from func.reconstruction.on_grid import case_on_grid
from func.reconstruction.together import PlacedStack, Together, motion_told
from func.reconstruction.uncertainty import half_width
from func.scans.case import Case
from func.scans.head import box_around
from func.scans.intensity import published_normalise, scale_of
from func.scans.nifti import array_of, from_ras, image_of, name_of, to_ras
from func.slices.geometry import make_consistent
from func.stopwatch import Stopwatch

Progress = Callable[[int, int], object]
_MIRRORS = ((), (2,), (0,), (1,))  # axes along which the network sees a case mirrored, a run each; the slices' last
_AIR = 2  # voxels around the head that the network sees: with six it took up to a fifth longer, for no gain
# Voxels of 1 mm: a brain, or an infant's head, but not an adult's. Two cores take 11 to 15 s for so many.
_LARGEST_ON_PROCESSORS = 4_000_000


@dataclass(frozen=True)
class Reconstruction:
    """One reconstructed T2w.

    Attributes:
        image: float32, in the T2w's own intensities.
        report: what was done and found (plain values, for the JSON sidecar).
        warnings: what was odd, a sentence each.
        residuals: of each stack the measured slices minus those of the result, on the slices' own grid; none without
            slice geometry.
        uncertainty: where asked for, the half-width of the interval around each voxel that held nine in ten of the
            true values in infants the bundled weights had not seen.
    """

    image: nib.Nifti1Image
    report: dict
    warnings: tuple[str, ...] = ()
    residuals: tuple[nib.Nifti1Image, ...] = ()
    uncertainty: nib.Nifti1Image | None = None


class Reconstructor:
    """Reconstructs cases with one network, on one device, in one precision.

    Args:
        weights: of any recipe; ``babyai`` runs the published procedure and nothing else.
        device: ``auto``, or as torch names it.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        uncertainty: also estimate where not to trust the result, from four runs of the network; the result is the mean
            of all.
        progress: called with (windows done, windows in all).
        window: the network takes up to this many voxels along an axis at once; larger volumes are cut.
        overlap: of neighbouring windows, in voxels.
        network: of weights that hold two, ``large`` or ``fast``; ``auto`` takes the large one, but on processors the
            fast one in volumes larger than a brain.
        runs: of the network, 1 to 4, on other mirror images each; their mean is the result. None: one on processors,
            two on GPUs, where a run takes a second. The uncertainty takes four.

    Raises:
        BabyAIError: the device is not there, or there is no uncertainty for these weights, or one run only.
    """

    def __init__(
        self,
        weights: Weights,
        device: str = "auto",
        precision: str = "auto",
        uncertainty: bool = False,
        progress: Progress | None = None,
        window: int = 256,
        overlap: int = 48,
        network: str = "auto",
        runs: int | None = None,
    ) -> None:
        self.weights = weights
        if weights.recipe == "babyai":
            if uncertainty:
                raise BabyAIError("The uncertainty was calibrated for the compact network; leave out --uncertainty.")
            if runs not in (None, 1):
                raise BabyAIError("The published procedure runs its network once; leave out --runs.")
            # The published procedure exactly, unless rounding is asked for.
            precision = "float32" if precision == "auto" else precision
        if runs not in (None, *range(1, len(_MIRRORS) + 1)):
            raise BabyAIError(f"The network cannot run {runs} times; give runs from 1 to {len(_MIRRORS)}.")
        self.device, self.precision = choose_device(device, precision)
        self.network = weights.network.to(self.device)
        self.fast = weights.fast and weights.fast.to(self.device)
        if network == "fast" and not self.fast:
            raise BabyAIError("These weights hold one network only; leave --network out.")
        self.choice, self.used = network, None
        self.uncertainty, self.progress = uncertainty, progress or (lambda done, total: None)
        self.window, self.overlap = window, overlap
        # How the network sees a case in each run: first as it is.
        self.mirrors = _MIRRORS[: 4 if uncertainty else runs or (1 if self.device.type == "cpu" else 2)]

    def reconstruct(self, case: Case, raw: RawSettings | None = None) -> Reconstruction:
        """Reconstruct the isotropic T2w of a case.

        Args:
            case: scans on one grid of 1 mm voxels, in any orientation, where ``raw`` is None; or else as acquired.
            raw: how to reconstruct scans as acquired.

        Raises:
            BabyAIError: the sidecar contradicts the header, the two scans do not show one head, they hold nothing to
                scale intensities by, or the weights are not for such scans.
        """
        self.used = None
        with collect_warnings() as warnings:
            if self.weights.recipe == "babyai":
                result = self._reconstruct_as_published(case, raw)
            else:
                result = self._reconstruct(case, raw)
        return replace(result, warnings=tuple(warnings))

    def reconstruct_together(self, cases: Sequence[Case], raw: RawSettings) -> Reconstruction:
        """Reconstruct one isotropic T2w from several stacks of an infant as they were acquired.

        Args:
            cases: the stacks, of any planes, thicknesses and fields of view, each with the same T1w, or all without
                one: then they are joined by registration and agreement alone, and nothing is inferred.
            raw: how to reconstruct; the result has the frame and the intensities of the first stack. Where it sets no
                ``min_similarity``, stacks that do not surely fit the T1w are judged by those that do.

        Raises:
            BabyAIError: as :meth:`reconstruct`.
        """
        self.used = None
        with collect_warnings() as warnings:
            if self.weights.recipe == "babyai":
                raise BabyAIError("The published weights take one T2w on the atlas grid; leave out --weights babyai.")
            stopwatch = Stopwatch()
            judged = [(case, True) for case in cases]
            if cases[0].t1 and raw.min_similarity is None:
                judged = settled(cases)
            stacks = [PlacedStack.of(case, raw, used) for case, used in judged]
            result = self._put_together(stacks, raw, stopwatch)
        return replace(result, warnings=tuple(warnings))

    def _put_together(self, stacks: list[PlacedStack], raw: RawSettings, stopwatch: Stopwatch) -> Reconstruction:
        """Several stacks, or one whose slices moved."""
        stopwatch.lap("Registration")
        together = Together(stacks, raw)
        infers = together.t1 is not None
        if not infers:
            warn("Without a T1w nothing was inferred: the stacks were registered to each other and joined.")
            if self.uncertainty:
                warn("Without a T1w there is no uncertainty of stacks put together: no network ran.")
        volume = together.first_volume() if together.moved else None
        stopwatch.lap("Motion")
        for last in (False, True) if together.moved else (True,):
            estimates = together.estimates(self.propose if infers else None, volume)
            stopwatch.lap("Network")
            if last:
                estimates = together.on_finer_grid(estimates)
            estimate = estimates.mean(axis=0)
            volume = together.agreed(estimate)
            stopwatch.lap("Consistency")
            if not last and len(stacks) > 1:
                # The slices fit their places in this volume better than in the first, and the network sees better ones.
                together.refine(estimate)
                stopwatch.lap("Motion")
        for stack in together.stacks:
            if stack.motion:
                warn(
                    f"The head moved while {name_of(stack.case.t2)} was acquired, {stack.motion.spread:.1f} mm on "
                    "average; each slice was laid in its own place. Look at the motion in the report."
                )
        width = None
        if self.uncertainty and infers:
            warn(
                "The uncertainty was calibrated on single stacks that lay still: here it tells where to look twice, "
                "not how far off the result is."
            )
            width = together.image_of_widths(together.half_width(estimates, volume))
            stopwatch.lap("Uncertainty")
        image, residuals = together.image(volume), together.residual_images(volume)
        stopwatch.lap("Result")
        report = {**together.report(volume), "Seconds": stopwatch.seconds, "Computed": self._computed()}
        return Reconstruction(image, report, residuals=residuals, uncertainty=width)

    def _reconstruct(self, case: Case, raw: RawSettings | None) -> Reconstruction:
        """The one path: working grid, network, agreement with the slices, and back."""
        stopwatch = Stopwatch()
        if raw:
            stack = PlacedStack.of(case, raw)
            if stack.motion:
                return self._put_together([stack], raw, stopwatch)
            working, head = stack.working, stack.head
            working.report["Motion"] = motion_told(stack)
        else:
            working = case_on_grid(case)
            head = Head.of(working)
        stopwatch.lap("WorkingGrid")
        inputs = network_inputs(head.t1, head.t2, head.slices, head.geometry)
        stopwatch.lap("Preparation")
        estimates = head.guided(self.propose(inputs), head.t2)
        stopwatch.lap("Network")
        volume, residuals, checks, damping = estimates.mean(axis=0), (), {}, 0.0
        if head.geometry:
            volume, agreement = agree_with_slices(volume, head.t2, head.slices, head.geometry, head.left_out)
            damping = agreement.damping
            checks = {"T1wOffset": head.t1_offset, "SlicesLeftOut": list(head.left_out), **agreement.checks()}
            residuals = (working.residual_image(head.difference(agreement.after, working.slices.shape)),)
            stopwatch.lap("Consistency")
        width = None
        if self.uncertainty:
            if head.geometry:
                estimates = np.stack([make_consistent(one, head.slices, head.geometry, damping) for one in estimates])
            width = working.put_map_back(head.difference(half_width(estimates, head.t2 > HEAD), working.t2.shape))
            stopwatch.lap("Uncertainty")
        image, more = working.finish(head.volume(volume, working), list(head.left_out))
        stopwatch.lap("Result")
        report = {**working.report, "Checks": checks | more, "Seconds": stopwatch.seconds, "Computed": self._computed()}
        return Reconstruction(image, report, residuals=residuals, uncertainty=width)

    def propose(self, inputs: np.ndarray) -> np.ndarray:
        """What the compact network makes of a case as it is and, in further runs, seen in mirrors, mirrored back.

        Each is as good a guess as the others, and their mean is better.

        Args:
            inputs: shape (7, X, Y, Z), see :func:`func.networks.guidance.network_inputs`.

        Returns:
            float32 array of shape (runs, X, Y, Z), in network units.
        """
        box = box_around((np.abs(inputs[:2]) > 0.01).any(axis=0), _AIR)
        part = torch.from_numpy(inputs)[:, *box]
        run = partial(self._run_mirrored, self._network_for(math.prod(part.shape[1:])))
        patch = [min(-(-n // MULTIPLE) * MULTIPLE, self.window) for n in part.shape[1:]]
        stride = [self.window - self.overlap] * 3
        progress = self._counting(count_patches(part.shape[1:], patch, stride, "smooth"))
        # Around the head the T2w stays as it is.
        estimates = np.repeat(inputs[1:2], len(self.mirrors), axis=0)
        estimates[:, *box] = run_patches(
            run, part, patch, stride, 1, "smooth", self.precision, self.device, progress, channels=len(self.mirrors)
        )
        return estimates

    def _network_for(self, voxels: int) -> nn.Module:
        """The network for a volume of so many voxels; which it was is told in ``used``."""
        fast = self.choice == "fast" or (
            self.choice == "auto" and self.device.type == "cpu" and voxels > _LARGEST_ON_PROCESSORS
        )
        if not self.fast:
            return self.network
        self.used = "fast" if fast else "large"
        return self.fast if fast else self.network

    def _run_mirrored(self, network: nn.Module, windows: torch.Tensor) -> torch.Tensor:
        """The network on windows (B, C, X, Y, Z) as they are and in mirrors, mirrored back, (B, runs, X, Y, Z)."""
        outputs = []
        for mirror in self.mirrors:
            axes = [2 + axis for axis in mirror]
            outputs.append(network(windows.flip(axes) if mirror else windows).flip(axes))
        return torch.cat(outputs, dim=1)

    def _reconstruct_as_published(self, case: Case, raw: RawSettings | None) -> Reconstruction:
        """The published procedure: RAS, symmetric zero padding, p1/p99 with clipping, 32^3 patches, stride 16, mean."""
        if raw:
            raise BabyAIError(
                "The published weights need the atlas grid; run scripts/preprocessing.py, or --weights bundled."
            )
        if case.t1 is None:
            raise BabyAIError("The published weights need a T1w; use --weights bundled.")
        stopwatch = Stopwatch()
        arrays = [array_of(to_ras(image)) for image in (case.t1, case.t2)]
        scale = scale_of(arrays[1])
        inputs = torch.from_numpy(np.stack([published_normalise(array) for array in arrays]))
        stopwatch.lap("Preparation")
        progress = self._counting(count_patches(inputs.shape[1:]))
        (output,) = run_patches(self.network, inputs, precision=self.precision, device=self.device, progress=progress)
        stopwatch.lap("Network")
        result = from_ras(scale.invert(output.numpy()).astype(np.float32), case.t2)
        report = {
            "SliceGeometry": {"Source": "not used by the published procedure"},
            "Checks": {},
            "Seconds": stopwatch.seconds,
            "Computed": {"Device": str(self.device), "Precision": self.precision},
        }
        return Reconstruction(image_of(result, case.t2.affine, case.t2), report)

    def _counting(self, total: int) -> Callable[[int], None]:
        """A callback for windows just done, from the one for (done, total)."""
        done = 0

        def count(windows: int) -> None:
            nonlocal done
            done += windows
            self.progress(done, total)

        return count

    def _computed(self) -> dict:
        computed = {"Device": str(self.device), "Precision": self.precision, "NetworkRuns": len(self.mirrors)}
        return computed | ({"Network": self.used} if self.used else {})
