"""The kernel: against autograd in float64; equal bytes from all threads, batches and compilers;
safe on any shape; built once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.training import backends, networks
from common.training.backends import KernelBackend
from common.training.kernel import build, stack
from common.training.networks import Block, Form, Network
from tests.conftest import ROOT
from tests.unit.training.plain import PlainNetwork

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

block = st.builds(Block, st.integers(1, 21), st.sampled_from([1, 2, 3, 8, 40, 256]), st.booleans())
shapes = st.fixed_dictionaries(
    {
        "channels": st.integers(1, 9),
        "samples": st.one_of(st.integers(1, 40), st.integers(41, 400)),
        "batch": st.one_of(st.just(1), st.integers(2, 40)),
        "blocks": st.lists(block, min_size=1, max_size=5),
        "hidden": st.sampled_from([0, 0, 1, 5, 33]),
        "seed": st.integers(0, 999),
        "pos_weight": st.sampled_from([1.0, 3.5]),
        "normalised": st.booleans(),
    }
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def made(shape: dict) -> tuple[Network, Tensor, Tensor]:
    """A network with random gains and shifts, windows and labels."""
    generator = torch.Generator().manual_seed(shape["seed"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape["seed"])
        network = Network(shape["channels"], Form(shape["blocks"], shape["hidden"]), 0.0)
    with torch.no_grad():
        for parameter in network.norms.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(shape["batch"], shape["channels"], shape["samples"], generator=generator)
    if shape["normalised"]:
        x = x * 3 + 5
        spread = torch.rand(shape["channels"], generator=generator) + 2.5
        network.set_normalization(torch.full((shape["channels"],), 5.0), spread)
    return network, x, (torch.rand(shape["batch"], generator=generator) > 0.5).float()


def kernel_of(network: Network, pos_weight: float = 1.0) -> KernelBackend:
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0) if parameter.requires_grad else None
    backend = backends.backend_for(network, pos_weight=pos_weight)
    assert isinstance(backend, KernelBackend)
    return backend


def gradients(network: Network) -> list[Tensor]:
    return [p.grad.double().clone() for p in network.ordered_parameters() if p.grad is not None]


def truth(network: Network, x: Tensor, y: Tensor, pos_weight: float) -> tuple[Tensor, Tensor]:
    """Logits and the unweighted sum of losses; gradients of the weighted mean are in `.grad`."""
    network.double().zero_grad()
    logits, y = PlainNetwork(network)(x.double()), y.double()
    weight = torch.tensor(pos_weight, dtype=torch.float64)
    F.binary_cross_entropy_with_logits(logits, y, pos_weight=weight).backward()
    loss = F.binary_cross_entropy_with_logits(logits.detach(), y, reduction="sum")
    return logits.detach(), loss


def autograd_in_float32(network, x, y, pos_weight):
    """The gradient by PyTorch's operators, as one vector in float64."""
    network.zero_grad()
    weight = torch.tensor(pos_weight)
    F.binary_cross_entropy_with_logits(PlainNetwork(network)(x), y, pos_weight=weight).backward()
    return torch.cat([g.flatten() for g in gradients(network)]).double()


@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(shapes)
def test_any_shape_agrees_with_autograd_in_float64(shape):
    network, x, y = made(shape)
    backend = kernel_of(network, shape["pos_weight"])
    loss, logits, ours = backend.gradient(x, y), backend.logits(x), gradients(network)
    single = autograd_in_float32(network, x, y, shape["pos_weight"])
    wanted, wanted_loss = truth(network, x, y, shape["pos_weight"])
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-5)
    whole = torch.cat([g.flatten() for g in gradients(network)])
    found = torch.cat([g.flatten() for g in ours])
    # Where terms cancel, or an activation lies within rounding of a ReLU's zero, float32 itself is
    # less exact than 1e-5: then the order of autograd's own error in float32 is the measure.
    allowed = torch.maximum(
        1e-5 * torch.linalg.norm(whole) + 1e-9, 10 * torch.linalg.norm(single - whole)
    )
    assert torch.linalg.norm(found - whole) <= allowed


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("place", [20, 21])
def test_a_window_that_is_not_finite_spoils_itself_and_the_loss_alone(bad, hidden, place):
    """With a dilation of 8 only the first, or only the second, of the pairs that are pooled."""
    shape = {
        "channels": 3,
        "samples": 37,
        "batch": 9,
        "blocks": [Block(5, 8, True), Block(8, 4, False)],
        "hidden": hidden,
        "seed": 1,
        "normalised": False,
    }
    network, x, y = made(shape)
    backend = kernel_of(network)
    clean_loss, clean = backend.gradient(x, y), backend.logits(x)
    kept = gradients(network)
    spoilt = x.clone()
    spoilt[4, 1, place] = bad
    logits = backend.logits(spoilt)
    others = torch.arange(9) != 4
    assert torch.equal(logits[others], clean[others])
    assert not torch.isfinite(logits[4])
    assert not torch.isfinite(backend.gradient(spoilt, y))
    # and nothing of it stays for the next step
    assert torch.equal(backend.gradient(x, y), clean_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients(network), kept, strict=True))


@pytest.mark.parametrize("name", ["test", "cnn64"])
@pytest.mark.parametrize("samples", [100, 2000])
def test_threads_and_batches_change_no_byte(name, samples):
    shape = {"channels": 6, "samples": samples, "batch": 70, "seed": 2, "normalised": True}
    form = networks.NETWORKS[name](None, None)
    network, x, y = made(shape | {"blocks": form.blocks, "hidden": form.hidden})
    seen = []
    for threads in (1, 2, 3, 16, 100):
        torch.set_num_threads(threads)
        backend = kernel_of(network)
        torch.set_num_threads(1)
        seen.append([backend.gradient(x, y), backend.logits(x), *gradients(network)])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
    pieces = torch.cat([backend.logits(part) for part in x.split(7)])
    assert torch.equal(pieces, seen[0][1])


FORKED = """
import os, sys, torch
from common.training import backends, networks
torch.set_num_threads(2)
network = networks.build_network("test", channels=6, seed=0)
for parameter in network.parameters():
    parameter.grad = torch.zeros_like(parameter)
backend = backends.backend_for(network)
x, y = torch.randn(64, 6, 1000), torch.ones(64)
before = backend.gradient(x, y)
child = os.fork()
assert torch.equal(backend.gradient(x, y), before)
del backend
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""


def test_the_child_of_a_fork_has_helpers_of_its_own():
    """It takes over the parent's memory, not its threads: waiting for them would have no end."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_evaluation_sums_losses_and_counts_as_the_stock_operators_do():
    shape = {"channels": 3, "samples": 40, "batch": 50, "seed": 6, "normalised": True}
    network, x, y = made(shape | {"blocks": [Block(6, 1, True)], "hidden": 0})
    with torch.no_grad():
        network.head.bias.sub_(network(x).median())
    ours = kernel_of(network).evaluate(x, y)
    stock = backends.AutogradBackend(network).evaluate(x, y)
    assert all(stock[1:] > 0)
    assert torch.equal(ours[1:], stock[1:])
    torch.testing.assert_close(ours[0], stock[0], rtol=1e-5, atol=0)
    network.head.weight.data.zero_()
    network.head.bias.data.fill_(-1e-9)  # probability 0.5 as a float
    assert kernel_of(network).evaluate(x, y)[1::2].sum() == 0


def test_frozen_parameters_get_no_gradient_and_change_no_other():
    form = networks.NETWORKS["test"](None, None)
    shape = {"channels": 6, "samples": 50, "batch": 20, "seed": 3, "normalised": False}
    network, x, y = made(shape | {"blocks": form.blocks, "hidden": 0})
    kernel_of(network).gradient(x, y)
    every = {name: p.grad.clone() for name, p in network.named_parameters()}
    for frozen in (["convs.0.weight"], ["convs", "norms.1"], ["convs", "norms"], ["head"]):
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not any(name.startswith(start) for start in frozen))
        kernel_of(network).gradient(x, y)
        for name, parameter in network.named_parameters():
            assert (parameter.grad is None) == (not parameter.requires_grad)
            if parameter.grad is not None:
                assert torch.equal(parameter.grad, every[name]), (frozen, name)


def test_dropout_is_a_mask_on_the_features(monkeypatch):
    form = networks.NETWORKS["cnn64"](8, 2)
    network = Network(3, form, 0.5)
    x, y = torch.randn(12, 3, 40), (torch.arange(12) % 2).float()
    backend = kernel_of(network)
    torch.manual_seed(5)
    loss, ours = backend.gradient(x, y), gradients(network)
    torch.manual_seed(5)
    mask = F.dropout(torch.ones(12, 8), 0.5)
    monkeypatch.setattr(network.dropout, "forward", lambda features: features * mask)
    network.zero_grad()
    logits = network(x)
    F.binary_cross_entropy_with_logits(logits, y).backward()
    for one, other in zip(ours, gradients(network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    wanted = F.binary_cross_entropy_with_logits(logits.detach(), y, reduction="sum")
    torch.testing.assert_close(loss.float(), wanted)


def test_equal_neighbours_send_their_gradient_to_the_first_as_max_pooling_does():
    network = networks.build_network("test", channels=2, seed=3)
    with torch.no_grad():
        network.norms[0].weight.zero_()
        # the first block's output is 1 everywhere: every pair is equal, over different inputs
        network.norms[0].bias.fill_(1.0)
    x = torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(4))
    y, backend = torch.tensor([0.0, 1.0, 1.0, 0.0]), kernel_of(network)
    backend.gradient(x, y)
    ours = gradients(network)
    truth(network, x, y, 1.0)
    for one, other in zip(ours, gradients(network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_any_strides_give_the_same_bytes():
    network = networks.build_network("test", channels=6, seed=0)
    x, backend = torch.randn(4, 6, 50), kernel_of(network)
    other = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(backend.logits(other), backend.logits(x))


# -- compilers


def fingerprint(library: Path) -> str:
    """Of all that the library at `library` computes for two networks."""
    loaded, digest = stack.load_kernel(library), hashlib.sha256()
    for name, samples in (("test", 100), ("cnn64", 131)):
        form = networks.NETWORKS[name](None, None)
        shape = {"channels": 6, "samples": samples, "batch": 33, "seed": 4, "normalised": True}
        network, x, y = made(shape | {"blocks": form.blocks, "hidden": form.hidden})
        kernel_of(network)
        backend = KernelBackend(network, loaded, "")
        values = [backend.gradient(x, y), backend.logits(x), *gradients(network)]
        digest.update(b"".join(value.numpy().tobytes() for value in values))
    return digest.hexdigest()


@pytest.mark.parametrize("target", ["native", "haswell", "x86-64"])
def test_compilers_and_levels_agree_to_the_last_bit(tmp_path, target):
    if target != "native" and {"haswell": "avx2", "x86-64": "sse2"}[target] not in build._cpu():
        pytest.skip(f"this CPU has no {target}")
    compilers = [name for name in ("g++", "clang++") if shutil.which(name)]
    jobs = {(name, level): tmp_path / f"{name}{level}.so" for name in compilers for level in "23"}

    def compile_one(name: str, level: str) -> None:
        flags = [flag if flag != "-O3" else f"-O{level}" for flag in build.FLAGS]
        command = [name, *flags, f"-march={target}"]
        done = build.compiled(command, jobs[name, level])
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: compile_one(*job), jobs))
    found = {job: fingerprint(path) for job, path in jobs.items()}
    assert len(set(found.values())) == 1, found
    if len(compilers) < 2:
        pytest.skip(f"only {compilers} here: -O2 and -O3 agree, compilers were not compared")


SANITISED = """
import ctypes, math, random, struct
from array import array
from dataclasses import replace
from pathlib import Path
from common.training.kernel import stack
library = stack.load_kernel(Path("kernel.so"))
rng = random.Random(1)
def floats(count, bad=0):
    values = array("f", (rng.gauss(0, 1) for _ in range(count)))
    if bad and count:
        values[rng.randrange(count)] = rng.choice([math.nan, math.inf, 3e38])
    return values
def address(values):
    return values.buffer_info()[0]
for number in range(120):
    channels, samples = rng.randint(1, 9), rng.choice([1, 2, 3, 7, 16, 31, 64, 100, 333])
    batch, hidden = rng.choice([1, 2, 5, 33]), rng.choice([0, 0, 1, 5, 33])
    count = rng.randint(1, 4)
    blocks = [(rng.randint(1, 21), rng.choice([1, 2, 8, 40, 256]), rng.random() < .5)
              for _ in range(count)]
    sizes, before = [], channels
    for width, _, _ in blocks:
        sizes += [width * before * 3, width, width, width]
        before = width
    sizes += [hidden * before, hidden, hidden, 1] if hidden else [before, 1]
    parameters = [floats(size) for size in sizes]
    found = [floats(size) if rng.random() < .8 else None for size in sizes]
    x, y = floats(batch * channels * samples, number % 3 == 0), floats(batch)
    mean, sd = floats(channels), array("f", [2.0] * channels)
    dropout, out = floats(batch * before), floats(batch)
    strides = (samples, 1)
    if rng.random() < .3:
        strides = (1, channels)
    bound = stack.Stack(library, channels, samples, blocks, hidden,
        [address(p) for p in parameters], [address(g) if g else None for g in found],
        (address(mean), address(sd)) if rng.random() < .5 else None)
    length, sums = rng.randint(1, 99), array("d", [0.0] * 5)
    vectors = [floats(length), floats(length), floats(length), floats(length), floats(1)]
    adam = stack.AdamState(*map(address, vectors), length, .1, .1)
    places = array("q", [address(x) + 4 * channels * samples * n for n in range(batch)])
    factors, spreads = floats(batch), floats(batch * channels)
    changed = (address(factors), address(spreads), 7) if rng.random() < .5 else (None, None, 0)
    for threads in (1, 3):
        given = stack.Given(address(places), strides, batch, *changed, threads=threads)
        bound.logits(given, address(out))
        given = replace(given, y=address(y), dropout=address(dropout), pos_weight=2.0)
        bound.evaluate(given, address(sums))
        bound.gradient(given)
        bound.train(given, [batch - batch // 2, batch // 2][: 1 + (batch > 1)], adam)
print("clean")
"""


def test_address_and_undefined_behaviour_sanitisers_find_nothing(tmp_path):
    if not shutil.which("g++"):
        pytest.skip("no g++")
    flags = [flag if flag != "-O3" else "-O1" for flag in build.FLAGS]
    command = ["g++", *flags, "-g", "-march=native", "-fsanitize=address,undefined"]
    done = build.compiled([*command, "-fno-sanitize-recover=all"], tmp_path / "kernel.so")
    if done.returncode != 0 and "lasan" in done.stderr:
        pytest.skip("g++ has no sanitisers here")
    assert done.returncode == 0, done.stderr
    library = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(ROOT),
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run(
        [sys.executable, "-c", SANITISED],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("clean\n", 0), done.stderr[-3000:]


DRIVER = """
#include "stack.cpp"
#include <cstdio>

// Reads numbers and floats, calls stack_logits and stack_gradient, writes logits and gradients.
int main(int, char** name) {
  FILE* in = fopen(name[1], "rb");
  int64_t n[6];  // channels, samples, blocks, hidden, windows, parameters
  if (fread(n, 8, 6, in) != 6) return 1;
  std::vector<int64_t> blocks(3 * n[2]), sizes(n[5]);
  if (fread(blocks.data(), 8, blocks.size(), in) != blocks.size()) return 1;
  if (fread(sizes.data(), 8, sizes.size(), in) != sizes.size()) return 1;
  auto floats = [&](int64_t count) {
    std::vector<float> values(count);
    if (fread(values.data(), 4, count, in) != (size_t)count) exit(1);
    return values;
  };
  std::vector<std::vector<float>> values, found;
  std::vector<const float*> parameters;
  std::vector<float*> gradients;
  for (int64_t size : sizes) {
    values.push_back(floats(size));
    found.emplace_back(size);
    parameters.push_back(values.back().data());
    gradients.push_back(found.back().data());
  }
  std::vector<float> x = floats(n[4] * n[0] * n[1]), y = floats(n[4]), logits(n[4]);
  void* stack = stack_open(n[0], n[1], blocks.data(), n[2], n[3]);
  std::vector<const float*> windows;
  for (int64_t w = 0; w < n[4]; ++w) windows.push_back(x.data() + w * n[0] * n[1]);
  Batch batch = {windows.data(), n[1], 1, nullptr, nullptr, 0, y.data(), n[4], parameters.data(),
                 gradients.data(), nullptr, nullptr, nullptr, 2.0, 2};
  double loss;
  if (!stack_logits(stack, &batch, logits.data())) return 1;
  if (!stack_gradient(stack, &batch, &loss)) return 1;
  stack_close(stack);
  fwrite(logits.data(), 4, logits.size(), stdout);
  for (auto& gradient : found) fwrite(gradient.data(), 4, gradient.size(), stdout);
}
"""


def test_the_form_for_arm_agrees_with_autograd_too(tmp_path):
    """Compiled for another processor and run on an emulated one."""
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
    if not shutil.which(compiler) or not shutil.which(emulator):
        pytest.skip(f"no {compiler} or no {emulator} here: the lanes of NEON were not run")
    (tmp_path / "driver.cpp").write_text(DRIVER)
    program = tmp_path / "driver"
    flags = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
    command = [compiler, *flags, "-static", f"-I{build.SOURCE.parent}", "driver.cpp", "-o", program]
    subprocess.run(command, cwd=tmp_path, check=True)
    for number, samples in enumerate((1, 7, 100, 333)):
        blocks = [Block(5, 1, True), Block(9, 40, False), Block(8, 2, True)]
        shape = {"channels": 3, "samples": samples, "batch": 9, "blocks": blocks}
        network, x, y = made(shape | {"hidden": 5 * (number % 2), "seed": 3, "normalised": False})
        parameters = [p.detach() for p in network.ordered_parameters()]
        numbers = [3, samples, len(blocks), network.hidden, 9, len(parameters)]
        numbers += [int(v) for b in blocks for v in (b.channels, b.dilation, b.pool)]
        numbers += [p.numel() for p in parameters]
        given = struct.pack(f"{len(numbers)}q", *numbers)
        given += b"".join(value.numpy().tobytes() for value in (*parameters, x, y))
        (tmp_path / "given").write_bytes(given)
        done = subprocess.run([emulator, program, "given"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        found = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).double()
        for parameter in network.parameters():
            parameter.grad = None
        wanted, _ = truth(network, x, y, 2.0)
        whole = torch.cat([wanted, *(g.flatten() for g in gradients(network))])
        assert torch.linalg.norm(found - whole) <= 3e-5 * torch.linalg.norm(whole)


# -- building


STUB = """#!/bin/sh
echo built >> "$0.count"
exec {compiler} "$@"
"""


def test_many_processes_build_it_once(tmp_path):
    stub = tmp_path / "compiler"
    stub.write_text(STUB.format(compiler=shutil.which(build.compiler()[0])))
    stub.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from common.training.kernel import build;"
        "print(build.built([sys.argv[1]], Path('cache')))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(stub)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    paths = {process.communicate()[0] for process in processes}
    assert len(paths) == 1
    assert (tmp_path / "compiler.count").read_text() == "built\n"
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".lock", ".sha256", ".so"]


def harmed(library: bytes) -> list[bytes | None]:
    """Damaged on disk: cut short, zeroed, one bit flipped, another file, another CPU's, gone."""
    flipped = bytearray(library)
    flipped[len(library) // 2] ^= 1
    zeroed = library[:4096] + bytes(4096) + library[8192:]
    other_cpu = library[:18] + b"\xf3\x00" + library[20:]  # RISC-V, in the ELF header
    return [library[: len(library) // 3], b"", zeroed, bytes(flipped), b"text\n", other_cpu, None]


def test_a_damaged_library_is_built_again(tmp_path):
    """Loaded, it would end the process or give other numbers."""
    good = build.built(build.compiler(), ROOT / "cache").read_bytes()
    (tmp_path / "good.so").write_bytes(good)
    stub = tmp_path / "compiler"
    stub.write_text('#!/bin/sh\ncp "${0%/*}/good.so" "$(echo "$*" | sed "s/.* -o //")"\n')
    stub.chmod(0o755)
    path = build.built([str(stub)], tmp_path / "cache")
    for content in harmed(good):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert build.built([str(stub)], tmp_path / "cache").read_bytes() == good
    path.with_suffix(".sha256").write_bytes(b"\xff")
    assert build.built([str(stub)], tmp_path / "cache").read_bytes() == good


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """A project folder without a built kernel."""
    monkeypatch.setattr(build, "CODE_ROOT", tmp_path)
    build.kernel.cache_clear()
    yield tmp_path
    build.kernel.cache_clear()


def test_without_a_compiler_the_stock_operators_run_and_it_is_said(monkeypatch, unbuilt):
    monkeypatch.setenv("PATH", str(unbuilt))
    monkeypatch.delenv("CXX", raising=False)
    backend = backends.backend_for(networks.build_network("test", channels=2))
    assert isinstance(backend, backends.AutogradBackend)
    assert "no C++ compiler" in build.kernel().reason


def test_a_compiler_that_fails_is_no_disaster(monkeypatch, unbuilt):
    (unbuilt / "bad").write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
    (unbuilt / "bad").chmod(0o755)
    monkeypatch.setenv("CXX", str(unbuilt / "bad"))
    found = build.kernel()
    assert found.library is None
    assert "no such thing" in found.reason
    assert list((unbuilt / "cache").glob("*.so")) == []
