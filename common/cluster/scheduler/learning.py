"""What finished jobs teach: how wrong the estimates of each kind of job are, and how fast each node
is.
"""

from __future__ import annotations

import math

from common.cluster.scheduler.states import JobRecord, NodeRecord


class Learning:
    """Corrected durations of jobs and speeds of nodes.

    Each kind of job has a factor: observed seconds over estimated ones.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float, float]] = {}  # jobs, observed, estimated seconds
        self._squares = 4 * 0.3**2  # of the logarithm's error; a prior worth four jobs off by 30 %
        self._count = 4

    def factor(self, kind: str) -> float:
        """Seconds at speed 1 for each estimated second. The estimates as given weigh as much as two
        finished jobs.
        """
        seen = self._seen.get(kind)
        if seen is None:
            return 1.0
        count, observed, estimated = seen
        doubt = 2.0 * estimated / count
        return (observed + doubt) / (estimated + doubt)

    def work(self, record: JobRecord) -> float:
        """Seconds of the job at speed 1."""
        return record.job.estimate * self.factor(record.job.kind)

    def tail(self, record: JobRecord) -> float:
        """Seconds of its longest dependant at speed 1."""
        return record.tail * self.factor(record.tail_kind) if record.tail else 0.0

    def observe(self, record: JobRecord, host: NodeRecord, seconds: float) -> bool:
        """A whole training took `seconds` on `host`. Returns True when the node's speed changed by
        more than 1 %.

        The speed is the posterior mean of its logarithm: the prior is the speed given when the node
        joined, the noise is the scatter of all jobs around their corrected estimates.
        """
        kind, estimate = record.job.kind, record.job.estimate
        residual = math.log(seconds * host.speed / (estimate * self.factor(kind)))
        count, observed, estimated = self._seen.get(kind, (0, 0.0, 0.0))
        self._seen[kind] = (count + 1, observed + seconds * host.speed, estimated + estimate)
        self._squares += residual * residual
        self._count += 1
        host.seen += 1
        host.log_sum += math.log(host.speed) - residual
        weight = self._squares / self._count / host.doubt**2
        speed = math.exp((weight * math.log(host.prior) + host.log_sum) / (weight + host.seen))
        if abs(speed / host.speed - 1) <= 0.01:
            return False
        host.speed = speed
        return True
