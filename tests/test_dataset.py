"""The samples that training sees: what is in them, that they can be drawn again, whose they are."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils.data import DataLoader

from func.dataset import (
    PublishedPatches,
    ThickSliceSamples,
    published_images,
)
from func.scans.files import save_json
from func.scans.intensity import published_normalise
from func.slices.geometry import SliceGeometry, acquire, upsample
from func.training import augmentation
from func.training.subjects import Subject, ThickScan, find_subjects, read_pseudo_pairs, read_subjects

SHAPE = (44, 48, 40)


@pytest.fixture(scope="module")
def scans():
    """A T1w and a T2w of random shapes in air, in units of their own."""
    t1, t2 = augmentation.random_shapes(SHAPE, np.random.default_rng(5))
    head = np.zeros(SHAPE, np.float32)
    head[6:-6, 6:-6, 6:-6] = 1
    return 700 * t1 * head, 900 * t2 * head


@pytest.fixture(scope="module")
def subject(scans):
    t1, t2 = scans
    return Subject("01", t1 / 700, t2 / 900, shape=SHAPE)


def save(folder, name, array, affine=None):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4) if affine is None else affine), path)
    return path


def test_thick_scans_and_sessions_go_with_their_subject(tmp_path, scans):
    for session in ("1", "2"):
        for suffix, array in zip(("T1w", "T2w"), scans, strict=True):
            save(tmp_path, f"sub-x_ses-{session}_{suffix}", array)
    save(tmp_path, "sub-x_ses-1_acq-axial4mm_T2w", scans[1])
    save(tmp_path, "sub-y_T1w", scans[0])
    save(tmp_path, "sub-y_acq-coronal2mm_T2w", scans[1])
    subjects, errors = find_subjects(tmp_path)
    assert [[pair.name for pair in group] for group in subjects["x"]] == [
        ["sub-x_ses-1_T2w", "sub-x_ses-1_acq-axial4mm_T2w"],
        ["sub-x_ses-2_T2w"],
    ]
    assert "y" not in subjects
    assert len(errors) == 1 and "isotropic" in str(errors[0])


def test_a_bad_pair_costs_no_other(tmp_path, scans):
    for label in ("good", "bad"):
        for suffix, array in zip(("T1w", "T2w"), scans, strict=True):
            save(tmp_path, f"sub-{label}_{suffix}", array)
    save(tmp_path, "sub-bad_T1w", scans[0][:-1])
    groups, _ = find_subjects(tmp_path)
    subjects, errors = read_subjects([group for label in sorted(groups) for group in groups[label]], published=False)
    assert [subject.label for subject in subjects] == ["good"]
    assert len(errors) == 1 and "sub-bad" in str(errors[0])


def test_a_scan_is_cropped_to_the_head_and_scaled(tmp_path, scans):
    turned = np.array([[0, 1.0, 0, 3], [-1.0, 0, 0, 8], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    for suffix, array in zip(("T1w", "T2w"), scans, strict=True):
        save(tmp_path, f"sub-1_{suffix}", array, turned)
    (subject,), errors = read_subjects(find_subjects(tmp_path)[0]["1"], published=False)
    assert not errors
    assert subject.t2.shape == (44, 40, 36)
    assert np.percentile(subject.t2[subject.t2 > 0], 99) == pytest.approx(1, rel=1e-4)
    ras = nib.as_closest_canonical(nib.Nifti1Image(scans[1], turned)).get_fdata()
    crop = tuple(slice(a, a + n) for a, n in zip(subject.start, subject.t2.shape, strict=True))
    np.testing.assert_allclose(subject.t2, ras[crop] / np.percentile(ras[ras > 0], 99), rtol=1e-5)


def test_a_t1w_that_lies_off_is_laid_upon_the_t2w(tmp_path, head):
    t1, t2 = (np.asarray(scan.dataobj, np.float32) for scan in (head.t1, head.t2))
    off = np.maximum(ndimage.shift(t1, (0, 0.6, 0), order=3), 0) * (t1 > 0)
    for suffix, array in (("T1w", off), ("T2w", t2)):
        save(tmp_path, f"sub-1_{suffix}", array)
    for published in (False, True):
        (subject,), _ = read_subjects(find_subjects(tmp_path)[0]["1"], published)
        part = tuple(slice(a, a + n) for a, n in zip(subject.start, subject.t2.shape, strict=True))
        inside = ndimage.binary_erosion(t2[part] > 0, iterations=4)
        true, given = (np.corrcoef(subject.t1[inside], scan[part][inside])[0, 1] for scan in (t1, off))
        assert (true > given) != published


def samples_of(subject, seed=0, **changes):
    samples = ThickSliceSamples([subject], [1], seed, patch=24)
    for name, value in changes.items():
        setattr(samples, name, value)
    return samples


def test_a_sample_depends_on_its_number_alone(subject):
    samples = samples_of(subject)
    drawn = {number: samples[number] for number in (3, 1, 2)}
    loader = DataLoader(samples_of(subject), 3, sampler=[1, 2, 3], num_workers=1, multiprocessing_context="fork")
    (batch,) = loader
    for place, number in enumerate((1, 2, 3)):
        for name, array in drawn[number].items():
            assert torch.equal(batch[name][place], array)
    assert not torch.equal(samples_of(subject, seed=1)[1]["truth"], drawn[1]["truth"])


def test_soft_samples_hold_less_detail(subject):
    plain = {"BIAS": 0, "NEW_CONTRAST": 0, "MISALIGNMENT": 0, "T1_NOISE": 0, "LESIONS": 0, "FINE_IN_PLANE": 0}
    for number in range(5):
        sharp, soft = (samples_of(subject, SOFT=share, **plain)[number]["truth"].numpy() for share in (0, 1))
        roughness = [np.square(np.diff(truth, axis=0)).mean() for truth in (sharp, soft)]
        assert roughness[1] < 0.8 * roughness[0]


def test_samples_are_whole(subject):
    samples = samples_of(subject)
    for number in range(40):
        sample = samples[number]
        assert {name: array.shape for name, array in sample.items()} == {
            "inputs": (7, 24, 24, 24),
            "truth": (24, 24, 24),
            "projection": (24, 24),
            "offset": (24, 24, 24),
            "weight": (24, 24, 24),
            "baseline": (2,),
        }
        assert all(array.dtype == torch.float32 and array.isfinite().all() for array in sample.values())
        assert sample["weight"].min() >= 0 and sample["weight"].max() >= 1


def test_a_lesion_counts_more_than_the_brain_around_it(subject):
    for number in range(3):
        without, with_lesions = (samples_of(subject, LESIONS=share)[number]["weight"] for share in (0, 1))
        assert without.max() == 1 and with_lesions.max() == 1 + ThickSliceSamples.LESION_WEIGHT
        assert 0 < (with_lesions > 1).float().mean() < 0.3


def test_the_truth_agrees_with_the_slices(subject):
    """The network's last layer changes nothing on the truth, and makes cubic what inference makes of it."""
    samples = samples_of(subject, UNKNOWN_GEOMETRY=0, NOISE=0, PROFILE_SHARES=(1, 0, 0))
    for number in range(10):
        sample = samples[number]
        truth = sample["truth"]
        seen = truth - truth @ sample["projection"].T + sample["offset"]
        np.testing.assert_allclose(seen, truth, atol=2e-5)
        assert sample["baseline"][1] > 0.005


def test_planes_that_no_slice_of_the_crop_sees_count_nothing(subject):
    """Where the projection leaves an estimate alone, the slices tell nothing, and errors are not its fault."""
    samples = samples_of(subject, UNKNOWN_GEOMETRY=0, GAP=0, WIDE_GAP=0, PROFILE_SHARES=(1, 0, 0))
    unseen = 0
    for sample in map(samples.__getitem__, range(6)):
        seen = sample["projection"].any(dim=1)
        assert not sample["weight"][..., ~seen].any() and sample["weight"][..., 8:16].any()
        unseen += int((~seen).sum())
    assert unseen


def test_without_geometry_nothing_is_corrected(subject):
    samples = samples_of(subject, UNKNOWN_GEOMETRY=1)
    for number in range(6):
        sample = samples[number]
        assert not sample["projection"].any() and not sample["offset"].any() and not sample["inputs"][2:].any()
        assert sample["weight"].all()
        assert 0.005 < sample["baseline"][1] < 1


def test_noise_damps_the_correction(subject):
    noisy, clean = (samples_of(subject, UNKNOWN_GEOMETRY=0, NOISE=noise)[4] for noise in (1, 0))
    assert noisy["projection"].abs().max() < clean["projection"].abs().max()


def test_a_gpu_would_make_the_same_samples(subject, monkeypatch):
    """All but the spline transform runs the same operations there; that one is PyTorch's instead of SciPy's."""
    numbers = range(4)
    changes = {"UNKNOWN_GEOMETRY": 1, "TILTED": 1, "NOISE": 0}
    on_cpu = samples_of(subject, **changes).batch(numbers)
    monkeypatch.setattr(augmentation, "affine_transform", augmentation.spline_transform)
    as_on_gpu = samples_of(subject, **changes).batch(numbers)
    for name, tensor in on_cpu.items():
        torch.testing.assert_close(as_on_gpu[name], tensor, atol=1e-4, rtol=0)


def test_a_sample_without_a_t1w_tells_of_none(subject):
    with_t1, without = (samples_of(subject, without_t1=share, UNKNOWN_GEOMETRY=0)[1] for share in (0, 1))
    assert with_t1["inputs"][0].any() and not without["inputs"][[0, 5, 6]].any()
    assert torch.equal(with_t1["truth"], without["truth"])


def test_a_t1w_may_be_cut_short(subject):
    """From one side, along any axis of the column around the crop, and the T2w never."""
    ends = set()
    for number in range(16):
        whole, cut = (samples_of(subject, CUT_T1=share, UNKNOWN_GEOMETRY=0, NOISE=0)[number] for share in (0, 1))
        t1, kept = whole["inputs"][0] > 0.05, cut["inputs"][0] > 0.05
        assert torch.equal(whole["truth"], cut["truth"])
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            lost = (t1 & ~kept).any(dim=others) & ~kept.any(dim=others)
            if lost.any() and not lost.all():
                ends.add((axis, bool(lost[0])))
    assert len({axis for axis, _ in ends}) == 3 and len({first for _, first in ends}) == 2


def test_the_rim_left_by_brain_extraction_counts_little(subject):
    rim = replace(subject, inner=subject.t2 > 0.5)
    sample = samples_of(rim, UNKNOWN_GEOMETRY=1)[0]
    assert sorted(sample["weight"].unique().tolist()) == pytest.approx([0.1, 1])


def test_pseudo_pairs_come_at_1_mm_with_a_drawn_contrast(tmp_path, scans):
    path = save(tmp_path, "head", scans[0][::2, ::2, ::2], np.diag([2.0, 2, 2, 1]))
    (head,) = read_pseudo_pairs([path])
    assert head.shape == SHAPE and head.invented
    samples = samples_of(head, UNKNOWN_GEOMETRY=0, without_t1=0).batch(range(6))
    likeness = [np.corrcoef(samples["inputs"][n, 0].ravel(), samples["truth"][n].ravel())[0, 1] for n in range(6)]
    assert min(likeness) < 0.9


def write_thick_scan(folder, t2, direction, axis, thickness, affine):
    geometry = SliceGeometry.fitting(axis, t2.shape[axis], thickness)
    array = upsample(acquire(t2, geometry), geometry, t2.shape[axis])
    path = save(folder, f"sub-1_acq-{direction}{thickness}mm_T2w", array, affine)
    save_json(path.with_name(path.name.replace(".nii.gz", ".json")), geometry.to_sidecar(1.0))
    return array


def test_scans_that_exist_are_used(tmp_path, scans):
    """In a left-handed, flipped file: the slices from the file are those of the truth, in the sample's own frame."""
    affine = np.array([[0, -1.0, 0, 3], [-1.0, 0, 0, 8], [0, 0, -1.0, 0], [0, 0, 0, 1]])
    for suffix, array in zip(("T1w", "T2w"), scans, strict=True):
        save(tmp_path, f"sub-1_{suffix}", array, affine)
    write_thick_scan(tmp_path, scans[1], "axial", 2, 3, affine)
    (subject,), errors = read_subjects(find_subjects(tmp_path)[0]["1"], published=False)
    assert not errors
    (scan,) = subject.scans
    np.testing.assert_allclose(scan.array, acquire(subject.t2, scan.geometry), atol=2e-4)
    samples = samples_of(subject, UNKNOWN_GEOMETRY=0, FROM_FILE=1, NOISE=0)
    for number in range(4):
        sample = samples[number]
        truth = sample["truth"]
        np.testing.assert_allclose(truth - truth @ sample["projection"].T + sample["offset"], truth, atol=1e-3)


def test_a_scan_of_another_part_of_the_head_is_left_out(subject):
    """A slab of four planes at the bottom of a long head: crops far above it get slices of their own."""
    t1, t2 = (np.tile(scan, (1, 1, 4)) for scan in (subject.t1, subject.t2))
    geometry = SliceGeometry(axis=2, thickness=2, spacing=2, first_center=0.5, count=2)
    scan = ThickScan("slab", acquire(t2, geometry), geometry)
    slab = replace(subject, t1=t1, t2=t2, shape=t2.shape, scans=(scan,))
    samples = samples_of(slab, UNKNOWN_GEOMETRY=0, FROM_FILE=1)
    draws = [samples.draw(number) for number in range(20)]
    assert 0 < sum(bool(drawn["from file"]) for drawn in draws) < 20
    assert samples.batch(range(20))["inputs"].isfinite().all()


def test_an_atlas_volume_has_1573_published_patches():
    volume = np.zeros((182, 218, 182), np.float32)
    volume[60:80, 60:80, 60:80] = np.random.default_rng(0).random((20, 20, 20))
    subject = Subject("1", volume, volume, shape=volume.shape)
    patches = PublishedPatches(published_images([subject], thicknesses=[4]), seed=0)
    assert len(patches) == 3 * 1573


def test_every_published_patch_comes_once_an_epoch(subject):
    patches = PublishedPatches(published_images([subject], thicknesses=[2, 4]), seed=3)
    first, second = ([patches._order(epoch)[place] for place in range(len(patches))] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(len(patches)))
    assert first != second


@pytest.mark.parametrize("from_files", [False, True])
def test_published_patches_are_those_of_the_whole_volume(tmp_path, scans, from_files):
    """Padded, normalised and cut as the published procedure does it with the whole, up-sampled volume."""
    data = tmp_path / "data"
    for suffix, array in zip(("T1w", "T2w"), scans, strict=True):
        save(data, f"sub-1_{suffix}", array)
    thick = write_thick_scan(data if from_files else tmp_path / "elsewhere", scans[1], "coronal", 1, 4, None)
    (subject,), errors = read_subjects(find_subjects(data)[0]["1"], published=True)
    assert not errors and bool(subject.scans) == from_files
    image = published_images([subject], thicknesses=[4])[0 if from_files else 1]
    padding = [(2, 2), (0, 0), (4, 4)]  # to 48 voxels: 32 + 16
    volumes = [published_normalise(np.pad(array, padding)) for array in (scans[0], thick, scans[1])]
    patches = PublishedPatches([image], seed=0)
    assert len(patches) == 8
    for number, corner in enumerate(np.ndindex(2, 2, 2)):
        place = int(np.flatnonzero(patches._order(0) == number)[0])
        box = tuple(slice(16 * at, 16 * at + 32) for at in corner)
        sample = patches[place]
        np.testing.assert_allclose(sample["inputs"], [volumes[0][box], volumes[1][box]], atol=2e-4)
        np.testing.assert_allclose(sample["truth"][0], volumes[2][box], atol=2e-4)
