"""A real Slurm of one node on this machine: munged, slurmctld and slurmd, and where accounting is
asked for MariaDB and slurmdbd, with a configuration, ports and state folders of their own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.conftest import wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")
ACCOUNTING = ("mariadb-install-db", "mariadbd", "mariadb", "slurmdbd", "sacct")
KILL_SECONDS = 2
CPUS = 4  # more than there may be: starting Python takes longest, and is mostly waiting
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
EnforcePartLimits=ALL
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
MaxArraySize={max_array}
MaxJobCount=5000
KillWait={kill}
ReturnToService=2
PlugStackConfig={folder}/plugstack.conf
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 Gres=gpu:a100:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO GraceTime=30
PartitionName=urgent Nodes={host} MaxTime=10 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes={host} MaxTime=10 State=UP
"""
ACCOUNTING_CONFIGURATION = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/munge.socket
JobAcctGatherType=jobacct_gather/none
"""
DATABASE_CONFIGURATION = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[0]}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[1]}
StorageUser=slurm
StoragePass={password}
"""


def missing_parts(*, accounting: bool = False) -> str:
    """What is missing to start a Slurm here, or an empty string."""
    if os.geteuid() != 0:
        return "root is needed to start slurmd"
    needed = (*DAEMONS, "sbatch", "srun", *(ACCOUNTING if accounting else ()))
    absent = [name for name in needed if not _find(name)]
    if absent:
        return (
            f"{', '.join(absent)} not installed (slurm-wlm, munge, and for accounting slurmdbd,"
            " mariadb-server)"
        )
    try:
        pwd.getpwnam("munge")
    except KeyError:
        return "there is no user munge"
    return ""


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class SlurmCluster:
    """One node with a few CPUs. Everything that it started is ended by process id when it is
    closed.
    """

    def __init__(self, max_array: int = 1001, *, accounting: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        self.host = socket.gethostname().partition(".")[0]
        self.configuration = self.folder / "slurm.conf"
        text = CONFIGURATION.format(
            folder=self.folder,
            host=self.host,
            ports=_free_ports(2),
            cpus=CPUS,
            kill=KILL_SECONDS,
            max_array=max_array,
        )
        self._accounting = _free_ports(2) if accounting else []
        if accounting:
            text += ACCOUNTING_CONFIGURATION.format(folder=self.folder, port=self._accounting[0])
        self.configuration.write_text(text)
        (self.folder / "plugstack.conf").touch()
        # a device that is no GPU: what holds it cannot train on it
        (self.folder / "gres.conf").write_text("Name=gpu Type=a100 File=/dev/null\n")
        self._is_up = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._requeued: dict[str, float] = {}  # since when a task waits to be started again

    def __enter__(self) -> SlurmCluster:
        try:
            self._start_munge()
            for name in ("state", "spool"):
                (self.folder / name).mkdir()
            if self._accounting:
                self._start_accounting()
            self._start(["slurmctld", "-D", "-f", str(self.configuration)])
            wait_until(
                lambda: self.ask("scontrol", "ping").returncode == 0, what="slurmctld's answer"
            )
            self._start(["slurmd", "-D", "-f", str(self.configuration)])
            wait_until(
                lambda: "idle" in self.ask("sinfo", "-h", "-o", "%t").stdout, what="an idle node"
            )
            self._is_up = True
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_up:
            self.reset()
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for path in (folder, key):
            shutil.chown(path, "munge", "munge")
        names = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        flags = [f"--{flag}={folder / name}" for flag, name in names.items()]
        self._start(["munged", "--foreground", *flags], user="munge")
        wait_until(lambda: (folder / "munge.socket").exists(), what="munged's socket")

    def _start_accounting(self) -> None:
        """MariaDB with an empty database, and slurmdbd, which knows this cluster."""
        folder, password = self.folder / "mariadb", secrets.token_hex(16)
        folder.mkdir()
        shutil.chown(folder, "mysql", "mysql")
        data, socket_path = f"--datadir={folder}/data", f"{folder}/socket"
        install = ["mariadb-install-db", "--no-defaults", "--user=mysql", data, "--skip-test-db"]
        done = self.ask(*install, "--auth-root-authentication-method=normal")
        assert done.returncode == 0, done.stderr
        server = ["mariadbd", "--no-defaults", "--user=mysql", data, f"--socket={socket_path}"]
        where = [f"--port={self._accounting[1]}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        self._start([*server, *where, f"--pid-file={folder}/pid"])
        client = ["mariadb", "--no-defaults", f"--socket={socket_path}", "-e"]
        account = f"create user slurm@127.0.0.1 identified by '{password}'; "
        account += "grant all on slurm_acct_db.* to slurm@127.0.0.1"
        wait_until(lambda: self.ask(*client, "select 1").returncode == 0, what="MariaDB's answer")
        self.do(*client, account)
        path = self.folder / "slurmdbd.conf"
        path.touch(mode=0o600)
        path.write_text(
            DATABASE_CONFIGURATION.format(
                folder=self.folder, ports=self._accounting, password=password
            )
        )
        self._start(["slurmdbd", "-D"])
        wait_until(
            lambda: self.ask("sacctmgr", "-i", "add", "cluster", "test").returncode == 0,
            what="slurmdbd's answer",
        )

    def _start(self, argv: list[str], user: str | None = None) -> None:
        program = _find(argv[0])
        assert program
        with (self.folder / f"{argv[0]}.out").open("wb") as out:
            self._processes.append(
                subprocess.Popen(
                    [program, *argv[1:]],
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    user=user,
                )
            )

    def environment(self) -> dict[str, str]:
        """This process's environment, pointing to this Slurm."""
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        return {**os.environ, "PATH": path, "SLURM_CONF": str(self.configuration)}

    def ask(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands."""
        return subprocess.run(
            argv, env=self.environment(), capture_output=True, text=True, timeout=60, check=False
        )

    def do(self, *argv: str) -> str:
        """Run one of Slurm's commands that must succeed; its output."""
        done = self.ask(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tasks(self, states: str = "all") -> list[dict[str, str]]:
        """Every task that Slurm still knows: array, index, raw (its number), state, reason, name,
        id (ARRAY_INDEX).
        """
        lines = self.do("squeue", "-h", "-r", "-t", states, "-o", "%F|%K|%A|%T|%r|%j").splitlines()
        tasks = [
            dict(
                zip(
                    ("array", "index", "raw", "state", "reason", "name"),
                    line.split("|"),
                    strict=True,
                )
            )
            for line in lines
        ]
        return [{**task, "id": f"{task['array']}_{task['index']}"} for task in tasks]

    def waiting_or_running(self) -> list[dict[str, str]]:
        """Tasks that have not ended."""
        return self.tasks("pending,running,suspended,completing,configuring")

    def start_requeued(self) -> None:
        """Slurm lets a requeued task wait for two minutes, since its kill signals go by job number
        and would meet the new attempt. Wait for those only.
        """
        waiting = {
            task["id"]: task["raw"]
            for task in self.tasks("pending")
            if task["reason"] == "BeginTime"
        }
        self._requeued = {task: self._requeued.get(task, time.monotonic()) for task in waiting}
        steps = self.steps()
        for task, raw in waiting.items():
            if time.monotonic() - self._requeued[task] > KILL_SECONDS + 2 and not any(
                f"[{raw}." in step for step in steps
            ):
                self.ask("scontrol", "update", f"JobId={task}", "StartTime=now")

    def steps(self) -> list[str]:
        """Command lines of the processes in which slurmd runs tasks: 'slurmstepd: [5.0]'."""
        mark, found = f"SLURM_CONF={self.configuration}".encode(), []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                ours = Path(f"/proc/{entry}/comm").read_text().startswith("slurmstepd")
                if ours and mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(Path(f"/proc/{entry}/cmdline").read_text())
        return found

    def reset(self) -> None:
        """End all tasks."""
        self.ask("scancel", "--user=root")
        wait_until(
            lambda: not self.waiting_or_running() and not self.steps(),
            seconds=60,
            what="the end of all tasks",
        )
        if "idle" not in self.ask("sinfo", "-h", "-o", "%T").stdout:
            self.ask("scontrol", "update", f"NodeName={self.host}", "State=RESUME")
            wait_until(
                lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T").stdout, what="an idle node"
            )
