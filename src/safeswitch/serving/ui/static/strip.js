// A strip: one bar a token, as high as its score, with the threshold as a line across.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { state, update } from "./state.js";
import { number } from "./words.js";

const MOST = 240; // tokens of a prompt that are drawn: the newest

/**
 * A strip of tokens {text, score, kind, read}: kind is "rolled" (back), "held" (back) or "". text is
 * null where it is withheld; read: whether the threshold holds there.
 */
export function strip(id, label, tokens, threshold) {
  const left = Math.max(0, tokens.length - MOST);
  const shown = tokens.slice(left);
  const at = state.cursor?.strip === id ? state.cursor.place : null;
  return html`
    <div class="strip" role="group" tabindex="0" aria-label="${label}. Arrow keys go from token to token."
      @keydown=${(event) => move(event, id, shown.length)}>
      ${left ? html`<p class="note">${left} earlier tokens are not drawn.</p>` : nothing}
      <ol>${shown.map((token, place) => cell(token, threshold, id, place, place === at))}</ol>
      <p class="readout">${at === null || !shown[at] ? label : spoken(shown[at], threshold)}</p>
    </div>`;
}

function cell(token, threshold, id, place, current) {
  const score = token.score ?? 0;
  const over = isOver(token, threshold);
  const classes = `token ${token.kind} ${over ? "over" : ""} ${current ? "current" : ""}`;
  const drawn = threshold !== undefined && token.read;
  const line = `${100 - 100 * threshold}%`;
  return html`
    <li class=${classes} @pointerenter=${() => look(id, place)}>
      <svg aria-hidden="true">
        <rect class="fill" x="1" width="12" y=${`${100 - 100 * score}%`} height=${`${100 * score}%`}></rect>
        ${drawn ? svg`<line class="mark" x1="0" x2="100%" y1=${line} y2=${line}></line>` : nothing}
      </svg>
      <span class="text" aria-hidden="true">${written(token)}</span>
      <span class="unseen">${spoken(token, threshold)}</span>
    </li>`;
}

function isOver(token, threshold) {
  return token.read && threshold !== undefined && token.score > threshold;
}

function written(token) {
  if (token.text === null) return "▪▪";
  if (token.text === "") return "∎";
  return token.text.replaceAll("\n", "⏎");
}

function spoken(token, threshold) {
  const text = token.text === null ? "a withheld token" : token.text.trim() || "the end of the reply, or part of a character";
  const kinds = { rolled: ", rolled back", held: ", held back" };
  const over = isOver(token, threshold) ? ", above the threshold" : "";
  const score = token.score === null ? "no score" : `score ${number(token.score)}`;
  return `${text}: ${score}${over}${kinds[token.kind] ?? ""}`;
}

function look(id, place) {
  state.cursor = { strip: id, place };
  update();
}

function move(event, id, length) {
  const at = state.cursor?.strip === id ? state.cursor.place : -1;
  const places = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: length - 1 };
  if (!(event.key in places)) return;
  event.preventDefault();
  look(id, Math.min(Math.max(places[event.key], 0), length - 1));
}
