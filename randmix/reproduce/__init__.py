"""The paper's experiments, from configs to a report: ``python -m randmix.reproduce --preset=digits --workdir=...``.

The rooms, from below:

- `presets`: for each preset the configs of each experiment, as tables.
- `plan`: the runs that they make together, each once; what they cost; who of several jobs takes which.
- `training`: the one place where runs are trained, those that differ only in seed together.
- `sweep`: takes the runs of a plan one after the other, under locks, through failures and signals.
- `measurements`: what is measured on trained runs, kept in files beside them.
- `records`: every number, with the run that it comes from.
- `statistics`: effects over seeds with their confidence intervals.
- `claims`: what the paper claims, what confirms and what refutes it, and the verdicts.
- `experiments`, `figures`, `tables`, `neighbours`: what a reader sees of each experiment.
- `report`: the page, its data and its figures.
- `__main__`: the command line.
"""
