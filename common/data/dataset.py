"""A prepared data set: open and check its files, choose subsets, and put windows on a device.

Files are memory-mapped and shared between processes; several splits are seen as one set without
ever being concatenated.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import struct
import threading
import warnings
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.data.manifest import is_settled
from common.data.subsets import share
from common.errors import InputError
from common.paths import split_file

Rows = npt.NDArray[Any]

# a chunk of training windows: large enough to amortise the gather, small enough to stay in cache
CHUNK_BYTES = 4 << 20
IN_PLACE_BYTES = 32 << 20  # the same for windows that are read where they lie: fewer calls
FINITE_CHECK_BYTES = 32 << 20

# What torch.load raises for files that are damaged or of another kind: its reader may fail at any
# depth.
UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    AssertionError,
)

_checked: dict[str, tuple[tuple[int, ...], Split]] = {}


@dataclass(frozen=True)
class Split:
    """One participant's windows of one split, checked.

    x: memory-mapped float32 [windows, channels, samples]; y: float32 [windows], 0 or 1.
    """

    participant: str
    split: str
    path: Path
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @property
    def positives(self) -> int:
        """Number of windows labelled 1."""
        return int(self.y.sum())


def open_split(
    data_path: str | os.PathLike[str],
    participant: str,
    split: str,
    *,
    window_size: int | None = None,
    channels: int | None = None,
) -> Split:
    """Open `{data_path}/{participant}_{split}.pt` and check everything about it; InputError says
    what is wrong.

    A file that has not changed since this process last looked at it is not read through again.
    Nothing in a file is ever executed.
    """
    path = Path(data_path) / split_file(participant, split)
    identity = _file_identity(path, participant)
    known = _checked.get(str(path))
    if known is None or known[0] != identity:
        x, y = _load(path)
        _check_form(path, x, y)
        opened = Split(participant, split, path, x, _binary_labels(path, y))
        _check_finite(path, x)
        known = (identity, opened)
        if is_settled(*identity[3:]):
            _checked[str(path)] = known
    opened = known[1]
    if window_size is not None and opened.x.shape[2] != window_size:
        raise InputError(
            f"{path}: windows have {opened.x.shape[2]} samples, window_size is {window_size}; give"
            f" --window_size {opened.x.shape[2]}"
        )
    if channels is not None and opened.x.shape[1] != channels:
        raise InputError(
            f"{path}: windows have {opened.x.shape[1]} channels where {channels} are needed; all"
            " participants need the same channels"
        )
    return opened


def _file_identity(path: Path, participant: str) -> tuple[int, ...]:
    if not path.parent.is_dir():
        raise InputError(
            f"no data folder {path.parent}; prepare one with prepare_data.py, or give another"
            " --data_path"
        )
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise InputError(
            f"no file {path}: participant {participant} has no such split in this data folder;"
            f" prepare it or leave {participant} out"
        ) from None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def load_plain(source: Path | io.BytesIO, *, mmap: bool = False) -> Any:
    """What torch.save wrote, plain tensors and containers only; nothing in it is executed. Raises
    one of UNREADABLE.
    """
    with warnings.catch_warnings():  # a damaged file may look like one of an unknown version
        warnings.simplefilter("ignore")
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _load(path: Path) -> tuple[Tensor, Tensor]:
    try:
        # torch.load looks at no checksum, and takes most flipped bits without a word
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        value = load_plain(path, mmap=True)
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, it holds more than plain tensors; nothing of it was run; save it as"
            " torch.save((X, y), path)"
        ) from error
    except UNREADABLE as error:
        raise InputError(
            f"{path}: truncated, damaged or not a file of torch.save((X, y), path); prepare or copy"
            " it again"
        ) from error
    if (
        not isinstance(value, tuple | list)
        or len(value) != 2
        or not all(isinstance(part, Tensor) for part in value)
    ):
        raise InputError(
            f"{path}: holds {type(value).__name__}, not a tuple (X, y) of two tensors; save it as"
            " torch.save((X, y), path)"
        )
    return value[0], value[1]


def _check_form(path: Path, x: Tensor, y: Tensor) -> None:
    if x.dtype != torch.float32 or x.ndim != 3 or x.layout != torch.strided:
        raise InputError(f"{path}: X is {_form(x)}; float32 [windows, channels, samples] is needed")
    if y.ndim != 1 or y.is_complex() or y.layout != torch.strided:
        raise InputError(f"{path}: y is {_form(y)}; one number a window is needed, [windows]")
    if len(x) != len(y):
        raise InputError(
            f"{path}: X has {len(x)} windows and y has {len(y)} labels; they must be equally many"
        )
    if not len(x):
        raise InputError(
            f"{path}: the split is empty; prepare the data with a split that leaves windows for"
            " everyone, or leave this participant out"
        )
    if not x.numel():
        raise InputError(f"{path}: X is {_form(x)}: windows without channels or samples")


def _form(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def _binary_labels(path: Path, y: Tensor) -> Tensor:
    wrong = y[(y != 0) & (y != 1)]
    if len(wrong):
        names = ", ".join(f"{value:g}" for value in torch.unique(wrong.double())[:5].tolist())
        raise InputError(
            f"{path}: labels other than 0 and 1: {names} ({len(wrong)} of {len(y)} windows); labels"
            " are binary"
        )
    return y.float().clone()


def _check_finite(path: Path, x: Tensor) -> None:
    step = max(1, FINITE_CHECK_BYTES // (x[0].numel() * 4))
    for start in range(0, len(x), step):
        # The sum over a window is finite only if each sample is (or overflows, which the exact
        # second look settles).
        if not torch.isfinite(x[start : start + step].sum()):
            finite = torch.isfinite(x[start : start + step]).all(dim=2).all(dim=1)
            if not finite.all():
                first = start + int(finite.logical_not().nonzero()[0])
                raise InputError(
                    f"{path}: NaN or infinite samples, first in window {first}; clean the recording"
                    " and prepare it again"
                )


def select_subset(y: Tensor | Rows, fraction: float, *, order: str, seed: int) -> Rows:
    """Row numbers (sorted, int64) of `fraction` of the windows with labels `y` [windows].

    Depends on the labels and the seed only, so that all modes see the same windows. Nested: what 1
    % holds, 5 % holds too. `random`: stratified, at least one window of each class where there is
    one. `time`: the earliest windows (rows are in time order), and still one window of each
    class: the earliest of it. `block`: one stretch of consecutive windows at a random place, and
    still one window of each class: the one nearest to that place.
    """
    labels = np.asarray(y).astype(np.int64)
    if not 0 < fraction <= 1:
        raise InputError(
            f"target_data_pct is {fraction:g}: a fraction above 0 and up to 1 is needed, 0.1 is"
            " 10 %"
        )
    classes = [np.flatnonzero(labels == value) for value in (0, 1)]
    if order == "time":
        chosen = [np.arange(share(len(labels), fraction)), *(members[:1] for members in classes)]
    elif order == "block":
        chosen = _block(classes, len(labels), fraction, seed)
    elif order == "random":
        rng = np.random.Generator(np.random.PCG64(seed))
        chosen = [rng.permutation(members)[: share(len(members), fraction)] for members in classes]
    else:
        raise InputError(f"target_order is {order!r}: random, time or block")
    rows: Rows = np.unique(np.concatenate(chosen)).astype(np.int64)
    return rows


def _block(classes: list[Rows], count: int, fraction: float, seed: int) -> list[Rows]:
    """Consecutive rows around a place that the seed chooses, and the row of each class that is
    nearest to the place: none of this depends on the fraction but the length, so that blocks nest.
    """
    place = np.random.Generator(np.random.PCG64(seed)).random()
    length = share(count, fraction)
    begin = int(place * (count - length + 1))
    nearest = [rows[[np.abs(rows - int(place * count)).argmin()]] for rows in classes if len(rows)]
    return [np.arange(begin, begin + length), *nearest]


@dataclass(frozen=True)
class _Part:
    split: Split
    rows: Tensor | None  # int64 [windows], or None for all

    def __len__(self) -> int:
        return len(self.split) if self.rows is None else len(self.rows)


class Windows:
    """Several splits, or subsets of them, seen as one set of windows; nothing is concatenated until
    a chunk is gathered.

    parts: `Split`, or `(Split, row numbers)`. Until `place` puts it elsewhere, the set is read from
    the memory map, which processes share.
    """

    def __init__(self, parts: Sequence[Split | tuple[Split, Rows | None]]) -> None:
        self._parts = [_part(part) for part in parts]
        if not self._parts or not len(self):
            raise InputError("no windows: the set is empty")
        shapes = {tuple(part.split.x.shape[1:]) for part in self._parts}
        if len(shapes) > 1:
            paths = ", ".join(
                f"{part.split.path} {list(part.split.x.shape[1:])}" for part in self._parts
            )
            raise InputError(
                f"windows differ in [channels, samples]: {paths}; all participants need the same"
            )
        self.channels, self.samples = shapes.pop()
        self._starts = torch.tensor([0, *np.cumsum([len(part) for part in self._parts])])
        self.y = torch.cat(
            [part.split.y if part.rows is None else part.split.y[part.rows] for part in self._parts]
        )
        self.device = torch.device("cpu")
        self._resident: Tensor | None = None
        self._placed_y = self.y
        self._addresses: Tensor | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    @property
    def positives(self) -> int:
        """Number of windows labelled 1."""
        return int(self.y.sum())

    @property
    def window_bytes(self) -> int:
        return self.channels * self.samples * 4

    def place(
        self, device: torch.device, *, jobs_per_gpu: int = 1, resident: bool | None = None
    ) -> Windows:
        """Give windows on `device`: a GPU holds the set if it fits in half of its free memory /
        `jobs_per_gpu`, else the set is streamed to it.

        `resident` overrides that. On a CPU the memory map is all that is needed. Values never
        differ.
        """
        if resident is None:
            resident = device.type == "cuda" and self.window_bytes * len(self) <= _half_of_free(
                device
            ) // max(1, jobs_per_gpu)
        if resident and (self._resident is None or self._resident.device != device):
            self._resident = torch.empty(len(self), self.channels, self.samples, device=device)
            for rows in self._blocks(FINITE_CHECK_BYTES):
                self._resident[rows[0] : rows[-1] + 1] = self.gather(rows)
        elif not resident:
            self._resident = None
        self.device, self._placed_y = device, self.y.to(device)
        return self

    def _blocks(self, size: int) -> list[Tensor]:
        """All row numbers in order, in pieces of about `size` bytes."""
        return list(torch.split(torch.arange(len(self)), max(1, size // self.window_bytes)))

    def chunks(
        self, order: Tensor, sizes: Sequence[int], *, prefetch: bool | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Consecutive pieces of `order` (row numbers of this set, int64, on the CPU) of the given
        sizes, as (x [n, channels, samples], y [n]).

        A piece is the caller's own: it may be changed in place. `prefetch` (by itself on a GPU when
        the set is not resident): a thread gathers ahead.
        """
        pieces = list(torch.split(order, list(sizes)))
        if prefetch is None:
            prefetch = self.device.type == "cuda" and self._resident is None
        with closing(self._prefetched(pieces) if prefetch else self._plain(pieces)) as source:
            for x, rows in source:
                there = rows.to(self.device, non_blocking=True)
                yield x.to(self.device, non_blocking=True), self._placed_y.index_select(0, there)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows in their order, `size` at a time, not to be changed in place (views where the
        set lies in one piece).
        """
        whole = self._resident
        if (
            whole is None
            and self.device.type == "cpu"
            and len(self._parts) == 1
            and self._parts[0].rows is None
        ):
            whole = self._parts[0].split.x
        if whole is not None:
            for start in range(0, len(self), size):
                yield whole[start : start + size], self._placed_y[start : start + size]
        else:
            sizes = [min(size, len(self) - start) for start in range(0, len(self), size)]
            yield from self.chunks(torch.arange(len(self)), sizes)

    def addresses(self) -> Tensor | None:
        """Where in memory each window begins, int64 [windows]; None unless all lie there whole,
        channel after channel. They hold while this set lives.
        """
        if not all(part.split.x[0].is_contiguous() for part in self._parts):
            return None
        if self._addresses is None:
            of_splits = (addresses_in(part.split.x) for part in self._parts)
            self._addresses = torch.cat(
                [
                    places if part.rows is None else places[part.rows]
                    for part, places in zip(self._parts, of_splits, strict=True)
                ]
            )
        return self._addresses

    def normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, float32 [channels]; a constant channel gets
        1. Two passes in float64.
        """
        count = len(self) * self.samples
        blocks = self._blocks(CHUNK_BYTES)
        total = torch.zeros(self.channels, dtype=torch.float64)
        for rows in blocks:
            total += self.gather(rows).double().sum(dim=(0, 2))
        mean = total / count
        total = torch.zeros(self.channels, dtype=torch.float64)
        for rows in blocks:
            total += (self.gather(rows).double() - mean[:, None]).square().sum(dim=(0, 2))
        sd = (total / count).sqrt()
        return mean.float(), torch.where(sd > 0, sd, torch.ones_like(sd)).float()

    def _plain(self, pieces: Sequence[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        for rows in pieces:
            if self._resident is not None:
                yield self._resident.index_select(0, rows.to(self.device, non_blocking=True)), rows
            else:
                yield self.gather(rows), rows

    def _prefetched(self, pieces: Sequence[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The same as `_plain`, gathered by a thread at most two pieces ahead, into pinned memory
        where a GPU will read it.
        """
        ready: queue.Queue[tuple[Tensor, Tensor] | BaseException | None] = queue.Queue(maxsize=2)
        stop = threading.Event()

        def offer(item: tuple[Tensor, Tensor] | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for rows in pieces:
                    if stop.is_set():
                        return
                    offer((self.gather(rows, pin=self.device.type == "cuda"), rows))
                offer(None)
            except BaseException as error:  # noqa: BLE001  (handed to the consumer, who raises it)
                offer(error)

        thread = threading.Thread(target=work, name="prefetch", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def gather(self, rows: Tensor, *, pin: bool = False) -> Tensor:
        """Windows `rows` of this set as a new [n, channels, samples] on the CPU."""
        out = torch.empty(len(rows), self.channels, self.samples, pin_memory=pin)
        if len(self._parts) == 1:
            return self._read(0, rows, out)
        owner = torch.bucketize(rows, self._starts[1:], right=True)
        for number in range(len(self._parts)):
            place = (owner == number).nonzero().squeeze(1)
            if len(place):
                source = out.new_empty(len(place), self.channels, self.samples)
                out.index_copy_(
                    0, place, self._read(number, rows[place] - self._starts[number], source)
                )
        return out

    def _read(self, number: int, rows: Tensor, out: Tensor) -> Tensor:
        """Rows `rows` of one part, into `out`."""
        part = self._parts[number]
        return torch.index_select(
            part.split.x, 0, rows if part.rows is None else part.rows[rows], out=out
        )


def _part(part: Split | tuple[Split, Rows | None]) -> _Part:
    if isinstance(part, Split):
        return _Part(part, None)
    split, rows = part
    return _Part(
        split,
        None if rows is None else torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)),
    )


def addresses_in(x: Tensor) -> Tensor:
    """Where in memory each window of x [windows, channels, samples] begins, int64 [windows]."""
    return torch.arange(len(x)) * (x.stride(0) * x.element_size()) + x.data_ptr()


def _half_of_free(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) // 2


def chunk_batches(window_bytes: int, batch_size: int, in_place: bool = False) -> int:
    """Batches in a chunk: a function of shape and batch size alone, so that the random draws per
    chunk never depend on memory. in_place: its windows are not gathered.
    """
    return max(1, (IN_PLACE_BYTES if in_place else CHUNK_BYTES) // (window_bytes * batch_size))
