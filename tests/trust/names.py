"""Trials: hostile names and configurations, made by hypothesis.

Each arrives literally or is refused in one line; nothing runs, nothing lies outside the project.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from common.errors import NodeError
from tests.trust.kills import finetune_values, here
from tests.trust.world import BASE, FIXED, GRID, PEOPLE, World, call, opened, write_split

MARK = "pwned"
HOSTILE = (
    f"$(touch {MARK})",
    f"`touch {MARK}`",
    f"; touch {MARK} ;",
    f"a' ; touch {MARK} ; '",
    f'" && touch {MARK} && "',
    f"| touch {MARK}",
    f"a\ntouch {MARK}\n",
    "../outside",
    "..",
    ".",
    "a/../../outside",
    "/tmp/outside",
    "~",
    "~root",
    "$HOME",
    "%n%s%d",
    "{0.__class__}",
    "-rf",
    "--help",
    "--device=cpu",
    "-",
    "",
    " ",
    "a b",
    "a\tb",
    "\x1b[31mred\x1b[0m",
    "\x00",
    "\u202eevil",
    "\ud800",
    "*",
    "?",
    "[a]",
    "a,b",
    "a=b",
    "#a",
    "a\\b",
    "con",
    "é",
    "e\u0301",
    "名前",
    "😀",
    "a" * 300,
    "NaN",
    "null",
    "true",
    "1e999",
    "__proto__",
    "<script>alert(1)</script>",
    "host:/path",
    "user@host",
    "::1",
    "-oProxyCommand=touch pwned",
    "file\r\nname",
)
names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=40),
    st.text(st.sampled_from("ab.-_/\\ $`'\"|;&<>*?{}[]()#~!%^\n\r\t\0é"), max_size=20),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [
            0,
            -1,
            1,
            2**31,
            2**63,
            2**64,
            10**400,
            1e-320,
            1e308,
            float("nan"),
            float("inf"),
            -0.0,
            True,
            False,
        ]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, names)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=8,
)
FILES = (
    b"",
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b"\xff\xfe[\x00]\x00",
    b"\xef\xbb\xbf[]",
    b"9" * 10_000,
)
text_files = st.one_of(st.binary(max_size=200), st.sampled_from(FILES))
KEYS = (
    "host",
    "user",
    "port",
    "ssh_key",
    "gpus",
    "jobs_per_gpu",
    "cpu_slots",
    "path",
    "python",
    "host_key",
    "ssh_config",
    "servers",
    "engine",
    "slurm",
    "password",
    "heartbeat_seconds",
    "suspect_seconds",
    "close_seconds",
)
FLAGS = (
    "participants",
    "prefix",
    "data_path",
    "model",
    "fold",
    "base_model_hash",
    "mode",
    "lr",
    "window_size",
    "device",
    "target_data_pct",
    "seed",
    "only",
    "script-path",
    "jobs-config",
    "base-jobs",
    "cluster-config",
    "max-retries",
    "magnitude_range",
)


class Sandbox:
    """A project inside a folder in which nothing else may change, and the scripts called in this
    process.
    """

    def __init__(self, world: World) -> None:
        self.world, self.outer = world, world.folder.parent
        self.before = self._outside()

    def _outside(self) -> list[str]:
        return sorted(
            str(path)
            for path in self.outer.rglob("*")
            if not path.is_relative_to(self.world.folder)
        )

    def call(self, script: str, argv: Sequence[str]) -> tuple[int, str, str]:
        """The script's exit code and what it said, judged."""
        refused = mock.Mock(side_effect=NodeError("no node is asked here"))
        with (
            mock.patch("common.cluster.ssh.start.connect", refused),
            mock.patch.object(subprocess, "Popen", side_effect=_only_git(subprocess.Popen)),
        ):
            code, out, err = call(self.world.folder, script, *argv)
        self.judge(code, out, err, f"{script} {argv!r}")
        return code, out, err

    def judge(self, code: int, out: str, err: str, what: str) -> None:
        """Refused in one line or done; nothing else happened."""
        assert code in (0, 2), f"{what}: exit code {code}: {err}"
        assert "Traceback" not in out + err, f"{what}: {err}"
        if code == 2:
            lines = err.splitlines()
            assert lines[-1].startswith("error: "), f"{what}: {err!r}"
            assert len(lines) == 1, f"{what}: {len(lines)} lines: {err!r}"
            assert len(lines[0]) < 3000, f"{what}: {len(lines[0])} characters"
        assert all(c.isprintable() or c in "\n" for c in err), f"{what}: {err!r}"
        assert not (self.world.folder / MARK).exists(), f"{what}: it ran"
        assert self._outside() == self.before, f"{what}: {set(self._outside()) ^ set(self.before)}"


def _only_git(real: Any) -> Any:
    def start(argv: Any, *args: Any, **more: Any) -> Any:
        assert argv[0] == "git", f"a process was started: {argv}"
        return real(argv, *args, **more)

    return start


@contextmanager
def sandbox(parent: Path, name: str) -> Iterator[Sandbox]:
    """A project with data and job files."""
    (parent / name).mkdir()
    with opened(parent / name) as world:
        world.jobs()
        yield Sandbox(world)


def many(examples: int, number: int, test: Any, *strategies: Any) -> int:
    """Run `test` on so many examples from a seed. Returns how many were run."""
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        print_blob=False,
    )
    @given(st.tuples(*strategies))
    def run(drawn: Any) -> None:
        nonlocal count
        count += 1
        test(*drawn)

    run()
    return count


# -- what is tried


def hostile_job_files(number: int, parent: Path, examples: int) -> int:
    """One option of a good job file replaced, or the file by anything."""
    with sandbox(parent, f"job files {number}") as box:
        folder = box.world.folder
        good = {
            name: json.loads((folder / name).read_bytes())
            for name in ("base_training_jobs.json", "finetune_jobs.json")
        }
        raw = {name: (folder / name).read_bytes() for name in good}

        def test(name: str, key: str, value: Any, other: str, content: bytes | None) -> None:
            jobs = json.loads(json.dumps(good[name]))
            jobs[0][key or other] = value
            (folder / name).write_bytes(json.dumps(jobs).encode() if content is None else content)
            box.call("run_two_phase_distributed.py", ["--dry-run"])
            (folder / name).write_bytes(raw[name])

        keys = st.sampled_from(
            [*sorted(good["finetune_jobs.json"][0]), "", "training_key", "num_dependent_jobs"]
        )
        maybe = st.one_of(st.none(), st.none(), st.none(), text_files)
        return many(
            examples, number, test, st.sampled_from(sorted(good)), keys, values, names, maybe
        )


def hostile_grids(number: int, parent: Path, examples: int) -> int:
    """A grid file, and the flags of generate_jobs.py."""
    with sandbox(parent, f"grids {number}") as box:

        def test(key: str, value: Any, place: str, folds: list[str], content: bytes | None) -> None:
            grid: dict[str, Any] = {"grid": dict(GRID), "fixed": dict(FIXED)}
            grid[place] = {**grid[place], key: value} if place in grid else value
            raw = json.dumps(grid).encode() if content is None else content
            (box.world.folder / "hostile.json").write_bytes(raw)
            box.call(
                "generate_jobs.py",
                [
                    "--grid",
                    "hostile.json",
                    "--output-dir",
                    "out",
                    *(["--folds", *folds] if folds else []),
                ],
            )
            shutil.rmtree(box.world.folder / "out", ignore_errors=True)

        keys = st.one_of(st.sampled_from([*FIXED, *GRID, "fold", "prefix", "seed"]), names)
        places = st.sampled_from(["fixed", "fixed", "grid", "other"])
        words = st.lists(names.filter(lambda text: "\0" not in text), max_size=2)
        return many(
            examples,
            number,
            test,
            keys,
            values,
            places,
            words,
            st.one_of(st.none(), st.none(), st.none(), text_files),
        )


def hostile_clusters(number: int, parent: Path, examples: int) -> int:
    """cluster_config.json."""
    with sandbox(parent, f"clusters {number}") as box:
        good = (box.world.folder / "cluster_config.json").read_bytes()

        def test(key: str, value: Any, top: bool, content: bytes | None) -> None:
            config: dict[str, Any] = {"servers": [{"host": "localhost", "cpu_slots": 1}]}
            (config if top else config["servers"][0])[key] = value
            (box.world.folder / "cluster_config.json").write_bytes(
                json.dumps(config).encode() if content is None else content
            )
            code, _, err = box.call("run_two_phase_distributed.py", ["--dry-run"])
            if "pass" in key.lower() and isinstance(value, str) and len(value) > 8 and code == 2:
                assert value not in err, "a password was shown"
            (box.world.folder / "cluster_config.json").write_bytes(good)

        keys = st.one_of(st.sampled_from(KEYS), names)
        return many(
            examples,
            number,
            test,
            keys,
            values,
            st.booleans(),
            st.one_of(st.none(), st.none(), st.none(), text_files),
        )


def hostile_flags(number: int, parent: Path, examples: int) -> int:
    """The flags of the training scripts and of the orchestrators."""
    with sandbox(parent, f"flags {number}") as box:
        scripts = {
            "train_base.py": ["--participants", *PEOPLE, "--data_path", "data/none"],
            "train_finetune.py": ["--base_model_hash", "0" * 16],
            "run_distributed_training.py": [
                "--jobs-config",
                "finetune_jobs.json",
                "--script-path",
                "train_finetune.py",
                "--dry-run",
            ],
            "run_two_phase_distributed.py": ["--dry-run"],
        }

        def test(script: str, flag: str, word: str) -> None:
            box.call(
                script,
                [*scripts[script], f"--{flag}={word}"] if word else [*scripts[script], f"--{flag}"],
            )

        flags = st.one_of(
            st.sampled_from(FLAGS),
            names.filter(lambda text: "\0" not in text and "help" not in text),
        )
        words = st.one_of(names, numbers.map(str)).filter(lambda text: "\0" not in text)
        return many(examples, number, test, st.sampled_from(sorted(scripts)), flags, words)


def literal_names(number: int, parent: Path, examples: int) -> int:
    """A participant and a prefix of these names, trained and fine-tuned: the names on disk and in
    the records are these, or they are refused.
    """
    with sandbox(parent, f"literal {number}") as box:
        folder = box.world.folder
        box.before = box._outside()

        def test(name: str, prefix: str) -> None:
            shutil.rmtree(folder / "data/names", ignore_errors=True)
            for person in ("base", "other", name):
                for place, split in enumerate(("train", "val", "test")):
                    with contextlib.suppress(OSError, ValueError):
                        write_split(folder / f"data/names/{person}_{split}.pt", place)
            common = {
                "participants": [name, "base", "other"],
                "data_path": "data/names",
                "max_epochs": 1,
            }
            (folder / "grid.json").write_text(
                json.dumps({"grid": {"fold": [0]}, "fixed": {**FIXED, **common, "prefix": prefix}})
            )
            code, _, _ = box.call("generate_jobs.py", ["--grid", "grid.json"])
            if code == 0:
                (job,) = json.loads((folder / "finetune_jobs.json").read_bytes())
                assert (job["participants"][0], job["prefix"]) == (name, prefix)
                base = here(folder, "base", {**BASE, **common})["base_model_hash"]
                done = here(
                    folder, "finetune", {**finetune_values(base), "prefix": prefix, "max_epochs": 1}
                )
                assert done["folder"] == f"experiments/{prefix}/fold0_{name}"
                record = json.loads((folder / done["folder"] / "config.json").read_bytes())
                assert (record["target_participant"], record["options"]["prefix"]) == (name, prefix)
            box.judge(code, "", "error: refused" if code else "", f"{name!r} {prefix!r}")
            for place in ("base_models", "experiments", "superseded"):
                shutil.rmtree(folder / place, ignore_errors=True)

        return many(examples, number, test, names, names)
