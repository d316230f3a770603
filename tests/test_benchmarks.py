"""The demo benchmark's report, with and without a second commit to compare with."""

import pytest

from tests.benchmarks import demo_cpu


def measured(seconds: float) -> dict:
    return {
        "params": "params/demo.yaml",
        "cpu_s": {"01_audit": seconds, "07_live": 2.0},
        "total_cpu_s": seconds + 2.0,
        "wall_s": seconds + 3.0,
        "headline": "speed_mae_mps 0.84",
    }


@pytest.mark.parametrize("sides", [("this",), ("base", "this")], ids=" and ".join)
def test_demo_report_has_a_column_for_each_commit(sides):
    record = {side: [measured(10.0 * (1 + place))] for place, side in enumerate(sides)}
    lines = demo_cpu.report(record | {"machine": "2 cores"}).splitlines()
    assert lines[1].split() == ["stage", *sides, *(["ratio"] if len(sides) == 2 else [])]
    (audit,) = (line.split() for line in lines if line.startswith("01_audit"))
    assert audit[1:] == (["10.0"] if len(sides) == 1 else ["10.0", "20.0", "2.00"])
    assert lines[-2:] == [
        ", ".join(f"{s} {record[s][0]['total_cpu_s']:.0f} CPU s" for s in sides),
        "2 cores",
    ]
