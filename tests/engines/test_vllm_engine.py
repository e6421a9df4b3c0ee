"""The guard in a real vLLM engine on the CPU: the transformers engine is the independent
expectation.

The engine under test prefills in chunks, caches prefixes and has room for about half of its
requests, so that it preempts.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from safeswitch.core.errors import ContextLengthError, DataError, FingerprintError, SettingError
from safeswitch.core.types import Reply
from safeswitch.engines.context import CONTEXT, Context
from safeswitch.engines.settings import GuardSettings
from safeswitch.switch.gate import Gate
from tests.engines.vllm_asked import (
    ROWS,
    assert_same,
    be_late,
    collect,
    expected,
    facts,
    sampling,
    sent,
    unwatched,
)
from tests.engines.vllm_made import (
    NEW,
    needs_vllm,
    reference,
    saved,
    switch,
    vllm_engine,
    vllm_options,
)

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    made = vllm_engine("llama", num_gpu_blocks_override=14)
    yield made
    made.close()


@pytest.fixture(scope="module")
def unchunked() -> Iterator[Any]:
    """An engine in which nothing but stage 2 holds replies back, and which reads prompts whole, so
    that it takes seeds."""
    made = vllm_engine(
        "llama", switch=unwatched(), enable_chunked_prefill=False, max_num_batched_tokens=1024
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def stock() -> Iterator[Any]:
    """An engine with nothing of ours in it."""
    from safeswitch.engines.vllm.engine import VLLMEngine

    made = VLLMEngine(saved("llama"), None, **vllm_options())
    yield made
    made.close()


def preempted(engine: Any) -> float:
    """Requests that engines of this process have put off so far."""
    from prometheus_client import REGISTRY

    engine._wait(engine.llm.do_log_stats())
    samples = [
        s
        for metric in REGISTRY.collect()
        for s in metric.samples
        if s.name == "vllm:num_preemptions_total"
    ]
    return sum(s.value for s in samples)


def test_the_engine_does_preempt(engine: Any) -> None:
    # first of all tests here: the next engine takes the counters of this one out of the registry;
    # long replies that no stop token ends: however slowly requests arrive, they outgrow the cache
    # together
    sent(engine, sampling("FINAL_ONLY", max_tokens=8 * NEW, ignore_eos=True), "off")
    assert preempted(engine) > 0


def test_all_at_once_equals_the_transformers_engine(engine: Any) -> None:
    want = expected("llama")
    assert_same(engine.generate(ROWS, max_new_tokens=NEW), want)
    stages = {(reply.decision.stage, reply.decision.fired) for reply in want}
    assert {("stage2", True), ("watch", True), ("watch", False)} <= stages


def test_one_after_the_other_equals_the_transformers_engine(engine: Any) -> None:
    want = expected("llama")
    for i in range(0, 80, 8):
        assert_same(engine.generate([ROWS[i]], max_new_tokens=NEW), [want[i]])


def test_replies_shorter_than_the_pilot_are_judged_too(engine: Any) -> None:
    for new in (1, 2):
        assert_same(
            engine.generate(ROWS, max_new_tokens=new), expected("llama", max_new_tokens=new)
        )


def test_unflagged_requests_equal_the_unguarded_engine(engine: Any) -> None:
    bias = {"logit_bias": {0: -100.0}}
    plain = [
        outs[-1].outputs[0].token_ids
        for outs in sent(engine, sampling("FINAL_ONLY", **bias), "off")
    ]
    for reply, tokens in zip(engine.generate(ROWS, max_new_tokens=NEW), plain, strict=True):
        if not reply.decision.fired:
            assert list(reply.token_ids) == list(tokens)


def test_observing_changes_nothing_and_says_what_would_have_fired(engine: Any) -> None:
    plain = [outs[-1].outputs[0].token_ids for outs in sent(engine, sampling("FINAL_ONLY"), "off")]
    watched = sent(engine, sampling("FINAL_ONLY"), "observe")
    enforced = engine.generate(ROWS, max_new_tokens=NEW)
    assert [outs[-1].outputs[0].token_ids for outs in watched] == plain
    decisions = [outs[-1].safeswitch for outs in watched]
    assert any(d.fired for d in decisions)
    assert {d.actuator for d in decisions} == {"none"}
    for d, reply, tokens in zip(decisions, enforced, plain, strict=True):
        if 0 not in tokens:
            assert (d.fired, d.stage) == (reply.decision.fired, reply.decision.stage)


def test_streams_show_decided_tokens_only_and_end_in_the_same_reply(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = expected("llama")
    monkeypatch.setattr(
        engine.llm.safeswitch, "_peek", None
    )  # nobody is asked, so no first token waits for an answer
    plain = [
        outs[-1].outputs[0]
        for outs in sent(engine, sampling("FINAL_ONLY", logit_bias={0: -100.0}), "off")
    ]
    for reply, outs, base in zip(want, sent(engine, sampling("DELTA")), plain, strict=True):
        assert outs[-1].finished
        assert outs[-1].safeswitch.fired == reply.decision.fired
        text, tokens = (
            "".join(o.outputs[0].text for o in outs),
            [t for o in outs for t in o.outputs[0].token_ids],
        )
        shown = len(tokens) - len(reply.token_ids)
        assert tuple(tokens[shown:]) == reply.token_ids
        assert text.endswith(reply.text.rstrip("\ufffd"))
        if not reply.decision.fired:
            assert shown == 0
            continue
        cleared = max(0, reply.decision.token_index - 2) if reply.decision.stage == "watch" else 0
        assert shown <= cleared, "a token was shown on which the gate had not spoken"
        assert tokens[:shown] == list(base.token_ids[:shown])
        assert ("\n\n" in text) >= (shown > 0)


@pytest.mark.parametrize("late", [0.0, 0.05], ids=["prompt", "late"])
def test_streams_say_which_of_their_tokens_are_a_refusals(
    engine: Any, late: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_late(engine, late, monkeypatch)
    want = expected("llama")
    for reply, outs in zip(want, sent(engine, sampling("DELTA"), tell_refusals=True), strict=True):
        refusal = [t for o in outs if o.refusing for t in o.outputs[0].token_ids]
        assert refusal == (list(reply.token_ids) if reply.decision.fired else [])


def single(engine: Any, i: int, params: Any) -> list[Any]:
    rows = reference("llama").lm.encode([ROWS[i]])
    result: list[Any] = engine._wait(collect(engine, rows, params))[0]
    return result


def test_several_choices_are_each_decided(unchunked: Any) -> None:
    """One request at a time: vLLM 0.32's V1 runner dies on the CPU when a seeded prompt is
    prefilled in chunks."""
    params = {"n": 3, "temperature": 1.0, "seed": 7, "logit_bias": {0: -100.0}}
    for i in (0, 3, 10, 11):
        outs = single(unchunked, i, sampling("FINAL_ONLY", **params))
        assert len(outs) == 1
        assert [c.index for c in outs[0].outputs] == [0, 1, 2]
        for k, choice in enumerate(outs[0].outputs):
            alone = single(
                unchunked, i, sampling("FINAL_ONLY", **{**params, "n": 1, "seed": 7 + k})
            )
            assert choice.token_ids == alone[-1].outputs[0].token_ids
        streamed = single(unchunked, i, sampling("DELTA", **params))
        assert sorted(o.outputs[0].index for o in streamed if o.outputs[0].finish_reason) == [
            0,
            1,
            2,
        ]
        assert [o.finished for o in streamed].count(True) == 1
        assert streamed[-1].finished


def test_a_seed_gives_the_same_reply_in_any_company(unchunked: Any) -> None:
    options = {"do_sample": True, "temperature": 1.0, "max_new_tokens": NEW}
    together = unchunked.generate(ROWS[:4], seed=3, **options)
    assert len({reply.token_ids for reply in together}) > 1
    for i in range(4):
        assert facts(unchunked.generate([ROWS[i]], seed=[3 + i], **options)[0]) == facts(
            together[i]
        )


@pytest.mark.parametrize("late", [0.0, 0.05], ids=["prompt", "late"])
def test_stop_strings_hold_on_both_sides(
    engine: Any, late: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM finds stop strings in the front end; when that is late, the workers have read past the
    end of the reply."""
    be_late(engine, late, monkeypatch)
    want = expected("llama")
    plain, turned = (
        next(r for r in want if not r.decision.fired),
        next(r for r in want if r.decision.stage == "stage2"),
    )
    stops = [
        next(c for c in r.text[2:] if c.isprintable() and ord(c) < 128) for r in (plain, turned)
    ]
    assert_same(
        engine.generate(ROWS, max_new_tokens=NEW, stop_strings=stops),
        expected("llama", stop_strings=stops),
    )


def test_logprobs_are_those_of_the_tokens_shown(engine: Any) -> None:
    for outs in sent(engine, sampling("FINAL_ONLY", logprobs=1), count=24):
        choice = outs[-1].outputs[0]
        assert len(choice.logprobs) == len(choice.token_ids)
        assert all(
            token in table for token, table in zip(choice.token_ids, choice.logprobs, strict=True)
        )


def constraints(name: str) -> dict[str, Any]:
    from vllm.sampling_params import StructuredOutputsParams

    return {
        "min_tokens": {"min_tokens": NEW},
        "regex": {"structured_outputs": StructuredOutputsParams(regex="[ab]{6}")},
        "bias": {"logit_bias": {60: 100.0}},
        "allowed": {"allowed_token_ids": [40, 41]},
        "penalty": {"repetition_penalty": 1.9, "presence_penalty": 1.5},
        "hot": {"temperature": 1.9},
    }[name]


@cache
def refusals() -> list[Reply]:
    """Replies under a head that is always on."""
    return expected("llama", replace(switch("llama"), gate=Gate(always=True)))


@pytest.mark.parametrize("name", ["min_tokens", "regex", "bias", "allowed", "penalty"])
def test_what_stage_1_does_not_clear_is_refused_outside_the_clients_constraints(
    engine: Any, name: str
) -> None:
    """The refusal is the one of a head that is always on, token for token."""
    bent = constraints(name)
    plain = sent(engine, sampling("FINAL_ONLY", **bent), "off")
    for kind in ("FINAL_ONLY", "DELTA"):
        outs = sent(engine, sampling(kind, **bent))
        seen = set()
        for own, refusal, bare, out in zip(expected("llama"), refusals(), plain, outs, strict=True):
            decision = out[-1].safeswitch
            tokens = tuple(t for o in out for t in o.outputs[0].token_ids)
            cleared = own.decision.scores["stage1"] <= own.decision.thresholds["stage1"]
            seen.add((cleared, decision.stage))
            if not cleared:
                assert (decision.fired, decision.stage, decision.token_index) == (True, "stage1", 0)
                assert tokens == refusal.token_ids
            elif not decision.fired and 0 not in bare[-1].outputs[0].token_ids:
                assert tokens == tuple(bare[-1].outputs[0].token_ids), (
                    "cleared: as the client asked"
                )
            elif decision.fired:
                assert decision.stage == "watch"
                assert tokens[-len(refusal.token_ids) :] == refusal.token_ids
        assert {(True, "watch"), (False, "stage1")} <= seen


def test_a_hot_request_is_refused_at_a_temperature_that_leaves_the_refusal_whole(
    engine: Any,
) -> None:
    judged = expected("llama")
    outs = sent(engine, sampling("FINAL_ONLY", **constraints("hot")))
    for own, out in zip(judged, outs, strict=True):
        cleared = own.decision.scores["stage1"] <= own.decision.thresholds["stage1"]
        if not cleared:
            assert out[-1].safeswitch.stage == "stage1"


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt_logprobs": 1},
        {"thinking_token_budget": 3},
        {"trace_decode_token_ids": [5, 6]},
        {"allowed_token_ids": [0]},
    ],
)
def test_what_no_run_may_have_is_refused_by_name(engine: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(asked))):
        sent(engine, sampling("FINAL_ONLY", **asked), count=1)


def test_a_prompt_that_goes_on_behind_the_mark_of_a_reply_is_refused(engine: Any) -> None:
    from vllm.inputs import tokens_input

    row = reference("llama").lm.encode([ROWS[0]])[0]

    async def begun() -> None:
        async for _ in engine.llm.generate(tokens_input([*row, 70, 71]), sampling(), "begun"):
            pass

    with pytest.raises(Exception, match="prefilled replies"):
        engine._wait(begun())


def test_a_conversation_whose_system_text_was_dropped_is_refused(engine: Any) -> None:
    from vllm.inputs import tokens_input

    row = reference("llama").lm.encode([ROWS[0]])[0]

    async def asked(text: str) -> None:
        CONTEXT.set(Context(chat=True, system=(text,)))
        async for _ in engine.llm.generate(tokens_input(row), sampling(), f"system-{text}"):
            pass

    engine._wait(asked(ROWS[0].messages[0].content))
    with pytest.raises(Exception, match="drops the system turn"):
        engine._wait(asked("Answer in French."))


def test_abandoned_requests_leave_the_engine_and_its_memory(engine: Any) -> None:
    from vllm.inputs import tokens_input

    rows = reference("llama").lm.encode(ROWS)

    async def leave() -> None:
        async def one(i: int) -> None:
            async for _ in engine.llm.generate(
                tokens_input(rows[i]), sampling("DELTA", max_tokens=100), f"leaves-{i}"
            ):
                await asyncio.sleep(3600)

        tasks = [asyncio.create_task(one(i)) for i in range(40)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while engine.llm.get_num_unfinished_requests():
            await asyncio.sleep(0.01)

    engine._wait(asyncio.wait_for(leave(), 60))
    left = engine._wait(engine.llm.collective_rpc("safeswitch_rows"))
    assert max(left) == 0
    assert_same(engine.generate(ROWS[:8], max_new_tokens=NEW), expected("llama")[:8])


def test_thresholds_change_without_a_restart(engine: Any) -> None:
    before = engine.set_thresholds({})
    try:
        engine.set_thresholds({"stage1": 1.0, "watch": 1.0})
        assert not any(reply.decision.fired for reply in engine.generate(ROWS, max_new_tokens=NEW))
    finally:
        engine.set_thresholds(before)
    assert_same(engine.generate(ROWS[:8], max_new_tokens=NEW), expected("llama")[:8])


def test_a_client_may_not_choose_its_policy_unless_it_was_told_so(engine: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="may not set"):
        sent(engine, sampling("FINAL_ONLY", extra_args={"safeswitch": "off"}), count=1)


def test_a_request_that_comes_around_the_front_end_is_refused(engine: Any) -> None:
    from vllm.inputs import tokens_input

    async def around() -> None:
        front = engine.llm.safeswitch
        async for _ in front._generate(tokens_input([1, 5, 5]), sampling("FINAL_ONLY"), "around"):
            pass

    with pytest.raises(Exception, match="front end"):
        engine._wait(around())


def test_bad_input_is_named(engine: Any) -> None:
    with pytest.raises(ContextLengthError, match="takes 256 in all"):
        engine.generate(["x" * 400], max_new_tokens=NEW)
    with pytest.raises(SettingError, match="colour"):
        engine.generate(["x"], colour=1)
    with pytest.raises(SettingError, match="once"):
        engine.generate(["x"], switch("llama"))
    with pytest.raises(DataError, match="prompt 1 ends in a prefilled reply"):
        engine.generate(["x", replace(ROWS[0], prefill="Sure")])


def test_streams_without_a_watch_never_show_a_pilot_token(unchunked: Any) -> None:
    """Some of these replies end before stage 2 is due."""
    for new in (1, 2, 3, NEW):
        want = expected("llama", unwatched(), max_new_tokens=new)
        assert {reply.decision.fired for reply in want} == {True, False}
        for _ in range(3):
            for reply, outs in zip(
                want, sent(unchunked, sampling("DELTA", max_tokens=new)), strict=True
            ):
                assert tuple(t for o in outs for t in o.outputs[0].token_ids) == reply.token_ids
                assert outs[-1].safeswitch.fired == reply.decision.fired


def test_what_would_get_around_the_guard_is_refused(engine: Any) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.inputs import tokens_input

    async def ask(prompt: Any, params: Any) -> None:
        async for _ in engine.llm.generate(prompt, params, "asks"):
            pass

    tokens = tokens_input([1, 5, 5])
    for prompt, params, match in (
        (tokens, sampling("FINAL_ONLY", prompt_logprobs=1), "prompt_logprobs"),
        (tokens, sampling("FINAL_ONLY", thinking_token_budget=3), "thinking_token_budget"),
        (tokens, sampling("FINAL_ONLY", seed=1), "seed is not served here"),
        ({"type": "embeds"}, sampling("FINAL_ONLY"), "text only"),
        ({"type": "multimodal", "prompt_token_ids": [1, 5]}, sampling("FINAL_ONLY"), "text only"),
        (tokens_input([5] * 255), sampling("FINAL_ONLY"), "no room"),
    ):
        with pytest.raises(VLLMValidationError, match=match):
            engine._wait(ask(prompt, params))


def test_a_reply_that_fills_the_context_is_still_read_at_its_end(engine: Any) -> None:
    prompt = reference("llama").lm.encode([ROWS[0]])[0]
    for length in (250, 253, 254):
        row = [*([70] * (length - len(prompt))), *prompt]
        outs = engine._wait(collect(engine, [row], sampling("FINAL_ONLY", max_tokens=50)))[0]
        choice = outs[-1].outputs[0]
        assert outs[-1].safeswitch.stage in ("stage1", "stage2", "watch")
        assert (len(choice.token_ids), choice.finish_reason) == (255 - length, "length")


def test_a_decision_is_told_however_often_its_reader_is_cancelled(engine: Any) -> None:
    from vllm.inputs import tokens_input

    rows, told = reference("llama").lm.encode(ROWS), []

    async def slowly(decided: Any) -> None:
        await asyncio.sleep(0.05)
        told.append(decided.text)

    async def leave() -> None:
        async def one(i: int) -> None:
            CONTEXT.set(Context(on_decision=slowly))
            async for _ in engine.llm.generate(
                tokens_input(rows[i]), sampling("DELTA", max_tokens=100), f"cancelled-{i}"
            ):
                pass

        tasks = [asyncio.create_task(one(i)) for i in range(8)]
        await asyncio.sleep(0.5)
        while not all(task.done() for task in tasks):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.001)
        while len(told) < 8:
            await asyncio.sleep(0.01)

    engine._wait(asyncio.wait_for(leave(), 60))
    said = [reference("llama").lm.prompt_text(rows[i]) for i in range(8)]
    assert sorted(told) == sorted(said)


def test_logprobs_are_those_of_the_head_that_spoke(engine: Any) -> None:
    """Greedily decoded, every shown token is the likeliest of its own distribution, on both sides
    of the switch."""
    outs = sent(engine, sampling("FINAL_ONLY", logprobs=0), count=24)
    assert {o[-1].safeswitch.fired for o in outs} == {True, False}
    for o in outs:
        choice = o[-1].outputs[0]
        assert all(
            table[token].rank == 1
            for token, table in zip(choice.token_ids, choice.logprobs, strict=True)
        )


@pytest.mark.parametrize("name", ["qwen3", pytest.param("gemma3_text", marks=pytest.mark.extended)])
def test_other_architectures_equal_the_transformers_engine(name: str) -> None:
    """All at once, with prefill in chunks, cached prefixes and preemption; then one by one; and the
    engine without a guard."""
    bias = {"logit_bias": {0: -100.0}}
    with vllm_engine(name, num_gpu_blocks_override=24) as made:
        before = preempted(made)
        want = expected(name)
        assert_same(made.generate(ROWS, max_new_tokens=NEW), want)
        assert preempted(made) > before
        for i in range(0, 80, 10):
            assert_same(made.generate([ROWS[i]], max_new_tokens=NEW), [want[i]])
        plain = [
            outs[-1].outputs[0].token_ids
            for outs in sent(made, sampling("FINAL_ONLY", **bias), "off")
        ]
        safe = [
            (reply, tokens)
            for reply, tokens in zip(want, plain, strict=True)
            if not reply.decision.fired
        ]
        assert safe
        assert all(list(reply.token_ids) == list(tokens) for reply, tokens in safe)


def test_unflagged_requests_equal_a_stock_engine_and_with_the_off_switch_all_do(
    engine: Any, stock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = sampling("FINAL_ONLY", logit_bias={0: -100.0})
    plain = [outs[-1].outputs[0].token_ids for outs in sent(stock, params)]
    guarded = [outs[-1].outputs[0].token_ids for outs in sent(engine, sampling("FINAL_ONLY"))]
    fired = [reply.decision.fired for reply in expected("llama")]
    assert {
        one == other
        for one, other, flagged in zip(plain, guarded, fired, strict=True)
        if not flagged
    } == {True}
    assert any(
        one != other for one, other, flagged in zip(plain, guarded, fired, strict=True) if flagged
    )
    monkeypatch.setenv("SAFESWITCH_OFF", "1")
    with vllm_engine("llama") as off:
        assert [outs[-1].outputs[0].token_ids for outs in sent(off, params)] == plain


def test_two_workers_that_share_a_model_decide_alike() -> None:
    with vllm_engine("llama", tensor_parallel_size=2) as made:
        assert_same(made.generate(ROWS, max_new_tokens=NEW), expected("llama"))


@pytest.mark.parametrize(
    ("parts", "said"), [("nothing", "no 'safeswitch' entry"), ("settings", "not at work")]
)
def test_a_server_whose_requests_would_pass_unguarded_does_not_start(
    parts: str, said: str, engine: Any, stock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeswitch.serving.settings import ServerSettings
    from safeswitch.serving.vllm.plugin import SafeSwitchMiddleware

    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append("started")

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(event: Any) -> None:
        told.append(event)

    def start(client: Any) -> Any:
        state = SimpleNamespace(state=SimpleNamespace(engine_client=client))
        return SafeSwitchMiddleware(app, ServerSettings())(
            {"type": "lifespan", "app": state}, receive, send
        )

    entry = (
        {"safeswitch": GuardSettings({"default": "/nowhere"}).to_dict()}
        if parts == "settings"
        else {}
    )
    # workers that were started without our extension, whatever the entry says now
    monkeypatch.setattr(stock.llm.vllm_config, "additional_config", entry)
    stock._wait(start(stock.llm))
    assert [event["type"] for event in told] == ["lifespan.startup.failed"]
    assert said in told[0]["message"]
    engine._wait(start(engine.llm))
    assert told[1:] == ["started"]


def test_worker_and_engine_may_share_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do on one GPU; on the CPU vLLM has to be told so."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with vllm_engine("llama", num_gpu_blocks_override=14) as made:
        assert made.llm.vllm_config.parallel_config.distributed_executor_backend == "uni"
        assert_same(made.generate(ROWS, max_new_tokens=NEW), expected("llama"))


@pytest.mark.parametrize(("patience", "ended"), [(30, True), (0, False)])
def test_an_engine_is_stopped_when_the_servers_requests_have_ended_or_the_time_is_over(
    patience: int, ended: bool
) -> None:
    from safeswitch.engines.vllm.install import Door, draining

    found: list[tuple[bool, int]] = []
    engine, left = (
        SimpleNamespace(vllm_config=SimpleNamespace(shutdown_timeout=patience)),
        threading.Event(),
    )
    shutdown = draining(
        lambda self, timeout: found.append((Door.of(self).closed, Door.of(self).inside))
    )

    def request() -> None:
        with Door.of(engine):
            inside.set()
            left.wait(30)

    inside, visitor = threading.Event(), threading.Thread(target=request)
    visitor.start()
    inside.wait()
    threading.Timer(0.3, left.set).start()
    shutdown(engine, 30)
    assert found == [(True, 0 if ended else 1)]
    visitor.join()


def test_an_engine_in_which_the_guard_would_not_work_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from safeswitch.engines.settings import GuardSettings
    from safeswitch.engines.vllm.load import load_tenants, refuse_unless_supported
    from safeswitch.engines.vllm.settings import EXTENSION, LOGPROBS, PROCESSOR

    class Fake:
        def __init__(self, **fields: Any) -> None:
            self.__dict__.update(fields)

    def config(**changes: Any) -> Fake:
        given: dict[str, Any] = {
            "processors": [PROCESSOR], "extension": EXTENSION, "overrides": {"LlamaForCausalLM": "x"}, "speculative": None,
            "engines": 1, "logprobs": LOGPROBS, "v2": False, "lora": None, **changes,
        }  # fmt: skip
        text = Fake(num_hidden_layers=3, hidden_size=64, vocab_size=264)
        model = Fake(
            logits_processors=given["processors"],
            model_class_overrides=given["overrides"],
            model=str(saved("llama")),
            revision=None,
            trust_remote_code=False,
            hf_text_config=text,
            dtype=None,
            logprobs_mode=given["logprobs"],
        )
        parallel = Fake(
            worker_extension_cls=given["extension"],
            data_parallel_size=given["engines"],
            data_parallel_external_lb=False,
        )
        return Fake(
            model_config=model,
            parallel_config=parallel,
            speculative_config=given["speculative"],
            use_v2_model_runner=given["v2"],
            lora_config=given["lora"],
        )

    settings = GuardSettings({"default": "/nowhere"})
    refuse_unless_supported(config(), settings)
    refuse_unless_supported(config(v2=True), replace(settings, try_v2_runner=True))
    for changes, match in (
        ({"processors": []}, "logits-processors"), ({"extension": ""}, "extension"), ({"overrides": {}}, "overrides"),
        ({"speculative": object()}, "speculative"), ({"engines": 2}, "load balancer"),
        ({"logprobs": "raw_logprobs"}, "unguarded head"),
        ({"v2": True}, "V2 model runner"), ({"lora": object()}, "LoRA adapters"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=match):
            refuse_unless_supported(config(**changes), settings)
    refuse_unless_supported(config(lora=object()), replace(settings, allow_other_model=True))
    with pytest.raises(SettingError, match="additional_config"):
        refuse_unless_supported(config(), None)
    monkeypatch.setattr("vllm.__version__", "0.31.1")
    with pytest.raises(SettingError, match=r"made for vLLM 0.32 or 0.33; this is 0.31.1"):
        refuse_unless_supported(config(), settings)
    monkeypatch.undo()
    other = saved("qwen3").parent / "of-qwen3"
    switch("qwen3").save_pretrained(other)
    with pytest.raises(FingerprintError, match="fingerprint"):
        load_tenants(config(), GuardSettings({"default": str(other)}))
