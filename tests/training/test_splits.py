"""Who is trained on, chosen by and tested on."""

import pytest

from func.errors import BabyAIError
from func.training.splits import PARTS, check_split, read_split, split_subjects, wanted_subjects, write_split


def test_no_subject_is_in_two_parts():
    labels = [f"{number:02d}" for number in range(60)]
    parts = split_subjects(labels, seed=1)
    assert [list(parts.values()).count(part) for part in PARTS] == [42, 9, 9]
    assert sorted(parts) == labels
    assert split_subjects(reversed(labels), seed=1) == parts
    assert split_subjects(labels, seed=2) != parts


def test_a_few_subjects_are_split_too():
    assert sorted(split_subjects("abc", 0).values()) == ["test", "train", "validation"]
    with pytest.raises(BabyAIError, match="more"):
        split_subjects("ab", 0)


def test_a_split_is_read_as_it_was_written(tmp_path):
    parts = {"01": "train", "02": "test", "03": "validation", "04": "test"}
    write_split(tmp_path / "split.csv", parts)
    assert read_split(tmp_path / "split.csv") == parts
    wanted = wanted_subjects(tmp_path / "split.csv", "test")
    assert [label for label in parts if wanted(label)] == ["02", "04"]
    assert all(map(wanted_subjects(None, "test"), parts))


def test_a_spreadsheet_programme_may_have_saved_it(tmp_path):
    path = tmp_path / "split.csv"
    path.write_bytes("\ufeffsubject,part\r\nsub-01,train\r\n02,test\r\n".encode())
    assert read_split(path) == {"01": "train", "02": "test"}


@pytest.mark.parametrize(
    "text", [None, "", "name,part\n01,train\n", "subject,part\n01,trian\n", "subject\n01\n", "subject;part\n"]
)
def test_what_is_no_split_is_refused(tmp_path, text):
    path = tmp_path / "split.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BabyAIError, match=r"split\.csv (cannot be read \(No such|is no split|names a part 'trian')"):
        wanted_subjects(path, "test")


def test_a_split_must_fit_the_data():
    check_split({"01": "train"}, ["01", "02"])
    with pytest.raises(BabyAIError, match="sub-09"):
        check_split({"01": "train", "09": "test"}, ["01", "02"])
    with pytest.raises(BabyAIError, match="no training subject"):
        check_split({"01": "test"}, ["01"])
