"""Warnings: one line on the console each, and kept for whoever collects them."""

import threading

from func.errors import collect_warnings, warn


def test_a_warning_is_shown_and_kept_by_the_innermost_block(capsys):
    warn("nobody collects this.")
    with collect_warnings() as outer:
        warn("first.")
        with collect_warnings() as inner:
            warn("second.")
        warn("third.")
    warn("nobody collects this either.")
    assert outer == ["first.", "third."] and inner == ["second."]
    shown = capsys.readouterr()
    assert shown.err.splitlines()[1:4] == ["WARNING first.", "WARNING second.", "WARNING third."] and shown.out == ""


def test_a_block_shows_and_keeps_the_same_warning_once(capsys):
    with collect_warnings() as collected:
        for _ in range(2):
            warn("this T1w is odd.")
    assert collected == ["this T1w is odd."]
    assert capsys.readouterr().err.splitlines() == ["WARNING this T1w is odd."]


def test_threads_do_not_collect_each_others_warnings():
    with collect_warnings() as collected:
        thread = threading.Thread(target=warn, args=("another scan is odd.",))
        thread.start()
        thread.join()
        warn("this scan is odd.")
    assert collected == ["this scan is odd."]
