"""Reproduction of the paper's experiments, from configs to a report.

    python -m randmix reproduce --preset=digits --workdir=...

Modules, from the bottom up:

- `presets`: tables of the configs of each experiment, for each preset.
- `plan`: the distinct runs that they amount to, their cost, and their division among jobs.
- `training`: trains runs; those that differ only in their seed can be trained together.
- `sweep`: executes a plan under locks, surviving failures and signals.
- `stored`, `under_attack`, `measurements`: measurements of trained runs, stored in files beside
  them.
- `counting`: parameter counts compared with the paper's equations.
- `records`: all numbers, each with the run that it comes from.
- `effects`: what claims compare, one number per seed.
- `gates`: what must hold before a claim is judged.
- `claims`: the table of the claims, with thresholds, margins and gates.
- `verdicts`: the claims judged.
- `experiments`, `figures`, `curves`, `pictures`, `tables`, `titles`, `neighbours`: the contents of
  the report.
- `report`: the page, its data and its figures.
- `command`: the work of ``python -m randmix reproduce``.
"""
