"""Parts of a run: every request in one of them, taken over whole or cut off."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from safeswitch.bench.shard import Shard
from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.engines.jsonl import generate_file
from safeswitch.engines.mock import MockEngine
from tests.bench.made import asked, loaded


def test_every_request_is_in_one_part() -> None:
    whole = [loaded("one", asked("u", 40)), loaded("two", asked("v", 1))]
    parts = [Shard(number, 3).part(whole) for number in (1, 2, 3)]
    ids = [e.id for part in parts for one in part for e in one.examples]
    assert Counter(ids) == Counter(e.id for one in whole for e in one.examples)
    assert all(one.examples for part in parts for one in part)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
def test_a_part_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="shard must be i/n"):
        Shard.parse(text)


def test_what_others_have_answered_is_taken_over_and_the_rest_generated(tmp_path: Path) -> None:
    rows = asked("u", 6)
    other, out = tmp_path / "other.jsonl", tmp_path / "out.jsonl"
    generate_file(MockEngine(), rows[:3], other, identity={"model": "m"}, max_new_tokens=4)
    torn = other.read_bytes()[:-20]
    other.write_bytes(torn)
    engine = MockEngine()
    done = generate_file(engine, rows, out, identity={"model": "m"}, also=[other], max_new_tokens=4)
    assert (done.new, done.rows) == (4, 6)
    assert [text for texts, _ in engine.calls for text in texts] == ["u 2", "u 3", "u 4", "u 5"]
    assert other.read_bytes() == torn
    with pytest.raises(ArtifactError, match="another model"):
        generate_file(
            engine,
            rows,
            tmp_path / "n.jsonl",
            identity={"model": "n"},
            also=[other],
            max_new_tokens=4,
        )
