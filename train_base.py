"""Train one base model on the base participants of a fold, and publish it under its hash in
base_models/.

    python3 train_base.py --fold 0 --n_base_participants 5 --participants ann bob cyd dan eve fay
    --data_path data/001_60s_window
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from common.artifacts import read_base_metadata
from common.cli import Parser, run_script
from common.cluster.curves import add_flag, told
from common.data.data_sets import Data
from common.options import BaseOptions, add_arguments, from_flags
from common.paths import Paths


def run(options: Mapping[str, Any], progress: Any) -> dict[str, Any]:
    """What a worker calls."""
    from common.training.base import run

    return run(options, progress)


def _not_taken(started: Mapping[str, Any]) -> str:
    """What initial weights did and did not set."""
    left = [("of the file", started["not_taken"]), ("of the network", started["not_in_file"])]
    rest = "; ".join(f"not set: {', '.join(names)} {where}" for where, names in left if names)
    return f"{started['file']}: {len(started['taken'])} entries taken{'; ' if rest else ''}{rest}\n"


def main() -> int:
    """What a person calls."""
    flags = Parser(__doc__ or "")
    add_arguments(flags, BaseOptions)
    add_flag(flags)
    args = flags.parse()
    options = from_flags(args, BaseOptions)

    from common.training.setup import device_for_hand

    device, remarks = device_for_hand(options.device)
    for remark in remarks:
        sys.stderr.write(remark + "\n")
    with told("base model", tensorboard=args.tensorboard) as progress:
        result = run(options.model_dump(exclude_unset=True) | {"device": device}, progress)
    base_hash = result["base_model_hash"]
    sys.stdout.write(
        f"base_models/{base_hash}.pt"
        + (f" ({result['reused']}: nothing to train)" if result.get("reused") else "")
        + "\n"
    )
    if remark := result.get("remark"):
        sys.stderr.write(remark + "\n")
    if started := read_base_metadata(Paths.here(), base_hash).get("init_weights"):
        sys.stderr.write(_not_taken(started))
    if remark := Data(Paths.here()).leakage_remark(options.data_path):
        sys.stderr.write(remark + "\n")
    return 0


if __name__ == "__main__":
    run_script(main)
