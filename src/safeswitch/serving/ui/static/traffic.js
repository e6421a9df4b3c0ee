// The audit in figures.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { read, review } from "./api.js";
import { state, update } from "./state.js";
import { number, percent, stageName } from "./words.js";

/** Fetch the figures. */
export async function load() {
  try {
    state.traffic = await read(`traffic?days=${state.days}`);
  } catch (error) {
    state.traffic = { problem: error.message };
  }
  update();
}

export function traffic() {
  return html`
    <h2>Traffic</h2>
    ${state.about.records ? period() : html`<p>No records for this client: the server keeps none
      (<code>--audit</code>), or the key is not an admin's.</p>`}
    ${figures(state.traffic)}`;
}

function period() {
  return html`
    <div class="row">
      <label for="days">Period</label>
      <select id="days" @change=${(event) => choose(Number(event.target.value))}>
        ${[1, 7, 30].map((days) => html`<option value=${days} ?selected=${days === state.days}>${days === 1 ? "1 day" : `${days} days`}</option>`)}
      </select>
      <button type="button" @click=${load}>Refresh</button>
    </div>`;
}

function choose(days) {
  state.days = days;
  load();
}

function figures(found) {
  if (!found) return nothing;
  if (found.problem) return html`<p class="problem">${found.problem}</p>`;
  return html`
    ${found.unsaid ? html`<p class="problem" role="alert">${found.unsaid}</p>` : nothing}
    ${found.whole ? nothing : html`<p class="note">The newest 10,000 records are counted.</p>`}
    <dl class="tiles">
      ${tile("Requests", found.requests)}
      ${tile("Flagged", `${found.flagged} (${percent(found.flagged, found.requests)})`)}
      ${tile("Under", Object.entries(found.policies).map(([name, n]) => `${name} ${n}`).join(", ") || "none")}
      ${tile("Prober errors", found.errors)}
      ${Object.entries(found.drift).map(([name, one]) => tile(`Drift, ${name}`, drift(one)))}
    </dl>
    ${bars("Requests over time", found.times.map((one) => ({ ...one, label: when(one.at) })))}
    ${bars("Stage-1 scores", found.scores.map((one) => ({ ...one, label: `from ${one.from.toFixed(2)}` })))}
    ${counts("Flagged by stage", "Stage", found.stages, stageName)}
    ${counts("Flagged by category", "Category", found.categories, (name) => name)}
    ${nearest("Review queue: flagged, nearest to the threshold first", found.queue, state.about.reviews)}
    ${nearest("Nearest misses: passed, nearest to the threshold first", found.misses)}`;
}

function tile(name, value) {
  return html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
}

/** The population stability index, and whether it raises the alarm. */
function drift({ psi, requests, enough, bound, exceeded }) {
  if (psi === null) return "no requests";
  if (!enough) return `${number(psi)}, too few requests (${requests})`;
  const word = exceeded ? "above its bound: thresholds may not hold" : "within its bound";
  return `${number(psi)}, ${word} (${bound})`;
}

function when(seconds) {
  const options = state.days <= 2 ? { hour: "2-digit", minute: "2-digit" } : { month: "short", day: "numeric" };
  return new Date(1000 * seconds).toLocaleString([], options);
}

/** A bar chart of {label, requests, flagged}, with its numbers as a table. */
function bars(title, rows) {
  const most = Math.max(1, ...rows.map((row) => row.requests));
  const width = 100 / rows.length;
  const bar = (name, row, i) => svg`<rect class=${name} x=${i * width + 0.1 * width} width=${0.8 * width}
    y=${50 - (50 * row[name]) / most} height=${(50 * row[name]) / most}></rect>`;
  return html`
    <figure>
      <figcaption>${title}</figcaption>
      <svg class="chart" viewBox="0 0 100 50" preserveAspectRatio="none" role="img"
        aria-label="${title}: at most ${most} in one bar; the numbers follow as a table">
        ${rows.map((row, i) => [bar("requests", row, i), bar("flagged", row, i)])}
      </svg>
      <p class="axis"><span>${rows[0]?.label}</span><span><i class="requests"></i> requests <i class="flagged"></i> flagged</span><span>${rows.at(-1)?.label}</span></p>
      <details>
        <summary>The numbers: ${title.toLowerCase()}</summary>
        ${table(title, ["", "Requests", "Flagged"], rows.filter((row) => row.requests).map((row) => [row.label, row.requests, row.flagged]))}
      </details>
    </figure>`;
}

function counts(title, name, found, spoken) {
  const rows = Object.entries(found);
  if (!rows.length) return nothing;
  return html`<h3>${title}</h3>${table(title, [name, "Requests"], rows.map(([key, n]) => [spoken(key), n]))}`;
}

const VERDICTS = { right: "right", false_alarm: "false alarm", unsure: "unsure" };

/** Buttons for a verdict; the one in force is pressed. Reviewers who contradict leave it unsure. */
function verdict(row) {
  const name = row.text ?? row.text_sha256.slice(0, 12);
  return html`<span class="row" role="group" aria-label="Verdict on ${name}">${Object.entries(VERDICTS).map(([key, spoken]) => html`<button
    type="button" class=${row.verdict === key ? "main" : ""} aria-pressed=${row.verdict === key} @click=${() => say(row, key)}>${spoken}</button>`)}</span>`;
}

async function say(row, key) {
  try {
    await review(row.bundle_id, row.text_sha256, key);
    state.said = `Verdict written: ${VERDICTS[key]}`;
    await load();
  } catch (error) {
    state.traffic = { ...state.traffic, unsaid: error.message };
    update();
  }
}

function nearest(title, rows, reviewed = false) {
  const heads = ["Request", "Stage", "Score", "Threshold", "Policy", "Client", "Time", ...(reviewed ? ["Verdict"] : [])];
  const cells = rows.map((row) => [
    row.text === null ? html`<code>${row.text_sha256.slice(0, 12)}</code>` : html`<span class="cut">${row.text}</span>`,
    stageName(row.stage),
    number(row.score),
    number(row.threshold),
    row.policy,
    row.client ?? "",
    new Date(1000 * row.at).toLocaleString(),
    ...(reviewed ? [verdict(row)] : []),
  ]);
  return html`<h3>${title}</h3>${rows.length ? table(title, heads, cells) : html`<p class="note">None.</p>`}`;
}

function table(title, heads, rows) {
  return html`
    <div class="wide" role="region" tabindex="0" aria-label=${title}>
      <table>
        <thead><tr>${heads.map((head) => (head ? html`<th scope="col">${head}</th>` : html`<td></td>`))}</tr></thead>
        <tbody>${rows.map(([first, ...others]) => html`<tr><th scope="row">${first}</th>${others.map((one) => html`<td>${one}</td>`)}</tr>`)}</tbody>
      </table>
    </div>`;
}
