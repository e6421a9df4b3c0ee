"""The command line on a tiny model: every verb, and every fault ends in one line and exit code 2."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from safeswitch.cli import main as module
from safeswitch.core.types import Example, Message
from safeswitch.data.writers import write_examples
from safeswitch.switch.switch import Switch
from tests.switch.made import fitted, requests
from tests.tiny import tiny_model, tiny_tokenizer

VERBS = ("fit", "inspect", "generate", "chat", "demo", "version", "nano", "nano build", "nano table", "nano study")


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
    def call(*arguments: object, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "argv", ["safeswitch", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setattr(module, "console", module.Console(stderr=True, width=100))
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
    """Exit code 2, no traceback, and ``words`` on the line of the error (rows at fault each have their own below)."""
    assert ran.code == 2
    assert "Traceback" not in ran.err
    text = ran.err[ran.err.index("error:") :].strip()
    line = text if "unusable row" in text else text.splitlines()[0]
    for word in words:
        assert word in line


FIT = ("--budget", 0.125, "--stages", "stage1", "--readers", "layers", "--pilot", 1)


def test_fit_inspect_generate_and_resume_go_hand_in_hand(place: Path, tmp_path: Path, run: Any) -> None:
    model, out = ("--model", place / "model"), tmp_path / "switch"
    fitted_run = run("fit", *model, "--data", place / "data.jsonl", "--out", out, *FIT)
    assert (fitted_run.code, "written to" in fitted_run.err) == (0, True)
    assert "the untouched model answers" in fitted_run.err
    assert "Stage 1 on sources it was not fitted on" in fitted_run.out
    shown = run("inspect", out)
    assert (shown.code, "threshold" in shown.out) == (0, True)
    config = json.loads(run("inspect", out, "--json").out)
    assert config == json.loads((out / "config.json").read_text())
    answer = ("generate", *model, "--switch", out, "--in", place / "data.jsonl", "--out", tmp_path / "r.jsonl", "--limit", 9,
              "--max-new-tokens", 4, "--batch-size", 2)
    assert "9 new replies, 9 in all" in run(*answer).err
    whole = (tmp_path / "r.jsonl").read_bytes()
    assert whole.count(b"\n") == 9
    (tmp_path / "r.jsonl").write_bytes(whole[: len(whole) // 2])
    assert re.search(r"[1-8] new replies, 9 in all", run(*answer).err)
    assert [json.loads(x)["reply"] for x in (tmp_path / "r.jsonl").read_text().splitlines()] == [
        json.loads(x)["reply"] for x in whole.decode().splitlines()
    ]


def test_a_fit_takes_no_more_of_a_source_than_its_limit(place: Path, tmp_path: Path, run: Any) -> None:
    ran = run("fit", "--model", place / "model", "--data", place / "data.jsonl", "--out", tmp_path / "s", "--limit", 40, *FIT)
    fault(ran, "FitError", "needs at least 7 safe requests in the calibration part")
    assert not (tmp_path / "s").exists()


def test_chat_streams_replies_shows_decisions_and_ends_with_the_input(place: Path, run: Any) -> None:
    talk = ("chat", "--model", place / "model", "--switch", place / "switch", "--max-new-tokens", 5)
    ran = run(*talk, stdin="ZAP the river\nask the stone\n")
    assert ran.code == 0
    decisions = re.findall(r"^\[(switched at \w+, token \d+|not switched); scores: .+; thresholds: .+\]$", ran.err, re.MULTILINE)
    assert len(decisions) == 2
    assert len(re.findall(r"stage1 0\.\d{3}", ran.err)) >= 2
    assert "scores" not in run(*talk, stdin="\nnever read\n").err


def test_chat_reports_what_it_cannot_answer_and_goes_on(place: Path, run: Any) -> None:
    ran = run("chat", "--model", place / "model", "--max-new-tokens", 5, stdin=f"{'x' * 600}\nask me\n")
    assert (ran.code, "ContextLengthError: prompt 0 has" in ran.err, "Traceback" in ran.err) == (0, True, False)
    assert ran.out.strip()


def test_chat_with_a_system_message_and_sampling_repeats_itself_for_a_seed(place: Path, run: Any) -> None:
    talk = ("chat", "--model", place / "model", "--system", "Be brief.", "--sample", "--temperature", 1.2, "--max-new-tokens", 6)
    one, two, other = (run(*talk, "--seed", s, stdin="ask\n").out for s in (1, 1, 2))
    assert one == two != other


def test_help_of_every_verb_names_its_options(run: Any) -> None:
    whole = run("--help")
    assert whole.code == 0
    for verb in ("fit", "inspect", "generate", "chat", "demo", "nano"):
        assert verb in whole.out
    for verb in VERBS:
        ran = run(*verb.split(), "--help")
        assert (ran.code, "Usage" in ran.out) == (0, True), verb
    assert "safeswitch 0" in run("version").out


def rows(folder: Path, *given: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def test_faults_of_models_and_switches(place: Path, tmp_path: Path, run: Any) -> None:
    ask = ("--in", place / "data.jsonl", "--out", tmp_path / "r.jsonl")
    model = ("--model", place / "model")
    fault(run("generate", "--model", tmp_path / "none", *ask), "ModelError", "cannot load a causal language model")
    fault(run("generate", "--model", "no-such-model-here", *ask), "ModelError", "no-such-model-here")
    fault(run("generate", "--model", place / "bare", *ask), "ModelError", "has no chat template", "plain")
    fault(run("generate", *model, "--switch", tmp_path / "none", *ask), "ArtifactError", "neither a folder nor a hub id")
    other = run("generate", "--model", place / "other", "--switch", place / "switch", *ask)
    fault(other, "FingerprintError", fitted().base.fingerprint)  # type: ignore[union-attr]
    fault(run("inspect", place / "model"), "ArtifactError", "config.json: format version None is not supported")
    fault(run("generate", *model, "--dtype", "float99", *ask), "SettingError", "dtype must be one of 'auto'")
    fault(run("generate", *model, "--chat-template", "no.jinja", *ask), "SettingError", "neither 'plain' nor a readable file")
    assert not (tmp_path / "r.jsonl").exists()


def test_another_model_is_accepted_when_that_is_asked_for(place: Path, tmp_path: Path, run: Any) -> None:
    ran = run(
        "generate", "--model", place / "other", "--switch", place / "switch", "--allow-other-model", "--limit", 2,
        "--in", place / "data.jsonl", "--out", tmp_path / "r.jsonl", "--max-new-tokens", 2,
    )
    assert (ran.code, "2 new replies" in ran.err) == (0, True)


def test_a_base_model_is_asked_in_plain_text_or_by_a_template_file(place: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    for number, template in enumerate(("plain", tmp_path / "t.jinja")):
        ran = run(
            "generate", "--model", place / "bare", "--chat-template", template, "--limit", 2, "--max-new-tokens", 2,
            "--in", place / "data.jsonl", "--out", tmp_path / f"{number}.jsonl",
        )
        assert ran.code == 0, ran.err
    replies = [(tmp_path / f"{n}.jsonl").read_text().splitlines() for n in (0, 1)]
    assert [json.loads(x)["reply"] for x in replies[0]] == [json.loads(x)["reply"] for x in replies[1]]
    again = run("generate", "--model", place / "bare", "--chat-template", "plain", "--limit", 2, "--max-new-tokens", 2,
                "--in", place / "data.jsonl", "--out", tmp_path / "1.jsonl")
    fault(again, "ArtifactError", "belongs to a run with another chat template")


def test_faults_of_data(place: Path, tmp_path: Path, run: Any) -> None:
    def answer(*given: dict[str, Any], **options: Any) -> Ran:
        more = [x for name, value in options.items() for x in (f"--{name}", value)]
        return run("generate", "--model", place / "model", "--in", rows(tmp_path, *given), "--out", tmp_path / "r", *more)  # type: ignore[no-any-return]

    fault(answer({"prompt": "hi", "label": "harmless"}), "rows.jsonl, line 1", "must be safe or unsafe; got 'harmless'")
    fault(answer({"prompt": "hi"}), "field 'label' is missing")
    fault(answer({"prompt": "hi"}, label="harmless"), "label must be one of 'safe', 'unsafe'")
    fault(answer({"prompt": "  ", "label": "safe"}), "only white space")
    fault(answer(), "holds no rows")
    fault(answer({"prompt": "x" * 600, "label": "safe"}), "ContextLengthError", "takes 512 in all; shorten the prompt")
    fault(run("generate", "--model", place / "model", "--in", tmp_path / "no.jsonl", "--out", tmp_path / "r"), "is not a file")
    assert not (tmp_path / "r").exists()


def test_faults_of_fitting(place: Path, tmp_path: Path, run: Any) -> None:
    def fit(*more: object, data: Path | None = None) -> Ran:
        given = data or place / "data.jsonl"
        return run("fit", "--model", place / "model", "--data", given, "--out", tmp_path / "s", *more)  # type: ignore[no-any-return]

    fault(fit(), "FitError", "a budget of 0.01 needs at least 99 safe requests", "got 8")
    fault(fit("--budget", 2), "SettingError", "budget must lie in [1e-06, 0.5]; got 2.0")
    fault(fit("--stages", "three"), "SettingError", "stages must be one of 'two', 'stage1', 'direct'")
    fault(fit("--readers", "tea"), "SettingError", "readers must be one of 'layers', 'window', 'text'; got 'tea'")
    fault(fit("--head", "lora"), "SettingError", "kind must be one of 'low_rank', 'full'")
    fault(fit("--beta", 3), "SettingError", "beta must lie in [0.0, 1.0]; got 3.0")
    fault(fit("--pilot", 99), "SettingError", "pilot must lie in 0..31")
    only = tmp_path / "only.jsonl"
    write_examples([e for e in requests() if e.unsafe], only)
    fault(fit(data=only), "FitError", "all unsafe; add --data with the other label")
    (tmp_path / "file").write_text("")
    ran = run("fit", "--model", place / "model", "--data", place / "data.jsonl", "--out", tmp_path / "file", *FIT)
    fault(ran, "ArtifactError", "is a file, not a folder")
    assert not (tmp_path / "s").exists()


def test_words_in_brackets_are_printed_as_they_stand(tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "[bold]" / "[/x]"
    folder.mkdir(parents=True)
    fault(run("inspect", folder), "[bold]/[/x]/config.json does not exist")


def test_an_option_that_typer_refuses_ends_in_exit_code_2(place: Path, run: Any) -> None:
    for arguments in (("generate",), ("fit", "--limit", "0"), ("nothing",), ("chat", "--model", "x", "--max-new-tokens", "0")):
        ran = run(*arguments)
        assert (ran.code, "Traceback" in ran.err) == (2, False)


def test_an_interrupt_ends_in_130_and_says_what_is_kept(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_switch", stop)
    ran = run("inspect", "x")
    assert (ran.code, "Traceback" in ran.err) == (130, False)


def test_a_switch_written_by_the_library_is_read_by_the_command_line(place: Path, run: Any) -> None:
    assert json.loads(run("inspect", place / "switch", "--json").out)["gate"]["stages"].keys() == {"stage1", "stage2", "watch"}
    assert Switch.from_pretrained(place / "switch").base == fitted().base


def test_an_example_in_a_language_with_other_letters_goes_through(place: Path, tmp_path: Path, run: Any) -> None:
    write_examples([Example("ü", (Message("user", "Wie spät ist es? 東京"),), "safe")], tmp_path / "d.jsonl")
    ran = run("generate", "--model", place / "model", "--in", tmp_path / "d.jsonl", "--out", tmp_path / "r", "--max-new-tokens", 2)
    assert ran.code == 0
    assert json.loads((tmp_path / "r").read_text(encoding="utf-8"))["prompt"] == "Wie spät ist es? 東京"
