"""Cut recordings into the windows that training reads: data/NAME/{participant}_{train,val,test}.pt
and dataset.json.

    python3 prepare_data.py --demo
    python3 prepare_data.py --sessions recordings --data_path data/mine --window_seconds 60

Splits are decided before windows are cut, and that no sample is in two of them is proved from the
samples and from what was written; otherwise nothing is kept.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from common.cli import Parser, run_script
from common.data.demo import CITATION, POSITIVE, RATE_HZ, REQUIREMENT, UNITS, DemoRecordings
from common.data.manifest import read_manifest
from common.data.preparation import Preparation
from common.data.prepare import (
    DataSet,
    SessionSource,
    by_earlier_version,
    hold_data,
    prepare,
    up_to_date,
)
from common.data.recordings import Layout, Recordings
from common.options import add_arguments
from common.paths import SPLITS, Paths

DEMO = {
    "sampling_rate": RATE_HZ,
    "window_seconds": 2.0,
    "stride_seconds": 1.0,
    "split": "time",
    "units": list(UNITS),
}


def save(path: Path, x, y) -> None:
    """Write a .pt file: (X float32 [windows, channels, samples], y int64 [windows]). To an open
    file, whose name is not in the bytes: equal data are equal files.
    """
    import torch  # here, so that bad input is answered at once

    with path.open("wb") as file:
        torch.save((torch.from_numpy(x), torch.from_numpy(y)), file)
        file.flush()
        os.fsync(file.fileno())


def open_source(options: Preparation, cache: Path) -> tuple[SessionSource, dict]:
    """The recordings, and what dataset.json says of where they come from."""
    if options.demo:
        return DemoRecordings(cache), {
            "kind": "demo",
            "package": REQUIREMENT,
            "cite": CITATION,
            "licence": "BSD",
            "positive": POSITIVE,
        }
    recordings = Recordings(Path(options.sessions), Layout.of(options))
    return recordings, {"kind": "sessions", "folder": options.sessions}


def progress(participants: list[str]):
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(participants, desc="participants", disable=not sys.stderr.isatty())


def show(target: str, made: DataSet, channels: tuple[str, ...]) -> None:
    """Windows and positives of each split, what to look out for, then the recorded time: a wrong
    unit shows there.
    """
    print(f"channels: {', '.join(channels)}")
    for note in made.notes:
        print(f"note: {note}")
    for participant, counts in made.counts.items():
        print(
            f"{participant}: "
            + ", ".join(
                f"{split} {counts[split].windows} ({counts[split].positives} positive)"
                for split in SPLITS
            )
        )
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    rates = dict.fromkeys(f"{rate:.4g}" for rate in (min(made.sampled_at), max(made.sampled_at)))
    print(f"{made.recorded_s / 3600:.2f} h recorded, sampled at {' to '.join(rates)} Hz")
    windows = sum(split.windows for counts in made.counts.values() for split in counts.values())
    print(f"{target}: {windows} windows of {len(made.counts)} participants; {made.compared}")


def main() -> int:
    parser = Parser("Cut recordings into windows and split them into train, val and test.")
    add_arguments(parser, Preparation)
    options = Preparation.parse(vars(parser.parse()))
    if options.demo:
        options = options.model_copy(update=DEMO | {"data_path": options.data_path or "data/watch"})
    paths = Paths.here()
    targets = [paths.data(folder) for folder in options.folders]
    source, origin = open_source(options, paths.root / "cache")
    current = [up_to_date(options, source, target, k) for k, target in enumerate(targets, 1)]
    if all(current):
        earlier = any(by_earlier_version(read_manifest(target)) for target in targets)
        hint = " (by an earlier version, without annotations; --overwrite adds them)"
        print(f"{', '.join(options.folders)} is up to date{hint if earlier else ''}")
        return 0
    with ExitStack() as held:
        for folder in options.folders:
            held.enter_context(hold_data(paths, folder, force=options.force))
        made = prepare(options, source, targets, save, origin, progress)
    for folder, one in zip(options.folders, made, strict=True):
        show(folder, one, source.channels or ())
    if options.split_folds:
        axis = ", ".join(f'"{folder}"' for folder in options.folders)
        print(f'as one axis of a grid: "data_path": [{axis}]')
    return 0


if __name__ == "__main__":
    run_script(main)
