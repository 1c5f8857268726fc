"""What the benchmark page says of its figures."""

from __future__ import annotations

from benchmarks import page
from benchmarks.figures import FIRST_TOKEN, MORE, OURS, SPEED, Metric, Result, Row
from benchmarks.floor import FLOOR
from benchmarks.http_peer import MLX_LM


def result(
    ours: tuple[float, ...], theirs: tuple[float, ...], metric: Metric = FIRST_TOKEN, other: str = MLX_LM
) -> Result:
    """Return a result of one case."""
    return Result("title", [Row("a case", metric, OURS, ours), Row("a case", metric, other, theirs)])


def test_benchmark_ratios_are_taken_within_a_round() -> None:
    """A slow minute of the machine hits both sides of a round, and no ratio."""
    one = result((10, 100, 10), (20, 200, 20))
    assert one.ratios("a case", FIRST_TOKEN, OURS, MLX_LM) == [0.5, 0.5, 0.5]


def test_faster_peer_is_named_in_the_benchmarks() -> None:
    """Less is better for times, more for throughput."""
    assert "mlx_lm.server 8.00 ms against our 9.00" in page.ahead({"name": result((9,), (8,))})
    assert "mlx_lm.server 9.00 tokens/s against our 8.00" in page.ahead({"name": result((8,), (9,), SPEED)})


def test_slower_peer_and_floor_do_not_count_as_faster() -> None:
    """A floor is always faster."""
    behind = {"time": result((8,), (9,)), "speed": result((9,), (8,), SPEED), "floor": result((9,), (1,), other=FLOOR)}
    assert page.ahead(behind) == "* nowhere in this run"


def test_benchmark_target_respects_its_direction() -> None:
    """At most for times, at least for throughput; what is missed is said."""
    one = Result("title")
    one.aim("low", [1, 2, 3], 2)
    one.aim("high", [1, 2, 3], 2, MORE)
    one.aim("missed", [3], 2)
    one.aim("not measured", [], 2)
    assert [(target.text, target.reached) for target in one.targets] == [
        ("low", True),
        ("high", True),
        ("missed", False),
    ]
    assert page.text(one).count("**not reached**") == 1
