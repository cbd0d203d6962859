"""What the pages say can be followed: links lead somewhere, examples run, commands exist. And they are easy to read."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

import pytest
import tomlkit
from typer.main import get_command

import lineside
from edge.base.kinds import OneOf, find_one_of
from edge.line_file import LineFile

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SAMPLES = sorted((ROOT / "docs" / "plc").glob("*.st"))
WIDEST, LONGEST_README = 120, 120  # columns of a page, lines of README
COMMANDS = get_command(lineside.app).commands  # type: ignore[attr-defined]


def anchors(page):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files_and_headings_in_the_repository(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.M):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            assert (page.parent / path).exists(), target
            assert not anchor or anchor in anchors(page.parent / path if path else page), target


@pytest.mark.parametrize("page", [*PAGES, *SAMPLES], ids=lambda p: p.name)
def test_no_line_is_wider_than_a_screen(page):
    assert not [line for line in page.read_text().splitlines() if len(line) > WIDEST]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_begins_with_what_the_reader_can_do_after_it(page):
    opening = page.read_text().split("\n- ")[0] if page == README else page.read_text().split("\n\n")[1]
    assert re.search(r"After (reading )?this page you (can|know)\b", opening)


def test_readme_fits_on_three_screens():
    assert len(README.read_text().splitlines()) <= LONGEST_README


def test_the_files_that_architecture_names_exist():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:edge|calib|detectors|export|simulation|tests)/[\w/]+\.py)`", page)
    assert len(named) > 50
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if "```toml" in page.read_text()], ids=lambda p: p.name)
def test_toml_examples_are_valid_line_files(page):
    for example in re.findall(r"```toml\n(.*?)```", page.read_text(), re.S):
        LineFile.model_validate(tomlkit.parse(example).unwrap())


def models(name):
    """The models of a section of the line file: one, or one for each kind."""
    field = LineFile.model_fields[name]
    one_of = next((m for m in field.metadata if isinstance(m, OneOf)), None) or find_one_of(field.annotation)
    return [field.annotation] if one_of is None else [resolve_name(one_of.registry[kind]) for kind in one_of.registry]


def pages(name, kind):
    """What documents a kind: the line file's page, its own page, and the cameras' page about it and about all kinds."""
    text = (ROOT / "docs" / "line-file.md").read_text()
    page = ROOT / "docs" / f"{name}-{kind}.md"
    if page.exists():
        text += page.read_text()
    if name == "camera":
        parts = re.split(r"^## ", (ROOT / "docs" / "cameras.md").read_text(), flags=re.M)
        text += "".join(part for part in parts if part.startswith(("All kinds", kind)))
    return text


def test_every_key_of_the_line_file_is_documented():
    for name in LineFile.model_fields:
        assert f"[{name}]" in pages(name, "")
        for model in models(name):
            kind = get_args(model.model_fields["kind"].annotation)[0] if "kind" in model.model_fields else ""
            for key in model.model_fields:
                assert re.search(rf"^ *{key} = ", pages(name, kind), re.M), f"{name}.{key}"


@pytest.mark.parametrize("model", models("camera"), ids=lambda model: model.__name__)
def test_the_defaults_of_cameras_are_those_of_the_page(model):
    text = pages("camera", get_args(model.model_fields["kind"].annotation)[0])
    for key, field in model.model_fields.items():
        if isinstance(field.default, bool | int | float | str):
            values = [tomlkit.parse(line.strip()).unwrap()[key] for line in re.findall(rf"^ *{key} = .*", text, re.M)]
            assert field.default in values, key


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile", *sorted((ROOT / "benchmarks").glob("*.*"))],
                         ids=lambda p: p.name)
def test_commands_and_options_that_are_named_exist(page):
    for line in page.read_text().splitlines():
        match = re.match(r"^\s*(?:\$\(BIN\)/|\")?lineside\"? ([a-z-]+)(.*)", line)
        if match:
            command = COMMANDS[match[1]]
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(re.findall(r"(--[a-z-]+)", match[2].split("#")[0])) <= known, line


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_that_prints_figures_has_json(name):
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


def test_no_placeholder_is_left():
    for page in PAGES:
        assert "@@" not in page.read_text()
