"""Which job next, and where. Pure: no I/O, no threads, no clock of its own.

Imports nothing of the rest of the project.
"""
