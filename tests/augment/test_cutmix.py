"""CutMix: placements, composition and the plan of a whole set."""

from collections import Counter

import numpy as np
import pytest
import torch

from t2ikit.augment.cutmix import (
    SETTINGS,
    SINGLE_SETTINGS,
    MixPlan,
    compose,
    fits,
    place,
    stratified_settings,
)


def draw(setting: str, size: int, count: int, seed: int = 0, **options: bool) -> Counter:
    generator = torch.Generator().manual_seed(seed)
    return Counter(place(setting, size, generator, **options) for _ in range(count))


def allowed(setting: str, size: int) -> list[tuple[int, int, int, int]]:
    side = size // {"cm4": 2, "cm9": 3, "cm16": 4}[setting]
    spots = [(x, y, x + side, y + side) for x in range(size - side + 1) for y in range(size - side + 1)]
    return [spot for spot in spots if fits(setting, size, spot)]


@pytest.mark.parametrize("size", [256, 512, 16])
def test_halves(size: int) -> None:
    seen = draw("cm2", size, 400)
    assert set(seen) == {(size // 2, 0, size, size), (0, size // 2, size, size)}
    assert min(seen.values()) > 150


def test_corners() -> None:
    seen = draw("cm4", 256, 800)
    assert set(seen) == {(x, y, x + 128, y + 128) for x in (0, 128) for y in (0, 128)}
    assert min(seen.values()) > 140


@pytest.mark.parametrize(("size", "side"), [(256, 85), (512, 170), (16, 5)])
def test_borders(size: int, side: int) -> None:
    far = size - side
    seen = draw("cm9", size, 4000)
    corners = 0
    borders = Counter()
    for (x0, y0, x1, y1), count in seen.items():
        assert (x1 - x0, y1 - y0) == (side, side)
        touched = (x0 in (0, far)) + (y0 in (0, far))
        assert touched >= 1
        corners += count * (touched == 2)
        if touched == 1:
            borders[("x", x0) if x0 in (0, far) else ("y", y0)] += count
    assert corners / 4000 == pytest.approx(2 / (far + 1), rel=0.4)
    assert len(borders) == 4 and min(borders.values()) > 0.2 * sum(borders.values())
    strict = draw("cm9", size, 2000, strict_paper=True)
    assert all((r[0] in (0, far)) + (r[1] in (0, far)) == 1 for r in strict)
    assert all(fits("cm9", size, r, strict_paper=True) for r in strict)


def test_counts_of_the_specification() -> None:
    assert len(allowed("cm16", 256)) == 15_336
    assert len({(r[0], r[1]) for r in allowed("cm9", 256)}) == 4 * 171
    xs = {r[0] for r in allowed("cm16", 256)}
    assert (min(xs), max(xs)) == (12, 180)


@pytest.mark.parametrize(
    ("size", "low", "high", "zone"), [(256, (12, 38), (154, 180), (103, 153)), (512, (25, 76), (308, 359), (205, 307))]
)
def test_sixteenth_keeps_clear_of_the_centre(
    size: int, low: tuple[int, int], high: tuple[int, int], zone: tuple[int, int]
) -> None:
    side = size // 4
    seen = draw("cm16", size, 4000)
    free = 0
    for x0, y0, x1, y1 in seen.elements():
        assert low[0] <= x0 <= high[1] and low[0] <= y0 <= high[1] and x1 - x0 == side == y1 - y0
        clear = [low[0] <= v <= low[1] or high[0] <= v <= high[1] for v in (x0, y0)]
        assert any(clear)
        assert x1 < zone[0] or x0 > zone[1] or y1 < zone[0] or y0 > zone[1]
        free += all(clear)
    axis, open_axis = high[1] - low[0] + 1, 2 * (low[1] - low[0] + 1)
    expected = open_axis**2 / (axis**2 - (axis - open_axis) ** 2)
    assert free / 4000 == pytest.approx(expected, abs=0.03)


def test_sixteenth_is_uniform_over_the_allowed_set() -> None:
    spots = allowed("cm16", 16)
    seen = draw("cm16", 16, 100 * len(spots))
    assert set(seen) == set(spots)
    chi = sum((seen[s] - 100) ** 2 / 100 for s in spots)
    assert chi < len(spots) + 5 * (2 * len(spots)) ** 0.5


def test_cmall_is_uniform_over_the_four() -> None:
    seen: Counter = Counter()
    for (x0, y0, x1, y1), count in draw("cmall", 256, 4000).items():
        seen["cm2" if max(x1 - x0, y1 - y0) == 256 else x1 - x0] += count
    assert set(seen) == {"cm2", 128, 85, 64}
    assert min(seen.values()) > 900


@pytest.mark.parametrize("setting", SETTINGS)
def test_any_size(setting: str) -> None:
    for size in range(4, 70):
        assert all(fits(setting, size, r) for r in draw(setting, size, 20))


def test_refusals() -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match="cm3.*choose one of cm2"):
        place("cm3", 256, generator)
    with pytest.raises(ValueError, match="at least 4"):
        place("cm2", 3, generator)
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="not one of setting 'cm4'"):
        compose(image, image, (1, 0, 9, 8), "cm4")
    with pytest.raises(ValueError, match="uint8"):
        compose(image.float(), image, (0, 0, 8, 8), "cm4")
    with pytest.raises(ValueError, match="needs one of"):
        compose(image, image, (0, 0, 8, 8), "cmall")
    with pytest.raises(ValueError, match="two.*--source"):
        MixPlan([3, 3, 3], "cm4", 16, 0)


def test_compose_takes_the_aligned_half() -> None:
    base, other = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mixed = compose(base, other, (8, 0, 16, 16), "cm2")
    assert torch.equal(mixed[:, :, :8], base[:, :, :8]) and torch.equal(mixed[:, :, 8:], other[:, :, 8:])
    mixed = compose(base, other, (0, 8, 16, 16), "cm2")
    assert torch.equal(mixed[:, :8], base[:, :8]) and torch.equal(mixed[:, 8:], other[:, 8:])


def test_compose_shows_the_whole_other_image() -> None:
    base = torch.full((3, 64, 64), 7, dtype=torch.uint8)
    other = torch.zeros(3, 64, 64, dtype=torch.uint8)
    other[:, :, 32:] = 200
    before = base.clone()
    mixed = compose(base, other, (40, 0, 61, 21), "cm9")
    assert torch.equal(base, before)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[0:21, 40:61] = False
    assert (mixed[:, outside] == 7).all()
    assert (mixed[:, 0:21, 40:49] == 0).all() and (mixed[:, 0:21, 52:61] == 200).all()


def test_compose_crops_the_centre_of_a_wide_image() -> None:
    base = torch.zeros(3, 16, 16, dtype=torch.uint8)
    other = torch.zeros(3, 32, 96, dtype=torch.uint8)
    other[:, :, 32:64] = 90
    mixed = compose(base, other, (0, 0, 8, 8), "cm4")
    assert (mixed[:, :8, 1:7] == 90).all() and (mixed[:, 8:] == 0).all()


def test_plan_pairs_other_classes_uniformly() -> None:
    classes = np.array([0] * 5 + [1] * 10 + [2] * 5)[np.random.default_rng(0).permutation(20)]
    seen: Counter = Counter()
    for seed in range(400):
        for mix in MixPlan(classes, "cm4", 16, seed):
            assert classes[mix.base] != classes[mix.other]
            seen[mix.base, mix.other] += 1
    base = int(np.flatnonzero(classes == 1)[0])
    partners = [seen[base, k] for k in range(20) if classes[k] != 1]
    assert sum(partners) == 400 and min(partners) > 15 and max(partners) < 70


def test_plan_is_stratified_and_a_function_of_the_index() -> None:
    settings = stratified_settings(1002, seed=3)
    assert Counter(settings[:1000]) == dict.fromkeys(SINGLE_SETTINGS, 250)
    assert stratified_settings(500, seed=3) == settings[:500] != stratified_settings(500, seed=4)
    classes = [k % 7 for k in range(40)]
    first, second = MixPlan(classes, "cmall", 64, 5), MixPlan(classes, "cmall", 64, 5)
    assert list(first) == list(second) != list(MixPlan(classes, "cmall", 64, 6))
    assert all(fits(mix.setting, 64, mix.rectangle) for mix in first)
    assert [mix.base for mix in first] == list(range(40))
