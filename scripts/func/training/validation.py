"""How good the weights are: the loss of samples kept aside, and whole volumes against cubic interpolation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import nibabel as nib
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from func.errors import BabyAIError
from func.networks.weights import Weights
from func.reconstruction.reconstructor import Reconstructor
from func.reports.scores import brain_mask, inner_brain, score_brain
from func.scans.case import Case
from func.slices.geometry import AXIS_ACROSS, SliceGeometry, acquire, upsample
from func.training.data import TrainingData
from func.training.distributed import Processes
from func.training.losses import LOSSES
from func.training.signals import Stop
from func.training.subjects import Subject
from func.training.tensorboard import Board

SCANS = (("axial", 2.0), ("sagittal", 4.0), ("coronal", 5.0))  # direction and thickness in mm
SUBJECTS = 3  # of a part, whose whole volumes are reconstructed
SCORES = ("inner_psnr", "inner_ssim", "psnr", "ssim")
METRICS = ("loss", *SCORES, *(f"cubic_{score}" for score in SCORES))


@dataclass(frozen=True)
class ValidationCase:
    """A whole thick-slice scan to reconstruct and score, on a 1 mm grid: the truth, and the brain and its inside."""

    name: str
    scans: Case
    truth: np.ndarray
    brain: np.ndarray
    inner: np.ndarray


def validation_cases(
    subjects: Sequence[Subject], slices: Sequence[tuple[str, float]], with_t1: bool
) -> Iterator[ValidationCase]:
    """Thick-slice scans of each subject, in the directions and thicknesses (mm) given, with the T1w or without."""
    for subject in subjects:
        brain = brain_mask(subject.t2)
        try:
            inner = inner_brain(brain)
        except BabyAIError:  # too small to have an inside
            inner = brain
        for direction, thickness in slices:
            axis = AXIS_ACROSS[direction]
            geometry = SliceGeometry.fitting(axis, subject.t2.shape[axis], thickness)
            upsampled = upsample(acquire(subject.t2, geometry), geometry, subject.t2.shape[axis])
            t1, t2 = (nib.Nifti1Image(array.astype(np.float32), np.eye(4)) for array in (subject.t1, upsampled))
            name = f"sub-{subject.label} {direction} {thickness:g} mm"
            scans = Case(t1 if with_t1 else None, t2, geometry.to_sidecar(1.0))
            yield ValidationCase(name, scans, subject.t2, brain, inner)


@dataclass(frozen=True)
class Validation:
    """Scores weights on the subjects of a part; the processes share the work."""

    settings: Mapping
    data: TrainingData
    device: torch.device
    precision: str
    processes: Processes
    stop: Stop
    board: Board | None

    def score(self, network: nn.Module, part: str, step: int) -> dict[str, float] | None:
        """The METRICS of the network, or None where a signal asks to stop.

        The loss is over the validation samples. PSNR and SSIM are of the inner brain and of the whole brain, on average
        over SCANS of some subjects of the part, beside those of cubic interpolation. Empty where the part has no
        subjects.

        Raises:
            BabyAIError: on all processes, where a sample or a volume of one of them cannot be had.
        """
        sums = dict.fromkeys((*METRICS, "samples", "volumes"), 0.0)
        network.eval()
        if part == "validation":
            self.processes.on_all(lambda: self._add_losses(network, sums))
        self.processes.on_all(lambda: self._add_scores(network, part, step, sums))
        network.train()
        if self.processes.largest(self.stop.signal):
            return None
        sums = self.processes.sums(sums)
        counts = {name: sums["samples" if name == "loss" else "volumes"] for name in METRICS}
        return {name: sums[name] / count for name, count in counts.items() if count}

    def _add_losses(self, network: nn.Module, sums: dict[str, float]) -> None:
        numbers = range(self.processes.rank, self.data.validation_samples, self.processes.count)
        with torch.inference_mode():
            for batch in DataLoader(self.data.validation, self.settings["batch_size"], sampler=numbers):
                if self.stop.signal:
                    return
                batch = {name: array.to(self.device) for name, array in batch.items()}
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    output = network(batch["inputs"])
                losses = LOSSES[self.settings["recipe"]](output.float(), batch)
                sums["loss"] += losses.sum().item()
                sums["samples"] += len(losses)

    def _add_scores(self, network: nn.Module, part: str, step: int, sums: dict[str, float]) -> None:
        reconstructor = Reconstructor(Weights(self.settings["recipe"], network), str(self.device), self.precision)
        with_t1 = self.settings.get("without_t1", 0) < 1  # which the published recipe has not
        cases = validation_cases(self.data.subjects[part][:SUBJECTS], SCANS, with_t1)
        for number, case in enumerate(islice(cases, self.processes.rank, None, self.processes.count)):
            if self.stop.signal:
                return
            result = np.asarray(reconstructor.reconstruct(case.scans).image.dataobj)
            cubic = np.asarray(case.scans.t2.dataobj)
            for prefix, estimate in (("", result), ("cubic_", cubic)):
                for region, mask in (("inner_", case.inner), ("", case.brain)):
                    scores = score_brain(case.truth, estimate, mask)
                    sums[f"{prefix}{region}psnr"] += scores.psnr
                    sums[f"{prefix}{region}ssim"] += scores.ssim
            sums["volumes"] += 1
            if number == 0 and self.board:
                volumes = [cubic, result, case.truth]
                self.board.add_picture(f"{part}/cubic, output, truth: {case.name}", volumes, step)
