// What things are called on the page.

const STAGES = { stage1: "Stage 1", stage2: "Stage 2", watch: "Watch", late: "Late stage", product: "Product" };

const REASONS = {
  always: "this switch answers every request itself",
  stage1: "stage 1 read an unsafe request",
  stage2: "stage 1 read an unsafe request, and stage 2 a model about to comply",
  watch: "the watch read an unsafe reply",
  late: "the late stage read an unsafe reply",
  error: "a prober could not run, and this switch fails closed",
};

/** A stage, as a heading. */
export function stageName(stage) {
  return STAGES[stage] ?? stage;
}

/** Why a request was flagged. */
export function reason(stage) {
  return REASONS[stage] ?? stage;
}

/** A score or threshold, in three digits. */
export function number(value) {
  return value === null || value === undefined ? "none" : value.toFixed(3);
}

/** A part of a whole. */
export function percent(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)} %` : "none";
}

/** A count with its noun. */
export function count(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

/** A decision of decide.js as a sentence. */
export function outcome(found) {
  const why = found.latest ? "tells its last score alone" : "was not asked";
  if (found.missing) return `cannot be said: ${stageName(found.missing)} ${why}`;
  if (!found.fired) return "passes";
  const after = found.latest ? "after at most" : "after";
  const when = found.at ? `${after} ${count(found.at, "reply token")}` : "before the first reply token";
  return `refused by ${stageName(found.stage).toLowerCase()}, ${when}`;
}
