"""What needs a GPU, in one command: build, tests, sanitizers and measurements.

cli -> (steps, bench, report) -> record; a part of the measurements runs in a process of its own:
cli -> part -> parts/* -> timing.
"""
