"""What a run learns from and is checked with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from func.dataset import PublishedPatches, ThickSliceSamples, published_images
from func.errors import BabyAIError
from func.training.heads import heads_around
from func.training.run_folder import Run
from func.training.splits import PARTS
from func.training.subjects import (
    Subject,
    find_subjects,
    phantoms,
    read_pseudo_pairs,
    read_subjects,
    shapes,
    turned_copies,
)

VALIDATION_SAMPLES = 32  # of the compact recipe


@dataclass(frozen=True)
class TrainingData:
    """The samples to train on, of which ``epoch`` are an epoch; those to validate with; the subjects of each part."""

    samples: Dataset
    epoch: int
    validation: Dataset
    validation_samples: int
    subjects: dict[str, list[Subject]]
    errors: list[BabyAIError]  # of subjects who cannot be used

    @property
    def description(self) -> str:
        """The number of subjects in each part."""
        return ", ".join(f"{len(self.subjects[part])} for {part}" for part in PARTS)


def prepare_data(run: Run, data_dir: Path) -> TrainingData:
    """Read every subject of the split once, and make the samples of the recipe.

    Raises:
        BabyAIError: no training subject can be used.
    """
    settings = run.settings
    published = settings["recipe"] == "babyai"
    groups, errors = find_subjects(data_dir)
    subjects = {}
    for part in PARTS:
        wanted = [group for label in sorted(groups) for group in groups[label] if run.parts.get(label) == part]
        subjects[part], faults = read_subjects(wanted, published)
        errors += faults
    train, validation = subjects["train"], subjects["validation"]
    if not train:
        raise BabyAIError(f"No training subject below {data_dir} can be used: {errors[0] if errors else ''}")
    make = _published_samples if published else _compact_samples
    return TrainingData(*make(train, validation, settings), subjects, errors)


def _published_samples(train: list[Subject], validation: list[Subject], settings: Mapping) -> tuple:
    """Every patch of every image is a sample, and validation takes all of them too."""
    samples, checks = (PublishedPatches(published_images(part), settings["seed"]) for part in (train, validation))
    return samples, len(samples), checks, len(checks)


def _compact_samples(train: list[Subject], validation: list[Subject], settings: Mapping) -> tuple:
    """Random crops in random slices, of the subjects, as they are, turned and set into heads, and of invented ones."""
    weights = np.array([settings["subject_weights"].get(subject.label, 1.0) for subject in train])
    weights /= weights.sum()
    in_heads = heads_around(train, read_pseudo_pairs(settings["heads"]), settings["seed"])
    head_share = settings["head_share"] if in_heads else 0
    copies = settings.get("turned", 0)
    as_they_are = [*train, *turned_copies(train, copies, settings["seed"])]
    sources = read_pseudo_pairs(settings["extra_t1"]), phantoms(settings["phantoms"]), shapes(settings["shapes"])
    invented = [source for source in sources if source]
    invented_share = settings["invented_share"] if invented else 0
    brains = np.concatenate([weights, np.repeat(weights, copies)]) / (1 + copies)
    shares = [*((1 - invented_share) * (1 - head_share) * brains)]
    shares += [*((1 - invented_share) * head_share * weights)][: len(in_heads)]
    for source in invented:
        shares += [invented_share / len(invented) / len(source)] * len(source)
    seed, how = settings["seed"], (settings["patch"], settings["without_t1"])
    samples = ThickSliceSamples([*as_they_are, *in_heads, *chain.from_iterable(invented)], shares, seed, *how)
    checks = ThickSliceSamples(validation, np.ones(len(validation)), seed + 1, *how)
    return samples, settings["samples_per_subject"] * len(train), checks, VALIDATION_SAMPLES if validation else 0
