"""Motions in files, as ITK reads and writes them."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from func.errors import BabyAIError
from func.phantom import infant_brain
from func.scans.resampling import resample
from func.scans.transforms import load_itk_transform, save_itk_transform

MOTION = from_matvec(Rotation.from_euler("xyz", (15, -20, 30), degrees=True).as_matrix(), (4, -3, 5))
LPS = np.array([-1.0, -1.0, 1.0])


def test_simpleitk_reads_the_transform_and_resamples_alike(tmp_path):
    fixed = infant_brain((48, 56, 48), age_months=0).t1
    moving = nib.Nifti1Image(fixed.dataobj, MOTION @ fixed.affine)
    save_itk_transform(tmp_path / "motion.tfm", MOTION)
    nib.save(fixed, tmp_path / "fixed.nii.gz")
    nib.save(moving, tmp_path / "moving.nii.gz")
    scans = [sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("moving", "fixed")]
    transform = sitk.ReadTransform(str(tmp_path / "motion.tfm"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(*scans, transform, sitk.sitkLinear)).T
    ours = resample(moving, fixed.shape, fixed.affine, MOTION, order=1)
    inner = (slice(10, -10),) * 3
    assert ours[inner].max() > 100
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=0.5)


def test_a_motion_comes_back_as_it_was_saved(tmp_path):
    save_itk_transform(tmp_path / "motion.tfm", MOTION)
    np.testing.assert_array_equal(load_itk_transform(tmp_path / "motion.tfm"), MOTION)


@pytest.mark.parametrize("binary", [False, True])
def test_an_affine_about_a_centre_is_read_as_itk_writes_it(tmp_path, binary):
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((1.1 * MOTION[:3, :3]).ravel().tolist())
    affine.SetCenter((10.0, 20.0, 30.0))
    affine.SetTranslation((1.0, 2.0, 3.0))
    path = tmp_path / ("affine.mat" if binary else "affine.tfm")
    sitk.WriteTransform(affine, str(path))
    if binary:
        with pytest.raises(BabyAIError, match="no ITK text file"):
            load_itk_transform(path)
        return
    moved = nib.affines.apply_affine(load_itk_transform(path), LPS * [5, 6, 7])
    np.testing.assert_allclose(LPS * moved, affine.TransformPoint((5.0, 6.0, 7.0)), atol=1e-9)


def test_what_is_no_affine_transform_is_refused(tmp_path):
    with pytest.raises(BabyAIError, match="missing"):
        load_itk_transform(tmp_path / "none.tfm")
    (tmp_path / "words.tfm").write_text("no transform")
    with pytest.raises(BabyAIError, match="holds no transform"):
        load_itk_transform(tmp_path / "words.tfm")
    save_itk_transform(tmp_path / "cut.tfm", MOTION)
    (tmp_path / "cut.tfm").write_text((tmp_path / "cut.tfm").read_text()[:150])
    with pytest.raises(BabyAIError, match="damaged"):
        load_itk_transform(tmp_path / "cut.tfm")
    bspline = sitk.BSplineTransformInitializer(sitk.Image(8, 8, 8, sitk.sitkFloat32), [2, 2, 2])
    sitk.WriteTransform(bspline, str(tmp_path / "bent.tfm"))
    with pytest.raises(BabyAIError, match="BSplineTransform"):
        load_itk_transform(tmp_path / "bent.tfm")
