// Rasters: {data, width, height}, row by row; a film is Uint8Array, a mask Uint8Array in {0, 1}, probabilities Float32Array.

export function raster(width, height, data = new Uint8Array(width * height)) {
  return { data, width, height };
}

export function map(image, make, Type = Uint8Array) {
  const data = new Type(image.data.length);
  for (let i = 0; i < data.length; i++) data[i] = make(image.data[i], i);
  return raster(image.width, image.height, data);
}

/** A mask of what is above a threshold. */
export function above({ data, width, height }, threshold) {
  const mask = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i++) mask[i] = data[i] > threshold ? 1 : 0;
  return raster(width, height, mask);
}

/** Left and right change places. */
export function mirror({ data, width, height }) {
  const out = new data.constructor(data.length);
  for (let at = 0; at < data.length; at += width)
    for (let x = 0; x < width; x++) out[at + x] = data[at + width - 1 - x];
  return raster(width, height, out);
}

/** Turned counter-clockwise by so many quarters. */
export function turn(image, quarters) {
  const { data, width, height } = image;
  quarters = ((quarters % 4) + 4) % 4;
  if (!quarters) return image;
  const out = new data.constructor(data.length);
  const [w, h] = quarters % 2 ? [height, width] : [width, height];
  for (let y = 0, at = 0; y < h; y++)
    for (let x = 0; x < w; x++, at++) {
      const [sx, sy] = quarters === 1 ? [width - 1 - y, x] : quarters === 2 ? [width - 1 - x, height - 1 - y] : [y, height - 1 - x];
      out[at] = data[sy * width + sx];
    }
  return raster(w, h, out);
}

/** Every `step`-th pixel of every `step`-th row. */
export function sampled({ data, width, height }, step) {
  const w = Math.ceil(width / step), h = Math.ceil(height / step);
  const out = new data.constructor(w * h);
  for (let y = 0, at = 0; y < h; y++) for (let x = 0; x < w; x++, at++) out[at] = data[y * step * width + x * step];
  return raster(w, h, out);
}

export function crop({ data, width }, { x, y, width: w, height: h }) {
  const out = new data.constructor(w * h);
  for (let row = 0; row < h; row++) out.set(data.subarray((y + row) * width + x, (y + row) * width + x + w), row * w);
  return raster(w, h, out);
}

/** The pixels along an axis with some more at both ends, where the image is mirrored about its last pixels. */
export function mirrored(size, more) {
  return Int32Array.from({ length: size + 2 * more }, (_, i) => {
    const at = Math.abs(i - more);
    return at < size ? at : Math.max(2 * size - 2 - at, 0);
  });
}

/** A word of 16 bits with its bytes the other way round. */
export function swapped(word) {
  return ((word & 0xff) << 8) | (word >> 8);
}

/** To the nearest whole number, halves to the even one, as NumPy and OpenCV do. */
export function rint(value) {
  const low = Math.floor(value), rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}
