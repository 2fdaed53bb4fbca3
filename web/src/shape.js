// Lung outlines as landmarks between anatomical corners, and how far they are from the training masks' ones:
// `quality/outline.py` and the shape models of `quality/checks.py` and `quality/flags.py`.
import { raster, above, crop, mirrored } from "./raster.js";
import { linear } from "./resize.js";
import { runsOf, findRegions, twoLargest, findOutlines, maskOf, boundingBox } from "./regions.js";

const LEAST = 0.015; // of the film; a lung has more

/** Landmarks of both lungs, x and y in units of the film, flat; null where there are no two lungs with corners. */
export function landmarks(mask, parts) {
  const runs = runsOf(mask), { labels, areas, columns } = findRegions(runs, true), largest = twoLargest(areas);
  if (largest.length < 2 || areas[largest[1]] < LEAST * mask.data.length) return null;
  largest.sort((a, b) => columns[a] - columns[b]);
  const lines = largest.map((lung, n) => trace(maskOf(mask, runs.filter((_, i) => labels[i] === lung)), n ? 1 : -1, parts));
  return lines[0] && lines[1] ? Float64Array.from([...lines[0], ...lines[1]].flat()) : null;
}

/** How far landmarks are from those of the training masks, in standard deviations; infinite without any. */
export function shapeDistance(points, model) {
  if (!points) return Infinity;
  const off = points.map((value, i) => value - model.mean[i]), scores = model.modes.map((mode) => dot(mode, off));
  const rest = off.map((value, i) => value - model.modes.reduce((sum, mode, n) => sum + scores[n] * mode[i], 0));
  const within = scores.reduce((sum, score, n) => sum + (score / model.sd[n]) ** 2, 0);
  return Math.sqrt((within + dot(rest, rest) / model.rest) / (model.sd.length + 1));
}

/** Root mean square of aligned landmarks' scores over their deviations; NaN without any. */
export function alignedDistance(points, model) {
  if (!points) return NaN;
  const moved = align(points, model.mean), off = moved.map((value, i) => value - model.mean[i] - model.centre[i]);
  const scores = model.modes.map((mode, n) => (dot(mode, off) / model.sd[n]) ** 2);
  return Math.sqrt(scores.reduce((sum, score) => sum + score, 0) / scores.length);
}

/** Points moved, turned and scaled onto others by least squares: as complex numbers, a * p + b. */
function align(points, target) {
  const n = points.length / 2, mean = (line, axis) => line.reduce((sum, value, i) => sum + (i % 2 === axis ? value : 0), 0) / n;
  const [sx, sy, tx, ty] = [mean(points, 0), mean(points, 1), mean(target, 0), mean(target, 1)];
  let [real, imaginary, size] = [0, 0, 0];
  for (let i = 0; i < points.length; i += 2) {
    const [x, y, u, v] = [points[i] - sx, points[i + 1] - sy, target[i] - tx, target[i + 1] - ty];
    real += x * u + y * v;
    imaginary += x * v - y * u;
    size += x * x + y * y;
  }
  const [a, b] = [real / size, imaginary / size], out = new Float64Array(points.length);
  for (let i = 0; i < points.length; i += 2) {
    const [x, y] = [points[i] - sx, points[i + 1] - sy];
    out[i] = a * x - b * y + tx;
    out[i + 1] = a * y + b * x + ty;
  }
  return out;
}

function trace(lung, side, parts) {
  const { width, height } = lung, sigma = height / 300, box = around(boundingBox(lung), lung, Math.ceil(4 * sigma) + 2);
  const soft = blur(crop(lung, box), sigma), double = linear(soft, 2 * box.width, 2 * box.height);
  const outline = findOutlines(above(double, 0.5)).reduce((longest, line) => (line.length > longest.length ? line : longest), []);
  let line = Array.from({ length: outline.length / 2 }, (_, i) => [(2 * box.x + outline[2 * i] + 0.5) / (2 * width), (2 * box.y + outline[2 * i + 1] + 0.5) / (2 * height)]);
  const twice = line.reduce((sum, [x, y], i) => sum + x * line[(i + 1) % line.length][1] - line[(i + 1) % line.length][0] * y, 0);
  if (side * twice < 0) line.reverse();
  const top = best(line, ([, y]) => -y);
  line = [...line.slice(top), ...line.slice(0, top)];
  // The corners are extreme points in the direction in which each one sticks out, whatever the lung's tilt.
  const angle = best(line, ([x, y]) => 0.5 * side * x + 0.87 * y), corner = best(line, ([x, y]) => -0.57 * side * x + 0.82 * y);
  if (!(0 < angle && angle < corner && corner < line.length - 8)) return null;
  line.push(line[0]);
  const ends = [0, angle, corner, line.length - 1];
  return parts.flatMap((count, n) => resample(line.slice(ends[n], ends[n + 1] + 1), count));
}

function best(points, score) {
  return points.reduce((found, point, i) => (score(point) > score(points[found]) ? i : found), 0);
}

function resample(line, count) {
  const along = [0];
  for (let i = 1; i < line.length; i++) along.push(along[i - 1] + Math.hypot(line[i][0] - line[i - 1][0], line[i][1] - line[i - 1][1]));
  const points = [];
  for (let n = 0, i = 0; n < count; n++) {
    const at = (along.at(-1) * n) / count;
    while (i < line.length - 2 && along[i + 1] <= at) i++;
    const share = (at - along[i]) / (along[i + 1] - along[i]);
    points.push([0, 1].map((axis) => line[i][axis] + share * (line[i + 1][axis] - line[i][axis])));
  }
  return points;
}

/** A box with a margin, within the film. */
function around({ x, y, width, height }, film, margin) {
  const left = Math.max(x - margin, 0), top = Math.max(y - margin, 0);
  return { x: left, y: top, width: Math.min(x + width + margin, film.width) - left, height: Math.min(y + height + margin, film.height) - top };
}

/** Gaussian blur of a mask as OpenCV's of floats; beyond the edges the image is mirrored. */
function blur({ data, width, height }, sigma) {
  const reach = Math.round(8 * sigma + 1) >> 1, weights = [];
  for (let i = -reach; i <= reach; i++) weights.push(Math.exp((-i * i) / (2 * sigma * sigma)));
  const sum = weights.reduce((a, b) => a + b), shares = weights.map((weight) => weight / sum);
  const across = new Float32Array(data.length), both = new Float32Array(data.length);
  const columns = mirrored(width, reach), rows = mirrored(height, reach);
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++, at++) for (let k = 0; k < shares.length; k++) across[at] += shares[k] * data[y * width + columns[x + k]];
  for (let y = 0; y < height; y++)
    for (let k = 0; k < shares.length; k++)
      for (let x = 0, from = rows[y + k] * width, at = y * width; x < width; x++, at++, from++) both[at] += shares[k] * across[from];
  return raster(width, height, both);
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
