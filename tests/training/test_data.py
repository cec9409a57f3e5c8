"""What a run learns from: subjects as they are, set into heads, and invented ones, each in its share."""

import nibabel as nib
import numpy as np
import pytest

from func.training.augmentation import random_shapes
from func.training.data import prepare_data
from func.training.run_folder import Run
from func.training.subjects import Subject, turned_copies

SETTINGS = {"recipe": "compact", "seed": 0, "patch": 16, "samples_per_subject": 10, "subject_weights": {"1": 3}}
SETTINGS |= {"extra_t1": [], "phantoms": 0, "shapes": 2, "invented_share": 0.2, "head_share": 0.25, "without_t1": 0.5}


def test_each_source_gets_its_share(tmp_path):
    for number in range(3):
        for suffix, array in zip(
            ("T1w", "T2w"), random_shapes((32, 32, 32), np.random.default_rng(number)), strict=True
        ):
            nib.save(nib.Nifti1Image(1000 * array, np.eye(4)), tmp_path / f"sub-{number}_{suffix}.nii.gz")
    distance = np.linalg.norm(np.indices((64, 64, 64)) - 31.5, axis=0)
    head = np.select([distance < 20, distance < 22, distance < 25, distance < 30], [600, 150, 40, 1000], 0)
    nib.save(nib.Nifti1Image(head.astype(np.float32), np.eye(4)), tmp_path / "head.nii.gz")
    parts = {"0": "train", "1": "train", "2": "validation"}
    settings = SETTINGS | {"heads": [str(tmp_path / "head.nii.gz")]}
    prepared = prepare_data(Run("run", tmp_path, settings, parts), tmp_path)
    assert not prepared.errors and prepared.epoch == 20
    expected = [0.15, 0.45, 0.05, 0.15, 0.1, 0.1]  # subjects, the same in a head, shapes
    np.testing.assert_allclose(prepared.samples.shares, expected)
    without = prepare_data(Run("run", tmp_path, SETTINGS | {"heads": []}, parts), tmp_path)
    np.testing.assert_allclose(without.samples.shares, [0.2, 0.6, 0.1, 0.1])
    turned = prepare_data(Run("run", tmp_path, SETTINGS | {"heads": [], "turned": 2}, parts), tmp_path)
    np.testing.assert_allclose(turned.samples.shares, [*np.array([1, 3, 1, 1, 3, 3]) / 15, 0.1, 0.1])


def test_a_turned_copy_is_the_same_head_in_another_position():
    t2 = np.pad(random_shapes((40, 44, 48), np.random.default_rng(3))[1], 6)
    t1 = t2 / 2
    subject = Subject("1", t1, t2, shape=t2.shape, inner=t2 > 0.3)
    copies = turned_copies([subject], 2, seed=5)
    assert not np.array_equal(copies[0].t2, copies[1].t2)
    for copy in copies:
        assert copy.t1.shape == copy.t2.shape == copy.inner.shape == copy.shape
        scale = np.cbrt((copy.t2 > 0).sum() / (t2 > 0).sum())
        assert 0.85 < scale < 1.2
        assert copy.inner.sum() / scale**3 == pytest.approx(subject.inner.sum(), rel=0.4)
        # Both scans went the same way.
        np.testing.assert_allclose(copy.t1, copy.t2 / 2, atol=2e-3)
