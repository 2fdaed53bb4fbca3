// An estimate of a mask's Dice, a flag and reasons: `quality/flags.py`.
import { above } from "./raster.js";
import { count } from "./regions.js";
import { resize } from "./resize.js";
import { alignedDistance } from "./shape.js";

/**
 * @param prob - of lung at the network's own size.
 * @param small - the mask of the upright film, cleaned, at `estimate.side`.
 * @param points - its landmarks.
 * @param fit - of the convention's masks, from the weights' header.
 * @returns {{estimate, flag, reasons} | null} null where the weights have no fit.
 */
export function estimateQuality(prob, small, points, fit, { estimate, threshold, shape }) {
  const features = observe(prob, small, alignedDistance(points, shape), threshold);
  if (features && (!fit || fit.why_not)) return null;
  return judge(features, fit, estimate);
}

function observe(prob, mask, distance, threshold) {
  prob = resize(prob, mask.width, mask.height);
  const raw = above(prob, threshold), area = count(raw), lung = count(mask);
  if (!lung || !area) return null;
  let [within, all, changed] = [0, 0, 0];
  for (let i = 0; i < raw.data.length; i++) {
    all += prob.data[i];
    if (raw.data[i]) within += prob.data[i];
    changed += raw.data[i] ^ mask.data[i];
  }
  return {
    doubt: log(1 - (2 * within) / (all + area)),
    pieces: log(changed / area),
    size: Math.abs(Math.log(lung / mask.data.length / 0.25)),
    shape: log(distance),
    not_two: Number.isNaN(distance) ? 1 : 0,
  };
}

function judge(features, fit, { ok, reject, least, reasons, noLung }) {
  const flagOf = (estimate) => (estimate >= ok ? "ok" : estimate >= reject ? "check" : "reject");
  if (!features) return { estimate: 0, flag: flagOf(0), reasons: [noLung] };
  const lowers = Object.entries(fit.features).map(([name, [usual, weight]]) => [name, weight * (features[name] - usual) || 0]);
  const logit = fit.bias - lowers.reduce((sum, [, lower]) => sum + lower, 0);
  const estimate = (1 + Math.tanh(logit / 2)) / 2, flag = flagOf(estimate);
  const ranked = lowers.sort(([, a], [, b]) => b - a), weighty = ranked.filter(([, lower]) => lower > least);
  const named = flag === "ok" ? [] : weighty.length ? weighty : ranked.slice(0, 1);
  return { estimate, flag, reasons: named.map(([name]) => reasons[name] ?? name) };
}

function log(value) {
  return Math.log(value + 0.003); // what is below that is all the same
}
