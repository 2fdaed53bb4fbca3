// Gray levels of any range as 8 bits, by the rule of `pictures/gray.py`, and colours as gray.
import { raster, rint } from "./raster.js";

const BINS = 64, GAP = 0.01; // as there

/** The levels that become 0 and 255: the 0.1 and 99.9 percentiles, of the side of a gap with more variety. */
export function grayRange(levels) {
  for (let sorted = Float64Array.from(levels).sort(); ; ) {
    const low = percentile(sorted, 0.001), high = percentile(sorted, 0.999);
    if (low === high) return [low, high];
    const counts = new Array(BINS).fill(0), place = (level) => (level - low) / (high - low);
    for (const level of sorted) if (level >= low && level <= high) counts[Math.min(Math.floor(place(level) * BINS), BINS - 1)]++;
    const halves = Array.from({ length: BINS / 2 + 1 }, (_, i) => counts.slice(i, i + BINS / 2).reduce((a, b) => a + b));
    const first = halves.indexOf(Math.min(...halves));
    if (halves[first] >= GAP * sorted.length) return [low, high];
    const middle = (first + BINS / 4) / BINS, cut = sorted.findIndex((level) => place(level) >= middle);
    const sides = [sorted.subarray(0, cut), sorted.subarray(cut)];
    sorted = variety(sides[0]) >= variety(sides[1]) ? sides[0] : sides[1];
  }
}

function percentile(sorted, share) {
  const at = share * (sorted.length - 1), low = Math.floor(at), high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

function variety(levels) {
  const mean = levels.reduce((a, b) => a + b, 0) / levels.length;
  return levels.reduce((sum, level) => sum + Math.abs(level - mean), 0);
}

/** A 16-bit film, scaled; of every fourth pixel of every fourth row the range is taken. */
export function from16(data, width, height) {
  const some = [];
  for (let y = 0; y < height; y += 4) for (let x = 0; x < width; x += 4) some.push(data[y * width + x]);
  const [low, high] = grayRange(some);
  return raster(width, height, through(Uint8Array.from({ length: 65536 }, (_, level) => stretch(level, low, high)), data));
}

/** Of each pixel what a table has for it. Films have millions of pixels: no function is called for each. */
export function through(table, data) {
  const out = new table.constructor(data.length);
  for (let i = 0; i < out.length; i++) out[i] = table[data[i]];
  return out;
}

/** The first channels of pixels that have four. */
export function firstOf(rgba, channels) {
  const out = new rgba.constructor((rgba.length / 4) * channels);
  for (let at = 0, from = 0; at < out.length; from += 4) for (let c = 0; c < channels; c++) out[at++] = rgba[from + c];
  return out;
}

function stretch(level, low, high) {
  return rint(Math.min(Math.max(((level - low) / (high - low || 1)) * 255, 0), 255));
}

/** Luminance of pixels of 1 to 4 channels, in OpenCV's fixed point; an alpha channel is dropped. */
export function luminance(data, channels) {
  if (channels === 1) return data;
  const pixels = data.length / channels, out = new data.constructor(pixels);
  for (let i = 0, at = 0; i < pixels; i++, at += channels)
    out[i] = channels < 3 ? data[at] : (9798 * data[at] + 19235 * data[at + 1] + 3735 * data[at + 2] + 16384) >>> 15;
  return out;
}
