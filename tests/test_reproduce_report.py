"""A report of the two experiments that train nothing, from the command line to its page."""

import csv
import json

import command
import pytest


@pytest.mark.slow
def test_the_report_of_the_counts_and_the_random_banks(tmp_path):
    done = command.run(
        "randmix reproduce",
        *("--preset=smoke", "--experiments=E1,E11", "--seeds=1", f"--workdir={tmp_path}"),
    )
    assert done.status == 0, done.err
    report = tmp_path / "report"
    verdicts = json.loads((report / "verdicts.json").read_text())
    assert {one["claim"]: one["verdict"] for one in verdicts} == {
        "7": "supported",
        "8": "supported",
    }
    page = (report / "index.html").read_text()
    assert 'id="claim-7"' in page
    assert page.count("data:image/") == 2  # the banks, and the verdicts
    assert (report / "figures" / "E1.png").stat().st_size > 1000
    rows = [*csv.DictReader((report / "results.csv").read_text().splitlines())]
    assert {row["experiment"] for row in rows} == {"E1", "E11"}
    by_size = {row["size"]: float(row["value"]) for row in rows if row["metric"] == "coverage"}
    assert list(by_size.values()) == sorted(by_size.values())
