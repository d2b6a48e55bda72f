"""The engine over Slurm: job arrays, their tasks, and what watches them.

May import on_node/ and the modules of common/cluster; nothing of ssh/ or transport/.
"""
