"""Which bodies are read, and what is said of the others: 400, 413 or 415 in OpenAI's shape, the
same before both engines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeswitch.core.errors import SettingError
from safeswitch.serving.body import MAX_DEPTH, MAX_FIELDS, MAX_PARTS, read_body, replies_asked
from safeswitch.serving.errors import ApiError
from safeswitch.serving.keys import add_key
from safeswitch.serving.settings import ServerSettings
from tests.serving.test_middleware import CHAT, COMPLETIONS, PASSED, App, post

JSON = [(b"content-type", b"application/json")]
DEEP = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)

UNREADABLE: list[tuple[str | bytes, str]] = [
    ("{", "not valid JSON"), ("{}x", "not valid JSON"), ("[1]", "object"), ("null", "object"), ("7", "object"),
    (b"\xff\xfe{}", "UTF-8"), ('{"a": "\\ud800"}', "'a' holds half"), ('{"a": {"\\udc00": 1}}', "'a' holds half"),
    ('{"a": NaN}', "NaN"), ('{"a": -Infinity}', "-Infinity"), ('{"a": 1, "a": 2}', "'a' is given more than once"),
    ('{"a": {"b": 1, "b": 1}}', "'b' is given more than once"), ('{"a": ' + "1" * 5000 + "}", "64 bits"),
    (f'{{"a": {2**64}}}', "64 bits"), (f'{{"a": {-(2**63) - 1}}}', "64 bits"), ('{"a": 1e-300}', "size"),
    ('{"a": 1e39}', "size"), ('{"a": 1e999}', "size"), ("[" * 20_000, "deeper"), ('{"a":' * 20_000, "deeper"),
    ('{"a": [' + DEEP + "]}", "deeper"), ('{"a": [' + "{}," * MAX_PARTS + "{}]}", str(MAX_PARTS)),
    (json.dumps({str(i): 0 for i in range(MAX_FIELDS + 1)}), str(MAX_FIELDS)),
    (json.dumps({"a": {str(i): 0 for i in range(MAX_FIELDS + 1)}}), str(MAX_FIELDS)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), UNREADABLE, ids=lambda value: str(value)[:30])
def test_what_cannot_be_read_is_refused_by_reason_and_reaches_no_engine(
    body: str | bytes, said: str
) -> None:
    app = App([PASSED], [b"{}"])
    answer = post(app, body.encode() if isinstance(body, str) else body)
    assert (answer.status, app.context) == (400, None)
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert said in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ' + DEEP + "}", '{"a": "' + "[{" * 30_000 + '"}', '{"a": "\\"[[[", "b": ["\\\\"]}', '{"a": "\\ud83d\\ude00"}',
        '{"a": "1e-300 12345678901234567890 NaN \\\\ud800"}', f'{{"a": {2**64 - 1}, "b": {-(2**63)}}}', '{"a": 1e-30}',
        '{"a": 0e-999, "b": 0.0000000000000000000}', "{}", '{"a": [{"x": 1}, {"x": 2}]}', '{"a": 12345678901234567890}',
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_what_looks_odd_and_is_not_is_read_as_it_stands(text: str) -> None:
    assert read_body(text.encode(), JSON) == json.loads(text)


numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(-(10**9), 10**9).map(
    lambda value: value / 4096
)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=6), plain, max_size=5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_plain_object_is_read_as_python_reads_it(
    value: dict[str, Any], escaped: bool
) -> None:
    raw = json.dumps(value, ensure_ascii=escaped).encode()
    assert read_body(raw, JSON) == json.loads(raw)


@given(
    st.binary(max_size=60) | st.text('[]{}",:\\u0123456789eE.-dDnNaA ', max_size=60).map(str.encode)
)
@settings(max_examples=300, deadline=None)
def test_whatever_comes_is_read_or_refused_with_a_4xx(raw: bytes) -> None:
    answer = post(App([], [b"{}"]), raw)
    assert answer.status == 400 or (
        answer.status == 200 and (not raw or isinstance(json.loads(raw), dict))
    )


@pytest.mark.parametrize(
    "text",
    ['{"a": "' + '\\"' * 500_000, '"' * 1_000_001 + "[" * 99, "[{" * 500_000, "1" * 1_000_000],
)
def test_a_megabyte_that_cannot_be_read_is_refused_quickly(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ApiError):
        read_body(text.encode(), JSON)
    assert (
        time.perf_counter() - start < 3
    )  # tens of milliseconds; a search that backtracks takes hours


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"}, {"content-type": ""}, {"content-type": "application/json; charset=utf-16"},
        {"content-type": "multipart/form-data; boundary=x"}, {"content-encoding": "gzip"},
    ],
)  # fmt: skip
def test_what_is_not_json_by_its_headers_is_refused_unread(headers: dict[str, str]) -> None:
    app = App([PASSED], [b"{}"])
    answer = post(app, b"{}", headers=headers)
    assert (answer.status, answer.json["error"]["code"], app.context) == (415, 415, None)


def test_json_by_its_headers_is_read() -> None:
    for kind in (
        "application/json",
        "Application/JSON ; charset=UTF-8",
        'application/json;charset="utf-8"',
    ):
        assert post(App([PASSED], [b"{}"]), b"{}", headers={"content-type": kind}).status == 200
    assert (
        post(App([PASSED], [b"{}"]), b"{}", headers={"content-encoding": "identity"}).status == 200
    )


def test_a_length_that_is_not_the_bodys_is_refused() -> None:
    def status(told: str) -> int:
        return post(
            App([PASSED], [b"{}"]), b"{}", ServerSettings(max_body=50), {"content-length": told}
        ).status

    assert [status(told) for told in ("2", "3", "1", "-2", "x", "51", "9" * 18, "9" * 19)] == [
        200,
        *[400] * 4,
        413,
        413,
        400,
    ]


TOO_MUCH: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"n": 129}, "129 replies"), (CHAT, {"n": 1500, "stream": True}, "1500 replies"), (CHAT, {"n": "5"}, "n:"),
    (CHAT, {"n": 0}, "n:"), (CHAT, {"n": True}, "n:"), (CHAT, {"n": 2.5}, "n:"), (COMPLETIONS, {"best_of": 200}, "200 replies"),
    (COMPLETIONS, {"prompt": ["a"] * 129}, "129 replies"), (COMPLETIONS, {"prompt": ["a"] * 20, "n": 7}, "140 replies"),
    (COMPLETIONS, {"prompt": [[1]] * 129}, "129 replies"), (f"{CHAT}/batch", {"messages": [[{}]] * 129}, "129 replies"),
    (CHAT, {"stop": ["a"] * 17}, "stop: at most 16"), (CHAT, {"stop": "a" * 1025}, "1024 characters"),
    (CHAT, {"stop": [1]}, "stop:"), (CHAT, {"stop": ["ab" * 300] * 4}, "1024 characters"), (CHAT, {"stop": {"a": 1}}, "stop:"),
    ("/v1/messages", {"stop_sequences": ["a"] * 17}, "stop_sequences: at most 16"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "said"), TOO_MUCH, ids=lambda value: str(value)[:40])
def test_more_than_is_served_is_refused_before_any_work(
    path: str, body: dict[str, Any], said: str
) -> None:
    app = App([PASSED], [b"{}"])
    answer = post(app, body, path=path)
    assert (answer.status, app.context) == (400, None)
    assert said in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({}, 1), ({"n": 3}, 3), ({"n": None}, 1), ({"prompt": [1, 2, 3]}, 1), ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [[1], [2], [3]]}, 3), ({"messages": [{}, {}]}, 1), ({"messages": [[{}], [{}]]}, 2),
        ({"best_of": 4, "n": 2}, 4),
    ],
)  # fmt: skip
def test_replies_are_counted_as_the_engines_make_them(body: dict[str, Any], count: int) -> None:
    assert replies_asked(body) == count


def test_the_operator_says_how_many_replies_one_request_may_have() -> None:
    assert post(App([PASSED], [b"{}"]), {"n": 128}).status == 200
    assert post(App([PASSED], [b"{}"]), {"n": 3}, ServerSettings(max_choices=2)).status == 400
    with pytest.raises(SettingError, match="max_choices"):
        ServerSettings(max_choices=0)


def test_every_reply_counts_in_a_keys_rate(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", "alice", rate="6/hour")
    given = ServerSettings(keys=str(tmp_path / "keys.json"))
    made = App([PASSED], [b"{}"])
    middleware = Kept(made, given)
    statuses = [middleware.ask({"prompt": ["a", "b"], "n": n}, secret) for n in (2, 1, 1)]
    assert statuses == [200, 200, 429]  # four replies, two, and two more than there are


class Kept:
    """One middleware for several requests, whose counts it keeps."""

    def __init__(self, app: App, given: ServerSettings) -> None:
        from safeswitch.serving.middleware import SafeSwitchMiddleware

        self._middleware = SafeSwitchMiddleware(app, given)

    def ask(self, body: dict[str, Any], secret: str) -> int:
        headers = {"authorization": f"Bearer {secret}"}
        made: Any = lambda app, given: self._middleware  # noqa: E731
        return post(None, body, None, headers, COMPLETIONS, made).status
