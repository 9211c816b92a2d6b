"""The figure of what frozen banks can express."""

import numpy as np
import pytest

from randmix.analysis import equivalence


@pytest.mark.slow
def test_the_rank_of_a_bank_decides_what_it_reaches():
    picture = equivalence.equivalence(draws=2)["equivalence"]
    assert len(picture.rows) == len(equivalence.BANKS) * 2
    for row in picture.rows:
        title, rank = row["filters"], {"D": 9, "S": 9, "B": 1, "I": 1}[row["filters"][0]]
        rank = min(rank, int(title[-1]))
        assert row["rank"] == rank
        assert row["residual"] == pytest.approx(np.sqrt(1 - rank / 9), abs=0.03)
        assert (row["logit_error"] < 1e-3) == (rank == 9)
        assert rank == 9 or row["logit_error"] > 1
    left, right = picture.figure.axes
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels[0] == "Different, m = 9: rank 9"
    for place, (dots, errors) in enumerate(zip(left.lines, right.lines, strict=True)):
        rows = picture.rows[2 * place :][:2]
        np.testing.assert_allclose(dots.get_xdata(), [row["residual"] for row in rows])
        np.testing.assert_allclose(errors.get_xdata(), [row["logit_error"] for row in rows])
