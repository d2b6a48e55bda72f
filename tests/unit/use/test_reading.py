"""What predict.py is asked to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.recordings import Layout
from common.errors import InputError
from common.use.reading import find, read_recording
from tests.conftest import ROOT


def test_a_recording_that_is_not_there_is_a_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nofile\.csv: no such file or folder; --sessions names"):
        find(tmp_path / "nofile.csv", "s", None)


def test_dates_become_seconds_since_1970_utc_as_the_page_says(tmp_path: Path) -> None:
    for zone, start in (("", 60.0), ("+01:00", -3540.0)):
        rows = [f"1970-01-01 00:01:00.{tenth}{zone},{tenth}" for tenth in range(10)]
        (tmp_path / "a.csv").write_text("\n".join(["time,ax", *rows]) + "\n")
        (recording,) = find(tmp_path / "a.csv", "s", None)
        layout = Layout("time", "s", "label", ("ax",), 10.0, None)
        read = read_recording(recording, layout, {"channels": ["ax"]})
        assert read.session.start_s == start
    page = (ROOT / "docs/predict_and_export.md").read_text()
    assert "in seconds since 1970 UTC (a date without a zone is taken as UTC)" in page
