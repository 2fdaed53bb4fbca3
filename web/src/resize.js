// OpenCV's resize: area average when an image shrinks, linear when it grows, and the nearest pixel.
import { raster, above, rint } from "./raster.js";

/** As `image.resize_image` of the package: a film or probabilities to `width` × `height`. */
export function resize(image, width, height, Type = image.data.constructor) {
  if (width === image.width && height === image.height) return image;
  const shrinks = width * height < image.width * image.height;
  const inBoth = width <= image.width && height <= image.height;
  if (shrinks && inBoth) return area(image, width, height, Type);
  return linear(image, width, height, shrinks, Type);
}

/** A mask in {0, 1}: a new pixel is lung where at least half of its area was. */
export function resizeMask(mask, width, height) {
  const shares = resize(mask, width, height, Float32Array);
  return above(shares, 0.5 - 1e-6);
}

/** Area average of an image that shrinks in both directions: rows first, which is the more work and the simpler one. */
export function area({ data, width, height }, toWidth, toHeight, Type = data.constructor) {
  const rows = cells(height, toHeight), { starts, pixels, shares } = cells(width, toWidth);
  const out = new Type(toWidth * toHeight), whole = Type !== Float32Array, sum = new Float64Array(width);
  for (let y = 0, at = 0; y < toHeight; y++) {
    sum.fill(0);
    for (let j = rows.starts[y]; j < rows.starts[y + 1]; j++) {
      const start = rows.pixels[j] * width, share = rows.shares[j];
      for (let x = 0; x < width; x++) sum[x] += share * data[start + x];
    }
    for (let x = 0, i = 0; x < toWidth; x++, at++) {
      let mean = 0;
      for (const end = starts[x + 1]; i < end; i++) mean += sum[pixels[i]] * shares[i];
      // A sum of float shares lies a little off a half.
      out[at] = whole ? rint(Math.round(mean * 1e6) / 1e6) : mean;
    }
  }
  return raster(toWidth, toHeight, out);
}

/** Which pixels lie in each of `to` cells along an axis, and with what share of the cell. */
function cells(from, to) {
  const scale = from / to, starts = new Int32Array(to + 1), pixels = [], shares = [];
  const add = (pixel, share) => { pixels.push(pixel); shares.push(share); };
  for (let cell = 0; cell < to; cell++) {
    const first = cell * scale, last = first + scale, size = Math.min(scale, from - first);
    const end = Math.min(Math.floor(last), from - 1), begin = Math.min(Math.ceil(first), end);
    if (begin - first > 1e-3) add(begin - 1, (begin - first) / size);
    for (let pixel = begin; pixel < end; pixel++) add(pixel, 1 / size);
    if (last - end > 1e-3) add(end, Math.min(last - end, 1, size) / size);
    starts[cell + 1] = pixels.length;
  }
  return { starts, pixels: Int32Array.from(pixels), shares: Float64Array.from(shares) };
}

/** Linear interpolation; with `byArea` between the shares of area, which OpenCV does where one side shrinks alone. */
export function linear({ data, width, height }, toWidth, toHeight, byArea = false, Type = data.constructor) {
  const whole = Type !== Float32Array, scale = whole ? 2048 : 1; // 8 bits in OpenCV's fixed point
  const columns = places(width, toWidth, byArea, scale), rows = places(height, toHeight, byArea, scale);
  const out = new Type(toWidth * toHeight);
  let [upper, lower] = [new Float64Array(toWidth), new Float64Array(toWidth)];
  const fill = (line, row) => {
    const { pixels, before, after } = columns, start = Math.min(row, height - 1) * width, last = width - 1;
    for (let x = 0; x < toWidth; x++) {
      const left = pixels[x];
      line[x] = before[x] * data[start + left] + after[x] * data[start + (left < last ? left + 1 : last)];
    }
  };
  for (let y = 0, at = 0, row = -2; y < toHeight; y++) {
    if (rows.pixels[y] === row + 1) {
      [upper, lower] = [lower, upper];
      fill(lower, row + 2);
    } else if (rows.pixels[y] !== row) {
      fill(upper, rows.pixels[y]);
      fill(lower, rows.pixels[y] + 1);
    }
    row = rows.pixels[y];
    const above = rows.before[y], below = rows.after[y];
    if (whole) for (let x = 0; x < toWidth; x++, at++) out[at] = (((above * (upper[x] >> 4)) >> 16) + ((below * (lower[x] >> 4)) >> 16) + 2) >> 2;
    else for (let x = 0; x < toWidth; x++, at++) out[at] = above * upper[x] + below * lower[x];
  }
  return raster(toWidth, toHeight, out);
}

/**
 * The runs of what is above a threshold in an image enlarged by linear interpolation, as `regions.js` has them. Between
 * two of its own pixels a row of the enlarged image crosses the threshold once at most: most pixels need no look.
 */
export function runsAbove({ data, width, height }, toWidth, toHeight, threshold) {
  const { pixels, before, after } = places(width, toWidth, false, 1), rows = places(height, toHeight, false, 1);
  const firsts = new Int32Array(width + 1).fill(toWidth), line = new Float64Array(width + 1), runs = [];
  for (let x = toWidth - 1; x >= 0; x--) firsts[pixels[x]] = x;
  for (let i = width - 1; i >= 0; i--) firsts[i] = Math.min(firsts[i], firsts[i + 1]);
  for (let y = 0; y < toHeight; y++) {
    const upper = rows.pixels[y] * width, lower = Math.min(rows.pixels[y] + 1, height - 1) * width;
    for (let i = 0; i < width; i++) line[i] = rows.before[y] * data[upper + i] + rows.after[y] * data[lower + i];
    line[width] = line[width - 1];
    let start = -1;
    const turn = (x) => {
      if (start < 0) start = x;
      else runs.push({ row: y, start, end: x }), (start = -1);
    };
    for (let i = 0; i < width; i++) {
      const isAbove = line[i] > threshold;
      if (isAbove === line[i + 1] > threshold) {
        if (isAbove !== start >= 0 && firsts[i] < firsts[i + 1]) turn(firsts[i]);
        continue;
      }
      for (let x = firsts[i]; x < firsts[i + 1]; x++) if (before[x] * line[i] + after[x] * line[i + 1] > threshold !== start >= 0) turn(x);
    }
    if (start >= 0) turn(toWidth);
  }
  return runs;
}

/** For each of `to` pixels the one before it, and the weights of that one and of the next, which add up to `scale`. */
function places(from, to, byArea, scale) {
  const step = from / to, pixels = new Int32Array(to), before = new Float64Array(to), after = new Float64Array(to);
  for (let i = 0; i < to; i++) {
    let pixel = Math.floor(byArea ? i * step : (i + 0.5) * step - 0.5);
    let share = byArea ? i + 1 - (pixel + 1) / step : (i + 0.5) * step - 0.5 - pixel;
    if (byArea) share = share <= 0 ? 0 : share - Math.floor(share);
    if (pixel < 0) [pixel, share] = [0, 0];
    if (pixel >= from - 1) [pixel, share] = [from - 1, 0];
    pixels[i] = pixel;
    after[i] = scale === 1 ? share : rint(share * scale);
    before[i] = scale - after[i];
  }
  return { pixels, before, after };
}

/** Share of lung in each cell of a coarse grid over a box, by 16 pixels per cell: OpenCV's nearest ones, averaged in 8 bits. */
export function coarse({ data, width }, box, columns, rows) {
  const across = centres(box.width, 4 * columns), down = centres(box.height, 4 * rows), out = new Float32Array(columns * rows);
  for (let y = 0; y < 4 * rows; y++) {
    const start = (box.y + down[y]) * width + box.x, row = (y >> 2) * columns;
    for (let x = 0; x < 4 * columns; x++) out[row + (x >> 2)] += data[start + across[x]];
  }
  for (let i = 0; i < out.length; i++) out[i] = rint((out[i] * 255) / 16) / 255;
  return raster(columns, rows, out);
}

/** The pixel at each new pixel's centre, in OpenCV's fixed point. */
function centres(from, to) {
  const step = Math.floor((from * 65536 + Math.floor(to / 2)) / to), first = Math.floor(step / 2) - (from % 2);
  return Int32Array.from({ length: to }, (_, i) => Math.min(Math.floor((step * i + first) / 65536), from - 1));
}
