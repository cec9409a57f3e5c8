"""Writing is all or nothing."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from func.errors import BabyAIError
from func.scans import files
from func.scans.files import atomic, save_json


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, fault):
    (tmp_path / "file").write_text("old")
    with pytest.raises(fault), atomic(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise fault
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BabyAIError, match="could not be written"):
        save_json(tmp_path / "file" / "sub-01.json", {})


def test_a_folder_removed_meanwhile_is_told(tmp_path):
    with pytest.raises(BabyAIError, match="removed meanwhile"), atomic(tmp_path / "out" / "file"):
        shutil.rmtree(tmp_path / "out")


def test_leftovers_of_killed_processes_go_when_the_file_is_written_again(tmp_path):
    killed = (
        "import os, sys; from func.scans.files import atomic\n"
        "with atomic(sys.argv[1]) as temporary: temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, tmp_path / "a[1].json"], cwd=files.__file__.rsplit("/", 3)[0])
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".part-")
    with atomic(tmp_path / "a[1].json") as other:
        other.write_text("{}")
        save_json(tmp_path / "a[1].json", {})
        assert other.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a[1].json"]


def test_what_cannot_be_removed_hinders_nothing(tmp_path):
    (tmp_path / f".part-{socket.gethostname()}-0999999999-folder").mkdir()
    save_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").exists()


def test_the_longest_names_can_be_written(tmp_path):
    name = "é" * 120 + ".json"
    save_json(tmp_path / name, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name != "posix", reason="signals and fork are POSIX")
def test_a_stop_at_any_moment_leaves_nothing(tmp_path):
    stopped = (
        "import itertools, os, signal, sys, time\n"
        "from func.commands import _prepare_worker, _run\n"
        "from func.scans.files import save_json\n"
        "def write_for_ever(folder):\n"
        "    for number in itertools.cycle(range(9)): save_json(f'{folder}/{number}.json', {})\n"
        "for moment in range(40):\n"
        "    if not (process := os.fork()):\n"
        "        _prepare_worker()\n"
        "        _run(write_for_ever, sys.argv[1])\n"
        "    time.sleep(0.01 + moment / 7000)\n"
        "    os.kill(process, signal.SIGTERM)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143\n"
        "    assert not [name for name in os.listdir(sys.argv[1]) if name.startswith('.')], moment\n"
    )
    subprocess.run([sys.executable, "-c", stopped, tmp_path], cwd=files.__file__.rsplit("/", 3)[0], check=True)
