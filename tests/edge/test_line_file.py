"""The line file's version."""

from __future__ import annotations

import pytest

from edge.base.errors import InputError
from edge.line_file import read_line_file

LINE = """
[line]
{version}
name = "test"
bundle = "bundle"
[camera]
kind = "folder"
path = "frames"
[plc]
kind = "frames"
port = "plc"
[belt]
travel_ms = 600
{key}
"""


@pytest.mark.parametrize("version", ["", "version = 1"])
def test_a_line_file_of_this_version_may_leave_it_out(tmp_path, version):
    (tmp_path / "line.toml").write_text(LINE.format(version=version, key=""))
    assert read_line_file(tmp_path / "line.toml").line.version == 1


def test_a_newer_line_file_is_refused_before_its_unknown_keys(tmp_path):
    (tmp_path / "line.toml").write_text(LINE.format(version="version = 2", key="of_the_future = 1"))
    with pytest.raises(InputError, match="newer Lineside") as raised:
        read_line_file(tmp_path / "line.toml")
    text = str(raised.value)
    assert "got version 2 under [line]" in text and "expected version 1" in text
    assert "Install the newer Lineside" in text
    assert "of_the_future" not in text


@pytest.mark.parametrize("version", ["0", '"1"'])
def test_another_value_is_a_wrong_key(tmp_path, version):
    (tmp_path / "line.toml").write_text(LINE.format(version=f"version = {version}", key=""))
    with pytest.raises(InputError, match=r"'line.version' got"):
        read_line_file(tmp_path / "line.toml")
