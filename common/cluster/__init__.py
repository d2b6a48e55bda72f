"""Floor 4: jobs -> results, wherever they run.

No torch, except in the worker's own process. May import everything below: common/training only in
on_node/ and slurm/task.py, where trainings run.
"""
