"""The command line on a tiny model: every verb, and every fault ends in one line and exit code
2."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from transformers.utils import logging

from safeswitch import __version__
from safeswitch.cli import inspect, screen
from safeswitch.cli import main as module
from safeswitch.core.types import Example, Message
from safeswitch.data.writers import write_examples
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.switch.card import model_card
from safeswitch.switch.switch import Switch
from tests.switch.made import fitted, requests
from tests.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

FOUND = transformers.__version__
VERBS = (
    "fit",
    "inspect",
    "push",
    "generate",
    "score",
    "chat",
    "eval",
    "compare",
    "harness",
    "attack",
    "analyse",
    "landscape",
    "report",
    "adapted",
    "demo",
    "version",
    "keys",
    "keys add",
    "policy",
    "policy check",
    "audit",
    "audit export",
    "nano",
    "nano build",
    "nano table",
    "nano study",
)


@dataclass
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object, stdin: str | bytes = "") -> Ran:
        monkeypatch.setattr(sys, "argv", ["safeswitch", *map(str, arguments)])
        text = (
            io.StringIO(stdin)
            if isinstance(stdin, str)
            else io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        )
        monkeypatch.setattr(sys, "stdin", text)
        monkeypatch.setattr(screen, "console", Console(stderr=True, width=100))
        with pytest.raises(SystemExit) as end:
            module.main()
        captured = capsys.readouterr()
        return Ran(int(end.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a switch fitted on it in another process's stead, and data."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    tiny_model("llama", seed=1).save_pretrained(folder / "other")
    tiny_tokenizer().save_pretrained(folder / "other")
    tiny_model("llama").save_pretrained(folder / "bare")
    tiny_tokenizer(chat_template=None).save_pretrained(folder / "bare")
    write_examples(requests(), folder / "data.jsonl")
    fitted().save_pretrained(folder / "switch")
    return folder


def fault(ran: Ran, *words: str) -> None:
    """Exit code 2, no traceback, and ``words`` on the line of the error (rows at fault each have
    their own below)."""
    assert ran.code == 2
    assert "Traceback" not in ran.err
    text = ran.err[ran.err.index("error:") :].strip()
    line = text if "unusable row" in text else text.splitlines()[0]
    for word in words:
        assert word in line


FIT = ("--budget", 0.125, "--stages", "stage1", "--readers", "layers", "--pilot", 1)


def test_fit_inspect_generate_and_resume_go_hand_in_hand(
    place: Path, tmp_path: Path, run: Any
) -> None:
    model, out = ("--model", place / "model"), tmp_path / "switch"
    fitted_run = run(
        "fit", "--without-starter", *model, "--data", place / "data.jsonl", "--out", out, *FIT
    )
    assert (fitted_run.code, "written to" in fitted_run.err) == (0, True)
    assert "the base model answers" in fitted_run.err
    assert "Stage 1 on each source that it was not fitted on" in fitted_run.out
    shown = run("inspect", out)
    assert (shown.code, "threshold" in shown.out) == (0, True)
    config = json.loads(run("inspect", out, "--json").out)
    assert config == json.loads((out / "config.json").read_text())
    answer = (
        "generate",
        *model,
        "--switch",
        out,
        "--in",
        place / "data.jsonl",
        "--out",
        tmp_path / "r.jsonl",
        "--limit",
        9,
        "--max-new-tokens",
        4,
        "--batch-size",
        2,
    )
    assert "9 new rows, 9 in all, 0 of them with an error" in run(*answer).err
    whole = (tmp_path / "r.jsonl").read_bytes()
    assert whole.count(b"\n") == 9
    (tmp_path / "r.jsonl").write_bytes(whole[: len(whole) // 2])
    assert re.search(r"[1-8] new rows, 9 in all", run(*answer).err)
    assert [json.loads(x)["reply"] for x in (tmp_path / "r.jsonl").read_text().splitlines()] == [
        json.loads(x)["reply"] for x in whole.decode().splitlines()
    ]


def test_thinking_is_left_out_and_ended_where_the_command_says_so(
    place: Path, tmp_path: Path, run: Any
) -> None:
    model = tmp_path / "thinks"
    tiny_model("llama").save_pretrained(model)
    tiny_tokenizer(
        chat_template=CHAT_TEMPLATE.replace("<|assistant|>{%", "<|assistant|><think>{%")
    ).save_pretrained(model)
    asked = ("--model", model, "--in", place / "data.jsonl", "--limit", 3, "--max-new-tokens", 20)
    ended, made = ("--thinking-budget", 2), {}
    for name, more in {"whole": (), "ended": ended, "hidden": (*ended, "--hide-thinking")}.items():
        assert run("generate", *asked, "--out", tmp_path / name, *more).code == 0
        made[name] = [
            json.loads(line)["reply"] for line in (tmp_path / name).read_text().splitlines()
        ]
    assert not any("</think>" in reply for reply in made["whole"])
    assert [reply.partition("</think>")[2] for reply in made["ended"]] == made["hidden"]
    assert all(made["hidden"])
    chat = run(
        "chat",
        "--model",
        model,
        "--max-new-tokens",
        20,
        "--thinking-budget",
        2,
        "--hide-thinking",
        stdin="Hello\n",
    )
    assert chat.code == 0
    assert chat.out.strip("\n")
    assert "</think>" not in chat.out
    assert (
        "</think>"
        in run(
            "chat",
            "--model",
            model,
            "--max-new-tokens",
            20,
            "--thinking-budget",
            2,
            stdin="Hello\n",
        ).out
    )
    asked = (
        "generate",
        "--model",
        place / "model",
        "--in",
        place / "data.jsonl",
        "--out",
        tmp_path / "none",
    )
    fault(run(*asked, "--thinking-budget", 2), "SettingError", "no thinking marks")


def test_a_fit_takes_no_more_of_a_source_than_its_limit(
    place: Path, tmp_path: Path, run: Any
) -> None:
    ran = run(
        "fit",
        "--without-starter",
        "--model",
        place / "model",
        "--data",
        place / "data.jsonl",
        "--out",
        tmp_path / "s",
        "--limit",
        10,
        *FIT,
    )
    fault(ran, "FitError", "needs at least 7 safe requests in the calibration part")
    assert not (tmp_path / "s").exists()


def test_a_fit_takes_the_starter_set_alone_or_beside_the_data(
    place: Path, tmp_path: Path, run: Any
) -> None:
    fit = ("fit", "--model", place / "model", "--limit", 12, "--no-leave-out", *FIT)
    ran = run(*fit, "--out", tmp_path / "alone")
    assert (ran.code, "this fit: " in ran.err, "starter/pairs" in ran.out) == (0, True, True)
    both = run(*fit, "--data", place / "data.jsonl", "--out", tmp_path / "both")
    assert both.code == 0
    sources = json.loads((tmp_path / "both" / "config.json").read_text())["record"]["sources"]
    assert {"s0", "starter/pairs"} <= set(sources)
    fault(
        run(*fit, "--without-starter", "--out", tmp_path / "none"),
        "SettingError",
        "--without-starter needs --data",
    )
    fault(
        run(*fit, "--label", "safe", "--out", tmp_path / "none"),
        "SettingError",
        "the label 'safe' is for rows of data",
    )


def test_chat_streams_replies_shows_decisions_and_ends_with_the_input(
    place: Path, run: Any
) -> None:
    talk = ("chat", "--model", place / "model", "--switch", place / "switch", "--max-new-tokens", 5)
    ran = run(*talk, stdin="ZAP the river\nask the stone\n")
    assert ran.code == 0
    decisions = re.findall(
        r"^\[(switched at \w+, token \d+(, \w+ \(\w+\))?|not switched); scores: .+; thresholds: .+\]$",
        ran.err,
        re.M,
    )
    assert len(decisions) == 2
    assert len(re.findall(r"stage1 0\.\d{3}", ran.err)) >= 2
    assert "scores" not in run(*talk, stdin="\nnever read\n").err


def test_chat_reports_what_it_cannot_answer_and_goes_on(place: Path, run: Any) -> None:
    ran = run(
        "chat", "--model", place / "model", "--max-new-tokens", 5, stdin=f"{'x' * 600}\nask me\n"
    )
    assert (ran.code, "ContextLengthError: prompt 0 has" in ran.err, "Traceback" in ran.err) == (
        0,
        True,
        False,
    )
    assert ran.out.strip()


def seen_by(monkeypatch: pytest.MonkeyPatch) -> list[list[Message]]:
    """The conversations that the engine is asked to answer, as they come."""
    asked: list[list[Message]] = []
    real = TransformersEngine.stream

    def stream(self: TransformersEngine, prompt: Any, *args: Any, **options: Any) -> Any:
        asked.append(list(prompt))
        return real(self, prompt, *args, **options)

    monkeypatch.setattr(TransformersEngine, "stream", stream)
    return asked


def test_chat_leaves_out_the_oldest_turns_when_the_context_is_full(
    place: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = seen_by(monkeypatch)
    given = [letter * 120 for letter in "abcdefg"]
    ran = run(
        "chat",
        "--model",
        place / "model",
        "--system",
        "Be brief.",
        "--max-new-tokens",
        5,
        stdin="\n".join(given),
    )
    assert (ran.code, "Error" in ran.err) == (0, False)
    assert "[the oldest 2 turns no longer fit and were left out]" in ran.err
    last = {
        turns[-1].content: turns for turns in asked
    }  # the last attempt at each line, which was answered
    assert list(last) == given
    for number, turns in enumerate(last.values()):
        assert turns[0] == Message("system", "Be brief.")
        assert [m.content for m in turns if m.role == "user"] == given[
            max(0, number - 2) : number + 1
        ]


def test_chat_starts_over_when_told_to(
    place: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = seen_by(monkeypatch)
    ran = run(
        "chat",
        "--model",
        place / "model",
        "--system",
        "s",
        "--max-new-tokens",
        2,
        stdin="one\ntwo\n/new\nthree\n",
    )
    assert (ran.code, "[a new conversation]" in ran.err) == (0, True)
    assert [[m.content for m in turns if m.role != "assistant"] for turns in asked] == [
        ["s", "one"],
        ["s", "one", "two"],
        ["s", "three"],
    ]


def test_chat_refuses_a_line_that_is_not_utf8_and_goes_on(
    place: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = seen_by(monkeypatch)
    ran = run(
        "chat", "--model", place / "model", "--max-new-tokens", 2, stdin=b"caf\xe9\nask m\xc3\xa9\n"
    )
    assert (ran.code, "Traceback" in ran.err) == (0, False)
    assert "DataError: message content cannot be written as UTF-8: character 4" in ran.err
    assert [[m.content for m in turns] for turns in asked] == [["ask mé"]]


def test_chat_with_a_system_message_and_sampling_repeats_itself_for_a_seed(
    place: Path, run: Any
) -> None:
    talk = (
        "chat",
        "--model",
        place / "model",
        "--system",
        "Be brief.",
        "--max-new-tokens",
        6,
        "--sample",
        "--temperature",
        2,
    )
    one, two, other = (run(*talk, "--seed", s, stdin="ask\n").out for s in (1, 1, 2))
    assert one == two != other


def test_help_of_every_verb_names_its_options(run: Any) -> None:
    whole = run("--help")
    assert whole.code == 0
    for verb in (
        "fit",
        "inspect",
        "push",
        "generate",
        "chat",
        "eval",
        "compare",
        "harness",
        "demo",
        "nano",
    ):
        assert verb in whole.out
    for verb in VERBS:
        ran = run(*verb.split(), "--help")
        assert (ran.code, "Usage" in ran.out) == (0, True), verb
    assert "/new" in run("chat", "--help").out


def test_the_version_is_told_as_a_verb_and_as_an_option(run: Any) -> None:
    told = [run("version"), run("--version")]
    assert (
        told[0]
        == told[1]
        == Ran(
            0, f"safeswitch {__version__}, torch {torch.__version__}, transformers {FOUND}\n", ""
        )
    )


def rows(folder: Path, *given: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def test_faults_of_models_and_switches(place: Path, tmp_path: Path, run: Any) -> None:
    ask = ("--in", place / "data.jsonl", "--out", tmp_path / "r.jsonl")
    model = ("--model", place / "model")
    fault(
        run("generate", "--model", tmp_path / "none", *ask),
        "ModelError",
        "there is no such",
    )
    fault(
        run("generate", "--model", "no-such-model-here", *ask), "ModelError", "no-such-model-here"
    )
    fault(
        run("generate", "--model", place / "bare", *ask),
        "ModelError",
        "has no chat template",
        "plain",
    )
    fault(
        run("generate", *model, "--switch", tmp_path / "none", *ask),
        "ArtifactError",
        "neither a folder nor a hub id",
    )
    other = run("generate", "--model", place / "other", "--switch", place / "switch", *ask)
    fault(other, "FingerprintError", fitted().base.fingerprint)  # type: ignore[union-attr]
    fault(
        run("inspect", place / "model"),
        "ArtifactError",
        "config.json: format version None is not supported",
    )
    fault(
        run("generate", *model, "--dtype", "float99", *ask),
        "SettingError",
        "dtype must be one of 'auto'",
    )
    fault(
        run("generate", *model, "--chat-template", "no.jinja", *ask),
        "SettingError",
        "neither 'plain' nor a readable file",
    )
    assert not (tmp_path / "r.jsonl").exists()


def test_another_model_is_accepted_when_that_is_asked_for(
    place: Path, tmp_path: Path, run: Any
) -> None:
    ran = run(
        "generate",
        "--model",
        place / "other",
        "--switch",
        place / "switch",
        "--allow-other-model",
        "--limit",
        2,
        "--in",
        place / "data.jsonl",
        "--out",
        tmp_path / "r.jsonl",
        "--max-new-tokens",
        2,
    )
    assert (ran.code, "2 new rows" in ran.err) == (0, True)


def test_a_base_model_is_asked_in_plain_text_or_by_a_template_file(
    place: Path, tmp_path: Path, run: Any
) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    for number, template in enumerate(("plain", tmp_path / "t.jinja")):
        ran = run(
            "generate",
            "--model",
            place / "bare",
            "--chat-template",
            template,
            "--limit",
            2,
            "--max-new-tokens",
            2,
            "--in",
            place / "data.jsonl",
            "--out",
            tmp_path / f"{number}.jsonl",
        )
        assert ran.code == 0, ran.err
    replies = [(tmp_path / f"{n}.jsonl").read_text().splitlines() for n in (0, 1)]
    assert [json.loads(x)["reply"] for x in replies[0]] == [
        json.loads(x)["reply"] for x in replies[1]
    ]
    again = run(
        "generate",
        "--model",
        place / "bare",
        "--chat-template",
        "plain",
        "--limit",
        2,
        "--max-new-tokens",
        2,
        "--in",
        place / "data.jsonl",
        "--out",
        tmp_path / "1.jsonl",
    )
    fault(again, "ArtifactError", "belongs to a run with another chat template")


def test_faults_of_data(place: Path, tmp_path: Path, run: Any) -> None:
    def answer(*given: dict[str, Any], **options: Any) -> Ran:
        more = [x for name, value in options.items() for x in (f"--{name}", value)]
        return run(
            "generate",
            "--model",
            place / "model",
            "--in",
            rows(tmp_path, *given),
            "--out",
            tmp_path / "r",
            *more,
        )  # type: ignore[no-any-return]

    fault(
        answer({"prompt": "hi", "label": "harmless"}),
        "rows.jsonl, line 1",
        "must be safe or unsafe; got 'harmless'",
    )
    fault(answer({"prompt": "hi"}, label="harmless"), "label must be one of 'safe', 'unsafe'")
    fault(answer({"prompt": "  ", "label": "safe"}), "only white space")
    fault(answer(), "holds no rows")
    fault(
        answer({"prompt": "a\ud800b"}),
        "rows.jsonl, line 1: field 'prompt' cannot be written as UTF-8",
    )
    fault(
        run(
            "generate",
            "--model",
            place / "model",
            "--in",
            tmp_path / "no.jsonl",
            "--out",
            tmp_path / "r",
        ),
        "is not a file",
    )
    assert not (tmp_path / "r").exists()


def test_a_request_that_is_too_long_does_not_stop_the_others_and_none_needs_a_label(
    place: Path, tmp_path: Path, run: Any
) -> None:
    data = rows(
        tmp_path, {"prompt": "hi"}, {"prompt": "x" * 600}, {"prompt": "ho", "label": "safe"}
    )
    answer = (
        "generate",
        "--model",
        place / "model",
        "--in",
        data,
        "--out",
        tmp_path / "r",
        "--max-new-tokens",
        2,
    )
    ran = run(*answer, "--json")
    assert (ran.code, "3 new rows, 3 in all, 1 of them with an error" in ran.err) == (0, True)
    assert json.loads(ran.out) == {"out": str(tmp_path / "r"), "new": 3, "rows": 3, "errors": 1}
    written = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert [("error" in row, row["label"]) for row in written] == [
        (False, None),
        (True, None),
        (False, "safe"),
    ]
    assert "takes 512 in all; shorten the prompt" in written[1]["error"]
    assert json.loads(run(*answer, "--json").out)["new"] == 0


def test_faults_of_sampling(place: Path, tmp_path: Path, run: Any) -> None:
    for verb in (("generate", "--in", place / "data.jsonl", "--out", tmp_path / "r"), ("chat",)):

        def ask(*more: object, verb: tuple[object, ...] = verb) -> Ran:
            return run(*verb, "--model", place / "model", *more)  # type: ignore[no-any-return]

        fault(
            ask("--temperature", 2, "--top-p", 0.5),
            "--temperature and --top-p would have no effect without --sample",
        )
        fault(
            ask("--top-p", 0.5),
            "--top-p would have no effect without --sample; add --sample or leave it out",
        )
        for value in (0, -1, "nan", "inf"):
            fault(
                ask("--sample", "--temperature", value),
                "--temperature must be above 0 and finite; got",
            )
        for value in (0, 1.5, "nan"):
            fault(ask("--sample", "--top-p", value), "--top-p must be above 0 and at most 1; got")
        for value in (-1, 2**63):
            ran = ask("--sample", "--seed", value)
            assert (ran.code, "seed" in ran.err, "Traceback" in ran.err) == (2, True, False)
    assert not (tmp_path / "r").exists()


def test_faults_of_fitting(place: Path, tmp_path: Path, run: Any) -> None:
    def fit(*more: object, data: Path | None = None) -> Ran:
        given = data or place / "data.jsonl"
        return run(
            "fit",
            "--without-starter",
            "--model",
            place / "model",
            "--data",
            given,
            "--out",
            tmp_path / "s",
            *more,
        )  # type: ignore[no-any-return]

    fault(fit(), "FitError", "a budget of 0.02 needs at least 49 safe requests", "got 8")
    fault(fit(data=rows(tmp_path, {"prompt": "hi"})), "field 'label' is missing")
    fault(fit("--budget", 2), "SettingError", "budget must lie in [1e-06, 0.5]; got 2.0")
    fault(
        fit("--stages", "three"), "SettingError", "stages must be one of 'two', 'stage1', 'direct'"
    )
    fault(
        fit("--readers", "tea"),
        "SettingError",
        "must be among 'layers', 'window', 'text', 'steps', 'outputs', 'means' and the registered probers",
    )
    fault(
        fit("--calibrate", "all"),
        "SettingError",
        "calibrate must be one of 'pooled', 'sources'; got 'all'",
    )
    by_source = ("--calibrate", "sources", "--readers", "steps")
    fault(
        fit(*by_source),
        "FitError",
        "at least 4 sources of 10 safe requests",
        "3 of these count: 's0' (14)",
    )
    fault(fit(*by_source, "--rule", "product"), "SettingError", "which rule 'product' does not use")
    fault(fit("--head", "lora"), "SettingError", "kind must be one of 'low_rank', 'full'")
    fault(fit("--beta", 3), "SettingError", "beta must lie in [0.0, 1.0]; got 3.0")
    fault(fit("--pilot", 99), "SettingError", "pilot must lie in 0..31")
    fault(
        fit("--pilot-from", "thinking"),
        "SettingError",
        "pilot_from must be one of 'reply', 'answer'; got 'thinking'",
    )
    fault(fit("--max-new-tokens", 2), "SettingError", "pilot must lie in 0..1")
    earlier = fit("--reply-tokens", 2)
    fault(earlier, "SettingError", "pilot must lie in 0..1")
    assert "reply-tokens is called max-new-tokens now" in earlier.err
    only = tmp_path / "only.jsonl"
    write_examples([e for e in requests() if e.unsafe], only)
    fault(fit(data=only), "FitError", "all unsafe; add --data with the other label")
    (tmp_path / "file").write_text("")
    ran = run(
        "fit",
        "--without-starter",
        "--model",
        place / "model",
        "--data",
        place / "data.jsonl",
        "--out",
        tmp_path / "file",
        *FIT,
    )
    fault(ran, "ArtifactError", "is a file, not a folder")
    assert not (tmp_path / "s").exists()


def test_words_in_brackets_are_printed_as_they_stand(tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "[bold]" / "[/x]"
    folder.mkdir(parents=True)
    fault(run("inspect", folder), "[bold]/[/x]/config.json does not exist")


def test_an_option_that_typer_refuses_ends_in_exit_code_2(place: Path, run: Any) -> None:
    for arguments in (
        ("generate",),
        ("fit", "--limit", "0"),
        ("nothing",),
        ("chat", "--model", "x", "--max-new-tokens", "0"),
    ):
        ran = run(*arguments)
        assert (ran.code, "Traceback" in ran.err) == (2, False)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt at the third batch."""
    calls = iter("12")

    def interrupted(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return real(*args, **options)

        return call

    for name in ("generate", "collect"):
        monkeypatch.setattr(
            TransformersEngine, name, interrupted(getattr(TransformersEngine, name))
        )


@pytest.mark.usefixtures("stopped")
def test_an_interrupt_of_answering_ends_in_130_and_says_that_replies_are_kept(
    place: Path, tmp_path: Path, run: Any
) -> None:
    ran = run(
        "generate",
        "--model",
        place / "model",
        "--in",
        place / "data.jsonl",
        "--out",
        tmp_path / "r",
        "--max-new-tokens",
        2,
        "--batch-size",
        2,
    )
    assert (ran.code, ran.out, "Traceback" in ran.err) == (130, "", False)
    assert (
        "interrupted; the replies written so far are kept, and the same command resumes there"
        in ran.err
    )
    assert (tmp_path / "r").read_text().count("\n") == 8


@pytest.mark.usefixtures("stopped")
def test_an_interrupt_of_fitting_ends_in_130_and_says_what_the_folder_holds(
    place: Path, tmp_path: Path, run: Any
) -> None:
    ran = run(
        "fit",
        "--without-starter",
        "--model",
        place / "model",
        "--data",
        place / "data.jsonl",
        "--out",
        tmp_path / "s",
        *FIT,
    )
    assert (ran.code, "Traceback" in ran.err) == (130, False)
    assert (
        "interrupted; a switch is written only when it is fitted, so the folder holds a whole one or is as it was"
        in ran.err
    )
    assert not (tmp_path / "s").exists()


def test_an_interrupt_of_another_verb_ends_in_130_too(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "load_switch", stop)
    assert run("inspect", "x") == Ran(130, "", "interrupted; no file is left half-written\n")


def test_no_progress_bar_is_written_where_standard_error_is_no_terminal(
    place: Path, tmp_path: Path, run: Any
) -> None:
    logging.enable_progress_bar()
    ran = run(
        "generate",
        "--model",
        place / "model",
        "--in",
        place / "data.jsonl",
        "--out",
        tmp_path / "r",
        "--limit",
        1,
        "--max-new-tokens",
        2,
    )
    assert (ran.code, "\r" in ran.err, "Loading" in ran.err) == (0, False, False)


def test_a_switch_is_uploaded_and_its_address_printed(
    place: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Hub:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo: str, **options: Any) -> None:
            asked.append((repo, options["private"]))

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> str:
            asked.append((repo_id, Switch.from_pretrained(folder_path).fingerprint))
            return "https://hub/user/name"

    monkeypatch.setattr("safeswitch.switch.switch.HfApi", Hub)
    assert run("push", place / "switch", "--repo", "user/name", "--private") == Ran(
        0, "https://hub/user/name\n", ""
    )
    assert asked == [("user/name", True), ("user/name", fitted().fingerprint)]
    asked.clear()
    run("push", place / "switch", "--repo", "user/name")
    assert asked[0] == ("user/name", False)


def test_an_upload_that_fails_is_one_line(place: Path, tmp_path: Path, run: Any) -> None:
    fault(
        run("push", place / "switch", "--repo", "user/name"),
        "ArtifactError: cannot upload",
        "to 'user/name' on the hub",
    )
    fault(run("push", tmp_path / "none", "--repo", "user/name"), "neither a folder nor a hub id")


def test_a_fit_tells_as_json_what_it_wrote_and_trusts_replies_when_told_to(
    place: Path, tmp_path: Path, run: Any
) -> None:
    told = [
        replace(e, reply="Nein, das mache ich nicht." if e.unsafe else None) for e in requests()
    ]
    write_examples(told, tmp_path / "d.jsonl")
    fit = (
        "fit",
        "--without-starter",
        "--model",
        place / "model",
        "--data",
        tmp_path / "d.jsonl",
        "--out",
        tmp_path / "s",
        "--no-leave-out",
        *FIT,
    )
    fault(run(*fit), "FitError", "--trust-replies")
    ran = run(*fit, "--trust-replies", "--json")
    assert (ran.code, json.loads(ran.out)["out"]) == (0, str(tmp_path / "s"))
    assert json.loads(ran.out)["fingerprint"] == Switch.from_pretrained(tmp_path / "s").fingerprint
    assert json.loads(ran.out)["switch"] == json.loads((tmp_path / "s" / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("user/llama", True),
        ("models/llama", False),
        ("models/llama/7b", False),
        ("./llama", False),
        ("../llama", False),
        ("/models/llama", False),
    ],
)
def test_the_card_names_a_model_on_the_hub_but_no_folder(
    name: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    base = fitted().base
    assert base is not None
    card = model_card(replace(fitted(), base=replace(base, model_id=name)))
    assert (f"base_model: {name}\n" in card, "base_model:" in card) == (told, told)


def test_a_switch_written_by_the_library_is_read_by_the_command_line(place: Path, run: Any) -> None:
    assert json.loads(run("inspect", place / "switch", "--json").out)["gate"]["stages"].keys() == {
        "stage1",
        "stage2",
        "watch",
    }
    assert Switch.from_pretrained(place / "switch").base == fitted().base


def test_an_example_in_a_language_with_other_letters_goes_through(
    place: Path, tmp_path: Path, run: Any
) -> None:
    write_examples(
        [Example("ü", (Message("user", "Wie spät ist es? 東京"),), "safe")], tmp_path / "d.jsonl"
    )
    ran = run(
        "generate",
        "--model",
        place / "model",
        "--in",
        tmp_path / "d.jsonl",
        "--out",
        tmp_path / "r",
        "--max-new-tokens",
        2,
    )
    assert ran.code == 0
    assert (
        json.loads((tmp_path / "r").read_text(encoding="utf-8"))["prompt"]
        == "Wie spät ist es? 東京"
    )


@pytest.mark.parametrize(
    "wrong", [["--policy", "loud"], ["--clients-may", "all"], ["--audit-failure", "ignore"]]
)
def test_faults_of_serving(wrong: list[str], run: Any) -> None:
    fault(run("serve", "--model", "nano", "--switch", "nano", *wrong), wrong[1])
