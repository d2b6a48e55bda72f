"""Windows that the kernel reads where they lie: the same bytes as from a gathered copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.data.dataset import Windows, open_split
from common.training import loop, networks, scattered
from common.training.adam import Adam
from common.training.augment import Augment
from common.training.backends import AutogradBackend, KernelBackend, backend_for
from common.training.kernel.build import kernel
from common.training.loop import TrainingSettings, serialize
from common.training.scattered import Scattered
from common.training.setup import score
from tests.unit.training.plain import write_split

pytestmark = pytest.mark.skipif(kernel().library is None, reason=kernel().reason)

EVERY = Augment(jitter_std=0.5, magnitude_range=(0.5, 2.0), aug_prob=0.5, time_warp_std=0.2)


def people(folder, samples: int = 20, channels: int = 3) -> Windows:
    """A whole split, rows of one in another order, and a whole one."""
    splits = [
        write_split(folder, name, "train", count, channels=channels, samples=samples, seed=count)
        for name, count in (("a", 30), ("b", 21), ("c", 9))
    ]
    return Windows([splits[0], (splits[1], np.array([4, 1, 20, 7])), splits[2]])


def made(windows: Windows) -> networks.Network:
    network = networks.build_network("test", channels=windows.channels, seed=1)
    network.set_normalization(*windows.normalization())
    return network


def trained(windows: Windows, augment: Augment | None, in_place: bool) -> bytes:
    """Weights after one pass by the kernel in batches of 8, in two pieces."""
    network = made(windows)
    adam = Adam(list(network.parameters()), 1e-2)
    backend = backend_for(network)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(3))
    generator, sizes = torch.Generator().manual_seed(4), [24, len(windows) - 24]
    for x, y in (scattered.pieces if in_place else Windows.chunks)(windows, order, sizes):
        if augment is not None:
            x = (augment.while_read if in_place else augment)(x, generator)
        backend.train(x, y, [8] * (len(x) // 8) + [len(x) % 8] * (len(x) % 8 > 0), adam)
    return serialize(network.state_dict())


@pytest.mark.parametrize("samples", [1, 2, 20, 100, 333])
@pytest.mark.parametrize("augment", [None, EVERY, Augment(time_warp_std=0.0, aug_prob=1.0)])
def test_training_gives_the_bytes_of_gathered_windows(tmp_path, samples, augment):
    windows = people(tmp_path, samples)
    assert trained(windows, augment, True) == trained(windows, augment, False)
    assert trained(windows, EVERY, True) != trained(windows, None, True)


def test_evaluation_and_scores_are_those_of_gathered_windows(tmp_path, monkeypatch):
    windows = people(tmp_path)
    network = made(windows)
    network.eval()
    here = loop.evaluate(backend_for(network), windows), score(network, windows)
    [(x, y)] = backend_for(network).batches(windows)
    assert isinstance(x, Scattered)
    assert torch.equal(y, windows.y)
    monkeypatch.setattr(Windows, "addresses", lambda _: None)
    there = loop.evaluate(backend_for(network), windows), score(network, windows)
    assert here[0].counts == there[0].counts
    assert here[0].loss == pytest.approx(there[0].loss, rel=1e-12)
    assert here[1][0].tobytes() == there[1][0].tobytes()


@pytest.mark.parametrize("augment", [None, EVERY])
def test_a_whole_fit_has_the_same_bytes(tmp_path, monkeypatch, augment):
    settings = TrainingSettings(8, 1e-2, 3, 3, "key", augment=augment)
    windows = people(tmp_path)
    here = serialize(loop.fit(made(windows), windows, windows, settings).state)
    monkeypatch.setattr(Windows, "addresses", lambda _: None)
    assert here == serialize(loop.fit(made(windows), windows, windows, settings).state)


def test_windows_that_do_not_lie_whole_in_memory_are_gathered(tmp_path):
    x = torch.randn(12, 20, 3, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    torch.save((x, torch.arange(12) % 2), tmp_path / "a_train.pt")
    windows = Windows([open_split(tmp_path, "a", "train")])
    assert windows.addresses() is None
    network = made(windows)
    ours = loop.evaluate(backend_for(network), windows)
    assert ours.loss == pytest.approx(loop.evaluate(AutogradBackend(network), windows).loss)


def test_an_own_augmentation_is_given_a_tensor_of_its_own(tmp_path):
    seen = []

    class Zero:
        def __call__(self, x, generator):
            seen.append(x.clone())
            return x.zero_()

    windows = people(tmp_path)
    before = windows.gather(torch.arange(len(windows)))
    network = made(windows)
    assert isinstance(backend_for(network), KernelBackend)
    loop.fit(network, windows, None, TrainingSettings(8, 1e-2, 1, 1, "key", augment=Zero()))
    assert sum(len(x) for x in seen) == len(windows)
    assert torch.equal(windows.gather(torch.arange(len(windows))), before)


def test_what_noise_writes_behind_a_window_never_grows(tmp_path):
    """The row ends in the middle of the last window's vector here. Zeros have to be there: numbers
    that double in every pass would become infinite.
    """
    split = write_split(tmp_path, "a", "train", 8, channels=3, samples=1)
    windows, augment = Windows([split]), Augment(1.0, (2.0, 3.0), 1.0, 0.0)
    network = networks.build_network("test", channels=3, seed=1)
    adam = Adam(list(network.parameters()), 0.0)
    backend = backend_for(network)
    for number in range(200):
        [(x, y)] = scattered.pieces(windows, torch.arange(8), [8])
        augmented = augment.while_read(x, torch.Generator().manual_seed(number))
        backend.train(augmented, y, [8], adam)
    assert torch.isfinite(adam.gradient).all()


def test_a_training_gathers_no_window(tmp_path, monkeypatch):
    windows = people(tmp_path)
    network = made(windows)
    monkeypatch.setattr(Windows, "gather", lambda *_, **__: 1 / 0)
    settings = TrainingSettings(8, 1e-2, 1, 1, "key", augment=Augment(time_warp_std=0.0))
    assert loop.fit(network, windows, windows, settings).epochs == 1
    assert len(score(network, windows)[0]) == len(windows)
