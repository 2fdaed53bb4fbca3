// PNG of 8 and 16 bits; browsers show 8 alone. Its size and the length of what is packed in it are looked at first.
import { decode } from "fast-png";
import { Refusal, checkSize } from "./refusal.js";

const TRUNCATED = "the file is truncated or damaged: its end or its size is missing";

export async function readPng(bytes, most) {
  const { columns, rows, depth, samples, packed } = declared(bytes);
  checkSize(rows, columns, most);
  // Each row has a byte more; interlaced rows are in seven parts.
  await checkLength(packed, 2 * rows * (Math.ceil((columns * samples * depth) / 8) + 16) + 1024);
  let png;
  try {
    png = decode(bytes, { checkCrc: true });
  } catch {
    throw new Refusal("the file is damaged in the middle: a checksum of its pixels is wrong");
  }
  return { ...png, ...pixels(png) };
}

function declared(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), packed = [];
  try {
    const [columns, rows, depth, colour] = [view.getUint32(16), view.getUint32(20), bytes[24], bytes[25]];
    for (let at = 8; ; ) {
      const length = view.getUint32(at), kind = view.getUint32(at + 4);
      if (kind === 0x49444154) packed.push(bytes.subarray(at + 8, at + 8 + length)); // IDAT
      if (kind === 0x6163544c) throw new Refusal(`PNG of ${view.getUint32(at + 8)} pictures, a film has one`); // acTL
      at += 12 + length;
      if (kind === 0x49454e44) break; // IEND
    }
    return { columns, rows, depth, samples: { 2: 3, 4: 2, 6: 4 }[colour] ?? 1, packed };
  } catch (error) {
    throw error instanceof Refusal ? error : new Refusal(TRUNCATED);
  }
}

/** Refuses pixels that unpack to more than the image has, before they fill the memory. */
async function checkLength(packed, most) {
  const reader = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  try {
    for (let length = 0; ; ) {
      const { done, value } = await reader.read();
      if (done) return;
      if ((length += value.length) > most) throw new Refusal("it holds many more pixels than it declares: no film");
    }
  } catch (error) {
    throw error instanceof Refusal ? error : new Refusal(TRUNCATED);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Pixels of 8 or 16 bits: a palette's colours, and fewer bits spread over the range. */
function pixels({ data, width, height, depth, channels, palette }) {
  if (depth >= 8 && !palette) return { data, channels };
  const all = depth >= 8 ? data : unpack(data, width, height, depth);
  if (!palette) return { data: all.map((level) => (level * 255) / (2 ** depth - 1)), channels: 1 };
  const rgb = new Uint8Array(3 * width * height);
  all.forEach((index, at) => rgb.set((palette[index] ?? [0, 0, 0]).slice(0, 3), 3 * at));
  return { data: rgb, channels: 3 };
}

function unpack(data, width, height, depth) {
  const row = Math.ceil((width * depth) / 8), out = new Uint8Array(width * height), each = 8 / depth;
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++, at++) out[at] = (data[y * row + Math.floor(x / each)] >> (8 - depth * ((x % each) + 1))) & (2 ** depth - 1);
  return out;
}
