"""What surrounds the loop in every training: device, settings from options, checkpoint file, opened
data, log.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from common.artifacts import read_regular, remove_temporaries, sha256, training_lock, write_file
from common.data.dataset import Split, Windows, open_split
from common.data.manifest import WindowForm, read_manifest
from common.errors import Conflict, CorruptArtifact, NodeError
from common.jobs.identity import checkpoint_name
from common.options import Options
from common.paths import Paths
from common.training import loop, plugins
from common.training.augment import Augment
from common.training.backends import backend_for
from common.training.kernel.build import kernel
from common.training.networks import Model, build_network
from common.training.plugins import Own, OwnAugmentation
from common.training.provenance import now
from common.training.stopping import Stopped, stopping

Progress = Callable[[dict[str, Any]], None]
T = TypeVar("T")
LOCK_SECONDS = 0.2  # between two tries to take a lock that another process holds


def torch_device(name: str) -> torch.device:
    """'auto', 'cpu' or a GPU number as a device.

    Raises:
        NodeError: that GPU is not there; a caller that accepts the CPU asks for it.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    number = 0 if name == "auto" else int(name)
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        raise NodeError(
            f"GPU {number} is not there ({torch.cuda.device_count()} GPUs are visible): give"
            " --device cpu, or correct gpus in cluster_config.json"
        )
    return torch.device("cuda", number)


def device_for_hand(name: str) -> tuple[str, list[str]]:
    """For a script run by hand: the device, and remarks: a GPU was asked for where there is none;
    a CPU without a compiler.
    """
    remarks = []
    if name.isdecimal() and (
        not torch.cuda.is_available() or int(name) >= torch.cuda.device_count()
    ):
        remarks, name = [f"no GPU {name} on this machine: running on the CPU"], "cpu"
    if torch_device(name).type == "cpu" and kernel().reason:
        remarks.append(f"{kernel().reason}; training is several times slower without the kernel")
    return name, remarks


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def prepare_process(options: Options) -> torch.device:
    """Threads and device of this process, as a training wants them."""
    if torch.get_num_threads() != options.threads:
        torch.set_num_threads(options.threads)
    return torch_device(options.device)


def measured_speed(name: str, seconds: float) -> float:
    """Bytes of windows that a device trains on per second, with one thread, by repeating one step
    of the network `test` on 32 windows of 6 channels and 3,000 samples for so many seconds.

    To compare nodes before any job is done. Raises NodeError: the device is not there.
    """
    torch.set_num_threads(1)
    device = torch_device(name)
    model = build_network("test", channels=6).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    backend = backend_for(model)
    x = torch.randn(32, 6, 3000, generator=torch.Generator().manual_seed(0)).to(device)
    y = (torch.arange(32) % 2).float().to(device)
    began, steps = 0.0, -1  # the first step prepares: it is not counted
    while steps < 1 or time.perf_counter() - began < seconds:
        backend.gradient(x, y).item()  # waits for a GPU
        steps += 1
        if steps == 0:
            began = time.perf_counter()
    return steps * x.nbytes / (time.perf_counter() - began)


def loop_settings(
    options: Options, seed_key: str, own: Own, **changes: Any
) -> loop.TrainingSettings:
    """The loop's settings; `changes` override."""
    augment: Augment | OwnAugmentation | None = None
    if own.augmentation is not None:
        augment = plugins.augmentation(own.augmentation)
    elif options.use_augmentation:
        low, high = options.magnitude_range
        augment = Augment(options.jitter_std, (low, high), options.aug_prob, options.time_warp_std)
    values: dict[str, Any] = {
        "batch_size": options.batch_size,
        "lr": options.lr,
        "max_epochs": options.max_epochs,
        "patience": options.early_stopping_patience,
        "seed_key": seed_key,
        "metric": options.early_stopping_metric,
        "pos_weight": options.pos_weight,
        "augment": augment,
        "min_steps_per_epoch": options.min_steps_per_epoch,
        "weight_decay": options.weight_decay,
        "compiled": options.compile == "on",
    }
    return loop.TrainingSettings(**values | changes)


def outcome_of(options: Options, fitted: loop.FitResult) -> dict[str, Any]:
    """What a training tells its caller beside its result: "resumed", and "remark" where it did not
    run as it was asked to.
    """
    if not fitted.not_compiled:
        return {"resumed": fitted.resumed}
    remark = f"{options.model} cannot be compiled ({fitted.not_compiled}): it is trained eagerly"
    return {"resumed": fitted.resumed, "remark": remark}


def network(options: Options, own: Own, channels: int, seed: int) -> Model:
    """The network that the options name. Raises InputError."""
    if own.model is not None:
        return plugins.own_network(
            own.model,
            channels=channels,
            samples=options.window_size,
            keywords=options.model_options,
            seed=seed,
        )
    return build_network(
        options.model,
        channels=channels,
        base_channels=options.base_channels,
        num_blocks=options.num_blocks,
        dropout=options.dropout,
        seed=seed,
    )


def number_of_parameters(model: torch.nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_input(paths: Paths, options: Options) -> dict[str, Any] | None:
    """What a recording must be like for a model of these data; None where there is no
    dataset.json.
    """
    manifest = read_manifest(paths.data(options.data_path))
    if manifest is None:
        return None
    described = manifest.model_dump()
    return {name: described[name] for name in WindowForm.model_fields}


def open_splits(
    paths: Paths,
    options: Options,
    people: Sequence[str],
    splits: Sequence[str],
    channels: int | None = None,
) -> list[Split]:
    """Opened and checked data, person by person; all with the same channels. Raises InputError."""
    opened: list[Split] = []
    folder, size = paths.data(options.data_path), options.window_size
    for name, split in itertools.product(people, splits):
        opened.append(open_split(folder, name, split, window_size=size, channels=channels))
        channels = opened[0].x.shape[1]
    return opened


def place(windows: Windows, device: torch.device) -> Windows:
    """Put windows where the training happens; GPUs may be shared by as many workers as their slots
    say.
    """
    return windows.place(device, jobs_per_gpu=int(os.environ.get("JOBS_PER_GPU", "1")))


def score(model: Model, windows: Windows) -> tuple[np.ndarray[Any, Any], float]:
    """Probability of class 1 of every window (float32 [windows]), and the mean loss, in one
    pass.
    """
    backend = backend_for(model)
    with torch.inference_mode():
        logits = torch.cat([backend.logits(x) for x, _ in backend.batches(windows)]).cpu()
        loss = F.binary_cross_entropy_with_logits(logits.double(), windows.y.double())
        return torch.sigmoid(logits).numpy(), float(loss)


@contextlib.contextmanager
def own_lock(paths: Paths, key: str, progress: Progress) -> Iterator[None]:
    """Hold a training's lock. The wait for another process is reported ("waits_for"): it is no
    stalled training, and what `progress` raises ends it.
    """
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(training_lock(paths, key, wait=False))
                break
            except Conflict as conflict:
                progress({"waits_for": conflict.holder})
                time.sleep(LOCK_SECONDS)
        yield


class CheckpointFile:
    """A training cut short, kept under its key and the code that wrote it; checked before it is
    loaded.

    `unchanged` raises where the data are no longer those of the key; then nothing is saved.
    """

    def __init__(
        self, paths: Paths, key: str, unchanged: Callable[[], None] = lambda: None
    ) -> None:
        self._unchanged = unchanged
        self._key, self._path = key, paths.checkpoint(checkpoint_name(key))

    def load(self) -> bytes | None:
        """The checkpoint's bytes, or None when there is none or a damaged one. Deletes what killed
        processes were writing: only for the holder of the training's lock.
        """
        remove_temporaries(self._path.parent, f"{self._key}-")
        with contextlib.suppress(FileNotFoundError, CorruptArtifact):
            checksum, _, data = read_regular(self._path).partition(b"\n")
            if checksum.decode(errors="replace") == sha256(data):
                return data
        return None

    @property
    def wanted(self) -> bool:
        """Whether this process is to stop: then a checkpoint is saved at once."""
        return stopping.wanted

    def save(self, data: bytes) -> None:
        """Replace the checkpoint. Raises Stopped when this process is to stop."""
        self._unchanged()
        write_file(self._path, sha256(data).encode() + b"\n" + data)
        stopping.saved += 1
        if stopping.wanted:
            raise Stopped

    def remove(self) -> None:
        """The training is published."""
        self._path.unlink(missing_ok=True)


class Log:
    """train.log: a line an epoch, and the time."""

    def __init__(self, title: str, progress: Progress) -> None:
        self._lines = [f"{now()} {title}"]
        self._progress = progress
        self._began = time.monotonic()

    def epoch(self, state: dict[str, Any]) -> None:
        """Called by the loop after every epoch."""
        numbers = " ".join(
            f"{name} {state[name]:.6f}"
            for name in ("train_loss", "val_loss", "val_macro_f1")
            if isinstance(state.get(name), float)
        )
        self._lines.append(
            f"{time.monotonic() - self._began:9.3f} epoch {state['epoch']} {numbers}"
            f" best {state['best_epoch']}"
        )
        self._progress({"of": state["epochs"]} | state)

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


class LruCache(Generic[T]):
    """The most recently used results of a costly call, by key."""

    def __init__(self, most: int) -> None:
        self._most, self._kept = most, OrderedDict[Any, T]()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The kept value, or a new one."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return self._kept[key]
