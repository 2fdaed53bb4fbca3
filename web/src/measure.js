// Measurements of a lung mask, and which lung is which: `quality/measurements.py`.
import { raster, map, crop, mirrored } from "./raster.js";
import { coarse } from "./resize.js";
import { runsOf, count, findRegions, fillHoles, maskOf, traceOutline, findOutlines, areaWithin, boundingBox } from "./regions.js";

const DUST = 0.02, SEAM_ROWS = 128, SEAM_ERROR = 1 / 64, LONE_CUT = 0.25, LONE_WIDTH = 0.8, MIDLINE_SIDE = 160;

/** One row of numbers, in the package's order; what is undefined is NaN. `spacing` is [mm between rows, columns] or null. */
export function measure(mask, spacing, lungs = splitLungs(mask)) {
  const each = lungs.map((lung, n) => measureLung(lung, n === 1, spacing));
  const [right, left] = each.map((lung) => lung.area_px);
  const row = {
    lungs: (right > 0) + (left > 0),
    lung_share: (right + left) / mask.data.length,
    left_right_ratio: right && left ? left / right : NaN,
    ...findMidline(...lungs, spacing),
  };
  ["right", "left"].forEach((side, n) => {
    for (const [name, value] of Object.entries(each[n])) row[`${side}_${name}`] = value;
  });
  return row;
}

/** The patient's right and left lung of an upright mask: of what is no dust, the parts before and beyond a seam. */
export function splitLungs(mask) {
  const whole = fillHoles(mask), { labels, firsts } = findRegions(runsOf(whole), true);
  const lines = firsts.map((first) => first && traceOutline(whole, first));
  const areas = lines.map((line) => (line ? areaWithin(line) : -1)), least = DUST * Math.max(...areas);
  const regions = labelsWithin(runsOf(mask), runsOf(whole), labels), isKept = regions.map((label) => areas[label] >= least);
  const both = maskOf(mask, runsOf(mask).filter((_, n) => isKept[n])), none = maskOf(mask, []), box = boundingBox(both);
  if (!box) return [none, none];
  const seam = findSeam(both, box);
  if (!seam) return 2 * box.x + box.width <= mask.width ? [both, none] : [none, both];
  const sides = lines.map((line) => line && sideOf(line, seam, mask.height * SEAM_ERROR)), right = [], left = [];
  for (const [n, { row, start, end }] of runsOf(mask).entries()) {
    if (!isKept[n]) continue;
    const edge = Math.min(Math.max(Math.ceil(seam[row]), start), end); // the right lung's columns lie before it
    const cut = { right: end, left: start, both: edge }[sides[regions[n]]];
    if (start < cut) right.push({ row, start, end: cut });
    if (cut < end) left.push({ row, start: cut, end });
  }
  return [maskOf(mask, right), maskOf(mask, left)];
}

/** The labels of runs, each of which lies within a run that has one. */
function labelsWithin(runs, whole, labels) {
  let n = 0;
  return runs.map(({ row, end }) => {
    while (whole[n].row < row || whole[n].end < end) n++;
    return labels[n];
  });
}

/** The side of the seam on which an outline lies: right, left, or both. */
function sideOf(line, seam, near) {
  let [before, beyond, sum] = [0, 0, 0];
  for (let i = 0; i < line.length; i += 2) {
    const off = line[i] - seam[line[i + 1]];
    sum += off;
    before += off < -near;
    beyond += off > near;
  }
  if (Math.min(before, beyond) > (0.05 * line.length) / 2) return "both";
  return sum < 0 ? "right" : "left";
}

/** Column of the seam between the lungs in each row; null where the mask is a lone lung. */
function findSeam(mask, { x, y, width, height }) {
  const columns = Math.max(2, Math.round((width * SEAM_ROWS) / height));
  const small = coarse(mask, { x, y, width, height }, columns, SEAM_ROWS), sums = new Float64Array(columns);
  small.data.forEach((value, at) => (sums[at % columns] += value));
  const [right, left] = twoMeans(sums), first = Math.floor(right), end = Math.min(Math.floor(left) + 2, columns);
  const band = crop(small, { x: first, y: 0, width: end - first, height: SEAM_ROWS }), soft = boxBlur(band);
  // Between lungs that lie apart the seam keeps away from both: enlarged, it would clip them otherwise.
  const aside = (column) => Math.abs(first + column - (right + left) / 2) / columns;
  const cost = map(band, (value, at) => value + 0.02 * soft.data[at] + 1e-4 * aside(at % band.width), Float64Array);
  const path = cheapestPath(cost);
  const cut = path.reduce((sum, column, row) => sum + band.data[row * band.width + column], 0) / SEAM_ROWS;
  if (cut >= LONE_CUT && width < LONE_WIDTH * height) return null;
  return Float64Array.from({ length: mask.height }, (_, row) => {
    const at = Math.min(Math.max(((row - y + 0.5) * SEAM_ROWS) / height - 0.5, 0), SEAM_ROWS - 1), low = Math.min(Math.floor(at), SEAM_ROWS - 2);
    const column = path[low] + (at - low) * (path[low + 1] - path[low]);
    return x + ((column + first + 0.5) * width) / columns - 0.5;
  });
}

/** Mean index of the two classes that Otsu's threshold makes of a histogram. */
function twoMeans(weights) {
  const total = weights.reduce((a, b) => a + b), moments = weights.reduce((sum, weight, i) => sum + weight * i, 0);
  let [below, moment, best, means] = [0, 0, -1, [0, 0]];
  for (let i = 0; i < weights.length - 1; i++) {
    below += weights[i];
    moment += weights[i] * i;
    const above = total - below, low = moment / Math.max(below, 1e-9), high = (moments - moment) / Math.max(above, 1e-9);
    const between = below * above * (high - low) ** 2;
    if (between > best) [best, means] = [between, [low, high]];
  }
  return means;
}

/** Mean of 5 × 5 pixels; beyond the edges the image is mirrored. */
function boxBlur({ data, width, height }) {
  const columns = mirrored(width, 2), rows = mirrored(height, 2), out = new Float32Array(data.length);
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++, at++) {
      let sum = 0;
      for (let i = 0; i < 5; i++) for (let j = 0; j < 5; j++) sum += data[rows[y + i] * width + columns[x + j]];
      out[at] = sum / 25;
    }
  return raster(width, height, out);
}

/** Column in each row of the path from top to bottom with the least sum; it moves by one column a row at most. */
function cheapestPath({ data, width, height }) {
  const total = Float64Array.from(data), at = (row, x) => (x < 0 || x >= width ? Infinity : total[row * width + x]);
  for (let row = 1; row < height; row++)
    for (let x = 0; x < width; x++) total[row * width + x] += Math.min(at(row - 1, x - 1), at(row - 1, x), at(row - 1, x + 1));
  const path = new Int32Array(height);
  for (let x = 1; x < width; x++) if (at(height - 1, x) < at(height - 1, path[height - 1])) path[height - 1] = x;
  for (let row = height - 2; row >= 0; row--) {
    const below = path[row + 1];
    path[row] = [below - 1, below, below + 1].reduce((found, x) => (at(row, x) < at(row, found) ? x : found));
  }
  return path;
}

function measureLung(lung, isLeft, spacing) {
  const [byRow, byColumn] = spacing ?? [NaN, NaN], area_px = count(lung), box = boundingBox(lung);
  if (!box) {
    const names = ["height_px", "height_mm", "width_px", "width_mm", "apex_row", "apex_column", "costophrenic_row", "costophrenic_column"];
    return { area_px, area_mm2: 0 * byRow, ...Object.fromEntries(names.map((name) => [name, NaN])) };
  }
  const { x, y, width, height } = box, apex = apexColumn(lung, box);
  const [column, row] = costophrenic(lung, isLeft, spacing ? byColumn / byRow : 1);
  return {
    area_px,
    area_mm2: area_px * byRow * byColumn,
    height_px: height,
    height_mm: height * byRow,
    width_px: width,
    width_mm: width * byColumn,
    apex_row: y,
    apex_column: apex,
    costophrenic_row: row,
    costophrenic_column: column,
  };
}

/** Mean column of the lung's highest hundredth. */
function apexColumn(lung, { y, height }) {
  const end = y + Math.max(1, Math.round(height / 100)), top = runsOf(lung).filter(({ row }) => row < end);
  const pixels = top.reduce((sum, { start, end }) => sum + end - start, 0);
  return top.reduce((sum, { start, end }) => sum + ((start + end - 1) / 2) * (end - start), 0) / pixels;
}

/** The outline's pixel furthest down and outwards, at 45°; of those the first one as OpenCV follows outlines. */
function costophrenic(lung, isLeft, aspect) {
  let [furthest, found] = [-Infinity, null];
  for (const line of findOutlines(lung))
    for (let i = 0; i < line.length; i += 2) {
      const far = line[i + 1] + (isLeft ? 1 : -1) * line[i] * aspect;
      if (far > furthest) [furthest, found] = [far, [line[i], line[i + 1]]];
    }
  return found;
}

/** The line about which two lungs are most like each other's mirror image; NaN if a lung is empty. */
function findMidline(right, left, spacing) {
  const unknown = { symmetry: NaN, tilt_deg: NaN, midline_column: NaN };
  if (!runsOf(right).length || !runsOf(left).length) return unknown;
  const both = maskOf(right, [...runsOf(right), ...runsOf(left)].sort((a, b) => a.row - b.row || a.start - b.start)), box = boundingBox(both);
  const scale = [box.height * (spacing?.[0] ?? 1), box.width * (spacing?.[1] ?? 1)], longer = Math.max(...scale);
  const [rows, columns] = scale.map((side) => Math.max(1, Math.round((side * MIDLINE_SIDE) / longer)));
  const pair = coarse(both, box, columns, rows), total = pair.data.reduce((a, b) => a + b, 0);
  if (!total) return unknown;
  const framed = frame(pair), { at, least } = minimise((line) => unlike(line, framed, total), [[0, 0], [4, 0], [0, 4]]);
  const [tilt_deg, offset] = at, tilt = (tilt_deg * Math.PI) / 180;
  const filmMiddle = ((right.height / 2 - box.y) * rows) / box.height - 0.5; // the film's middle row, in the copy
  const along = (filmMiddle - (rows - 1) / 2) * Math.sin(tilt);
  const column = (columns - 1) / 2 + (offset - along) / Math.cos(tilt);
  return { symmetry: 1 - least, tilt_deg, midline_column: box.x + ((column + 0.5) * box.width) / columns - 0.5 };
}

/** A picture with a pixel of nothing around it, so that what lies beyond its edges needs no question. */
function frame({ data, width, height }) {
  const framed = new Float32Array((width + 2) * (height + 2));
  for (let y = 0; y < height; y++) framed.set(data.subarray(y * width, (y + 1) * width), (y + 1) * (width + 2) + 1);
  return { data: framed, width: width + 2, height: height + 2 };
}

/** 1 - Dice of a framed picture and its mirror image about a line: degrees from upright, px from the picture's middle. */
function unlike([tiltDeg, offset], { data, width, height }, total) {
  const tilt = (tiltDeg * Math.PI) / 180, a = Math.cos(tilt), b = Math.sin(tilt);
  const far = 2 * ((a * (width - 1)) / 2 + (b * (height - 1)) / 2 + offset);
  let common = 0;
  for (let y = 1; y < height - 1; y++)
    for (let x = 1; x < width - 1; x++) {
      const own = data[y * width + x];
      if (!own) continue;
      const fromX = (1 - 2 * a * a) * x - 2 * a * b * y + far * a, fromY = -2 * a * b * x + (1 - 2 * b * b) * y + far * b;
      const column = Math.floor(fromX), row = Math.floor(fromY);
      if (column < 0 || row < 0 || column > width - 2 || row > height - 2) continue;
      const across = fromX - column, down = fromY - row, at = row * width + column;
      const above = (1 - across) * data[at] + across * data[at + 1], below = (1 - across) * data[at + width] + across * data[at + width + 1];
      common += Math.min(own, (1 - down) * above + down * below);
    }
  return 1 - common / total;
}

/**
 * The least of a function of two numbers, from three first guesses.
 * Source: Nelder & Mead 1965, with the steps and the end of SciPy's `minimize`.
 */
function minimise(f, guesses) {
  let simplex = guesses.map((at) => ({ at, value: f(at) })).sort((a, b) => a.value - b.value), calls = 3;
  const point = (from, to, share) => from.map((value, i) => value + share * (to[i] - value));
  for (let round = 1; round < 400 && calls < 400; round++) {
    const [best, second, worst] = simplex;
    const wide = Math.max(...[second, worst].flatMap(({ at }) => at.map((value, i) => Math.abs(value - best.at[i]))));
    if (wide <= 0.02 && Math.max(Math.abs(second.value - best.value), Math.abs(worst.value - best.value)) <= 1e-5) break;
    const middle = point(best.at, second.at, 0.5), look = (share) => {
      const at = point(middle, worst.at, share);
      calls++;
      return { at, value: f(at) };
    };
    const reflected = look(-1);
    let next = reflected;
    if (reflected.value < best.value) {
      const expanded = look(-2);
      if (expanded.value < reflected.value) next = expanded;
    } else if (reflected.value >= second.value) {
      const outside = reflected.value < worst.value, contracted = look(outside ? -0.5 : 0.5);
      const good = outside ? contracted.value <= reflected.value : contracted.value < worst.value;
      next = good ? contracted : null;
    }
    const others = next ? [second, next] : [second, worst].map(({ at }) => {
      const closer = point(best.at, at, 0.5);
      calls++;
      return { at: closer, value: f(closer) };
    });
    simplex = [best, ...others].sort((a, b) => a.value - b.value);
  }
  return { at: simplex[0].at, least: simplex[0].value };
}

/** Whether lungs are so high or so low that the spacing of their film is hardly right: a note, or none. */
export function checkHeight(mask, spacing, age, { leastHeight, mostHeight, grown }) {
  const box = boundingBox(mask);
  if (!spacing || !box) return [];
  const height = box.height * spacing[0], share = age === null ? 1 : Math.min(age / grown, 1);
  const [least, most] = [leastHeight, mostHeight].map(([first, last]) => first + (last - first) * share);
  if (least <= height && height <= most) return [];
  const whose = share === 1 ? "an adult's" : `at ${age.toFixed(0)} years they`;
  const child = age === null && leastHeight[0] <= height && height < least;
  const reason = child ? "a small child, or is the spacing wrong" : "is the spacing wrong, or the mask";
  return [`lungs ${height.toFixed(0)} mm high, ${whose} are ${least.toFixed(0)} to ${most.toFixed(0)}: ${reason}?`];
}
