"""What the server does when what it stands on breaks: does every request end well, is every
decision on record?

    python benchmarks/faults.py [--engine vllm|transformers] [--only disk,postgres,fuzz,stop,kill] [--bodies 2000]

disk      the audit's file system fills up (a small tmpfs; needs root)
postgres  PostgreSQL is stopped in the middle of a load and started again (needs its programs)
fuzz      malformed bodies: schemathesis (pip install schemathesis) over the server's own OpenAPI page, and a fuzzer of chat
          bodies
stop      the server is told to stop (SIGTERM) in the middle of a load
kill      the engine process is killed in the middle of a load (vLLM only)

In every part: each request ends in the reply that the transformers engine gives, or in an error in
OpenAI's shape; each reply has its one record; no reply is without a decision. Ends with exit code 1
where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import psutil
from benchmarks.leak import Told, body, told
from benchmarks.running import Running, free_port, serving
from sqlalchemy import create_engine, text

from safeswitch.serving.spool import Spool

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
Row = tuple[str, str]
"""Request id, and how it ended: ``replied``, ``error 503``, ``lost`` (no answer of the server at
all)."""


async def load(
    url: str,
    facts: list[Told],
    n: int,
    seconds: float,
    during: Callable[[], None] | None = None,
    name: str = "load",
) -> list[Row]:
    """``n`` requests over ``seconds``, half of them streamed; ``during`` is called after a third of
    that time."""
    draw = random.Random(1)
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one(i: int) -> Row:
            await asyncio.sleep(draw.random() * seconds)
            return f"{name}-{i}", await ask(
                client, facts[i % len(facts)], f"{name}-{i}", stream=i % 2 == 0
            )

        async def breaks() -> None:
            await asyncio.sleep(seconds / 3)
            if during is not None:
                await asyncio.to_thread(during)

        return (await asyncio.gather(breaks(), *(one(i) for i in range(n))))[1:]  # type: ignore[return-value]


async def ask(client: httpx.AsyncClient, facts: Told, name: str, *, stream: bool) -> str:
    """Send one request and hold its end against what may be said."""
    try:
        answer = await client.post(
            "/v1/chat/completions",
            json=body(facts.example, stream=stream),
            headers={"x-request-id": name},
        )
    except httpx.TransportError as error:
        return f"lost ({type(error).__name__})"
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"], answer.text
        assert not any(
            word in answer.text for word in ("Traceback", "/home", "/usr", "psycopg", "sqlite")
        ), answer.text
        return f"error {answer.status_code}"
    shown, decided = "", None
    if stream:
        for line in answer.text.splitlines():
            chunk = json.loads(line[6:]) if line.startswith("data: {") else {}
            if "error" in chunk:
                assert (
                    facts.shown.text.startswith(shown) or facts.shown.decision.stage == "watch"
                ), shown
                return f"stream ended by an error {chunk['error'].get('code')}"
            shown += "".join(
                choice["delta"].get("content") or "" for choice in chunk.get("choices", [])
            )
            decided = chunk.get("safeswitch", decided)
    else:
        shown, decided = (
            answer.json()["choices"][0]["message"]["content"],
            answer.json()["safeswitch"],
        )
    assert decided is not None, "a reply without a decision"
    assert decided["fired"] == facts.shown.decision.fired
    assert shown == facts.shown.text or facts.shown.decision.stage == "watch", (
        shown,
        facts.shown.text,
    )
    return "replied"


def alone(url: str, facts: Told, name: str) -> httpx.Response:
    """One request by itself."""
    return httpx.post(
        f"{url}/v1/chat/completions",
        json=body(facts.example),
        headers={"x-request-id": name},
        timeout=120,
    )


def recorded(url: str) -> Counter[str]:
    """Records by request id."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = Counter(
            connection.execute(text("select request_id from safeswitch_decisions")).scalars()
        )
    engine.dispose()
    return found


def report(part: str, rows: list[Row], records: Counter[str] | None) -> None:
    """Say what happened, and check the audit against it."""
    ends = Counter(end for _, end in rows)
    print(
        f"{part}: " + ", ".join(f"{number} {end}" for end, number in sorted(ends.items())),
        flush=True,
    )
    if records is not None:
        for name, end in rows:
            assert records[name] == 1 if end == "replied" else records[name] <= 1, (
                name,
                end,
                records[name],
            )
        print(
            f"{part}: {sum(records.values())} records, one for each of {ends['replied']} replies",
            flush=True,
        )


def disk(folder: Path, engine: str, facts: list[Told]) -> None:
    """Block: 503 while the disk is full. The database lies on a tmpfs of 1 MB that a file fills and
    leaves."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    url, filler = f"sqlite:///{small / 'audit.db'}", small / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass

    try:
        with serving(folder, engine, "--audit", url) as running:
            rows = asyncio.run(load(running.url, facts, 20, 2.0, name="before"))
            assert {end for _, end in rows} == {"replied"}, rows
            rows += asyncio.run(load(running.url, facts, 60, 12.0, fill))
            full = asyncio.run(load(running.url, facts, 10, 1.0, name="full"))
            filler.unlink()
            answer = alone(running.url, facts[0], "after")
            assert answer.status_code == 200, answer.text
            report("disk", [*rows, ("after", "replied")], recorded(url))
            print("disk, full: " + ", ".join(sorted({end for _, end in full})))
            assert any(end == "error 503" for _, end in rows + full)
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


@contextmanager
def database(folder: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A PostgreSQL cluster of its own: its URL, and a call that starts or stops it."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    place, port = folder / "cluster", free_port()
    place.mkdir()
    subprocess.run(["chown", "postgres", place], check=True)
    for parent in place.parents[:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)

    def run(*command: str) -> None:
        subprocess.run(
            ["runuser", "-u", "postgres", "--", *command],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )

    def control(what: str) -> None:
        extra = (
            ["-w", "-o", f"-p {port} -k {place} -c fsync=off"]
            if what == "start"
            else ["-m", "immediate"]
        )
        run(
            str(programs / "pg_ctl"),
            "-D",
            str(place / "data"),
            "-l",
            str(place / "log"),
            *extra,
            what,
        )

    run(str(programs / "initdb"), "-D", str(place / "data"), "-A", "trust", "-E", "UTF8")
    control("start")
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres?connect_timeout=3", control
    finally:
        subprocess.run(
            [
                "runuser",
                "-u",
                "postgres",
                "--",
                str(programs / "pg_ctl"),
                "-D",
                str(place / "data"),
                "-m",
                "immediate",
                "stop",
            ],
            stdout=subprocess.DEVNULL,
            check=False,
            cwd="/",
        )


def postgres(folder: Path, engine: str, facts: list[Told]) -> None:
    """Buffer: every request is answered; what waited is written back when the database is there
    again."""
    with database(folder) as (url, control):

        def drop() -> None:
            control("stop")
            time.sleep(5)
            control("start")

        with serving(folder, engine, "--audit", url, "--audit-failure", "buffer") as running:
            rows = asyncio.run(load(running.url, facts, 200, 20.0, drop))
            assert {end for _, end in rows} == {"replied"}, Counter(end for _, end in rows)
            last = alone(running.url, facts[0], "last")
            assert last.status_code == 200
            assert Spool(folder / "audit-buffer.db", 0).empty()
            report("postgres", [*rows, ("last", "replied")], recorded(url))


def fuzz(folder: Path, engine: str, facts: list[Told], bodies: int) -> None:
    """No body may end in a 5xx, in a reply without a decision, or in a server that is gone."""
    url = f"sqlite:///{folder / 'audit.db'}"
    with serving(folder, engine, "--audit", url) as running:
        ends = asyncio.run(fuzzed(running, facts, bodies - bodies // 3))
        print(
            "fuzz, chat bodies: "
            + ", ".join(f"{number} answered {status}" for status, number in sorted(ends.items())),
            flush=True,
        )
        failed = schemathesis(running.url, folder, max(1, bodies // 3 // 5))
        rows = asyncio.run(load(running.url, facts, 20, 1.0))
        assert {end for _, end in rows} == {"replied"}
        report("fuzz, afterwards", rows, recorded(url))
        assert not [status for status in ends if status >= 500], ends
        assert not failed, "schemathesis found a server error"


def schemathesis(url: str, folder: Path, each: int) -> bool:
    """Whether it found a server error with ``each`` bodies a route. It reads the server's own page
    of its interface, which the guard keeps closed on vLLM's server."""
    if httpx.get(f"{url}/openapi.json").status_code == 404:
        print("fuzz, schemathesis: not run, /openapi.json is closed on this server", flush=True)
        return False
    command = [
        str(SCHEMATHESIS), "run", f"{url}/openapi.json",
        "--checks", "not_a_server_error", "--phases", "fuzzing",
        "-n", str(each),
        "--include-path-regex", "^/(v1/(chat/)?completions|tokenize|detokenize)",
        "--mode", "all", "--request-timeout", "60", "--continue-on-failure", "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    print("\n".join(line for line in done.stdout.splitlines() if line.strip())[-3000:], flush=True)
    return done.returncode != 0


async def fuzzed(running: Running, facts: list[Told], bodies: int) -> Counter[int]:
    """Chat bodies with something wrong in them: by status, how they ended."""
    draw, ends = random.Random(2), Counter[int]()
    wrong: tuple[Any, ...] = (
        None, True, -1, 0, 1.5, 1e308, 2**70, "", "x" * 2000, "\ud800", "\x00", [], [[]], {}, {"a": {"b": []}}, ["user"],
        "user",
    )  # fmt: skip
    fields = (
        "messages", "model", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "stream_options", "seed", "logprobs",
        "top_logprobs", "logit_bias", "response_format", "tools", "tool_choice", "user", "safeswitch", "vllm_xargs",
        "min_tokens", "prompt_logprobs", "stop_token_ids", "allowed_token_ids", "bad_words", "structured_outputs", "documents",
        "chat_template",
        "continue_final_message", "add_generation_prompt", "echo", "cache_salt", "priority", "request_id", "ignore_eos",
    )  # fmt: skip

    def made() -> bytes:
        asked = body(facts[draw.randrange(len(facts))].example) | {"max_tokens": 4}
        for _ in range(draw.randint(1, 3)):
            asked[draw.choice(fields)] = draw.choice(wrong)
        if draw.random() < 0.2:
            asked["messages"] = [
                {draw.choice(("role", "content", "name")): draw.choice(wrong)}
                for _ in range(draw.randint(1, 3))
            ]
        raw = json.dumps(asked).encode()
        at = draw.randrange(len(raw))
        cut = {0: raw[:at], 1: raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :]}
        return cut.get(draw.randrange(8), raw)

    async with httpx.AsyncClient(
        base_url=running.url, timeout=120, limits=httpx.Limits(max_connections=16)
    ) as client:
        gate = asyncio.Semaphore(16)

        async def one() -> None:
            raw = made()
            async with gate:
                answer = await client.post(
                    "/v1/chat/completions",
                    content=raw,
                    headers={"content-type": "application/json"},
                )
            ends[answer.status_code] += 1
            if answer.status_code >= 500:
                print("  ", answer.status_code, raw[:300], answer.text[:300], flush=True)
            if answer.status_code == 200 and "event-stream" not in answer.headers["content-type"]:
                choices = answer.json()["choices"]
                assert all("safeswitch" in choice for choice in choices), (raw, answer.text)

        await asyncio.gather(*(one() for _ in range(bodies)))
    assert running.process.poll() is None, running.log.read_text()[-2000:]
    return ends


def stop(folder: Path, engine: str, facts: list[Told]) -> None:
    """The server is told to stop: what runs ends in its reply or in an error, and is not cut off;
    nobody new is let in."""
    url = f"sqlite:///{folder / 'audit.db'}"
    with serving(folder, engine, "--audit", url) as running:
        rows = asyncio.run(
            load(running.url, facts, 120, 6.0, lambda: running.process.send_signal(signal.SIGTERM))
        )
        code = running.process.wait(60)
        report("stop", rows, recorded(url))
        print(f"stop: the server ended with exit code {code}")
        assert {end for _, end in rows} <= {"replied", "error 503", "lost (ConnectError)"}


def kill(folder: Path, engine: str, facts: list[Told]) -> None:
    """The engine process dies: what has not been answered ends in an error, and so does what comes
    after."""
    url = f"sqlite:///{folder / 'audit.db'}"
    with serving(folder, engine, "--audit", url) as running:

        def shoot() -> None:
            children = psutil.Process(running.process.pid).children(recursive=True)
            os.kill(
                next(c.pid for c in children if "EngineCore" in " ".join([c.name(), *c.cmdline()])),
                signal.SIGKILL,
            )

        rows = asyncio.run(load(running.url, facts, 20, 2.0, name="before"))
        assert {end for _, end in rows} == {"replied"}, rows
        rows += asyncio.run(load(running.url, facts, 80, 12.0, shoot))
        report("kill", rows, recorded(url))
        assert any(end != "replied" for _, end in rows)
        code = running.process.wait(60)
        print(f"kill: the server ended by itself with exit code {code}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--only", default="disk,postgres,fuzz,stop,kill")
    parser.add_argument("--bodies", type=int, default=2000)
    args = parser.parse_args()
    if "fuzz" in args.only.split(",") and not SCHEMATHESIS.is_file():
        parser.error(f"fuzz needs schemathesis beside {sys.executable}: pip install schemathesis")
    facts = told(16)
    for part in args.only.split(","):
        if part == "kill" and args.engine != "vllm":
            print("kill: the transformers engine has no process of its own")
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "fuzz":
                fuzz(folder, args.engine, facts, args.bodies)
            else:
                {"disk": disk, "postgres": postgres, "stop": stop, "kill": kill}[part](
                    folder, args.engine, facts
                )


if __name__ == "__main__":
    main()
