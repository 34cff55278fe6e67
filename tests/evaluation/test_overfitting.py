"""When an alarm is given, in closed form, and what the options of `Overfitting` may be."""

from __future__ import annotations

import pytest

from t2ikit.evaluation import Overfitting
from t2ikit.evaluation.overfitting import Turn, turn


def points(*values: float) -> list[tuple[int, float]]:
    return [(100 * index, value) for index, value in enumerate(values)]


def test_a_turn_is_a_fall_and_a_rise_that_lasts() -> None:
    fell = (9.0, 4.0, 2.0)
    assert turn(points(*fell, 3.0, 3.0, 3.0), 3, 0.1) == Turn(200, 2.0, 3.0, 3)
    assert turn(points(*fell, 3.0, 3.0), 3, 0.1) is None  # patience
    assert turn(points(*fell, 3.0, 2.1, 3.0), 3, 0.1) is None  # one of the last three is within the tolerance
    assert turn(points(*fell, 2.1, 3.0, 3.0, 3.0), 3, 0.1) == Turn(200, 2.0, 3.0, 4)
    assert turn(points(*fell, 2.1, 2.2, 2.15, 2.2, 2.19), 3, 0.1) is None  # a plateau
    assert turn(points(*fell, 2.1, 2.2, 2.15), 3, 0.0) is not None
    assert turn(points(*fell, 3.0, 3.0, 3.0, 1.0), 3, 0.1) is None  # it has come back
    assert turn(points(1.0, 2.0, 3.0, 4.0), 3, 0.1) is None  # it never fell
    assert turn(points(9.0, -2.0, -1.9, -1.0), 1, 0.1) == Turn(100, -2.0, -1.0, 2)
    assert turn([], 3, 0.1) is None and turn(points(1.0), 1, 0.0) is None
    assert turn(points(*fell, float("nan")), 1, 0.1) is None


def test_three_signs_give_an_alarm() -> None:
    watch = Overfitting(patience=2, most_copies=0.1)

    def signs(**scores: tuple[float, ...]) -> list[str]:
        names = {name.replace("__", "/"): values for name, values in scores.items()}
        steps = range(len(next(iter(names.values()))))
        return watch.signs({step: {name: values[step] for name, values in names.items()} for step in steps})

    assert signs(frechet_distance=(5.0, 1.0, 1.05, 1.02), overfitting__copies=(0.0, 0.0, 0.05, 0.1)) == []
    (turned,) = signs(dinov2__frechet_distance=(5.0, 1.0, 1.5, 2.0), overfitting__copies=(0.0, 0.0, 0.0, 0.0))
    assert turned == "dinov2/frechet_distance was 1 at step 1 and is 2 now, 2 snapshots later"
    (turned,) = signs(loss_fixed_t=(5.0, 1.0, 1.5, 2.0), loss_fixed_t_train=(5.0, 1.0, 1.5, 2.0))
    assert turned.startswith("loss_fixed_t was 1 at step 1")
    (copies,) = signs(overfitting__copies=(0.9, 0.0, 0.11))
    assert copies == "0.11 of the images are copies of training images"
    assert signs(overfitting__copies=(0.9, 0.0, 0.1)) == [] and signs(precision=(0.1, 0.9, 0.2, 0.3)) == []


@pytest.mark.parametrize(
    "options",
    [{"patience": 0}, {"limit": 1}, {"pairs": 0}, {"quantile": 0.0}, {"most_copies": 1.5}, {"tolerance": -0.1}],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"overfitting: {next(iter(options))} must"):
        Overfitting(**options)  # type: ignore[arg-type]
