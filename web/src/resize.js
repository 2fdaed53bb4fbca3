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

/** Area average of an image that shrinks in both directions. */
export function area({ data, width, height }, toWidth, toHeight, Type = data.constructor) {
  const columns = cells(width, toWidth), rows = cells(height, toHeight);
  const out = new Type(toWidth * toHeight), whole = Type !== Float32Array;
  const sum = new Float64Array(toWidth);
  const { starts, pixels, shares } = columns;
  for (let y = 0; y < toHeight; y++) {
    sum.fill(0);
    for (let j = rows.starts[y]; j < rows.starts[y + 1]; j++) {
      const start = rows.pixels[j] * width, share = rows.shares[j];
      for (let x = 0, i = 0; x < toWidth; x++) {
        let along = 0;
        for (const end = starts[x + 1]; i < end; i++) along += data[start + pixels[i]] * shares[i];
        sum[x] += share * along;
      }
    }
    // A sum of float shares lies a little off a half.
    for (let x = 0; x < toWidth; x++) out[y * toWidth + x] = whole ? rint(Math.round(sum[x] * 1e6) / 1e6) : sum[x];
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

/** Share of lung in each cell of a coarse grid, by 16 pixels per cell: OpenCV's nearest ones, averaged in 8 bits. */
export function coarse({ data, width, height }, columns, rows) {
  const across = centres(width, 4 * columns), down = centres(height, 4 * rows), out = new Float32Array(columns * rows);
  for (let y = 0; y < 4 * rows; y++) {
    const start = down[y] * width, row = (y >> 2) * columns;
    for (let x = 0; x < 4 * columns; x++) out[row + (x >> 2)] += data[start + across[x]];
  }
  return raster(columns, rows, out.map((sum) => rint((sum * 255) / 16) / 255));
}

/** The pixel at each new pixel's centre, in OpenCV's fixed point. */
function centres(from, to) {
  const step = Math.floor((from * 65536 + Math.floor(to / 2)) / to), first = Math.floor(step / 2) - (from % 2);
  return Int32Array.from({ length: to }, (_, i) => Math.min(Math.floor((step * i + first) / 65536), from - 1));
}
