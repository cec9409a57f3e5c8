"""What names say; pairs go by entities, within one dataset, one subject's folder and one session."""

import os

import pytest

from func.errors import BabyAIError, collect_warnings
from func.scans.bids import (
    entities_of,
    find_pairs,
    find_scans,
    find_t2w_alone,
    is_original,
    is_result,
    own_acquisition,
    result_path,
)


def t_scan(entities, suffix):
    return "_".join(["sub-1", *([entities] if entities else []), f"{suffix}.nii.gz"])


class TestPairing:
    def folder(self, tmp_path, *names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    def names(self, pairs):
        return [(pair.t2.name.removesuffix(".nii.gz"), pair.t1.name.removesuffix(".nii.gz")) for pair in pairs]

    def test_several_t2w_share_a_t1w_and_reconstructions_are_left_out(self, tmp_path):
        folder = self.folder(
            tmp_path,
            "sub-01_T1w.nii.gz",
            "sub-01_acq-axial4mm_T2w.nii.gz",
            "sub-01_acq-sagittal2mm_T2w.nii.gz",
            "out/sub-01_acq-axial4mm_desc-isotropic_T2w.nii.gz",
            "sub-01_desc-brain_mask.nii.gz",
            "notes.txt",
        )
        pairs, errors = find_pairs(folder)
        assert not errors
        assert self.names(pairs) == [
            ("sub-01_acq-axial4mm_T2w", "sub-01_T1w"),
            ("sub-01_acq-sagittal2mm_T2w", "sub-01_T1w"),
        ]

    @pytest.mark.parametrize("name", ["sub-1_T1w.nii.gz", "ses-2/sub-1_T2w.nii.gz", "sub-1_ses-b_run-2_T2w.nii"])
    def test_the_name_that_an_error_asks_for_mends_it(self, tmp_path, name):
        folder = self.folder(tmp_path, name)
        _, (error,) = find_pairs(folder)
        asked = str(error).split("named like ")[1].split(".nii.gz")[0] + ".nii.gz"
        (folder / name).with_name(asked).touch()
        pairs, errors = find_pairs(folder)
        assert len(pairs) == 1 and not errors
        assert ("ses" in asked) == ("ses" in name)

    def test_two_files_that_would_give_one_result(self, tmp_path):
        """With a T1w or without."""
        folder = self.folder(tmp_path, "sub-1_T1w.nii", "sub-1_T2w.nii", "sub-1_T2w.nii.gz", "sub-1_desc-b_T2w.nii.gz")
        for found in (find_pairs(folder), find_t2w_alone(folder)):
            pairs, errors = found
            assert len(pairs) == 1 and len(errors) == 2
            assert all("would give the same result" in str(error) for error in errors)

    def test_pairs_by_entities_not_by_order(self, tmp_path):
        folder = self.folder(
            tmp_path,
            "sub-2_T1w.nii.gz",
            "sub-2_T2w.nii.gz",
            "sub-10_T1w.nii",
            "sub-10_T2w.nii.gz",
            "a/sub-3_ses-1_T1w.nii.gz",
            "b/sub-3_ses-2_T1w.nii.gz",
            "c/sub-3_ses-2_run-02_T2w.nii.gz",
            "c/sub-3_ses-1_T2w.nii.gz",
            "sub-4_run-1_T1w.nii.gz",
            "sub-4_run-2_T1w.nii.gz",
            "sub-4_run-01_T2w.nii.gz",
            "sub-5_T1w.nii.gz",
            "sub-5_ses-6mo_T2w.nii.gz",
        )
        pairs, errors = find_pairs(folder)
        assert not errors
        assert dict(self.names(pairs)) == {
            "sub-2_T2w": "sub-2_T1w",
            "sub-10_T2w": "sub-10_T1w.nii",
            "sub-3_ses-2_run-02_T2w": "sub-3_ses-2_T1w",
            "sub-3_ses-1_T2w": "sub-3_ses-1_T1w",
            "sub-4_run-01_T2w": "sub-4_run-1_T1w",
            "sub-5_ses-6mo_T2w": "sub-5_T1w",
        }

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["sub-9_T1w.nii.gz"], "sub-9_T1w.nii.gz has no T2w"),
            (["sub-9_T2w.nii.gz"], "sub-9_T2w.nii.gz has no T1w"),
            (["sub-9_ses-1_T1w.nii.gz", "sub-9_ses-2_T2w.nii.gz"], "has no T1w"),
            (["sub-9_acq-a_T1w.nii.gz", "sub-9_acq-b_T1w.nii.gz", "sub-9_T2w.nii.gz"], "2 T1w candidates"),
            (["sub-9_T1w.nii", "sub-9_T1w.nii.gz", "sub-9_T2w.nii.gz"], "2 T1w candidates"),
            (["sub-9_T1w.nii", "sub-9_T2w.nii.gz", "sub-9_T2w.nii"], "same result"),
        ],
    )
    def test_what_cannot_be_paired_costs_nobody_else(self, tmp_path, names, message):
        pairs, errors = find_pairs(self.folder(tmp_path, "sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz", *names))
        assert "sub-1_T2w" in [pair.name for pair in pairs]
        assert any(message in str(error) for error in errors)

    @pytest.mark.parametrize("described", [True, False])
    @pytest.mark.parametrize("anat", ["sub-1/anat/", ""])
    def test_pairs_stay_within_a_dataset(self, tmp_path, described, anat):
        """Of three sites that call an infant sub-1, one lacks its T1w: it is given to no other's."""
        names = [f"{site}/{anat}sub-1_T{k}w.nii.gz" for site in "abc" for k in (1, 2)]
        names.remove(f"a/{anat}sub-1_T1w.nii.gz")
        folder = self.folder(tmp_path, *names, *(f"{site}/dataset_description.json" for site in "abc" if described))
        pairs, (error,) = find_pairs(folder)
        assert [(pair.subject, pair.t1.parent) for pair in pairs] == [
            (f"{site}/1", folder / f"{site}/{anat}") for site in "bc"
        ]
        assert all(pair.t1.parent == pair.t2.parent for pair in pairs)
        assert len({result_path(pair, "out") for pair in pairs}) == 2
        assert f"a/{anat}sub-1_T2w.nii.gz has no T1w" in str(error)

    def test_pairs_stay_within_a_subjects_folder(self, tmp_path):
        folder = self.folder(
            tmp_path, "x/sub-1/anat/sub-1_T2w.nii.gz", "y/sub-1/anat/sub-1_T1w.nii.gz", "sub-1_T1w.nii.gz"
        )
        pairs, errors = find_pairs(folder)
        assert not pairs and len(errors) == 3

    def test_one_infant_in_a_folder_for_each_visit_stays_one_subject(self, tmp_path):
        names = [f"{month}mo/sub-1_ses-{month}mo_T{k}w.nii.gz" for month in (3, 9) for k in (1, 2)]
        pairs, errors = find_pairs(self.folder(tmp_path, *names))
        assert not errors and [pair.subject for pair in pairs] == ["1", "1"]
        assert all(pair.t1.parent == pair.t2.parent for pair in pairs)

    def test_sessions_that_only_folders_name(self, tmp_path):
        names = [f"sub-1/ses-{month}/anat/sub-1_T{k}w.nii.gz" for month in (3, 9) for k in (1, 2)]
        pairs, errors = find_pairs(self.folder(tmp_path, *names))
        assert not errors and len(pairs) == 2
        assert all(pair.t1.parent == pair.t2.parent for pair in pairs)

    @pytest.mark.parametrize("start", ["", "sub-1", "sub-1/ses-3"])
    def test_a_search_may_start_within_a_dataset(self, tmp_path, start):
        folder = self.folder(
            tmp_path,
            "dataset_description.json",
            "sub-1/ses-3/anat/sub-1_ses-3_T1w.nii.gz",
            "sub-1/ses-3/more/sub-1_ses-3_T2w.nii.gz",
        )
        pairs, errors = find_pairs(folder / start)
        assert not errors and [pair.subject for pair in pairs] == ["1"]

    @pytest.mark.parametrize(
        ("t1s", "t2", "expected"),
        [
            (["run-1"], "run-2", "run-1"),
            (["run-1", "run-2"], "run-02", "run-2"),
            (["", "ce-gad"], "", ""),
            (["ce-gad"], "", "ce-gad"),
            (["", "ce-gad"], "ce-gad", ""),
            (["", "rec-norm"], "run-1", ""),
            (["", "space-MNI"], "acq-axial4mm", ""),
            (["", "space-MNI"], "space-MNI", "space-MNI"),
            (["", "desc-preproc"], "desc-preproc", "desc-preproc"),
            (["", "part-phase", "part-real", "part-imag"], "", ""),
            (["part-mag", "part-phase"], "", "part-mag"),
            (["acq-a_run-1", "acq-b_run-1"], "acq-b", "acq-b_run-1"),
        ],
    )
    def test_which_of_several_t1w(self, tmp_path, t1s, t2, expected):
        folder = self.folder(tmp_path, *(t_scan(t1, "T1w") for t1 in t1s), t_scan(t2, "T2w"))
        (pair,), errors = find_pairs(folder)
        assert pair.t1.name == t_scan(expected, "T1w") and not errors

    def test_a_filter_chooses_otherwise(self, tmp_path):
        folder = self.folder(tmp_path, "sub-1_T1w.nii.gz", "sub-1_rec-norm_T1w.nii.gz", "sub-1_run-02_T2w.nii.gz")
        chosen = {
            " ".join(wanted): [pair.t1.name for pair in find_pairs(folder, wanted)[0]]
            for wanted in ([], ["rec-norm"], ["rec-"], ["run-", "rec-norm"])
        }
        assert chosen == {
            "": ["sub-1_T1w.nii.gz"],
            "rec-norm": ["sub-1_rec-norm_T1w.nii.gz"],
            "rec-": ["sub-1_T1w.nii.gz"],
            "run- rec-norm": ["sub-1_rec-norm_T1w.nii.gz"],
        }
        pairs, (error,) = find_pairs(folder, ["acq-x"])
        assert not pairs and "no T1w with acq-x" in str(error) and "change --t1w-filter" in str(error)

    def test_the_filter_that_an_error_names_is_accepted(self, tmp_path):
        for number, names in enumerate([("acq-a", "acq-b"), ("acq-a_run-1", "acq-a"), ("inv-1", "inv-2")]):
            folder = self.folder(tmp_path / str(number), *(f"sub-1_{n}_T1w.nii.gz" for n in names), "sub-1_T2w.nii.gz")
            pairs, errors = find_pairs(folder)
            if number == 1:
                assert pairs  # the one that, like the T2w, has no run
                continue
            named = str(errors[0]).rsplit("--t1w-filter ", 1)[1].rstrip(".")
            assert not pairs and len(find_pairs(folder, [named])[0]) == 1

    def test_parts_that_are_no_magnitude_are_no_scans(self, tmp_path):
        folder = self.folder(tmp_path, *(f"sub-1_part-{part}_T2w.nii.gz" for part in ("mag", "phase", "real", "imag")))
        assert [path.name for path in find_scans(folder)] == ["sub-1_part-mag_T2w.nii.gz"]

    def test_a_folder_that_cannot_be_read_is_told(self, tmp_path, monkeypatch):
        names = [f"sub-{n}/sub-{n}_T{k}w.nii.gz" for n in (1, 2) for k in (1, 2)]
        folder, scandir = self.folder(tmp_path, *names), os.scandir

        def refusing(path):
            if str(path).endswith("sub-1"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        pairs, (error,) = find_pairs(folder)
        assert [pair.subject for pair in pairs] == ["2"]
        assert str(folder / "sub-1") in str(error) and "Permission denied" in str(error)
        with pytest.raises(BabyAIError, match="Permission denied"):
            find_scans(folder)

    def test_no_folder_and_no_scans_are_told(self, tmp_path):
        with pytest.raises(BabyAIError, match="does not exist"):
            find_pairs(tmp_path / "absent")
        with pytest.raises(BabyAIError, match="No scans were found"):
            find_pairs(self.folder(tmp_path, "t1.nii.gz", "derivatives/sub-1_T1w.nii.gz", ".git/sub-1_T2w.nii.gz"))

    @pytest.mark.parametrize(
        "name",
        [
            "sub-2_T2w.NII.GZ",
            "sub-2_t2w.nii.gz",
            "sub-2_T2w.mgz",
            "02_T2w.nii.gz",
            "sub-2_T2w (1).nii.gz",
            "sub-2_T1.img",
        ],
    )
    def test_files_that_have_nearly_a_name_are_told_of(self, tmp_path, name):
        others = ["._sub-2_T2w.nii.gz", "sub-2_T2w.json", "sub-2_T2w_mask.nii.gz", "sub-2_T2starw.nii.gz"]
        with collect_warnings() as told:
            pairs, errors = find_pairs(self.folder(tmp_path, "sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz", name, *others))
        assert len(pairs) == 1 and not errors
        assert len(told) == 1 and f"{name} may be meant as scans" in told[0]

    @pytest.mark.parametrize("find", [find_pairs, find_t2w_alone])
    def test_a_folder_of_dicom_files_is_known_as_such(self, tmp_path, find):
        (tmp_path / "series").mkdir()
        (tmp_path / "series" / "IM0001").write_bytes(bytes(128) + b"DICM")
        with pytest.raises(BabyAIError, match="but DICOM files; give each infant's folders"):
            find(tmp_path)

    def test_links_to_folders_are_followed_once(self, tmp_path):
        folder = self.folder(tmp_path / "data", "sub-1_T1w.nii.gz", "more/sub-1_T2w.nii.gz")
        (folder / "more" / "loop").symlink_to(folder)
        (self.folder(tmp_path / "elsewhere", "sub-2_T1w.nii.gz", "sub-2_T2w.nii.gz")).rename(tmp_path / "moved")
        (folder / "sub-2").symlink_to(tmp_path / "moved")
        pairs, errors = find_pairs(folder)
        assert [pair.name for pair in pairs] == ["sub-1_T2w", "sub-2_T2w"] and not errors

    def test_result_names(self, tmp_path):
        folder = self.folder(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_acq-axial4mm_T2w.nii.gz")
        (pair,), _ = find_pairs(folder)
        expected = "sub-1_acq-axial4mm_desc-isotropic_T2w.nii.gz"
        assert str(result_path(pair, "out")) == f"out/sub-1/anat/{expected}"
        assert str(result_path("x/sub-1_acq-axial4mm_T2w.nii", "out")) == f"out/{expected}"
        assert entities_of(expected) == {"sub": "1", "acq": "axial4mm", "desc": "isotropic", "suffix": "T2w"}


@pytest.mark.parametrize(
    ("name", "result", "original", "own"),
    [
        ("sub-1_T2w.nii.gz", False, True, ""),
        ("sub-1_acq-tse_T2w.nii.gz", False, True, "tse"),
        ("sub-1_acq-tseaxial4mm_T2w.nii.gz", False, False, "tse"),
        ("sub-1_acq-coronal2p5mm_T2w.nii", False, False, ""),
        ("sub-1_desc-isotropic_T2w.nii.gz", True, False, ""),
        ("sub-1_acq-tse_desc-uncertainty_T2w.nii.gz", True, False, "tse"),
        ("sub-1_desc-preproc_T2w.nii.gz", False, True, ""),
    ],
)
def test_what_a_scan_is_by_its_name(name, result, original, own):
    assert (is_result(name), is_original(name), own_acquisition(name)) == (result, original, own)


def test_a_file_is_no_data_folder(tmp_path):
    (tmp_path / "sub-1_T1w.nii.gz").touch()
    with pytest.raises(BabyAIError, match="is a file; check --data-dir"):
        find_pairs(tmp_path / "sub-1_T1w.nii.gz")
