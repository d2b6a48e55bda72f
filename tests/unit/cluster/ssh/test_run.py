"""What the runner makes of what nodes and workers say, in whatever order they say it. Nodes are
played here; the scheduler is the real one.
"""

from __future__ import annotations

import errno
import itertools
import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.cluster import protocol
from common.cluster.config import Server, Slot, SlotPlan, load_config
from common.cluster.journal import Journal
from common.cluster.scheduler.scheduler import Scheduler
from common.cluster.scheduler.states import JobState, Limits, SlotId
from common.cluster.ssh import arrivals
from common.cluster.ssh import nodes as nodes_module
from common.cluster.ssh import run as module
from common.cluster.ssh.arrivals import PUBLISHING
from common.cluster.ssh.context import RunContext
from common.cluster.ssh.events import Arrived, Ended, Fetched, Joined, Left, Listed, Said, Started
from common.cluster.ssh.nodes import Stage
from common.cluster.ssh.payload import Needs
from common.cluster.ssh.run import Runner
from common.cluster.ssh.worker_link import WorkerLink
from common.cluster.work import Work
from common.jobs import verdicts
from common.jobs.job_files import Job
from common.paths import Paths
from tests.conftest import wait_until


class PlayedWorker(WorkerLink):
    """The head's end of a worker that this test speaks for."""

    def __init__(self, node: PlayedThreads, slot: Slot) -> None:
        super().__init__(node, slot, None, "mark", node.tell)
        self.ended = False
        self.got: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.got.append(message)

    def handled(self) -> None: ...

    def end(self) -> None:
        self.ended = True

    kill = end

    @property
    def jobs(self) -> list[str]:
        return [message["job"] for message in self.got if "job" in message]


class PlayedThreads:
    """The threads of a node that does nothing by itself but to start workers."""

    def __init__(
        self, server: Server, paths: Paths, settings: object, needs: object, tell: Any
    ) -> None:
        self.server, self.name, self.paths, self.tell = server, server.name, paths, tell
        self.plan = SlotPlan(
            tuple(
                Slot(self.name, index, str(index // 2) if server.gpus else None)
                for index in range(server.cpu_slots or 1)
            )
        )
        self.fetching: list[str] = []
        self.sending: list[Sequence[object]] = []

    def join(self) -> None: ...

    def start_worker(self, slot: Slot) -> None:
        self.tell(Started(PlayedWorker(self, slot)))

    def send_bases(self, bases: Sequence[str], *, damaged: bool = False) -> None:
        self.sending.append(tuple(bases))

    def send_data(self, files: Sequence[object]) -> None:
        self.sending.append(tuple(files))

    def fetch(self, job: str, *, urgent: bool, found: bool = False) -> None:
        self.fetching.append(job)

    def close(self) -> None: ...

    def stop(self) -> None: ...


class Play:
    """A run over played nodes, turn by turn."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        jobs: Sequence[Job],
        *servers: dict[str, Any],
        **config: Any,
    ) -> None:
        monkeypatch.setattr(nodes_module, "NodeThreads", PlayedThreads)
        path = folder / "cluster_config.json"
        path.write_text(
            json.dumps({"servers": servers or [{"host": "n", "cpu_slots": 1}], **config})
        )
        self.paths, self.said = Paths(folder), list[str]()
        scripts = {"base": "train_base.py", "finetune": "train_finetune.py", "script": "mine.py"}
        work = Work(
            [job for job in jobs if job.kind == "base"],
            {},
            [job for job in jobs if job.kind != "base"],
            frozenset(),
            scripts,
        )
        estimates = SimpleNamespace(
            seconds=lambda job: 10.0,
            work=lambda job: 1.0,
            speed=lambda node, measured: 1.0 if measured is None else measured / 100,
        )
        self.results = SimpleNamespace(
            accept=lambda job, root: "",
            judge=lambda job, root: SimpleNamespace(state=None, other_code=()),
        )
        needs = Needs((), {}, (), (), "head")
        self.scheduler: Any = Scheduler(Limits())
        context = RunContext(
            self.paths,
            path,
            load_config(path),
            work,
            needs,
            self.results,
            Journal(self.paths, "r"),
            estimates,
            self.scheduler,
            self.hear,
            patience=0.0,
        )
        self.run: Any = Runner(context, lambda status: None)
        self.run._start_nodes()
        self.copies = itertools.count()

    def hear(self, line: str, *, failed: str | None = None) -> None:
        self.said.append(line)

    def record(self, name: str = "n") -> Any:
        """What the run knows of a node."""
        return self.run.nodes.get(name)

    def node(self, name: str = "n") -> Any:
        return self.record(name).threads

    def worker(self, slot: int = 0, name: str = "n") -> Any:
        return self.record(name).workers[slot]

    def tell(self, *events: object, wait: bool = True) -> None:
        """Turns until all is handled; `wait`: what is being verified as well."""
        for event in events:
            self.run._events.put(event)
        for _ in range(3):
            self.run._turn()
        while wait and self.run._arrivals.pending:
            self.run._turn()

    def join(
        self, name: str = "n", found: tuple[str, ...] = (), speeds: Sequence[float] = ()
    ) -> None:
        """The node answers and all its workers say hello, with the speeds that they measured."""
        node = self.node(name)
        self.tell(Listed(node, (), found), Joined(node, node.plan))
        for slot in node.plan.slots:
            node.start_worker(slot)
        self.tell()
        workers = list(self.record(name).workers.values())
        measured = [{"speed": speed} for speed in speeds] or [{}] * len(workers)
        hellos = [{"log": "", **each} for each in measured]
        self.tell(*(Said(w, {"hello": h}) for w, h in zip(workers, hellos, strict=True)))

    def say(
        self, message: dict[str, Any], slot: int = 0, name: str = "n", *, wait: bool = True
    ) -> None:
        self.tell(Said(self.worker(slot, name), message), wait=wait)

    def arrive(self, job: str, name: str = "n") -> None:
        """The result of a job comes home."""
        self.tell(Fetched(self.node(name), (job,), self.paths.incoming / str(next(self.copies)), 1))

    def state(self, job: str) -> JobState:
        return JobState(self.scheduler.state(job))


def base(name: str) -> Job:
    return Job("base", name, {})


def script(*names: str) -> list[Job]:
    return [Job("script", name, {}) for name in names]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Play] = []

    def start(jobs: Sequence[Job], *servers: dict[str, Any], **config: Any) -> Play:
        made.append(Play(tmp_path, monkeypatch, jobs, *servers, **config))
        return made[0]

    yield start
    for each in made:
        each.run.context.journal.close()


def test_a_result_found_on_a_node_that_does_its_job_again_leaves_the_slot_busy(play: Any) -> None:
    run = play([base(name) for name in "abcd"])
    run.join()
    (first,) = run.worker().jobs
    run.say({"done": first, "seconds": 1.0})
    run.tell(Left(run.node(), "n: cut", True))
    run.record().stage = Stage.CONNECTING
    run.join(found=(first,))
    assert run.worker().jobs == [first]
    run.arrive(first)
    assert run.state(first) is JobState.DONE
    assert run.worker().jobs == [first]
    assert run.worker().got[-1] == {"cancel": first}
    run.say({"failed": first, "cause": "cancelled", "error": "cancelled"})
    assert len(run.worker().jobs) == 2
    second = run.worker().jobs[-1]
    run.tell(Ended(run.worker(), 137, "killed"))
    assert run.scheduler.copies(second) == []
    assert run.state(second) is JobState.READY


@pytest.mark.parametrize("error", ["", "n: cut"])
def test_a_result_found_on_a_node_and_refused_late_leaves_the_copy_that_runs_there(
    play: Any, error: str
) -> None:
    run = play([base("a")], {"host": "n", "cpu_slots": 2})
    run.join(found=("a",))
    (slot,) = [index for index in (0, 1) if run.worker(index).jobs]  # what was found comes late
    faults: list[str] = []
    run.scheduler.node_fault = lambda now, job, node, cause: faults.append(cause)
    run.results.accept = lambda job, root: "a: made from other data"
    stale = run.paths.incoming / "0"
    run.tell(Fetched(run.node(), ("a",), stale, 1, error, found=frozenset("a")))
    assert (faults, run.state("a")) == ([], JobState.RUNNING)
    run.say({"done": "a", "seconds": 1.0}, slot)
    run.tell(Fetched(run.node(), ("a",), stale, 1, error, found=frozenset("a")))
    run.results.accept = lambda job, root: ""
    run.arrive("a")
    assert (faults, run.state("a"), run.worker(1 - slot).jobs) == ([], JobState.DONE, [])


def test_a_late_word_of_a_cancelled_copy_does_not_touch_the_one_beside_it(play: Any) -> None:
    run = play(script("a"), {"host": "n", "cpu_slots": 2})
    run.join()
    (slot,) = [index for index in (0, 1) if run.worker(index).jobs]
    copy = run.scheduler._jobs["a"].copies["n"]
    run.scheduler._copies.cancel(0.0, copy)
    run.scheduler._copies.lose(0.0, copy.job, "silent")
    run.tell()
    assert run.worker(1 - slot).jobs == ["a"]
    run.say({"failed": "a", "cause": "error", "error": "late"}, slot)
    assert run.state("a") is JobState.RUNNING
    run.say({"done": "a", "seconds": 1.0}, 1 - slot)
    assert run.state("a") is JobState.DONE


@pytest.mark.parametrize(
    ("verdict", "state"),
    [(verdicts.State.CONFLICT, JobState.FAILED), (verdicts.State.NEW, JobState.RUNNING)],
)
def test_a_result_that_has_no_place_here_fails_its_job_any_other_refusal_is_the_nodes_fault(
    play: Any, verdict: verdicts.State, state: JobState
) -> None:
    run = play([base("a")])
    run.join()
    run.results.accept = lambda job, root: "refused"
    run.results.judge = lambda job, root: verdicts.Verdict(verdict)
    run.say({"done": "a", "seconds": 1.0})
    run.arrive("a")
    assert run.state("a") is state
    assert run.worker().jobs == (["a"] if state is JobState.FAILED else ["a", "a"])


def test_the_speed_that_a_worker_measured_is_the_nodes_and_is_recorded(play: Any) -> None:
    run = play(script("a"))
    run.join(speeds=[250.0])
    assert run.scheduler.speed("n") == 2.5
    (log,) = run.paths.runs.glob("*/events*")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    measured = [event for event in events if event["event"] == "measured"]
    assert [(event["node"], event["bytes_per_second"]) for event in measured] == [("n", 250.0)]


def test_a_slot_that_measured_much_less_than_the_first_of_its_node_gets_no_long_job(
    play: Any,
) -> None:
    run = play(script("a", "b"), {"host": "n", "cpu_slots": 2})
    run.join(speeds=[250.0, 5.0])
    assert run.worker(0).jobs == ["a"]
    assert run.worker(1).jobs == []


def test_a_second_hello_frees_nothing(play: Any) -> None:
    run = play(script(*"abcde"))
    run.join()
    for _ in range(3):
        run.say({"hello": {"log": ""}})
    assert len(run.worker().jobs) == 1


def test_a_job_that_a_worker_gives_up_unasked_is_the_nodes_fault(play: Any) -> None:
    run = play(script("a"))
    run.join()
    run.say({"failed": "a", "cause": "cancelled", "error": "cancelled"})
    assert run.worker().jobs == ["a", "a"]
    run.say({"failed": "a", "cause": "cancelled", "error": "cancelled"})
    run.say({"failed": "a", "cause": "cancelled", "error": "cancelled"})
    assert run.state("a") is JobState.FAILED


def test_a_job_that_waits_for_its_base_in_a_slot_whose_gpu_is_gone_does_not_bring_the_slot_back(
    play: Any,
) -> None:
    tuning = {"mode": "full_fine_tuning", "data_path": "data/x", "participants": ["a"], "fold": 0}
    run = play(
        [*script("a"), *(Job("finetune", f"p/{name}", tuning, needs="b" * 16) for name in "xy")],
        {"host": "n", "cpu_slots": 3, "gpus": [0]},
    )
    run.join()
    (working,) = [index for index in range(3) if run.worker(index).jobs]
    mate = next(index for index in range(2) if index != working)
    waiting = run.record().waiting[mate].job
    run.say({"failed": "a", "cause": "gpu_gone", "error": "CUDA error"}, working)
    assert mate not in run.record().waiting
    run.tell(Arrived(run.node(), ("b" * 16,), 0, "n: the copy failed"))
    assert run.scheduler.job_at(SlotId("n", mate)) is None
    assert run.worker(mate).jobs == []
    assert run.state(waiting) in (JobState.READY, JobState.RUNNING)


def test_a_worker_that_is_frozen_beside_one_that_speaks_is_ended_and_its_job_done_again(
    play: Any,
) -> None:
    run = play(
        script("a", "b", "c"),
        {"host": "n", "cpu_slots": 2},
        heartbeat_seconds=0.001,
        suspect_seconds=30,
        close_seconds=60,
    )
    run.join()
    frozen = run.worker(0)
    (job,) = frozen.jobs
    frozen.heard -= 40
    run.tell()
    assert run.worker(0) is frozen
    frozen.heard -= 30
    run.tell()
    assert run.worker(0) is not frozen
    assert job not in run.scheduler.jobs_on("n")
    assert frozen.ended
    run.say({"hello": {"log": ""}})
    run.tell(Said(frozen, {"done": job}))
    assert run.state(job) is not JobState.DONE


def test_a_node_that_is_silent_as_a_whole_is_left_to_the_scheduler(play: Any) -> None:
    run = play(
        script("a", "b"),
        {"host": "n", "cpu_slots": 2},
        heartbeat_seconds=0.001,
        suspect_seconds=30,
        close_seconds=60,
    )
    run.join()
    workers = [run.worker(index) for index in (0, 1)]
    for worker in workers:
        worker.heard -= 70
    run.tell()
    assert not any(worker.ended for worker in workers)


def test_a_flood_of_messages_does_not_keep_the_rest_from_being_looked_at(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = play(script("a", "b"))
    run.join()
    run.worker().got.clear()
    run.run._beat_at = 0.0  # a beat is due
    flood = itertools.repeat(Said(run.worker(), {}), 10 * module.AT_ONCE)
    monkeypatch.setattr(
        run.run, "_events", SimpleNamespace(get=lambda timeout: next(flood), put=lambda event: None)
    )
    run.run._turn()
    assert run.worker().got == [{"beat": 0}]
    assert next(flood, None)


def test_times_of_silence_that_are_changed_in_a_run_count_from_the_next_on(play: Any) -> None:
    run = play(script("a"))
    longer = {"heartbeat_seconds": 100, "suspect_seconds": 200, "close_seconds": 300}
    run.run.context.config_path.write_text(
        json.dumps({"servers": [{"host": "n", "cpu_slots": 1}], **longer})
    )
    run.run.nodes.reread_config(0.0)
    assert (run.run.context.config.heartbeat_seconds, run.run.context.config.close_seconds) == (
        5,
        60,
    )
    assert "from the next run on" in run.said[-1]


def test_a_slot_that_another_project_fills_is_waited_for_however_long(play: Any) -> None:
    run = play(script("a"))
    node = run.node()
    run.tell(Listed(node, (), ()), Joined(node, node.plan))
    node.start_worker(node.plan.slots[0])
    run.tell()
    run.say({"waiting": {"holder": "lab:/other", "since": 0.0}})
    assert "n: slot 0 is held by lab:/other since " in run.said[-1]
    assert run.run.status()["nodes"][0]["state"] == "waits for lab:/other"
    now = time.monotonic()
    for later in range(0, 2000, 100):
        run.scheduler.tick(now + later)
    assert not run.run._is_over()
    run.say({"hello": {"log": ""}})
    assert run.worker().jobs == ["a"]


def test_a_silent_node_whose_slots_are_all_waited_for_is_lost(play: Any) -> None:
    run = play(script("a"), heartbeat_seconds=0.001, suspect_seconds=30, close_seconds=60)
    node = run.node()
    run.tell(Listed(node, (), ()), Joined(node, node.plan))
    node.start_worker(node.plan.slots[0])
    run.tell()
    run.say({"waiting": {"holder": "lab:/other", "since": 0.0}})
    run.worker().heard -= 70
    run.tell()
    assert run.record().stage is Stage.LOST


def test_a_slot_that_is_given_up_gets_no_job_until_its_next_worker_has_it(play: Any) -> None:
    run = play(script("a", "b"))
    run.join()
    first = run.worker()
    (job,) = first.jobs
    run.say({"done": job, "seconds": 1.0, "yields": True})
    assert first.jobs == [job]
    run.tell(Ended(first, 1, ""))
    second = run.worker()
    assert second is not first
    run.say({"waiting": {"holder": "lab:/other", "since": 0.0}})
    assert second.jobs == []
    run.say({"hello": {"log": ""}})
    assert len(second.jobs) == 1
    assert run.record().failed == 0


def test_a_training_without_an_epoch_for_long_counts_as_lost_on_its_node(play: Any) -> None:
    run = play([base("a"), *script("b")], {"host": "n", "cpu_slots": 2}, heartbeat_seconds=0.001)
    run.join()
    (slot,) = [index for index in (0, 1) if run.worker(index).jobs == ["a"]]
    worker = run.worker(slot)
    for message in ({"progress": "a", "epoch": 1, "of": 9},) * 2:
        run.say(message, slot)
    worker.epoch_at -= 31 * 60
    run.say({"progress": "a", "epoch": 2, "of": 9}, slot)
    assert run.worker(slot) is worker
    for other in (worker, run.worker(1 - slot)):
        other.epoch_at -= 31 * 60
    run.say({"progress": "a", "epoch": 2, "of": 9}, slot)
    assert worker.ended
    assert run.worker(slot) is not worker
    assert run.worker(1 - slot).jobs == ["b"]  # a user's own script has no epochs
    assert run.state("a") is JobState.READY
    assert "a finished no epoch in 30 minutes (stall_minutes)" in run.scheduler.cause("a")


def test_a_training_that_waits_for_another_process_is_not_stalled(play: Any) -> None:
    run = play([base("a")], heartbeat_seconds=0.001)
    run.join()
    worker = run.worker()
    for said in ({"waits_for": "process 7"}, {"epoch": 1, "of": 9}):
        worker.epoch_at -= 31 * 60
        run.say(protocol.message({"progress": "a", **said}, {"a"}))
        assert (run.worker(), run.state("a")) == (worker, JobState.RUNNING)


def test_an_idle_slot_that_is_given_up_gets_no_job(play: Any) -> None:
    run = play(script("a"), {"host": "n", "cpu_slots": 2})
    run.join()
    (busy,) = [index for index in (0, 1) if run.worker(index).jobs]
    run.say({"yields": True}, 1 - busy)
    run.tell(Ended(run.worker(busy), 137, "killed"))
    assert run.state("a") is JobState.READY
    assert run.scheduler.job_at(SlotId("n", 1 - busy)) is None


def test_a_run_is_not_over_while_base_models_are_on_their_way_to_a_node(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunContext, "published_bases", lambda context: ["f" * 16])
    run = play(script("a"))
    run.run.context.push_all = True
    run.join()
    assert run.node().sending == [("f" * 16,)]
    run.say({"done": "a", "seconds": 1.0})
    assert run.scheduler.over
    assert not run.run.status()["ended"]
    run.tell(Arrived(run.node(), ("f" * 16,), 1))
    assert run.run.status()["ended"]


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_done_here_while_the_run_is_stopped_counts(play: Any, *, shared: bool) -> None:
    run = play([base("a"), base("b")])
    run.join()
    run.record().shared = shared
    worker, threads = run.worker(), run.node()
    (job,) = worker.jobs
    run.run.interrupts = 2
    run.run._events.put(Said(worker, {"done": job, "seconds": 1.0}))
    run.run._events.put(Ended(worker, 1, ""))
    run.run._stop()
    outcome = run.run._conclude()
    assert (outcome.done, job in outcome.left) == (int(shared), not shared)
    assert run.run.status()["phases"]["base"].get("done", 0) == int(shared)
    assert threads.fetching == []  # copies would keep the user waiting: the next run takes it


# -- results


def accepting(run: Any) -> list[str]:
    """The jobs whose results are verified from now on; all are found good."""
    accepted: list[str] = []
    run.results.accept = lambda job, root: accepted.append(job.id) or ""
    return accepted


def test_a_second_result_of_a_job_is_not_published(play: Any) -> None:
    run = play([base("a")])
    run.join()
    accepted = accepting(run)
    run.say({"done": "a", "seconds": 1.0})
    roots = [run.paths.incoming / number for number in "01"]
    run.tell(*(Fetched(run.node(), ("a",), root, 1) for root in roots))
    run.arrive("a")
    assert (accepted, run.state("a"), run.record().done) == (["a"], JobState.DONE, 1)


def test_a_free_slot_gets_its_next_job_before_results_are_verified(play: Any) -> None:
    run = play([base("a"), base("b")])
    run.join()
    given: list[list[str]] = []
    run.results.accept = lambda job, root: given.append(run.worker().jobs) or ""
    at_once = SimpleNamespace(put=lambda do: do())
    run.run._arrivals._threads = [at_once] * PUBLISHING
    done = Said(run.worker(), {"done": "a", "seconds": 1.0})
    run.tell(done, Fetched(run.node(), ("a",), run.paths.root, 1))
    assert given == [["a", "b"]]


def test_results_are_verified_a_moment_after_they_came(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "SETTLE_SECONDS", 60)  # however slow this machine is
    run = play([base("a")])
    run.join()
    accepted = accepting(run)
    run.run._arrivals._threads = [SimpleNamespace(put=lambda do: do())] * PUBLISHING
    run.run._events.put(Fetched(run.node(), ("a",), run.paths.root, 1))
    run.run._turn()
    assert not accepted, "its worker has just been given the next job"
    monkeypatch.setattr(arrivals, "SETTLE_SECONDS", 0)
    run.run._turn()
    assert accepted == ["a"]


def test_a_result_that_could_not_be_fetched_is_the_nodes_fault(play: Any) -> None:
    run = play([base("a")])
    run.join()
    accepted = accepting(run)
    run.say({"done": "a", "seconds": 1.0})
    run.tell(Fetched(run.node(), ("a",), run.paths.incoming / "0", 0, "n: cut"))
    assert accepted == [], "there is nothing to accept"
    assert (run.state("a"), run.scheduler.cause("a")) == (JobState.RUNNING, "n: cut")
    assert run.worker().jobs == ["a", "a"]


@pytest.mark.parametrize(
    ("result", "counts"), [({}, True), ({"resumed": True}, False), ({"reused": "there"}, False)]
)
def test_only_a_training_from_beginning_to_end_corrects_estimates(
    play: Any, result: dict[str, Any], *, counts: bool
) -> None:
    run = play([base("a")])
    run.join()
    observed: list[float] = []
    run.scheduler.observe = lambda job, node, seconds: observed.append(seconds)
    run.say({"done": "a", "seconds": 7.0, "result": result})
    assert observed == ([7.0] if counts else [])


def test_what_trainings_remark_is_said_once(play: Any) -> None:
    run = play([base("a"), base("b"), base("c")])
    run.join()
    for job, remark in (("a", "net: eager"), ("b", "net: eager"), ("c", "")):
        run.say({"done": job, "seconds": 1.0, "result": {"remark": remark}})
    assert run.said.count("net: eager") == 1
    assert "" not in run.said


def test_running_out_of_memory_may_work_elsewhere_an_error_does_not(play: Any) -> None:
    run = play(script("a", "b"), {"host": "n", "cpu_slots": 2})
    run.join()
    slots = {run.worker(slot).jobs[0]: slot for slot in (0, 1)}
    run.say({"failed": "a", "cause": "out_of_memory", "error": "killed"}, slots["a"])
    run.say({"failed": "b", "cause": "error", "error": "ValueError"}, slots["b"])
    assert (run.state("a"), run.state("b")) == (JobState.RUNNING, JobState.FAILED)


def test_nothing_starts_before_it_is_known_what_nodes_have_done(play: Any) -> None:
    run = play([base("a"), base("b")])
    run.run.context.patience = 1e9
    run.join(found=("a",))
    assert (run.node().fetching, run.worker().jobs) == (["a"], [])
    run.arrive("a")
    run.tell()  # one turn publishes, one clears up, one stops expecting; then the next job starts
    assert (run.state("a"), run.worker().jobs) == (JobState.DONE, ["b"])


# -- base models on their way

BASE = "b" * 16
TUNING = {
    "mode": "full_fine_tuning",
    "data_path": "data/x",
    "participants": ["a"],
    "n_base_participants": 1,
    "fold": 0,
}


def tune(needs: str = BASE) -> Job:
    return Job("finetune", "p/x", TUNING, needs=needs)


def test_a_fine_tune_starts_when_its_base_has_arrived_and_not_before(play: Any) -> None:
    run = play([tune()])
    run.join()
    assert (run.node().sending, run.worker().jobs) == ([(BASE,)], [])
    assert BASE not in run.record().holds
    run.tell(Arrived(run.node(), (BASE,), 0, "n: the copy failed"))
    assert (run.node().sending, run.worker().jobs) == ([(BASE,)] * 2, [])
    assert BASE not in run.record().holds
    run.tell(Arrived(run.node(), (BASE,), 5))
    assert run.worker().jobs == ["p/x"]
    assert BASE in run.record().holds
    # a node's folder is a place to work in: what lies there is no conflict
    assert run.worker().got[-1]["values"]["overwrite"] is True


def test_a_job_does_not_start_with_half_of_what_it_reads(play: Any) -> None:
    run = play([tune()])
    node, file = run.node(), ("data/x", "a_train.pt")
    run.tell(Listed(node, (), ()), Joined(node, node.plan, (file,)))
    node.start_worker(node.plan.slots[0])
    run.tell()
    run.say({"hello": {"log": ""}})
    assert node.sending == [(BASE,), (file,)]
    run.tell(Arrived(node, (BASE,), 0, "n: the copy failed"))
    run.tell(Arrived(node, (file,), 9))
    assert (node.sending, run.worker().jobs) == ([(BASE,), (file,), (BASE,)], [])
    run.tell(Arrived(node, (BASE,), 5))
    assert run.worker().jobs == ["p/x"]


def test_a_base_that_is_damaged_on_a_node_is_sent_again_twice(play: Any) -> None:
    run = play([tune()])
    run.join()
    run.tell(Arrived(run.node(), (BASE,), 5))
    for number in (1, 2):
        run.say({"failed": "p/x", "cause": "base_missing", "error": "damaged"})
        assert run.node().sending == [(BASE,)] * (1 + number)
        run.tell(Arrived(run.node(), (BASE,), 5))
        assert run.worker().jobs == ["p/x"] * (1 + number)
    run.say({"failed": "p/x", "cause": "base_missing", "error": "damaged"})
    assert run.state("p/x") is JobState.FAILED


# -- the end


def test_a_fine_tune_without_its_base_is_told_as_blocked(play: Any) -> None:
    run = play([base(BASE), tune()])
    run.join()
    run.say({"failed": BASE, "cause": "error", "error": "ValueError"})
    outcome = run.run._conclude()
    assert (list(outcome.failed), outcome.blocked, outcome.left) == ([BASE], ["p/x"], [])


def test_a_run_ends_when_its_data_were_prepared_again(play: Any) -> None:
    run = play([base("a")])
    run.join()
    assert not run.run._is_over()
    run.run.context.new_data = "data/x"
    assert run.run._is_over()
    assert "data/x was prepared again since this run started" in run.run.outcome.why


def test_a_result_that_is_being_verified_holds_up_nothing_else_and_the_first_is_kept(
    play: Any,
) -> None:
    """The head's disk may be slow."""
    went = play(
        [base("one"), base("two")], {"host": "a", "cpu_slots": 1}, {"host": "b", "cpu_slots": 1}
    )
    entered: queue.SimpleQueue[str] = queue.SimpleQueue()
    go = threading.Event()

    def accept(job: Job, root: Paths) -> str:
        entered.put(job.id)
        assert go.wait(60)
        return ""

    went.results.accept = accept
    for name in ("a", "b"):
        went.join(name)
    for name in ("a", "b", "a"):
        went.run._events.put(Fetched(went.node(name), ("one",), went.paths.incoming / name, 1))
    went.tell(wait=False)
    assert entered.get(timeout=30) == "one"
    went.say({"failed": "two", "cause": "error", "error": "no"}, 0, "b", wait=False)
    assert went.state("two") is JobState.FAILED
    assert went.state("one") is not JobState.DONE
    go.set()
    went.tell()
    assert went.state("one") is JobState.DONE
    went.arrive("one", "b")
    assert entered.empty()  # later results of the job are not looked at


def test_a_copy_of_results_is_kept_until_all_of_them_are_verified(play: Any) -> None:
    went = play([base("one"), base("two"), base("three")], {"host": "n", "cpu_slots": 3})
    found = []

    def accept(job: Job, root: Paths) -> str:
        found.append((job.id, (root.root / job.id).exists()))
        return ""

    went.results.accept = accept
    went.join()
    went.arrive("one")
    root = went.paths.incoming / "together"
    for name in ("one", "two", "three"):
        (root / name).mkdir(parents=True)
    went.tell(Fetched(went.node(), ("one", "two", "three"), root, 1))
    assert sorted(found) == [("one", False), ("three", True), ("two", True)]
    wait_until(lambda: not root.exists(), what="the folder to be removed")


def test_a_full_disk_while_a_result_is_published_ends_the_run(play: Any) -> None:
    went = play([base("one")])

    def accept(job: Job, root: Paths) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    went.results.accept = accept
    went.join()
    with pytest.raises(OSError, match="No space"):
        went.arrive("one")
