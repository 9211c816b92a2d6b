"""The figure of what frozen banks can express."""

import numpy as np
import pytest

from randmix.analysis import equivalence


@pytest.mark.slow
def test_the_rank_of_a_bank_decides_what_it_reaches():
    trained = [np.ones((3, 3, 2, 4))]
    picture = equivalence.equivalence(draws=2, trained=trained)["equivalence"]
    assert len(picture.rows) == len(equivalence.BANKS) * (2 + 1)
    for row in picture.rows:
        title, rank = row["filters"], {"D": 9, "S": 9, "B": 1, "I": 1}[row["filters"][0]]
        rank = min(rank, int(title[-1]))
        assert row["rank"] == rank
        if row["kernel"] == "random":
            assert row["residual"] == pytest.approx(np.sqrt(1 - rank / 9), abs=0.03)
            assert (row["logit_error"] < 1e-3) == (rank == 9)
            assert rank == 9 or row["logit_error"] > 1
        elif title == "Box, m = 9":  # a constant kernel is a box
            assert row["residual"] < 1e-6
        elif title == "Identity, m = 9":
            assert row["residual"] == pytest.approx(np.sqrt(8 / 9))
    left, right = picture.figure.axes
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels[0] == "Different, m = 9: rank 9"
    for place, (dots, errors) in enumerate(zip(left.lines[::2], right.lines, strict=True)):
        rows = [row for row in picture.rows if row["kernel"] == "random"][2 * place :][:2]
        np.testing.assert_allclose(dots.get_xdata(), [row["residual"] for row in rows])
        np.testing.assert_allclose(errors.get_xdata(), [row["logit_error"] for row in rows])
