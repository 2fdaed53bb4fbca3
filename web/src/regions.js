// Connected regions of a mask, their outlines and holes, as OpenCV finds them. Lungs have few runs of pixels in a row, and
// all that can be done with runs is done with them. A run is {row, start, end}, the end beyond its last pixel; runs are
// sorted by place. Masks keep theirs once they are known: nothing changes a mask that is made.
import { raster } from "./raster.js";

// Neighbours from the image's right on, counter-clockwise on the screen.
const ACROSS = [1, 1, 0, -1, -1, -1, 0, 1], DOWN = [0, -1, -1, -1, 0, 1, 1, 1];

/** The runs of lung of a mask. */
export function runsOf(mask) {
  if (mask.runs) return mask.runs;
  const { data, width, height } = mask, runs = [];
  for (let row = 0, at = 0; row < height; row++)
    for (const end = at + width; at < end; ) {
      while (at < end && !data[at]) at++;
      if (at === end) break;
      const start = at;
      while (at < end && data[at]) at++;
      runs.push({ row, start: start - row * width, end: at - row * width });
    }
  return (mask.runs = runs);
}

/** A mask of runs. */
export function maskOf({ width, height }, runs) {
  const mask = raster(width, height);
  for (const { row, start, end } of runs) mask.data.fill(1, row * width + start, row * width + end);
  mask.runs = runs;
  return mask;
}

/** The runs between runs: of what is not in them. */
function between(runs, { width, height }) {
  const gaps = [];
  for (let row = 0, n = 0; row < height; row++) {
    let start = 0;
    for (; runs[n]?.row === row; n++) {
      if (start < runs[n].start) gaps.push({ row, start, end: runs[n].start });
      start = runs[n].end;
    }
    if (start < width) gaps.push({ row, start, end: width });
  }
  return gaps;
}

export function count(mask) {
  return runsOf(mask).reduce((sum, { start, end }) => sum + end - start, 0);
}

/**
 * Regions of runs: the label of each run from 1 on, in the order of the regions' first pixels.
 * @param {boolean} diagonal - pixels that touch at a corner are one region.
 * @returns {{labels, areas: number[], columns: number[], firsts: object[]}} with each label's area, mean column and first
 *   run; number 0 stands for what is in no region.
 */
export function findRegions(runs, diagonal) {
  const parents = Int32Array.from(runs.keys()), reach = diagonal ? 1 : 0;
  const root = (n) => {
    while (parents[n] !== n) n = parents[n] = parents[parents[n]];
    return n;
  };
  for (let n = 0, above = 0; n < runs.length; n++) {
    const { row, start, end } = runs[n];
    while (runs[above].row < row - 1 || (runs[above].row === row - 1 && runs[above].end + reach <= start)) above++;
    for (let m = above; runs[m].row === row - 1 && runs[m].start < end + reach; m++) {
      const a = root(n), b = root(m);
      parents[Math.max(a, b)] = Math.min(a, b);
    }
  }
  const labels = new Int32Array(runs.length), areas = [0], sums = [0], firsts = [null];
  for (const [n, run] of runs.entries()) {
    const first = root(n), { start, end } = run;
    labels[n] = first === n ? areas.length : labels[first];
    if (first === n) areas.push(0), sums.push(0), firsts.push(run);
    areas[labels[n]] += end - start;
    sums[labels[n]] += ((start + end - 1) / 2) * (end - start);
  }
  return { labels, areas, columns: sums.map((sum, n) => sum / areas[n]), firsts };
}

/** The labels of the two largest regions, the largest first. */
export function twoLargest(areas) {
  return areas.map((_, label) => label).slice(1).sort((a, b) => areas[b] - areas[a] || a - b).slice(0, 2);
}

/** Runs with their holes filled: what can't be reached from outside them, by sides alone. */
function filled(runs, size) {
  const gaps = between(runs, size), { labels, areas } = findRegions(gaps, false), isHole = areas.map(() => true);
  for (const [n, { row, start, end }] of gaps.entries()) if (!row || row === size.height - 1 || !start || end === size.width) isHole[labels[n]] = false;
  const outside = gaps.filter((_, n) => !isHole[labels[n]]);
  return outside.length === gaps.length ? runs : between(outside, size);
}

/** A mask with its holes filled; without holes it is the mask itself. */
export function fillHoles(mask) {
  const runs = runsOf(mask), whole = filled(runs, mask);
  return whole === runs ? mask : maskOf(mask, whole);
}

/** The mask of the two largest regions of runs, by sides, with their holes filled: `infer.clean_mask` of the package. */
export function cleanMask(runs, size) {
  const { labels, areas } = findRegions(runs, false), kept = twoLargest(areas);
  return maskOf(size, filled(runs.filter((_, n) => kept.includes(labels[n])), size));
}

/**
 * The outer outline of the region that begins with a run, every pixel of it as it is passed: flat x, y.
 * Source: Suzuki & Abe 1985, algorithm 1, for an outer border.
 */
export function traceOutline({ data, width, height }, { row: y0, start: x0 }) {
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : data[y * width + x]), line = [];
  let way = 4; // clockwise from the image's left, the last neighbour is found
  for (let n = 0; n < 8; n++) {
    way = (way + 7) % 8;
    if (at(x0 + ACROSS[way], y0 + DOWN[way])) break;
    if (n === 7) return Int32Array.of(x0, y0);
  }
  const x1 = x0 + ACROSS[way], y1 = y0 + DOWN[way];
  for (let x = x0, y = y0; ; ) {
    line.push(x, y);
    do way = (way + 1) % 8; // counter-clockwise from the pixel before
    while (!at(x + ACROSS[way], y + DOWN[way]));
    const nextX = x + ACROSS[way], nextY = y + DOWN[way];
    if (nextX === x0 && nextY === y0 && x === x1 && y === y1) return Int32Array.from(line);
    x = nextX;
    y = nextY;
    way = (way + 4) % 8;
  }
}

/** The outer outlines of a mask, those that begin lowest first, as OpenCV lists them. */
export function findOutlines(mask) {
  if (mask.outlines) return mask.outlines;
  const whole = fillHoles(mask), { firsts } = findRegions(runsOf(whole), true);
  return (mask.outlines = firsts.slice(1).reverse().map((first) => traceOutline(whole, first)));
}

/** Area within an outline through the centres of its pixels. */
export function areaWithin(line) {
  let twice = 0;
  for (let i = 0, n = line.length; i < n; i += 2) twice += line[i] * line[(i + 3) % n] - line[(i + 2) % n] * line[i + 1];
  return Math.abs(twice) / 2;
}

/** The smallest box around a mask's pixels, or null. */
export function boundingBox(mask) {
  const runs = runsOf(mask);
  if (!runs.length) return null;
  const y = runs[0].row, x = runs.reduce((least, { start }) => Math.min(least, start), mask.width);
  return { x, y, width: runs.reduce((most, { end }) => Math.max(most, end), 0) - x, height: runs.at(-1).row - y + 1 };
}
