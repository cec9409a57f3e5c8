"""What a result was made from is told by the files as they are now."""

from func.scans.provenance import digest, fingerprint


def test_a_file_written_anew_is_another_one(tmp_path):
    path, found = tmp_path / "scan.nii", []
    for content in (b"one scan", b"another!", b"one scan"):
        path.write_bytes(content)
        found.append((digest(path), fingerprint(path)))
    assert found[0] == found[2] != found[1]
