"""cluster_config.json: the nodes, how to reach them, and how many jobs each runs at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from common.cli import visible
from common.errors import InputError, NodeError
from common.validation import first_problem, kind_of, read_json

AUTO_SLOTS = 256  # of a node whose number of slots is not configured
MAX_BYTES = 1 << 20  # a thousand nodes take a tenth of this
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_SECRETS = re.compile(r"pass(word|wd|phrase|code)?$|^pw$|secret", re.IGNORECASE)
# OpenSSH itself refuses most of these in a user or host name
_SHELL_CHARACTERS = set("'`\"$\\;&<>|(){}*?#!~")

GpuId = (
    Annotated[int, Field(ge=0, le=1023)]
    | Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9/._-]+$")]
)
HostKeyRule = Literal["strict", "accept-new"]


class _Model(BaseModel):
    """Unknown keys refused; no value converted into another type (true is not 1)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_remarks(cls, value: Any) -> Any:
        return (
            {k: v for k, v in value.items() if not k.startswith("_")}
            if isinstance(value, dict)
            else value
        )


class Server(_Model):
    """One node. Equal servers are reached and used in the same way, so a changed file is compared
    by `==`.
    """

    host: str = Field(min_length=1, max_length=255)
    user: str | None = Field(None, min_length=1, max_length=255)
    port: int | None = Field(None, ge=1, le=65535)
    ssh_key: str | None = Field(None, min_length=1)
    gpus: Literal["auto"] | Annotated[int, Field(ge=0, le=1024)] | list[GpuId] | None = None
    jobs_per_gpu: int = Field(1, ge=1, le=64)
    cpu_slots: int | None = Field(None, ge=0, le=4096)
    path: str | None = Field(None, min_length=1)
    python: str | None = Field(None, min_length=1)
    host_key: HostKeyRule | None = None
    ssh_config: str | None = Field(None, min_length=1)

    @property
    def name(self) -> str:
        """What the node is called in every message and slot; unique in a configuration."""
        return f"{self.host}:{self.port}" if self.port else self.host

    @property
    def is_local(self) -> bool:
        """For connection.py only, which hides the difference from everybody else."""
        return self.host in LOCAL_NAMES and not (self.user or self.port or self.ssh_key)

    @field_validator("host", "user")
    @classmethod
    def _plain_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A user may also be DOMAIN\\user or user@domain."""
        plain = value or ""
        if info.field_name == "user" and not plain.endswith("\\"):
            plain = plain.replace("\\", "")
        if (
            plain.startswith("-")
            or not plain.isprintable()
            or any(c.isspace() or c in _SHELL_CHARACTERS for c in plain)
        ):
            raise ValueError("may not begin with - nor hold spaces or shell characters")
        if info.field_name == "host" and "@" in plain:
            raise ValueError('write the user as its own key, "user"')
        if info.field_name == "host" and ("," in plain or ("[" in plain and ":" not in plain)):
            raise ValueError("names one node; write an entry for each node of a list or range")
        # a node's name is also that of a folder below incoming/
        if "/" in plain or plain in (".", ".."):
            raise ValueError("may not hold / nor be . or ..")
        return value

    @field_validator("path", "python", "ssh_key", "ssh_config")
    @classmethod
    def _usable_path(cls, value: str | None) -> str | None:
        if value and ("\0" in value or "\n" in value):
            raise ValueError("may not hold a line break or NUL")
        if value and value.startswith("~") and value != "~" and not value.startswith("~/"):
            raise ValueError("~ is understood only as ~/...")
        return value

    @field_validator("gpus", mode="wrap")
    @classmethod
    def _gpus_of_one_form(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        """One message instead of one for each member of the union."""
        try:
            return validate(value)
        except ValidationError:
            raise ValueError('must be a number, a list of GPU ids, or "auto"') from None

    @field_validator("gpus")
    @classmethod
    def _each_gpu_once(cls, value: object) -> object:
        if isinstance(value, list) and len({str(gpu) for gpu in value}) != len(value):
            raise ValueError("names a GPU twice")
        return value

    @model_validator(mode="after")
    def _has_a_slot(self) -> Server:
        if self.cpu_slots == 0 and self.gpus in (None, 0, []):
            raise ValueError("has no slot: give gpus or cpu_slots")
        return self


MEMORY_FLAGS = ("mem", "mem-per-cpu", "mem-per-gpu")  # of sbatch; they exclude each other
GPU_FLAGS = ("gres", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task")
# Flags of sbatch that are decided here, or that have a key of their own.
_OURS = frozenset(
    (
        "array",
        "dependency",
        "job-name",
        "output",
        "error",
        "open-mode",
        "signal",
        "requeue",
        "no-requeue",
        "kill-on-invalid-dep",
        "chdir",
        "wrap",
        "ntasks",
        "nodes",
        "time",
        "partition",
        "account",
        "cpus-per-task",
        "test-only",
        "parsable",
        "wait",
    )
)


class Slurm(_Model):
    """How tasks are submitted when `engine` is slurm; sizes per task.

    gpus: 0, 1 or a type such as "a100" or "a100:1"; a training uses one GPU.
    memory_gb: unset, Slurm's own default holds; a memory flag in `sbatch` replaces it.
    notice_seconds: how long before the time limit, or before it is preempted, a task is told to
    checkpoint and requeue itself.
    sbatch: any other flag of sbatch, such as {"qos": "low", "gpus-per-node": "a100:1"}.
    """

    partition: str | None = Field(None, min_length=1)
    account: str | None = Field(None, min_length=1)
    gpus: int | str = 0
    cpus: int = Field(1, ge=1)
    memory_gb: Annotated[int | float, Field(gt=0)] | None = None
    time: str = Field("04:00:00", pattern=r"^(\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d\d?(:\d\d){0,2})$")
    max_parallel: int = Field(64, ge=1)
    jobs_per_task: int = Field(12, ge=1)
    notice_seconds: int = Field(90, ge=1, le=3600)
    setup: list[str] = Field(default_factory=list)
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)

    @property
    def asks_for_gpu(self) -> bool:
        """Whether a task is given a GPU, by `gpus` or by a flag in `sbatch`."""
        return bool(self.gpus) or bool(self._gpu_flags())

    def _gpu_flags(self) -> list[str]:
        """The flags in `sbatch` that ask for GPUs; --gres may ask for other things only."""
        return [
            flag
            for flag in GPU_FLAGS
            if self.sbatch.get(flag)
            and (flag != "gres" or re.search(r"\b(gpu|mps|shard)\b", str(self.sbatch[flag])))
        ]

    @property
    def minutes(self) -> int:
        """`time` in whole minutes, rounded up, in Slurm's own forms: M, M:S, H:M:S, D-H, D-H:M,
        D-H:M:S.
        """
        days, dash, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if dash:
            hours, minutes, seconds = [*parts, 0, 0][:3]
        else:
            hours, minutes, seconds = parts if len(parts) == 3 else [0, *parts, 0][:3]
        return int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)

    @field_validator("time")
    @classmethod
    def _some_time(cls, value: str) -> str:
        if not any(character in "123456789" for character in value):
            raise ValueError("must be longer than nothing")
        return value

    @field_validator("gpus")
    @classmethod
    def _one_gpu(cls, value: int | str) -> int | str:
        if not re.fullmatch(r"0|1|[A-Za-z][\w.-]{0,99}(:1)?", str(value)):
            raise ValueError(
                'must be 0, 1 or a type such as "a100:1": a task uses one GPU (where a site gives'
                ' whole nodes only: "sbatch": {"gres": "gpu:4"})'
            )
        return int(value) if str(value).isdecimal() else value

    @model_validator(mode="after")
    def _gpus_once(self) -> Slurm:
        if self.gpus and (flags := self._gpu_flags()):
            raise ValueError(
                f"asks for GPUs twice, with gpus and with {flags[0]} in sbatch: keep one"
            )
        return self

    @field_validator("setup")
    @classmethod
    def _lines(cls, value: list[str]) -> list[str]:
        if any("\0" in line or "\n" in line for line in value):
            raise ValueError("is a list of single lines of shell")
        return value

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, value: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise ValueError(
                    f"{name[:80]!r} is no long flag of sbatch; write it without the dashes, such"
                    " as qos"
                )
            if name in _OURS:
                raise ValueError(f"{name} is decided by this project or has a key of its own")
        return value


class ClusterConfig(_Model):
    """The whole file. `host_key` and `ssh_config` hold for every server that does not give its
    own.
    """

    engine: Literal["ssh", "slurm"] = "ssh"
    servers: list[Server] = Field(default_factory=list)
    slurm: Slurm | None = None
    host_key: HostKeyRule | None = None
    ssh_config: str | None = Field(None, min_length=1)
    heartbeat_seconds: Annotated[int | float, Field(gt=0, le=3600)] = 5
    suspect_seconds: Annotated[int | float, Field(gt=0, le=86400)] = 30
    close_seconds: Annotated[int | float, Field(gt=0, le=86400)] = 60
    # a job that finishes no epoch for so long counts as lost on its node
    stall_minutes: Annotated[int | float, Field(gt=0, le=100_000)] = 30
    # that a slot is kept, and one job at least, while another project waits for it
    turn_seconds: Annotated[int | float, Field(ge=0, le=86400)] = 60

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        if not self.heartbeat_seconds < self.suspect_seconds < self.close_seconds:
            raise ValueError("heartbeat_seconds < suspect_seconds < close_seconds must hold")
        if self.engine == "ssh" and not self.servers:
            raise ValueError(
                'lists no servers; the smallest file is {"servers": [{"host": "localhost"}]}'
            )
        if self.engine == "slurm" and self.slurm is None:
            raise ValueError(
                '"engine": "slurm" needs a "slurm" part, at least {"slurm": {"partition": "NAME"}}'
            )
        seen: dict[tuple[str, int], int] = {}
        for number, server in enumerate(self.servers):
            host = "localhost" if server.host.lower() in LOCAL_NAMES else server.host.lower()
            # Slot locks lie on the node: a second entry for it would end the workers of the first.
            if (first := seen.setdefault((host, server.port or 22), number)) != number:
                raise ValueError(
                    f"servers[{number}] is the same node as servers[{first}] ({server.name}); give"
                    " its slots in one entry"
                )
        return self

    @model_validator(mode="after")
    def _pass_down(self) -> ClusterConfig:
        common = {"host_key": self.host_key, "ssh_config": self.ssh_config}
        self.servers[:] = [
            s.model_copy(update={k: v for k, v in common.items() if getattr(s, k) is None})
            for s in self.servers
        ]
        return self


@dataclass(frozen=True)
class Gpu:
    """One GPU as the node itself reports it."""

    id: str  # its index or UUID, as CUDA_VISIBLE_DEVICES takes it
    name: str = ""
    used_by: str = ""  # another user of it ("user ann, process 4711"), or empty


@dataclass(frozen=True)
class Probe:
    """What a node has: usable cores and all its GPUs."""

    cores: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Slot:
    """One place on a node where one job runs at a time."""

    node: str
    index: int  # 0, 1, ... on this node
    gpu: str | None  # what CUDA_VISIBLE_DEVICES is set to; None: a core


@dataclass(frozen=True)
class SlotPlan:
    """The slots of a node, and one line for each GPU that was left out."""

    slots: tuple[Slot, ...]
    left_out: tuple[str, ...] = ()


def slots(server: Server, probe: Probe) -> SlotPlan:
    """The slots of `server` on a node that has what `probe` says.

    GPUs first (each `jobs_per_gpu` times, one round over all GPUs before the second), then
    `cpu_slots`. With neither given, `auto`: every GPU that is not in use; a node without GPUs
    has one slot a core; at most AUTO_SLOTS of these. Raises NodeError when the node lacks a GPU
    that the file names or has none free.
    """
    wanted = ("auto" if server.cpu_slots is None else 0) if server.gpus is None else server.gpus
    gpus, left_out = _choose_gpus(server, wanted, probe)
    places: list[str | None] = [gpu for _ in range(server.jobs_per_gpu) for gpu in gpus]
    if wanted == "auto":
        places = _capped(places, left_out)
    if server.cpu_slots is not None:
        places += [None] * server.cpu_slots
    elif not gpus and (not probe.gpus or wanted in (0, [])):
        places += _capped([None] * probe.cores, left_out)
    if not places:
        raise NodeError(
            f"no slot is free: {'; '.join(left_out) or 'no GPU and no core'}", node=server.name
        )
    return SlotPlan(
        tuple(Slot(server.name, index, gpu) for index, gpu in enumerate(places)), tuple(left_out)
    )


def _capped(places: list[str | None], left_out: list[str]) -> list[str | None]:
    """At most AUTO_SLOTS of the places whose number the node alone reports: each becomes a process
    there.
    """
    if len(places) > AUTO_SLOTS:
        left_out.append(
            f"{AUTO_SLOTS} of its {len(places):,} slots are used; give gpus or"
            " cpu_slots as numbers for more"
        )
    return places[:AUTO_SLOTS]


def _choose_gpus(server: Server, wanted: object, probe: Probe) -> tuple[list[str], list[str]]:
    """The ids to use, and why the others are not."""
    present = [gpu.id for gpu in probe.gpus]
    if wanted == "auto":
        free = [gpu.id for gpu in probe.gpus if not gpu.used_by]
        return free, [
            f"GPU {gpu.id} is left out, used by {gpu.used_by}" for gpu in probe.gpus if gpu.used_by
        ]
    asked = (
        [str(gpu) for gpu in wanted] if isinstance(wanted, list) else present[: int(str(wanted))]
    )
    if isinstance(wanted, int) and len(asked) < wanted:
        raise NodeError(
            f"the configuration asks for {wanted} GPUs, the node has {len(present)};"
            " lower gpus or use cpu_slots",
            node=server.name,
        )
    # A UUID or MIG id is not among the indices that a probe reports; the worker's own check of its
    # device decides.
    if missing := [gpu for gpu in asked if gpu.isdigit() and gpu not in present]:
        raise NodeError(
            f"no GPU {', '.join(missing)} on the node, which has {', '.join(present) or 'none'}",
            node=server.name,
        )
    return asked, []


def load_config(path: str | Path) -> ClusterConfig:
    """Read and check a cluster_config.json; InputError in one line naming the file and the key."""
    try:
        Path(path).stat()
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found; copy the one beside the scripts (this machine), or write one:"
            " docs/clusters.md",
            path=Path(path),
        ) from None
    except OSError:  # read_json says why
        pass
    data = read_json(Path(path), "a cluster configuration", MAX_BYTES)
    if not isinstance(data, dict):
        raise InputError(
            f'{path}: must be a JSON object such as {{"servers": [{{"host": "localhost"}}]}}, it is'
            f" {kind_of(data)}"
        )
    _refuse_secrets(path, data)
    try:
        return ClusterConfig.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, data, _known_keys)}") from None


def _refuse_secrets(path: object, data: dict[str, Any]) -> None:
    """Passwords are refused by key, never shown, in the file's own part and in every server."""
    servers = data.get("servers")
    places = [("", data)] + [
        (f"servers[{i}].", s)
        for i, s in enumerate(servers if isinstance(servers, list) else [])
        if isinstance(s, dict)
    ]
    for where, place in places:
        for key in place:
            if _SECRETS.search(key):
                host, user = place.get("host", "HOST"), place.get("user")
                target = f"{user}@{host}" if user else str(host)
                raise InputError(
                    f"{path}: {where}{visible(key)}: passwords are never used or stored; remove it"
                    " and set up a key: ssh-keygen -t ed25519, then ssh-copy-id"
                    f" {visible(target[:80])} (a key with a passphrase: ssh-add)"
                )


def _known_keys(loc: Sequence[int | str]) -> list[str]:
    model: type[_Model] = (
        Server
        if loc[0] == "servers" and len(loc) > 2
        else Slurm
        if loc[0] == "slurm" and len(loc) > 1
        else ClusterConfig
    )
    return list(model.model_fields)
