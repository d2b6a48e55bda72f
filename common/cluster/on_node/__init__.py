"""What runs on a node: the worker, and small programs that report on the node.

May import the floors below common/cluster; nothing of ssh/, slurm/, transport/ or scheduler/.
"""
