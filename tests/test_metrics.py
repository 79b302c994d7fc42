"""Retrieval figures against rankings worked by hand and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from kedge.metrics import average_precision, hit_at, interpolated_precision, leave_one_out_map, precision_at


def ranks(text):
    """`"1011"` -> one query whose 1st, 3rd and 4th pictures are relevant."""
    return np.array([[letter == "1" for letter in text]], dtype=np.bool_)


def test_average_precision_worked_by_hand():
    # Precision at the relevant ranks 1, 3, 4: 1/1, 2/3, 3/4.
    assert average_precision(ranks("1011"), np.array([3]))[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_relevant_pictures_that_were_not_returned_count_as_missed():
    assert average_precision(ranks("10"), np.array([4]))[0] == pytest.approx(1 / 4)
    assert average_precision(ranks("11"), np.array([3]))[0] == pytest.approx((1 / 1 + 2 / 2) / 3)
    assert average_precision(ranks(""), np.array([3]))[0] == 0


def test_query_without_relevant_picture_has_no_average_precision():
    found = average_precision(np.array([[False, False], [True, False]]), np.array([0, 1]))
    assert np.isnan(found[0])
    assert found[1] == 1.0


def test_precision_divides_by_k_however_few_there_are():
    assert precision_at(ranks("101"), 2)[0] == 0.5
    assert precision_at(ranks("101"), 10)[0] == 0.2
    assert precision_at(ranks(""), 10)[0] == 0


def test_hit_is_within_the_first_k():
    assert hit_at(ranks("0010"), 2)[0] == 0
    assert hit_at(ranks("0010"), 3)[0] == 1
    assert hit_at(ranks(""), 1)[0] == 0


def test_interpolated_precision_worked_by_hand():
    # Recall 1/2 is reached at rank 2 (precision 1/2), recall 1 at rank 3 (2/3): the best from each level on is 2/3.
    found = interpolated_precision(ranks("011"), np.array([2]), np.array([0.0, 0.5, 1.0]))
    assert found[0] == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    found = interpolated_precision(ranks("1001"), np.array([2]), np.array([0.0, 0.5, 0.51, 1.0]))
    assert found[0] == pytest.approx([1.0, 1.0, 0.5, 0.5])
    # A third relevant picture was never returned: full recall is not reached.
    assert interpolated_precision(ranks("11"), np.array([3]), np.array([1.0]))[0, 0] == 0.0


@settings(max_examples=60, deadline=None)
@given(relevance=st.lists(st.booleans(), min_size=1, max_size=60).filter(any), seed=st.integers(0, 99))
def test_average_precision_equals_scikit_learns(relevance, seed):
    found = average_precision(np.array([relevance]), np.array([sum(relevance)]))[0]
    scores = -np.arange(len(relevance), dtype=float)
    shuffled = np.random.default_rng(seed).permutation(len(relevance))
    assert found == pytest.approx(average_precision_score(np.array(relevance)[shuffled], scores[shuffled]))


@settings(max_examples=60, deadline=None)
@given(rankings=st.lists(st.lists(st.booleans(), max_size=20), min_size=1, max_size=4), k=st.integers(1, 30))
def test_rankings_filled_up_have_the_figures_of_each_alone(rankings, k):
    relevance = np.array([ranking + [False] * (20 - len(ranking)) for ranking in rankings])
    relevant = np.array([5 + sum(ranking) for ranking in rankings])
    for row, ranking in enumerate(rankings):
        alone = np.array([ranking], dtype=np.bool_)
        hits = [place for place, found in enumerate(ranking, 1) if found]
        precision = sum(count / rank for count, rank in enumerate(hits, 1)) / relevant[row]
        assert average_precision(alone, relevant[row : row + 1])[0] == pytest.approx(precision, abs=1e-12)
        assert average_precision(relevance, relevant)[row] == average_precision(alone, relevant[row : row + 1])[0]
        assert precision_at(relevance, k)[row] == precision_at(alone, k)[0] == sum(ranking[:k]) / k
        assert hit_at(relevance, k)[row] == hit_at(alone, k)[0] == any(ranking[:k])


def test_leave_one_out_map_worked_by_hand():
    # On a line at 0, 1, 3 with classes a, b, a. From 0: b, a -> 1/2. From 3: b, a -> 1/2. b is alone: no AP.
    vectors = np.array([[0.0], [1.0], [3.0]], dtype=np.float32)
    assert leave_one_out_map(vectors, np.array([0, 1, 0])) == pytest.approx(0.5)
    assert np.isnan(leave_one_out_map(vectors, np.array([0, 1, 2])))


def test_a_recall_level_that_float_cannot_hold_needs_no_picture_more():
    relevance = np.zeros((1, 100), dtype=bool)
    relevance[0, :7] = True  # 0.07 x 100 is 7.000000000000001
    assert interpolated_precision(relevance, np.array([100]), np.array([0.07])) == pytest.approx(1.0)
