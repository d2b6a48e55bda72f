"""The loop: against a plain loop, early stopping, checkpoints in the same bytes, and what goes
wrong.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import tempfile

import pytest
import torch
import torch.nn.functional as F

from common.data.dataset import Windows
from common.errors import CorruptArtifact, InputError, TrainingError
from common.training import backends, loop, networks
from common.training.augment import Augment
from common.training.backends import AutogradBackend, backend_for
from common.training.kernel import build
from common.training.setup import score
from tests.conftest import ROOT
from tests.unit.training.plain import PlainNetwork, write_split

SETTINGS = loop.TrainingSettings(batch_size=8, lr=0.01, max_epochs=4, patience=10, seed_key="key")


class Kept:
    """A checkpoint in memory: keeps every save, gives back the one asked for."""

    wanted = False

    def __init__(self, given: bytes | None = None) -> None:
        self.given, self.saved = given, []

    def load(self) -> bytes | None:
        return self.given

    def save(self, data: bytes) -> None:
        self.saved.append(data)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def sets(tmp_path):
    return Windows([write_split(tmp_path, "a", "train", 30)]), Windows(
        [write_split(tmp_path, "a", "val", 21, seed=1)]
    )


def without_kernel(monkeypatch) -> None:
    monkeypatch.setattr(backends, "kernel", lambda: build.Kernel(None, "", "none for this test"))


def network(seed: int = 0, **options) -> networks.Network:
    return networks.build_network("test", channels=2, seed=seed, **options)


def change(**options) -> loop.TrainingSettings:
    return dataclasses.replace(SETTINGS, **options)


@pytest.mark.parametrize("pos_weight", [1.0, 2.0])
def test_fit_equals_a_plain_loop(sets, pos_weight):
    train, val = sets
    fitted = loop.fit(network(), train, val, change(pos_weight=pos_weight))
    reference = network()
    plain, optimizer = PlainNetwork(reference), torch.optim.Adam(reference.parameters(), lr=0.01)
    x, y = train._parts[0].split.x, train.y
    for epoch in range(1, 5):
        generator = torch.Generator().manual_seed(loop.epoch_seed("key", epoch, "shuffle"))
        order, total = torch.randperm(len(y), generator=generator), 0.0
        for rows in order.split(8):
            optimizer.zero_grad()
            logits = plain(x[rows])
            F.binary_cross_entropy_with_logits(
                logits, y[rows], pos_weight=torch.tensor(pos_weight)
            ).backward()
            optimizer.step()
            total += F.binary_cross_entropy_with_logits(
                logits.detach(), y[rows], reduction="sum"
            ).item()
        assert math.isclose(fitted.losses["train"][epoch - 1], total / len(y), rel_tol=1e-3)
    assert fitted.updates == 16
    with torch.no_grad():
        loss = F.binary_cross_entropy_with_logits(plain(val._parts[0].split.x), val.y).item()
    assert math.isclose(fitted.losses["val"][-1], loss, rel_tol=1e-2)


def test_a_batch_in_pieces_is_the_same_update(sets, monkeypatch):
    without_kernel(monkeypatch)
    whole = loop.fit(network(), *sets, SETTINGS)
    monkeypatch.setattr(AutogradBackend, "_cached_batch", lambda self, samples: 3)
    pieces = loop.fit(network(), *sets, SETTINGS)
    for name, value in whole.state.items():
        torch.testing.assert_close(pieces.state[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("pos_weight", [1.0, 2.0])
def test_without_a_kernel_gradients_are_those_of_the_mean_loss(sets, pos_weight):
    x, y = sets[0]._parts[0].split.x, sets[0].y
    ours, plain = network(), PlainNetwork(network())
    total = AutogradBackend(ours, pos_weight).gradient(x, y)
    logits = plain(x)
    weight = torch.tensor(pos_weight)
    F.binary_cross_entropy_with_logits(logits, y, pos_weight=weight).backward()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    unweighted = F.binary_cross_entropy_with_logits(logits, y, reduction="sum")
    torch.testing.assert_close(total, unweighted.detach(), rtol=1e-5, atol=0)


def full(**options) -> loop.TrainingSettings:
    return change(
        augment=Augment(aug_prob=0.5), from_untouched=True, checkpoint_seconds=0, **options
    )


def test_equal_fits_give_equal_bytes_whatever_ran_before(sets):
    first = loop.fit(network(dropout=0.2), *sets, full())
    loop.fit(network(seed=5), *sets, change(max_epochs=1))
    torch.manual_seed(99)
    second = loop.fit(network(dropout=0.2), *sets, full())
    assert loop.serialize(first.state) == loop.serialize(second.state)
    assert first.losses == second.losses


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_resumed_fit_ends_in_the_same_bytes(sets, after):
    kept = Kept()
    undisturbed = loop.fit(network(dropout=0.2), *sets, full(), checkpoint=kept)
    assert len(kept.saved) == 3  # nothing to keep after the last epoch
    seen = []
    resumed = loop.fit(
        network(dropout=0.2),
        *sets,
        full(),
        checkpoint=Kept(kept.saved[after]),
        progress=seen.append,
    )
    assert [report["epoch"] for report in seen] == list(range(after + 2, 5))
    assert loop.serialize(resumed.state) == loop.serialize(undisturbed.state)
    assert (undisturbed.resumed, resumed.resumed) == (False, True)
    assert dataclasses.replace(resumed, state={}) == dataclasses.replace(
        undisturbed, state={}, resumed=True
    )


@pytest.mark.parametrize("bad", [b"", b"junk", "other key", "other threads"])
def test_a_checkpoint_of_something_else_is_left_aside(sets, bad):
    kept = Kept()
    if isinstance(bad, str):
        settings = full(seed_key="other") if bad == "other key" else full()
        torch.set_num_threads(2 if bad == "other threads" else 1)
        loop.fit(network(), *sets, settings, checkpoint=kept)
        torch.set_num_threads(1)
        bad = kept.saved[0]
    seen = []
    fitted = loop.fit(network(), *sets, full(), checkpoint=Kept(bad), progress=seen.append)
    assert (seen[0]["epoch"], fitted.resumed) == (1, False)


def test_checkpoints_are_kept_once_an_interval(sets):
    ticks = iter(range(0, 1000, 25))
    kept = Kept()
    loop.fit(network(), *sets, change(max_epochs=9), checkpoint=kept, clock=lambda: next(ticks))
    assert 1 <= len(kept.saved) <= 3


def test_epoch_zero_is_a_candidate(sets):
    model = network()
    before = loop.serialize(model.state_dict())
    fitted = loop.fit(model, *sets, change(from_untouched=True, lr=10.0, patience=2, max_epochs=50))
    assert (fitted.best_epoch, fitted.epochs, fitted.stopped_by, fitted.losses["train"][0]) == (
        0,
        2,
        "patience",
        None,
    )
    assert loop.serialize(fitted.state) == before == loop.serialize(model.state_dict())


def test_without_validation_exactly_max_epochs_are_run_and_the_last_is_taken(sets):
    model = network()
    fitted = loop.fit(model, sets[0], None, change(patience=1))
    assert (fitted.best_epoch, fitted.epochs, fitted.stopped_by) == (4, 4, "max_epochs")
    assert fitted.losses["val"] == [None] * 4


def test_patience_counts_epochs_since_the_best(sets):
    fitted = loop.fit(network(), *sets, change(lr=0.5, max_epochs=200, patience=3))
    assert fitted.stopped_by == "patience"
    assert fitted.epochs - fitted.best_epoch == 3
    assert fitted.losses["val"][fitted.best_epoch - 1] == min(fitted.losses["val"])


def test_macro_f1_can_decide_instead_of_the_loss(sets):
    fitted = loop.fit(network(), *sets, change(metric="macro_f1", max_epochs=10))
    scores = fitted.losses["val_macro_f1"]
    assert fitted.best_epoch - 1 == scores.index(max(scores))


def test_macro_f1_cannot_decide_on_one_class(sets):
    val = Windows([(sets[1]._parts[0].split, torch.tensor([0, 3, 6]).numpy())])
    with pytest.raises(InputError, match="one class only"):
        loop.fit(network(), sets[0], val, change(metric="macro_f1"))


def test_a_loss_that_is_not_a_number_names_its_epoch(sets):
    with pytest.raises(TrainingError, match=r"training loss became (nan|inf) in epoch \d"):
        loop.fit(network(), sets[0], None, change(lr=1e38, max_epochs=20))


def test_only_the_head_moves_in_head_only_fine_tuning(sets):
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = loop.fit(model, sets[0], None, change(head_only=True))
    moved = {name for name, value in fitted.state.items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_small_set_is_repeated_up_to_the_asked_updates():
    generator = torch.Generator().manual_seed(0)
    order, batches = loop.epoch_batches(5, 2, 7, generator)
    assert batches == [2, 2, 1, 2, 2, 1, 2]
    assert sorted(order[:5].tolist()) == sorted(order[5:10].tolist()) == [0, 1, 2, 3, 4]
    assert loop.epoch_batches(5, 2, 0, generator)[1] == [2, 2, 1]


def test_balanced_weighs_positives_by_what_the_training_windows_hold(sets):
    assert loop._pos_weight("balanced", sets[0]) == 2.0


def test_predictions_and_evaluation_agree(sets):
    model, val = network(), sets[1]
    p, loss = score(model, val)
    result = loop.evaluate(backend_for(model), val)
    assert p.shape == (21,)
    assert p.dtype == "float32"
    assert sum(result.counts) == 21
    assert result.counts[3] + result.counts[1] == (p >= 0.5).sum()
    y = val.y.numpy()
    expected = float(
        -(y * torch.tensor(p).log().numpy() + (1 - y) * torch.tensor(1 - p).log().numpy()).mean()
    )
    assert math.isclose(result.loss, expected, rel_tol=1e-4)
    assert math.isclose(loss, expected, rel_tol=1e-4)


def test_the_compiled_interface_takes_the_place_of_the_eager_one(sets, monkeypatch):
    without_kernel(monkeypatch)
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compiled.append(options) or function
    )
    one = loop.fit(network(), *sets, change(compiled=True))
    other = loop.fit(network(), *sets, SETTINGS)
    # first in one piece or not at all, then as it was compiled
    assert [options.get("fullgraph") for options in compiled] == [True, None]
    assert loop.serialize(one.state) == loop.serialize(other.state)
    assert (one.backend, one.not_compiled) == ("autograd compiled cpu", "")


def test_what_cannot_be_compiled_is_trained_eagerly_and_says_why(sets, monkeypatch):
    without_kernel(monkeypatch)

    def broken(function, **options):
        def fail(*arguments):
            function(*arguments)  # it may have come as far as that
            raise RuntimeError("no such operator\nand what it was about")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    kept, asked = Kept(), change(compiled=True, checkpoint_seconds=0.0)
    one = loop.fit(network(), *sets, asked, checkpoint=kept)
    other = loop.fit(network(), *sets, SETTINGS)
    assert loop.serialize(one.state) == loop.serialize(other.state)
    assert (one.backend, one.not_compiled) == (
        "autograd eager cpu",
        "RuntimeError: no such operator",
    )
    assert loop.fit(network(), *sets, asked, checkpoint=Kept(kept.saved[0])).resumed


def test_serialised_weights_come_back_and_damaged_ones_are_refused():
    state = network().state_dict()
    data = loop.serialize(state)
    back = loop.deserialize(data)
    assert all(torch.equal(back[name], value) for name, value in state.items())
    with pytest.raises(CorruptArtifact):
        loop.deserialize(data[:100])


def test_a_training_imports_no_compiler():
    """It costs a second and more before the first step of every process."""
    code = """
import sys, torch
from common.data.dataset import Windows, open_split
from common.training import backends, loop, networks
torch.save((torch.randn(8, 2, 16), torch.arange(8) % 2), "a_train.pt")
windows = Windows([open_split(".", "a", "train")])
model = networks.build_network("test", channels=2)
loop.fit(model, windows, windows, loop.TrainingSettings(4, 1e-3, 2, 2, "k"))
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout == "[]\n"


def test_jitter_follows_the_normalisation_and_only_that(sets):
    train, val = sets
    plain, normalised = network(), network()
    normalised.set_normalization(*train.normalization())
    augment = Augment()
    assert loop._Run(plain, train, val, change(augment=augment)).augment is augment
    relative = loop._Run(normalised, train, val, change(augment=augment)).augment
    assert relative.channel_sd == pytest.approx(normalised.sd.tolist())


def test_of_equally_good_epochs_the_first_is_best(sets):
    fitted = loop.fit(network(), *sets, change(from_untouched=True, lr=0.0))
    assert (len(set(fitted.losses["val"])), fitted.best_epoch) == (1, 0)


def test_validation_windows_are_scored_as_they_are_and_with_the_best_weights(sets):
    model = network()
    augment = Augment(jitter_std=2.0, aug_prob=1.0)
    fitted = loop.fit(model, *sets, change(augment=augment, lr=0.05, max_epochs=8))
    found = loop.evaluate(backend_for(model), sets[1])
    assert found.loss == fitted.losses["val"][fitted.best_epoch - 1]
    assert found.macro_f1 == fitted.losses["val_macro_f1"][fitted.best_epoch - 1]
    assert min(fitted.losses["val"]) == found.loss


def test_every_epoch_and_purpose_has_a_seed_of_its_own(sets, monkeypatch):
    seeds = {}
    plain = loop.epoch_seed

    def recorded(key, epoch, purpose):
        seeds[key, epoch, purpose] = plain(key, epoch, purpose)
        return seeds[key, epoch, purpose]

    monkeypatch.setattr(loop, "epoch_seed", recorded)
    loop.fit(network(dropout=0.5), *sets, full(max_epochs=3))
    assert seeds.keys() == {
        ("key", epoch, purpose)
        for epoch in (1, 2, 3)
        for purpose in ("shuffle", "augment", "dropout")
    }
    assert len(set(seeds.values())) == 9
    assert plain("other key", 1, "shuffle") not in seeds.values()


def test_what_is_frozen_does_not_move(sets):
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = loop.fit(model, sets[0], None, change(freeze=("convs.*", "head.bias")))
    moved = {name for name, value in fitted.state.items() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if name.startswith("convs") or name == "head.bias"]


def test_a_resumed_fit_keeps_the_best_weights_from_before_it_was_stopped(sets):
    kept = Kept()
    undisturbed = loop.fit(network(), *sets, full(lr=1000.0), checkpoint=kept)
    resumed = loop.fit(network(), *sets, full(lr=1000.0), checkpoint=Kept(kept.saved[-1]))
    assert (resumed.best_epoch, resumed.resumed) == (0, True)
    assert loop.serialize(resumed.state) == loop.serialize(undisturbed.state)
