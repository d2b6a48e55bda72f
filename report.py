"""How much does personalisation bring, for whom, and how much labelled data does it take? Reads
experiments/ and base_models/, writes report/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common.cli import Parser, number_of, one_line, run_script


def flags() -> Parser:
    """The parser of this script."""
    parser = Parser(
        "Write the report: figures, tables, statistics and one page, from finished experiments."
        " Works while a run is going on."
    )
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="DIR",
        help="project folders (default: the current one); several are compared",
    )
    parser.add_argument("--out", default="report", help="folder to write to (default: report)")
    parser.add_argument(
        "--metric",
        help="score to report, as macro_f1 or event_recall (default: the one that the grid's"
        " analysis fixes, else macro_f1); any other makes an exploratory report",
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="OPTION",
        help="compare the values of an option over participants; may be repeated",
    )
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="KEY=VALUE[,VALUE]",
        help="only experiments with this value; may be repeated",
    )
    parser.add_argument(
        "--experiment",
        metavar="PREFIX/FOLD",
        help="whose own curves to draw (default: the participant with the median score)",
    )
    _event_arguments(parser)
    return parser


def _event_arguments(parser: Parser) -> None:
    rules = {
        "merge_gap_seconds": (0.0, "positive windows at most this far apart are one episode"),
        "min_episode_seconds": (0.0, "shorter episodes do not count"),
        "event_iou": (0.5, "intersection over union that the stricter matching of events asks for"),
    }
    for name, (default, text) in rules.items():
        parser.add_argument(
            f"--{name}", type=float, default=default, help=f"{text} (default: {default:g})"
        )


def main() -> int:
    """Parse, build, print."""
    options = flags().parse()
    # matplotlib takes a second to load, --help need not wait for it
    from common.report.build import ReportRequest, build_report
    from common.report.predictions import EventRules

    summary = build_report(
        ReportRequest(
            [Path(folder) for folder in options.folders] or [Path.cwd()],
            Path(options.out),
            options.metric,
            options.compare,
            options.filter,
            options.experiment,
            EventRules.checked(
                options.merge_gap_seconds, options.min_episode_seconds, options.event_iou
            ),
        )
    )
    for line in summary.skipped[:20]:
        sys.stderr.write(f"left out: {one_line(line)}\n")
    if len(summary.skipped) > 20:
        sys.stderr.write(
            f"left out: {len(summary.skipped) - 20} more, named at the end of the page\n"
        )
    for line in summary.remarks:
        sys.stderr.write(f"{one_line(line)}\n")
    print(one_line(summary.headline))
    if summary.beside:
        print(f"also on the page: {one_line(', '.join(summary.beside))}")
    missing = (
        f", {number_of(summary.missing, 'planned one')} without a result (missing.csv)"
        if summary.missing
        else ""
    )
    print(f"{number_of(summary.experiments, 'experiment')}{missing}")
    print(f"report: {one_line(summary.page)}")
    return 0


if __name__ == "__main__":
    run_script(main)
