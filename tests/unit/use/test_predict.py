"""Predictions from windows to scores, with a model that is played."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.data.recordings import Layout
from common.errors import Conflict, InputError
from common.paths import CODE_ROOT, Paths
from common.use import model as finished
from common.use import reading
from common.use.output import refuse_place
from common.use.predict import Rules, agree, predict, scores
from common.use.reading import ReadSession
from tests.unit.data.made_sessions import RATE, session

NEEDED: dict[str, Any] = {
    "channels": ["ax", "ay"],
    "sampling_rate_hz": RATE,
    "window_size": 20,
    "stride_seconds": 1.0,
    "labelling": {"min_overlap": 0.5},
}


def played(**more: Any) -> Any:
    """A model that is sure of windows whose first sample is one of 100 to 199."""

    def probabilities(blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        first = np.concatenate([block[:, 0, 0] for block in blocks])
        return np.where((first >= 100) & (first < 200), 0.75, 0.25).astype(np.float32)

    options = SimpleNamespace(window_size=20)
    fields = {"name": "m", "options": options, "input": NEEDED, "threshold_tuned": 0.9} | more
    return SimpleNamespace(probabilities=probabilities, **fields)


def predicted(rules: Rules | None = None, **more: Any) -> Any:
    """A minute of which 10 to 20 s are a bout, on a clock that does not begin at 0."""
    one = session(seconds=60, bouts=[(10, 22)], start_s=1000.0, **more)
    return predict([played()], ReadSession(one, True, ()), NEEDED, rules or Rules())


def test_episodes_and_annotations_are_on_one_clock() -> None:
    found = predicted()
    (episode,) = found.predictions[0].episodes
    assert episode.interval == (1010.0, 1021.0)
    record = scores([found], 0)
    assert record
    assert record["event_scores_iou_0.5"]["recall"] == 1.0


def test_windows_of_unknown_label_are_not_scored() -> None:
    known, unknown = (scores([predicted(unknown=u)], 0) for u in ((), [(40, 45)]))
    assert known
    assert unknown
    assert (known["windows"], unknown["windows"]) == (59, 53)
    assert known["positives"] == unknown["positives"]


def test_events_are_held_against_annotations_where_the_label_is_known() -> None:
    """As in the report: not against joined bouts, nor where nothing was recorded or is excluded."""
    bouts = [(10, 15), (15, 22), (45, 48)]
    one = session(seconds=60, bouts=bouts, gaps=[(42, 52)], unknown=[(19, 30)], start_s=1000.0)
    found = predict([played()], ReadSession(one, True, ()), NEEDED, Rules())
    record = scores([found], 0)
    assert record
    events = record["event_scores_any_overlap"]
    assert (events["bouts"], events["merged_bouts"]) == (2, 2)
    assert [e.interval for e in found.predictions[0].episodes] == [(1010.0, 1021.0)]
    assert [e.interval for e in found.predictions[0].scored] == [(1010.0, 1019.0)]
    assert events["recorded_hours"] == pytest.approx((19 + 12 + 8) / 3600)


def test_the_tuned_threshold_is_the_models() -> None:
    assert predicted(Rules("tuned")).predictions[0].episodes == []
    with pytest.raises(InputError, match="m has no tuned threshold"):
        Rules("tuned").threshold_of(played(threshold_tuned=None))


def test_a_given_stride_is_taken() -> None:
    starts = predicted(Rules(stride_seconds=0.5)).predictions[0].starts_s
    assert np.diff(starts).tolist() == pytest.approx([0.5] * (len(starts) - 1))


def test_models_that_need_other_recordings_are_not_used_together() -> None:
    other = played(name="n", input={**NEEDED, "channels": ["ay", "ax"]})
    with pytest.raises(InputError, match=r"n needs channels .* m needs .*: predict with one"):
        agree([played(), other], Rules())
    slower = played(name="n", input={**NEEDED, "stride_seconds": 2.0})
    with pytest.raises(InputError, match=r"n needs stride_seconds 2.0, m .* --stride_seconds$"):
        agree([played(), slower], Rules())
    assert agree([played(), slower], Rules(stride_seconds=2.0)) == NEEDED
    other = played(name="n", input={**NEEDED, "labelling": {"min_overlap": "any"}})
    with pytest.raises(InputError, match=r"n needs labelling .*any.*: predict with one at a time$"):
        agree([played(), other], Rules())


def test_windows_come_in_batches_whole_and_in_order() -> None:
    x = torch.randn(17, 2, 5)
    blocks = [part.numpy() for part in x.split([5, 7, 1, 4])]
    found = list(finished._batches(blocks, 4))
    assert [len(part) for part in found] == [4, 4, 4, 4, 1]
    assert torch.equal(torch.cat(found), x)


def read(folder: Path, columns: Sequence[str], rate: float = RATE) -> ReadSession:
    times = np.arange(200) / rate
    values = {"time": times, "ax": np.sin(times), "ay": np.cos(times), "az": times * 0}
    lines = [",".join(columns)]
    lines += [",".join(str(values[name][row]) for name in columns) for row in range(200)]
    path = folder / "a.csv"
    path.write_text("\n".join(lines) + "\n")
    (recording,) = reading.find(path, "s", None)
    layout = Layout("time", "s", "label", ("ax", "ay"), RATE, None)
    return reading.read_recording(recording, layout, NEEDED)


def test_channels_are_taken_by_name_in_the_order_of_the_model(tmp_path: Path) -> None:
    one, other = (
        read(tmp_path, columns).session.values[:]
        for columns in (("time", "ax", "ay"), ("time", "az", "ay", "ax"))
    )
    assert np.array_equal(one, other)
    with pytest.raises(InputError, match=r"a.csv: the model needs the channels ax, ay; ay is not"):
        read(tmp_path, ("time", "ax", "az"))


def test_a_recording_far_slower_than_the_models_rate_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path, ("time", "ax", "ay"), rate=8).notes
    with pytest.raises(InputError, match="sampled at 4 Hz, but the model learnt from 10 Hz"):
        read(tmp_path, ("time", "ax", "ay"), rate=4)


def test_a_record_that_is_not_of_its_network_is_refused() -> None:
    network: Any = SimpleNamespace(mean=torch.zeros(2))
    options: Any = SimpleNamespace(window_size=20)
    record = {**NEEDED, "units": ["g", "g"], "window_seconds": 2.0}
    assert finished._form(record, network, options) == record
    assert finished._form(None, network, options) is None
    for lie in ({"channels": ["ax"]}, {"window_size": 40}, {"stride_seconds": 0.0}, {"units": 1}):
        with pytest.raises(ValueError, match=r"takes|greater than 0|valid list"):
            finished._form({**record, **lie}, network, options)


def test_a_note_says_how_long_the_gaps_are_together() -> None:
    def notes(*gaps: tuple[float, float]) -> tuple[str, ...]:
        one = session(seconds=900, gaps=gaps)
        return predict([played()], ReadSession(one, True, ()), NEEDED, Rules()).notes

    assert notes() == ()
    assert notes((100, 340)) == ("1 gap (4 min 00 s), in which nothing is predicted",)
    assert notes((20, 50), (100, 112.5)) == (
        "2 gaps (42.5 s together), in which nothing is predicted",
    )


@pytest.mark.parametrize("name", ["common", "docs/new", "tests/unit"])
def test_predictions_are_not_put_into_the_code(tmp_path: Path, name: str) -> None:
    own = name.split("/")[0]
    with pytest.raises(Conflict, match=rf"{name}: {own}/ is the project's own; give a folder"):
        refuse_place(CODE_ROOT / name, tmp_path / "new.csv", Paths(tmp_path))
    refuse_place(tmp_path / own, tmp_path / "new.csv", Paths(tmp_path))
