"""Trials: files that would run something if they were unpickled carelessly, in every place from
which the product loads. Twenty kinds; none may run.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import json
import operator
import os
import pickle
import pickletools
import runpy
import shutil
import struct
import subprocess
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import artifacts
from common.data.demo import read_object_npy
from common.data.manifest import Sha256Cache
from common.errors import CorruptArtifact, InputError, ProjectError
from common.jobs.identity import code_fingerprints, digest
from tests.trust.checker import contents
from tests.trust.damage import Published, cold_worker, refusal
from tests.trust.kills import fork, here
from tests.trust.world import BASE

# the file that the payload would touch -> bytes of a file that is loaded
Make = Callable[[str], bytes]


class _Calls:
    """Unpickling it calls something."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self._reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self._reduced


class _Sets(_Calls):
    """Unpickling it hands a state to a __setstate__."""


def _touch(mark: str) -> str:
    return f"open({mark!r}, 'w').close()"


def _objects(mark: str) -> dict[str, Any]:
    """What carries the payload, by kind."""
    shell, python = f"touch '{mark}'", _touch(mark)
    inner = io.BytesIO()
    torch.save(_Calls(exec, python), inner)
    code = compile(python, "x", "exec")
    return {
        "os.system": _Calls(os.system, shell),
        "os.popen": _Calls(os.popen, shell),
        "subprocess.run": _Calls(subprocess.run, ["touch", mark]),
        "subprocess.Popen": _Calls(subprocess.Popen, ["touch", mark]),
        "exec": _Calls(exec, python),
        "eval": _Calls(eval, python),
        "builtins.open for writing": _Calls(open, mark, "w"),
        "getattr chain": _Calls(getattr, os, "system"),
        "functools.partial": _Calls(functools.partial, os.system, shell),
        "operator.methodcaller": _Calls(operator.methodcaller, "system", shell),
        "codecs.encode": _Calls(codecs.encode, shell, "rot13"),
        "runpy": _Calls(runpy._run_code, code.co_code, {}),
        "types.CodeType": _Calls(types.SimpleNamespace),
        "torch.load within": _Calls(torch.load, io.BytesIO(inner.getvalue())),
        "torch.storage._load_from_bytes": _Calls(torch.storage._load_from_bytes, inner.getvalue()),
        "torch.hub.load": _Calls(torch.hub.load, "nobody/nothing"),
        "numpy object array": np.array([_Calls(exec, python)], dtype=object),
        "a state handed to __setstate__": _Sets(
            functools.partial, print, state=(os.system, (shell,), {}, {})
        ),
        "shutil.copy": _Calls(shutil.copy, "/etc/hostname", mark),
        "pickle.loads within": _Calls(pickle.loads, pickle.dumps(_Calls(exec, python))),
    }


def _saved(value: Any, **more: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **more)
    return buffer.getvalue()


def _raw(value: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


def _zipped(value: Any) -> bytes:
    """The zip that torch.save writes, made by hand, with the payload where the index belongs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", _raw(value))
        archive.writestr("archive/version", "3\n")
        # what would make it a TorchScript file
        archive.writestr("archive/constants.pkl", _raw(value))
        archive.writestr("archive/code/__torch__.py", "raise SystemExit\n")
    return buffer.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "torch.save": _saved,
    "torch.save, the old format": lambda value: _saved(value, _use_new_zipfile_serialization=False),
    "a tensor beside it": lambda value: _saved((torch.zeros(12, 2, 16), value)),
    "in a state dict": lambda value: _saved({"weight": torch.zeros(3), "extra": value}),
    "a bare pickle": _raw,
    "a bare pickle, protocol 0": lambda value: _raw(value, 0),
    "a zip as of TorchScript": _zipped,
}


def payloads(mark: str) -> dict[str, bytes]:
    """Every kind of object in every form that can hold it."""
    made = {}
    for kind, value in _objects(mark).items():
        for form, write in FORMS.items():
            try:
                made[f"{kind}, {form}"] = write(value)
            # this form cannot hold this kind
            except (TypeError, AttributeError, pickle.PicklingError, ValueError):
                continue
    return made


def kinds() -> int:
    """How many kinds of objects."""
    return len(_objects("x"))


def really_runs(mark: Path) -> int:
    """How many of them a careless load executes, in a child: payloads that do nothing would prove
    nothing.
    """
    said = mark.with_name("said")
    _, status = os.waitpid(fork(lambda: _run_them(mark), said), 0)
    assert status == 0, said.read_text()
    return int(json.loads(said.read_text()))


def _run_them(mark: Path) -> int:
    count = 0
    for content in payloads(str(mark)).values():
        # only whether it ran is of interest
        with contextlib.suppress(Exception, SystemExit), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(content), weights_only=False)
        if mark.exists():
            mark.unlink()
            count += 1
    return count


# -- the places from which something is loaded


def data_file(there: Published, content: bytes) -> str:
    """X and y of a participant."""
    path = there.world.folder / "data/tiny/bob_train.pt"
    good = path.read_bytes()
    path.write_bytes(content)
    try:
        return refusal(lambda: here(there.world.folder, "base", {**BASE, "seed": 5}), InputError)
    finally:
        path.write_bytes(good)


def base_model(there: Published, content: bytes) -> str:
    """Weights whose SHA-256 is right, as a hostile node can make them."""
    paths = there.paths
    good = artifacts.open_base_model(paths, there.base)
    artifacts.publish_base_model(paths, there.base, content, good.metadata)
    try:
        with cold_worker():
            return refusal(
                lambda: here(
                    there.world.folder,
                    "finetune",
                    {**there.tune, "seed_finetune": 7, "prefix": "q"},
                ),
                CorruptArtifact,
            )
    finally:
        artifacts.publish_base_model(paths, there.base, good.weights, good.metadata)


def checkpoint(there: Published, content: bytes) -> str:
    """A checkpoint whose checksum is right: left aside, the training gives the same bytes."""
    folder = there.world.folder
    shutil.rmtree(folder / "base_models")
    name = _checkpoint_name(there)
    artifacts.write_file(name, artifacts.sha256(content).encode() + b"\n" + content)
    here(folder, "base", BASE)
    return "left aside" if contents(folder) == there.whole else ""


def _checkpoint_name(there: Published) -> Path:
    config = json.loads((there.world.folder / "experiments/p/fold0_ann/config.json").read_bytes())
    return there.paths.checkpoint(f"{config['training_key']}-{digest(code_fingerprints(), 8)}")


def wheel(there: Published, content: bytes) -> str:
    """The pickled array in the demo's wheel."""
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + "\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content
    return refusal(lambda: read_object_npy(npy), Exception)


def json_file(there: Published, content: bytes) -> str:
    """Where JSON belongs: metadata, metrics, config, the cache."""
    paths = there.paths
    said, experiment = [], there.world.folder / "experiments/p/fold0_ann"
    openers: dict[Path, Callable[[], object]] = {
        paths.base_metadata(there.base): lambda: artifacts.open_base_model(paths, there.base),
        experiment / "metrics.json": lambda: artifacts.open_experiment(experiment),
    }
    for path in openers:
        good = path.read_bytes()
        path.write_bytes(content)
        said.append(refusal(openers[path], ProjectError))
        path.write_bytes(good)
    paths.sha256_cache.parent.mkdir(exist_ok=True)
    paths.sha256_cache.write_bytes(content)
    Sha256Cache(paths.sha256_cache)
    return "; ".join(said) if all(said) else ""


PLACES: dict[str, Callable[[Published, bytes], str]] = {
    "data": data_file,
    "base model": base_model,
    "checkpoint": checkpoint,
    "demo's wheel": wheel,
    "JSON": json_file,
}


def nothing_runs(there: Published, place: str, mark: Path, every: int = 1) -> int:
    """Every payload (or `every` n-th) in one place: refused in words (or left aside), and the
    payload's mark never made.
    """
    count = 0
    for kind, content in list(payloads(str(mark)).items())[::every]:
        raw = (
            pickletools.optimize(content) if place == "demo's wheel" and "bare" in kind else content
        )
        said = PLACES[place](there, raw)
        assert not mark.exists(), f"{kind} in {place}: it ran"
        assert said, f"{kind} in {place}: not refused"
        count += 1
    return count
