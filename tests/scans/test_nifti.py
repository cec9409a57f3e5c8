"""Reading refuses what is wrong in one sentence, and uses with a warning what is only odd."""

import gzip
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from func.errors import BabyAIError
from func.scans import nifti
from func.scans.nifti import (
    check_atlas_grid,
    check_isotropic,
    check_same_grid,
    from_ras,
    read_volume,
    save_volume,
    to_ras,
)

SHAPE = (7, 8, 9)


def some_array(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(1, 1000, shape).astype(np.float32)


def written(path, array=None, affine=None, kind=nib.Nifti1Image, **header):
    image = kind(some_array() if array is None else array, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


class TestReading:
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
    @pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
    def test_agrees_with_nibabel(self, tmp_path, kind, dtype, extension):
        path = written(tmp_path / f"sub-01_T1w{extension}", some_array().astype(dtype), kind=kind)
        image = read_volume(path)
        np.testing.assert_array_equal(np.asarray(image.dataobj), nib.load(path).get_fdata(dtype=np.float32))
        np.testing.assert_array_equal(image.affine, nib.load(path).affine)
        assert image.get_data_dtype() == np.float32 and image.get_filename() == str(path)

    def test_big_endian_scaled_integers_agree_with_nibabel(self, tmp_path):
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(">i2")
        image = nib.Nifti1Image(some_array() / 7, np.diag([-1, 1, 1, 1]), header)
        nib.save(image, tmp_path / "scan.nii.gz")
        loaded = nib.load(tmp_path / "scan.nii.gz")
        assert loaded.dataobj.slope != 1
        np.testing.assert_allclose(read_volume(tmp_path / "scan.nii.gz").get_fdata(), loaded.get_fdata(), rtol=1e-6)

    def test_oblique_qform_only_affine_agrees_with_nibabel(self, tmp_path):
        affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-0.8, 1, 3]), [4, 5, 6])
        image = nib.Nifti1Image(some_array(), affine)
        image.header.set_qform(affine, 1)
        image.header.set_sform(None, 0)
        nib.save(image, tmp_path / "scan.nii.gz")
        np.testing.assert_allclose(read_volume(tmp_path / "scan.nii.gz").affine, affine, atol=1e-5)

    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    def test_data_begin_after_the_header_where_their_offset_is_not_set(self, tmp_path, kind):
        path = written(tmp_path / "scan.nii", kind=kind)
        content, (dtype, at) = bytearray(path.read_bytes()), kind.header_class.template_dtype.fields["vox_offset"][:2]
        content[at : at + dtype.itemsize] = bytes(dtype.itemsize)
        path.write_bytes(content)
        np.testing.assert_array_equal(read_volume(path).dataobj, some_array())

    def test_trailing_singleton_dimensions_are_dropped(self, tmp_path):
        assert read_volume(written(tmp_path / "scan.nii.gz", some_array((*SHAPE, 1, 1)))).shape == SHAPE

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (some_array((4, 4, 4, 2)), "4-D"),
            (some_array((4, 4, 1, 6)), "6 single slices"),
            (some_array((4, 4)), "not a 3-D volume"),
            (np.where(some_array() > 500, np.nan, 1), "NaN or infinite"),
            (np.where(some_array() > 500, np.inf, 1), "NaN or infinite"),
            (np.where(some_array() > 500, 1e300, 1.0), "NaN or infinite"),
            (np.zeros(SHAPE), "zero everywhere"),
            (np.full(SHAPE, 7.0), r"same value \(7\)"),
            (some_array().astype(np.complex64), "complex"),
            (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
        ],
    )
    def test_unfit_content_is_named(self, tmp_path, array, message):
        path = written(tmp_path / "sub-01_T2w.nii.gz", array)
        with pytest.raises(BabyAIError, match=message) as caught:
            read_volume(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
    def test_every_truncation_is_named(self, tmp_path, extension):
        path = written(tmp_path / f"scan{extension}")
        whole = path.read_bytes()
        for length in np.linspace(4, len(whole) - 1, 40).astype(int):
            path.write_bytes(whole[:length])
            with pytest.raises(BabyAIError, match="truncated or damaged"):
                read_volume(path)

    def test_a_damaged_compressed_stream_is_noticed(self, tmp_path):
        path = written(tmp_path / "scan.nii.gz")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(BabyAIError, match="damaged"):
            read_volume(path)

    @pytest.mark.parametrize("content", [b"hello", b"\0" * 1000, b"\x5c\x01\0\0" + b"\0" * 600])
    def test_what_is_not_nifti_is_refused(self, tmp_path, content):
        (tmp_path / "scan.nii").write_bytes(content)
        with pytest.raises(BabyAIError, match=r"not a NIfTI file|damaged NIfTI header|not a 3-D"):
            read_volume(tmp_path / "scan.nii")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("scan.nii.gz", b"", r"is empty \(0 bytes\)"),
            ("scan.mgz", b"\x1f\x8b" + bytes(90), "nib-convert scan.mgz scan.nii.gz"),
            ("scan.img", bytes(90), "one half of a .hdr/.img pair; join them: nib-convert scan.img scan.nii.gz"),
            ("scan.hdr", b"\x5c\x01\0\0" + bytes(344), "nib-convert scan.img scan.nii.gz"),
            ("scan.nii", bytes(128) + b"DICM" + bytes(900), "is a DICOM file"),
            ("scan.nii.gz", b"/annex/objects/SHA256E-s12--ab.nii.gz\n", "only a pointer"),
            ("scan.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "only a pointer"),
        ],
    )
    def test_what_else_a_file_may_be_is_named_with_a_remedy(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BabyAIError, match=message):
            read_volume(tmp_path / name)

    def test_a_dead_link_is_named(self, tmp_path):
        (tmp_path / "sub-01_T2w.nii.gz").symlink_to(tmp_path / ".git" / "annex" / "objects" / "x")
        with pytest.raises(BabyAIError, match="is a link to a file that is not there"):
            read_volume(tmp_path / "sub-01_T2w.nii.gz")

    @pytest.mark.parametrize("after", [b"\0" * 512, b"<html>", b"\x1f\x8b"])
    def test_bytes_after_the_gzip_stream_are_left_out(self, tmp_path, after, capsys):
        path = written(tmp_path / "scan.nii.gz")
        path.write_bytes(path.read_bytes() + after)
        if after == b"\x1f\x8b":  # the beginning of more data that is not there
            with pytest.raises(BabyAIError, match="truncated or damaged"):
                read_volume(path)
            return
        np.testing.assert_array_equal(read_volume(path).dataobj, some_array())
        assert ("after its end" in capsys.readouterr().err) == (after == b"<html>")

    @pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize(("shift", "air"), [(0, 0), (-700, -690)])
    def test_nan_outside_the_head_is_air(self, tmp_path, missing, shift, air, capsys):
        array = np.full((20, 22, 24), missing, np.float32)
        head = np.zeros(array.shape, bool)
        head[5:-5, 5:-5, 5:-5] = True
        head[5:8, 5:8, 9] = False  # a notch
        array[head] = 10 + shift + 900 * np.random.default_rng(0).random(head.sum())
        array[10, 10, 10] = 10 + shift
        read = read_volume(written(tmp_path / "scan.nii.gz", array)).get_fdata()
        np.testing.assert_array_equal(read[head], array[head])
        np.testing.assert_array_equal(read[~head], air)
        assert "taken for air" in capsys.readouterr().err

    def test_a_few_nan_within_the_head_are_filled(self, tmp_path, capsys):
        """With what lies beside them; a hole there would be taken for dark tissue."""
        array = np.pad(np.full((14, 14, 14), 700.0), 4, constant_values=np.nan)
        array[8:10, 8:10, 8:10] = np.nan
        array[5, 4:-4, 4:-4] = 500
        volume = read_volume(written(tmp_path / "scan.nii.gz", array)).get_fdata()
        assert np.all(volume[8:10, 8:10, 8:10] == 700) and volume[0, 0, 0] == 0
        assert "the 8 within the head" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["lesion", "speckle", "everything"])
    def test_nan_within_the_head_is_refused(self, tmp_path, kind):
        array = some_array((20, 22, 24))
        array[{"lesion": np.s_[5:15, 5:15, 5:15], "speckle": array > 500, "everything": np.s_[:]}[kind]] = np.nan
        with pytest.raises(BabyAIError, match=r"NaN|no finite"):
            read_volume(written(tmp_path / "scan.nii.gz", array))

    def test_missing_files_folders_and_pipes_are_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.nii")
        for path in (tmp_path / "absent.nii.gz", tmp_path, tmp_path / "pipe.nii"):
            with pytest.raises(BabyAIError, match="does not exist or is not a file"):
                read_volume(path)

    @pytest.mark.parametrize("sform", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.ones((3, 4))])
    def test_an_affine_without_inverse_is_refused(self, tmp_path, sform):
        path = written(tmp_path / "scan.nii")
        content = bytearray(path.read_bytes())
        content[280:328] = sform.astype("<f4").tobytes()
        path.write_bytes(content)
        with pytest.raises(BabyAIError, match="affine"):
            read_volume(path)

    def test_a_header_that_claims_terabytes_is_refused_before_reading(self, tmp_path):
        header = nib.Nifti1Header()
        header.set_data_shape((30000, 30000, 30000))
        header.set_data_dtype(np.float32)
        header.structarr["vox_offset"] = 352
        header.structarr["magic"] = b"n+1"
        (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 4))
        with pytest.raises(BabyAIError, match="30000 x 30000 x 30000 voxels"):
            read_volume(tmp_path / "scan.nii.gz")

    def test_a_compression_bomb_is_read_no_further_than_its_header_declares(self, tmp_path):
        with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as stream:
            stream.write(nib.Nifti1Image(some_array(), np.eye(4)).to_bytes())
            for _ in range(128):
                stream.write(b"\0" * 2**20)
        with pytest.raises(BabyAIError, match="goes on long after"):
            read_volume(tmp_path / "bomb.nii.gz")

    def test_a_file_too_small_for_what_it_declares_is_not_decompressed(self, tmp_path, monkeypatch):
        path = written(tmp_path / "scan.nii.gz", np.tile(some_array((64, 64, 1)), (1, 1, 4)))
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[42:48] = np.array([640, 640, 640], "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(content)))
        monkeypatch.setattr(np, "frombuffer", None)
        with pytest.raises(BabyAIError, match="truncated"):
            read_volume(path)

    @pytest.mark.parametrize("scaling", [(1, 0), (0.5, 3)])
    def test_reading_takes_little_more_memory_than_the_volume(self, tmp_path, scaling):
        image = nib.Nifti1Image(np.tile(some_array((128, 128, 1)).astype(np.float64), (1, 1, 256)), np.eye(4))
        content = bytearray(image.to_bytes())
        content[112:120] = np.array(scaling, "<f4").tobytes()
        (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(content, compresslevel=1))
        tracemalloc.start()
        volume = read_volume(tmp_path / "scan.nii.gz")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        expected = (image.get_fdata() * scaling[0] + scaling[1]).astype(np.float32)
        np.testing.assert_array_equal(volume.dataobj, expected)
        assert peak < 2 * expected.nbytes, "the file holds twice as many bytes"


class TestGrids:
    def image(self, shape=nifti.ATLAS_SHAPE, affine=None):
        return nib.Nifti1Image(np.broadcast_to(np.float32(1), shape), np.eye(4) if affine is None else affine)

    def test_rounded_affines_are_no_error(self):
        rounded = np.diag([0.9999, 1, 1.0001, 1])
        check_isotropic(self.image(affine=rounded))
        check_atlas_grid(self.image(affine=rounded))
        shifted = np.eye(4)
        shifted[:3, 3] = 1e-4
        check_same_grid(self.image(), self.image(affine=shifted))

    def test_affines_written_with_four_digits_are_the_same_grid(self):
        affine = nib.affines.from_matvec(
            nib.eulerangles.euler2mat(0.11, 0.23, -0.17), [-91.23456, -126.65432, -72.11111]
        )
        check_same_grid(self.image(affine=affine), self.image(affine=np.round(affine, 4)))
        significant = np.vectorize(lambda value: float(f"{value:.4g}"))(affine)
        check_same_grid(self.image(affine=affine), self.image(affine=significant))

    def test_any_axis_order_of_the_atlas_grid_is_accepted(self):
        for ornt in ([[0, -1], [1, 1], [2, 1]], [[2, 1], [0, -1], [1, 1]]):
            affine = nib.orientations.inv_ornt_aff(np.array(ornt), nifti.ATLAS_SHAPE)
            shape = nib.apply_orientation(np.broadcast_to(np.uint8(0), nifti.ATLAS_SHAPE), np.array(ornt)).shape
            check_atlas_grid(self.image(shape, affine))

    @pytest.mark.parametrize(
        ("shape", "affine", "message"),
        [
            ((182, 218, 46), np.diag([1, 1, 4, 1]), "1 x 1 x 4 mm"),
            ((182, 218, 181), np.eye(4), "182 x 218 x 181"),
            (
                nifti.ATLAS_SHAPE,
                np.array([[1, 0.2, 0, 0], [0, 0.98, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
                "right angles",
            ),
        ],
    )
    def test_other_grids_are_refused_with_the_remedy(self, shape, affine, message):
        with pytest.raises(BabyAIError, match=f"{message}.*preprocessing.py"):
            check_atlas_grid(self.image(shape, affine))

    def test_pairs_on_different_grids_are_refused(self):
        moved = np.eye(4)
        moved[0, 3] = 0.5
        with pytest.raises(BabyAIError, match=r"0\.50 mm apart"):
            check_same_grid(self.image(), self.image(affine=moved))
        with pytest.raises(BabyAIError, match="differ in shape"):
            check_same_grid(self.image(), self.image((182, 218, 180)))


def test_every_axis_order_goes_to_ras_and_back(tmp_path):
    array, affine = some_array(), nib.affines.from_matvec(np.eye(3), [-10, 5, 3])
    reference = nib.Nifti1Image(array, affine)
    for code in ("RAS", "LPS", "LAS", "ASR", "PIR", "SLA"):
        ornt = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(code))
        turned = reference.as_reoriented(ornt)
        assert "".join(nib.aff2axcodes(turned.affine)) == code
        ras = to_ras(turned)
        np.testing.assert_array_equal(ras.get_fdata(), array)
        np.testing.assert_allclose(ras.affine, affine)
        np.testing.assert_array_equal(from_ras(array, turned), np.asarray(turned.dataobj))


class TestWriting:
    def test_the_input_header_is_kept_without_its_scaling(self, tmp_path):
        source = nib.Nifti1Image((some_array() * 30).astype(np.int16), np.diag([-1, 1, 1, 1]))
        source.header.set_sform(source.affine, "mni")
        source.header["cal_max"] = 5
        nib.save(source, tmp_path / "in.nii.gz")
        like = read_volume(tmp_path / "in.nii.gz")
        save_volume(tmp_path / "new" / "out.nii.gz", some_array(seed=1), like.affine, like)
        out = nib.load(tmp_path / "new" / "out.nii.gz")
        np.testing.assert_array_equal(out.get_fdata(), some_array(seed=1))
        np.testing.assert_array_equal(out.affine, source.affine)
        assert out.get_data_dtype() == np.float32 and out.header["cal_max"] == 0
        assert out.get_sform(coded=True)[1] == 4

    def test_same_content_same_bytes(self, tmp_path):
        for name in ("a.nii.gz", "b.nii.gz"):
            save_volume(tmp_path / name, some_array(), np.eye(4))
        assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
