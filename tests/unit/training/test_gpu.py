"""On a CUDA device: the same results as on the CPU, resident or streamed, eager or captured."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from common.data.dataset import Windows
from common.training import loop, networks
from common.training.augment import Augment
from tests.unit.training.plain import write_split

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SETTINGS = loop.TrainingSettings(
    batch_size=8, lr=0.003, max_epochs=3, patience=10, seed_key="key", from_untouched=True
)
GPU = torch.device("cuda", 0)


@pytest.fixture
def split(tmp_path):
    return write_split(tmp_path, "a", "train", 30)


def fitted(
    split,
    device: torch.device,
    settings: loop.TrainingSettings = SETTINGS,
    *,
    resident: bool | None = None,
) -> loop.FitResult:
    train, val = (Windows([split]).place(device, resident=resident) for _ in range(2))
    return loop.fit(
        networks.build_network("test", channels=2, seed=0).to(device), train, val, settings
    )


def close(one: loop.FitResult, other: loop.FitResult) -> None:
    for name in ("train", "val"):
        assert one.losses[name][1:] == pytest.approx(other.losses[name][1:], rel=1e-2)


def test_a_fit_agrees_with_the_cpu(split):
    close(fitted(split, GPU), fitted(split, torch.device("cpu")))


def test_resident_and_streamed_windows_give_the_same_fit(split):
    close(fitted(split, GPU, resident=True), fitted(split, GPU, resident=False))


def test_chunks_are_the_windows_asked_for(split):
    windows = Windows([split]).place(GPU, resident=False)
    order = torch.randperm(30)
    got = torch.cat([x.cpu() for x, _ in windows.chunks(order, [8, 8, 8, 6])])
    assert torch.equal(got, split.x[order])


def test_the_captured_step_agrees_with_the_eager_one(split):
    close(fitted(split, GPU, dataclasses.replace(SETTINGS, compiled=True)), fitted(split, GPU))


def test_augmentation_changes_windows_on_the_device(split):
    augment = Augment(aug_prob=1.0)
    x = split.x.to(GPU)
    changed = augment(x.clone(), torch.Generator().manual_seed(0))
    assert torch.isfinite(changed).all()
    assert (changed != x).flatten(1).any(dim=1).all()


def test_an_epoch_makes_one_transfer(split):
    """Nothing in an epoch waits for the device, except its end."""
    run = loop._Run(
        networks.build_network("test", channels=2, seed=0).to(GPU),
        Windows([split]).place(GPU),
        None,
        SETTINGS,
    )
    run.start()
    run.one_epoch()
    run.done.epoch += 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        run._train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
