"""How sessions become a data folder: the options of prepare_data.py, and the folder that appears
whole or not at all. No torch: the caller encodes.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.data.manifest import (
    MANIFEST,
    Manifest,
    SplitCounts,
    file_sha256,
    listed_windows,
    read_manifest,
)
from common.data.windowing import (
    FRACTIONS,
    Session,
    Windows,
    annotated_bouts,
    cut_windows,
    in_order,
    shared_sample,
    spans,
    split_sessions,
)
from common.errors import Conflict, InputError, ProjectError
from common.options import DataPath, Fraction, Positive, Seed
from common.paths import SPLITS, bouts_file, split_file, windows_file
from common.validation import first_problem

WINDOW_COLUMNS = ("session", "start_s")
BOUT_COLUMNS = ("session", "start_s", "end_s", "split")
SOURCE_AND_PLACE = {"sessions", "demo", "data_path", "overwrite"}


class Preparation(BaseModel):
    """The options of prepare_data.py."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sessions: str | None = Field(
        None,
        description=(
            "folder of your recordings: DIR/PARTICIPANT/SESSION.csv and, without a label column,"
            " DIR/bouts.csv"
        ),
    )
    demo: bool = Field(
        False,
        description=(
            "real smartwatch data instead (10 people, 6 axes, 50 Hz; 2 s windows, 1 s stride, time"
            " split)"
        ),
    )
    data_path: DataPath | None = Field(
        None, description="folder to make, inside data/ (with --demo: data/watch)"
    )
    time_column: str = Field("time", description="column of sample times")
    time_unit: Literal["s", "ms", "us", "ns"] = Field(
        "s", description="unit of the time column, and of start and end in bouts.csv"
    )
    label_column: str = Field("label", description="column of labels, 0 or 1")
    channels: list[str] | None = Field(
        None, description="signal columns, in order (unset: all but time and label)"
    )
    units: list[str] | None = Field(None, description="unit of each channel, for the record")
    sampling_rate: Positive = Field(
        50.0, description="Hz, of the grid that sessions are resampled to"
    )
    max_gap_seconds: Positive | None = Field(
        None,
        description=(
            "a longer pause between samples breaks the session (unset: five median sample"
            " intervals)"
        ),
    )
    window_seconds: Positive = Field(60.0, description="length of a window")
    stride_seconds: Positive | None = Field(
        None, description="from the start of one window to the next (unset: half a window)"
    )
    min_overlap: Fraction | Literal["any"] = Field(
        "any", description="fraction of a window that bouts must cover to label it 1, or 'any'"
    )
    split: Literal["session", "chronological", "time"] = Field(
        "session", description="whole sessions, earlier and later ones, or blocks of each session"
    )
    split_seed: Seed = Field(0, description="seed of --split session")
    overwrite: bool = Field(
        False, description="replace a data folder that was made with other settings"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Preparation:
        if self.demo:
            mixed = sorted(self.model_fields_set - {"demo", "data_path", "overwrite"})
            if mixed:
                raise ValueError(f"demo: has its own settings: leave out --{mixed[0]}")
        elif self.sessions is None:
            raise ValueError("sessions: give --sessions DIR, or --demo for the example data")
        elif self.data_path is None:
            raise ValueError("data_path: give --data_path data/NAME, the folder to make")
        return self

    @model_validator(mode="after")
    def _whole_samples(self) -> Preparation:
        for name, seconds in (
            ("window_seconds", self.window_seconds),
            ("stride_seconds", self.stride_seconds or self.window_seconds / 2),
        ):
            samples = seconds * self.sampling_rate
            if round(samples) < 1 or abs(samples - round(samples)) > 1e-6:
                raise ValueError(
                    f"{name}: {seconds:g} s is not a whole number of samples at"
                    f" {self.sampling_rate:g} Hz"
                )
        twice = [name for name in self.channels or [] if (self.channels or []).count(name) > 1]
        if twice:
            raise ValueError(f"channels: {twice[0]} given twice")
        if self.channels and self.units and len(self.channels) != len(self.units):
            raise ValueError(f"units: {len(self.units)} for {len(self.channels)} channels")
        return self

    @property
    def length(self) -> int:
        """Samples in a window."""
        return round(self.window_seconds * self.sampling_rate)

    @property
    def stride(self) -> int:
        """Samples from one window's start to the next."""
        return round((self.stride_seconds or self.window_seconds / 2) * self.sampling_rate)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Preparation:
        """Validate flags.

        Raises:
            InputError: in one line, which option and what is wrong with it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = first_problem(error, values, show_value=True)
            raise InputError(f"options: {problem}") from None


class Source(Protocol):
    """Where sessions come from: `sessions.Recordings` or `demo_data.DemoRecordings`."""

    @property
    def participants(self) -> list[str]: ...
    @property
    def channels(self) -> tuple[str, ...] | None: ...
    @property
    def labels_from(self) -> str: ...
    def sha256(self) -> str: ...
    def sessions(self, participant: str) -> list[Session]: ...


@dataclass
class Outcome:
    """What was made, and what its maker should know: `warnings` about splits, `notes` about choices
    that the data forced.

    Attributes:
        recorded_s: seconds of recording, without the gaps.
        sampled_at: each session's own rate in Hz.
    """

    counts: dict[str, dict[str, SplitCounts]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recorded_s: float = 0.0
    sampled_at: list[float] = field(default_factory=list)


def up_to_date(options: Preparation, source: Source, target: Path) -> bool:
    """Whether `target` already holds exactly this data set, every byte of it. False means: make it.

    Raises:
        Conflict: something else is there that must not, or not without --overwrite, be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    manifest = _manifest(target)
    strangers = sorted(
        path.name
        for path in target.iterdir()
        if path.name != MANIFEST and path.name not in manifest.files
    )
    damaged = [
        name
        for name, digest in manifest.files.items()
        if not (target / name).is_file() or file_sha256(target / name) != digest
    ]
    different = _differences(manifest.source, settings(options), source.sha256())
    if not different and not damaged:
        return True
    if strangers:
        raise Conflict(
            f"{target}: holds {strangers[0]}, which prepare_data.py did not put there, so it is not"
            " replaced; choose another --data_path"
        )
    if not options.overwrite:
        what = (
            f"was made with other settings ({', '.join(different)})"
            if different
            else f"is damaged ({damaged[0]} is not what was written)"
        )
        raise Conflict(
            f"{target}: {what}; choose another --data_path, or add --overwrite to make it again"
        )
    return False


def _manifest(target: Path) -> Manifest:
    if not target.is_dir():
        raise Conflict(f"{target}: is a file, not a folder; choose another --data_path")
    try:
        manifest = read_manifest(target)
    except InputError as error:
        raise Conflict(f"{error}, after removing this folder") from None
    if manifest is None:
        raise Conflict(
            f"{target}: holds files but no {MANIFEST}, so prepare_data.py did not make it; choose"
            " another --data_path"
        )
    return manifest


def settings(options: Preparation) -> dict[str, Any]:
    """What shapes a data set beside the recordings themselves, as JSON."""
    chosen = options.model_dump(mode="json", exclude=SOURCE_AND_PLACE)
    return chosen | {"stride_seconds": options.stride / options.sampling_rate}


def _differences(made_from: dict[str, Any], now: dict[str, Any], sha256: str) -> list[str]:
    before = made_from.get("settings", {})
    names = [
        f"{name} {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return names + (["the recordings have changed"] if made_from.get("sha256") != sha256 else [])


def prepare(
    options: Preparation,
    source: Source,
    target: Path,
    encode: Callable[[Windows], bytes | memoryview],
    origin: dict[str, Any],
    each: Callable[[list[str]], Iterable[str]] = iter,
) -> Outcome:
    """Make the data folder `target` from `source`; it appears whole, proved and with its
    dataset.json, or not at all.

    Args:
        encode: the bytes of a .pt file.
        origin: where the recordings come from, for dataset.json.
        each: wraps the list of participants, for a progress bar.

    Raises:
        InputError: recordings that cannot be used, named.
        ProjectError: a sample would stand in two splits.
    """
    outcome = Outcome()
    with staged_folder(target) as folder:
        for participant in each(source.participants):
            _prepare_participant(options, source, participant, folder, encode, outcome)
        prove_splits_apart(folder, outcome.counts, options)
        write_synced(
            folder / MANIFEST,
            (
                _describe(options, source, origin, outcome, folder).model_dump_json(indent=2) + "\n"
            ).encode(),
        )
    return outcome


def _prepare_participant(
    options: Preparation,
    source: Source,
    participant: str,
    folder: Path,
    encode: Callable[[Windows], bytes | memoryview],
    outcome: Outcome,
) -> None:
    sessions = source.sessions(participant)
    channels = len(source.channels or ())
    if options.units and len(options.units) != channels:
        raise InputError(
            f"--units: {len(options.units)} for {channels} channels"
            f" ({', '.join(source.channels or ())}); give one each"
        )
    _take_notes(options, participant, sessions, outcome)
    outcome.recorded_s += sum(session.recorded / session.rate for session in sessions)
    outcome.sampled_at += [session.sampled_at for session in sessions]
    try:
        parts = split_sessions(
            sessions, options.split, options.length, options.min_overlap, options.split_seed
        )
    except InputError as error:
        raise InputError(f"{participant}: {error}") from None
    write_synced(
        folder / bouts_file(participant),
        _csv(BOUT_COLUMNS, annotated_bouts(in_order(sessions)[0], parts)),
    )
    outcome.counts[participant] = {}
    for split in SPLITS:
        windows = cut_windows(
            parts[split], options.length, options.stride, options.min_overlap, channels
        )
        write_synced(folder / split_file(participant, split), encode(windows))
        write_synced(
            folder / windows_file(participant, split),
            _csv(WINDOW_COLUMNS, zip(windows.sessions, windows.starts_s, strict=True)),
        )
        counts = SplitCounts(windows=len(windows.y), positives=int(windows.y.sum()))
        outcome.counts[participant][split] = counts
        lack = _lack(counts)
        if lack:
            outcome.warnings.append(f"{participant} {split}: {lack}")


def _lack(counts: SplitCounts) -> str:
    if not counts.windows:
        return "no windows"
    if counts.positives in (0, counts.windows):
        return f"one class only (all {counts.windows} windows are {int(counts.positives > 0)})"
    return ""


def _take_notes(
    options: Preparation, participant: str, sessions: list[Session], outcome: Outcome
) -> None:
    if options.demo:  # what its docstring says need not be said at every run
        return
    if options.split == "chronological" and not in_order(sessions)[1]:
        outcome.notes.append(
            f"{participant}: recordings overlap in time (each starts at its own zero?), so their"
            " order is that of the file names"
        )
    whole = [session.name for session in sessions if spans(session)]
    if options.split == "time" and whole:
        outcome.notes.append(
            f"{participant}: {', '.join(whole)}: labelled 1 from end to end, so that the time split"
            " cuts inside this one bout"
        )


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def prove_splits_apart(
    folder: Path, counts: dict[str, dict[str, SplitCounts]], options: Preparation
) -> None:
    """From the written lists of windows alone: no sample is in two splits.

    Raises:
        ProjectError: one is, or a list and its split differ in length. The folder is then not
        published.
    """
    for participant, splits in counts.items():
        windows: dict[str, list[tuple[str, float]]] = {}
        for split in splits:
            windows[split] = [
                (session, float(start))
                for session, start in listed_windows(folder, participant, split)
            ]
            if len(windows[split]) != splits[split].windows:
                raise ProjectError(
                    f"{participant} {split}: {splits[split].windows} windows but"
                    f" {len(windows[split])} listed; nothing was written"
                )
        shared = shared_sample(windows, options.window_seconds, options.sampling_rate)
        if shared:
            raise ProjectError(
                f"{participant}: two splits share a sample ({shared}); nothing was written, please"
                " report this"
            )


def _describe(
    options: Preparation, source: Source, origin: dict[str, Any], outcome: Outcome, folder: Path
) -> Manifest:
    channels = list(source.channels or ())
    split: dict[str, Any] = {
        "rule": options.split,
        "fractions": FRACTIONS,
        "before_windowing": True,
    }
    split |= (
        {"seed": options.split_seed}
        if options.split == "session"
        else {"gap_seconds": options.window_seconds}
        if options.split == "time"
        else {}
    )
    return Manifest(
        sampling_rate_hz=options.sampling_rate,
        channels=channels,
        units=options.units or ["unknown"] * len(channels),
        window_seconds=options.window_seconds,
        stride_seconds=options.stride / options.sampling_rate,
        window_size=options.length,
        labelling={
            "rule": "1 where a window overlaps a bout",
            "min_overlap": options.min_overlap,
            "from": source.labels_from,
        },
        split=split,
        source=origin | {"sha256": source.sha256(), "settings": settings(options)},
        participants=outcome.counts,
        files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    )


def write_synced(path: Path, content: bytes | memoryview) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target`, under a temporary name, that becomes `target` in one rename when
    the block ends well and vanishes when it does not.

    One left by a killed run is emptied and used again. An existing `target` is replaced, so ask
    `up_to_date` first.

    Raises:
        Conflict: another process is making the same folder.
    """
    target = target.resolve()  # a link stays a link
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _hold(handle, partial, target)
        try:
            _empty(partial)
            yield partial
            os.fsync(handle)
            _publish(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):  # somebody else may have put something there meanwhile
                for parent in made:
                    parent.rmdir()
            raise
    finally:
        os.close(handle)


def _hold(handle: int, partial: Path, target: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = partial.exists() and os.path.samestat(os.fstat(handle), partial.stat())
    except BlockingIOError:
        mine = False
    if not mine:
        raise Conflict(
            f"{target}: another prepare_data.py is making it; wait for that one, then run this"
            " again"
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _publish(partial: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(partial, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(parent)
    os.close(parent)
    shutil.rmtree(old, ignore_errors=True)
