"""Ages from participants.tsv and sessions.tsv, in any unit, each at its own cost."""

import pytest

from func.errors import BabyAIError
from func.reports.ages import group_of, read_age_groups
from func.scans.files import save_json


@pytest.mark.parametrize(
    ("columns", "line", "units", "group"),
    [
        ("age_months", "0.9", None, "newborn"),
        ("age_months", "6", None, "6 to 11 months"),
        ("age", "0.25", None, "1 to 5 months"),
        ("age", "2", None, "12 months and older"),
        ("age", "89+", None, "12 months and older"),
        ("age", "7", "months", "6 to 11 months"),
        ("age", "30", "weeks", "6 to 11 months"),
        ("age", "12", "Days", "newborn"),
        ("age_weeks", "10", None, "1 to 5 months"),
        ("age_group\tage", "preterm\t0", None, "preterm"),
        ("age_group\tage", "n/a\t0.6", None, "6 to 11 months"),
        ("age", "n/a", None, ""),
        ("age", "NaN", None, ""),
        ("age", "-1", None, ""),
        ("sex", "F", None, ""),
    ],
)
def test_age_groups(tmp_path, columns, line, units, group):
    (tmp_path / "participants.tsv").write_text(f"participant_id\t{columns}\nsub-01\t{line}\n")
    if units:
        save_json(tmp_path / "participants.json", {"age": {"Units": units}})
    assert group_of(read_age_groups(tmp_path), "01", "") == group


def test_an_age_that_is_no_number_costs_only_itself(tmp_path, capsys):
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\tyoung\nsub-02\t0.1\n")
    groups = read_age_groups(tmp_path)
    assert group_of(groups, "01", "") == "" and group_of(groups, "02", "") == "1 to 5 months"
    assert "the age of sub-01, 'young', is no number" in capsys.readouterr().err
    save_json(tmp_path / "participants.json", {"age": {"Units": "fortnights"}})
    assert read_age_groups(tmp_path) == {}
    assert "ages in 'fortnights' are not understood" in capsys.readouterr().err


def test_every_session_has_its_own_age(tmp_path):
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tsession_id\tage_months\nsub-01\tses-a\t0\nsub-01\tses-b\t7\nsub-02\t\t3\n"
    )
    (tmp_path / "sub-03").mkdir()
    (tmp_path / "sub-03" / "sub-03_sessions.tsv").write_text("session_id\tage\nses-1\t6\nses-2\t13\n")
    save_json(tmp_path / "sub-03" / "sub-03_sessions.json", {"age": {"Units": "months"}})
    groups = read_age_groups(tmp_path)
    scans = [("01", "a"), ("01", "b"), ("01", ""), ("02", "x"), ("03", "1"), ("03", "2")]
    assert [group_of(groups, *scan) for scan in scans] == [
        "newborn", "6 to 11 months", "", "1 to 5 months", "6 to 11 months", "12 months and older"
    ]  # fmt: skip


def test_a_damaged_participants_table_is_told(tmp_path):
    (tmp_path / "participants.tsv").write_text("")
    with pytest.raises(BabyAIError, match=r"participants\.tsv cannot be read"):
        read_age_groups(tmp_path)
    (tmp_path / "participants.tsv").write_text("subject\tage\n01\t3\n")
    with pytest.raises(BabyAIError, match="no column participant_id"):
        read_age_groups(tmp_path)
