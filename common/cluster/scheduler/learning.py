"""What finished jobs teach: how wrong the estimates of each kind of job are, and how fast each node
is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from common.cluster.scheduler.states import JobRecord, NodeRecord

# How many jobs a prior weighs: estimates may be wrong by any factor, kinds differ less.
_ALL_PRIOR, _KIND_PRIOR = 0.1, 1.0
_SPEED_DOUBT = 0.3  # standard deviation of the logarithm of a speed given by the caller
_KIND_DOUBT = 1.0  # the same of a kind's factor before a job of that kind is done
_ROUNDS, _SAMPLE = 8, 100  # of the expectation over running jobs, and how many of them are used


@dataclass(slots=True)
class Ratio:
    """Observed over estimated seconds of finished jobs."""

    jobs: int = 0
    observed: float = 0.0
    estimated: float = 0.0

    def add(self, observed: float, estimated: float) -> None:
        """One more job."""
        self.jobs += 1
        self.observed += observed
        self.estimated += estimated

    def towards(self, prior: float, weight: float) -> float:
        """The ratio, with `prior` weighing as much as `weight` jobs."""
        if not self.jobs:
            return prior
        doubt = weight * self.estimated / self.jobs
        return (self.observed + doubt * prior) / (self.estimated + doubt)


class Learning:
    """Corrected durations of jobs and speeds of nodes.

    Each kind of job has a factor: observed seconds over estimated ones. A kind of which no job is
    done has the factor of all kinds together, since estimates are mostly wrong in common: another
    machine, other software.
    """

    def __init__(self) -> None:
        self._all = Ratio()
        self._kinds: dict[str, Ratio] = {}
        self._factors: dict[str, float] = {}  # worked out so far
        self._reported: dict[str, float] = {}  # factors when `moved` was last True
        self._squares = 4 * 0.3**2  # of the logarithm's error; a prior worth four jobs off by 30 %
        self._count = 4

    def factor(self, kind: str) -> float:
        """Seconds at speed 1 for each estimated second; 1 before anything is known."""
        known = self._factors.get(kind)
        if known is None:
            common = self._all.towards(1.0, _ALL_PRIOR)
            seen = self._kinds.get(kind, Ratio())
            known = self._factors[kind] = seen.towards(common, _KIND_PRIOR)
        return known

    def moved(self) -> bool:
        """Whether some factor has changed by more than 2 % since this last was True."""
        now = {kind: self.factor(kind) for kind in self._kinds}
        if all(abs(now[kind] / self._reported.get(kind, math.inf) - 1) <= 0.02 for kind in now):
            return False
        self._reported = now
        return True

    def work(self, record: JobRecord) -> float:
        """Seconds of the job at speed 1."""
        return record.job.estimate * self.factor(record.job.kind)

    def tail(self, record: JobRecord) -> float:
        """Seconds of its longest dependant at speed 1."""
        return record.tail * self.factor(record.tail_kind) if record.tail else 0.0

    def chain(self, record: JobRecord) -> float:
        """Seconds of the job and its longest dependant at speed 1."""
        return self.work(record) + self.tail(record)

    def doubt(self, record: JobRecord) -> float:
        """How far its chain may be off: standard deviation of the logarithm of its seconds. The
        scatter of all jobs, and what is not known yet of its kinds.
        """
        kinds = [record.job.kind] + ([record.tail_kind] if record.tail else [])
        done = min(self._kinds[kind].jobs if kind in self._kinds else 0 for kind in kinds)
        return math.sqrt(self._squares / self._count + _KIND_DOUBT**2 / (1 + done))

    def observe(
        self, record: JobRecord, host: NodeRecord, seconds: float, *, alone: bool = False
    ) -> bool:
        """A whole training took `seconds` on `host`. Returns True when the node's speed changed by
        more than 1 %. alone: there is no other node to compare it with.

        The speed is the posterior mean of its logarithm: the prior is the speed given when the node
        joined, the noise is the scatter of all jobs around their corrected estimates. The first job
        of a kind only shows how wrong the estimates are.
        """
        seconds *= host.speed
        self._add(record, seconds)
        if alone or self._kinds[record.job.kind].jobs == 1:
            return False
        residual = math.log(seconds / self.work(record))
        self._squares += residual * residual
        self._count += 1
        host.seen += 1
        host.log_sum += math.log(host.speed) - residual
        weight = self._squares / self._count / _SPEED_DOUBT**2
        speed = math.exp((weight * math.log(host.prior) + host.log_sum) / (weight + host.seen))
        if abs(speed / host.speed - 1) <= 0.01:
            return False
        host.speed = speed
        return True

    def including(self, running: Iterable[tuple[JobRecord, float]]) -> Learning:
        """What is known when running jobs count too, each with its seconds so far at speed 1.

        Short jobs finish first: finished ones alone would say too little. A running job counts with
        its expected duration, that of a lognormal distribution cut off below what it has run, found
        in a few rounds (censored regression: Tobin, Econometrica 26, 1958).
        """
        jobs = list(islice(running, _SAMPLE))
        sigma = max(0.3, math.sqrt(self._squares / self._count))
        known = self
        for _ in range(_ROUNDS):
            work = [(record, known.work(record), so_far) for record, so_far in jobs]
            known = copy.deepcopy(self)
            for record, seconds, so_far in work:
                z = math.log(so_far / seconds) / sigma if so_far > 0 else -math.inf
                z = min(z, 5.0)
                known._add(record, seconds * _above(z - sigma) / _above(z))
        return known

    def _add(self, record: JobRecord, seconds: float) -> None:
        for seen in (self._all, self._kinds.setdefault(record.job.kind, Ratio())):
            seen.add(seconds, record.job.estimate)
        self._factors.clear()


def _above(z: float) -> float:
    """Probability that a standard normal variable exceeds z."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))
