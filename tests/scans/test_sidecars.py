"""Sidecars, what they inherit, and what they may be written like."""

import json

import pytest

from func.errors import BabyAIError, collect_warnings
from func.scans.files import save_json
from func.scans.sidecars import read_sidecar


class TestSidecars:
    def test_round_trip(self, tmp_path):
        save_json(tmp_path / "sub-ä_T2w.json", {"SliceThickness": 4, "note": "ä"})
        assert read_sidecar(tmp_path / "sub-ä_T2w.nii.gz") == {"SliceThickness": 4, "note": "ä"}
        assert read_sidecar(tmp_path / "other.nii.gz") == {}

    @pytest.mark.parametrize("content", [b"[]", b"{", b"\xff\xfe{", b"[" * 100_000, json.dumps("x").encode()])
    def test_what_is_not_an_object_is_refused(self, tmp_path, content):
        (tmp_path / "scan.json").write_bytes(content)
        with pytest.raises(BabyAIError, match="not a JSON object"):
            read_sidecar(tmp_path / "scan.nii.gz")

    @pytest.mark.parametrize(
        "content",
        [
            '{"SliceThickness": 4, "Site": "Malmö"}'.encode("latin-1"),
            b'\xef\xbb\xbf{"SliceThickness": 4, "Site": "Malm\xc3\xb6"}',
            '{"SliceThickness": 4, "Site": "Malmö"}'.encode("utf-16"),
            b'{"SliceThickness": 4, "Site": "Malm\xf6", "Comment": "two\nlines\tand a tab"}',
            '{"SliceThickness": 4, "Site": "Malmö", "List": [1, 2, ],\n}\n'.encode(),
        ],
    )
    def test_odd_ways_to_write_json_are_read_with_a_warning(self, tmp_path, content):
        (tmp_path / "scan.json").write_bytes(content)
        with collect_warnings() as told:
            sidecar = read_sidecar(tmp_path / "scan.nii.gz")
        assert sidecar["SliceThickness"] == 4 and sidecar["Site"] == "Malmö"
        assert len(told) == 1 and "scan.json is not clean JSON" in told[0]

    def test_where_json_is_broken_is_told(self, tmp_path):
        (tmp_path / "scan.json").write_text('{\n  "SliceThickness": 4\n  "Site": 1}\n')
        with pytest.raises(BabyAIError, match=r"line 3"):
            read_sidecar(tmp_path / "scan.nii.gz")

    @pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 512])
    def test_an_empty_file_states_nothing(self, tmp_path, content):
        (tmp_path / "scan.json").write_bytes(content)
        with collect_warnings() as told:
            assert read_sidecar(tmp_path / "scan.nii.gz") == {}
        assert len(told) == 1

    def test_a_dead_link_is_named_and_left_out(self, tmp_path):
        save_json(tmp_path / "T2w.json", {"SliceThickness": 4})
        (tmp_path / "sub-01_T2w.json").symlink_to(tmp_path / ".git" / "annex" / "objects" / "x")
        with collect_warnings() as told:
            assert read_sidecar(tmp_path / "sub-01_T2w.nii.gz") == {"SliceThickness": 4}
        assert len(told) == 1 and str(tmp_path / "sub-01_T2w.json") in told[0]


class TestInheritance:
    """BIDS 1.10: what applies to more files lies higher or has fewer entities; what is nearer overrides."""

    def dataset(self, root, sidecars, scan="sub-01/ses-1/anat/sub-01_ses-1_acq-ax_run-1_T2w.nii.gz", described=True):
        if described:
            save_json(root / "dataset_description.json", {"Name": "x"})
        for number, name in enumerate(sidecars):
            save_json(root / name, {"Nearest": name, f"From{number}": name})
        (root / scan).parent.mkdir(parents=True, exist_ok=True)
        return root / scan

    @pytest.mark.parametrize("described", [True, False])
    def test_from_the_root_down_to_the_scan(self, tmp_path, described):
        names = [
            "T2w.json",
            "acq-ax_T2w.json",
            "sub-01/sub-01_T2w.json",
            "sub-01/ses-1/anat/sub-01_ses-1_T2w.json",
            "sub-01/ses-1/anat/sub-01_ses-1_acq-ax_run-1_T2w.json",
        ]
        for count in range(1, 6):
            scan = self.dataset(tmp_path / str(count), names[:count], described=described)
            sidecar = read_sidecar(scan)
            assert sidecar["Nearest"] == names[count - 1]
            assert [sidecar[f"From{number}"] for number in range(count)] == names[:count]

    def test_a_path_relative_to_a_folder_of_the_dataset_inherits_the_same(self, tmp_path, monkeypatch):
        scan = self.dataset(tmp_path, ["T2w.json", "sub-01/sub-01_T2w.json"])
        monkeypatch.chdir(scan.parent)
        assert read_sidecar(scan.name) == read_sidecar(scan) == read_sidecar(f"../anat/{scan.name}")
        assert read_sidecar(scan.name)["Nearest"] == "sub-01/sub-01_T2w.json"

    @pytest.mark.parametrize(
        "other",
        [
            "T1w.json",
            "PDT2w.json",
            "acq-sag_T2w.json",
            "sub-02/sub-02_T2w.json",
            "sub-01/ses-1/anat/sub-01_ses-1_acq-ax_run-1_desc-x_T2w.json",
            "../T2w.json",
            "sub-01/ses-2/T2w.json",
        ],
    )
    def test_what_is_of_other_scans_does_not_apply(self, tmp_path, other):
        scan = self.dataset(tmp_path / "data", [other])
        assert read_sidecar(scan) == {}

    def test_a_flat_folder_and_names_that_are_not_bids(self, tmp_path):
        assert read_sidecar(self.dataset(tmp_path / "a", ["T2w.json"], "sub-01_T2w.nii.gz", False))["Nearest"]
        assert read_sidecar(self.dataset(tmp_path / "b", ["b.json"], "a_b.nii.gz", False)) == {}
        assert read_sidecar(self.dataset(tmp_path / "c", ["a_b.json"], "a_b.nii.gz", False))["Nearest"]

    def test_a_derivative_dataset_does_not_inherit_from_the_raw_one(self, tmp_path):
        scan = self.dataset(tmp_path, ["T2w.json"], "derivatives/prepared/sub-01/anat/sub-01_T2w.nii.gz")
        assert read_sidecar(scan) == {}

    def test_a_relative_path(self, tmp_path, monkeypatch):
        scan = self.dataset(tmp_path, ["T2w.json"])
        monkeypatch.chdir(scan.parent)
        assert read_sidecar(scan.name)["Nearest"] == "T2w.json"
