"""Pages of the documentation that are written from the code: a hook of mkdocs (``mkdocs.yml``).

Each page is made anew at every build and lies in no folder, so it cannot fall behind the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from prometheus_client.metrics import MetricWrapperBase

import safeswitch
from safeswitch.bench.benchmark import BENCHMARKS
from safeswitch.cli.main import app
from safeswitch.core.harms import HARMS
from safeswitch.engines.settings import GuardSettings
from safeswitch.methods.base import METHODS, Method
from safeswitch.probers.base import Prober
from safeswitch.serving import metrics
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers import batcher
from safeswitch.serving.vllm.fields import KINDS, ROUTES, Field, Route

ROOT = Path(__file__).parents[1]
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?(.*?)</code>")
_GENERATED = "*This page is generated from the code.*\n\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of the folder."""
    for address, write in PAGES.items():
        files.append(File.generated(config, address, content=write()))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name things as Sphinx does; the site shows the name alone."""
    return _ROLE.sub(r"<code>\1</code>", html)


def api() -> str:
    """Every public name of the package, then the contracts that extensions implement."""
    lines = ["# Python API\n", "Everything here is imported from `safeswitch` itself.\n"]
    for name in safeswitch.__all__:
        if not name.startswith("_"):
            lines.append(f"::: safeswitch.{name}\n")
    lines.append("## Contracts for extensions\n")
    lines.append("See [Add a method, prober or benchmark](../guides/extend.md).\n")
    for contract in (Method, Prober):
        lines.append(f"::: {_address(contract)}\n    options:\n      heading_level: 3\n")
    return "\n".join(lines)


def configuration() -> str:
    """The settings classes, with their defaults; and the environment variables."""
    lines = [
        "# Configuration\n",
        _GENERATED,
        (ROOT / "docs/reference/_environment.md").read_text("utf-8"),
    ]
    for owner in (safeswitch.FitSettings, safeswitch.HeadSettings, ServerSettings, GuardSettings):
        lines.append(f"::: {_address(owner)}\n    options:\n      members: false\n")
    return "\n".join(lines)


def _address(owner: type) -> str:
    return f"{owner.__module__}.{owner.__qualname__}"


def metric_table() -> str:
    """The Prometheus metrics that the guard adds to the server's own."""
    lines = [
        "# Metrics\n",
        _GENERATED,
        "The guard adds these to `/metrics`. With API keys that wants a key that may see scores. "
        "The last three are of the server on transformers; vLLM shows its own queue.\n",
        "| metric | what it counts | labels | type |",
        "|---|---|---|---|",
    ]
    for found in [*vars(metrics).values(), *vars(batcher).values()]:
        if isinstance(found, MetricWrapperBase):
            lines.append(_metric(found))
    return "\n".join(lines) + "\n"


def _metric(metric: MetricWrapperBase) -> str:
    family = next(iter(metric.describe()))
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"| `{name}` | {family.documentation} | {labels} | {family.type} |"


def kinds_of_harm() -> str:
    """The kinds of harm, and what other lists call them."""
    lines = [
        "# Kinds of harm\n",
        _GENERATED,
        "Once the gate has fired, a reader of the same hidden states says which kinds of harm it "
        "sees, with a calibrated probability each, and how severe they are: `refuse` (no help) or "
        "`careful` (help without the harmful part); `allow` stands on what did not fire. It never "
        "changes whether the gate fires. A kind with fewer than 8 rows to fit on or to calibrate "
        "on is read as `other`; the card of a switch says which (`safeswitch inspect`).\n",
        "| kind | what belongs to it | AILuminate | Llama Guard 3 | Qwen3Guard | OpenAI |",
        "|---|---|---|---|---|---|",
    ]
    for name, harm in HARMS.items():
        lists = (harm.ailuminate, harm.llama_guard, harm.qwen3guard, harm.openai)
        told = " | ".join(", ".join(names) or "–" for names in lists)
        lines.append(f"| `{name}` | {harm.means} | {told} |")
    lines.append(
        "\nWhere lists cut differently, an entry stands with every kind that it overlaps: it is "
        "no translation of one verdict into another. AILuminate's `dfm` (defamation) is part of "
        "`harassment`, and elections are part of `misinformation`.\n"
    )
    return "\n".join(lines)


def command_line() -> str:
    """Every command with its options, as the parser itself has them."""
    lines = ["# Command line\n", _GENERATED]
    lines.append("`safeswitch COMMAND --help` shows the same in a terminal. Exit codes: 0 done, ")
    lines.append("1 a check that found something, 2 a mistake in the call, 130 interrupted.\n")
    for words, command in _commands("safeswitch", typer.main.get_command(app)):
        lines += _command(words, command)
    return "\n".join(lines)


def _commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, found in sorted(inner.items()):
        yield from _commands(f"{words} {name}", found)


def _command(words: str, command: Any) -> list[str]:
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    named = " ".join(p.name for p in arguments)
    lines = [f"## {words}\n", _plain(command.help or ""), ""]
    lines.append(f"```\n{words} {named} [OPTIONS]\n```\n".replace("  ", " "))
    if arguments or options:
        lines += ["| option | default | meaning |", "|---|---|---|"]
    lines += [_row(p, f"`{p.name}`") for p in arguments]
    lines += [_row(p, ", ".join(f"`{o}`" for o in [*p.opts, *p.secondary_opts])) for p in options]
    return [*lines, ""]


def _row(param: Any, named: str) -> str:
    default = "required" if param.required else _default(param.default)
    meaning = _plain(param.help or "").replace("\n", " ").replace("|", "\\|")
    return f"| {named} | {default} | {meaning} |"


def _default(value: Any) -> str:
    if value in (None, "", ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


def _plain(text: str) -> str:
    """Help as Markdown: a placeholder such as <name> is no tag."""
    return text.replace("<", "&lt;").strip()


def catalogue() -> str:
    """Methods with their tags, and benchmarks with their cards."""
    lines = ["# Methods and benchmarks\n", _GENERATED, "## Methods\n"]
    lines.append("`--methods` takes these names, and a gate and an action joined by `+`.\n")
    lines += ["| name | what it does | engines | acts on |", "|---|---|---|---|"]
    lines += [_method(name, METHODS[name]) for name in METHODS]
    lines += [
        "",
        "## Benchmarks\n",
        "| name | what it is | requests | licence |",
        "|---|---|---|---|",
    ]
    table = BENCHMARKS
    for name in table:
        found = table[name]
        row = (f"`{name}`", found.title, found.card["Rows"], found.card["Licence"])
        lines.append(f"| {' | '.join(_plain(cell).replace('|', '/') for cell in row)} |")
    return "\n".join(lines) + "\n"


def _method(name: str, member: type[Method]) -> str:
    what = (member.__doc__ or "").strip().splitlines()[0].replace("``", "`").rstrip(".")
    acts = "requests its gate flags" if member.tags.conditional else "every request"
    return f"| `{name}` | {_plain(what)} | {', '.join(member.tags.engines)} | {acts} |"


def vllm_fields() -> str:
    """What a request to the guarded vLLM server may hold."""
    kinds = "\n".join(f"- **{kind}**: {meaning}." for kind, meaning in KINDS.items())
    bare = [f"`{route.method} {route.path}`" for route in ROUTES if not route.fields]
    head = [
        "# What a request to the guarded vLLM server may hold\n",
        _GENERATED,
        "Read in vLLM 0.32.0 and 0.33.0. Every other route is closed (404): stored responses,",
        "batches, raw tokens, beam search, pooling, speech, control and development. Every other",
        "field is refused (400) under `enforce`.\n",
        kinds,
        "",
        f"Without a body, or with one by a gateway's contract: {', '.join(bare)}.\n",
    ]
    return "\n".join([*head, *(_route(route) for route in ROUTES if route.fields)])


def _route(route: Route) -> str:
    order = list(KINDS)
    rows = sorted(route.fields.items(), key=lambda item: (order.index(item[1].kind), item[0]))
    head = f"## `{route.method} {route.path}`\n\n| field | is | values |\n|---|---|---|\n"
    return head + "\n".join(_field(name, field) for name, field in rows) + "\n"


def _field(name: str, field: Field) -> str:
    since = f" (from vLLM {field.since})" if field.since else ""
    return f"| `{name}`{since} | {field.kind} | {_values(field)} |"


def _values(field: Field) -> str:
    if field.kind == "refused":
        return " or ".join(f"`{v}`" for v in field.harmless) or "none"
    bounds = []
    if field.least is not None:
        bounds.append(f"from {field.least:.16g}")
    if field.most is not None:
        noun = "" if field.type in ("int", "number") else " entries"
        bounds.append(f"up to {field.most:.16g}{noun}")
    if field.longest is not None:
        bounds.append(f"{field.longest} characters each")
    return ", ".join([field.type, *bounds])


def from_root(name: str) -> Callable[[], str]:
    """A file of the repository's root as a page; its links into ``docs/`` become the site's own."""
    return lambda: (ROOT / name).read_text("utf-8").replace("](docs/", "](")


PAGES: dict[str, Callable[[], str]] = {
    "reference/api.md": api,
    "reference/cli.md": command_line,
    "reference/configuration.md": configuration,
    "reference/kinds.md": kinds_of_harm,
    "reference/metrics.md": metric_table,
    "reference/catalogue.md": catalogue,
    "reference/vllm-fields.md": vllm_fields,
    "contributing.md": from_root("CONTRIBUTING.md"),
    "changelog.md": from_root("CHANGELOG.md"),
}
