"""The baseline of end_to_end.py: one job as a careful person writes it by hand, a process of its
own, a DataLoader loop, a file for the next phase.

    python benchmarks/plain_job.py DATA OUT --target p01 --others p02 p03 ... [--base BASE.pt --mode
    full --fraction 0.1] --epochs 30
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset


class LayerNormOverChannels(nn.Module):
    """[batch, channels, samples] -> the same, normalised over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transpose, normalise, transpose."""
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def network(channels: int) -> nn.Module:
    """The documented network, as one writes it with Conv1d."""
    layers: list[nn.Module] = []
    before = channels
    for number, width in enumerate((8, 8, 8, 16)):
        layers += [nn.Conv1d(before, width, 3, padding=1), LayerNormOverChannels(width), nn.ReLU()]
        layers += [nn.MaxPool1d(2)] if number < 2 else []
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(before, 1))


def windows(folder: Path, person: str, split: str) -> TensorDataset:
    """One prepared file."""
    x, y = torch.load(folder / f"{person}_{split}.pt", weights_only=True)
    return TensorDataset(x, y.float())


def evaluate(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, ...]],
    loss_of: nn.Module,
    scale: tuple[Tensor, Tensor],
) -> tuple[float, float, float]:
    """Mean loss, macro F1, average precision."""
    model.eval()
    total, labels, scores = 0.0, [], []
    with torch.no_grad():
        for x, y in loader:
            logits = model((x - scale[0]) / scale[1]).squeeze(1)
            total += loss_of(logits, y).item() * len(y)
            labels.append(y)
            scores.append(torch.sigmoid(logits))
    y, p = torch.cat(labels).numpy(), torch.cat(scores).numpy()
    return (
        total / len(y),
        float(f1_score(y, p >= 0.5, average="macro")),
        float(average_precision_score(y, p)),
    )


def train(
    model: nn.Module,
    data: Dataset[tuple[Tensor, ...]],
    val: Dataset[tuple[Tensor, ...]],
    scale: tuple[Tensor, Tensor],
    epochs: int,
    steps: int,
) -> None:
    """Exactly `epochs` epochs; the best by validation loss is kept."""
    loss_of = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    loader, val_loader = (
        DataLoader(data, batch_size=32, shuffle=True),
        DataLoader(val, batch_size=256),
    )
    best, best_loss = copy.deepcopy(model.state_dict()), float("inf")
    for _ in range(epochs):
        model.train()
        done = 0
        while done < max(steps, 1):
            for x, y in loader:
                optimizer.zero_grad()
                loss = loss_of(model((x - scale[0]) / scale[1]).squeeze(1), y)
                loss.backward()
                optimizer.step()
                done += 1
                if done >= max(steps, len(loader)):
                    break
        val_loss = evaluate(model, val_loader, loss_of, scale)[0]
        if val_loss < best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), val_loss
    model.load_state_dict(best)


def main() -> None:
    """One base model or one fine-tune."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("data", type=Path)
    flags.add_argument("out", type=Path)
    flags.add_argument("--target", required=True)
    flags.add_argument("--others", nargs="+", required=True)
    flags.add_argument("--base", type=Path)
    flags.add_argument("--mode", default="target")
    flags.add_argument("--fraction", type=float, default=1.0)
    flags.add_argument("--epochs", type=int, required=True)
    flags.add_argument("--steps", type=int, default=10)
    args = flags.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    people = ConcatDataset(
        [windows(args.data, name, split) for name in args.others for split in ("train", "val")]
    )
    if args.base is None:
        x = torch.cat([part.tensors[0] for part in people.datasets])
        scale = (x.mean(dim=(0, 2))[:, None], x.std(dim=(0, 2))[:, None])
        model = network(x.shape[1])
        train(
            model,
            people,
            ConcatDataset([windows(args.data, name, "test") for name in args.others]),
            scale,
            args.epochs,
            args.steps,
        )
        torch.save({"state": model.state_dict(), "scale": scale}, args.out)
        return
    base = torch.load(args.base, weights_only=True)
    own = windows(args.data, args.target, "train")
    chosen = Subset(own, torch.randperm(len(own))[: max(1, int(args.fraction * len(own)))].tolist())
    model = network(own.tensors[0].shape[1])
    model.load_state_dict(base["state"])
    data = ConcatDataset([chosen, people]) if args.mode == "full" else chosen
    train(
        model, data, windows(args.data, args.target, "val"), base["scale"], args.epochs, args.steps
    )
    test = DataLoader(windows(args.data, args.target, "test"), batch_size=256)
    scores = evaluate(model, test, nn.BCEWithLogitsLoss(), base["scale"])
    torch.save(model.state_dict(), args.out)
    args.out.with_suffix(".json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
