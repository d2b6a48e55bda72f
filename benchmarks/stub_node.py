"""The Python of a node that only plays: it answers the questions of a head and its workers report
results that were made before, so that one small machine can be a hundred nodes.

A server of cluster_config.json names this file as its `python`. Beside the file lies stub/, with
facts.json (what the probe answers), seconds (how long a job takes on average) and results/ (an
experiments folder). A node whose project folder holds a file `dead` does not answer. Standard
library only, and quick to start: there are 800 of it.
"""

import contextlib
import hashlib
import json
import os
import random
import select
import sys
import time

STUB = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "stub")
COMMON = ("best_model.pt", "losses.json", "predictions.csv", "train.log")  # to all results


def digest(path):
    """SHA-256 of a file, None where there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def answer_probe():
    """What the node has; files of the data set as they are."""
    with open(os.path.join(STUB, "facts.json")) as file:
        facts = json.load(file)
    data = [digest(os.path.join(*name)) for name in json.load(sys.stdin)]
    print(json.dumps({**facts, "clock": time.time(), "data": data}))


def answer_inventory():
    """Which data and results lie in the project folder."""
    asked = json.load(sys.stdin)
    there = [
        job
        for job in asked["experiments"]
        if os.path.exists(os.path.join("experiments", job, "metrics.json"))
    ]
    data = [digest(os.path.join(*name)) for name in asked["data"]]
    print(json.dumps({"data": data, "bases": [], "experiments": there}))


def publish(job):
    """Put the result of a job, made before, where a training would have put it."""
    target = os.path.join("experiments", job)
    os.makedirs(target, exist_ok=True)
    own = os.path.join(STUB, "results", job)
    for name in (*COMMON, "config.json", "metrics.json"):
        source = own if name not in COMMON else os.path.join(STUB, "common")
        with contextlib.suppress(FileExistsError):
            os.link(os.path.join(source, name), os.path.join(target, name))


class Worker:
    """Speaks the protocol of common/cluster/on_node/worker.py."""

    def __init__(self, beat, progress):
        with open(os.path.join(STUB, "seconds")) as file:
            self.seconds = float(file.read())
        self.progress = progress
        self.beat, self.beat_at = beat, time.monotonic() + beat
        self.job, self.began, self.ends, self.tells = None, 0.0, 0.0, 0.0

    def say(self, message):
        os.write(1, json.dumps(message).encode() + b"\n")

    def take(self, message):
        """One message of the head."""
        if "job" in message:
            self.job, self.began = message["job"], time.monotonic()
            share = random.Random(self.job).uniform(0.5, 1.5)
            self.ends, self.tells = self.began + share * self.seconds, self.began
        elif message.get("cancel") == self.job and self.job:
            self.say({"failed": self.job, "cause": "cancelled", "error": "", "seconds": 1.0})
            self.job = None
        elif "stop" in message:
            sys.exit(1)

    def tick(self):
        """Say what is due; seconds until the next time."""
        now = time.monotonic()
        if now >= self.beat_at:
            self.beat_at = now + self.beat
            self.say({"beat": 1})
        if self.job is None:
            return self.beat_at - now
        if now >= self.ends:
            publish(self.job)
            seconds, job, self.job = now - self.began, self.job, None
            self.say({"done": job, "result": {}, "seconds": seconds, "log": ""})
            return self.beat_at - now
        if now >= self.tells:
            self.tells = now + self.progress
            epoch = 1 + int(10 * (now - self.began))
            losses = {"train_loss": 0.61, "val_loss": 0.63, "val_macro_f1": 0.7}
            self.say({"progress": self.job, "epoch": epoch, "of": 200, **losses})
        return max(0.0, min(self.beat_at, self.ends, self.tells) - now)

    def serve(self, marker):
        """Until the input ends."""
        os.write(1, f"\n{marker}\n".encode())
        self.say({"hello": {"pid": os.getpid(), "host": "stub", "log": "", "speed": 1e6}})
        buffer = b""
        while True:
            if select.select([0], [], [], self.tick())[0]:
                chunk = os.read(0, 1 << 16)
                if not chunk:
                    sys.exit(0)
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    self.take(json.loads(line))


def main(argv):
    """As `python -c PROBE`, `python -m inventory` or `python -m worker` would be called."""
    if os.path.exists("dead"):
        sys.exit("no answer")
    if argv[0] == "-c":
        answer_probe()
    elif argv[1].endswith(".inventory"):
        answer_inventory()
    else:
        flags = dict(word[2:].split("=", 1) for word in argv[2:] if "=" in word)
        Worker(float(flags["beat"]), float(flags["progress"])).serve(flags["marker"])


main(sys.argv[1:])
