"""The arithmetic of the report's curves."""

import math

import pytest
from hone_trainer.reporting.charts import make_charts, make_ticks, thin_points


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (1, 20, [5, 10, 15, 20]),
        (0.12, 0.31, [0.15, 0.2, 0.25, 0.3]),
        (0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
        (-3, 3, [-2, 0, 2]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert make_ticks(low, high) == pytest.approx(expected)


def test_thinning_keeps_ends_order_and_every_spike() -> None:
    points = [(float(step), math.sin(step / 500)) for step in range(10_000)]
    points[4321] = (4321.0, 50.0)
    points[8765] = (8765.0, -50.0)
    found = thin_points(points, 200)
    assert len(found) <= 200
    assert found == sorted(found)
    assert {points[0], points[-1], points[4321], points[8765]} <= set(found)
    assert thin_points(points[:200], 200) == points[:200]


def test_a_chart_spans_its_values_and_leaves_out_other_values() -> None:
    log = [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    (chart,) = make_charts(log)
    assert [(curve.name, curve.points) for curve in chart.curves] == [
        ("training", [(1, 2.0), (3, 1.0)]),
        ("evaluation", [(0, 3.0)]),
    ]
    assert chart.box[:2] == (0, 3)
    assert chart.box[2] == pytest.approx(0.9)
    assert chart.box[3] == pytest.approx(3.1)
    assert chart.curves[0].path == "M333.3 500.0L1000.0 954.5"
    assert chart.curves[1].path == "M0.0 45.5h0"
    assert all(0 <= tick.share <= 1 for tick in [*chart.across, *chart.up])


def test_equal_values_and_a_single_step_are_drawn() -> None:
    (flat,) = make_charts([{"step": 1, "grad_norm": 0.0}, {"step": 2, "grad_norm": 0.0}])
    assert flat.box[2] < flat.box[3]
    (single,) = make_charts([{"step": 7, "learning_rate": 1e-4}])
    assert [tick.value for tick in single.across] == [7]
    assert make_charts([]) == []
