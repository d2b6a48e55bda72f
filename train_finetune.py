"""Personalise a base model to one more person, with little of that person's data, and publish the
result below experiments/.

    python3 train_finetune.py --base_model_hash dd8687760fb0bcb2 --fold 0 --mode
    target_only_fine_tuning --target_data_pct 0.1

Base participants, network, normalisation and window size come from the base model; an option that
contradicts them is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from common.cli import Parser, run_script
from common.cluster.curves import add_flag, told
from common.data.data_sets import Data
from common.options import FinetuneOptions, add_arguments, from_flags
from common.paths import Paths


def run(options: Mapping[str, Any], progress: Any) -> dict[str, Any]:
    """What a worker calls."""
    from common.training.finetune import run

    return run(options, progress)


def main() -> int:
    """What a person calls."""
    flags = Parser(__doc__ or "")
    add_arguments(flags, FinetuneOptions)
    add_flag(flags)
    args = flags.parse()
    options = from_flags(args, FinetuneOptions)

    from common.training.setup import device_for_hand

    device, remarks = device_for_hand(options.device)
    for remark in remarks:
        sys.stderr.write(remark + "\n")
    with told("fine-tune", tensorboard=args.tensorboard) as progress:
        result = run(
            options.model_dump(exclude_unset=True) | {"device": device, "_by_hand": True}, progress
        )
    sys.stdout.write(
        result["folder"]
        + (f" ({result['reused']}: nothing to train)" if result.get("reused") else "")
        + "\n"
    )
    for remark in (result.get("remark"), Data(Paths.here()).leakage_remark(result["data_path"])):
        if remark:
            sys.stderr.write(remark + "\n")
    return 0


if __name__ == "__main__":
    run_script(main)
