"""The page in a real browser."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.report.made import Made, quick, timed_predictions

NASTY = [
    "<script>window.ran=1<script>",
    '"><img src=x onerror=window.ran=1>',
    "O'Brien & $co$ {{7*7}}",
    "zoe",
    "Ümit 李",
    "a;b,c",
    "_under_score*",
]


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report about people with hostile names."""
    made = Made(tmp_path_factory.mktemp("page") / "project", NASTY)
    with quick():
        for place, person in enumerate(NASTY):
            for fraction in (0.1, 1.0):
                times = timed_predictions(3.0, 1.2, place, length=40)
                made.run(
                    person,
                    base=0.7 + 0.01 * place,
                    fine=0.9 - 0.02 * place,
                    target_data_pct=fraction,
                    windows=int(300 * fraction),
                    predictions=times,
                )
        made.plan(NASTY[0], prefix="<b>gone<b>")
        made.log(
            {
                "event": "failed",
                "job": f"<b>gone<b>/fold0_{NASTY[0]}",
                "error": "<script>window.ran=1</script>",
                "log": "l",
            }
        )
        made.write_jobs()
        (made.root / "experiments" / "<i>empty<i>").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "report.py")],
        cwd=made.root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return made.root / "report" / "index.html"


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The page, freshly loaded, with logs of its own."""
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    return browser


def visible(browser: Any) -> list[str]:
    """Participants of the rows that are shown, in order."""
    script = (
        "return [...document.querySelectorAll('#experiments tbody tr')].filter(r =>"
        " !r.hidden).map(r => r.cells[1].textContent)"
    )
    return list(browser.execute_script(script))


def column(browser: Any, heading: str) -> list[str]:
    """What a column shows, in order."""
    script = (
        "const i = [...document.querySelectorAll('#experiments th')].findIndex(h => h.textContent"
        " === arguments[0]);return [...document.querySelectorAll('#experiments tbody tr')].filter(r"
        " => !r.hidden).map(r => r.cells[i].textContent)"
    )
    return list(browser.execute_script(script, heading))


def click(browser: Any, heading: str) -> None:
    """Click the heading of a column."""
    browser.find_element(
        "xpath", f"//section[@id='experiments']//th/button[text()='{heading}']"
    ).click()


def type_filter(browser: Any, heading: str, text: str) -> None:
    """Type into a column's filter."""
    field = browser.find_element(
        "css selector", f"#experiments input[aria-label='Filter {heading}']"
    )
    field.clear()
    field.send_keys(text)


def test_no_console_error_and_no_request_leaves_the_file(opened: Any, page: Path) -> None:
    opened.execute_script(
        "window.scrollTo(0, document.body.scrollHeight); location.hash = '#curves-0'"
    )
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls[0] == page.as_uri()
    assert [url for url in urls[1:] if not url.startswith("data:")] == []


def test_names_with_scripts_and_quotes_are_shown_and_not_run(opened: Any) -> None:
    assert opened.execute_script("return window.ran") is None
    assert set(visible(opened)) == set(NASTY)
    assert (
        opened.execute_script(
            "return document.querySelectorAll('img[src=x], #experiments script:not([type])').length"
        )
        == 0
    )
    text = opened.find_element("tag name", "body").get_attribute("textContent")
    assert "<i>empty<i>" in text
    assert "<script>window.ran=1</script>" in text  # the failed job's error
    assert "{{7*7}}" in text


def test_an_injected_script_would_not_run_either(opened: Any) -> None:
    # The page's policy knows the one script by its hash.
    opened.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s)"
    )
    assert opened.execute_script("return window.ran") is None


def test_every_image_is_drawn(opened: Any) -> None:
    broken = (
        "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0 ||"
        " !i.alt).length"
    )
    assert opened.execute_script(broken) == 0
    assert opened.execute_script("return document.images.length") == 8


def test_headings_sort_numbers_as_numbers_both_ways(opened: Any) -> None:
    click(opened, "training windows")
    assert column(opened, "training windows") == ["30"] * 7 + ["300"] * 7
    click(opened, "macro F1")
    assert column(opened, "macro F1") == sorted(column(opened, "macro F1"))
    click(opened, "macro F1")
    shown = column(opened, "macro F1")
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == ".90"
    heading = opened.find_element("xpath", "//th[button[text()='macro F1']]")
    assert heading.get_attribute("aria-sort") == "descending"


def test_headings_sort_names_as_people_read_them(opened: Any) -> None:
    click(opened, "participant")
    shown = visible(opened)
    assert shown[::2] == opened.execute_script(
        "return arguments[0].sort((a, b) => a.localeCompare(b, undefined, {numeric: true}))",
        list(NASTY),
    )


def test_filters_take_text_and_comparisons_and_work_together(opened: Any) -> None:
    type_filter(opened, "participant", "O'BRIEN")
    assert visible(opened) == [NASTY[2]] * 2
    type_filter(opened, "fraction", "<0.5")
    assert column(opened, "fraction") == ["10 %"]
    assert opened.find_element("id", "shown").text == "1 of 14 experiments"
    type_filter(opened, "participant", "nobody")
    assert visible(opened) == []


def test_a_row_links_to_its_curves(opened: Any) -> None:
    panel = opened.find_element("id", "panel")
    assert not panel.is_displayed()
    link = opened.find_element("css selector", "#experiments tbody tr:last-child a")
    opened.execute_script("arguments[0].click()", link)
    assert panel.is_displayed()
    assert opened.execute_script("return location.hash") == link.get_attribute("hash")
    assert "Ended by patience" in panel.text
    assert len(panel.find_elements("css selector", "svg polyline")) == 3


def test_the_headline_comes_first(opened: Any) -> None:
    first = opened.find_element("css selector", "p")
    assert first.text.startswith(
        "Fine-tuning on a median of 30 labelled training windows (1 min 00 s)"
    )
    assert first.location["y"] < 120
