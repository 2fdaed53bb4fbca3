// Pixels of a DICOM file, uncompressed or of the compressions that films come in; decoders are fetched when they are needed.
import dicomParser from "dicom-parser";
import { firstOf } from "./gray.js";
import { fromBrowser } from "./read.js";
import { swapped } from "./raster.js";
import { notAFilm } from "./dicom.js";
import { Refusal } from "./refusal.js";

const UID = "1.2.840.10008.1.2.", MOST_FRAGMENTS = 10_000;
const CODECS = {
  [`${UID}4.50`]: baseline, [`${UID}4.51`]: baseline, [`${UID}4.57`]: lossless, [`${UID}4.70`]: lossless, [`${UID}4.80`]: jpegLs,
  [`${UID}4.81`]: jpegLs, [`${UID}4.90`]: jpeg2000, [`${UID}4.91`]: jpeg2000, [`${UID}4.201`]: jpeg2000, [`${UID}4.202`]: jpeg2000,
  [`${UID}4.203`]: jpeg2000, [`${UID}5`]: rle,
};
const FRAME_HEADS = new Set([0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf, 0xf7]); // of JPEG and JPEG-LS
const SIZ = 0x51; // of JPEG 2000
const loaded = new Map();
let assets;

/** @param fetchFile - gives the bytes of a file beside the page. */
export function useFiles(fetchFile) {
  assets = fetchFile;
}

/** The stored words and their channels. */
export async function decodePixels(film) {
  const pixels = film.encapsulated ? await CODECS[film.syntax](frameOf(film), film) : native(film);
  if (pixels.length !== film.rows * film.columns * film.samples) throw new Refusal("it is truncated");
  return { data: film.samples === 3 ? interleaved(pixels, film) : pixels, channels: film.samples };
}

/** Bits of a sample by a compressed image's own head; 0 where it has none. Refuses one without an end, or larger than its tags say. */
export function bitsOf(film) {
  film.isCodestream = film.encapsulated && film.syntax !== `${UID}5`;
  if (!film.encapsulated) return 0;
  if (!CODECS[film.syntax]) throw notAFilm(`DICOM with transfer syntax ${film.syntax} is not read: convert it (gdcmconv --raw)`);
  if (film.pixels.fragments?.length > MOST_FRAGMENTS) throw new Refusal(`its image lies in more than ${MOST_FRAGMENTS.toLocaleString("en")} pieces`);
  return film.isCodestream ? head(frameOf(film), film) : 0;
}

function frameOf(film) {
  const { fragments } = film.pixels;
  if (!fragments?.length) throw new Refusal("it is truncated");
  return dicomParser.readEncapsulatedPixelDataFromFragments(film.data, film.pixels, 0, fragments.length);
}

function head(frame, film) {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length), box = indexOf(frame, [0xff, 0x4f, 0xff, 0x51], 0);
  let at = Math.max(box, 0) + 2, bits = 0;
  try {
    for (let marker; ![0xda, 0x93].includes((marker = view.getUint8(at + 1))); ) {
      if (view.getUint8(at) !== 0xff) throw new RangeError();
      if (marker === 0xff) { at++; continue; }
      if (FRAME_HEADS.has(marker)) {
        bits = view.getUint8(at + 4);
        checkImage(film, view.getUint16(at + 5), view.getUint16(at + 7), view.getUint8(at + 9));
      } else if (marker === SIZ) {
        const [right, bottom, left, top] = [6, 10, 14, 18].map((offset) => view.getUint32(at + offset));
        checkImage(film, bottom - top, right - left, view.getUint16(at + 38));
        bits = (view.getUint8(at + 40) & 0x7f) + 1;
      }
      at += 2 + view.getUint16(at + 2);
    }
  } catch (error) {
    throw error instanceof Refusal ? error : new Refusal("it is truncated, or its image has no head");
  }
  if (indexOf(frame, [0xff, 0xd9], at) < 0) throw new Refusal("it is truncated: its image has no end mark");
  return bits;
}

function checkImage(film, rows, columns, samples) {
  if (rows * columns * samples <= film.rows * film.columns * film.samples) return;
  const said = `${film.columns} x ${film.rows} x ${film.samples}`;
  throw new Refusal(`its image has ${columns} x ${rows} x ${samples} values, its tags say ${said}`);
}

function indexOf(bytes, wanted, from) {
  for (let at = bytes.indexOf(wanted[0], from); at >= 0; at = bytes.indexOf(wanted[0], at + 1))
    if (wanted.every((value, i) => bytes[at + i] === value)) return at;
  return -1;
}

function native(film) {
  const { dataOffset, length } = film.pixels, values = film.rows * film.columns * film.samples, size = film.allocated / 8;
  if (length < values * size || dataOffset + values * size > film.bytes.length) throw new Refusal("it is truncated");
  const bytes = film.bytes.slice(dataOffset, dataOffset + values * size);
  if (size === 1) return bytes;
  const words = new Uint16Array(bytes.buffer);
  return film.big ? words.map(swapped) : words;
}

function interleaved(pixels, film) {
  if (film.encapsulated || film.number("PlanarConfiguration") !== 1) return pixels;
  const n = film.rows * film.columns;
  return Uint8Array.from(pixels, (_, at) => pixels[(at % 3) * n + Math.floor(at / 3)]);
}

async function baseline(frame, film) {
  if (film.bits > 8) throw notAFilm("DICOM with JPEG Extended of 12 bits is not read: convert it (gdcmconv --raw)");
  const { data } = await fromBrowser(frame, "image/jpeg");
  return firstOf(data, film.samples);
}

async function lossless(frame, film) {
  const { Decoder } = await import("jpeg-lossless-decoder-js/release/lossless.js");
  const bytes = new Decoder().decompress(frame.buffer, frame.byteOffset, frame.length);
  return film.bits > 8 ? new Uint16Array(bytes) : film.allocated > 8 ? new Uint16Array(new Uint8Array(bytes)) : new Uint8Array(bytes);
}

async function jpegLs(frame, film) {
  const make = () => import("@cornerstonejs/codec-charls/decodewasmjs");
  return words(frame, film, new (await codec("charls", make)).JpegLSDecoder());
}

async function jpeg2000(frame, film) {
  const make = () => import("@cornerstonejs/codec-openjpeg/decodewasmjs");
  return words(frame, film, new (await codec("openjpeg", make)).J2KDecoder());
}

async function codec(name, make) {
  if (!loaded.has(name)) loaded.set(name, make().then(async ({ default: factory }) => factory({ wasmBinary: await assets(name), print() {}, printErr() {} })));
  return loaded.get(name);
}

function words(frame, film, decoder) {
  try {
    decoder.getEncodedBuffer(frame.length).set(frame);
    decoder.decode();
    const { bitsPerSample } = decoder.getFrameInfo(), bytes = decoder.getDecodedBuffer().slice();
    const all = bitsPerSample > 8 ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length >> 1) : bytes;
    return film.allocated > 8 && all instanceof Uint8Array ? new Uint16Array(all) : all;
  } finally {
    decoder.delete();
  }
}

/** PS3.5 annex G: of each byte of each sample, the highest first, a segment of runs. */
function rle(frame, film) {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length), segments = view.getUint32(0, true), n = film.rows * film.columns;
  const size = film.allocated / 8, out = new Uint8Array(n * film.samples * size);
  if (segments !== size * film.samples) throw new Refusal("its image has other samples than its tags say");
  for (let segment = 0; segment < segments; segment++) {
    const sample = Math.floor(segment / size), low = size - 1 - (segment % size);
    let at = view.getUint32(4 + 4 * segment, true), pixel = 0;
    const put = (value) => (out[(pixel++ * film.samples + sample) * size + low] = value);
    const end = segment + 1 < segments ? view.getUint32(8 + 4 * segment, true) : frame.length;
    while (pixel < n && at < end) {
      const run = view.getInt8(at++);
      if (run >= 0) for (let i = 0; i <= run && pixel < n; i++) put(view.getUint8(at++));
      else if (run > -128) for (let i = 0, value = view.getUint8(at++); i <= -run && pixel < n; i++) put(value);
    }
    if (pixel < n) throw new Refusal("it is truncated");
  }
  return size === 1 ? out : new Uint16Array(out.buffer);
}
