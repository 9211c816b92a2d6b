"""A run's log, as one run's is compared with another's."""

import json


def lines(workdir):
    """The rows of ``metrics.jsonl`` without their timings."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]
