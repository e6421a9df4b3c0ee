"""`safeswitch policy`: a file is looked over with its bundles before a server is given it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safeswitch.nano import switch_path
from safeswitch.serving.keys import add_key
from safeswitch.switch.switch import Switch


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def test_a_good_file_is_shown_as_what_it_comes_to(tmp_path: Path, call: Any) -> None:
    file = written(tmp_path, "version: 1\nkeys: {ann: {act: log, threshold: 0.5}}")
    code, _, err = call("policy", "check", file, "--switch", "nano")
    assert code == 0
    assert "(no key), default: everything else refuse" in err
    assert "ann, default: everything else log above 0.500" in err
    assert "can be used" in err
    code, out, _ = call("policy", "check", file, "--switch", "shop=nano", "--json")
    assert code == 0
    rules = json.loads(out)["rules"]
    assert [(row["client"], row["bundle"]) for row in rules] == [(None, "shop"), ("ann", "shop")]


def test_a_file_that_cannot_be_used_ends_in_one_line_and_code_2(tmp_path: Path, call: Any) -> None:
    own = Switch.from_pretrained(switch_path())
    blind = replace(own, gate=replace(own.gate, harms=None))
    blind.save_pretrained(tmp_path / "blind")
    cyber = "version: 1\norganisation: {kinds: {cyber: {act: log}}}"
    for text, switch, why in (
        ("version: 1\ncolour: red", "nano", "colour"),
        (cyber, tmp_path / "blind", "does not read kinds of harm"),
        ("version: 1\norganisation: {fpr: 0.0005}", "nano", "no threshold for fpr 0.0005"),
    ):
        code, _, err = call("policy", "check", written(tmp_path, text), "--switch", switch)
        assert (code, why in err) == (2, True)
    file = written(tmp_path, cyber)
    assert call("policy", "check", file, "--switch", "nano")[0] == 0


def test_a_key_that_the_file_of_keys_does_not_have_is_named(tmp_path: Path, call: Any) -> None:
    keys = tmp_path / "keys.json"
    add_key(keys, "bob")
    file = written(tmp_path, "version: 1\nkeys: {ann: {act: log}}")
    code, _, err = call("policy", "check", file, "--switch", "nano", "--keys", keys)
    assert code == 2
    assert "no key named 'ann'; it has: bob" in err


def test_the_schema_is_json(call: Any) -> None:
    code, out, _ = call("policy", "schema")
    assert code == 0
    assert json.loads(out)["additionalProperties"] is False
