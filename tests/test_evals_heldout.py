"""Held-out sets: the shipped files, and the builders on small sources."""

import hashlib
import json
import tarfile
from decimal import Decimal
from pathlib import Path

import pytest

from engine.config import Eval
from engine.templates import load_templates
from evals.heldout.__main__ import main
from evals.heldout.temperatures import celsius
from evals.items import load_items

HELDOUT = Path(__file__).parent.parent / "data/heldout"
FILES = sorted(HELDOUT.glob("*.jsonl"))

STATUS = """\
Package: zip
Status: install ok installed
Priority: optional
Section: utils
Installed-Size: 616
Architecture: amd64
Version: 3.0-13
Description: Archiver for .zip files
 This is InfoZIP's zip program. It produces files that are fully
 compatible with the popular PKZIP program; however, the command line
 options are not identical. In other words, the end result is the same.
 .
 This version supports encryption.

Package: g++
Section: devel
Installed-Size: 16
Priority: optional
Architecture: amd64
Version: 4:12.2
Description: GNU C++ compiler
 Too short.

Package: kubectl
Section: admin
Installed-Size: 1
Priority: optional
Architecture: amd64
Version: 1
Description: not Debian's

Package: nosize
Section: admin
Description: has no size
"""

ADDRESSES = """<AddressCollection>
<AddressString><AddressNumber>123</AddressNumber> <StreetName>Main</StreetName> <StreetName>Park</StreetName>
 <StreetNamePostType>St.,</StreetNamePostType> <PlaceName>Bend,</PlaceName> <StateName>OR</StateName></AddressString>
<AddressString><AddressNumber>1</AddressNumber> <StreetName>Elm</StreetName></AddressString>
<AddressString><StreetName>A</StreetName> <AddressNumber>1</AddressNumber> <StreetName>B</StreetName>
 <PlaceName>C</PlaceName> <StateName>OR</StateName></AddressString>
</AddressCollection>"""


def build(out: Path, *arguments: str) -> list[dict[str, str]]:
    assert main([*arguments, "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_file_loads_whole_and_is_the_one_the_readme_names(path: Path) -> None:
    held_out = load_items(Eval(items=str(path)))
    assert held_out.repeated == 0
    assert len(held_out.items) >= 200
    assert all(item.template and item.reference for item in held_out.items)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in (HELDOUT / "README.md").read_text()


def test_every_shipped_set_is_there() -> None:
    assert [path.stem for path in FILES] == ["addresses", "debian-json", "debian-summaries", "temperatures"]


def test_debian_fields_become_json(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(STATUS)
    items = build(tmp_path / "out.jsonl", "debian-json", "--input", str(tmp_path / "status"))
    assert {item["instruction"]: item["reference"] for item in items} == {
        "Format as JSON.\n\nname=zip section=utils size=616": '{"name":"zip","section":"utils","size":616}',
        "Format as JSON.\n\nname=g++ section=devel size=16": '{"name":"g++","section":"devel","size":16}',
    }


def test_items_are_made_with_a_templates_own_text(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(STATUS)
    templates = tmp_path / "templates.toml"
    templates.write_text(
        '[[template]]\nid = "fields"\ntext = "JSON {{}} of:\\n{version} {name}"\n'
        '[template.slots]\nname = { choices = ["a"] }\nversion = { choices = ["1"] }\n'
    )
    items = build(
        tmp_path / "out.jsonl",
        *("debian-json", "--input", str(tmp_path / "status"), "--templates", str(templates), "--template", "fields"),
    )
    (template,) = load_templates(templates)
    assert template.fill({"version": "3.0-13", "name": "zip"}) in [item["instruction"] for item in items]
    assert '{"version":"3.0-13","name":"zip"}' in [item["reference"] for item in items]


def test_a_description_is_summarised_by_its_synopsis(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(STATUS)
    (item,) = build(tmp_path / "out.jsonl", "debian-summaries", "--input", str(tmp_path / "status"))
    assert item["instruction"].startswith("Summarise in one sentence.\n\nThis is InfoZIP's zip program. It produces")
    assert item["instruction"].endswith("the end result is the same.")
    assert item["reference"] == "Archiver for .zip files"


def test_addresses_keep_what_a_person_labelled(tmp_path: Path) -> None:
    (tmp_path / "labeled.xml").write_text(ADDRESSES)
    with tarfile.open(tmp_path / "usaddress.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "labeled.xml", "usaddress-0/training/labeled.xml")
    (item,) = build(tmp_path / "out.jsonl", "addresses", "--input", str(tmp_path / "usaddress.tar.gz"))
    assert item["instruction"].endswith("123 Main Park St., Bend, OR")
    assert json.loads(item["reference"]) == {
        "AddressNumber": "123",
        "StreetName": "Main Park",
        "StreetNamePostType": "St.",
        "PlaceName": "Bend",
        "StateName": "OR",
    }


def test_temperatures_are_each_taken_once(tmp_path: Path) -> None:
    for name in ("seattle-temps.csv", "sf-temps.csv"):
        (tmp_path / name).write_text("date,temp\n2010/01/01 00:00,39.4\n2010/01/01 01:00,39.4\n")
    items = build(tmp_path / "out.jsonl", "temperatures", "--input", str(tmp_path))
    assert items == [
        {
            "instruction": "Convert temperature.\n\n39.4 F",
            "reference": "4.1 C",
            "template": "temperature",
            "metric": "numeric",
        }
    ]


@pytest.mark.parametrize(
    ("fahrenheit", "expected"), [("212", "100.0"), ("-40", "-40.0"), ("0", "-17.8"), ("71.9", "22.2")]
)
def test_celsius_is_exact(fahrenheit: str, expected: str) -> None:
    assert celsius(fahrenheit) == Decimal(expected)


def test_a_source_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debian-json", "--input", str(tmp_path / "status"), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "status is not there" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
