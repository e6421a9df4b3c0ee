// The conversation: two replies side by side, their scores, and other thresholds.

import { html, nothing } from "./vendor/lit-html.js";
import { decide } from "./decide.js";
import { readingsOf, send, verdict } from "./run.js";
import { card, state, update } from "./state.js";
import { strip } from "./strip.js";
import { number, outcome, stageName } from "./words.js";

const EXAMPLES = ["How do I steal a car?", "How do I kill a process?", "What is the capital of France?"];

export function chat() {
  return html`
    <h2>Chat</h2>
    ${state.turns.length ? nothing : welcome()}
    ${state.turns.map(turnView)}
    ${state.turns.some(isWhole) ? otherThresholds() : nothing}
    ${composer()}`;
}

function welcome() {
  return html`
    <p>Ask something. ${state.about.traces ? "Each token's score is drawn as it is written" : "Each reply is shown with what the stages said of it"};
      a request that is flagged is rolled back to its prompt, and refused.</p>
    <ul class="examples">
      ${EXAMPLES.map((text) => html`<li><button type="button" @click=${() => start(text)}>${text}</button></li>`)}
    </ul>`;
}

function composer() {
  return html`
    <form class="composer" @submit=${submit}>
      <label for="draft">Your message</label>
      <textarea id="draft" rows="2" .value=${state.draft} @input=${typed} @keydown=${entered}></textarea>
      <div class="row">
        <button class="main" type="submit" ?disabled=${!!state.busy}>Send</button>
        <button type="button" ?disabled=${!state.busy} @click=${() => state.busy?.abort()}>Stop</button>
        <button type="button" ?disabled=${!!state.busy} @click=${clear}>Clear</button>
        ${state.about.traces ? html`<label><input type="checkbox" .checked=${state.paced} @change=${pace}> Readable pace</label>` : nothing}
        <label><input type="checkbox" .checked=${state.goesOn} @change=${goOn}> Send earlier turns along</label>
      </div>
    </form>`;
}

function typed(event) {
  state.draft = event.target.value;
  update(); // so that the box is drawn empty after its text was sent
}

function entered(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  start(state.draft);
}

function submit(event) {
  event.preventDefault();
  start(state.draft);
}

function start(text) {
  if (!text.trim() || state.busy) return;
  send(text.trim());
  document.getElementById("draft").focus(); // the button that was pressed may be gone
}

function clear() {
  state.turns = [];
  update();
}

function pace(event) {
  state.paced = event.target.checked;
}

function goOn(event) {
  state.goesOn = event.target.checked;
}

function turnView(turn, i) {
  const first = card().thresholds.stage1 ?? card().thresholds.product;
  return html`
    <article class="turn" aria-labelledby="turn-${i}">
      <h3 id="turn-${i}">Request ${i + 1}</h3>
      <p class="asked">${turn.text}</p>
      ${state.about.traces ? nothing : noStrips()}
      ${turn.prompt.length ? strip(`prompt-${i}`, "Stage 1 at each prompt token; it decides on the last", turn.prompt, first) : nothing}
      <div class="sides">
        ${sideView(turn.guarded, `guarded-${i}`)}
        ${turn.plain ? sideView(turn.plain, `plain-${i}`) : noPlain()}
      </div>
    </article>`;
}

function noPlain() {
  return html`<p class="note">The unguarded reply is shown to clients that may ask for the policy
    <code>off</code>.</p>`;
}

function noStrips() {
  return html`<p class="note">No score for each token: this server does not trace tokens. The last
    score of each stage comes with the decision.</p>`;
}

function sideView(side, id) {
  const bar = card().thresholds.watch;
  const every = card().watch_every;
  const label = `${side.title}: the watch at each reply token; it decides every ${every} tokens`;
  return html`
    <div class="side" role="group" aria-labelledby=${id}>
      <h4 id=${id}>${side.title}</h4>
      <p class="verdict ${side.decision?.fired ? "fired" : ""}">${verdict(side)}</p>
      <p class="reply">${side.text}</p>
      ${side.tokens.length ? strip(`strip-${id}`, label, side.tokens, bar) : nothing}
      <ol class="steps">${side.steps.map((one) => html`<li class=${one.kind}>${one.text}</li>`)}</ol>
    </div>`;
}

function otherThresholds() {
  const own = card().thresholds;
  const bars = { ...own, ...state.others };
  return html`
    <section class="others" aria-labelledby="others">
      <h3 id="others">At other thresholds</h3>
      <p>Nothing changes on the server: the readings above are held against the thresholds set here.
        ${state.about.traces ? nothing : "This server tells the last score of each stage alone, so some of it cannot be said."}</p>
      ${Object.keys(own).filter((name) => name !== "late").map((name) => slider(name, own[name], bars[name]))}
      <button type="button" @click=${reset}>As in force</button>
      <div class="wide" role="region" tabindex="0" aria-label="Requests at other thresholds">
        <table>
          <thead><tr><th scope="col">Request</th><th scope="col">In force</th><th scope="col">At the sliders</th></tr></thead>
          <tbody>${state.turns.filter(isWhole).map((turn) => compared(turn, own, bars))}</tbody>
        </table>
      </div>
    </section>`;
}

function isWhole({ guarded, plain }) {
  return guarded.status === "done" && (plain === null || plain.status === "done");
}

function slider(name, own, value) {
  const id = `bar-${name}`;
  return html`
    <div class="slider">
      <label for=${id}>${stageName(name)}</label>
      <input id=${id} type="range" min="0" max="1" step="0.001" .value=${String(value)}
        @input=${(event) => slide(name, Number(event.target.value))}>
      <output for=${id}>${number(value)}</output>
      <span class="note">in force: ${number(own)}</span>
    </div>`;
}

function slide(name, value) {
  state.others = { ...state.others, [name]: value };
  update();
}

function reset() {
  state.others = {};
  update();
}

function compared(turn, own, bars) {
  const gate = { rule: card().rule, stages: card().stages.map((stage) => stage.name) };
  const readings = readingsOf(turn);
  const now = outcome(decide(readings, gate, own));
  const then = outcome(decide(readings, gate, bars));
  return html`<tr><th scope="row">${turn.text}</th><td>${now}</td><td class=${now === then ? "" : "changed"}>${then}</td></tr>`;
}
