"""From files to a folder: thinning, the leave-one-source-out report, and nothing written when it
fails."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeswitch.core import artifact
from safeswitch.core.errors import ArtifactError, DataError, FitError, SettingError
from safeswitch.core.types import Example, Message, Position, ReadPoint
from safeswitch.data import starter
from safeswitch.data.writers import write_examples
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting import left_out
from safeswitch.fitting.files import fit_files, fitting_requests, read_sources, source_names
from safeswitch.fitting.left_out import TEMPLATE_FOLDS, by_template, sources_to_leave_out
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.settings import FitSettings
from safeswitch.probers.base import PROBERS, Prober
from safeswitch.probers.fusion import FusionProber
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, requests, settings
from tests.tiny import tiny_lm

SETTINGS = settings(stages="stage1", readers=("layers", "text"), layers=(2,))


def write(folder: Path, name: str, examples: Sequence[Example]) -> str:
    write_examples(examples, folder / name)
    return str(folder / name)


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    return write(tmp_path, "mixed.jsonl", requests())


def test_files_become_a_loadable_switch_with_a_report_for_every_source(
    mixed: str, tmp_path: Path
) -> None:
    told: list[str] = []
    switch = fit_files(engine(), [mixed], tmp_path / "out", SETTINGS, say=told.append)
    assert set(switch.record["left_out"]) == {"source"}
    report = switch.record["left_out"]["source"]
    assert set(report) == {"stage1", "text baseline"}
    for row in report.values():
        assert set(row) == {"s0", "s1", "s2", "in_distribution", "headline"}
    counts = Counter((e.source, e.unsafe) for e in requests())
    for name in ("s0", "s1", "s2"):
        assert report["stage1"][name]["positives"] == counts[name, True]
        assert report["stage1"][name]["negatives"] == counts[name, False]
    assert report["text baseline"]["headline"]["auroc"]["value"] == 1.0  # ZAP and ask are words
    assert Switch.from_pretrained(tmp_path / "out").fingerprint == switch.fingerprint
    assert "| s1 |" in (tmp_path / "out" / "README.md").read_text()
    assert any("leaving out one source" in line for line in told)


def test_one_file_a_label_is_fitted_though_no_source_can_be_left_out(tmp_path: Path) -> None:
    data = [Example(e.id, e.messages, e.label, reply=e.reply) for e in requests()]
    sources = [
        write(tmp_path, "unsafe.jsonl", [e for e in data if e.unsafe]),
        write(tmp_path, "safe.jsonl", [e for e in data if not e.unsafe]),
    ]
    told: list[str] = []
    switch = fit_files(engine(), sources, tmp_path / "out", SETTINGS, say=told.append)
    assert switch.record["left_out"] == {}
    assert any("nothing can be left out" in line for line in told)
    assert (tmp_path / "out" / "config.json").is_file()


def test_only_sources_that_can_be_missed_are_left_out() -> None:
    def made(source: str, label: Any, n: int) -> list[Example]:
        return [
            Example(
                f"{source}{label}{i}", (Message("user", f"{source} {i}"),), label, source=source
            )
            for i in range(n)
        ]

    several = [*made("a", "unsafe", 5), *made("b", "unsafe", 5), *made("c", "safe", 5)]
    assert sources_to_leave_out(several) == ["a", "b"]
    assert sources_to_leave_out(made("a", "unsafe", 5) + made("a", "safe", 5)) == []
    assert sources_to_leave_out(
        [*made("a", "unsafe", 5), *made("b", "unsafe", 1), *made("c", "safe", 5)]
    ) == ["b"]


def test_a_limit_thins_each_source_evenly_and_each_label_by_its_share(tmp_path: Path) -> None:
    data = [replace(e, source="") for e in requests(30)]
    sources = [write(tmp_path, "one.jsonl", data), write(tmp_path, "two.jsonl", data[:4])]
    rows = read_sources(sources, label=None, limit=10)
    assert [e.id for e in rows[:10]] == [f"one/r{i}" for i in (2, 3, 8, 9, 14, 15, 20, 21, 26, 27)]
    assert [e.id for e in rows[10:]] == [f"two/r{i}" for i in range(4)]
    assert len({e.id for e in rows}) == len(rows)


def test_a_limit_counts_by_the_source_that_rows_name_and_not_by_their_file(tmp_path: Path) -> None:
    rows = read_sources([write(tmp_path, "d.jsonl", requests(80))], label=None, limit=10)
    counts = Counter((e.source, e.unsafe) for e in rows)
    assert counts == {(name, unsafe): 5 for name in ("s0", "s1", "s2") for unsafe in (True, False)}


def test_a_limit_takes_of_each_part_its_share() -> None:
    rows = read_sources((), label=None, limit=100)
    whole = Counter(
        e.meta["split"] for e in starter.fitting_rows() if e.source == "starter/pairs" and e.unsafe
    )
    taken = Counter(e.meta["split"] for e in rows if e.source == "starter/pairs" and e.unsafe)
    assert sum(taken.values()) == 50
    for name, count in whole.items():
        assert taken[name] == pytest.approx(50 * count / sum(whole.values()), abs=1)


def test_without_data_it_is_the_starter_set_in_its_own_parts_and_none_of_it_that_is_held() -> None:
    rows = read_sources((), label=None, limit=None)
    wanted = {f"starter/{e.id}": e for e in starter.load(("train", "validation", "calibration"))}
    assert {e.id for e in rows} == set(wanted)
    assert all(e.messages == wanted[e.id].messages for e in rows)
    assert {e.reply for e in rows if e.unsafe} <= {
        starter.refusal_for(e) for e in wanted.values() if e.unsafe
    }
    assert all(e.reply is None for e in rows if not e.unsafe)
    front = [e.source for e in rows if e.unsafe][:200]
    assert 20 < front.count("starter/pairs") < 60  # a fifth of them all


def test_data_replace_the_starter_set_or_are_added_to_it(tmp_path: Path) -> None:
    safe = [replace(e, source="own", meta={}) for e in requests(40) if not e.unsafe]
    file = write(tmp_path, "starter.jsonl", safe)
    with pytest.raises(FitError, match="leave --without-starter out"):
        read_sources([file], label=None, limit=None)
    rows = read_sources([file], label=None, limit=None, with_starter=True)
    assert len({e.id for e in rows}) == len(rows) == 20 + len(starter.fitting_rows())
    assert sum(e.source == "own" for e in rows) == 20
    alone = read_sources([write(tmp_path, "d.jsonl", requests())], label=None, limit=None)
    assert {e.source for e in alone} == {"s0", "s1", "s2"}
    with pytest.raises(SettingError, match="label 'safe' is for rows of data, and none are given"):
        read_sources((), label="safe", limit=None)


class NearestMean(Prober):
    """Nearer to the mean unsafe state than to the mean safe one; see the guide."""

    kind = "nearest_mean"

    def __init__(self, point: ReadPoint) -> None:
        self.points = (point,)

    def fit(self, activations: Any, labels: Any, **options: Any) -> NearestMean:
        rows = activations.at(self.points[0])
        self.means_ = torch.stack([rows[~labels].mean(0), rows[labels].mean(0)])
        return self

    def score(self, activations: Any) -> torch.Tensor:
        distances = torch.cdist(activations.at(self.points[0]), self.means_)
        return torch.sigmoid(distances[:, 0] - distances[:, 1])

    def state(self) -> Any:
        return {"kind": self.kind, "point": str(self.points[0])}, {"means": self.means_}

    @classmethod
    def from_state(cls, config: Any, tensors: Any) -> NearestMean:
        prober = cls(ReadPoint.parse(config["point"]))
        prober.means_ = tensors["means"]
        return prober


def test_stage_1_fuses_probers_by_their_names_and_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROBERS._members, "nearest_mean", NearestMean)
    chosen = replace(SETTINGS, readers=("nearest_mean", "linear", "text"))
    switch = Switch.fit(engine(), requests(), chosen)
    stage = switch.gate.stage1
    assert stage is not None
    assert isinstance(stage.prober, FusionProber)
    assert [reader.kind for reader in stage.prober.readers] == ["nearest_mean", "linear", "ngram"]
    assert stage.prober.points == (ReadPoint(2),)
    switch.save_pretrained(tmp_path / "out")
    assert Switch.from_pretrained(tmp_path / "out").fingerprint == switch.fingerprint


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        ("appending", "constructor needs inner, appended; it may need no more than point, points"),
        ("likelihood", "constructor needs layer"),
        ("after_reply", "reads 3@pilot:2; stage 1 is asked before the reply"),
        ("Mean", r"its class has the kind 'nearest_mean'; register it as @PROBERS.add\('nearest_m"),
    ],
)
def test_a_prober_that_stage_1_cannot_ask_is_refused_before_anything_runs(
    reader: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AfterReply(NearestMean):
        kind = "after_reply"

        def __init__(self) -> None:
            self.points = (ReadPoint(3, Position("pilot", 2)),)

    monkeypatch.setitem(PROBERS._members, "after_reply", AfterReply)
    monkeypatch.setitem(PROBERS._members, "Mean", NearestMean)
    with pytest.raises(SettingError, match=said):
        _ = FitPlan(3, FitSettings(readers=(reader,))).points


def test_a_switch_fitted_without_data_says_what_it_was_fitted_on(tmp_path: Path) -> None:
    told: list[str] = []
    switch = fit_files(
        engine(),
        [],
        tmp_path / "out",
        replace(SETTINGS, readers=("layers",)),
        limit=12,
        leave_out=False,
        say=told.append,
    )
    counts = switch.record["sources"]
    assert set(counts) <= {e.source for e in starter.load()}
    assert sum(sum(found.values()) for found in counts.values()) == sum(
        p["n"] for p in switch.record["data"].values()
    )
    assert max(sum(found.values()) for found in counts.values()) == 12
    assert Switch.from_pretrained(tmp_path / "out").record["sources"] == counts
    card = (tmp_path / "out" / "README.md").read_text()
    found = counts["starter/pairs"]
    assert f"| starter/pairs | {found['unsafe']} | {found['safe']} |" in card
    assert "are the starter set that ships with safeswitch" in card
    plans = [line for line in told if line.startswith("this fit: ")]
    assert len(plans) == 1
    assert told.index(plans[0]) < next(
        i for i, line in enumerate(told) if "the base model answers" in line
    )


def test_rows_that_are_marked_as_held_are_left_out_and_counted(tmp_path: Path) -> None:
    names = ("train", "train", "validation", "calibration", "held")
    data = [replace(e, meta={"split": names[i // 2 % 5]}) for i, e in enumerate(requests(100))]
    told: list[str] = []
    switch = fit_files(
        engine(),
        [write(tmp_path, "d.jsonl", data)],
        tmp_path / "out",
        SETTINGS,
        leave_out=False,
        say=told.append,
    )
    assert {name: part["n"] for name, part in switch.record["data"].items()} == {
        "train": 40,
        "validation": 20,
        "calibration": 20,
    }
    assert "note: 20 requests are marked as held and are left out" in told


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    assert source_names(["a/train.jsonl", "b/train.jsonl", "c.jsonl"]) == [
        "a/train",
        "b/train",
        "c",
    ]
    assert source_names(["x.jsonl", "x.jsonl"]) == ["x#1", "x#2"]
    data = [replace(e, source="") for e in requests(8)]
    (tmp_path / "u").mkdir()
    (tmp_path / "s").mkdir()
    files = [
        write(tmp_path / "u", "d.jsonl", data[::2]),
        write(tmp_path / "s", "d.jsonl", data[1::2]),
    ]
    rows = read_sources(files, label=None, limit=None)
    assert {(e.source, e.label) for e in rows} == {("u/d", "unsafe"), ("s/d", "safe")}
    assert len({e.id for e in rows}) == 8


def test_many_wrappers_are_left_out_in_folds_and_plain_rows_never() -> None:
    def wrapped(i: int, n: int) -> Example:
        return Example(
            f"w{i}", (Message("user", f"x {i}"),), "unsafe", wrapper=f"w{i % n}" if i else ""
        )

    assert by_template([wrapped(i, 4) for i in range(5)]) == ["", "w1", "w2", "w3", "w0"]
    names = by_template([wrapped(i, 25) for i in range(60)])
    assert names[0] == ""
    assert len(set(names) - {""}) == TEMPLATE_FOLDS
    assert all(len({names[i] for i in range(1, 60) if i % 25 == w}) == 1 for w in range(25))


def test_a_copied_request_is_not_in_the_fit_that_is_tested_on_its_copy(tmp_path: Path) -> None:
    data = requests(60)
    copies = [replace(e, id=f"c{e.id}", source="copy") for e in data if e.source == "s0"]
    seen: list[set[str]] = []
    make = left_out.make_prober

    class Noting:
        def __init__(self, spec: Any) -> None:
            self.inner = make(spec)

        def fit(self, activations: Any, labels: Any, **options: Any) -> Any:
            seen.append(set(activations.texts))
            assert len(activations.sources) == len(activations.texts)
            return self.inner.fit(activations, labels, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(left_out, "make_prober", Noting)
        left_out.left_out_report(engine(), [*data, *copies], SETTINGS)
    copied = {e.prompt for e in copies}
    assert (
        sum(not texts & copied for texts in seen) == 4
    )  # stage 1 and text baseline, for the source and for its copy


def test_replies_that_comply_are_not_learned_as_refusals(tmp_path: Path) -> None:
    data = [replace(e, reply="Sure, here it is." if e.unsafe else None) for e in requests()]
    source = write(tmp_path, "d.jsonl", data)
    with pytest.raises(
        FitError, match=r"24 of 24 do not read as refusals, the first that of 'd/r\d+'"
    ):
        fit_files(
            engine(),
            [source],
            tmp_path / "out",
            replace(SETTINGS, trust_replies=False),
            leave_out=False,
        )
    fit_files(engine(), [source], tmp_path / "out", SETTINGS, leave_out=False)


def test_a_long_reply_of_one_request_costs_no_other_its_place(tmp_path: Path) -> None:
    lm = tiny_lm("llama", max_position_embeddings=96)
    data = requests()
    data[0] = replace(data[0], reply="No, sorry. " * 12)
    told: list[str] = []
    chosen = settings(stages="stage1", layers=(2,))
    fit_files(
        TransformersEngine(lm),
        [write(tmp_path, "d.jsonl", data)],
        tmp_path / "out",
        chosen,
        leave_out=False,
        say=told.append,
    )
    (note,) = [
        line
        for line in told
        if line.startswith("note: 1 requests of s0 cannot be given to the model")
    ]
    assert "does not fit into 96 tokens with its reply" in note


@pytest.mark.parametrize(("unsafe", "word"), [(True, "unsafe"), (False, "safe")])
def test_data_of_one_label_are_refused_with_the_way_out(
    tmp_path: Path, unsafe: bool, word: str
) -> None:
    source = write(tmp_path, "one.jsonl", [e for e in requests() if e.unsafe == unsafe])
    with pytest.raises(
        FitError, match=f"the 40 rows read are all {word}; add --data with the other label"
    ):
        fit_files(engine(), [source], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_wrong_label_names_file_line_and_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "hi", "label": "harmless"}) + "\n")
    with pytest.raises(
        DataError, match=r"bad.jsonl, line 1: field 'label' must be safe or unsafe; got 'harmless'"
    ):
        fit_files(engine(), [str(path)], tmp_path / "out", SETTINGS)
    path.write_text(json.dumps({"prompt": " \t", "label": "safe"}) + "\n")
    with pytest.raises(DataError, match="only white space"):
        fit_files(engine(), [str(path)], tmp_path / "out", SETTINGS)
    path.write_text("")
    with pytest.raises(DataError, match="holds no rows"):
        fit_files(engine(), [str(path)], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_requests_that_do_not_fit_the_context_are_left_out_by_name(tmp_path: Path) -> None:
    lm = tiny_lm("llama", max_position_embeddings=64)
    data = requests()
    long = [
        Example(f"r{i}", (Message("user", "x" * 70 + str(i)),), "safe", source="novel")
        for i in range(100, 103)
    ]
    told: list[str] = []
    chosen = settings(stages="stage1", layers=(2,))
    switch = fit_files(
        TransformersEngine(lm),
        [write(tmp_path, "d.jsonl", [*data, *long])],
        tmp_path / "out",
        chosen,
        leave_out=False,
        say=told.append,
    )
    assert sum(part["n"] for part in switch.record["data"].values()) == len(data)
    (note,) = [
        line
        for line in told
        if line.startswith("note: 3 requests of novel cannot be given to the model")
    ]
    assert "does not fit into 64 tokens with its reply" in note


def test_requests_that_just_fit_with_their_reply_are_fitted(tmp_path: Path) -> None:
    lm = tiny_lm("llama", max_position_embeddings=48)
    data = requests(replies=True)
    room = 48 - len("No, sorry.") - 1
    shell = len(lm.encode(["x"])[0]) - 1
    padded = [
        Example(
            e.id,
            (Message("user", e.prompt + "." * (room - shell - len(e.prompt))),),
            e.label,
            reply=e.reply,
        )
        for e in data
    ]
    assert {len(row) for row in lm.encode(padded)} == {room}
    source, chosen = (
        write(tmp_path, "d.jsonl", padded),
        settings(stages="stage1", layers=(2,), max_new_tokens=11, pilot=0),
    )
    fit_files(TransformersEngine(lm), [source], tmp_path / "out", chosen, leave_out=False)
    watched = replace(chosen, watch=True, max_new_tokens=16, budget=0.25)
    with pytest.raises(
        FitError, match=r"only 0 of 80 requests .* does not fit into 48 tokens .* and 17\)"
    ):
        fit_files(TransformersEngine(lm), [source], tmp_path / "out", watched, leave_out=False)
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_model_too_small_for_any_request_says_so(tmp_path: Path, mixed: str) -> None:
    with pytest.raises(
        FitError,
        match=r"only 0 of 80 requests .* does not fit into 12 tokens with its reply \(\d+ and 11\)",
    ):
        fit_files(
            TransformersEngine(tiny_lm("llama", max_position_embeddings=12)),
            [mixed],
            tmp_path / "out",
            SETTINGS,
        )


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_asked(
    tmp_path: Path, mixed: str
) -> None:
    (tmp_path / "out").write_text("mine")

    class Untouchable(TransformersEngine):
        def generate(self, *args: Any, **options: Any) -> Any:
            raise AssertionError("the model was asked")

        collect = generate

    with pytest.raises(ArtifactError, match="out is a file, not a folder"):
        fit_files(Untouchable(engine().lm), [mixed], tmp_path / "out", SETTINGS)


def test_nothing_is_left_behind_when_a_fit_fails_or_the_disk_is_full(
    tmp_path: Path, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FitError, match="needs at least 99 safe requests"):
        fit_files(engine(), [mixed], tmp_path / "out", settings(budget=0.01))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact, "save_file", full)
    with pytest.raises(ArtifactError, match="No space left"):
        fit_files(engine(), [mixed], tmp_path / "out", SETTINGS, leave_out=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mixed.jsonl"]


ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
)


def test_requests_that_the_template_refuses_are_left_out_named_and_counted(tmp_path: Path) -> None:
    twice = (Message("user", "one"), Message("user", "ask two"))
    data = [*requests(), Example("refused", twice, "safe", source="odd")]
    told: list[str] = []
    lm = tiny_lm(chat_template=ALTERNATES)
    source = write(tmp_path, "d.jsonl", data)
    switch = fit_files(
        TransformersEngine(lm),
        [source],
        tmp_path / "out",
        SETTINGS,
        leave_out=False,
        say=told.append,
    )
    (note,) = [line for line in told if line.startswith("note: 1 requests of odd")]
    assert f"'d/refused' ({source}, line 81): the chat template of tiny-llama refuses" in note
    assert switch.record["rows"] == {"read": 81, "used": 80}
    assert sum(part["n"] for part in switch.record["data"].values()) == 80


def test_requests_with_both_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    data = requests()
    data += [
        replace(data[0], id="again", label="safe", reply=None),
        replace(data[1], id="once more"),
    ]
    told: list[str] = []
    chosen = replace(SETTINGS, max_new_tokens=4)
    left = fitting_requests(engine(), data, chosen, told.append)
    assert [e.id for e in left] == [*(f"r{i}" for i in range(1, 80)), "once more"]
    assert any(
        "2 rows are 1 requests that are labelled both safe and unsafe" in line for line in told
    )


def test_a_fit_ends_where_most_requests_cannot_be_used() -> None:
    twice = (Message("user", "one"), Message("user", "two"))
    bad = [
        replace(e, id=f"bad{i}", messages=twice, label="safe") for i, e in enumerate(requests(100))
    ]
    refusing = TransformersEngine(tiny_lm(chat_template=ALTERNATES))
    with pytest.raises(
        FitError,
        match=r"only 80 of 180 requests can be learned from.*first that is left out, 'bad0'",
    ):
        fitting_requests(refusing, [*requests(), *bad], SETTINGS, lambda text: None)
