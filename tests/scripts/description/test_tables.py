import json

import numpy as np

from scripts.description.kernels import rows_for
from scripts.description.measure import extended
from scripts.description.tables import ascending, ascending_grid, document


def test_points_that_descend_take_their_neighbours_mean():
    assert ascending([[1, 1.0], [2, 4.0], [3, 2.0]]) == [[1, 1.0], [2, 3.0], [3, 3.0]]


def test_a_grid_ascends_along_every_axis_and_moves_least():
    assert np.allclose(ascending_grid(np.array([[2.0, 1.0], [3.0, 4.0]])), [[1.5, 1.5], [3.0, 4.0]])
    found = ascending_grid(np.random.default_rng(0).normal(size=(4, 5, 6)))
    assert all((np.diff(found, axis=axis) >= -1e-12).all() for axis in range(3))


def test_missing_rows_go_on_in_proportion():
    log_us = np.log([[[2.0]], [[np.nan]], [[np.nan]]])
    assert np.allclose(np.exp(extended(log_us, np.log([1, 4, 8]))).ravel(), [2, 8, 16])


def test_skewed_rows_are_all_there():
    assert rows_for(4, 8, 0.5).tolist() == [5, 1, 1, 1]
    assert rows_for(64, 1000, 0.6).sum() == 1000


def test_a_document_is_json_with_a_line_for_every_table():
    tables = {"memory": [[0, 1], [2, 3]], "matmul": {"bf16": {"us": [[[1, 2]], [[3, 4]]]}}}
    assert json.loads(document(tables)) == tables
    assert "   [[1, 2]],\n" in document(tables).replace("    ", "   ")
