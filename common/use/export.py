"""A finished model as one file for other programs: raw samples in, probability out."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from common.artifacts import sha256, to_json, write_file
from common.errors import Conflict, InputError, TrainingError
from common.training import metrics
from common.training.provenance import versions
from common.training.setup import number_of_parameters
from common.use.model import FinishedModel

OPSET = 18
MOST_DIFFERENCE = 1e-5
CHECKED = 4096  # windows at most
FILES = {"onnx": "model.onnx", "torch": "model.pt2", "executorch": "model.pte"}
QUANTIZED = "model_int8.onnx"
CARD = "model_card.json"
# What the card says of its file, not of the model
OF_A_FILE = (
    "file",
    "sha256",
    "bytes",
    "checked",
    "seconds_per_window_on_one_thread",
    "made_with",
    "quantized",
)
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": (), "executorch": ("executorch",)}
Floats = NDArray[np.float32]
Run = Callable[[Floats], Floats]


@dataclass(frozen=True)
class TrialWindows:
    """Windows that an exported file is run on. `what` says which they are."""

    x: Tensor
    y: Tensor | None
    what: str


@dataclass(frozen=True)
class Exported:
    """A file, and what was measured of it."""

    path: Path
    card: dict[str, Any]


class FileEntry(BaseModel):
    """What a card says of one file."""

    model_config = ConfigDict(extra="allow")
    file: str
    sha256: str
    quantized: FileEntry | None = None


class Card(FileEntry):
    """model_card.json, as far as the next export into the same folder reads it."""

    weights_sha256: str
    other_files: list[FileEntry] = []


class _WithProbability(nn.Module):
    """Raw samples [batch, channels, samples] to probability [batch]: normalisation is inside, and
    dropout is off.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, samples: Tensor) -> Tensor:
        return torch.sigmoid(self.network(samples).reshape(-1))


def check_packages(kind: str, *, quantize: bool) -> None:
    """Raises InputError where the packages for a format are not installed."""
    missing = [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]
    if missing and kind == "executorch":
        raise InputError(
            "--format executorch: its package is not installed; it is not part of"
            " requirements-export.txt, since it holds other packages back: pip install executorch"
            " into an environment of its own"
        )
    if missing:
        raise InputError(
            f"--format {kind}: {', '.join(missing)} not installed: python3 -m pip install -r"
            " requirements-export.txt -c constraints.txt"
        )
    if quantize and kind != "onnx":
        raise InputError(f"--quantize int8 is for --format onnx, not {kind}")


def export(model: FinishedModel, out: Path, kind: str, root: Path, *, quantize: bool) -> Exported:
    """Write the model and its card below `out`, both only when the file gives the model's own
    probabilities.

    root: the project folder in which the model's own windows are looked for.

    Raises:
        InputError: a package is missing, or there are no windows to quantise on. Conflict: another
        model's card is there. TrainingError: the exported file gives other probabilities.
    """
    check_packages(kind, quantize=quantize)
    before = card_before(model, out)
    windows = own_windows(model, root)
    try:
        content = _CONVERT[kind](model)
    except Exception as error:
        last = str(error).strip().splitlines()[-1:] or [""]
        raise InputError(
            f"--format {kind} cannot express {model.options.model}: {type(error).__name__}:"
            f" {last[0][:300]}"
        ) from error
    run = _RUN[kind](content)
    difference = _compare(model, run, windows)
    card = _card(model, kind, content, windows, difference, seconds_per_window(run, windows.x))
    if quantize:
        small, card["quantized"] = quantized(model, content, root)
        write_file(out / QUANTIZED, small)
    write_file(out / FILES[kind], content)
    if before:
        _keep_others(card, before, out)
    write_file(out / CARD, to_json(card))
    return Exported(out / FILES[kind], card)


def card_before(model: FinishedModel, out: Path) -> Card | None:
    """The card of an earlier export of this model, if there is one in `out`. Raises Conflict where
    the card is another model's.
    """
    try:
        card = Card.model_validate_json((out / CARD).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        card = None
    if card is None or card.weights_sha256 != model.weights_sha256:
        whose = f"weights {card.weights_sha256[:8]}" if card else "not one of export.py"
        raise Conflict(
            f"{out / CARD}: is the card of another model ({whose}; {model.name} has weights"
            f" {model.weights_sha256[:8]}); give another --out, or remove that folder"
        )
    return card


def _keep_others(card: dict[str, Any], before: Card, out: Path) -> None:
    """Name in the new card what earlier exports wrote and still is there, as it was."""
    every = before.model_dump(exclude_unset=True)
    same = {name: value for name, value in every.items() if name in OF_A_FILE}
    for entry in (same, *every.get("other_files", [])):
        if entry["file"] != card["file"]:
            if _is_there(out, entry):
                card.setdefault("other_files", []).append(entry)
        elif entry.get("quantized") and _is_there(out, entry["quantized"]):
            card.setdefault("quantized", entry["quantized"])


def _is_there(out: Path, entry: dict[str, Any]) -> bool:
    path = out / str(entry.get("file"))
    return path.is_file() and sha256(path.read_bytes()) == entry.get("sha256")


def own_windows(model: FinishedModel, root: Path) -> TrialWindows:
    """The model's own test windows where the data set is here, else made ones."""
    found = model.windows(root, "test", CHECKED)
    if found is not None:
        return TrialWindows(*found, f"{len(found[0])} of its test windows")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(256, model.channels, model.options.window_size, generator=generator)
    mean, sd = model.network.mean[:, None], model.network.sd[:, None]
    return TrialWindows(noise * sd + mean, None, "256 random windows, since its data are not here")


def _compare(model: FinishedModel, run: Run, windows: TrialWindows) -> float:
    """Greatest difference from the model's own probabilities, in batches of several sizes. Raises
    TrainingError where it is too great.
    """
    expected = model.probabilities([windows.x.numpy()])
    found = np.concatenate([run(part.numpy()) for part in torch.split(windows.x, 100)])
    single = np.concatenate([run(windows.x[i : i + 1].numpy()) for i in range(3)])
    difference = float(max(np.abs(found - expected).max(), np.abs(single - expected[:3]).max()))
    if not difference <= MOST_DIFFERENCE:
        raise TrainingError(
            f"the exported file gives other probabilities than {model.name}: they differ by"
            f" {difference:.2g} on {windows.what}; nothing was written"
        )
    return difference


def seconds_per_window(run: Run, x: Tensor) -> float:
    """Median time of one window by itself."""
    one = x[:1].numpy()
    times = []
    for _ in range(60):
        began = time.perf_counter()
        run(one)
        times.append(time.perf_counter() - began)
    return statistics.median(times[10:])


def _card(
    model: FinishedModel,
    kind: str,
    content: bytes,
    windows: TrialWindows,
    difference: float,
    seconds: float,
) -> dict[str, Any]:
    """What a program that runs the file must know; no names of people, no paths."""
    options = model.options
    return {
        "file": FILES[kind],
        "sha256": sha256(content),
        "bytes": len(content),
        "input": {
            "name": "samples",
            "shape": ["batch", model.channels, options.window_size],
            "type": "float32",
            "values": "raw samples in the units of the recording; normalisation is inside",
            **(dict(model.input) if model.input else {}),
        },
        "output": {
            "name": "probability",
            "shape": ["batch"],
            "type": "float32",
            "values": "probability that the window is positive",
        },
        "threshold": {"default": 0.5, "tuned": model.threshold_tuned},
        "network": options.model,
        "parameters": number_of_parameters(model.network),
        "weights_sha256": model.weights_sha256,
        "base_model_hash": model.base_model_hash,
        "test_scores": dict(model.scores),
        "checked": {"on": windows.what, "greatest_difference": difference},
        "seconds_per_window_on_one_thread": seconds,
        "made_with": versions() | ({"onnx_opset": str(OPSET)} if kind == "onnx" else {}),
    }


# -- formats


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that have nothing to do with this."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(before)


def _program(model: FinishedModel) -> tuple[nn.Module, tuple[Tensor], dict[str, Any]]:
    x = torch.zeros(2, model.channels, model.options.window_size)
    batch = torch.export.Dim("batch")
    return _WithProbability(model.network).eval(), (x,), {"samples": {0: batch}}


def _onnx(model: FinishedModel) -> bytes:
    module, example, shapes = _program(model)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["samples"],
            output_names=["probability"],
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        return _without_traces(program.model_proto)


def _without_traces(proto: Any) -> bytes:
    """The file's bytes without what the exporter notes of the code: stack traces with this
    machine's paths.
    """
    graphs = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        for name in ("node", "value_info", "input", "output", "initializer"):
            for part in getattr(graph, name, ()):
                if not isinstance(part, str):
                    del part.metadata_props[:]
                    part.doc_string = ""
        for node in graph.node:
            graphs += [value.g for value in node.attribute if value.HasField("g")]
        del graph.metadata_props[:]
    del proto.metadata_props[:]
    return bytes(proto.SerializeToString(deterministic=True))


def _torch(model: FinishedModel) -> bytes:
    module, example, shapes = _program(model)
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        torch.export.save(torch.export.export(module, example, dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def _executorch(model: FinishedModel) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module, _, _ = _program(model)
    one = (torch.zeros(1, model.channels, model.options.window_size),)
    with _quiet(), torch.no_grad():
        lowered = to_edge_transform_and_lower(
            torch.export.export(module, one), partitioner=[XnnpackPartitioner()]
        )
        return bytes(lowered.to_executorch().buffer)


def _run_onnx(content: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"samples": x})[0], dtype=np.float32)


def _run_torch(content: bytes) -> Run:
    module = torch.export.load(io.BytesIO(content)).module()

    def run(x: Floats) -> Floats:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(np.ascontiguousarray(x))).numpy())

    return run


def _run_executorch(content: bytes) -> Run:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(content).load_method("forward")

    def run(x: Floats) -> Floats:
        windows = torch.from_numpy(np.ascontiguousarray(x))
        return np.concatenate([method.execute([one])[0].numpy() for one in torch.split(windows, 1)])

    return run


_CONVERT = {"onnx": _onnx, "torch": _torch, "executorch": _executorch}
_RUN = {"onnx": _run_onnx, "torch": _run_torch, "executorch": _run_executorch}


# -- quantisation


def quantized(model: FinishedModel, content: bytes, root: Path) -> tuple[bytes, dict[str, Any]]:
    """The ONNX file with 8-bit weights and activations, calibrated on the model's training windows,
    and what that costs on its validation windows.

    Raises:
        InputError: those windows are not here.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    calibration, validation = model.windows(root, "train", 512), model.windows(root, "val")
    if calibration is None or validation is None:
        raise InputError(
            "--quantize int8: the activations' ranges are measured on the model's own training"
            f" windows, but {model.options.data_path} is not here as it was; run it in the project"
            " folder"
        )
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        source.write_bytes(content)
        quantize_static(
            str(source),
            str(target),
            _Calibration(calibration[0]),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        small = target.read_bytes()
    x, y = validation
    scores = [
        metrics.threshold_scores(y.numpy(), run(x.numpy()), 0.5)[0]["macro_f1"]
        for run in (_run_onnx(content), _run_onnx(small))
    ]
    card = {
        "file": QUANTIZED,
        "bytes": len(small),
        "sha256": sha256(small),
        "seconds_per_window_on_one_thread": seconds_per_window(_run_onnx(small), x),
        "validation_windows": len(y),
        "validation_macro_f1": scores[1],
        "validation_macro_f1_before": scores[0],
    }
    return small, card


class _Calibration:
    """Training windows, a batch at a time, as the quantiser asks for them."""

    def __init__(self, x: Tensor) -> None:
        self._batches = iter(torch.split(x, 64))

    def get_next(self) -> dict[str, Any] | None:
        x = next(self._batches, None)
        return None if x is None else {"samples": x.numpy()}
