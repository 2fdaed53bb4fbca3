// A file's bytes to an 8-bit gray film, recognised by its content: `image.read_film` for what browsers and npm decode.
import { raster } from "./raster.js";
import { borderNote } from "./checks.js";
import { luminance, from16, firstOf } from "./gray.js";
import { isDicom, readDicom } from "./dicom.js";
import { readPng } from "./png.js";
import { Refusal, checkSize } from "./refusal.js";

export { Refusal };

/** @returns {{image, colour, spacing, lie, age, notes}} colour is {data, width, height, channels} or null. */
export async function readFilm(bytes, model) {
  if (!bytes.length) throw new Refusal("the file is empty");
  if (bytes.length > model.mostBytes) throw new Refusal(`${bytes.length.toLocaleString("en")} bytes, more than ${model.mostBytes.toLocaleString("en")}: too large for a film`);
  const film = isDicom(bytes) ? await readDicom(bytes, model) : picture(await decode(bytes, model.mostPixels));
  return { ...film, notes: [...film.notes, ...borderNote(film.image)] };
}

async function decode(bytes, most) {
  const kind = kindOf(bytes), size = kind && (kind === "PNG" ? null : SIZES[kind](bytes));
  if (kind === "PNG") return readPng(bytes, most);
  if (!kind) throw new Refusal("not an image: it begins as no PNG, JPEG, WebP or DICOM does");
  if (!size) throw new Refusal("the file is truncated or damaged: its end or its size is missing");
  checkSize(size.rows, size.columns, most);
  return fromBrowser(bytes, `image/${kind.toLowerCase()}`, size.gray);
}

function picture({ data, width, height, channels, notes = [] }) {
  const gray = luminance(data, channels), image = data instanceof Uint16Array ? from16(gray, width, height) : raster(width, height, gray);
  return { image, colour: channels > 2 ? { data, width, height, channels } : null, spacing: null, lie: null, age: null, notes };
}

/** Pixels that the browser itself decodes, upright by their orientation tag; its colours are not managed. */
export async function fromBrowser(bytes, type, gray = false) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes], { type }), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Refusal("not an image that this browser can read: damaged, or of a rare kind");
  }
  const { width, height } = bitmap, canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const rgba = new Uint8Array(data.buffer);
  return gray ? { data: firstOf(rgba, 1), width, height, channels: 1 } : { data: rgba, width, height, channels: 4 };
}

function kindOf(bytes) {
  const text = String.fromCharCode(...bytes.subarray(0, 16));
  if (text.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  if (text.startsWith("\xff\xd8\xff")) return "JPEG";
  return /^RIFF....WEBP/s.test(text) ? "WebP" : null;
}

// What files declare of their size before anything decodes them; null where it, or the file's end, is missing.
const SIZES = {
  JPEG(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    let frame = null;
    for (let at = 2; at + 4 <= bytes.length; ) {
      if (bytes[at] !== 0xff || [0, 1, 0xff].includes(bytes[at + 1]) || (bytes[at + 1] >= 0xd0 && bytes[at + 1] <= 0xd8)) { at++; continue; }
      const marker = bytes[at + 1];
      if (marker === 0xd9) return frame;
      if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker) && at + 10 <= bytes.length)
        frame ??= { rows: view.getUint16(at + 5), columns: view.getUint16(at + 7), gray: bytes[at + 9] === 1 };
      at += 2 + view.getUint16(at + 2);
    }
    return bytes.at(-2) === 0xff && bytes.at(-1) === 0xd9 ? frame : null;
  },
  WebP(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (bytes.length < 30 || 8 + view.getUint32(4, true) > bytes.length) return null;
    const three = (at) => bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16);
    switch (String.fromCharCode(...bytes.subarray(12, 16))) {
      case "VP8X": return { rows: 1 + three(27), columns: 1 + three(24) };
      case "VP8L": return { rows: 1 + ((view.getUint32(21, true) >> 14) & 0x3fff), columns: 1 + (view.getUint32(21, true) & 0x3fff) };
      case "VP8 ": return { rows: view.getUint16(28, true) & 0x3fff, columns: view.getUint16(26, true) & 0x3fff };
      default: return null;
    }
  },
};
