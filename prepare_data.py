"""Cut recordings into the windows that training reads: data/NAME/{participant}_{train,val,test}.pt
and dataset.json.

    python3 prepare_data.py --demo
    python3 prepare_data.py --sessions recordings --data_path data/mine --window_seconds 60

Splits are decided before windows are cut, and that no sample stands in two of them is proved from
what was written, else nothing is.
"""

import io
import sys
from pathlib import Path

from common.cli import Parser, run_script
from common.data.demo import CITATION, POSITIVE, RATE_HZ, REQUIREMENT, UNITS, DemoRecordings
from common.data.prepare import Outcome, Preparation, Source, prepare, up_to_date
from common.data.recordings import Layout, Recordings
from common.data.windowing import Windows
from common.options import add_arguments
from common.paths import SPLITS, Paths

DEMO = {
    "sampling_rate": RATE_HZ,
    "window_seconds": 2.0,
    "stride_seconds": 1.0,
    "split": "time",
    "units": list(UNITS),
}


def encode(windows: Windows) -> memoryview:
    """The bytes of a .pt file: (X float32 [windows, channels, samples], y int64 [windows]). Through
    a buffer, so that equal data are equal files.
    """
    import torch  # here, so that bad input is answered at once

    buffer = io.BytesIO()
    torch.save((torch.from_numpy(windows.x), torch.from_numpy(windows.y)), buffer)
    return buffer.getbuffer()


def open_source(options: Preparation, cache: Path) -> tuple[Source, dict]:
    """The recordings, and what dataset.json says of where they come from."""
    if options.demo:
        return DemoRecordings(cache), {
            "kind": "demo",
            "package": REQUIREMENT,
            "cite": CITATION,
            "licence": "BSD",
            "positive": POSITIVE,
        }
    layout = Layout(
        time_column=options.time_column,
        time_unit=options.time_unit,
        label_column=options.label_column,
        channels=tuple(options.channels) if options.channels else None,
        rate=options.sampling_rate,
        max_gap_s=options.max_gap_seconds,
        label_required="label_column" in options.model_fields_set,
    )
    return Recordings(Path(options.sessions), layout), {
        "kind": "sessions",
        "folder": options.sessions,
    }


def progress(participants: list[str]):
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(participants, desc="participants", disable=not sys.stderr.isatty())


def show(target: str, outcome: Outcome) -> None:
    """Windows and positives of each split, what to look out for, then the recorded time: a wrong
    unit shows there.
    """
    for note in outcome.notes:
        print(f"note: {note}")
    for participant, counts in outcome.counts.items():
        print(
            f"{participant}: "
            + ", ".join(
                f"{split} {counts[split].windows} ({counts[split].positives} positive)"
                for split in SPLITS
            )
        )
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    rates = dict.fromkeys(
        f"{rate:.4g}" for rate in (min(outcome.sampled_at), max(outcome.sampled_at))
    )
    print(f"{outcome.recorded_s / 3600:.2f} h recorded, sampled at {' to '.join(rates)} Hz")
    windows = sum(split.windows for counts in outcome.counts.values() for split in counts.values())
    print(
        f"{target}: {windows} windows of {len(outcome.counts)} participants; no sample stands in"
        " two splits (checked)"
    )


def main() -> int:
    parser = Parser("Cut recordings into windows and split them into train, val and test.")
    add_arguments(parser, Preparation)
    options = Preparation.parse(vars(parser.parse()))
    if options.demo:
        options = options.model_copy(update=DEMO | {"data_path": options.data_path or "data/watch"})
    paths = Paths.here()
    target = paths.data(options.data_path)
    source, origin = open_source(options, paths.root / "cache")
    if up_to_date(options, source, target):
        print(f"{options.data_path} is up to date")
        return 0
    show(options.data_path, prepare(options, source, target, encode, origin, progress))
    return 0


if __name__ == "__main__":
    run_script(main)
