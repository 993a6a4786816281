import pytest

from pipeline.errors import SinkError
from pipeline.events.secret import secret_of


def test_where_secrets_come_from(tmp_path):
    (tmp_path / "file").write_text("from a file\n")
    assert secret_of("A", {"A": "here", "A_FILE": "nowhere"}) == "here"
    assert secret_of("A", {"A_FILE": str(tmp_path / "file")}) == "from a file"
    assert secret_of("A", {}) == ""


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path / "binary", "it is no text")):
        with pytest.raises(SinkError, match=rf"A_FILE: expected a file with the secret, got .*\({reason}\)"):
            secret_of("A", {"A_FILE": str(path)})
