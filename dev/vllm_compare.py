"""Compare another vLLM with the installed one, in everything that SafeSwitch uses of it.

    pip download --no-deps vllm==0.33.0 -d /tmp/wheel
    unzip -q /tmp/wheel/vllm-*.whl 'vllm/*.py' -d /tmp/wheel/source
    python dev/vllm_compare.py /tmp/wheel/source

The other one is read as syntax trees and never imported, so that it needs neither a GPU nor its own
torch. What is printed is for a person to judge: a name that is gone stops the server; a body that
differs is to be read; a field or parameter that no table names is refused under ``enforce``; a
route that no table names is closed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from safeswitch.serving.vllm_fields import ROUTES, Route, find

SOURCE = Path(__file__).parents[1] / "src" / "safeswitch"
USED = (
    "vllm.config.cache:CacheConfig.enable_prefix_caching",
    "vllm.config.model:ModelConfig._maybe_register_model_class_overrides",
    "vllm.config.model:ModelConfig.get_diff_sampling_param",
    "vllm.config.model:ModelConfig.logits_processors",
    "vllm.config.model:ModelConfig.logprobs_mode",
    "vllm.config.model:ModelConfig.model_class_overrides",
    "vllm.config.parallel:ParallelConfig.data_parallel_external_lb",
    "vllm.config.parallel:ParallelConfig.worker_extension_cls",
    "vllm.config.scheduler:SchedulerConfig.enable_chunked_prefill",
    "vllm.config.vllm:VllmConfig.additional_config",
    "vllm.config.vllm:VllmConfig.lora_config",
    "vllm.config.vllm:VllmConfig.shutdown_timeout",
    "vllm.config.vllm:VllmConfig.speculative_config",
    "vllm.config.vllm:VllmConfig.use_v2_model_runner",
    "vllm.engine.arg_utils:EngineArgs.additional_config",
    "vllm.engine.arg_utils:EngineArgs.generation_config",
    "vllm.engine.arg_utils:EngineArgs.logits_processors",
    "vllm.engine.arg_utils:EngineArgs.logprobs_mode",
    "vllm.engine.arg_utils:EngineArgs.model_class_overrides",
    "vllm.engine.arg_utils:EngineArgs.shutdown_timeout",
    "vllm.engine.arg_utils:EngineArgs.worker_extension_cls",
    "vllm.entrypoints.cli.serve:make_arg_parser",
    "vllm.entrypoints.serve.middleware.register:init_entrypoints_middleware",
    "vllm.envs:VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "vllm.envs:VLLM_SERVER_DEV_MODE",
    "vllm.envs:VLLM_USE_RUST_FRONTEND",
    "vllm.envs:VLLM_USE_V2_MODEL_RUNNER",
    "vllm.model_executor.layers.logits_processor:LogitsProcessor",
    "vllm.model_executor.models.interfaces:EagleModelMixin",
    "vllm.model_executor.models.interfaces:SupportsEagle3",
    "vllm.outputs:CompletionOutput",
    "vllm.outputs:RequestOutput",
    "vllm.sampling_params:SamplingParams",
    "vllm.v1.core.sched.utils:check_stop",
    "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc",
    "vllm.v1.engine.async_llm:AsyncLLM.dead_error",
    "vllm.v1.engine.async_llm:AsyncLLM.errored",
    "vllm.v1.engine.async_llm:AsyncLLM.generate",
    "vllm.v1.engine.async_llm:AsyncLLM.get_tokenizer",
    "vllm.v1.engine.async_llm:AsyncLLM.shutdown",
    "vllm.v1.sample.logits_processor:build_logitsprocs",
    "vllm.v1.sample.logits_processor.interface:LogitsProcessor",
    "vllm.v1.sample.rejection_sampler:RejectionSampler.apply_logits_processors",
    "vllm.v1.sample.sampler:Sampler.apply_logits_processors",
    "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsContext",
    "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsProcessor",
    "vllm.v1.worker.gpu.sample.logits_processor.interface:LogitsProcRequestState",
    "vllm.v1.worker.gpu.sample.sampler:Sampler.apply_sampling_params",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.sample",
    "vllm.v1.worker.worker_base:WorkerWrapperBase.init_worker",
)
"""What is relied on without being imported, or whose body matters (``docs/background/vllm.md``)."""
_METHODS = ("get", "post", "put", "patch", "delete", "websocket")


class Tree:
    """The source of one vLLM.

    Args:
        folder: The folder that holds ``vllm/``.

    Raises:
        SystemExit: it holds none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "vllm" / "__init__.py").is_file():
            raise SystemExit(f"{folder} holds no vllm/: unzip the wheel there")

    def file(self, module: str) -> Path | None:
        """The file of a module; None where there is none."""
        path = self.folder.joinpath(*module.split("."))
        for found in (path.with_suffix(".py"), path / "__init__.py"):
            if found.is_file():
                return found
        return None

    @cache  # noqa: B019  two trees live as long as the program
    def module(self, name: str) -> ast.Module | None:
        """The syntax tree of a module; None where there is none."""
        path = self.file(name)
        return None if path is None else ast.parse(path.read_text(encoding="utf-8"))

    def has(self, module: str, name: str) -> bool:
        """Whether ``from module import name`` finds something, be it a submodule or a lazy name."""
        tree = self.module(module)
        if tree is None:
            return False
        if name in _bound(tree.body) or self.file(f"{module}.{name}") is not None:
            return True
        lazy = "__getattr__" in _bound(tree.body)
        return lazy and any(isinstance(n, ast.Constant) and n.value == name for n in ast.walk(tree))

    def definition(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """Where a top-level name is defined, imports of vLLM followed, and its syntax tree."""
        tree = self.module(module)
        if tree is None:
            return None
        node = _member(tree.body, name)
        if not isinstance(node, ast.ImportFrom):
            return None if node is None else (module, node)
        source = node.module or ""
        if node.level:
            package = module.split(".") if self._is_package(module) else module.split(".")[:-1]
            upper = package[: len(package) - node.level + 1]
            source = ".".join([*upper, *([node.module] if node.module else [])])
        original = next(a.name for a in node.names if (a.asname or a.name) == name)
        return self.definition(source, original) if source.startswith("vllm") else None

    def _is_package(self, module: str) -> bool:
        path = self.file(module)
        return path is not None and path.name == "__init__.py"

    def look_up(self, spec: str) -> ast.AST | None:
        """The syntax tree of ``module:name`` or ``module:Class.member``; None where it is gone."""
        module, _, path = spec.partition(":")
        name, _, member = path.partition(".")
        found = self.definition(module, name)
        if found is None or not member:
            return None if found is None else found[1]
        return _member(getattr(found[1], "body", []), member)

    def fields(self, module: str, name: str) -> dict[str, str]:
        """Fields of a model or struct with their types, those of its bases included.

        Raises:
            LookupError: there is no such class.
        """
        found = self.definition(module, name)
        if found is None or not isinstance(found[1], ast.ClassDef):
            raise LookupError(f"{module}:{name} is gone")
        where, node = found
        declared: dict[str, str] = {}
        for base in node.bases:
            if isinstance(base, ast.Name) and self.definition(where, base.id) is not None:
                declared |= self.fields(where, base.id)
        for statement in node.body:
            if _is_field(statement):
                declared[statement.target.id] = ast.unparse(statement.annotation)
        return declared

    @cache  # noqa: B019
    def routes(self) -> frozenset[tuple[str, str]]:
        """Method and path of every route that the entry points declare."""
        found: set[tuple[str, str]] = set()
        for path in (self.folder / "vllm" / "entrypoints").rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "@" in text or "add_api_route" in text:
                found |= _routes(ast.parse(text))
        return frozenset(found)


def _bound(body: Sequence[ast.stmt]) -> set[str]:
    """Names that statements bind, those in ``if`` and ``try`` included."""
    return {name for statement in body for name in _names(statement)}


def _names(statement: ast.AST) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    elif isinstance(statement, ast.If | ast.Try):
        for inner in ast.iter_child_nodes(statement):
            yield from _names(inner)


def _member(body: Sequence[ast.stmt], name: str) -> ast.AST | None:
    """The last statement that binds ``name``."""
    found: ast.AST | None = None
    for statement in body:
        if name in _names(statement):
            found = statement
            if isinstance(statement, ast.If | ast.Try):
                inner = [n for n in ast.iter_child_nodes(statement) if isinstance(n, ast.stmt)]
                found = _member(inner, name)
    return found


def _is_field(statement: ast.stmt) -> bool:
    """Whether a statement of a class declares a field."""
    if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
        return False
    said = ast.unparse(statement)
    return "ClassVar" not in said and "PrivateAttr" not in said


def _routes(tree: ast.Module) -> set[tuple[str, str]]:
    """Routes that decorators, and statements that call ``add_api_route``, declare."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        for call in getattr(node, "decorator_list", []):
            name, path = _call(call)
            if name in _METHODS and path is not None:
                found.add((name.upper(), path))
        if isinstance(node, ast.Expr):
            name, path = _call(node.value)
            if name == "add_api_route" and path is not None:
                found |= {(method, path) for method in _methods(node.value)}
    return found


def _call(node: ast.AST) -> tuple[str, str | None]:
    """The method that is called, and its first argument where that is a path."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return "", None
    first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
    return node.func.attr, first if isinstance(first, str) and first.startswith("/") else None


def _methods(call: ast.AST) -> list[str]:
    given = [k.value for k in getattr(call, "keywords", []) if k.arg == "methods"]
    return list(ast.literal_eval(given[0])) if given else ["GET"]


def imported() -> set[tuple[str, str]]:
    """Module and name of everything that SafeSwitch imports from vLLM."""
    found: set[tuple[str, str]] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                found |= {(str(node.module), alias.name) for alias in node.names}
    return found


def names(ours: Tree, theirs: Tree) -> list[str]:
    """What is gone, and what of the things relied on has another body."""
    lines = [f"gone: {m}.{n}" for m, n in sorted(imported()) if not theirs.has(m, n)]
    for spec in USED:
        there, here = theirs.look_up(spec), ours.look_up(spec)
        if there is None or here is None:
            lines.append(f"gone{'' if there is None else ' from the installed one'}: {spec}")
        elif ast.dump(here) != ast.dump(there):
            lines.append(f"differs: {spec}")
    return lines


def fields(route: Route, ours: Tree, theirs: Tree) -> list[str]:
    """Fields of a route's request models that its table lacks, and those of another type."""
    here, there = _of_models(route, ours), _of_models(route, theirs)
    lines = [f"not judged: {route.path}: {name}" for name in sorted(set(there) - set(route.fields))]
    for name in sorted(set(here) & set(there)):
        if here[name] != there[name]:
            lines.append(f"differs: {route.path}: {name}: {here[name]} is now {there[name]}")
    return lines


def _of_models(route: Route, tree: Tree) -> dict[str, str]:
    """Fields of all request models of a route."""
    found: dict[str, str] = {}
    for spec in route.model:
        module, _, name = spec.partition(":")
        found |= tree.fields(f"vllm.entrypoints.{module}", name)
    # pydantic takes a name with an underscore for the model's own
    return {name: type_ for name, type_ in found.items() if not name.startswith("_")}


def parameters(theirs: Tree) -> list[str]:
    """Sampling parameters that no table names, and such as are gone."""
    from safeswitch.engines.vllm import sampling

    there = set(theirs.fields("vllm.sampling_params", "SamplingParams"))
    known = sampling.SHARED | sampling.NEUTRAL | sampling.BENDING | set(sampling.REFUSED)
    new = [f"not judged: SamplingParams.{name}" for name in sorted(there - known)]
    return new + [f"gone: SamplingParams.{name}" for name in sorted(known - there)]


def routes(ours: Tree, theirs: Tree) -> list[str]:
    """Routes that are new (closed, unless a table opens them), and open ones that are gone."""
    here, there = ours.routes(), theirs.routes()
    lines = []
    for method, path in sorted(there - here):
        lines.append(f"new, {'closed' if find(method, path) is None else 'open'}: {method} {path}")
    lost = {(r.method, r.path) for r in ROUTES} & (here - there)
    return lines + [f"gone: {method} {path}" for method, path in sorted(lost)]


def compare(ours: Tree, theirs: Tree) -> list[str]:
    """Every difference, a line each."""
    lines = names(ours, theirs)
    for route in ROUTES:
        if route.model:
            lines += fields(route, ours, theirs)
    return lines + parameters(theirs) + routes(ours, theirs)


def installed() -> Tree:
    """The installed vLLM.

    Raises:
        SystemExit: none is installed.
    """
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SystemExit("no vLLM is installed to compare with (make test installs one)")
    return Tree(Path(spec.origin).parents[1])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    for line in compare(installed(), Tree(Path(sys.argv[1]))):
        print(line)
