"""The user's own network and augmentation: one Python file each, imported from a copy by content.

A module is named by the SHA-256 of its file, so that two versions of one file in one process never
mix, and a file that is edited while it is used changes nothing. What the user's code raises becomes
one line with the file, the line number and the error's own last line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from common import artifacts
from common.data.dataset import Windows
from common.errors import InputError, ProjectError, TrainingError, nearest
from common.options import Options
from common.paths import Paths
from common.training.loop import seeded
from common.training.networks import Model


@dataclass(frozen=True)
class OwnFile:
    """NAME in a file, as it was read. kind: model or augmentation. path: the copy to import."""

    kind: str
    file: str
    name: str
    content: bytes
    path: Path

    @property
    def sha256(self) -> str:
        return artifacts.sha256(self.content)

    @property
    def record(self) -> dict[str, str]:
        """What a result keeps of it."""
        text = self.content.decode()
        return {"file": self.file, "name": self.name, "sha256": self.sha256, "source": text}


@dataclass(frozen=True)
class Own:
    """The own code of one training; both None where everything is built in."""

    model: OwnFile | None = None
    augmentation: OwnFile | None = None

    @property
    def sources(self) -> list[OwnFile]:
        """Those that are there."""
        return [source for source in (self.model, self.augmentation) if source is not None]

    @property
    def record(self) -> dict[str, dict[str, str]]:
        """By option, what a result keeps."""
        return {source.kind: source.record for source in self.sources}

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """What the user's code raises while it is trained becomes a TrainingError of one line."""
        try:
            yield
        except (ProjectError, MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            for source in self.sources:
                if line := _line(source, error):
                    raise TrainingError(_told(source, line, error)) from error
            raise


def read_own(paths: Paths, options: Options, fingerprints: Mapping[str, str]) -> Own:
    """The own code that `options` name, copied by content below cache/.

    Raises:
        InputError: it cannot be read. TrainingError: it is no longer the file of `fingerprints`.
    """
    found = {
        kind: _read(paths, kind, file, name, fingerprints[f"./{file}"])
        for kind, (file, name) in options.own_code.items()
    }
    return Own(**found)


def _read(paths: Paths, kind: str, file: str, name: str, sha256: str) -> OwnFile:
    content = (paths.root / file).read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        raise InputError(f"{kind}: {file}: is not UTF-8 text") from None
    digest = artifacts.sha256(content)
    if digest != sha256:
        raise TrainingError(f"{file} changed while it was read: run it again")
    copy = paths.own_code(digest, os.path.basename(file))
    if not copy.is_file() or copy.read_bytes() != content:
        artifacts.write_file(copy, content)
    return OwnFile(kind, file, name, content, copy)


def kept_network(record: Mapping[str, Any], folder: Path) -> OwnFile | None:
    """The own network of a published result, from what it keeps; None where it is built in."""
    own = record.get("model")
    if own is None:
        return None
    content = str(own["source"]).encode()
    return OwnFile("model", str(own["file"]), str(own["name"]), content, folder / "model.py")


# -- importing


def load_own(source: OwnFile) -> Any:
    """The object that `source` names. Raises InputError."""
    module = _module(source)
    if not hasattr(module, source.name):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise InputError(
            f"{source.kind}: {source.file} defines no {source.name}{nearest(source.name, public)}"
        )
    return getattr(module, source.name)


def _module(source: OwnFile) -> ModuleType:
    name = f"own_code_{source.sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(source.path)
    with named(source), torch.random.fork_rng(devices=[]):
        code = compile(source.content, str(source.path), "exec")
        sys.modules[name] = module  # dataclasses and pickles look their module up
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return module


@contextlib.contextmanager
def named(source: OwnFile, doing: str = "") -> Iterator[None]:
    """What the user's code raises becomes an InputError of one line."""
    try:
        yield
    except (ProjectError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(_told(source, _line(source, error), error, doing)) from error


def _told(source: OwnFile, line: int, error: BaseException, doing: str = "") -> str:
    last = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        last = f"{type(error).__name__}: {error.msg}"
    where = f"{source.file}, line {line}" if line else f"{source.file}:{source.name}"
    return f"{source.kind}: {where}: {doing}{last}"


def _line(source: OwnFile, error: BaseException) -> int:
    """The innermost line of the user's file that the error passed through; 0: none."""
    if isinstance(error, SyntaxError) and error.filename == str(source.path):
        return error.lineno or 0
    module = sys.modules.get(f"own_code_{source.sha256[:16]}")
    files = {str(source.path), str(getattr(module, "__file__", ""))}
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 0 for f in reversed(frames) if f.filename in files), 0)


# -- networks


class OwnNetwork(Model):
    """The user's network behind what all networks have: normalisation, a head, logits [batch].

    Its entries in the state dict are called 'net.' and the user's own name.
    """

    whole_batches = True  # batch normalisation sees the batch that the options ask for
    smallest_batch = 2  # and needs two windows

    def __init__(self, source: OwnFile, net: nn.Module, channels: int) -> None:
        super().__init__(channels)
        self.net = net
        self._source = source
        self._resting: list[nn.Module] = []

    def own_name(self, name: str) -> str:
        """The user's name of a state dict's entry."""
        return name.removeprefix("net.")

    def forward(self, x: Tensor) -> Tensor:
        # the network may change its input, which must not be the caller's windows
        logits: Tensor = self.net(self.normalize(x) if self.normalized else x.clone())
        return logits.squeeze(1) if logits.ndim == 2 else logits

    def head_parameters(self) -> list[nn.Parameter]:
        head = getattr(self.net, "head", None)
        parameters = list(head.parameters()) if isinstance(head, nn.Module) else []
        if isinstance(head, nn.Parameter):
            parameters = [head]
        if not parameters:
            raise InputError(
                f"model: {self._source.file}:{self._source.name} has no attribute head with"
                " parameters, which mode head_only_fine_tuning trains: add one"
            )
        return parameters

    def trained(self, *, head_only: bool, freeze: Sequence[str]) -> list[nn.Parameter]:
        """As in Model; layers that are left alone wholly, batch normalisation's running averages
        included, stay in evaluation mode.
        """
        chosen = super().trained(head_only=head_only, freeze=freeze)
        ids = {id(parameter) for parameter in chosen}
        head = getattr(self.net, "head", None)
        in_head = set(head.modules()) if isinstance(head, nn.Module) else set()

        def rests(name: str, module: nn.Module) -> bool:
            if own := list(module.parameters(recurse=False)):
                return not any(id(parameter) in ids for parameter in own)
            buffers = [f"{name}.{buffer}" for buffer, _ in module.named_buffers(recurse=False)]
            if not buffers:
                return False
            if head_only and module not in in_head:
                return True
            return all(any(fnmatchcase(one, pattern) for pattern in freeze) for one in buffers)

        self._resting = [module for name, module in self.net.named_modules() if rests(name, module)]
        return chosen

    def train(self, mode: bool = True) -> OwnNetwork:
        super().train(mode)
        for module in self._resting:
            module.eval()
        return self


def own_network(
    source: OwnFile, *, channels: int, samples: int, keywords: Mapping[str, Any], seed: int
) -> OwnNetwork:
    """The user's network for windows [channels, samples], initialised from `seed` without touching
    the global random state, and run once on two windows of zeros.

    Raises:
        InputError: it cannot be made, or its output is not one logit a window.
    """
    make = load_own(source)
    with torch.random.fork_rng(devices=[]), named(source):
        torch.manual_seed(seed)
        if not callable(make):
            raise InputError(f"{_title(source)} is {type(make).__name__}, not a network class")
        net = make(channels=channels, samples=samples, **keywords)
        if not isinstance(net, nn.Module):
            raise InputError(f"{_title(source)} gives {type(net).__name__}, not a torch.nn.Module")
        with torch.no_grad():
            _check_logits(source, net.eval()(torch.zeros(2, channels, samples)))
        _check_parameters(source, net)
        return OwnNetwork(source, net, channels)


def _title(source: OwnFile) -> str:
    return f"{source.kind}: {source.file}:{source.name}"


def _check_logits(source: OwnFile, logits: Any) -> None:
    if not isinstance(logits, Tensor):
        raise InputError(f"{_title(source)} returns {type(logits).__name__}, not a tensor")
    if tuple(logits.shape) not in ((2,), (2, 1)):
        raise InputError(
            f"{_title(source)} gives {list(logits.shape)} for two windows; one logit a window is"
            " needed, [batch] or [batch, 1]"
        )
    if logits.dtype != torch.float32:
        raise InputError(f"{_title(source)} gives {logits.dtype}; float32 is needed")


def _check_parameters(source: OwnFile, net: nn.Module) -> None:
    parameters = dict(net.named_parameters())
    if not parameters:
        raise InputError(f"{_title(source)} has no parameters: there is nothing to train")
    others = [name for name, value in net.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(
            f"{_title(source)} keeps more than tensors in its state ({others[0]}), which is stored"
            " as tensors alone: keep numbers by register_buffer instead of get_extra_state"
        )
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{_title(source)}: parameter {name} is {parameter.dtype}; float32 is needed"
            )


def check_network(model: Model, source: OwnFile, x: Tensor) -> None:
    """Try the network on two windows x of the training data, forward and backward, and leave it as
    it was.

    Raises:
        InputError: it fails, gives NaN, does not learn, or differs from call to call in evaluation.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with named(source, "on two training windows: "), seeded(0, x.device):
        model.eval()
        with torch.no_grad():
            first, again = model(x), model(x)
        if not torch.isfinite(first).all():
            raise InputError(
                f"{_title(source)} gives {first.tolist()} for two training windows: extreme samples"
                " (see --normalization train), or a division by zero?"
            )
        if not torch.equal(first, again):
            raise InputError(
                f"{_title(source)} gives two results for the same windows in evaluation: draw"
                " random numbers only while self.training"
            )
        model.train()
        logits = model(x)
        _check_logits(source, logits)
        if not logits.requires_grad:
            raise InputError(f"{_title(source)}: its output depends on no parameter")
        logits.sum().backward()
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)


# -- augmentation


@dataclass(frozen=True)
class OwnAugmentation:
    """The user's augmentation, (x, generator) -> x; the generator lives on the device of x."""

    file: str
    name: str
    sha256: str

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x: float32 [windows, channels, samples]. `generator` is a CPU generator."""
        if x.device.type != "cpu":
            seed = int(torch.randint(2**62, (), generator=generator))
            generator = torch.Generator(x.device).manual_seed(seed)
        function: Callable[[Tensor, torch.Generator], Tensor] = getattr(
            sys.modules[f"own_code_{self.sha256[:16]}"], self.name
        )
        return function(x, generator)


def check_own(own: Own, model: Model, windows: Windows) -> None:
    """Try the own code on two of the training windows. Raises InputError."""
    if not own.sources:
        return
    rows = torch.arange(min(2, len(windows)))
    x, _ = next(windows.chunks(rows, [len(rows)], prefetch=False))
    x = x if len(x) == 2 else torch.cat([x, x])
    if own.model is not None:
        check_network(model, own.model, x)
    if own.augmentation is not None:
        check_augmentation(augmentation(own.augmentation), own.augmentation, x)


def augmentation(source: OwnFile) -> OwnAugmentation:
    """The function that `source` names. Raises InputError."""
    if not callable(load_own(source)):
        raise InputError(f"{_title(source)} is no function (x, generator) -> x")
    return OwnAugmentation(source.file, source.name, source.sha256)


def check_augmentation(augment: OwnAugmentation, source: OwnFile, x: Tensor) -> None:
    """Try the augmentation on two windows x of the training data.

    Raises:
        InputError: it fails, gives another shape or NaN, or draws from something else than the
        generator.
    """
    with named(source, "on two training windows: "):
        first, again = (augment(x.clone(), torch.Generator().manual_seed(1)) for _ in range(2))
        if not isinstance(first, Tensor) or first.shape != x.shape or first.dtype != x.dtype:
            got = (
                f"{str(first.dtype).removeprefix('torch.')} {list(first.shape)}"
                if isinstance(first, Tensor)
                else type(first).__name__
            )
            raise InputError(f"{_title(source)} returns {got} for float32 {list(x.shape)}")
        if not torch.isfinite(first).all():
            raise InputError(f"{_title(source)} gives NaN or infinite samples")
        if not torch.equal(first, again):
            raise InputError(
                f"{_title(source)} gives two results for one generator: draw all random numbers"
                " with generator=generator, so that a training can be repeated"
            )
