// PNG of 8 and 16 bits; browsers show 8 alone. Its size and the length of what is packed in it are looked at first.
import { decode } from "fast-png";
import { swapped } from "./raster.js";
import { Refusal, checkSize } from "./refusal.js";

const TRUNCATED = "the file is truncated or damaged: its end or its size is missing";
const DAMAGED = "the file is damaged in the middle: a checksum of its pixels is wrong";
const PIECE = 65536; // bytes
const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }, PALETTE = 3; // by the kind of colour

export async function readPng(bytes, most) {
  const { columns: width, rows: height, depth, colour, interlaced, packed } = declared(bytes), channels = CHANNELS[colour];
  checkSize(height, width, most);
  if (!channels) throw new Refusal(DAMAGED);
  const row = Math.ceil((width * channels * depth) / 8);
  // Each row has a byte more; interlaced rows are in seven parts.
  const raw = await unpack(packed, 2 * height * (row + 16) + 1024);
  const isPlain = depth >= 8 && colour !== PALETTE && !interlaced;
  if (isPlain && raw.length < height * (row + 1)) throw new Refusal(TRUNCATED);
  return isPlain ? { data: samples(raw, width, height, channels, depth), width, height, channels } : rare(bytes);
}

function declared(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), packed = [];
  try {
    const [columns, rows, depth, colour, interlaced] = [view.getUint32(16), view.getUint32(20), bytes[24], bytes[25], bytes[28]];
    for (let at = 8; ; ) {
      const length = view.getUint32(at), kind = view.getUint32(at + 4);
      if (kind === 0x49444154) packed.push(bytes.subarray(at + 8, at + 8 + length)); // IDAT
      if (kind === 0x6163544c) throw new Refusal(`PNG of ${view.getUint32(at + 8)} pictures, a film has one`); // acTL
      at += 12 + length;
      if (kind === 0x49454e44) break; // IEND
    }
    return { columns, rows, depth, colour, interlaced, packed };
  } catch (error) {
    throw error instanceof Refusal ? error : new Refusal(TRUNCATED);
  }
}

/** Unpacks pixels, whose own checksum the browser compares; refuses more than an image has before they fill the memory. */
async function unpack(packed, most) {
  const reader = inPieces(packed).pipeThrough(new DecompressionStream("deflate")).getReader(), parts = [];
  let length = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      if ((length += value.length) > most) throw new Refusal("it holds many more pixels than it declares: no film");
    }
  } catch (error) {
    throw error instanceof Refusal ? error : new Refusal(DAMAGED);
  } finally {
    reader.cancel().catch(() => {});
  }
  const whole = new Uint8Array(length);
  for (let n = 0, at = 0; n < parts.length; at += parts[n++].length) whole.set(parts[n], at);
  return whole;
}

/** Bytes in pieces, none of which unpacks to much. No Blob: its bytes would go to the browser's own process and back. */
function inPieces(packed) {
  const pieces = packed.flatMap((bytes) => Array.from({ length: Math.ceil(bytes.length / PIECE) }, (_, n) => bytes.subarray(n * PIECE, (n + 1) * PIECE)));
  let next = 0;
  return new ReadableStream({ pull: (out) => (next < pieces.length ? out.enqueue(pieces[next++]) : out.close()) });
}

/** Undoes the filter that each row's first byte names: bytes are differences from those before and above them. */
function samples(raw, width, height, channels, depth) {
  const step = (channels * depth) / 8, row = width * step, out = new Uint8Array(row * height);
  for (let y = 0, from = 0, to = 0; y < height; y++, to += row) {
    const filter = raw[from++];
    for (let x = 0; x < row; x++, from++) {
      const left = x < step ? 0 : out[to + x - step], up = y ? out[to + x - row] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) guess = paeth(left, up, y && x >= step ? out[to + x - row - step] : 0);
      out[to + x] = raw[from] + guess;
    }
  }
  if (depth === 8) return out;
  return new Uint16Array(out.buffer).map(swapped); // PNG's words begin with their high byte
}

/** Of the bytes before, above, and before that one, the nearest to their plane. Source: PNG specification, 9.4. */
function paeth(left, up, corner) {
  const byLeft = Math.abs(up - corner), byUp = Math.abs(left - corner), byCorner = Math.abs(left + up - 2 * corner);
  return byLeft <= byUp && byLeft <= byCorner ? left : byUp <= byCorner ? up : corner;
}

/** Palettes, interlaced pixels and fewer bits than eight. */
function rare(bytes) {
  try {
    const png = decode(bytes, { checkCrc: true });
    return { ...png, ...pixels(png) };
  } catch {
    throw new Refusal(DAMAGED);
  }
}

/** Pixels of 8 or 16 bits: a palette's colours, and fewer bits spread over the range. */
function pixels({ data, width, height, depth, channels, palette }) {
  if (depth >= 8 && !palette) return { data, channels };
  const all = depth >= 8 ? data : spread(data, width, height, depth);
  if (!palette) return { data: all.map((level) => (level * 255) / (2 ** depth - 1)), channels: 1 };
  const rgb = new Uint8Array(3 * width * height);
  all.forEach((index, at) => rgb.set((palette[index] ?? [0, 0, 0]).slice(0, 3), 3 * at));
  return { data: rgb, channels: 3 };
}

function spread(data, width, height, depth) {
  const row = Math.ceil((width * depth) / 8), out = new Uint8Array(width * height), each = 8 / depth;
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++, at++) out[at] = (data[y * row + Math.floor(x / each)] >> (8 - depth * ((x % each) + 1))) & (2 ** depth - 1);
  return out;
}
