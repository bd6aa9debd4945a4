import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import ExitPolicyError
from toolkit.export.threshold import DEFAULT_THRESHOLD, choose_threshold
from toolkit.runtime.exit_policy import (
    POLICIES,
    ExitPolicy,
    accepts,
    gauge,
    normalised_entropy,
    probabilities,
)

LOGITS = np.asarray([[9, 0, 0], [1, 0.9, 0], [0, 0, 0]], np.float32)


def test_softmax_is_the_definition_and_survives_large_logits():
    p = probabilities(LOGITS)
    expected = np.exp(LOGITS.astype(np.float64))
    np.testing.assert_allclose(p, expected / expected.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(probabilities(np.asarray([[3e38, -3e38]], np.float32)), [[1, 0]])
    assert probabilities(LOGITS).dtype == np.float32


def test_temperature_divides_the_logits():
    np.testing.assert_allclose(probabilities(LOGITS, temperature=3), probabilities(LOGITS / 3), atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3, 1000])
def test_entropy_is_normalised_for_any_class_count(n_classes):
    flat = np.full((1, n_classes), 1 / n_classes, np.float32)
    certain = np.eye(1, n_classes, dtype=np.float32)
    np.testing.assert_allclose(normalised_entropy(flat), [1], atol=1e-5)
    assert normalised_entropy(certain)[0] == 0
    assert normalised_entropy(flat)[0] <= 1


def test_entropy_is_the_definition():
    p = np.asarray([[0.5, 0.25, 0.25]], np.float32)
    expected = (0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3)
    np.testing.assert_allclose(normalised_entropy(p), [expected], rtol=1e-6)


def test_each_policy_lets_the_sure_leave():
    assert accepts(LOGITS, threshold=0.5).tolist() == [True, False, False]
    assert accepts(LOGITS, kind="max_softmax", threshold=0.4).tolist() == [True, True, False]
    assert accepts(LOGITS, kind="margin", threshold=0.2).tolist() == [True, False, False]
    assert accepts(LOGITS, threshold=0.5, temperature=100).tolist() == [False, False, False]


def test_the_threshold_itself_is_not_below_it():
    entropy = float(normalised_entropy(probabilities(LOGITS))[1])
    assert not accepts(LOGITS, threshold=entropy)[1]
    assert accepts(LOGITS, threshold=np.nextafter(entropy, 1))[1]


def test_logits_that_are_no_numbers_are_never_sure():
    bad = np.asarray([[np.nan, 0], [np.inf, 0], [np.inf, np.inf]], np.float32)
    for kind in ("entropy", "max_softmax", "margin"):
        assert not accepts(bad, kind=kind, threshold=0.5).any()


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, math.nan, math.inf])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ExitPolicyError, match="threshold"):
        ExitPolicy("entropy", threshold)


def test_other_nonsense_is_refused():
    with pytest.raises(ExitPolicyError, match="exit policy 'entropie'") as caught:
        ExitPolicy("entropie", 0.5)
    assert "entropy" in caught.value.hint
    with pytest.raises(ExitPolicyError, match="temperature"):
        ExitPolicy("entropy", 0.5, 0.0)
    with pytest.raises(ExitPolicyError, match="1 classes"):
        accepts(np.zeros((2, 1), np.float32), threshold=0.5)


def test_the_chosen_threshold_halves_the_errors_and_no_larger_one_does():
    rng = np.random.default_rng(1)
    entropy = rng.random(500).astype(np.float32)
    right = rng.random(500) > entropy * 0.5
    threshold, origin = choose_threshold(entropy, right)

    def error(limit):
        return float((~right[entropy < limit]).mean())

    target = error(np.inf) / 2
    assert error(threshold) <= target
    assert all(error(e + 1e-9) > target for e in entropy.astype(np.float64) if e > threshold)
    assert "500 held-out samples" in origin


def test_equal_entropies_leave_together():
    entropy = np.repeat(np.asarray([0.1, 0.3], np.float32), 100)
    right = np.ones(200, np.bool_)
    right[80:140] = False
    # 20 % are wrong at 0.1 and 30 % of all: the first eighty would fit, but can't be told from the next twenty.
    threshold, origin = choose_threshold(entropy, right)
    assert threshold == DEFAULT_THRESHOLD
    assert origin.startswith("default")


def test_too_few_samples_give_the_default_and_say_so():
    threshold, origin = choose_threshold(np.linspace(0, 1, 99, dtype=np.float32), np.ones(99, np.bool_))
    assert threshold == DEFAULT_THRESHOLD
    assert "99 labelled samples are too few" in origin


def test_an_exit_that_is_always_right_may_always_answer():
    threshold, _ = choose_threshold(np.linspace(0, 0.9, 200, dtype=np.float32), np.ones(200, np.bool_))
    assert threshold == 1.0


def test_an_exit_that_is_sure_of_what_is_wrong_gets_the_default():
    entropy = np.linspace(0, 1, 200, dtype=np.float32)
    threshold, origin = choose_threshold(entropy, entropy > 0.5)
    assert threshold == DEFAULT_THRESHOLD
    assert origin.startswith("default")


@given(
    st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=200),
    st.sampled_from(POLICIES),
    st.floats(0.05, 1),
    st.floats(0.1, 10),
)
@settings(max_examples=300, deadline=None)
def test_one_sample_is_judged_as_a_batch_of_one_is(row, kind, threshold, temperature):
    policy = ExitPolicy(kind, threshold, temperature)
    logits = np.asarray([row], np.float32)
    batch, one = policy.judge(logits), policy.judge_one(logits)
    assert one.place == int(logits[0].argmax())
    assert one.probability == pytest.approx(float(batch.p.max()), abs=1e-5)
    assert one.entropy == pytest.approx(float(batch.entropy[0]), abs=1e-5)
    gauged = float(gauge(kind, batch.p)[0])
    if abs(gauged - threshold) > 1e-5:
        assert one.sure == bool(batch.sure[0])


@pytest.mark.parametrize("kind", POLICIES)
def test_one_sample_with_odd_logits(kind):
    policy = ExitPolicy(kind, 0.5)
    for row in ([0, np.nan, 1], [np.nan, 0, 1], [np.inf, 0, 1], [np.inf, np.inf, 0], [-np.inf] * 3):
        assert not np.isfinite(policy.judge_one(np.asarray([row], np.float32)).entropy), row
    sure = policy.judge_one(np.asarray([[-np.inf, 0, -3e38]], np.float32))
    assert sure == (1, 1.0, 0.0, True)
    with pytest.raises(ExitPolicyError):
        policy.judge_one(np.zeros((1, 1), np.float32))
