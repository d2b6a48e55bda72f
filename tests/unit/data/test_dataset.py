"""Data files: everything wrong is one line; subsets; many splits seen as one."""

from __future__ import annotations

import os
import pickle
import threading
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.data import dataset
from common.data.dataset import Windows, open_split, select_subset
from common.data.manifest import require_one_clock
from common.errors import InputError
from tests.conftest import ROOT
from tests.unit.training.plain import write_split

X, Y = torch.randn(6, 2, 9), torch.tensor([0, 1, 0, 0, 1, 0])


@pytest.fixture(autouse=True)
def _fresh():
    torch.set_num_threads(1)
    dataset._checked.clear()


def refused(folder, value, message, **options):
    torch.save(value, folder / "a_train.pt")
    with pytest.raises(InputError, match=message) as caught:
        open_split(folder, "a", "train", **options)
    assert "\n" not in str(caught.value)
    assert "a_train.pt" in str(caught.value)


def test_a_good_file_opens_memory_mapped(tmp_path):
    torch.save((X, Y), tmp_path / "a_train.pt")
    split = open_split(tmp_path, "a", "train", window_size=9, channels=2)
    assert torch.equal(split.x, X)
    assert (len(split), split.positives, split.y.dtype) == (6, 2, torch.float32)
    with open("/proc/self/maps") as maps:
        assert str(tmp_path / "a_train.pt") in maps.read()


@pytest.mark.parametrize("labels", [Y.float(), Y.bool(), Y.to(torch.uint8), Y.double()])
def test_labels_may_be_of_any_number_type(tmp_path, labels):
    torch.save((X, labels), tmp_path / "a_train.pt")
    assert open_split(tmp_path, "a", "train").y.tolist() == Y.tolist()


def nan_in(window):
    x = X.clone()
    x[window, 1, 3] = float("inf")
    return x


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"X": X, "y": Y}, "holds dict, not a tuple"),
        ((X,), "not a tuple"),
        ((X, [0, 1]), "two tensors"),
        ((X.double(), Y), r"X is float64 \[6, 2, 9\]"),
        ((X[0], Y), r"X is float32 \[2, 9\]"),
        ((X, Y[:, None]), r"y is int64 \[6, 1\]"),
        ((X, Y[:4]), "X has 6 windows and y has 4 labels"),
        ((X, Y + 1), r"labels other than 0 and 1: 2 \(2 of 6 windows\)"),
        ((X, torch.full((6,), float("nan"))), "labels other than 0 and 1: nan"),
        ((X[:0], Y[:0]), "the split is empty"),
        ((X[:, :0], Y), "without channels or samples"),
        ((nan_in(4), Y), "NaN or infinite samples, first in window 4"),
    ],
)
def test_wrong_contents_are_named(tmp_path, value, message):
    refused(tmp_path, value, message)


def test_a_wrong_window_size_or_channel_count_is_named(tmp_path):
    refused(
        tmp_path,
        (X, Y),
        "windows have 9 samples, window_size is 3000; give --window_size 9",
        window_size=3000,
    )
    refused(tmp_path, (X, Y), "windows have 2 channels where 6 are needed", channels=6)


def test_missing_folder_and_missing_participant_differ(tmp_path):
    with pytest.raises(InputError, match="no data folder"):
        open_split(tmp_path / "nowhere", "a", "train")
    with pytest.raises(InputError, match="participant a has no such split"):
        open_split(tmp_path, "a", "train")


class Payload:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("form", ["torch", "pickle", "swapped"])
def test_a_pickle_payload_is_refused_and_never_runs(tmp_path, form):
    path, victim = tmp_path / "a_train.pt", tmp_path / "ran"
    if form == "pickle":
        path.write_bytes(pickle.dumps((X, Payload(victim))))
    else:
        torch.save((X, Payload(victim)), path)
    with pytest.raises(InputError, match=r"nothing of it was run|damaged or not a file"):
        open_split(tmp_path, "a", "train")
    assert not victim.exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "a_train.pt"
    torch.save((X, Y), path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = next(
            info.header_offset for info in archive.infolist() if info.filename.endswith("data/0")
        )
    data[at + 200] ^= 1  # one bit of one sample, where torch.load sees nothing wrong
    torch.load(path, weights_only=True)
    path.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "empty": b"",
            "text": b"hello",
            "flipped": bytes(data),
        }[damage]
    )
    with pytest.raises(InputError, match="truncated, damaged or not a file"):
        open_split(tmp_path, "a", "train")


def test_an_unchanged_file_is_read_through_once_and_a_changed_one_again(tmp_path, monkeypatch):
    looked = []
    real = dataset._check_finite
    monkeypatch.setattr(dataset, "is_settled", lambda *_: True)
    monkeypatch.setattr(
        dataset, "_check_finite", lambda path, x: looked.append(path) or real(path, x)
    )
    torch.save((X, Y), tmp_path / "a_train.pt")
    for _ in range(3):
        open_split(tmp_path, "a", "train")
    assert len(looked) == 1
    replacement = tmp_path / "new"
    torch.save((nan_in(0), Y), replacement)
    os.replace(replacement, tmp_path / "a_train.pt")
    with pytest.raises(InputError, match="NaN"):
        open_split(tmp_path, "a", "train")


def test_a_large_data_set_stays_out_of_anonymous_memory(tmp_path):
    """Anonymous memory of a process that reads 160 MB through stays under 64 MB more: it is mapped,
    and shared.
    """
    torch.save((torch.zeros(400, 10, 10_000), torch.arange(400) % 2), tmp_path / "a_train.pt")
    before = anonymous_kilobytes()
    windows = Windows([open_split(tmp_path, "a", "train")])
    peak = 0
    for _ in windows.chunks(torch.randperm(400), [10] * 40):
        peak = max(peak, anonymous_kilobytes() - before)
    assert peak < 64 * 1024


def anonymous_kilobytes() -> int:
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))


def test_large_finite_samples_are_no_error(tmp_path):
    torch.save((torch.full((6, 2, 9), 3e38), Y), tmp_path / "a_train.pt")
    assert len(open_split(tmp_path, "a", "train")) == 6


LABELS = np.array([1 if i % 10 == 0 else 0 for i in range(200)])


@pytest.mark.parametrize("order", ["random", "time"])
def test_subsets_nest_and_hold_each_class(order):
    previous: set[int] = set()
    for fraction in (0.001, 0.01, 0.05, 0.125, 0.25, 0.5, 1.0):
        rows = select_subset(LABELS, fraction, order=order, seed=3)
        assert list(rows) == sorted(set(rows))
        assert previous <= set(rows)
        assert set(LABELS[rows]) == {0, 1}
        previous = set(rows)
    assert len(previous) == 200


def test_the_page_on_grids_says_how_many_windows_a_fraction_is():
    y = torch.tensor([0] * 44 + [1] * 34)
    sizes = [
        np.bincount(y[select_subset(y, fraction, order="random", seed=3)]).tolist()
        for fraction in (0.1, 0.001)
    ]
    assert sizes == [[4, 3], [1, 1]]
    assert len(select_subset(y, 0.001, order="time", seed=3)) == 2  # the first is of class 0
    said = " ".join((ROOT / "docs/grids.md").read_text().split())
    assert "Of 78 windows, 34 of them positive, 0.1 is 4 + 3 = 7 windows" in said
    assert "and 0.001 is 1 + 1 = 2." in said


def test_a_random_subset_is_stratified_and_depends_on_the_seed():
    rows = select_subset(LABELS, 0.5, order="random", seed=3)
    assert (len(rows), LABELS[rows].sum()) == (100, 10)
    assert not np.array_equal(rows, select_subset(LABELS, 0.5, order="random", seed=4))
    assert np.array_equal(
        rows, select_subset(torch.from_numpy(LABELS), 0.5, order="random", seed=3)
    )


def test_the_earliest_windows_come_first_in_time_order():
    assert select_subset(LABELS, 0.1, order="time", seed=0).tolist() == list(range(20))
    late = np.array([0] * 50 + [1] * 2)
    assert select_subset(late, 0.1, order="time", seed=0).tolist() == [0, 1, 2, 3, 4, 50]


def test_one_class_is_taken_as_it_is():
    assert len(select_subset(np.zeros(40), 0.1, order="random", seed=0)) == 4


@pytest.mark.parametrize("fraction", [0, -1, 1.5, float("nan")])
def test_a_fraction_outside_its_bounds_is_refused(fraction):
    with pytest.raises(InputError, match="above 0 and up to 1"):
        select_subset(LABELS, fraction, order="random", seed=0)


@pytest.fixture
def three(tmp_path):
    splits = [
        write_split(tmp_path, name, "train", count, seed=count)
        for name, count in (("a", 7), ("b", 12), ("c", 5))
    ]
    rows = np.array([1, 4, 10])
    return Windows([splits[0], (splits[1], rows), splits[2]]), torch.cat(
        [splits[0].x, splits[1].x[rows], splits[2].x]
    )


def test_several_splits_and_subsets_are_seen_as_one(three):
    windows, x = three
    assert (len(windows), windows.channels, windows.samples) == (15, 2, 20)
    assert torch.equal(torch.cat([part for part, _ in windows.batches(4)]), x)
    assert torch.equal(torch.cat([y for _, y in windows.batches(4)]), windows.y)
    assert windows.y.tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    assert windows.positives == 5


@pytest.mark.parametrize("way", ["streamed", "resident", "prefetched"])
def test_chunks_are_the_windows_asked_for_whichever_way_they_come(three, way):
    windows, x = three
    windows.place(torch.device("cpu"), resident=way == "resident")
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    got = list(windows.chunks(order, [6, 6, 3], prefetch=way == "prefetched"))
    assert [len(part) for part, _ in got] == [6, 6, 3]
    assert torch.equal(torch.cat([part for part, _ in got]), x[order])
    assert torch.equal(torch.cat([y for _, y in got]), windows.y[order])
    for part, _ in got:
        part.zero_()  # the caller's own
    assert torch.equal(torch.cat([part for part, _ in windows.batches(4)]), x)


def test_the_prefetcher_ends_when_its_reader_leaves_and_hands_over_errors(three, monkeypatch):
    windows, _ = three
    chunks = windows.chunks(torch.arange(15), [1] * 15, prefetch=True)
    next(chunks)
    chunks.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    monkeypatch.setattr(Windows, "gather", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(windows.chunks(torch.arange(15), [15], prefetch=True))


def test_normalisation_is_mean_and_sd_of_each_channel(three):
    windows, x = three
    mean, sd = windows.normalization()
    torch.testing.assert_close(mean, x.mean(dim=(0, 2)))
    torch.testing.assert_close(sd, x.transpose(0, 1).flatten(1).std(dim=1, correction=0))


def test_a_constant_channel_is_not_divided_by_zero(tmp_path):
    torch.save((torch.ones(6, 2, 9), Y), tmp_path / "a_train.pt")
    mean, sd = Windows([open_split(tmp_path, "a", "train")]).normalization()
    assert (mean.tolist(), sd.tolist()) == ([1, 1], [1, 1])


def test_participants_of_different_shapes_are_refused(tmp_path):
    splits = [
        write_split(tmp_path, "a", "train", 6),
        write_split(tmp_path, "b", "train", 6, channels=3),
    ]
    with pytest.raises(InputError, match="windows differ"):
        Windows(splits)


def test_chunk_size_depends_on_shape_and_batch_alone():
    assert dataset.chunk_batches(6 * 3000 * 4, 64) == 1
    assert dataset.chunk_batches(6 * 100 * 4, 32) > 10


@given(st.integers(2, 300), st.floats(0, 1), st.integers(0, 50), st.integers(1, 40))
def test_a_block_is_one_stretch_at_a_random_place_and_blocks_nest(count, rate, seed, smaller):
    labels = (np.random.default_rng(seed).random(count) < rate).astype(int)
    fractions = sorted([smaller / 100, 0.5, 1.0])
    chosen = [select_subset(labels, f, order="block", seed=seed).tolist() for f in fractions]
    for small, large in pairwise(chosen):
        assert set(small) <= set(large)
    for rows, fraction in zip(chosen, fractions, strict=True):
        assert {*labels[rows]} == {*labels}
        # All but one window of each class are one stretch.
        jumps = sum(b - a > 1 for a, b in pairwise(rows))
        assert jumps <= 2
        assert (
            max(1, int(count * fraction + 0.5)) <= len(rows) <= int(count * fraction + 0.5) + 2 + 1
        )
    starts = {select_subset(LABELS, 0.1, order="block", seed=s)[0] for s in range(20)}
    assert len(starts) > 5


def test_time_order_needs_sessions_on_one_clock(tmp_path):
    path = tmp_path / "ann_train_windows.csv"
    path.write_text("session,start_s\na,0.0\na,1.0\nb,5.0\n")
    require_one_clock(tmp_path, "ann", "train")
    path.write_text("session,start_s\na,0.0\na,1.0\nb,0.5\n")
    with pytest.raises(InputError, match="session b of ann does not come after a by its clock"):
        require_one_clock(tmp_path, "ann", "train")
    require_one_clock(tmp_path, "bob", "train")  # made by hand: no list
