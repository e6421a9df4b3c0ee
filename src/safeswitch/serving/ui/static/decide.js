// What the gate would decide on readings that were made, at other thresholds. The gate itself is
// switch/gate.py; tests/serving/test_page_browser.py holds this against it.

/**
 * The decision on one request.
 *
 * readings: {stage1, stage2: {score, at} or undefined, watch: [{score, at}], whole: whether every
 * stage was asked as far as the reply goes, unseen: undefined, or what earlier readings of the watch
 * that nobody has told of did not exceed}. gate: {rule, stages: names of its stages}. thresholds: by
 * stage, or "product".
 *
 * Returns {fired, stage, at}; stage is what fired, or null. With {missing: stage} nothing can be said:
 * that stage was not asked. latest: its earlier readings are not known, at which it may have fired.
 */
export function decide(readings, gate, thresholds) {
  const has = (stage) => gate.stages.includes(stage);
  const product = gate.rule === "product";
  const { stage1: first, stage2: second } = readings;
  if (has("stage1") && !first) return { missing: "stage1" };
  const passed = !has("stage1") || first.score > (product ? thresholds.product : thresholds.stage1);
  if (passed && has("stage2")) {
    if (!second) return { missing: "stage2" };
    const score = product ? first.score * second.score : second.score;
    if (score > (product ? thresholds.product : thresholds.stage2)) {
      return { fired: true, stage: "stage2", at: second.at };
    }
  } else if (passed && has("stage1")) {
    return { fired: true, stage: "stage1", at: 0 };
  }
  if (has("watch")) {
    const found = readings.watch.find((one) => one.score > thresholds.watch);
    const latest = readings.unseen > thresholds.watch;
    if (found) return { fired: true, stage: "watch", at: found.at, latest };
    if (latest || !readings.whole) return { missing: "watch", latest };
  }
  return { fired: false, stage: null, at: 0 };
}
