"""Data as the plan sees them, making way for a successor, copies of an equal training."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from common import artifacts
from common.data.data_sets import Data
from common.errors import Conflict, InputError
from common.jobs import identity
from common.jobs.verdicts import (
    State,
    Verdict,
    changed,
    copy_base_model,
    judge_base,
    make_way,
    published_trainings,
)
from common.options import BaseOptions
from common.paths import Paths
from tests.scripts.made import PEOPLE, write_data


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.chdir(tmp_path)
    return Paths(tmp_path)


def options(fold: int = 0) -> BaseOptions:
    return BaseOptions.parse(
        {
            "participants": list(PEOPLE),
            "data_path": "data/made",
            "n_base_participants": 1,
            "fold": fold,
        },
        "here",
    ).resolved(None)


def test_participants_come_from_dataset_json(paths: Paths) -> None:
    write_data(paths.data("data/made"), manifest=True)
    resolved = Data(paths).resolve(
        BaseOptions.parse({"data_path": "data/made", "fold": 1, "window_size": 40}, "here")
    )
    assert (resolved.participants, resolved.n_base_participants) == (list(PEOPLE), 3)


def test_without_dataset_json_participants_must_be_given(paths: Paths) -> None:
    write_data(paths.data("data/made"))
    with pytest.raises(
        InputError, match=r"has no dataset\.json to take the participants from: give --participants"
    ):
        Data(paths).resolve(BaseOptions.parse({"data_path": "data/made"}, "here"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"window_size": 100},
            r"^window_size is 100, but .* have 40 samples .*: leave window_size out$",
        ),
        (
            {"participants": ["ann", "tom", "bob"]},
            r"^participants tom are not in data/made, whose dataset.json has ann, bob, cyd, dan$",
        ),
        (
            {"data_path": "data/mad"},
            (
                r"^data_path data/mad: no such folder, did you mean data/made\?; prepare the data"
                r" with prepare_data.py$"
            ),
        ),
    ],
)
def test_options_of_other_data_are_refused_before_anything_starts(
    paths: Paths, given: dict[str, object], words: str
) -> None:
    write_data(paths.data("data/made"), manifest=True)
    with pytest.raises(InputError, match=words):
        Data(paths).resolve(
            BaseOptions.parse({"data_path": "data/made", "window_size": 40, **given}, "here")
        )


def test_someone_whose_files_were_added_by_hand_takes_part(paths: Paths) -> None:
    folder = paths.data("data/made")
    write_data(folder, manifest=True)
    shutil.copy(folder / "ann_train.pt", folder / "eve_train.pt")
    assert (
        Data(paths)
        .resolve(
            BaseOptions.parse(
                {"data_path": "data/made", "window_size": 40, "participants": ["ann", "eve"]},
                "here",
            )
        )
        .participants
    )


def test_a_file_that_is_not_the_manifests_is_refused(paths: Paths) -> None:
    write_data(paths.data("data/made"), manifest=True)
    (paths.data("data/made") / "ann_val.pt").write_bytes(b"edited")
    with pytest.raises(
        InputError, match=r"ann_val.pt: is not the file that dataset.json describes"
    ):
        Data(paths).sha256("data/made", "ann_val.pt")
    Data(paths).sha256("data/made", "ann_train.pt")


def test_changed_names_what_differs_or_is_new() -> None:
    assert changed({"a": "1", "b": "2", "gone": "3"}, {"a": "1", "b": "x", "c": "4"}) == ["b", "c"]
    assert changed(None, {"a": "1"}) == ["a"]


def test_what_is_in_the_way_is_moved_and_another_configuration_only_when_asked(
    paths: Paths,
) -> None:
    folder = paths.experiment("p", "fold0_ann")
    for number in range(2):
        folder.mkdir(parents=True)
        (folder / "x").write_text(str(number))
        with pytest.raises(Conflict):
            make_way(paths, folder, Verdict(State.CONFLICT, "taken"), overwrite=False)
        make_way(
            paths,
            folder,
            Verdict(State.CONFLICT if number else State.STALE),
            overwrite=bool(number),
        )
        assert not folder.exists()
    assert [
        (paths.superseded / f"experiments/p/fold0_ann.{number}/x").read_text()
        for number in range(2)
    ] == ["0", "1"]


def test_weights_of_other_trainings_are_not_read(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = [f"{number:016x}" for number in range(4)]
    for number, base_hash in enumerate(hashes):
        record = {"training_key": f"key{number % 2}", "provenance": {}}
        artifacts.publish_base_model(paths, base_hash, b"weights", record)
    paths.base_metadata(hashes[3]).unlink()
    read: list[Path] = []
    plain = artifacts.read_regular

    def recording(path: Path, limit: int | None = None) -> bytes:
        read.append(path)
        return plain(path, limit)

    monkeypatch.setattr(artifacts, "read_regular", recording)
    assert published_trainings(paths, only="key1") == {"key1": hashes[1]}
    assert [path for path in read if path.suffix == ".pt"] == [paths.base_weights(hashes[1])]


def test_a_base_model_that_cannot_be_read_now_is_no_source_of_copies(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for base_hash in ("0" * 16, "1" * 16):
        record = {"training_key": "key", "provenance": {}}
        artifacts.publish_base_model(paths, base_hash, b"weights", record)
    plain = artifacts.read_regular

    def stale(path: Path, limit: int | None = None) -> bytes:
        if path == paths.base_weights("0" * 16):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return plain(path, limit)

    monkeypatch.setattr(artifacts, "read_regular", stale)
    expected = {"key": "1" * 16}
    assert published_trainings(paths) == published_trainings(paths, only="key") == expected


def test_a_copy_has_equal_weights_and_its_own_configuration(paths: Paths) -> None:
    source, other = options(1), options(2)
    data = {name: name for name in identity.base_data_files(source)}
    key = identity.training_key(source, data)
    assert identity.training_key(other, data) == key
    record = {
        "training_key": key,
        "provenance": {"trained_as": identity.base_hash(source)},
        "config": source.model_dump(),
        "target_participant": "bob",
        "data_fingerprints": data,
    }
    artifacts.publish_base_model(paths, identity.base_hash(source), b"weights", record)
    assert published_trainings(paths) == {key: identity.base_hash(source)}
    opened = artifacts.open_base_model(paths, identity.base_hash(source))
    copied = artifacts.open_base_model(paths, copy_base_model(paths, opened, other))
    assert copied.hash == identity.base_hash(other) != identity.base_hash(source)
    assert (copied.weights, copied.metadata["target_participant"]) == (b"weights", "cyd")
    assert (copied.metadata["provenance"]["trained_as"], copied.metadata["config"]["fold"]) == (
        identity.base_hash(source),
        2,
    )
    assert judge_base(paths, copied.hash, key, data).state is State.DONE
    assert (
        judge_base(paths, copied.hash, "another", {**data, "ann_val.pt": "x"}).reason
        == f"base model {copied.hash} is stale: data changed (ann_val.pt)"
    )
