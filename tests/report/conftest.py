"""A report from hand-made experiments, and the system's own browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.report.made import PEOPLE, Made, quick, timed_predictions

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking"
    " --disable-component-update --disable-sync --no-first-run"
)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    """A project folder without experiments yet."""
    with quick():
        yield Made(tmp_path / "project")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, a profile of its own, keeping what it logs and requests."""
    if not CHROMIUM.exists() or not DRIVER.exists():
        pytest.skip(
            "no chromium or chromedriver on this machine: apt-get install chromium chromium-driver"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_window_size(1300, 1000)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven people, three modes, two fractions, two numbers of base participants, times in the
    predictions; one planned experiment is missing.
    """
    made = Made(tmp_path_factory.mktemp("report") / "project")
    annotated: dict[str, bytes] = {}
    with quick():
        for place, person in enumerate(PEOPLE):
            times = timed_predictions(3.0, 1.2, place, length=60)
            annotated[person] = times
            for fraction, gain in ((0.1, 0.05), (1.0, 0.1)):
                for number in (3, 6):
                    made.run(
                        person,
                        base=0.8,
                        fine=0.8 + gain + 0.001 * place,
                        target_data_pct=fraction,
                        n_base_participants=number,
                        predictions=times,
                    )
                made.run(
                    person,
                    base=0.8,
                    fine=0.8 + gain / 2,
                    target_data_pct=fraction,
                    mode="full_fine_tuning",
                    predictions=times,
                )
                made.run(
                    person,
                    fine=0.6 + 3 * gain,
                    target_data_pct=fraction,
                    mode="target_only",
                    predictions=timed_predictions(2.0, None, place, length=60),
                )
        made.plan("anna", lr=0.5, prefix="missing")
        made.annotate(annotated)
        made.write_jobs()
    return made.root


@pytest.fixture(scope="session")
def report(project: Path) -> Path:
    """The report of the whole folder, with a comparison."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "report.py"), "--compare", "mode"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        (
            "Fine-tuning on a median of 31 labelled training windows (1 min 02 s) improves macro F1"
            " by +.053 [+.051, +.055] (medians .80 to .85), better for 7 of 7 people, p = .016."
        ),
        "56 experiments, 1 planned one without a result (missing.csv)",
        "report: report/index.html",
    ]
    return project / "report"
