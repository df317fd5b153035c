"""Progress in lines, where stderr is no terminal."""

import pytest

from recotransfer import progress
from recotransfer.progress import counted, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """The time, in seconds, which only tests move on."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_line_is_written_every_few_seconds_and_at_the_end(clock, capsys):
    with progress_bar(2000, desc="fitting") as bar:
        for _ in range(12):
            clock[0] += 1
            bar.update(100)

        bar.set_postfix_str("nearly there")
        clock[0] += 1
        bar.update(800)

    assert lines(capsys) == [
        "fitting: 500 of 2,000 after 5 s",
        "fitting: 1,000 of 2,000 after 10 s",
        "fitting: 2,000 of 2,000 after 13 s, nearly there",
    ]


def test_lines_of_a_long_job_become_rarer(clock, capsys):
    for _ in counted(range(3600), desc="fitting"):
        clock[0] += 1

    assert 60 < len(lines(capsys)) < 120


def test_short_and_hidden_jobs_write_nothing(clock, capsys):
    for options in ({}, {"shown": False}, {"delay": 100}):
        for _ in counted(range(3), desc="fitting", **options):
            clock[0] += 4 if options else 1

    assert lines(capsys) == []


def test_the_last_line_is_not_written_twice(clock, capsys):
    with progress_bar(2, desc="fitting") as bar:
        clock[0] += 6
        bar.update(2)

    assert lines(capsys) == ["fitting: 2 of 2 after 6 s"]


def test_a_count_that_is_set_is_shown_when_refreshed(clock, capsys):
    with progress_bar(9, desc="fitting") as bar:
        clock[0] += 6
        bar.n = 4
        bar.refresh()

    assert lines(capsys) == ["fitting: 4 of 9 after 6 s"]
