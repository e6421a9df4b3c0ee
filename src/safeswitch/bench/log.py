"""The run folder: everything that a bench run has produced, from which tables, pictures and reports
are made.

Format version 1. All files are UTF-8; JSONL files only grow, and a torn last line does not count.
One process writes at a time (:mod:`safeswitch.core.lock`); any may read meanwhile::

    manifest.json                                     what was run, on what, by which command
    eval.yaml, compare.yaml or attack.yaml            the command's options, for its ``--config``
    methods/<method>/                                 the switch, for ``Switch.from_pretrained``
    replies/<method>/<benchmark>.jsonl                one row a request, in any order
    judgements/<method>/<benchmark>/<judge>.jsonl     one row a reply
    shards/<i>-of-<n>/                                run folders of parts of the requests, without
                                                      judgements; the run takes their replies over

Beside each JSONL file stands ``<file>.run.json``, the identity of the run that writes it (see
:mod:`safeswitch.core.lines`).

``manifest.json``::

    format_version   1
    identity         what must be the same for a run to be resumed: ``model`` (fingerprint; its
                     name at a server), ``chat_template`` (hash), ``dtype``, ``engine`` (where it
                     is not transformers: vLLM's release, or a server's address), ``suite``,
                     ``seed``, ``limit``, ``max_new_tokens``, ``versions`` (of safeswitch, torch, transformers), ``fit``
                     (on what and how methods are fitted), ``data`` (hash of the chosen requests by
                     benchmark)
    model            ``id``, ``revision``, ``fingerprint``, ``device``, ``num_layers``
    command          the words of the command that began the run
    started, finished   ISO 8601, UTC; ``finished`` is null while the run is not done
    versions         library to version, Python among them
    benchmarks       name to ``measures`` (``safety``, ``task`` or ``open``), ``title``, ``card``
                     (field to text), ``origin`` (file or hub id), ``file_hash`` (null from the
                     hub), ``data_hash``, ``n``, ``of`` (requests before the limit),
                     ``max_new_tokens``, ``judges`` (names, the one that counts first)
    missing          benchmark to the reason why it could not be loaded
    methods          name to ``switch`` (fingerprint), ``record`` (of fitting: data hashes,
                     settings, figures) and ``seconds`` (of fitting; null where a fitted switch was
                     given, or found in the folder)
    judges           name to ``identity`` and, where it was measured, ``agreement``

A row of replies::

    id, request (hash of the messages), prompt (last user turn), messages (where there are several),
    label (``safe``, ``unsafe`` or null), source, category, group, wrapper, answers, prefill, meta
    (``lang`` among it), and either

    reply, finish_reason (``stop`` or ``length``), prompt_tokens, reply_tokens, decision (see
    :class:`safeswitch.core.types.Decision`), or error (why the engine could not take the request);
    then

    seconds (wall time of the chunk, shared evenly), fed_tokens and made_tokens (prompt tokens given
    to the engine and tokens generated in all requests to it that the chunk took, shared evenly:
    more than the reply's own where a method searches, asks or throws tokens away; what a prober
    reads a second time is in neither, only in seconds), peak_bytes (largest memory of the process,
    or of the GPU where the model is there, in the chunk; null where unknown)

A row of judgements: ``id``, ``request`` (hash of request and reply), and the fields of
:class:`safeswitch.bench.verdict.Verdict` that the judge speaks of; of several rows of one reply the
last counts.

Read it through :meth:`RunLog.open` and :meth:`RunLog.rows`. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safeswitch.bench.verdict import Verdict
from safeswitch.core.artifact import read_json, write_json
from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.lines import read_rows
from safeswitch.core.types import Example
from safeswitch.data.rows import to_example

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARDS = "shards"
"""Folder of the parts of a run that several processes make."""
LATER_SETTINGS: JsonMapping = {
    "calibrate": "pooled",
    "answered": 1600,
    "opening": 0,
    "opening_weight": 1.0,
}
"""Settings of a fit, or of its refusal head, that earlier folders lack, with what was done before they
came (all requests were answered; of fits on fewer than 1,600 a part, all are)."""
RENAMED_SETTINGS: Mapping[str, str] = {"reply_tokens": "max_new_tokens"}
"""Fitting settings under the name that earlier folders have."""
_EXAMPLE = ("id", "label", "category", "source", "group", "wrapper", "answers", "meta", "prefill")


@dataclass(frozen=True)
class Logged:
    """One request, what became of it, and what the judges say.

    Args:
        example: The request; its ``reply`` is empty.
        request: Hash of its messages.
        reply: What was generated; None where the engine could not take the request.
        error: Why it could not.
        finish_reason: ``stop`` or ``length``; empty with an error.
        prompt_tokens: Templated prompt, in tokens.
        reply_tokens: Reply, in tokens, the end token included.
        decision: The gate's record, as in the file; empty with an error.
        seconds, fed_tokens, made_tokens, peak_bytes: Cost, see the module text.
        judgements: By judge.
    """

    example: Example
    request: str
    reply: str | None
    error: str | None
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int
    decision: JsonMapping
    seconds: float
    fed_tokens: float
    made_tokens: float
    peak_bytes: int | None
    judgements: Mapping[str, Verdict]

    @property
    def language(self) -> str:
        """The request's language as its benchmark writes it; empty where it says nothing."""
        return self.example.meta.get("lang", "")

    @property
    def said(self) -> str:
        """What a reader sees as the reply: a prefill, and what was generated after it."""
        return self.example.prefill + (self.reply or "")

    @property
    def answer(self) -> str:
        """Hash of request and reply: what a judgement is about."""
        return hashlib.sha256(f"{self.request} {self.reply}".encode()).hexdigest()[:16]


class RunLog:
    """A run folder, opened.

    Args:
        folder: Where it is.
        manifest: What ``manifest.json`` holds.
    """

    def __init__(self, folder: Path, manifest: JsonMapping) -> None:
        self.folder, self.manifest = folder, dict(manifest)

    @classmethod
    def open(cls, folder: str | Path) -> RunLog:
        """Open a run folder for reading.

        Raises:
            ArtifactError: no run folder, or one of another format version.
        """
        path = Path(folder) / MANIFEST
        manifest = read_json(path)
        if manifest.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"{path}: format version {manifest.get('format_version')!r} is not supported; "
                f"this library reads {FORMAT_VERSION}"
            )
        return cls(Path(folder), manifest)

    @classmethod
    def start(cls, folder: str | Path, manifest: JsonMapping) -> RunLog:
        """Begin a run, or resume the one in ``folder`` if it has the same identity; that one's
        manifest is kept.

        Raises:
            ArtifactError: a run of another identity is there, or the folder cannot be written.
        """
        path = Path(folder) / MANIFEST
        manifest = json.loads(json.dumps(manifest))
        if not path.exists():
            log = cls(Path(folder), {"format_version": FORMAT_VERSION, **manifest})
            log._write()
            return log
        log = cls.open(folder)
        now = manifest["identity"]
        before = _as_now(log.manifest["identity"], now)
        if before != now:
            differs = ", ".join(key for key in {**now, **before} if before.get(key) != now.get(key))
            raise ArtifactError(
                f"{folder} holds a run with another {differs}; name another folder or remove it"
            )
        return log

    def note(self, part: str, entries: JsonMapping) -> None:
        """Add entries to ``methods`` or ``judges``, and write the manifest; entries of the same
        name are replaced."""
        self.manifest[part] = {**self.manifest.get(part, {}), **entries}
        self._write()

    def add_judges(self, by_benchmark: Mapping[str, Sequence[str]], entries: JsonMapping) -> None:
        """Judges that come in when a run is resumed; those that were there stay, and stay in
        front."""
        for benchmark, names in by_benchmark.items():
            entry = self.manifest["benchmarks"][benchmark]
            entry["judges"] = list(dict.fromkeys([*entry["judges"], *names]))
        self.note("judges", entries)

    def finish(self, when: str | None) -> None:
        """Say when the run was done, or with None that it is running."""
        self.manifest["finished"] = when
        self._write()

    def _write(self) -> None:
        write_json(self.folder / MANIFEST, self.manifest)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order of the command."""
        return tuple(self.manifest["methods"])

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Benchmarks that were loaded, in the order of the suite."""
        return tuple(self.manifest["benchmarks"])

    def judges(self, benchmark: str) -> tuple[str, ...]:
        """Judges of a benchmark, the one that counts first."""
        return tuple(self.manifest["benchmarks"][benchmark]["judges"])

    def switch_folder(self, method: str) -> Path:
        return self.folder / "methods" / plain(method)

    def replies_path(self, method: str, benchmark: str) -> Path:
        return self.folder / "replies" / plain(method) / f"{benchmark}.jsonl"

    def shards_of(self, path: Path) -> list[Path]:
        """What shards of this run have written for one of its files, in their order."""
        return sorted(self.folder.glob(f"{SHARDS}/*/{path.relative_to(self.folder)}"))

    def judgements_path(self, method: str, benchmark: str, judge: str) -> Path:
        return self.folder / "judgements" / plain(method) / benchmark / f"{judge}.jsonl"

    def rows(self, method: str, benchmark: str) -> list[Logged]:
        """What has been generated so far, with all judgements of these very replies, sorted by id.

        Raises:
            ArtifactError: a damaged file.
        """
        path = self.replies_path(method, benchmark)
        raw = read_rows(path) if path.exists() else {}
        said: dict[str, Mapping[str, JsonMapping]] = {}
        for file in sorted(self.judgements_path(method, benchmark, "x").parent.glob("*.jsonl")):
            said[file.stem] = read_rows(file)
        rows = [_logged(row, path) for row in raw.values()]
        return sorted((_with_judgements(row, said) for row in rows), key=lambda row: row.example.id)


class LoggedRows:
    """All rows of a run, read once.

    Args:
        log: The run.
    """

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self._rows: dict[tuple[str, str], list[Logged]] = {}
        for method in log.methods:
            for benchmark in log.benchmarks:
                self._rows[method, benchmark] = log.rows(method, benchmark)

    def of(self, method: str, benchmark: str) -> list[Logged]:
        """Rows of one method on one benchmark, sorted by id."""
        return self._rows[method, benchmark]

    def each(self) -> Iterator[tuple[str, str, list[Logged]]]:
        """Benchmark, method and rows, the benchmarks in the suite's order."""
        for benchmark in self.log.benchmarks:
            for method in self.log.methods:
                yield benchmark, method, self._rows[method, benchmark]


def _as_now(identity: JsonMapping, now: JsonMapping) -> JsonObject:
    """The identity that a run folder holds, with the fitting settings that have come since at what
    was done before. (Renamed ones keep their old name in files: ``FitSettings.to_dict``.)"""
    known = (now.get("fit") or {}).get("settings")
    fit = dict(identity.get("fit") or {})
    if known is None or "settings" not in fit:
        return dict(identity)
    settings = _filled(fit["settings"], known)
    if "head" in settings and "head" in known:
        settings["head"] = _filled(settings["head"], known["head"])
    return {**identity, "fit": {**fit, "settings": settings}}


def _filled(settings: JsonMapping, known: JsonMapping) -> JsonObject:
    """``settings`` with those later ones that they lack and today's, ``known``, have."""
    later = {name: value for name, value in LATER_SETTINGS.items() if name in known}
    return {**later, **settings}


def plain(method: str) -> str:
    """A method's name as a folder: a file that it names loses its separators."""
    return method.replace("/", "_").replace("\\", "_")


def _logged(row: JsonMapping, path: Path) -> Logged:
    known = {name: row[name] for name in _EXAMPLE if name in row}
    known |= {"messages": row["messages"]} if "messages" in row else {"prompt": row["prompt"]}
    try:
        return Logged(
            to_example(known, number=0, origin="", labelled=False),
            row["request"],
            row.get("reply"),
            row.get("error"),
            row.get("finish_reason", ""),
            row.get("prompt_tokens", 0),
            row.get("reply_tokens", 0),
            row.get("decision", {}),
            row["seconds"],
            row["fed_tokens"],
            row["made_tokens"],
            row["peak_bytes"],
            {},
        )
    except KeyError as error:
        raise ArtifactError(f"{path}: row {row['id']!r} lacks the field {error}") from error


def _with_judgements(row: Logged, said: Mapping[str, Mapping[str, JsonMapping]]) -> Logged:
    own = {j: rows[row.example.id] for j, rows in said.items() if row.example.id in rows}
    about = {j: Verdict.from_dict(r) for j, r in own.items() if r["request"] == row.answer}
    return Logged(**{**row.__dict__, "judgements": about})
