"""Export a finished model for a phone, a watch or another program: raw samples in, probability out.

    python3 export.py experiments/PREFIX/fold0_ann --out exported
    python3 export.py HASH --out exported --format torch

The file is run on the model's own test windows, and refused where any probability differs by more
than 1e-5; model_card.json says what to feed it. Packages: requirements-export.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common.cli import Parser, run_script
from common.paths import Paths

FORMATS = ("onnx", "torch", "executorch")


def main() -> int:
    """Export one model."""
    flags = Parser(__doc__ or "")
    flags.add_argument("model", help="folder of an experiment, or hash of a base model")
    flags.add_argument("--out", required=True, type=Path, help="folder for the file and its card")
    flags.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    flags.add_argument(
        "--quantize", choices=("int8",), help="also an 8-bit file, with its loss on validation"
    )
    args = flags.parse()

    import torch

    from common.use.export import check_packages, export
    from common.use.model import open_model

    torch.set_num_threads(1)
    check_packages(args.format, quantize=bool(args.quantize))
    paths = Paths.here()
    model = open_model(args.model, paths)
    done = export(model, args.out, args.format, paths.root, quantize=bool(args.quantize))
    card = done.card
    sys.stdout.write(
        f"{done.path}: {_size(card)}; checked on {card['checked']['on']}, greatest difference"
        f" {card['checked']['greatest_difference']:.1g}\n"
    )
    if args.quantize:
        small = card["quantized"]
        before, after = small["validation_macro_f1_before"], small["validation_macro_f1"]
        sys.stdout.write(
            f"{args.out / small['file']}: {_size(small)}; macro F1 on"
            f" {small['validation_windows']} validation windows {_number(after)}, was"
            f" {_number(before)}\n"
        )
    if model.input is None:
        sys.stderr.write(
            "note: the card does not say channels and rate: the data set has no dataset.json\n"
        )
    return 0


def _size(card: dict[str, float]) -> str:
    milliseconds = 1000 * card["seconds_per_window_on_one_thread"]
    return f"{card['bytes'] / 1024:.0f} KiB, {milliseconds:.3f} ms a window on one thread"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    run_script(main)
