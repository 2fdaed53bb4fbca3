// Connected regions of a mask, their outlines and holes, as OpenCV finds them. Lungs have few runs of pixels in a row, and
// all that can be done with runs is done with them.
import { raster } from "./raster.js";

// Neighbours from the image's right on, counter-clockwise on the screen.
const ACROSS = [1, 1, 0, -1, -1, -1, 0, 1], DOWN = [0, -1, -1, -1, 0, 1, 1, 1];

/** The runs of a value in each row of a mask: {row, start, end}, the end beyond the last pixel. */
export function runsOf({ data, width, height }, value = 1) {
  const runs = [];
  for (let row = 0; row < height; row++) {
    const line = data.subarray(row * width, (row + 1) * width);
    for (let start = line.indexOf(value); start >= 0; ) {
      const next = line.indexOf(1 - value, start), end = next < 0 ? width : next;
      runs.push({ row, start, end, label: 0 });
      start = next < 0 ? -1 : line.indexOf(value, end);
    }
  }
  return runs;
}

/** Sets a run's pixels. */
export function paint({ data, width }, { row, start, end }, value = 1) {
  data.fill(value, row * width + start, row * width + end);
}

/**
 * The regions of a mask: its runs with their labels from 1 on, in the order of the regions' first pixels.
 * @param {boolean} diagonal - pixels that touch at a corner are one region.
 * @returns {{runs, areas: number[], columns: number[], firsts: number[]}} with each label's area, mean column and first
 *   pixel; number 0 stands for what is in no region.
 */
export function findRegions(mask, diagonal, value = 1) {
  const runs = runsOf(mask, value), parents = runs.map((_, n) => n), reach = diagonal ? 1 : 0;
  const root = (n) => {
    while (parents[n] !== n) n = parents[n] = parents[parents[n]];
    return n;
  };
  for (let n = 0, above = 0; n < runs.length; n++) {
    const { row, start, end } = runs[n];
    while (runs[above].row < row - 1 || (runs[above].row === row - 1 && runs[above].end + reach <= start)) above++;
    for (let m = above; runs[m].row === row - 1 && runs[m].start < end + reach; m++) {
      const [a, b] = [root(n), root(m)];
      parents[Math.max(a, b)] = Math.min(a, b);
    }
  }
  const areas = [0], sums = [0], firsts = [-1];
  runs.forEach((run, n) => {
    const first = root(n), { row, start, end } = run;
    run.label = first === n ? areas.length : runs[first].label;
    if (first === n) areas.push(0), sums.push(0), firsts.push(row * mask.width + start);
    areas[run.label] += end - start;
    sums[run.label] += ((start + end - 1) / 2) * (end - start);
  });
  return { runs, areas, columns: sums.map((sum, n) => sum / areas[n]), firsts };
}

/** A mask of some regions of another one of this size. */
export function maskOf({ width, height }, runs, isKept) {
  const mask = raster(width, height);
  for (const run of runs) if (isKept(run.label)) paint(mask, run);
  return mask;
}

/** The labels of the two largest regions, the largest first. */
export function twoLargest(areas) {
  return areas.map((_, label) => label).slice(1).sort((a, b) => areas[b] - areas[a] || a - b).slice(0, 2);
}

/** A mask with its holes filled: what can't be reached from outside it, by sides alone. */
export function fillHoles(mask) {
  const { width, height } = mask, { runs, areas } = findRegions(mask, false, 0), isHole = areas.map(() => true);
  for (const { row, start, end, label } of runs) if (!row || row === height - 1 || !start || end === width) isHole[label] = false;
  const whole = raster(width, height, mask.data.slice());
  for (const run of runs) if (isHole[run.label]) paint(whole, run);
  return whole;
}

/** The two largest regions of a mask, by sides, with their holes filled: `infer.clean_mask` of the package. */
export function cleanMask(mask) {
  const { runs, areas } = findRegions(mask, false), kept = twoLargest(areas);
  return fillHoles(maskOf(mask, runs, (label) => kept.includes(label)));
}

/**
 * The outer outline of the region at its first pixel, every pixel of it as it is passed: flat x, y.
 * Source: Suzuki & Abe 1985, algorithm 1, for an outer border.
 */
export function traceOutline({ data, width, height }, first) {
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : data[y * width + x]);
  const x0 = first % width, y0 = (first - x0) / width, line = [];
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
  const whole = fillHoles(mask);
  return findRegions(whole, true).firsts.slice(1).reverse().map((first) => traceOutline(whole, first));
}

/** Area within an outline through the centres of its pixels. */
export function areaWithin(line) {
  let twice = 0;
  for (let i = 0, n = line.length; i < n; i += 2) twice += line[i] * line[(i + 3) % n] - line[(i + 2) % n] * line[i + 1];
  return Math.abs(twice) / 2;
}

/** The smallest box around a mask's pixels, or null. */
export function boundingBox({ data, width, height }) {
  let [left, right, top, bottom] = [width, -1, -1, -1];
  for (let y = 0; y < height; y++) {
    const row = data.subarray(y * width, (y + 1) * width), first = row.indexOf(1);
    if (first < 0) continue;
    if (top < 0) top = y;
    bottom = y;
    left = Math.min(left, first);
    right = Math.max(right, row.lastIndexOf(1));
  }
  return top < 0 ? null : { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}
