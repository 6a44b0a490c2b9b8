"""Comparison with golden_encoders.json."""

import json
from pathlib import Path

import numpy as np

GOLDEN = json.loads(Path(__file__).with_name("golden_encoders.json").read_text(encoding="utf-8"))


def assert_golden(array, golden: dict, tolerance: float = 2e-5) -> None:
    """The array has the golden shape, mean square and sample values, up to tolerance times its root mean square."""
    array = np.asarray(array, np.float64)
    assert list(array.shape) == golden["shape"]
    rms = np.sqrt(golden["mean_square"])
    np.testing.assert_allclose(np.mean(array**2), golden["mean_square"], rtol=1e-4)
    picks = array.ravel()[np.linspace(0, array.size - 1, 24).astype(int)]
    np.testing.assert_allclose(picks, golden["values"], atol=tolerance * rms, rtol=tolerance)
