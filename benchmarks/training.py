"""Windows a second of fit and of evaluate, ours against a plain eager loop; and that both forms
learn equally well.

    python benchmarks/training.py [--repeats 5] [--json FILE]

The plain side is what one writes first and writes well: Conv1d, LayerNorm, a shuffling DataLoader
over tensors in memory, Adam, losses kept on the device, `no_grad` for evaluation, torch's default
threads, so that it uses all cores. Ours is what a node runs: one training per core, one thread
each. Rows marked "per core" give the plain side that arrangement too. Run it on a machine with
nothing else to do: a training whose threads wait for each other suffers from every other program
far more than ours, and the ratio would flatter us. Both sides train the same network on the same
windows, without augmentation, in turn.
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

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import rows  # noqa: E402
from rows import Row  # noqa: E402

from common.data.dataset import Windows, open_split  # noqa: E402
from common.training import loop, metrics, networks  # noqa: E402
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
        self.model = Plain(networks.build(model, channels=CHANNELS, seed=seed))
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

    def __init__(
        self, model: str, windows: Windows, batch_size: int, *, compiled: bool = False
    ) -> None:
        settings = loop.TrainingSettings(
            batch_size, 1e-3, 10**6, 10**6, "benchmark", compiled=compiled
        )
        loop._keep_freed_memory()
        self.run = loop._Run(
            networks.build(model, channels=CHANNELS, seed=0), windows, None, settings
        )
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
    evaluate: float | None
    compiled: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return f"{self.model} [{CHANNELS}, {self.samples}] batch {self.batch_size}"


CASES = [
    Case("test", 32, 3000, 256, 2.5, 1.5, (3.0, 3.0)),
    Case("test", 64, 3000, 256, 2.5, 1.5, (3.0, 3.0)),
    Case("cnn64", 32, 3000, 64, 2.0, 1.5),
    Case("test", 32, 100, 3200, 2.0, None),
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
    pipe: Connection,
    make: Callable[..., Any],
    case: Case,
    folder: str,
    threads: int,
    options: dict[str, Any],
) -> None:
    """One process: sets a loop up, then measures what it is asked for: seconds of one pass."""
    torch.set_num_threads(threads)
    loop = make(case.model, Windows([open_split(folder, "a", "train")]), case.batch_size, **options)
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
        **options: Any,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.windows, self.pipes, self.processes = case.windows, [], []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=worker, args=(theirs, make, case, folder, threads, options), daemon=True
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
    """The rows of one case: every side in turn, `repeats` times."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic(Path(folder), "a", case.windows, case.samples)
        sides = {
            "plain": Side(PlainLoop, case, folder, 1, CORES),
            "per core": Side(PlainLoop, case, folder, CORES, 1),
            "ours": Side(OurLoop, case, folder, CORES, 1),
        }
        if case.compiled:
            sides["compiled"] = Side(OurLoop, case, folder, CORES, 1, compiled=True)
        found: list[Row] = []
        for number, (what, wanted) in enumerate((("fit", case.fit), ("evaluate", case.evaluate))):
            speeds = [
                {name: side.speed(what) for name, side in sides.items()} for _ in range(repeats)
            ]
            title = f"training: {case.name}: {what}"
            found.append(Row.of(title, [s["ours"] / s["plain"] for s in speeds], wanted))
            found.append(
                Row.of(
                    f"{title}, plain per core", [s["ours"] / s["per core"] for s in speeds], None
                )
            )
            if case.compiled:
                found.append(
                    Row.of(
                        f"{title}, compiled",
                        [s["compiled"] / s["plain"] for s in speeds],
                        case.compiled[number],
                    )
                )
                found.append(
                    Row.of(
                        f"{title}, compiled, plain per core",
                        [s["compiled"] / s["per core"] for s in speeds],
                        None,
                    )
                )
        for side in sides.values():
            side.close()
    return found


def equally_good(seeds: int = 10, epochs: int = 30) -> Row:
    """Macro F1 on unseen windows, ours over the plain form's, after equal trainings from equal
    first weights.
    """
    torch.set_num_threads(1)
    ratios = []
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
            theirs, _ = metrics.final_scores(unseen.y.numpy(), plain.evaluate())
            model = networks.build("test", channels=CHANNELS, seed=seed)
            loop.fit(
                model, learnt, None, loop.TrainingSettings(32, 1e-3, epochs, 1, f"seed {seed}")
            )
            ours, _ = metrics.final_scores(unseen.y.numpy(), score(model, unseen)[0])
            ratios.append((ours["macro_f1"] or 0) / (theirs["macro_f1"] or 1))
    return Row.of(
        f"training: macro F1 of our form over the plain form's, {seeds} seeds", ratios, None
    )


def measure(repeats: int) -> list[Row]:
    """All rows."""
    return [*(row for case in CASES for row in measured(case, repeats)), equally_good()]


if __name__ == "__main__":
    rows.main("Windows a second of fit and of evaluate against a plain loop.", measure, 7)
