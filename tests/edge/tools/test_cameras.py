"""`lineside cameras`: lists the cameras that each kind discovers. No camera is needed."""

from __future__ import annotations

import json
from pkgutil import resolve_name

import pytest

from edge.base.errors import CameraError
from edge.cameras.camera import FoundCamera
from edge.cameras.kinds import CAMERAS

FOUND = FoundCamera("genicam", "GV01", "Aravis", "Fake", "127.0.0.1", "GigE Vision")


@pytest.fixture
def search(monkeypatch):
    def put(**kinds):
        for kind, found in kinds.items():
            def discover(cls, found=found):
                if isinstance(found, Exception):
                    raise found
                return found

            monkeypatch.setattr(resolve_name(CAMERAS[kind]), "discover", classmethod(discover))

    return put


def test_cameras_are_listed_with_what_the_line_file_says_of_them(search, lineside):
    search(genicam=[FOUND], video=[FoundCamera("video", "/dev/video0", "", "UVC [1]", "usb-1")])
    code, out, _ = lineside("cameras")
    assert code == 0 and '[camera]\nkind = "genicam"\nserial = "GV01"' in out
    assert '[camera]\nkind = "video"\nsource = "/dev/video0"' in out
    assert "UVC [1]" in out
    code, out, _ = lineside("cameras", "--json")
    told = json.loads(out)
    assert code == 0 and told["missing"] == []
    assert [camera["key"] for camera in told["cameras"]] == ["GV01", "/dev/video0"]
    assert told["cameras"][0].keys() == {"kind", "key", "vendor", "model", "address", "text"}


def test_a_kind_that_cannot_be_searched_is_reported_and_stops_nothing(search, lineside):
    search(genicam=CameraError("no Aravis", next="apt install it"),
           video=[FoundCamera("video", "/dev/video0", "", "", "")])
    code, out, _ = lineside("cameras", "--json")
    told = json.loads(out)
    assert code == 0 and len(told["cameras"]) == 1
    assert told["missing"] == [{"kind": "genicam", "text": "no Aravis. apt install it"}]
    code, out, _ = lineside("cameras")
    assert code == 0 and "genicam: no Aravis. apt install it" in out and "/dev/video0" in out


def test_no_camera_is_no_error_and_comes_with_advice(search, lineside):
    search(genicam=[], video=[])
    code, out, _ = lineside("cameras")
    assert code == 0 and "lsusb" in out
