"""Trials: a user's own network that exits, forks, floods its log, hangs, or raises at odd times."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.trust.kills import here
from tests.trust.world import BASE, FIXED, TWO_PHASE, World, opened

NETWORK = """
import atexit, os, sys, threading, time
import torch
from torch import nn

def fail():
    raise RuntimeError("odd")

class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no words")

{imported}

class Net(nn.Module):
    def __init__(self, channels, samples):
        super().__init__()
        self.head = nn.Linear(channels, 1)
        self.calls = 0
        {made}

    def forward(self, x):
        self.calls += self.training
        if self.calls > 3:  # the first is the trial before the training
            {trained}
        return self.head(x.mean(2))
"""
HELD = "time.sleep(100_000) if os.fork() == 0 else None"


@dataclass(frozen=True)
class Kind:
    """Own code that does `code` where it is imported, made or trained. says: of its failure; empty
    where the training is none the worse for it.
    """

    place: str
    code: str
    says: str = ""
    slow: bool = False


KINDS = {
    "exits when imported": Kind("imported", "sys.exit(3)", "SystemExit: 3"),
    "exits at once when made": Kind("made", "os._exit(3)", "its worker died (exit code 3)"),
    "exits when trained": Kind("trained", "sys.exit('enough')", "SystemExit: enough"),
    "exits at once when trained": Kind("trained", "os._exit(0)", "its worker died (exit code 0)"),
    "ends by a signal": Kind("trained", "os.kill(os.getpid(), 11)", "its worker died (SIGSEGV)"),
    "leaves a process behind": Kind("imported", HELD),
    "leaves a process behind in each step": Kind("trained", HELD),
    "goes on twice": Kind("made", "os.fork()"),
    "goes on twice in a step": Kind("trained", "self.calls == 4 and os.fork()"),
    "floods its log": Kind("trained", "print('flood ' * 200_000)"),
    "floods standard error without an end of line": Kind(
        "trained", "sys.stderr.write('x' * 1_000_000)"
    ),
    "closes its output": Kind("made", "sys.stdout.close(); sys.stderr.close()"),
    "closes its descriptors": Kind("made", "os.close(1); os.close(2)"),
    "goes to another folder": Kind("made", "os.chdir('/')"),
    "raises KeyboardInterrupt": Kind("trained", "raise KeyboardInterrupt", "its worker died"),
    "raises GeneratorExit": Kind("trained", "raise GeneratorExit", "its worker died"),
    "raises many words": Kind(
        "trained", "raise ValueError('a\\n\\x1b[31mb' * 100_000)", "ValueError: a"
    ),
    "raises no words": Kind("trained", "raise Silent", "Silent"),
    "raises while it is scored": Kind("trained", "self.training or fail()", "RuntimeError: odd"),
    "raises in a thread": Kind("trained", "threading.Thread(target=fail).start()"),
    "raises at the end of its process": Kind("made", "atexit.register(fail)"),
    "raises a lack of memory": Kind("trained", "raise MemoryError", "MemoryError"),
    "hangs": Kind("trained", "time.sleep(100_000)", "finished no epoch in", slow=True),
    "hangs when made": Kind("made", "time.sleep(100_000)", "finished no epoch in", slow=True),
}


def hostile_networks(seed: int, parent: Path, kinds: int = 4, *, slow: bool = False) -> int:
    """Some of them in one run beside a built-in network, whose results are those of an undisturbed
    training: each is trained, or fails in one line that says so; nothing goes on after the run.
    """
    rng = random.Random(seed)
    names = [name for name, kind in KINDS.items() if slow or not kind.slow]
    chosen = rng.sample(names, min(kinds, len(names)))
    with opened(parent, f"own code {seed}") as world:
        files = {f"own/{number}.py:Net": name for number, name in enumerate(chosen)}
        (world.folder / "own").mkdir()
        for file, name in files.items():
            _write(world.folder / file.partition(":")[0], KINDS[name])
        reference = _reference(world)
        # what hangs is found out by this; the import of torch counts too
        stall = {"stall_minutes": 0.5} if any(KINDS[name].slow for name in chosen) else {}
        world.config([{"host": "localhost", "cpu_slots": 2}], **stall)
        fixed = {key: value for key, value in FIXED.items() if "channels" not in key}
        fixed.pop("num_blocks", None)
        grid = {"model": ["test", *files], "fold": [0], "mode": ["full_fine_tuning"]}
        (world.folder / "grid.json").write_text(json.dumps({"grid": grid, "fixed": fixed}))
        code, said = world.run("generate_jobs.py", "--grid", "grid.json")
        assert code == 0, said
        failing = {name for name in chosen if KINDS[name].says}
        code, said = world.run(TWO_PHASE, seconds=600)
        assert code == (1 if failing else 0), f"{chosen}: exit code {code}: {said[-3000:]}"
        _judge(world, files, said)
        world.nothing_runs()
        weights = world.folder / f"base_models/{_base_of(world, 'test')}.pt"
        assert weights.read_bytes() == reference, f"{chosen}: another network has other weights"
    return len(chosen)


def _write(path: Path, kind: Kind) -> None:
    parts = {"imported": "", "made": "pass", "trained": "pass", kind.place: kind.code}
    path.write_text(NETWORK.format(**parts))


def _reference(world: World) -> bytes:
    """The built-in network's weights, trained here."""
    options = {key: value for key, value in BASE.items() if "channels" not in key}
    options.pop("num_blocks", None)
    done = here(world.folder, "base", {**options, "model": "test"})
    weights = (world.folder / f"base_models/{done['base_model_hash']}.pt").read_bytes()
    for place in ("base_models", "locks", "checkpoints"):
        shutil.rmtree(world.folder / place, ignore_errors=True)
    return weights


def _base_of(world: World, model: str) -> str:
    jobs = json.loads((world.folder / "finetune_jobs.json").read_bytes())
    (found,) = (job["base_model_hash"] for job in jobs if job["model"] == model)
    return str(found)


def _judge(world: World, files: dict[str, str], said: str) -> None:
    """What was told of each job."""
    assert "Traceback" not in said, said[-3000:]
    assert all(c.isprintable() or c in "\n\r" for c in said), said[-3000:]
    assert max(map(len, said.splitlines())) < 3000
    events = world.events()
    for file, name in files.items():
        base = _base_of(world, file)
        states = [event for event in events if event.get("job") == base]
        last = [event for event in states if event["event"] in ("done", "failed")][-1:]
        assert last, f"{name}: nothing is told of it: {said[-2000:]}"
        says = KINDS[name].says
        assert last[0]["event"] == ("failed" if says else "done"), f"{name}: {last}"
        assert says in str(last[0].get("error", "")), f"{name}: {last}"
        assert not says or says.split(" (")[0] in said, f"{name}: not told: {said[-2000:]}"
