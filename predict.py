"""Predict new recordings with a finished model, or with several side by side.

    python3 predict.py experiments/PREFIX/fold0_ann --sessions recordings --out predicted
    python3 predict.py experiments/PREFIX/fold0_ann HASH --sessions monday.csv --out predicted

For each session: windows.csv (start, probability), episodes.csv, timeline.png; in summary.json what
was done, and scores where the recordings are labelled. A result folder is all that is needed. More
sessions may follow into the same --out, of the same models.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.artifacts import to_json, write_file, write_files
from common.cli import Parser, number_of, one_line, run_script, visible
from common.data.preparation import Preparation
from common.errors import InputError
from common.paths import Paths

READING = (
    "time_column",
    "time_unit",
    "date_format",
    "label_column",
    "columns",
    "header_line",
    "repair_clock",
    "max_gap_seconds",
)


def flags() -> Parser:
    """As in prepare_data.py where they say how recordings are written."""
    parser = Parser(__doc__ or "")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="experiment folders or hashes")
    parser.add_argument(
        "--sessions",
        required=True,
        type=Path,
        help="FILE.csv, a folder of such files, or DIR/PARTICIPANT/SESSION.csv with bouts.csv",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for what is predicted")
    parser.add_argument("--threshold", default="0.5", help="a number, or 'tuned' (default: 0.5)")
    parser.add_argument(
        "--stride_seconds", type=float, help="between windows (default: that of the model's data)"
    )
    for name, text in (
        ("merge_gap_seconds", "positive windows at most so far apart are one episode"),
        ("min_episode_seconds", "shorter episodes are dropped"),
    ):
        parser.add_argument(f"--{name}", type=float, default=0.0, help=f"{text} (default: 0)")
    for name in READING:
        field = Preparation.model_fields[name]
        if name == "repair_clock":
            parser.switch("--repair_clock", field.description or "")
        elif name == "columns":
            parser.add_argument("--columns", nargs="+", help=field.description)
        else:
            default = "" if field.default is None else f" (default: {field.default})"
            parser.add_argument(
                f"--{name}", help=f"{field.description}{default}".replace("%", "%%")
            )
    return parser


def rules_of(args: Any) -> Any:
    """From probabilities to episodes. Raises InputError."""
    from common.use.predict import TUNED, Rules

    threshold: float | str = args.threshold
    if threshold != TUNED:
        try:
            threshold = float(args.threshold)
        except ValueError:
            threshold = -1.0
        if not 0 <= threshold <= 1:
            raise InputError(f"--threshold {args.threshold}: a number from 0 to 1, or 'tuned'")
    for name in ("merge_gap_seconds", "min_episode_seconds"):
        if not getattr(args, name) >= 0:
            raise InputError(f"--{name} {getattr(args, name):g}: at least 0 is needed")
    stride = args.stride_seconds
    if stride is not None and not 0 < stride < math.inf:
        raise InputError(f"--stride_seconds {stride:g}: a number of seconds above 0 is needed")
    return Rules(threshold, args.merge_gap_seconds, args.min_episode_seconds, args.stride_seconds)


def layout_of(args: Any, needed: dict[str, Any]) -> Any:
    """How the recordings are written, and the grid that the model needs. Raises InputError."""
    from common.data.recordings import Layout

    given = {name: getattr(args, name) for name in READING if getattr(args, name) is not None}
    checked = Preparation.parse({**given, "sessions": str(args.sessions), "data_path": "data/none"})
    return replace(
        Layout.of(checked),
        channels=tuple(needed["channels"]),
        rate=needed["sampling_rate_hz"],
        of_model=True,
    )


def main() -> int:
    """Predict every session; those that cannot be read are named, and the exit code is 1."""
    args = flags().parse()
    rules = rules_of(args)

    from common.use.output import predicted_before, refuse_place

    refuse_place(args.out, args.sessions, Paths.here())

    import torch
    from tqdm import tqdm

    from common.use import reading
    from common.use.model import open_model
    from common.use.predict import agree, predict

    torch.set_num_threads(1)
    models = [open_model(text, Paths.here()) for text in args.models]
    earlier = predicted_before(args.out, models)
    needed = agree(models, rules)
    for model in models:
        rules.threshold_of(model)
    layout = layout_of(args, needed)
    recordings = reading.find(args.sessions, layout.time_unit, layout.date_format)
    done, refused = [], list[InputError]()
    for recording in tqdm(recordings, desc="sessions", disable=not sys.stderr.isatty()):
        try:
            predicted = predict(
                models, reading.read_recording(recording, layout, needed), needed, rules
            )
        except InputError as error:
            refused.append(error)
            continue
        if not done:  # first of all, so that the same command goes on after it was killed
            write_summary(args.out, models, rules, [], [], earlier)
        write(args.out, recording, predicted)
        done.append((str(recording.place), predicted))
    if not done:
        raise refused[0]
    show(args.out, write_summary(args.out, models, rules, done, refused, earlier))
    return 1 if refused else 0


def write(out: Path, recording: Any, predicted: Any) -> None:
    """The files of one session."""
    from common.use.predict import episodes_csv, windows_csv
    from common.use.timeline import timeline_png

    files = {"windows.csv": windows_csv(predicted), "episodes.csv": episodes_csv(predicted)}
    title = " · ".join(part for part in (recording.person, recording.name) if part)
    files["timeline.png"] = timeline_png(title, predicted)
    write_files(out / recording.place, files)


def write_summary(
    out: Path, models: Any, rules: Any, done: Any, refused: list[InputError], earlier: Any
) -> dict[str, Any]:
    """summary.json: the models, the sessions of this run with scores, those of earlier runs."""
    from common.use.output import SUMMARY, without
    from common.use.predict import scores, summary

    sessions = [predicted for _, predicted in done]
    record: dict[str, Any] = {
        "models": [
            {
                "name": model.name,
                "weights_sha256": model.weights_sha256,
                "threshold": rules.threshold_of(model),
                "scores": scores(sessions, number),
            }
            for number, model in enumerate(models)
        ],
        "sessions": [summary(place, predicted) for place, predicted in done],
        "earlier_sessions": without(earlier, {place for place, _ in done}),
        "refused": [one_line(error) for error in refused],
    }
    write_file(out / SUMMARY, to_json(record))
    return record


def show(out: Path, record: dict[str, Any]) -> None:
    """What there is to say."""
    for entry in record["sessions"]:
        *others, last = [one["episodes"] for one in entry["models"]]
        found = "".join(f"{count} / " for count in others) + number_of(last, "episode")
        windows = number_of(entry["windows"], "window")
        sys.stdout.write(f"{visible(entry['session'])}: {windows}, {found}\n")
        for note in entry["notes"]:
            sys.stdout.write(f"  note: {note}\n")
    for model in record["models"]:
        if model["scores"]:
            sys.stdout.write(f"{model['name']}: {described(model['scores'])}\n")
    if earlier := len(record["earlier_sessions"]):
        kept = number_of(earlier, "session")
        sys.stdout.write(f"{visible(str(out))} also holds {kept} of earlier runs\n")
    for error in record["refused"]:
        sys.stderr.write(f"left out: {error}\n")


def described(scores: dict[str, Any]) -> str:
    """The scores that are looked at first."""

    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    events = scores["event_scores_any_overlap"]
    return (
        f"macro F1 {number(scores['window_scores']['macro_f1'])} on {scores['windows']} windows;"
        f" events: recall {number(events['recall'])}, precision {number(events['precision'])},"
        f" false a day {number(events['false_episodes_per_day'])}"
    )


if __name__ == "__main__":
    run_script(main)
