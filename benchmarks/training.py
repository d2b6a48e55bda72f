"""Windows a second of fit and of evaluate, ours against a plain eager loop; what threads and the
work around the step cost or win; and that kernel, stock operators and plain loop learn equally
well.

    python benchmarks/training.py [--repeats 7] [--json FILE]

The plain side is what one writes first and writes well: Conv1d, LayerNorm, a shuffling DataLoader
over tensors in memory, Adam, losses kept on the device, `no_grad` for evaluation. Both sides run as
a node does: as many processes as cores, one thread each, in turn. Both train the same network on
the same windows, without augmentation. Run it on a machine with nothing else to do.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import rows  # noqa: E402
from rows import Row  # noqa: E402

from common.data.dataset import Windows, open_split  # noqa: E402
from common.training import backends, loop, metrics, networks  # noqa: E402
from common.training.augment import Augment  # noqa: E402
from common.training.kernel import build  # noqa: E402
from common.training.setup import score  # noqa: E402

CORES = os.cpu_count() or 1
CHANNELS = 6


class Plain(nn.Module):
    """The same network as a textbook writes it."""

    def __init__(self, network: networks.Network) -> None:
        super().__init__()
        self.pools = [block.pool for block in network.blocks]
        self.convs, self.norms, self.head = network.convs, network.norms, network.head

    def forward(self, x: Tensor) -> Tensor:
        for pool, conv, norm in zip(self.pools, self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x).transpose(1, 2)).transpose(1, 2))
            x = F.max_pool1d(x, 2) if pool else x
        return self.head(x.mean(dim=2)).squeeze(1)


class PlainLoop:
    """A training as a careful person writes it first."""

    def __init__(self, model: str, windows: Windows, batch_size: int, seed: int = 0) -> None:
        self.model = Plain(networks.build_network(model, channels=CHANNELS, seed=seed))
        data = TensorDataset(windows._parts[0].split.x.clone(), windows.y)
        self.loader = DataLoader(
            data, batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
        )
        self.in_order = DataLoader(data, batch_size=batch_size)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def fit(self) -> None:
        """One epoch."""
        self.model.train()
        total = torch.zeros(())
        for x, y in self.loader:
            self.optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(y)
        total.item()

    def evaluate(self) -> list[float]:
        """Probabilities of all windows; loss and counts on the way."""
        self.model.eval()
        total, right, found = torch.zeros(()), torch.zeros(()), []
        with torch.no_grad():
            for x, y in self.in_order:
                logits = self.model(x)
                total += F.binary_cross_entropy_with_logits(logits, y, reduction="sum")
                right += ((logits > 0) == y.bool()).sum()
                found.append(torch.sigmoid(logits))
        total.item(), right.item()
        return torch.cat(found).tolist()


class OurLoop:
    """The product's own loop."""

    def __init__(self, model: str, windows: Windows, batch_size: int) -> None:
        settings = loop.TrainingSettings(batch_size, 1e-3, 10**6, 10**6, "benchmark")
        loop._keep_freed_memory()
        self.run = loop._Run(
            networks.build_network(model, channels=CHANNELS, seed=0), windows, None, settings
        )
        if isinstance(self.run.backend, backends.KernelBackend):
            torch.set_num_threads(1)  # as loop.fit does: the kernel has its own
        self.run.start()
        self.windows = windows

    def fit(self) -> None:
        """One epoch."""
        self.run.one_epoch()

    def evaluate(self) -> None:
        """Loss and counts of all windows."""
        loop.evaluate(self.run.backend, self.windows)


@dataclass(frozen=True)
class Case:
    """What is measured: network, batch size, samples in a window, windows in a measurement, and the
    ratios wanted.
    """

    model: str
    batch_size: int
    samples: int
    windows: int
    fit: float
    evaluate: float

    @property
    def name(self) -> str:
        return f"{self.model} [{CHANNELS}, {self.samples}] batch {self.batch_size}"


CASES = [
    Case("test", 32, 100, 3200, 10, 10),
    Case("test", 32, 3000, 256, 8, 8),
    Case("test", 64, 3000, 256, 8, 8),
    Case("cnn64", 32, 3000, 64, 2.2, 2),
]


def synthetic(folder: Path, name: str, count: int, samples: int, seed: int = 0) -> None:
    """Noise in which positive windows carry a weak slow wave; learnable, and not perfectly."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (count,), generator=generator)
    phase = torch.rand(count, 1, 1, generator=generator) * 6.28
    wave = torch.sin(torch.arange(samples) * 0.4 + phase) * 0.35 * y[:, None, None]
    torch.save(
        (torch.randn(count, CHANNELS, samples, generator=generator) + wave, y),
        folder / f"{name}_train.pt",
    )


def worker(
    pipe: Connection, make: Callable[..., Any], case: Case, folder: str, threads: int
) -> None:
    """One process: sets a loop up, then measures what it is asked for: seconds of one pass."""
    torch.set_num_threads(threads)
    loop = make(case.model, Windows([open_split(folder, "a", "train")]), case.batch_size)
    loop.fit()
    loop.evaluate()
    pipe.send("ready")
    while (what := pipe.recv()) is not None:
        began = time.perf_counter()
        getattr(loop, what)()
        pipe.send(time.perf_counter() - began)


class Side:
    """The processes of one side; they wait, without using a core, while the other side is
    measured.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        case: Case,
        folder: str,
        processes: int,
        threads: int,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.windows, self.pipes, self.processes = case.windows, [], []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=worker, args=(theirs, make, case, folder, threads), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def speed(self, what: str) -> float:
        """Windows a second of all its processes together."""
        for pipe in self.pipes:
            pipe.send(what)
        return sum(self.windows / pipe.recv() for pipe in self.pipes)

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def measured(case: Case, repeats: int) -> list[Row]:
    """The rows of one case: both sides in turn, `repeats` times."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic(Path(folder), "a", case.windows, case.samples)
        plain = Side(PlainLoop, case, folder, CORES, 1)
        ours = Side(OurLoop, case, folder, CORES, 1)
        found = []
        for what, wanted in (("fit", case.fit), ("evaluate", case.evaluate)):
            ratios = [1 / plain.speed(what) * ours.speed(what) for _ in range(repeats)]
            found.append(Row.of(f"training: {case.name}: {what}", ratios, wanted))
        for side in (plain, ours):
            side.close()
    return found


def threads(repeats: int) -> Row:
    """One training alone on two threads against one thread."""
    case = Case("test", 32, 3000, 2048, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        synthetic(Path(folder), "a", case.windows, case.samples)
        one, two = (Side(OurLoop, case, folder, 1, number) for number in (1, 2))
        ratios = [two.speed("fit") / one.speed("fit") for _ in range(repeats)]
        for side in (one, two):
            side.close()
    return Row.of(f"training: {case.name}: two threads / one", ratios, 1.7)


def around_the_step(repeats: int) -> Row:
    """Share of an epoch that is not the bare steps: reading windows from where they lie,
    augmentation and evaluation. Training windows, and a third as many validation windows, at
    [6, 100]; the bare steps train as many batches of windows that were gathered before.
    """
    torch.set_num_threads(1)
    loop._keep_freed_memory()  # as loop.fit does
    with tempfile.TemporaryDirectory() as folder:
        synthetic(Path(folder), "a", 3200, 100)
        synthetic(Path(folder), "b", 1067, 100, seed=1)
        train, val = (Windows([open_split(folder, who, "train")]) for who in "ab")
        settings = loop.TrainingSettings(
            32, 1e-3, 10**6, 10**6, "benchmark", augment=Augment(time_warp_std=0)
        )
        run, bare = (
            loop._Run(
                networks.build_network("test", channels=CHANNELS, seed=0), train, val, settings
            )
            for _ in range(2)
        )
        run.start()
        gathered = list(train.chunks(torch.arange(3200), [1600, 1600]))

        def steps() -> None:
            for x, y in gathered:
                bare.backend.train(x, y, [32] * 50, bare.optimizer)

        shares = [1 - seconds(steps) / seconds(run.one_epoch) for _ in range(2 + 3 * repeats)]
    title = f"training: test [{CHANNELS}, 100] batch 32: share of an epoch around the steps"
    return Row.of(title, shares[2:], 0.25, at_most=True)


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def equally_good(seeds: int = 10, epochs: int = 30) -> list[Row]:
    """Macro F1 on unseen windows after equal trainings from equal first weights: the kernel's over
    the plain loop's, and over the stock operators'.
    """
    torch.set_num_threads(1)
    of_plain, of_stock = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic(folder, "a", 320, 100, seed=1)
        synthetic(folder, "b", 1000, 100, seed=2)
        learnt, unseen = (Windows([open_split(folder, who, "train")]) for who in "ab")
        for seed in range(seeds):
            plain = PlainLoop("test", learnt, 32, seed)
            for _ in range(epochs):
                plain.fit()
            plain.in_order = DataLoader(
                TensorDataset(unseen._parts[0].split.x, unseen.y), batch_size=32
            )
            theirs = metrics.final_scores(unseen.y.numpy(), np.array(plain.evaluate()))[0]
            ours, stock = (_trained(learnt, unseen, seed, epochs, k) for k in (True, False))
            of_plain.append(ours / (theirs["macro_f1"] or 1))
            of_stock.append(ours / stock)
    title = f"training: macro F1 of the kernel over the {{}}, {seeds} seeds"
    return [
        Row.of(title.format("plain loop's"), of_plain, None),
        Row.of(title.format("stock operators'"), of_stock, None),
    ]


def _trained(learnt: Windows, unseen: Windows, seed: int, epochs: int, kernel: bool) -> float:
    """Macro F1 on `unseen` after a training by the kernel or by the stock operators."""
    found = build.kernel()
    backends.kernel = lambda: found if kernel else build.Kernel(None, "", "not wanted here")
    model = networks.build_network("test", channels=CHANNELS, seed=seed)
    settings = loop.TrainingSettings(32, 1e-3, epochs, 1, f"seed {seed}")
    loop.fit(model, learnt, None, settings)
    scores = metrics.final_scores(unseen.y.numpy(), score(model, unseen)[0])[0]
    backends.kernel = build.kernel
    return scores["macro_f1"] or 0.0


def measure(repeats: int) -> list[Row]:
    """All rows."""
    return [
        *(row for case in CASES for row in measured(case, repeats)),
        threads(repeats),
        around_the_step(repeats),
        *equally_good(),
    ]


if __name__ == "__main__":
    rows.main("Windows a second of fit and of evaluate against a plain loop.", measure, 7)
