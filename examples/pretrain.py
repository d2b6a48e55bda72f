"""Self-supervised pretraining on windows without labels: a script of your own over the same slots.

    python3 run_distributed_training.py --jobs-config examples/pretrain_jobs.json \\
        --script-path examples/pretrain.py
    python3 train_base.py --model examples/networks.py:ResNet \\
        --init_weights pretrained/resnet.pt ...

The network learns which of four things was done to a window: nothing, turned round in time, turned
upside down, or both (after A. Saeed et al., "Multi-task self-supervised learning for human activity
detection", IMWUT 2019). It reads the training windows of `participants` and never their labels.
What it leaves is a state dict whose entries --init_weights takes by name and shape; the head does
not fit and starts anew.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def run(options: Mapping[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Called in a worker, once a job. Options: participants, data_path, network (FILE.py:NAME),
    output, epochs, batch_size, lr, seed.
    """
    torch.manual_seed(int(options.get("seed", 0)))
    x = windows(Path(str(options["data_path"])), list(options["participants"]))
    device = _device(options.get("device"))
    x, network = x.to(device), build(str(options["network"]), x).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=float(options.get("lr", 1e-3)))
    epochs = int(options.get("epochs", 20))
    for epoch in range(epochs):
        loss = one_epoch(network, optimizer, x, int(options.get("batch_size", 64)))
        progress({"epoch": epoch + 1, "of": epochs, "train_loss": loss})
    output = Path(str(options["output"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    torch.save(state, output)
    return {"output": str(output)}


def windows(folder: Path, participants: list[str]) -> Tensor:
    """Training windows [windows, channels, samples], without their labels."""
    loaded = [
        torch.load(folder / f"{name}_train.pt", weights_only=True)[0] for name in participants
    ]
    return torch.cat(loaded)


def build(text: str, x: Tensor) -> nn.Module:
    """The network NAME of 'FILE.py:NAME', with a head of four classes."""
    file, _, name = text.rpartition(":")
    spec = importlib.util.spec_from_file_location("pretrained_network", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = getattr(module, name)(channels=x.shape[1], samples=x.shape[2])
    network.head = nn.Linear(network.head.in_features, 4)
    return network


def one_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, batch_size: int
) -> float:
    """Mean loss of an epoch."""
    network.train()
    total = 0.0
    for rows in torch.split(torch.randperm(len(x)), batch_size):
        batch = x[rows.to(x.device)]
        done = torch.randint(4, (len(batch),)).to(x.device)
        backwards, upside_down = (done & 1).bool()[:, None, None], (done & 2).bool()[:, None, None]
        batch = torch.where(backwards, batch.flip(2), batch)
        batch = torch.where(upside_down, -batch, batch)
        loss = F.cross_entropy(network(batch), done)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss) * len(batch)
    return total / len(x)


def _device(name: object) -> torch.device:
    return torch.device("cpu" if name in (None, "cpu", "auto") else f"cuda:{name}")
