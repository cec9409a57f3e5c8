"""Whatever happens to a run, nothing partial is left under a final name, and the next run does just what is missing."""

import errno
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import inference
import stand_in
from func.errors import BabyAIError
from func.scans import nifti
from func.scans.bids import find_pairs, result_path
from func.scans.nifti import read_volume
from stand_in import SHAPE, write_subject

STAND_IN = Path(stand_in.__file__)


@pytest.fixture
def data(tmp_path):
    for number in range(1, 5):
        write_subject(tmp_path / "data", f"0{number}", seed=number)
    return tmp_path / "data"


@pytest.fixture
def in_process(monkeypatch):
    """`inference.main` on the stand-in network."""
    stand_in.put_in(monkeypatch, inference)
    return lambda data, output, *more: inference.main(["--data-dir", str(data), "--output-dir", str(output), *more])


def command(data, output, where="nowhere", name="-", *more):
    arguments = ["--data-dir", str(data), "--output-dir", str(output), *more]
    return [sys.executable, str(STAND_IN), where, name, *arguments]


def run(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, **options)


def assert_whole(data, output, expected=4):
    """Every result that is there is right; returns their stamps, to see later what was touched."""
    results = sorted(path for path in output.rglob("*.nii.gz") if not path.name.startswith("."))
    assert len(results) == expected
    sources = {result_path(pair, output): pair.t2 for pair in find_pairs(data)[0]}
    for result in results:
        np.testing.assert_array_equal(read_volume(result).get_fdata(), 2 * nib.load(sources[result]).get_fdata())
        assert result.with_name(result.name.replace(".nii.gz", ".json")).is_file()
    return {path: path.stat().st_mtime_ns for path in results}


@pytest.fixture
def assert_second_run_completes(in_process, capsys):
    """Runs once more, and sees that only what was missing is done."""

    def check(data, output, before):
        capsys.readouterr()
        code = in_process(data, output)
        told = capsys.readouterr()
        assert code == 0, told.err
        after = assert_whole(data, output)
        assert {path: after[path] for path in before} == before
        kept = f", {len(before)} already there" if before else ""
        assert f"{4 - len(before)} reconstructed{kept}, 0 failed" in told.out
        assert not list(output.rglob(".*")), "leftovers of the killed process"

    return check


@pytest.mark.parametrize("where", ["reading", "computing", "writing"])
def test_killed(data, tmp_path, where, assert_second_run_completes):
    output = tmp_path / "out"
    done = run(data, output, where, "sub-03_T1w" if where == "reading" else "sub-03")
    assert done.returncode == -signal.SIGKILL
    # Reading runs ahead of computing, and writing behind it.
    before = assert_whole(data, output, len(list(output.glob("sub-*.nii.gz"))))
    assert len(before) in {"reading": (0, 1, 2), "computing": (1, 2), "writing": (2,)}[where]
    assert_second_run_completes(data, output, before)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped(data, tmp_path, sent, code, assert_second_run_completes):
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(data, output, "waiting", "sub-03"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "computing" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(sent)
    _, told = process.communicate(timeout=300)
    assert process.returncode == code
    assert told.count("\n") == 1 and told.startswith("Stopped by") and "2 reconstructed" in told
    assert_second_run_completes(data, output, assert_whole(data, output, 2))


def test_disk_full(data, tmp_path, in_process, monkeypatch, capsys, assert_second_run_completes):
    write = nifti._write

    def full(path, image):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(nifti, "_write", lambda path, image: (full if "sub-02" in path.name else write)(path, image))
        assert in_process(data, tmp_path / "out") == 1
    assert "the disk is full" in capsys.readouterr().err
    assert_second_run_completes(data, tmp_path / "out", assert_whole(data, tmp_path / "out", 3))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 KiB; only root may mount one."""
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(tmp_path / "disk")], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_disk_really_full(data, small_disk, in_process, capsys):
    assert in_process(data, small_disk) == 1
    told = capsys.readouterr().err
    written = len(list(small_disk.glob("sub-*.nii.gz")))
    assert 0 < written < 4 and told.count("the disk is full") == 4 - written
    assert_whole(data, small_disk, written)
    assert not list(small_disk.glob(".*"))


def test_output_folder_removed_in_mid_run(data, tmp_path, assert_second_run_completes):
    output = tmp_path / "out"
    done = run(data, output, "removing", "sub-03")
    assert "Traceback" not in done.stderr
    before = assert_whole(data, output, len(list(output.glob("sub-*.nii.gz"))))
    assert len(before) >= 1
    assert_second_run_completes(data, output, before)


@pytest.fixture
def without_privileges():
    """The start of a command whose process may do no more than the permissions of files say, though root runs it."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and there is no setpriv")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]


def test_what_may_not_be_read_costs_no_other_its_result(data, tmp_path, without_privileges):
    for number in (2, 3):
        write_subject(data / f"sub-0{number}", f"0{number}", seed=number)
        for path in data.glob(f"sub-0{number}_*"):
            path.unlink()
    (data / "sub-02").chmod(0o444)  # may be listed, but not entered
    (data / "sub-03" / "sub-03_T2w.nii.gz").chmod(0)
    try:
        done = subprocess.run([*without_privileges, *command(data, tmp_path / "out")], capture_output=True, text=True)
        locked = [*without_privileges, *command(data, data / "sub-02" / "out")]
        refused = subprocess.run(locked, capture_output=True, text=True)
    finally:
        (data / "sub-02").chmod(0o755)
    assert done.returncode == 1 and "2 reconstructed, 2 failed" in done.stdout
    assert [line for line in done.stderr.splitlines() if "sub-0" in line] == [
        f"FAILED sub-02_T2w: {data}/sub-02/sub-02_T1w.nii.gz cannot be read (Permission denied); check the file.",
        f"FAILED {data}/sub-03/sub-03_T2w.nii.gz cannot be read (Permission denied); check the file.",
    ]
    assert refused.returncode == 2 and "out cannot be reached (Permission denied)" in refused.stderr


def test_output_folder_that_is_a_file(data, tmp_path, in_process, capsys):
    (tmp_path / "out").touch()
    assert in_process(data, tmp_path / "out") == 2
    assert "not writable" in capsys.readouterr().err


def test_two_processes_on_one_output_folder(data, tmp_path, assert_second_run_completes):
    output = tmp_path / "out"
    processes = [subprocess.Popen(command(data, output), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    assert_second_run_completes(data, output, assert_whole(data, output))


@pytest.mark.parametrize("name", ["white space", "Åsa 赤ちゃん", 'it\'s "quoted" $HOME;`x`', "-dash", "[1]*?"])
def test_odd_folder_names(tmp_path, in_process, name):
    write_subject(tmp_path / name / name, "01")
    assert in_process(tmp_path / name, tmp_path / f"{name} out") == 0
    assert_whole(tmp_path / name, tmp_path / f"{name} out", 1)


def test_ten_broken_of_two_hundred(tmp_path, in_process, capsys):
    data, output = tmp_path / "data", tmp_path / "out"
    template = write_subject(tmp_path / "template", "0")
    for number in range(200):
        folder = data / f"sub-{number:03d}" / "anat"
        folder.mkdir(parents=True)
        for suffix in ("T1w", "T2w"):
            shutil.copy(template.with_name(f"sub-0_{suffix}.nii.gz"), folder / f"sub-{number:03d}_{suffix}.nii.gz")
    broken = break_ten(data)
    assert in_process(data, output) == 1
    told = capsys.readouterr()
    failures = [line for line in told.err.splitlines() if line.startswith("FAILED")]
    assert len(failures) == 10
    for label in broken:
        assert sum(f"sub-{label}" in line for line in failures) == 1, label
    assert "190 reconstructed, 10 failed" in told.out
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("sub-*.nii.gz")}
    assert len(stamps) == 190

    for label in broken:
        shutil.rmtree(data / f"sub-{label}")
        write_subject(data / f"sub-{label}" / "anat", label)
    assert in_process(data, output) == 0
    assert "10 reconstructed, 190 already there, 0 failed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    # All of them came from the same two volumes, so one right result vouches for its equals.
    assert len(list(output.rglob("sub-*.json"))) == len(list(output.rglob("sub-*.nii.gz"))) == 200
    assert len({path.read_bytes() for path in output.rglob("sub-*.nii.gz")}) == 1
    result = next(output.rglob("sub-*.nii.gz"))
    np.testing.assert_array_equal(nib.load(result).get_fdata(), 2 * nib.load(template).get_fdata())


def break_ten(data: Path) -> list[str]:
    """Ten subjects broken each in its own way."""

    def t2(label):
        return data / f"sub-{label}" / "anat" / f"sub-{label}_T2w.nii.gz"

    def save(label, array, affine=None):
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4) if affine is None else affine), t2(label))

    whole = nib.load(t2("000")).get_fdata()
    t2("003").write_bytes(t2("003").read_bytes()[:-40])
    t2("047").write_bytes(b"this is not NIfTI")
    t2("101").unlink()
    t2("102").with_name("sub-102_T1w.nii.gz").unlink()
    save("190", np.zeros(SHAPE))
    save("120", np.where(whole > 250, np.nan, whole))  # not only outside the head
    save("133", np.stack([whole, whole], -1))
    save("144", whole, np.diag([1, 1, 4, 1]))
    save("155", whole[:-1])
    with gzip.open(t2("199"), "wb", compresslevel=1) as bomb:
        bomb.write(nib.Nifti1Image(whole.astype(np.float32), np.eye(4)).to_bytes() + bytes(2**27))
    return ["003", "047", "101", "102", "190", "120", "133", "144", "155", "199"]


def test_a_header_that_claims_terabytes(data, tmp_path, in_process, capsys):
    path = data / "sub-02_T2w.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    started = time.process_time()
    assert in_process(data, tmp_path / "out") == 1
    assert time.process_time() - started < 5
    assert "32000 x 32000 x 32000" in capsys.readouterr().err
    assert_whole(data, tmp_path / "out", 3)


SCAN = nib.Nifti1Image(np.random.default_rng(0).integers(1, 500, (6, 5, 4)).astype(np.int16), np.eye(4)).to_bytes()
SCAN_2 = nib.Nifti2Image(np.random.default_rng(0).uniform(1, 500, (6, 5, 4)), np.eye(4)).to_bytes()
INTERESTING = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 16, 64, 127, 128, 255])


@st.composite
def damaged_scans(draw):
    """NIfTI files with bytes changed (mostly in the header), cut or grown, compressed or not, and cut once more."""
    content = bytearray(draw(st.sampled_from([SCAN, SCAN_2])))
    size = 540 if len(content) == len(SCAN_2) else 348
    for at, value in draw(st.lists(st.tuples(st.integers(0, size - 1), INTERESTING), max_size=6)):
        content[at] = value
    for at, values in draw(
        st.lists(st.tuples(st.integers(0, size - 8), st.binary(min_size=8, max_size=8)), max_size=2)
    ):
        content[at : at + 8] = values
    content = bytes(content)[: draw(st.one_of(st.none(), st.integers(0, len(content))))]
    content += draw(st.binary(max_size=8))
    if draw(st.booleans()):
        content = gzip.compress(content, compresslevel=1)
        content = content[: draw(st.one_of(st.none(), st.integers(0, len(content))))]
    return content


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "sub-01_T2w.nii.gz"


@settings(max_examples=1000, deadline=60_000, database=None, suppress_health_check=list(HealthCheck))
@given(content=damaged_scans())
def test_only_one_sentence_errors_come_out_of_reading(fuzzed, content):
    fuzzed.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = read_volume(fuzzed)
        except BabyAIError as error:
            assert str(fuzzed) in str(error) and "\n" not in str(error)
        else:
            assert image.ndim == 3 and np.isfinite(image.get_fdata()).all() and np.isfinite(image.affine).all()
