"""The files in ``deploy/`` fit the server: its options, route, port, metrics, times and version.

Nothing is built or applied here. Linters that are not installed skip their test.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from safeswitch._version import __version__
from safeswitch.cli.serve_flags import parse_flags
from safeswitch.serving.access import OPEN_PATHS
from safeswitch.serving.policy import read_policy
from safeswitch.serving.transformers.server import TransformersSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
STATE = "/var/lib/safeswitch"
HEALTH, PORT = "/health", 8000
DRAIN_S = TransformersSettings().grace + 10
"""Seconds that the server takes at most to end: running replies' own, and uvicorn's margin."""


def settings_of(words: list[str]) -> tuple[dict[str, Any], TransformersSettings]:
    """What ``safeswitch serve`` and the engine's flags make of these words."""
    from safeswitch.cli.main import app

    command: Any = typer.main.get_command(app)
    context = command.commands["serve"].make_context("serve", list(words))
    settings, _ = parse_flags(context.args, "model")
    return context.params, settings


def tool(name: str) -> str:
    """A linter of the environment or of the machine; the test is skipped where there is none."""
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def passes(*words: str | Path) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- the container


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Containerfile with their words, continued lines joined."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    plain = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in plain.splitlines() if line]


def last(name: str) -> str:
    return [words for kind, words in instructions() if kind == name][-1]


def entrypoint() -> list[str]:
    words: list[str] = json.loads(last("ENTRYPOINT"))
    assert words[:2] == ["safeswitch", "serve"]
    return words[2:]


def test_what_is_copied_exists_and_nothing_else_is_in_the_context() -> None:
    copied = {
        source
        for kind, words in instructions()
        if kind == "COPY" and not words.startswith("--from=")
        for source in words.split()[:-1]
    }
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "src"}
    lines = (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    for source in copied:
        assert (ROOT / source).exists(), source


def test_what_is_installed_are_extras_of_the_package() -> None:
    extras = dict(words.split("=", 1) for kind, words in instructions() if kind == "ARG")["EXTRAS"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras.strip('"').split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    runs = [words for kind, words in instructions() if kind == "RUN"]
    assert [shlex.split(run)[:2] for run in runs if run.startswith("pip")] == [
        ["pip", "install"]
    ] * 2


def test_the_container_runs_as_a_user_of_its_own_on_pinned_images() -> None:
    user, _ = last("USER").split(":")
    assert int(user) > 0
    assert f"--uid {user} " in next(words for kind, words in instructions() if "useradd" in words)
    for kind, words in instructions():
        if kind == "FROM":
            assert re.match(r"docker\.io/library/python:3\.11\.\d+-slim-\w+( AS \w+)?$", words)
    assert last("STOPSIGNAL") == "SIGTERM"
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").lower()
    assert not re.search(r"password|secret|token|api_key", text)


def test_the_entrypoints_options_exist_and_fit_the_other_instructions() -> None:
    params, settings = settings_of(entrypoint())
    assert (settings.host, settings.port) == ("0.0.0.0", PORT)
    assert last("EXPOSE") == str(PORT)
    assert f":{PORT}{HEALTH}" in last("HEALTHCHECK")
    assert HEALTH in OPEN_PATHS
    assert params["audit"] == f"sqlite:///{STATE}/audit.db"
    assert json.loads(last("VOLUME")) == [STATE]
    assert last("WORKDIR") == STATE


def test_hadolint_finds_nothing() -> None:
    passes(tool("hadolint"), DEPLOY / "Containerfile")


def filled(text: str) -> str:
    """Compose's variables, by their defaults."""
    return re.sub(r"\$\{\w+:([-?])([^}]*)\}", lambda m: m[2] if m[1] == "-" else "/given", text)


def test_composes_server_is_the_container_and_its_files_exist() -> None:
    told = yaml.safe_load(filled((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    server = told["services"]["server"]
    params, settings = settings_of([*entrypoint(), *server["command"]])
    assert str(params["keys"]) == "/run/secrets/keys"
    assert params["audit_failure"] == "buffer"
    assert settings.port == PORT
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).samefile(
        DEPLOY / "Containerfile"
    )
    assert server["image"] == f"safeswitch:{__version__}"
    assert int(server["stop_grace_period"].removesuffix("s")) > DRAIN_S
    assert {v.split(":")[1]: v.endswith(":ro") for v in server["volumes"]} == {
        "/model": True, "/switch": True, STATE: False,
    }  # fmt: skip
    mounted = [v for service in told["services"].values() for v in service["volumes"]]
    for source in (v.split(":")[0] for v in mounted if v.startswith("./")):
        assert (DEPLOY / source).is_file(), source
    for port in (p for service in told["services"].values() for p in service.get("ports", ())):
        assert port.startswith("127.0.0.1:"), "nothing listens for other machines by itself"
    for service in told["services"].values():
        assert re.search(r":v?\d+\.\d+", service["image"]), "an image without a version"


def test_prometheus_reads_the_alerts_under_the_name_that_they_know() -> None:
    told = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
    assert [(DEPLOY / file).name for file in told["rule_files"]] == ["alerts.yaml"]
    (job,) = told["scrape_configs"]
    assert job["job_name"] == "safeswitch"
    assert job["static_configs"][0]["targets"] == [f"server:{PORT}"]
    alerts = (DEPLOY / "alerts.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r'job="(\w+)"', alerts)) == {"safeswitch"}


# --- systemd


def unit() -> RawConfigParser:
    found = RawConfigParser(strict=False, allow_no_value=True)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(DEPLOY / "safeswitch.service", encoding="utf-8")
    return found


def test_the_units_commands_exist_with_their_options() -> None:
    from tests.test_docs import fault_of

    service = unit()["Service"]
    params, settings = settings_of(shlex.split(service["ExecStart"])[2:])
    assert (settings.host, settings.port) == ("127.0.0.1", PORT)
    assert params["audit"] == f"sqlite:///{STATE}/audit.db"
    assert fault_of(service["ExecStartPre"]) is None
    asked = shlex.split(service["ExecStartPre"])
    for name in ("model", "keys"):
        assert asked[asked.index(f"--{name}") + 1] == str(params[name])


def test_the_unit_waits_for_running_replies_and_runs_as_nobody_special() -> None:
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"]) > DRAIN_S
    assert service["KillSignal"] == "SIGTERM"
    assert service["User"] == "safeswitch"
    assert service["WorkingDirectory"] == STATE == f"/var/lib/{service['StateDirectory']}"
    assert service["EnvironmentFile"].lstrip("-").startswith("/etc/")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    verify = tool("systemd-analyze")
    text = (DEPLOY / "safeswitch.service").read_text(encoding="utf-8")
    copy = tmp_path / "safeswitch.service"
    copy.write_text(text.replace("/opt/safeswitch/bin/safeswitch", "/bin/true"), encoding="utf-8")
    assert "safeswitch.service" not in passes(verify, "verify", "--man=no", copy)


# --- Kubernetes


def objects() -> dict[str, Any]:
    """The manifests by kind; each kind is there once."""
    found: dict[str, Any] = {}
    for path in MANIFESTS:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "kind" in told:
            assert told["kind"] not in found or path.name == "kustomization.yaml", path
            found[told["kind"]] = told
    return found


def pod() -> Any:
    return objects()["StatefulSet"]["spec"]["template"]


def container() -> Any:
    (only,) = pod()["spec"]["containers"]
    return only


def test_the_pods_arguments_exist_and_its_files_are_mounted() -> None:
    params, settings = settings_of([*entrypoint(), *container()["args"]])
    mounts = {mount["mountPath"]: mount for mount in container()["volumeMounts"]}
    for path in (params["keys"], params["policy_file"]):
        assert mounts[str(path.parent)]["readOnly"]
    for path in (params["model"], *params["switch"]):
        assert mounts[path]["readOnly"]
    assert not mounts[STATE].get("readOnly")
    volumes = {volume["name"] for volume in pod()["spec"]["volumes"]}
    volumes |= {
        c["metadata"]["name"] for c in objects()["StatefulSet"]["spec"]["volumeClaimTemplates"]
    }
    assert {mount["name"] for mount in mounts.values()} == volumes
    assert container()["ports"] == [{"name": "http", "containerPort": settings.port}]


def test_every_probe_asks_the_servers_own_route_without_a_key() -> None:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container()[name]["httpGet"]
        assert asked["path"] in OPEN_PATHS, name
        assert asked["port"] == container()["ports"][0]["name"]


def test_pods_end_in_their_own_time_and_as_no_root() -> None:
    pause = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["spec"]["terminationGracePeriodSeconds"] > DRAIN_S + pause
    user = int(last("USER").split(":")[0])
    security = pod()["spec"]["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (
        True,
        user,
        user,
    )
    assert container()["securityContext"]["readOnlyRootFilesystem"]
    assert container()["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_selector_finds_the_pod() -> None:
    labels, found = pod()["metadata"]["labels"], objects()
    selectors = [
        found["Service"]["spec"]["selector"],
        found["StatefulSet"]["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    monitor = found["ServiceMonitor"]["spec"]
    assert (
        monitor["selector"]["matchLabels"].items() <= found["Service"]["metadata"]["labels"].items()
    )
    assert [end["port"] for end in monitor["endpoints"]] == [
        port["name"] for port in found["Service"]["spec"]["ports"]
    ]
    assert monitor["endpoints"][0]["path"] == "/metrics"


def test_kustomize_puts_the_manifests_together_with_this_version() -> None:
    for folder in (DEPLOY / "kubernetes", DEPLOY / "kubernetes" / "monitoring"):
        told = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
        beside = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        others = {file for made in told.get("configMapGenerator", ()) for file in made["files"]}
        assert set(told["resources"]) | others == beside
    built = passes(tool("kubectl"), "kustomize", DEPLOY / "kubernetes")
    kinds = {one["kind"] for one in yaml.safe_load_all(built)}
    assert kinds == {
        "ServiceAccount", "Service", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap",
    }  # fmt: skip
    assert f"image: safeswitch:{__version__}" in built


def test_the_policy_can_be_used() -> None:
    read_policy(DEPLOY / "kubernetes" / "policy.yaml")


def test_manifests_fit_kubernetes_own_schema() -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="absent: pip install kubernetes-validate (108 MB)"
    )
    for told in objects().values():
        if told["apiVersion"].split("/")[0] not in (
            "kustomize.config.k8s.io",
            "monitoring.coreos.com",
        ):
            validate.validate(told, "1.31", strict=True)


# --- dashboard and alerts


def metric_labels() -> dict[str, set[str]]:
    """Every series of the guard by name, with its labels."""
    from prometheus_client.metrics import MetricWrapperBase

    from safeswitch.serving import metrics
    from safeswitch.serving.transformers import batcher

    found: dict[str, set[str]] = {}
    for one in [*vars(metrics).values(), *vars(batcher).values()]:
        if not isinstance(one, MetricWrapperBase):
            continue
        family, labels = next(iter(one.describe())), set(one._labelnames)
        if family.type == "histogram":
            found[f"{family.name}_bucket"] = labels | {"le"}
            found |= {f"{family.name}_{end}": labels for end in ("sum", "count")}
        else:
            found[f"{family.name}_total" if family.type == "counter" else family.name] = labels
    return found


KNOWN = {**metric_labels(), "up": {"job", "instance"}}


def rules() -> list[dict[str, Any]]:
    told = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in told["groups"] for rule in group["rules"]]


def dashboard() -> Any:
    return json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


def fault_of_query(expression: str) -> str:
    """What of a query the server does not have; empty where it has all of it."""
    parser = pytest.importorskip("promql_parser", reason="absent: pip install promql-parser")
    names: set[str] = set()
    labels: set[str] = set()

    def visit(node: Any) -> None:
        selector = getattr(node, "vector_selector", node)
        if isinstance(selector, parser.VectorSelector):
            names.add(selector.name)
            matched = {matcher.name for matcher in selector.matchers.matchers}
            labels.update(matched - KNOWN.get(selector.name, set()))
        if isinstance(node, parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)

    grouped: set[str] = set()
    parser.walk(parser.parse(expression), visit)
    unknown = names - set(KNOWN)
    alien = grouped - {label for name in names & set(KNOWN) for label in KNOWN[name]}
    return ", ".join(sorted(unknown | labels | alien))


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_query_names_metrics_and_labels_that_the_server_has(
    where: str, expression: str
) -> None:
    assert "safeswitch_" in expression or where == "SafeSwitchDown"
    assert fault_of_query(expression) == ""


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("safeswitch_gone", "safeswitch_gone"),
        ('safeswitch_responses_total{colour="red"}', "colour"),
        ("sum by (colour) (rate(safeswitch_responses_total[5m]))", "colour"),
    ],
)
def test_a_query_of_something_that_the_server_does_not_have_is_found(
    expression: str, wrong: str
) -> None:
    assert fault_of_query(expression) == wrong


def test_the_guide_names_metrics_that_the_server_has() -> None:
    text = (ROOT / "docs" / "guides" / "production.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(safeswitch_\w+)`", text))
    histograms = {name.removesuffix("_bucket") for name in KNOWN if name.endswith("_bucket")}
    assert told
    assert told <= set(KNOWN) | histograms


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary", "action"} == set(rule["annotations"])
        for labels in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert labels in rule["expr"] or labels in KNOWN[rule["expr"].split()[0]]
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_commands_in_the_alerts_exist() -> None:
    from tests.test_docs import fault_of

    for rule in rules():
        for said in re.findall(r"safeswitch (\w+)", rule["annotations"]["action"]):
            assert fault_of(f"safeswitch {said} -h") != ("NoSuchCommand", said)


def test_the_dashboards_panels_do_not_overlap_and_use_its_variables() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard()))) - {"__all"} == variables
