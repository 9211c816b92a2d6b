"""Runs side by side: any runs, over any keys of their configs.

This package knows no model, no data set and nothing of the paper, which is one user of it. Modules,
from the bottom up:

- `statistics`: intervals, tests and corrections of effects over seeds.
- `measured`: what is measured of a run beside its training, in files that are made once.
- `records`: what is kept of finished runs: a line of JSON each, and arrays.
- `plan`: the runs of a sweep in groups of seeds, their costs and shards.
- `grid`: the groups of every combination of some keys' values.
- `training`: trains a group, as one program or run by run.
- `calibration`: the minutes that a plan takes on this machine.
- `formatting`, `compare`: runs as a table: what was varied and what came out.
- `sweep`: executes a plan: trains, measures and records whatever is missing.
- `command`: the work of ``python -m randmix sweep``.
"""
