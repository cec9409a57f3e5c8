"""The table of all runs, and the locks that guard it."""

import errno
import fcntl
import subprocess
import sys

import pytest

from func.training import run_folder
from func.training.results import add_row, read_table
from func.training.run_folder import locked


def test_rows_of_different_versions_share_a_table(tmp_path):
    table = tmp_path / "training_info.csv"
    add_row(table, {"run": "a", "old": 1})
    add_row(table, {"run": "b", "new": "x, y"})
    add_row(table, {"run": "a", "old": 2})
    rows = read_table(table).to_dict("records")
    assert rows == [{"run": "b", "new": "x, y", "old": ""}, {"run": "a", "new": "", "old": "2"}]


def test_cells_stay_as_they_were_written(tmp_path):
    table = tmp_path / "training_info.csv"
    add_row(table, {"run": "007", "rate": 1e-4, "clip": float("inf"), "network": {}, "note": "NA"})
    add_row(table, {"run": "8"})
    assert read_table(table).to_dict("records")[0] == {
        "run": "007",
        "rate": "0.0001",
        "clip": "inf",
        "network": "{}",
        "note": "NA",
    }


def test_a_lock_keeps_another_process_out(tmp_path):
    path = tmp_path / "lock"
    line = f"import fcntl; fcntl.flock(open({str(path)!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with locked(path):
        assert subprocess.run([sys.executable, "-c", line], capture_output=True).returncode == 1
    assert subprocess.run([sys.executable, "-c", line], capture_output=True).returncode == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_the_work_is_done_without(tmp_path, monkeypatch, capsys, number):
    def no_locks(file, operation):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    add_row(tmp_path / "training_info.csv", {"run": "a"})
    assert list(read_table(tmp_path / "training_info.csv")["run"]) == ["a"]
    assert "has no file locks" in capsys.readouterr().err


def test_other_faults_of_a_lock_are_raised(tmp_path, monkeypatch):
    def broken(file, operation):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(run_folder.fcntl, "flock", broken)
    with pytest.raises(OSError, match="broken"), locked(tmp_path / "lock"):
        pass
