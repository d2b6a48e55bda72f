"""Tiny prepared data sets that a network learns in a few epochs: made in milliseconds, by seed,
with or without dataset.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from common.data.manifest import MANIFEST, file_sha256
from common.paths import SPLITS, split_file

# Those of the documented commands, in their order.
DOCUMENTED_PEOPLE = ("tonmoy", "asfik", "alsaad", "anam", "ejaz", "iftakhar", "unk1")
PEOPLE = ("ann", "bob", "cyd", "dan")


def windows(
    number: int, channels: int, samples: int, seed: int, *, opposed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """X float32 [number, channels, samples] and y [number]: noise, and in positive windows a slow
    wave as well. `opposed`: in negative ones instead.
    """
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(number) % 2).float()
    wave = torch.sin(
        torch.linspace(0, 12.6, samples) + 6.28 * torch.rand(number, 1, 1, generator=generator)
    )
    x = 0.5 * torch.randn(number, channels, samples, generator=generator) + 1.5 * wave * (
        1 - y if opposed else y
    ).view(-1, 1, 1)
    return x.contiguous(), y


def write_person(
    folder: Path,
    name: str,
    *,
    samples: int = 40,
    channels: int = 2,
    sizes: Sequence[int] = (24, 12, 12),
    seed: int = 0,
    opposed: bool = False,
) -> None:
    """The three split files of one participant. `opposed`: the test split teaches the opposite, so
    that base training stops as early as it may.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, size) in enumerate(zip(SPLITS, sizes, strict=True)):
        own = sum(name.encode()) * 1000 + seed * 10 + number
        torch.save(
            windows(size, channels, samples, own, opposed=opposed and split == "test"),
            folder / split_file(name, split),
        )


def write_data(
    folder: Path, people: Sequence[str] = PEOPLE, *, manifest: bool = False, **form: object
) -> Path:
    """A prepared data set; `form` as in `write_person`. Returns `folder`."""
    for name in people:
        write_person(folder, name, **form)
    if manifest:
        write_manifest(folder, people)
    return folder


def write_manifest(folder: Path, people: Sequence[str]) -> None:
    """dataset.json for files that are already there."""
    loaded = {
        (name, split): torch.load(folder / split_file(name, split), weights_only=True)
        for name in people
        for split in SPLITS
    }
    x = next(iter(loaded.values()))[0]
    record = {
        "sampling_rate_hz": 20.0,
        "channels": [f"c{number}" for number in range(x.shape[1])],
        "units": ["1"] * x.shape[1],
        "window_seconds": x.shape[2] / 20,
        "stride_seconds": x.shape[2] / 20,
        "window_size": x.shape[2],
        "labelling": {"kind": "made"},
        "split": {"kind": "made"},
        "source": {"kind": "made"},
        "participants": {
            name: {
                split: {
                    "windows": len(loaded[name, split][1]),
                    "positives": int(loaded[name, split][1].sum()),
                }
                for split in SPLITS
            }
            for name in people
        },
        "files": {
            split_file(name, split): file_sha256(folder / split_file(name, split))
            for name in people
            for split in SPLITS
        },
    }
    (folder / MANIFEST).write_text(json.dumps(record))
