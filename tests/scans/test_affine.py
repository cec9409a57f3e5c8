"""Headers that contradict themselves, or count in other units, still say where the head lies."""

import nibabel as nib
import numpy as np
import pytest

from func.errors import BabyAIError
from func.scans.nifti import image_of, read_volume, save_volume

SHAPE = (7, 8, 9)
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-0.8, 1, 3]), [4, 5, 6])

CODES = ("sform_code", "qform_code")


def saved(path, sform=OBLIQUE, qform=OBLIQUE, codes=(1, 1), **header):
    """A scan with its two affines, and header fields written over them as they are."""
    image = nib.Nifti1Image(np.random.default_rng(0).uniform(1, 9, SHAPE).astype(np.float32), OBLIQUE)
    image.set_qform(qform, codes[1])
    image.set_sform(sform, codes[0])
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    fields = image.header.template_dtype.fields
    for key, value in header.items():
        dtype, offset = fields[key][:2]
        raw = np.asarray(value, dtype.base).tobytes()
        content[offset : offset + len(raw)] = raw
    path.write_bytes(content)
    return path


def landmark(affine):
    return nib.affines.apply_affine(affine, [3, 5, 7])


def assert_reads(path, expected, warning, capsys):
    """The scan lies as expected, also for nibabel reading a result made from it; the oddity is told, or nothing is."""
    image = read_volume(path)
    np.testing.assert_allclose(image.affine, expected, atol=1e-4)
    told = capsys.readouterr().err
    assert told.count("\n") == bool(warning) and (warning or "") in told
    save_volume(path.with_name("result.nii.gz"), image.get_fdata(), image.affine, image)
    result = nib.load(path.with_name("result.nii.gz"))
    np.testing.assert_allclose(landmark(result.affine), landmark(expected), atol=1e-3)
    assert result.header.get_xyzt_units()[0] == "mm"
    source = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    assert [result.header[key] for key in CODES] == [source[key] for key in CODES]
    if result.header["qform_code"]:
        result.get_qform()


def test_a_sound_header_is_read_without_a_word(tmp_path, capsys):
    assert_reads(saved(tmp_path / "scan.nii"), OBLIQUE, None, capsys)


@pytest.mark.parametrize("excess", [1 + 1e-6, 1 + 1e-3])
def test_a_quaternion_a_rounding_too_long(tmp_path, capsys, excess):
    half_turn = np.diag([1.0, -1, -1, 1])
    path = saved(tmp_path / "scan.nii", half_turn, half_turn, (0, 1), quatern_b=excess)
    with pytest.raises(Exception, match="w2 should be positive"):
        nib.load(path).get_qform()
    assert_reads(path, half_turn, None, capsys)


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [np.nan] * 4, [1, 1, 1, 1]])
def test_a_useless_sform_beside_a_good_qform(tmp_path, capsys, row):
    path = saved(tmp_path / "scan.nii", srow_x=row, srow_y=row, srow_z=row)
    assert_reads(path, OBLIQUE, "its qform is used", capsys)


@pytest.mark.parametrize("damage", [{"quatern_b": np.nan}, {"quatern_c": 7}, {"qoffset_x": np.inf}])
def test_a_useless_qform_beside_a_good_sform(tmp_path, capsys, damage):
    assert_reads(saved(tmp_path / "scan.nii", **damage), OBLIQUE, None, capsys)


def test_two_useless_affines_are_refused(tmp_path):
    with pytest.raises(BabyAIError, match="damaged affine"):
        read_volume(saved(tmp_path / "scan.nii", srow_x=[0, 0, 0, 0], quatern_b=np.nan))


def test_sizes_that_disagree_are_named_and_the_sform_is_used(tmp_path, capsys):
    stretched = OBLIQUE @ np.diag([1, 1, 1.15, 1])
    assert_reads(saved(tmp_path / "scan.nii", sform=stretched), stretched, "0.8 x 1 x 3.45 mm by its sform", capsys)
    assert_reads(saved(tmp_path / "b.nii", codes=(1, 0), pixdim=[1, 0.8, 1, 2.5]), OBLIQUE, "0.8 x 1 x 2.5", capsys)


def test_directions_that_disagree_are_named(tmp_path, capsys):
    mirrored = np.diag([-1.0, 1, 1, 1]) @ OBLIQUE
    assert_reads(saved(tmp_path / "scan.nii", qform=mirrored), OBLIQUE, "turned or mirrored", capsys)


def test_no_orientation_at_all_is_told(tmp_path, capsys):
    path = saved(tmp_path / "scan.nii", codes=(0, 0))
    assert_reads(path, nib.load(path).affine, "check left and right", capsys)


@pytest.mark.parametrize(("unit", "factor"), [(1, 1000), (3, 0.001), (0, 1000), (2, 1000), (2, 0.001)])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1)])
def test_metres_and_micrometres_become_millimetres(tmp_path, capsys, unit, factor, codes):
    scaled = np.diag([1 / factor] * 3 + [1]) @ OBLIQUE
    path = saved(tmp_path / "scan.nii", scaled, scaled, codes, xyzt_units=unit)
    assert_reads(path, OBLIQUE, {1000: "metres", 0.001: "micrometres"}[factor], capsys)


@pytest.mark.parametrize("unit", [1, 3])
def test_a_wrong_unit_is_told_and_the_size_of_a_head_decides(tmp_path, capsys, unit):
    assert_reads(saved(tmp_path / "scan.nii", xyzt_units=unit), OBLIQUE, "if its lengths are millimetres", capsys)


def test_a_head_of_a_few_centimetres_is_one_in_centimetres(tmp_path, capsys):
    """Not a crop of a few centimetres in which voxels are as large as those of a scan."""
    assert_reads(
        saved(tmp_path / "a.nii", *[np.diag([0.1, 0.1, 0.1, 1]) @ OBLIQUE] * 2), OBLIQUE, "centimetres", capsys
    )
    assert_reads(saved(tmp_path / "b.nii"), OBLIQUE, None, capsys)


@pytest.mark.parametrize("codes", [(0, 1), (0, 0)])
def test_voxel_sizes_that_are_not_there_are_not_made_up(tmp_path, codes):
    with pytest.raises(BabyAIError, match="pixdim"):
        read_volume(saved(tmp_path / "scan.nii", codes=codes, pixdim=[1, 0.8, 1, 0]))


def test_voxel_sizes_that_the_sform_knows_need_no_others(tmp_path, capsys):
    assert_reads(saved(tmp_path / "scan.nii", codes=(1, 0), pixdim=[1, 0.8, 1, 0]), OBLIQUE, "0.8 x 1 x 0 mm", capsys)


def test_an_image_made_in_memory_has_its_unit():
    assert image_of(np.ones(SHAPE), np.eye(4)).header.get_xyzt_units()[0] == "mm"
