"""What predict.py is asked to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import InputError
from common.use.reading import find


def test_a_recording_that_is_not_there_is_a_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nofile\.csv: no such file or folder; --sessions names"):
        find(tmp_path / "nofile.csv", "s", None)
