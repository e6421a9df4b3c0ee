// The card of each switch that this client may have.

import { html, nothing } from "./vendor/lit-html.js";
import { state } from "./state.js";
import { number, stageName } from "./words.js";

export function switches() {
  return html`<h2>Switch</h2>${Object.entries(state.about.bundles).map(one)}`;
}

function one([name, card]) {
  const facts = [
    ["Fingerprint", card.bundle_id],
    ["Fitted on", card.model_id ? `${card.model_id} (${card.model_fingerprint})` : "no model"],
    ["Rule", `${card.rule}, fails ${card.fail}`],
    ["What it does to a flagged request", card.actuator.replaceAll("_", " ")],
  ];
  const until = card.watch_until ? `up to ${card.watch_until}` : "to the reply's end";
  return html`
    <h3>${name}</h3>
    <dl class="facts">${facts.map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}</dl>
    <h4>Stages</h4>
    <div class="wide" role="region" tabindex="0" aria-label="Stages of ${name}">
      <table>
        <thead><tr><th scope="col">Stage</th><th scope="col">Prober</th><th scope="col">Reads (layer@position)</th><th scope="col">Threshold</th></tr></thead>
        <tbody>${card.stages.map((stage) => html`<tr><th scope="row">${stageName(stage.name)}</th><td>${stage.kind.replaceAll("_", " ")}</td>
          <td><code>${stage.reads.join(", ")}</code>${stage.name === "watch" ? html` every ${card.watch_every} reply tokens, ${until}` : nothing}</td>
          <td>${number(card.thresholds[stage.name] ?? card.thresholds.product)}</td></tr>`)}</tbody>
      </table>
    </div>
    ${card.guarantee ? html`<p>What stage 1's threshold promises: ${card.guarantee}.</p>` : nothing}
    ${card.measured.length ? measured(name, card) : nothing}
    ${card.recalibrations.length ? html`<h4>Changed since, on reviewed traffic</h4>${card.recalibrations.map(changed)}` : nothing}`;
}

function changed({ date, said }) {
  return html`<p>${date}</p><ul>${said.map((sentence) => html`<li>${sentence}</li>`)}</ul>`;
}

function measured(name, card) {
  return html`
    <h4>Measured on the ${card.measured_on ?? "validation"} part</h4>
    <div class="wide" role="region" tabindex="0" aria-label="Figures of ${name}">
      <table>
        <thead><tr><th scope="col">Figure</th><th scope="col">Value</th><th scope="col">95 % interval</th></tr></thead>
        <tbody>${card.measured.map((row) => html`<tr><th scope="row">${row.name}</th><td>${number(row.value)}</td><td>${number(row.low)} to ${number(row.high)}</td></tr>`)}</tbody>
      </table>
    </div>`;
}
