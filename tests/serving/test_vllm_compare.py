"""Comparing another vLLM with the installed one: what is read is true, and differences are told."""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from safeswitch.serving.checks.routes import CHECKS as READINGS
from safeswitch.serving.vllm.fields import ROUTES
from tests.engines.vllm_made import needs_vllm

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "dev" / "vllm_compare.py"))


def write(folder: Path, module: str, text: str) -> None:
    path = folder / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A package by vLLM's name."""
    write(tmp_path, "vllm.__init__", "")
    lazy = "from .b import Given as Taken\n\ndef __getattr__(name):\n    return 'lazy'\n"
    write(tmp_path, "vllm.a.__init__", lazy)
    text = (
        "from typing import ClassVar\n"
        "try:\n    import c as Tried\nexcept ImportError:\n    Tried = None\n"
        "class Base:\n    old: int\n"
        "class Given(Base):\n    new: int = 1\n    _own: int = 2\n    all: ClassVar[int] = 3\n"
        "    def run(self): return 1\n"
    )
    write(tmp_path, "vllm.a.b", text)
    routes = (
        "@router.post('/v1/new')\ndef new(): ...\n"
        "@app.get('/health')\ndef health(): ...\n"
        "router.add_api_route('/v1/more', new, methods=['POST', 'GET'])\n"
        "headers.get('/not-a-route')\n"
        "found = headers.get('/nor-this')\n"
    )
    write(tmp_path, "vllm.entrypoints.a", routes)
    return tmp_path


def test_a_name_is_found_where_an_import_would_find_it(tool: dict[str, Any], made: Path) -> None:
    tree = tool["Tree"](made)
    for there in ("a.b:Given", "a.b:Tried", "a:Taken", "a:b", "a:lazy"):
        assert tree.has(*f"vllm.{there}".split(":")), there
    for gone in ("a.b:run", "a.b:Given2", "a:eager", "gone:Given"):
        assert not tree.has(*f"vllm.{gone}".split(":")), gone


def test_fields_come_with_those_of_the_bases(tool: dict[str, Any], made: Path) -> None:
    tree = tool["Tree"](made)
    assert tree.fields("vllm.a", "Taken") == {"old": "int", "new": "int", "_own": "int"}
    with pytest.raises(LookupError, match="a:Lost is gone"):
        tree.fields("vllm.a", "Lost")
    assert tree.look_up("vllm.a:Taken.run") is not None
    assert tree.look_up("vllm.a:Taken.walk") is None


def test_routes_are_those_of_decorators_and_calls(tool: dict[str, Any], made: Path) -> None:
    expected = {("POST", "/v1/new"), ("GET", "/health"), ("POST", "/v1/more"), ("GET", "/v1/more")}
    assert tool["Tree"](made).routes() == expected


def test_a_folder_without_vllm_is_said(tool: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no vllm/"):
        tool["Tree"](tmp_path)


@needs_vllm
def test_the_trees_say_what_the_installed_classes_say(tool: dict[str, Any]) -> None:
    from vllm.sampling_params import SamplingParams

    tree = tool["installed"]()
    for spec in {spec for route in ROUTES for spec in route.model}:
        module, _, name = spec.partition(":")
        model = getattr(importlib.import_module(f"vllm.entrypoints.{module}"), name)
        read = tree.fields(f"vllm.entrypoints.{module}", name)
        assert {field for field in read if field[0] != "_"} == set(model.model_fields), spec
    read = tree.fields("vllm.sampling_params", "SamplingParams")
    assert set(read) == set(SamplingParams.__struct_fields__)


@needs_vllm
def test_what_another_one_has_changed_is_told(tool: dict[str, Any], tmp_path: Path) -> None:
    ours = tool["installed"]()
    copy = tmp_path / "vllm"
    shutil.copytree(ours.folder / "vllm", copy, ignore=not_python, copy_function=os.symlink)
    change(copy / "outputs.py", "class RequestOutput:", "class AnotherOutput:")
    change(copy / "sampling_params.py", "    n: int = 1\n", "{}    sharpness: float = 1.0\n")
    change(copy / "v1/engine/async_llm.py", "def errored(self)", "def broken(self)")
    completion = copy / "entrypoints/openai/completion"
    start = "class CompletionRequest(OpenAIBaseModel):\n"
    change(completion / "protocol.py", start, "{}    steer: str\n")
    change(completion / "protocol.py", "    echo: bool | None = False", "    echo: int = 0")
    change(completion / "api_router.py", '"/v1/completions"', '"/v2/completions"')
    own = {("POST", path) for path in READINGS}
    elsewhere = {(r.method, r.path) for r in ROUTES} - ours.routes()
    assert elsewhere == {("GET", "/metrics")} | own, "mounted, or answered by the middleware"
    told = tool["compare"](ours, tool["Tree"](tmp_path))
    assert set(told) == {
        "gone: vllm.outputs.RequestOutput",
        "gone: vllm.outputs:RequestOutput",
        "gone: vllm.v1.engine.async_llm:AsyncLLM.errored",
        "differs: vllm.sampling_params:SamplingParams",
        "not judged: SamplingParams.sharpness",
        "not judged: /v1/completions: steer",
        "differs: /v1/completions: echo: bool | None is now int",
        "new, closed: POST /v2/completions",
        "gone: POST /v1/completions",
    }


def not_python(folder: str, names: list[str]) -> set[str]:
    """Files that are left out of a copy."""
    return {name for name in names if "." in name and not name.endswith(".py")}


def change(path: Path, before: str, after: str) -> None:
    """Put a file with another text in a link's place; ``{}`` in it stands for what was there."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, before
    path.unlink()
    path.write_text(text.replace(before, after.replace("{}", before)), encoding="utf-8")
