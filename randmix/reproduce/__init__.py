"""Reproduction of the paper's experiments, from configs to a report.

    python -m randmix reproduce --preset=digits --workdir=...

Modules, from the bottom up:

- `presets`: tables of the configs of each experiment, for each preset.
- `plan`: the distinct runs that they amount to; `randmix.experiments` trains and records them.
- `under_attack`, `measurements`: what is measured of trained runs, and pictures from records.
- `counting`: parameter counts compared with the paper's equations.
- `numbers`: all numbers, each with the run that it comes from.
- `effects`: what claims compare, one number per seed.
- `gates`: what must hold before a claim is judged.
- `claims`: the table of the claims, with thresholds, margins and gates.
- `verdicts`: the claims judged.
- `shares`, `lattice`, `frozen_filters`, `scaling`: figures and tables of E12 to E15.
- `experiments`, `figures`, `panels`, `curves`, `pictures`, `tables`, `cells`, `titles`,
  `neighbours`: the contents of the report.
- `report`: the page, its data and its figures.
- `command`: the work of ``python -m randmix reproduce``.
"""
