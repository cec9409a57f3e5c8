"""What weights are scored on."""

import numpy as np

from func.slices.geometry import SliceGeometry, acquire, make_consistent
from func.training.augmentation import random_shapes
from func.training.subjects import Subject
from func.training.validation import validation_cases

SHAPE = (44, 48, 40)


def test_validation_cases_are_whole_scans():
    t1, t2 = random_shapes(SHAPE, np.random.default_rng(5))
    subjects, slices = [Subject("01", t1, t2, shape=SHAPE)], [("coronal", 4.0)]
    (case,), (alone,) = (validation_cases(subjects, slices, with_t1) for with_t1 in (True, False))
    assert case.scans.t1 is not None and alone.scans.t1 is None
    geometry = SliceGeometry.fitting(1, SHAPE[1], 4.0)
    assert case.scans.sidecar == geometry.to_sidecar(1.0)
    slices = acquire(t2, geometry)
    consistent = make_consistent(np.asarray(case.scans.t2.dataobj), slices, geometry)
    np.testing.assert_allclose(acquire(consistent, geometry), slices, atol=1e-4)
    assert 0 < case.inner.sum() < case.brain.sum() and not (case.inner & ~case.brain).any()
