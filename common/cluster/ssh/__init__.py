"""The engine over SSH and local slots: the event loop, its nodes, their commands.

May import scheduler/, transport/, on_node/ and the modules of common/cluster; nothing of slurm/.
"""
