"""The table of targets that the benchmark of a GPU ends with."""

import json
import sys

import pytest
from command import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import targets


def depthwise(method, shape, ms, *, wrong=False):
    return {"method": method, "shape": shape, "part": "all", "ms": ms, "wrong": wrong}


RESULTS = {
    "step_bfloat16_resnet_2": [
        {"ours ms": 5.0, "torch.compile ms": 10.0, "vs torch": 0.5, "batch": 512},
        {"ours ms": 6.0, "torch.compile ms": 11.0, "vs torch": 0.6, "batch": 512},
    ],
    "step_bfloat16_convmixer_512_8": [
        {"ours ms": 10.0, "torch.compile ms": 50.0, "vs torch": 0.2, "batch": 128}
    ],
    "step_float32_resnet_2": [
        {"ours ms": 7.0, "torch.compile ms": 20.0, "vs torch": 0.7, "batch": 512}
    ],
    "depthwise": [
        depthwise("grouped", "16x256x5", 4.0),
        depthwise("shift_sum", "16x256x5", 9.0),
        depthwise("pallas", "16x256x5", 1.0),
        depthwise("grouped", "32x512x8", 8.0),
        depthwise("shift_sum", "32x512x8", 3.0),
        depthwise("pallas", "32x512x8", 1.0, wrong=True),
        depthwise("pallas", "32x768x7", None),
        {**depthwise("pallas", "16x256x5", 0.1), "part": "forward"},
    ],
    "depthwise_torch": [
        depthwise("torch", "16x256x5", 5.0),
        depthwise("torch.compile", "16x256x5", 2.0),
        depthwise("torch", "32x768x7", 2.0),
    ],
    "ensemble": [{"together / one": 2.5}, {"together / one": 3.25}],
    "augment": [{"share": 0.01}, {"share": 0.1}],
    "resume": [{"equal": True}],
}


def written(folder):
    for name, rows in RESULTS.items():
        (folder / f"{name}.json").write_text(json.dumps({"rows": rows}))
    (folder / "input.json").write_text(
        json.dumps({"images_per_second_a_core": {"stream, 2 threads": 640}})
    )
    return folder


def test_the_worst_figure_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(targets.os, "sched_getaffinity", lambda process: range(16))
    found = [(row["measured"], row["met"]) for row in targets.summary(written(tmp_path))]
    assert found == [
        ("0.2 to 0.6", "yes"),  # bfloat16
        ("0.7", "no"),  # float32
        ("0.375 to 0.5", "yes"),  # a wrong or missing Pallas kernel doesn't count
        ("2.5 to 3.25", "no"),
        ("0.01 to 0.1", "no"),
        ("0", "yes"),
        ("20", "no"),  # 12,800 images/s at 640 a core
    ]


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_what_is_no_number_meets_no_target(tmp_path, figure):
    rows = [{"together / one": 1.0}, {"together / one": figure}]
    (tmp_path / "ensemble.json").write_text(json.dumps({"rows": rows}))
    assert targets.summary(tmp_path)[3]["met"] == "no"


def test_what_was_not_measured_is_neither_met_nor_missed(tmp_path):
    assert {(row["measured"], row["met"]) for row in targets.summary(tmp_path)} == {("nothing", "")}
