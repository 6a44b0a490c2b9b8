"""Text files put in place in one step."""

import pytest

from medvlp_jax.data import whole_files


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept.json"
    whole_files.write_text(path, "é\n")
    with pytest.raises(UnicodeEncodeError):
        whole_files.write_text(path, "half \ud800")
    assert path.read_bytes() == "é\n".encode()
    assert list(tmp_path.iterdir()) == [path]
