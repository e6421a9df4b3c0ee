// One request on its way: what the server tells of it, taken in event by event.

import { reply } from "./api.js";
import { card, state, update } from "./state.js";
import { count, number, reason, stageName } from "./words.js";

const PACE_MS = 70; // between two tokens, at a readable pace

/** A side of a turn: the reply under one policy. policy is undefined for the server's own. */
function newSide(title, policy) {
  return {
    title,
    policy,
    tokens: [], // all that were written: {text, score, kind}
    run: 0, // where in tokens the reply begins that is being written
    refuses: false, // whether that reply is the switch's, which no stage reads
    shown: 0, // tokens of it that are decided
    scored: 0, // tokens of it that have their score
    text: "",
    steps: [],
    readings: { stage1: undefined, stage2: undefined, watch: [], unseen: undefined },
    decision: null,
    status: "waiting",
    problem: "",
  };
}

/** Send the draft, and take in both replies. */
export async function send(text) {
  const messages = [...(state.goesOn ? spoken() : []), { role: "user", content: text }];
  const turn = { text, prompt: [], guarded: newSide("Guarded", undefined), plain: null };
  if (state.about.policies.includes("off")) turn.plain = newSide("Unguarded", "off");
  state.turns = [...state.turns, turn];
  state.draft = "";
  state.busy = new AbortController();
  state.said = "";
  update();
  const sides = [turn.guarded, turn.plain].filter(Boolean);
  await Promise.all(sides.map((side) => follow(turn, side, messages)));
  state.busy = null;
  state.said = `${verdict(turn.guarded)} The reply: ${turn.guarded.text}`;
  update();
}

/** The turns so far, as the guarded side has them: both sides answer the same conversation. */
function spoken() {
  return state.turns.flatMap((turn) => [
    { role: "user", content: turn.text },
    { role: "assistant", content: turn.guarded.text },
  ]);
}

async function follow(turn, side, messages) {
  try {
    for await (const event of reply(messages, side.policy, state.busy.signal)) {
      side.status = "writing";
      take(turn, side, event);
      update();
      if (state.paced && event.type === "written") await pause();
    }
    if (side.status !== "done") side.problem = "the reply broke off";
  } catch (error) {
    side.problem = error.name === "AbortError" ? "stopped" : error.message;
  }
  side.status = "done";
  update();
}

function pause() {
  return new Promise((go) => setTimeout(go, PACE_MS));
}

const TAKEN = {
  prompt: (turn, side, event) => {
    turn.prompt = event.tokens.map((token) => ({ ...token, kind: "", read: true }));
  },
  written: (turn, side, event) => {
    const at = side.tokens.length - side.run + 1;
    side.tokens.push({ text: event.text, score: null, kind: "held", read: isRead(side, at) });
  },
  score: (turn, side, event) => {
    const token = side.tokens[side.run + side.scored];
    if (token) token.score = event.score;
    side.scored += 1;
  },
  shown: (turn, side, event) => {
    const token = side.tokens[side.run + side.shown];
    if (token) Object.assign(token, { text: event.text, kind: "" });
    side.shown += 1;
    side.text += event.text;
  },
  rest: (turn, side, event) => {
    side.text += event.text;
  },
  rollback: (turn, side, event) => {
    if (event.at !== undefined) {
      const after = count(event.at, "reply token");
      side.steps.push({ kind: "rolled", text: `Rolled back after ${after}; the refusal begins at the prompt's end.` });
      return;
    }
    const dropped = side.tokens.slice(side.run + side.shown);
    for (const token of dropped) token.kind = "rolled";
    const why = `${count(dropped.length, "token")} rolled back; the refusal begins at the prompt's end.`;
    side.steps.push({ kind: "rolled", text: why });
    Object.assign(side, { run: side.tokens.length, shown: 0, scored: 0 });
  },
  restart: (turn, side) => {
    side.text += "\n\n";
  },
  refuses: (turn, side) => {
    side.refuses = true;
  },
  read: (turn, side, event) => {
    const reading = { score: event.score, at: event.at };
    if (event.stage === "watch") {
      side.readings.watch.push(reading);
      // the last reading alone is told: the gate has not fired on those before
      if (!state.about.traces && event.at > card().watch_every) side.readings.unseen = event.threshold;
    } else side.readings[event.stage] = reading;
    side.steps.push(step(side, event));
  },
  end: (turn, side, event) => {
    side.decision = event.decision;
    side.status = "done";
  },
};

/** Whether the watch may be asked at the reply token with this number. */
function isRead(side, at) {
  return !side.refuses && at <= (card().watch_until ?? Infinity);
}

function take(turn, side, event) {
  TAKEN[event.type](turn, side, event);
}

/** A reading as a sentence. Under "off" every stage reads and none decides. */
function step(side, event) {
  const bars = card().thresholds;
  const bar = side.policy === "off" ? (bars[event.stage] ?? bars.product) : event.threshold;
  const above = event.score > bar;
  const when = event.at ? `after ${count(event.at, "reply token")}` : "at the prompt's end";
  const score = `${number(event.score)} is ${above ? "above" : "at or below"} ${number(bar)}`;
  const next = side.policy === "off" ? "" : ` ${then(event)}`;
  return { kind: above ? "above" : "below", text: `${stageName(event.stage)}, ${when}: ${score}.${next}` };
}

function then(event) {
  if (event.fired) return "The request is flagged.";
  if (event.pending) return "Stage 2 will decide.";
  if (event.stage !== "watch") return "It passes.";
  return state.about.traces ? "It goes on." : "Its last reading.";
}

/** What became of a side, in one sentence. */
export function verdict(side) {
  if (side.problem) return `Failed: ${side.problem}.`;
  if (side.status !== "done") return "Being written.";
  const decided = side.decision;
  if (!decided) return `Written without the guard${state.about.traces ? "; its stages read along" : ""}.`;
  if (!decided.fired) return "Passed.";
  const did = decided.switched ? "Refused" : "Flagged, and let through by the policy";
  const kind = decided.category ? ` Category: ${decided.category}.` : "";
  return `${did}: ${reason(decided.stage)}.${kind}`;
}

/** What a turn's readings say of other thresholds; the side on which every stage was asked knows most. */
export function readingsOf(turn) {
  const { guarded, plain } = turn;
  if (state.about.traces && plain?.status === "done" && !plain.problem) return { ...plain.readings, whole: true };
  return { ...guarded.readings, whole: guarded.decision !== null && !guarded.decision.fired };
}

