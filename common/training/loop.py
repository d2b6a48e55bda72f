"""The training loop: fit and evaluate; early stopping and checkpoints.

Written for a GPU first: shuffling, augmentation, loss and counts stay on the device, with one
transfer to the host an epoch. Eager with one thread on the CPU it gives the same bytes fresh, after
other trainings in the same process, and resumed from a checkpoint.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from common.data.dataset import UNREADABLE, Windows, chunk_batches, load_plain
from common.errors import CorruptArtifact, InputError, TrainingError
from common.training import scattered
from common.training.adam import Adam
from common.training.augment import Augment
from common.training.backends import AutogradBackend, Backend, KernelBackend, backend_for
from common.training.metrics import macro_f1
from common.training.networks import Model
from common.training.scattered import Scattered

CHECKPOINT_SECONDS = 60.0

State = dict[str, Tensor]


class Checkpoint(Protocol):
    """Where a training cut short is kept; the bytes come back as they were given, or None.
    `wanted`: save at the end of this epoch.
    """

    @property
    def wanted(self) -> bool: ...

    def load(self) -> bytes | None: ...

    def save(self, data: bytes) -> None: ...


class Augmentation(Protocol):
    """(x [windows, channels, samples], CPU generator) -> augmented windows; x may be changed. A
    dataclass: its fields are part of what a checkpoint is bound to.
    """

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class TrainingSettings:
    """What shapes one training, apart from model and data.

    seed_key: every epoch's shuffling, augmentation and dropout derive from this and the epoch
    number alone.
    patience: epochs without improvement after which training stops; without validation exactly
    `max_epochs` are run and the last is taken.
    pos_weight: weight of positive windows in the loss, or 'balanced' (negatives / positives of the
    training set).
    from_untouched: a fine-tune's epoch 0 is the model as it came, scored and a candidate for the
    best.
    freeze: patterns of the names of parameters that are left alone.
    compiled: torch.compile (on a GPU with CUDA graphs); other bytes than eager.
    """

    batch_size: int
    lr: float
    max_epochs: int
    patience: int
    seed_key: str
    metric: Literal["loss", "macro_f1"] = "loss"
    pos_weight: float | Literal["balanced"] = 1.0
    augment: Augmentation | None = None
    min_steps_per_epoch: int = 0
    from_untouched: bool = False
    head_only: bool = False
    freeze: tuple[str, ...] = ()
    weight_decay: float = 0.0
    compiled: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS


@dataclass(frozen=True)
class FitResult:
    """state: the best weights, on the CPU. losses: {"train", "val", "val_macro_f1"}, one entry an
    epoch, unweighted. resumed: from a checkpoint. backend: name of what computed it. not_compiled:
    why not, where that was asked for.
    """

    state: State
    losses: dict[str, list[float | None]]
    best_epoch: int
    epochs: int
    updates: int
    stopped_by: Literal["patience", "max_epochs", "no_epochs"]
    resumed: bool
    backend: str
    not_compiled: str = ""

    @property
    def course(self) -> dict[str, Any]:
        """How it went, as results record it."""
        names = ("best_epoch", "epochs", "updates", "stopped_by")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Evaluation:
    """Unweighted mean loss and counts [tn, fp, fn, tp] at probability 0.5."""

    loss: float
    counts: list[int]

    @property
    def macro_f1(self) -> float | None:
        """None where the labels hold one class only."""
        return macro_f1(self.counts)


def epoch_seed(seed_key: str, epoch: int, purpose: str) -> int:
    """A 63-bit seed from the key, the epoch and what it is for."""
    digest = hashlib.sha256(f"{seed_key}\n{epoch}\n{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def serialize(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as bytes: equal weights are equal bytes (torch.save to a path writes the file's
    name into them).
    """
    return _dump({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})


def _dump(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def deserialize(data: bytes) -> Any:
    """What `serialize` wrote; nothing in it is ever executed. Raises CorruptArtifact."""
    try:
        return load_plain(io.BytesIO(data))
    except UNREADABLE as error:
        raise CorruptArtifact(
            "weights cannot be read: damaged, or not written by this project; train them again"
        ) from error


def fit(
    model: Model,
    train: Windows,
    val: Windows | None,
    settings: TrainingSettings,
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
    checkpoint: Checkpoint | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FitResult:
    """Train `model` (in place, on its device) on `train`, choose the best epoch on `val`.

    progress is called after every epoch with epoch, epochs (at most), train_loss, val_loss,
    val_macro_f1, best_epoch, updates. Raises TrainingError when a loss becomes NaN or infinite, and
    InputError when `val` cannot decide (macro F1 on one class).
    """
    if settings.metric == "macro_f1" and val is not None and val.positives in (0, len(val)):
        raise InputError(
            "the validation windows hold one class only, macro F1 is undefined on them; stop on"
            " --early_stopping_metric loss"
        )
    _keep_freed_memory()
    run = _Run(model, train, val, settings)
    run.resume(checkpoint)
    with _torch_threads(run.backend):
        _epochs(run, progress, checkpoint, clock)
    return run.result()


def _epochs(
    run: _Run,
    progress: Callable[[dict[str, Any]], None] | None,
    checkpoint: Checkpoint | None,
    clock: Callable[[], float],
) -> None:
    if run.epoch < 0:
        run.start()
    saved = clock()
    while run.stopped_by is None:
        run.one_epoch()
        if progress is not None:
            progress(run.report())
        if (
            checkpoint is not None
            and run.stopped_by is None
            and (checkpoint.wanted or clock() - saved >= run.settings.checkpoint_seconds)
        ):
            checkpoint.save(run.payload())
            saved = clock()


@contextmanager
def _torch_threads(backend: Backend) -> Iterator[None]:
    """One thread for PyTorch while the kernel runs its own: PyTorch's idle threads spin and take
    the cores from them.
    """
    threads = torch.get_num_threads()
    if isinstance(backend, KernelBackend):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@dataclass
class _Progress:
    """What a checkpoint keeps beside tensors."""

    epoch: int = -1
    updates: int = 0
    best_epoch: int = 0
    best_score: float = math.inf
    losses: dict[str, list[float | None]] = field(
        default_factory=lambda: {"train": [], "val": [], "val_macro_f1": []}
    )


class _Run:
    """One training from its first epoch, or from a checkpoint, to its end."""

    def __init__(
        self, model: Model, train: Windows, val: Windows | None, settings: TrainingSettings
    ) -> None:
        self.model, self.train, self.val, self.settings = model, train, val, settings
        self.device = next(model.parameters()).device
        self.threads = torch.get_num_threads()
        parameters = model.trained(head_only=settings.head_only, freeze=settings.freeze)
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is trained for trained in parameters))
        self.optimizer = Adam(parameters, settings.lr, settings.weight_decay)
        self.backend = backend_for(
            model,
            pos_weight=_pos_weight(settings.pos_weight, train),
            compiled_batch=settings.batch_size if settings.compiled else None,
        )
        self.not_compiled = self._compile()
        self.augment = settings.augment
        if isinstance(settings.augment, Augment) and model.normalized:
            self.augment = settings.augment.relative_to(model.sd)
        self.done = _Progress()
        self.best: State = {}
        self.stopped_by: Literal["patience", "max_epochs"] | None = None
        self.resumed = False

    def _compile(self) -> str:
        """'' or why the network cannot be compiled; leaves it as it was. A set of less than a
        batch is not worth it.
        """
        train, model = self.train, self.model
        if not isinstance(self.backend, AutogradBackend) or len(train) < self.settings.batch_size:
            return ""
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with seeded(0, self.device):
            why = self.backend.compile(train.channels, train.samples)
        model.load_state_dict(state)
        return why

    @property
    def epoch(self) -> int:
        return self.done.epoch

    def start(self) -> None:
        """Epoch 0: nothing trained yet; a fine-tune scores the model as it came."""
        self.done.epoch = 0
        if self.settings.from_untouched:
            self._conclude(None, self._validate())

    def one_epoch(self) -> None:
        """Train over the set once, validate, keep the best, decide whether to stop."""
        self.done.epoch += 1
        train_loss = self._train()
        self._conclude(float(train_loss), self._validate())
        if self.val is not None and self.epoch - self.done.best_epoch >= self.settings.patience:
            self.stopped_by = "patience"
        elif self.epoch >= self.settings.max_epochs:
            self.stopped_by = "max_epochs"

    def _train(self) -> Tensor:
        settings, epoch = self.settings, self.epoch
        shuffle, augment = (
            torch.Generator().manual_seed(epoch_seed(settings.seed_key, epoch, name))
            for name in ("shuffle", "augment")
        )
        order, batches = epoch_batches(
            len(self.train),
            settings.batch_size,
            settings.min_steps_per_epoch,
            shuffle,
            self.model.smallest_batch,
        )
        in_place = self._reads_in_place()
        together = chunk_batches(self.train.window_bytes, settings.batch_size, in_place)
        pieces = _pieces(batches, together)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with seeded(epoch_seed(settings.seed_key, epoch, "dropout"), self.device):
            sizes = [sum(piece) for piece in pieces]
            found = scattered.pieces(self.train, order, sizes) if in_place else None
            chunks: Iterator[tuple[Any, Tensor]] = found or self.train.chunks(order, sizes)
            for piece, (x, y) in zip(pieces, chunks, strict=True):
                if isinstance(self.augment, Augment) and isinstance(x, Scattered):
                    x = self.augment.while_read(x, augment)
                elif self.augment is not None:
                    x = self.augment(x, augment)
                total += self.backend.train(x, y, piece, self.optimizer)
        self.done.updates += len(batches)
        return total / len(order)

    def _reads_in_place(self) -> bool:
        """Whether no window has to be gathered: a user's own augmentation takes a tensor."""
        ours = self.augment is None or isinstance(self.augment, Augment)
        return ours and isinstance(self.backend, KernelBackend)

    def _validate(self) -> Evaluation | None:
        if self.val is None:
            return None
        return evaluate(self.backend, self.val)

    def _conclude(self, train_loss: float | None, validation: Evaluation | None) -> None:
        for name, loss in (
            ("training", train_loss),
            ("validation", validation.loss if validation else None),
        ):
            if loss is not None and not math.isfinite(loss):
                raise TrainingError(
                    f"the {name} loss became {loss} in epoch {self.epoch}; lower --lr, or look for"
                    " extreme samples in the data"
                )
        losses = self.done.losses
        losses["train"].append(train_loss)
        losses["val"].append(validation.loss if validation else None)
        losses["val_macro_f1"].append(validation.macro_f1 if validation else None)
        score = _score(validation, self.settings.metric)
        if score < self.done.best_score or validation is None or not self.best:
            self.done.best_score, self.done.best_epoch = score, self.epoch
            self.best = {
                name: value.detach().clone() for name, value in self.model.state_dict().items()
            }

    def report(self) -> dict[str, Any]:
        """The last epoch in numbers."""
        losses = self.done.losses
        return {
            "epoch": self.epoch,
            "epochs": self.settings.max_epochs,
            "train_loss": losses["train"][-1],
            "val_loss": losses["val"][-1],
            "val_macro_f1": losses["val_macro_f1"][-1],
            "best_epoch": self.done.best_epoch,
            "updates": self.done.updates,
        }

    def result(self) -> FitResult:
        """Called when `stopped_by` is set; the model is left with its best weights."""
        assert self.stopped_by is not None
        self.model.load_state_dict(self.best)
        state = {name: value.cpu() for name, value in self.best.items()}
        return FitResult(
            state,
            self.done.losses,
            self.done.best_epoch,
            self.epoch,
            self.done.updates,
            self.stopped_by,
            self.resumed,
            self.backend.name,
            self.not_compiled,
        )

    def _binding(self) -> str:
        """What a checkpoint must agree with: everything that the bytes depend on."""
        settings = {
            name: value
            for name, value in asdict(self.settings).items()
            if name != "checkpoint_seconds"
        }
        shape = [
            len(self.train),
            self.train.channels,
            self.train.samples,
            len(self.val) if self.val else 0,
        ]
        return repr((settings, shape, torch.__version__, self.threads, self.backend.name))

    def payload(self) -> bytes:
        """A checkpoint of everything that the next epoch depends on."""
        return _dump(
            {
                "binding": self._binding(),
                "progress": asdict(self.done),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state,
                "best": self.best,
            }
        )

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Continue from a checkpoint of this training; ignore a damaged one, or one of another
        training.
        """
        data = checkpoint.load() if checkpoint is not None else None
        if data is None:
            return
        try:
            payload = deserialize(data)
        except CorruptArtifact:
            return
        if not isinstance(payload, dict) or payload.get("binding") != self._binding():
            return
        self.done = _Progress(**payload["progress"])
        self.model.load_state_dict(payload["model"])
        self.optimizer.load(payload["optimizer"])
        self.best = {name: value.to(self.device) for name, value in payload["best"].items()}
        self.resumed = True


def _pos_weight(pos_weight: float | str, train: Windows) -> float:
    if pos_weight != "balanced":
        return float(pos_weight)
    return (
        (len(train) - train.positives) / train.positives
        if 0 < train.positives < len(train)
        else 1.0
    )


def _score(validation: Evaluation | None, metric: str) -> float:
    """Lower is better."""
    if validation is None:
        return math.inf
    value = validation.macro_f1 if metric == "macro_f1" else None
    return validation.loss if value is None else -value


def epoch_batches(
    count: int, batch_size: int, min_steps: int, generator: torch.Generator, smallest: int = 1
) -> tuple[Tensor, list[int]]:
    """One epoch: row numbers in order, and the size of each batch.

    Every window once, shuffled, the last partial batch kept (one of less than `smallest` joins the
    batch before it); a small set is shuffled anew and repeated until there are `min_steps` batches.
    """
    one_pass = [batch_size] * (count // batch_size)
    rest = count % batch_size
    if one_pass and 0 < rest < smallest:
        one_pass[-1] += rest
    elif rest:
        one_pass.append(rest)
    steps = max(len(one_pass), min_steps)
    passes = -(-steps // len(one_pass))
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    batches = (one_pass * passes)[:steps]
    return order[: sum(batches)], batches


def _pieces(batches: list[int], together: int) -> list[list[int]]:
    return [batches[start : start + together] for start in range(0, len(batches), together)]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout takes no generator: seed the global ones inside, and leave them outside as they
    were.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed also prepares GPUs that are not used, which takes longer than an epoch's
        # validation.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def _keep_freed_memory() -> None:
    """Tell glibc to keep what a step frees for the next step: giving it back and faulting it in
    again costs a quarter of the time.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD


def evaluate(backend: Backend, windows: Windows) -> Evaluation:
    """Score a set of windows with one transfer to the host."""
    total = torch.zeros(5, dtype=torch.float64, device=windows.device)
    for x, y in backend.batches(windows):
        total += backend.evaluate(x, y)
    loss, *counts = total.tolist()
    return Evaluation(loss / len(windows), [int(count) for count in counts])
