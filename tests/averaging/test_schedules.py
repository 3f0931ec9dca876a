"""Weights of the schedules, against their formulas and against running averages in floats."""

from __future__ import annotations

import math

import pytest

from fastmerge.schedules import NAMES, SHAPES, by_counts, decayed, normalized, schedule_of


@pytest.mark.parametrize("n", [1, 2, 5, 20, 101])
@pytest.mark.parametrize("text", ["uniform", "swa", "warm", "linear", "1-sqrt", "cosine", "ema:0", "ema:0.9", "lawa:3"])
def test_weights_add_up_to_one(text, n):
    weights = schedule_of(text).weights(n)
    assert len(weights) == n and min(weights) >= 0
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)


def test_by_hand():
    assert schedule_of("uniform").weights(4) == [0.25] * 4
    assert schedule_of("linear").weights(3) == [1 / 6, 2 / 6, 3 / 6]
    assert schedule_of("ema:0.75").weights(3) == [0.5625, 0.1875, 0.25]
    assert schedule_of("1-sqrt").weights(4) == pytest.approx([0.5, *(math.sqrt(k / 4) - math.sqrt((k - 1) / 4)
                                                                      for k in (2, 3, 4))])  # fmt: skip
    assert schedule_of("cosine").weights(2) == pytest.approx([0.5, 0.5])
    assert schedule_of("cosine").weights(4) == pytest.approx([w / 2 for w in (1 - 0.5**0.5, 0.5**0.5, 0.5**0.5,
                                                                               1 - 0.5**0.5)])  # fmt: skip
    assert schedule_of("decay:0.8,0.4,0.1").weights(4) == pytest.approx([0.2, 0.4, 0.3, 0.1])
    assert by_counts([1200, 0, 300]) == [0.8, 0.0, 0.2]
    assert normalized([3, -1]) == [1.5, -0.5]
    assert (schedule_of("lawa:5").last, schedule_of("decay:0.5").last, schedule_of("ema:0.5").last) == (5, 2, None)


def test_an_exponential_average_is_its_recurrence():
    values, decay = [3.0, -1.0, 4.0, 1.5], 0.7
    average = values[0]
    for value in values[1:]:
        average = decay * average + (1 - decay) * value
    weights = schedule_of("ema:0.7").weights(4)
    assert sum(w * v for w, v in zip(weights, values, strict=True)) == pytest.approx(average)


@pytest.mark.parametrize("shape", [*SHAPES, "a straight line"])
def test_an_average_does_what_a_decay_would_have_done(shape):
    """WSM: constant steps g_k, averaged, are the steps of a run whose learning rate has that shape."""
    steps, n = [0.3, -0.2, 0.5, 0.7], 5
    factors = [SHAPES.get(shape, lambda t: 1 - t)(k / n) for k in range(1, n)]
    points = [10 + sum(steps[:k]) for k in range(n)]
    decays = 10 + sum(f * g for f, g in zip(factors, steps, strict=True))
    assert sum(w * x for w, x in zip(decayed(factors), points, strict=True)) == pytest.approx(decays)
    if shape in SHAPES:
        assert decayed(factors) == schedule_of(shape).weights(n)
    else:
        assert decayed(factors) == pytest.approx([1 / n] * n)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exponential", "'exponential' is no schedule; expected " + ", ".join(NAMES)),
        ("ema", r"'ema' is no schedule; expected ema:DECAY with a number in \[0, 1\)"),
        ("ema:1", "expected ema:DECAY"),
        ("ema:nan", "expected ema:DECAY"),
        ("lawa:2.5", "expected lawa:K with the number of last models"),
        ("decay:a", "expected decay:F1,F2"),
        ("uniform:3", "'uniform:3' is no schedule"),
    ],
)
def test_what_is_no_schedule(text, message):
    with pytest.raises(ValueError, match=message):
        schedule_of(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decayed([0.5, 0.6]), "the factors of a decay are 0.5, 0.6; expected numbers from 1 down to 0"),
        (lambda: decayed([1.5]), "expected numbers from 1 down to 0"),
        (lambda: decayed([-0.5]), "expected numbers from 1 down to 0"),
        (lambda: decayed([math.nan]), "expected numbers from 1 down to 0"),
        (lambda: schedule_of("decay:0.5,0.2").weights(2), "2 factors of a decay are for 3 models; there are 2"),
        (lambda: by_counts([0, 0]), "the counts are 0, 0; expected numbers >= 0, one above"),
        (lambda: by_counts([3, -1]), "expected numbers >= 0"),
        (lambda: normalized([0.1, 0.2, -0.3]), "the weights are 0.1, 0.2, -0.3; expected finite numbers"),
        (lambda: normalized([math.inf, 1]), "expected finite numbers"),
    ],
)
def test_numbers_that_are_no_weights(make, message):
    with pytest.raises(ValueError, match=message):
        make()
