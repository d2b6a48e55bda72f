"""How recordings become a data folder: read, split, cut, prove, describe. No torch: the caller
saves tensors.

One session is in memory at a time. Its samples wait in a file beside the new data set until its
windows are cut.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common import artifacts
from common.cli import few
from common.data.bouts import annotated_bouts
from common.data.clock import shown_seconds
from common.data.gaps import gap_note, swallowed_bouts
from common.data.manifest import (
    MANIFEST,
    Manifest,
    SplitCounts,
    file_sha256,
    listed_windows,
    read_manifest,
)
from common.data.overview import SessionBar, draw_overview, session_bar
from common.data.preparation import Preparation
from common.data.proof import SHARED_ROWS, Fingerprint, refuse_shared, shared_sample
from common.data.recordings import Reading
from common.data.sessions import Session, in_order, recorded_within
from common.data.splits import Parts, spans, split_sessions, split_shares
from common.data.staging import staged_folder, write_synced
from common.data.windowing import PlacedWindows, bouts_without_window, place_windows
from common.errors import Conflict, InputError, ProjectError
from common.paths import SPLITS, Paths, bouts_file, split_file, windows_file

WAITING = ".waiting"  # folder of samples that are not cut yet
OVERVIEW = "overview.png"
WINDOW_COLUMNS = ("session", "start_s")
KEPT_BOUT_COLUMNS = ("session", "start_s", "end_s", "split")
MANY_POSITIVE, FEW_POSITIVE = 0.5, 0.01  # of all windows
MAX_NAMED = 5
# (file, X float32 [windows, channels, samples], y int64 [windows])
Save = Callable[[Path, NDArray[np.float32], NDArray[np.int64]], None]


class SessionSource(Protocol):
    """Where sessions come from: `recordings.Recordings` or `demo.DemoRecordings`."""

    @property
    def participants(self) -> list[str]: ...
    @property
    def channels(self) -> tuple[str, ...] | None: ...
    @property
    def labels_from(self) -> str: ...
    @property
    def notes(self) -> list[str]: ...
    def sha256(self) -> str: ...
    def sessions(self, participant: str) -> Iterator[Reading]: ...


@dataclass
class DataSet:
    """What was made in one folder, and what its maker should know.

    Attributes:
        warnings: about splits and labels; `notes`: about choices that the data forced.
        recorded_s: seconds of recording, without the gaps.
        sampled_at: each session's own rate in Hz.
        compared: what the proof looked at.
    """

    folder: Path
    counts: dict[str, dict[str, SplitCounts]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recorded_s: float = 0.0
    sampled_at: list[float] = field(default_factory=list)
    mended: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    bars: list[SessionBar] = field(default_factory=list)
    compared: str = ""


# -- is it there already


def up_to_date(options: Preparation, source: SessionSource, target: Path, fold: int = 1) -> bool:
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
    different = _differences(manifest.source, options.settings())
    if manifest.split.get("fold", 1) != fold:
        different.append(f"fold {manifest.split.get('fold', 1)}, now {fold}")
    whys = [f"was made with other settings ({', '.join(different)})"] if different else []
    if manifest.source.get("sha256") != source.sha256():
        whys.append("its recordings have changed since it was made")
    elif damaged:
        whys.append(f"is damaged ({damaged[0]} is not what was written)")
    if not whys:
        return not (options.overwrite and by_earlier_version(manifest))
    if strangers:
        raise Conflict(
            f"{target}: holds {strangers[0]}, which prepare_data.py did not put there, so it is not"
            " replaced; choose another --data_path"
        )
    if not options.overwrite:
        raise Conflict(
            f"{target}: {' and '.join(whys)}; choose another --data_path, or add --overwrite to"
            " make it again"
        )
    return False


def by_earlier_version(manifest: Manifest) -> bool:
    """Whether a data set has no annotations, because its maker did not keep them."""
    return not any(bouts_file(person) in manifest.files for person in manifest.participants)


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


def _differences(made_from: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ; one that an earlier version did not know had its default."""
    defaults = {name: field.default for name, field in Preparation.model_fields.items()}
    before = defaults | made_from.get("settings", {})
    return [
        f"{name} {before.get(name)!r}, now {now[name]!r}"
        for name in sorted(now)
        if before.get(name) != now[name]
    ]


@contextmanager
def hold_data(paths: Paths, data_path: str, *, force: bool = False) -> Iterator[None]:
    """Keep runs from starting on a data folder while it is replaced.

    Raises:
        Conflict: a run uses it, and `force` is off; with the `holder`.
    """
    lock = artifacts.lock(
        paths.data_lock(data_path),
        wait=False,
        owner=f"prepare_data.py, process {os.getpid()}",
        refusal=lambda holder: (
            f"{data_path}: is used by {holder}; wait for it to end, or replace the data all the"
            " same with --force (that run then ends, unless the files that it reads stay the same)"
        ),
    )
    with ExitStack() as held:
        if paths.data_lock(data_path).exists():  # made by the first run on these data
            with suppress(*[Conflict] if force else []):
                held.enter_context(lock)
        yield


# -- making it


def prepare(
    options: Preparation,
    source: SessionSource,
    targets: Sequence[Path],
    save: Save,
    origin: dict[str, Any],
    each: Callable[[list[str]], Iterable[str]] = iter,
) -> list[DataSet]:
    """Make the data folders `targets` from `source`, one for each fold; each appears whole, proved
    and with its dataset.json, or not at all.

    Args:
        save: writes a .pt file.
        origin: where the recordings come from, for dataset.json.
        each: wraps the list of participants, for a progress bar.

    Raises:
        InputError: recordings that cannot be used, named.
        ProjectError: a sample would be in two splits.
    """
    with ExitStack() as stack:
        folders = [stack.enter_context(staged_folder(target)) for target in targets]
        made = [DataSet(folder) for folder in folders]
        prints: list[Fingerprint] = []
        for participant in each(source.participants):
            prints += _prepare_participant(options, source, participant, made, save)
        copies = refuse_shared(prints)
        for number, one in enumerate(made):
            one.warnings = [*copies, *one.warnings, *_share_warnings(one.counts)]
            one.notes = [*source.notes, *one.notes]
            _prove_splits_apart(one, options, len(prints))
            one.warnings += draw_overview(one.folder / OVERVIEW, one.bars)
            manifest = _describe(options, source, origin, one, number)
            text = manifest.model_dump_json(indent=2) + "\n"
            write_synced(one.folder / MANIFEST, text.encode())
    return made


def _prepare_participant(
    options: Preparation,
    source: SessionSource,
    participant: str,
    made: Sequence[DataSet],
    save: Save,
) -> list[Fingerprint]:
    """Read one person's sessions and write their files into every folder."""
    with _waiting(made[0].folder) as waiting:
        sessions, prints = [], []
        mended: dict[str, dict[str, int]] = {}
        for number, reading in enumerate(source.sessions(participant)):
            sessions.append(_kept_in_file(reading.session, waiting / f"{number}.f32"))
            prints.append(reading.fingerprint)
            if reading.mended:
                mended[reading.session.name] = reading.mended
        channels = source.channels or ()
        if options.units and len(options.units) != len(channels):
            raise InputError(
                f"--units: {len(options.units)} for {len(channels)} channels"
                f" ({', '.join(channels)}); give one each"
            )
        try:
            splits = split_sessions(sessions, options.split_rule, options.labelling)
        except InputError as error:
            raise InputError(f"{participant}: {error}") from None
        for one, parts in zip(made, splits, strict=True):
            one.recorded_s += sum(session.recorded / session.rate for session in sessions)
            one.sampled_at += [session.sampled_at for session in sessions]
            one.bars += [session_bar(participant, session, parts) for session in sessions]
            if mended:
                one.mended[participant] = mended
            _take_notes(options, participant, sessions, one)
            _write_participant(options, participant, sessions, parts, one, save, len(channels))
    return prints


@contextmanager
def _waiting(folder: Path) -> Iterator[Path]:
    """A folder for samples, removed with them."""
    waiting = folder / WAITING
    waiting.mkdir()
    try:
        yield waiting
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


@dataclass(frozen=True)
class _FiledSamples:
    """Float32 [samples, channels] in a file; a slice is read when it is asked for."""

    path: Path
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: slice) -> NDArray[np.float32]:
        begin, end, _ = where.indices(self.shape[0])
        row = 4 * self.shape[1]
        count = max(end - begin, 0) * self.shape[1]
        values = np.fromfile(self.path, np.float32, count, offset=begin * row)
        return values.reshape(-1, self.shape[1])


def _kept_in_file(session: Session, path: Path) -> Session:
    values = np.ascontiguousarray(session.values[:], np.float32)
    values.tofile(path)
    return replace(session, values=_FiledSamples(path, values.shape))


def _write_participant(
    options: Preparation,
    participant: str,
    sessions: Sequence[Session],
    parts: Parts,
    one: DataSet,
    save: Save,
    channels: int,
) -> None:
    rows = annotated_bouts(in_order(sessions)[0], parts)
    write_synced(one.folder / bouts_file(participant), artifacts.to_csv(KEPT_BOUT_COLUMNS, rows))
    one.counts[participant] = {}
    placed = []
    for split in SPLITS:
        windows = place_windows(parts[split], options.labelling, channels)
        _save_windows(one.folder / split_file(participant, split), windows, save)
        listed = zip(windows.sessions(), windows.starts_s(), strict=True)
        write_synced(
            one.folder / windows_file(participant, split), artifacts.to_csv(WINDOW_COLUMNS, listed)
        )
        counts = SplitCounts(windows=len(windows.y), positives=int(windows.y.sum()))
        one.counts[participant][split] = counts
        placed.append(windows)
        if lack := _lack(counts):
            one.warnings.append(f"{participant} {split}: {lack}")
    if not options.demo:
        one.warnings += _unused_bouts(options, participant, sessions, parts, placed)


def _save_windows(path: Path, windows: PlacedWindows, save: Save) -> None:
    """Through a file that is mapped: the kernel can take its memory back at any time."""
    if not len(windows.y):
        save(path, windows.x(), windows.y)
        return
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        for block in windows.blocks():
            np.ascontiguousarray(block).tofile(file)
    save(path, np.memmap(raw, np.float32, mode="r+", shape=windows.shape), windows.y)
    raw.unlink()


# -- what its maker should know


def _lack(counts: SplitCounts) -> str:
    if not counts.windows:
        return "no windows"
    if counts.positives in (0, counts.windows):
        return f"one class only (all {counts.windows} windows are {int(counts.positives > 0)})"
    return ""


def _take_notes(
    options: Preparation, participant: str, sessions: Sequence[Session], one: DataSet
) -> None:
    if options.demo:  # what its docstring says need not be said at every run
        return
    for session, kinds in one.mended.get(participant, {}).items():
        counted = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in kinds.items())
        one.notes.append(f"{participant}: {session}: clock repaired ({counted})")
    if options.split == "chronological" and not in_order(sessions)[1]:
        one.notes.append(
            f"{participant}: recordings overlap in time (each starts at its own zero?), so their"
            " order is that of the file names"
        )
    if gaps := gap_note(sessions):
        one.notes.append(f"{participant}: {gaps}")
    if bouts := swallowed_bouts(sessions):
        one.warnings.append(f"{participant}: {bouts}")
    whole = [session.name for session in sessions if spans(session)]
    if options.split in ("time", "blocks") and whole:
        one.notes.append(
            f"{participant}: {', '.join(whole)}: labelled 1 from end to end, so that the"
            f" {options.split} split cuts inside this one bout"
        )


def _unused_bouts(
    options: Preparation,
    participant: str,
    sessions: Sequence[Session],
    parts: Parts,
    placed: Sequence[PlacedWindows],
) -> list[str]:
    """A warning where bouts label no window, and why."""
    length = options.labelling.length
    unused = [
        (session, start, end)
        for session in sessions
        for start, end in bouts_without_window(session, placed, length)
    ]
    if not unused:
        return []
    number = sum(len(session.annotations) for session in sessions)
    shown = "; ".join(
        f"{s.name} {shown_seconds(s.start_s + start / s.rate)} to"
        f" {shown_seconds(s.start_s + end / s.rate)} s"
        f" ({_why_unused(options, s, start, end, parts)})"
        for s, start, end in unused[:MAX_NAMED]
    )
    more = f"; and {len(unused) - MAX_NAMED} more" if len(unused) > MAX_NAMED else ""
    verb = "label" if len(unused) > 1 else "labels"
    return [f"{participant}: {len(unused)} of {number} bouts {verb} no window: {shown}{more}"]


def _why_unused(
    options: Preparation, session: Session, start: float, end: float, parts: Parts
) -> str:
    found = recorded_within(session, start, end)
    if found is None:
        return "nothing was recorded then"
    inside = [
        part
        for own in parts.values()
        for part in own
        if part.session.name == session.name and part.begin < end and part.end > start
    ]
    if not inside:
        return "between two splits"
    length, needed = options.labelling.length, options.min_overlap
    if needed != "any" and found[1] - found[0] < needed * length:
        return f"shorter than --min_overlap {needed:g} of a window"
    return "no whole window with a known label fits there"


def _share_warnings(counts: dict[str, dict[str, SplitCounts]]) -> list[str]:
    """People of whom nearly all or nearly no windows are positive, with the option to change."""
    shares = {
        participant: 100
        * sum(c.positives for c in own.values())
        / max(sum(c.windows for c in own.values()), 1)
        for participant, own in counts.items()
    }
    high = [p for p, share in shares.items() if share > 100 * MANY_POSITIVE]
    low = [p for p, share in shares.items() if 0 < share < 100 * FEW_POSITIVE]
    return [
        f"{few(people, MAX_NAMED)}: {word} of all windows are positive ({_span(shares, people)} %);"
        f" {advice}"
        for people, word, advice in (
            (high, "more than half", "shorter --window_seconds or a --min_overlap lower that"),
            (low, "less than 1 %", "longer --window_seconds, or --min_overlap any, raise that"),
        )
        if people
    ]


def _span(shares: dict[str, float], people: Sequence[str]) -> str:
    low, high = (f"{end(shares[p] for p in people):.0f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


# -- proof and description


def _prove_splits_apart(one: DataSet, options: Preparation, recordings: int) -> None:
    """From the written lists of windows: no sample is in two splits.

    Raises:
        ProjectError: one is, or a list and its split differ in length. The folder is then not
        published.
    """
    number = 0
    for participant, splits in one.counts.items():
        windows: dict[str, list[tuple[str, float]]] = {}
        for split in splits:
            windows[split] = [
                (session, float(start))
                for session, start in listed_windows(one.folder, participant, split)
            ]
            number += len(windows[split])
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
    one.compared = (
        f"no sample is in two splits (compared: the places of {number} windows; the rows of"
        f" {recordings} recordings with each other, for stretches of {SHARED_ROWS} rows or more, or"
        " fewer where one recording ends and the next begins)"
    )


def _describe(
    options: Preparation, source: SessionSource, origin: dict[str, Any], one: DataSet, number: int
) -> Manifest:
    channels = list(source.channels or ())
    labelling: dict[str, Any] = {
        "rule": "1 where a window overlaps a bout",
        "min_overlap": options.min_overlap,
        "from": source.labels_from,
    }
    if options.exclude_partial:
        labelling["exclude_partial"] = True
    return Manifest(
        sampling_rate_hz=options.sampling_rate,
        channels=channels,
        units=options.units or ["unknown"] * len(channels),
        window_seconds=options.window_seconds,
        stride_seconds=options.labelling.stride / options.sampling_rate,
        window_size=options.labelling.length,
        labelling=labelling,
        split=_describe_split(options, number),
        source=origin | {"sha256": source.sha256(), "settings": options.settings()},
        participants=one.counts,
        clock_repairs=one.mended,
        files={path.name: file_sha256(path) for path in sorted(one.folder.iterdir())},
    )


def _describe_split(options: Preparation, number: int) -> dict[str, Any]:
    rule = options.split_rule
    shares = split_shares(rule.folds).tolist()
    split: dict[str, Any] = {
        "rule": rule.name,
        "fractions": dict(zip(SPLITS, shares, strict=True)),
        "before_windowing": True,
    }
    if rule.name in ("session", "blocks"):
        split["seed"] = rule.seed
    if rule.name in ("time", "blocks"):
        split["gap_seconds"] = options.window_seconds
    if rule.name == "blocks":
        split["block_seconds"] = rule.block / options.sampling_rate
    if rule.folds > 1:
        split |= {"folds": rule.folds, "fold": number + 1, "fold_of": str(options.data_path)}
    return split
