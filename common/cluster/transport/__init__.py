"""Bytes to and from a machine: connections, processes, OpenSSH's settings, rsync.

The only room that knows whether a node is local. May import cluster/config.py and the ground floor.
"""
