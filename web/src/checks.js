// Is this a frontal chest film, which way up, and do the lungs found in it look like lungs? `quality/checks.py`.
import { raster, map, mirror, turn, sampled } from "./raster.js";
import { area } from "./resize.js";
import { runsOf } from "./regions.js";
import { shapeDistance } from "./shape.js";

export const UPRIGHT = { mirrored: false, quarters: 0 };

/** A film or mask of the file, upright. */
export function putRight(image, { mirrored, quarters }) {
  return turn(mirrored ? mirror(image) : image, quarters);
}

/** An upright film or mask as the file has it. */
export function undo(image, { mirrored, quarters }) {
  const lying = turn(image, -quarters);
  return mirrored ? mirror(lying) : lying;
}

/**
 * What is wrong with a film before it is segmented; turned and inverted where that is certain.
 * @param image - as read.
 * @param colour - {data, width, height, channels} where the file is in colour, else null.
 * @param lie - how it lies by its file, null where that says nothing.
 * @param viewOdds - of a thumbnail's 16 views: see `network.js`.
 */
export async function checkFilm(image, colour, lie, viewOdds, limits) {
  const said = lie ?? UPRIGHT, words = limits.words, lying = said.mirrored || said.quarters > 0;
  image = putRight(image, said);
  const problem = noRadiograph(image, limits);
  if (problem) return { image, lie: said, problems: [problem], notes: [] };
  const share = colour ? colouredShare(colour) : 0;
  const coloured = share > limits.coloured ? [`a picture in colour (${Math.round(100 * share)}% of it)`] : [];
  const odds = await viewOdds(views(thumbnail(image, limits.thumb)));
  if (logSum(odds) < limits.chest) return { image, lie: said, problems: [coloured.length ? words.noPhoto : words.noChest], notes: coloured };
  if (lying && position(odds, limits.sure).quarters) {
    const seen = await checkFilm(undo(image, said), colour, null, viewOdds, limits);
    return { ...seen, notes: ["doesn't lie as its file says: put right by what is seen alone", ...seen.notes], sides: seen.sides && !said.mirrored };
  }
  return { ...corrected(image, said, odds, limits, lying, coloured), problems: [] };
}

function corrected(image, said, odds, limits, lying, coloured) {
  const found = position(odds, limits.sure), words = limits.words, start = 8 * found.negative + found.quarters;
  const mirrored = odds[start + 4] - odds[start] > limits.mirrored, doubtful = logSum(odds) < limits.doubtful;
  const upright = turn(image, found.quarters);
  const notes = [
    found.negative && "a negative: inverted",
    found.quarters && words.turned[found.quarters],
    lying && words.obeyed,
    ...coloured,
    doubtful && "hardly like a frontal chest film",
    !found.sure && "perhaps turned or a negative: left as it is",
    found.sure && mirrored && "mirrored, or the heart is on the right: left as it is",
  ].filter(Boolean);
  return {
    image: found.negative ? map(upright, (level) => 255 - level) : upright,
    lie: { mirrored: said.mirrored, quarters: (said.quarters + found.quarters) % 4 },
    notes,
    doubtful,
    sides: found.sure && !mirrored,
  };
}

function noRadiograph(image, limits) {
  const { width, height } = image;
  if (Math.min(width, height) < limits.leastSide) return `too small: ${width}×${height} px, lungs need ${limits.leastSide} px and more`;
  const counts = histogram(image);
  if (isMask(image, counts, limits)) return limits.words.mask;
  return contrast(counts) < limits.leastContrast ? `blank: nearly all of it within ${limits.leastContrast} gray levels` : "";
}

function isMask(image, counts, { near, twoLevels, leastContrast }) {
  const levels = counts.flatMap((n, level) => (n ? [level] : []));
  if (levels.length <= 3) return [2, 3].includes(new Set(image.data).size);
  const [low, high] = [levels[0], levels.at(-1)], total = counts.reduce((a, b) => a + b);
  const close = levels.reduce((sum, level) => sum + (Math.min(level - low, high - level) <= near ? counts[level] : 0), 0);
  return close > twoLevels * total && contrast(counts) >= leastContrast;
}

function contrast(counts) {
  const total = counts.reduce((a, b) => a + b), at = (share) => {
    let below = 0;
    return counts.findIndex((n) => (below += n) >= share * total);
  };
  return at(0.99) - at(0.01);
}

/** How many pixels of a film, of a large one every k-th, have each of the 256 gray levels. */
function histogram(image) {
  const counts = new Array(256).fill(0);
  for (const level of sampled(image, stepOf(image)).data) counts[level]++;
  return counts;
}

function stepOf({ width, height }) {
  return Math.max(1, Math.floor(Math.min(width, height) / 256));
}

/** Share of pixels whose colour stands out by more than an eighth of the range, after an even tint is taken off. */
function colouredShare({ data, width, height, channels }) {
  const step = stepOf({ width, height }), chroma = [], grays = [];
  let most = 0;
  for (let y = 0; y < height; y += step)
    for (let x = 0; x < width; x += step) {
      const rgb = Array.from(data.subarray((y * width + x) * channels, (y * width + x) * channels + 3)), gray = (rgb[0] + rgb[1] + rgb[2]) / 3;
      most = Math.max(most, ...rgb);
      grays.push(gray);
      chroma.push(rgb.map((level) => level - gray));
    }
  const square = grays.reduce((sum, gray) => sum + gray * gray, 0) + 1e-6 * most * most;
  // Sepia or blue film has a tint that grows with brightness: what is left of a line through the origin counts.
  const tint = [0, 1, 2].map((c) => grays.reduce((sum, gray, i) => sum + gray * chroma[i][c], 0) / square);
  const standsOut = ([r, g, b], i) => {
    const left = [r - tint[0] * grays[i], g - tint[1] * grays[i], b - tint[2] * grays[i]];
    return Math.max(...left) - Math.min(...left) > most / 8;
  };
  return chroma.filter(standsOut).length / chroma.length;
}

/** The film at a small square, with zero mean and unit deviation: its negative has the other sign. */
function thumbnail(image, side) {
  const small = area(sampled(image, stepOf(image)), side, side), n = small.data.length;
  const mean = small.data.reduce((a, b) => a + b) / n;
  const deviation = Math.sqrt(small.data.reduce((sum, level) => sum + (level - mean) ** 2, 0) / n);
  return map(small, (level) => (level - mean) / (deviation + 1e-3), Float32Array);
}

/** The 16 views of a thumbnail: as it is or negative, mirrored or not, turned by so many quarters. */
function views(thumb) {
  const turns = [0, 1, 2, 3].map((quarters) => turn(thumb, quarters)), both = [...turns, ...turns.map(mirror)];
  return [...both, ...both.map((view) => map(view, (value) => -value, Float32Array))];
}

/** How a film lies: whether it is a negative, and the quarters that turn it upright; both 0 if not sure. */
function position(odds, sure) {
  const positions = [0, 8].flatMap((negative) => [0, 1, 2, 3].map((quarters) => logSum([odds[negative + quarters], odds[negative + 4 + quarters]])));
  const most = Math.max(...positions), ahead = most - positions[0], best = positions.indexOf(most);
  if (0 < ahead && ahead < sure) return { negative: 0, quarters: 0, sure: false };
  return { negative: best >> 2, quarters: best % 4, sure: true };
}

function logSum(values) {
  const most = Math.max(...values);
  return most + Math.log(values.reduce((sum, value) => sum + Math.exp(value - most), 0));
}

/** What is strange about the lungs found in an upright film: none, cut by the frame, not two, or of an unusual shape. */
export function checkLungs(mask, points, { cut, unusual, words }, model) {
  if (!runsOf(mask).length) return [words.noLung];
  const { width, height } = mask, at = (x, y) => mask.data[y * width + x], notes = [];
  const edges = {
    top: [width, (i) => at(i, 0)],
    bottom: [width, (i) => at(i, height - 1)],
    left: [height, (i) => at(0, i)],
    right: [height, (i) => at(width - 1, i)],
  };
  const contact = ([length, value]) => Array.from({ length }, (_, i) => value(i)).reduce((a, b) => a + b) / length;
  const sides = Object.keys(edges).filter((side) => contact(edges[side]) > cut);
  if (sides.length) notes.push(`lungs cut by the frame (${sides.join(", ")})`);
  const distance = shapeDistance(points, model);
  if (distance === Infinity) notes.push("the lungs are not two, or have no corners");
  else if (distance > unusual) notes.push(`lungs of an unusual shape or place (${distance.toFixed(1)} sd)`);
  return notes;
}

/** A film's gray rows and columns at its edges, as the notes of `image.read_film` say them. */
export function borderNote(image) {
  const { data, width, height } = image;
  const flat = (start, step, n) => {
    for (let i = 1; i < n; i++) if (data[start + i * step] !== data[start]) return false;
    return true;
  };
  const runs = (n, isFlat) => {
    for (let i = 0; i < n; i++) if (!isFlat(i)) return i;
    return 0;
  };
  const sides = {
    top: runs(height, (y) => flat(y * width, 1, width)),
    bottom: runs(height, (y) => flat((height - 1 - y) * width, 1, width)),
    left: runs(width, (x) => flat(x, width, height)),
    right: runs(width, (x) => flat(width - 1 - x, width, height)),
  };
  const text = Object.entries(sides).map(([side, n]) => `${n} ${side}`).join(", ");
  return Object.values(sides).some(Boolean) ? [`constant border: ${text}`] : [];
}
