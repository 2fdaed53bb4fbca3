// Stored values of a DICOM radiograph to 8-bit gray, as its tags say; what doesn't fit is left out, with a note:
// `dicom/windows.py`. LUTs work on a table of the values that pixels can have.
import { raster, rint } from "./raster.js";
import { grayRange, through } from "./gray.js";
import { edges } from "./dicom.js";

const LEAST_GRAY = 1 / 4, LEAST_FILM = 1 / 20, MOST_LUTS = 8, JUDGED = 100_000;

/** @param words - the pixels as decoded, each a word of 8 or 16 bits. */
export function show(words, film, notes) {
  const bits = Math.min(film.bits, words.BYTES_PER_ELEMENT * 8), { columns: width, rows: height } = film;
  const stored = storedBits(words, film, bits), values = 2 ** bits, half = values / 2;
  // Signed values index the table as their own bits do.
  const levels = Float64Array.from({ length: values }, (_, i) => (film.signed && i >= half ? i - values : i));
  const sample = inside(stored, width, height, film, notes), padding = paddingOf(levels, sample, film, notes);
  const seen = sample.filter((index) => !padding[index]), shown = throughLuts(levels, seen, film, notes);
  let table = shown;
  if (bits !== 8 || shown.some((value, i) => value !== i)) {
    const [low, high] = grayRange(seen.map((index) => shown[index]));
    table = shown.map((value) => rint(Math.min(Math.max((value - low) * (255 / (high - low || 1)), 0), 255)));
  }
  if (film.photometric === "MONOCHROME1") {
    table = table.map((value) => 255 - value);
    notes.push("MONOCHROME1 inverted");
  }
  const grays = Uint8Array.from(table, (value, i) => (padding[i] ? 0 : value));
  return raster(width, height, through(grays, stored));
}

/** The bits below HighBit, with what else is in the word dropped. */
function storedBits(words, film, bits) {
  const width = words.BYTES_PER_ELEMENT * 8, said = film.number("HighBit");
  const high = !film.isCodestream && Number.isInteger(said) && bits - 1 <= said && said < width ? said : bits - 1;
  const shift = high - bits + 1, mask = 2 ** bits - 1, stored = new Uint16Array(words.length);
  for (let i = 0; i < stored.length; i++) stored[i] = (words[i] >> shift) & mask;
  return stored;
}

/** Every fourth pixel of every fourth row within a rectangular shutter or collimator, or of all. */
function inside(stored, width, height, film, notes) {
  const some = (top, bottom, left, right) => {
    const found = [];
    for (let y = top; y < bottom; y += 4) for (let x = left; x < right; x += 4) found.push(stored[y * width + x]);
    return found;
  };
  for (const name of ["Shutter", "Collimator"]) {
    const found = edges(name).flatMap((edge) => film.numbers(edge));
    if (found.length !== 4 || !found.every(Number.isInteger) || !film.list(`${name}Shape`).includes("RECTANGULAR")) continue;
    const [top, bottom, left, right] = found, clip = (value, most) => Math.min(Math.max(value, 0), most);
    const [t, b, l, r] = [clip(top, height), clip(bottom, height), clip(left, width), clip(right, width)];
    const area = Math.max(b - t, 0) * Math.max(r - l, 0);
    if (stored.length > area && area >= stored.length / 4) {
      notes.push(`gray range from within the ${name.toLowerCase()} (rows ${top}-${bottom}, columns ${left}-${right})`);
      return some(t, b, l, r);
    }
  }
  return some(0, height, 0, width);
}

/** Which levels stand for no measurement. */
function paddingOf(levels, sample, film, notes) {
  const none = new Uint8Array(levels.length), values = film.list("PixelPaddingValue");
  if (!values.length) return none;
  const low = Math.min(...[levels[0], levels[levels.length / 2]]), bound = (end) => (((end - low) % levels.length) + levels.length) % levels.length + low;
  const ends = [...values, ...film.list("PixelPaddingRangeLimit")].map((end) => (Math.min(end, low) < 0 ? bound(end) : end));
  const padding = Uint8Array.from(levels, (level) => +(level >= Math.min(...ends) && level <= Math.max(...ends)));
  const left = sample.reduce((sum, index) => sum + (1 - padding[index]), 0);
  if (left >= LEAST_FILM * sample.length) return padding;
  notes.push("padding ignored: it would hide the film");
  return none;
}

/** What is shown for each level, by the first LUT of each kind that fits. */
function throughLuts(levels, seen, film, notes) {
  const step = Math.max(1, Math.floor(seen.length / JUDGED)), judged = seen.filter((_, i) => i % step === 0);
  const least = LEAST_GRAY * grayShare(judged.map((index) => levels[index]));
  const firstThatFits = (values, luts) => {
    for (const [name, lut] of luts)
      try {
        const shown = lut(values), looked = judged.map((index) => shown[index]);
        const varies = looked.some((value) => value !== looked[0]);
        if (shown.every(Number.isFinite) && varies && grayShare(looked) >= least) return [shown, name];
        notes.push(`${name} ignored: it would hide the film`);
      } catch {
        notes.push(`${name} ignored: empty or damaged`);
      }
    return [values, ""];
  };
  const [rescaled] = firstThatFits(levels, modalityLuts(film)), [shown, name] = firstThatFits(rescaled, voiLuts(film));
  if (shown.every((value, i) => Math.abs(value - rescaled[i]) <= 1e-8 + 1e-5 * Math.abs(rescaled[i]))) return rescaled;
  notes.push(name);
  return shown;
}

function grayShare(shown) {
  const [low, high] = grayRange(shown), edge = (high - low) / 256;
  return shown.reduce((sum, value) => sum + (value > low + edge && value < high - edge), 0) / shown.length;
}

function modalityLuts(film) {
  const luts = items(film, "x00283000").slice(0, 1).map((item) => ["Modality LUT", (values) => throughTable(values, item, film)]);
  const [slope] = film.list("RescaleSlope"), [intercept] = film.list("RescaleIntercept");
  if (slope !== undefined && intercept !== undefined)
    luts.push([`rescaling by ${slope}`, (values) => values.map((value) => value * Number(slope) + Number(intercept))]);
  return luts;
}

function voiLuts(film) {
  const tables = items(film, "x00283010").map((item) => ["VOI LUT", (values) => throughTable(values, item, film)]);
  const centers = film.numbers("WindowCenter"), widths = film.numbers("WindowWidth");
  const windows = centers.slice(0, widths.length).map((center, n) => ["window", (values) => window(values, center, widths[n], film)]);
  return [tables, windows].flatMap((luts) => luts.slice(0, MOST_LUTS).map(([kind, lut], n) => [n ? `${kind} ${n + 1}` : kind, lut]));
}

function items(film, tag) {
  return (film.data.elements[tag]?.items ?? []).map((item) => item.dataSet);
}

function throughTable(values, item, film) {
  const count = item.uint16("x00283002", 0) || 65536, bits = item.uint16("x00283002", 2), { dataOffset, length } = item.elements.x00283006;
  const bytes = film.bytes.slice(dataOffset, dataOffset + Math.min(length, 4 * 65536));
  let first = item.uint16("x00283002", 1);
  const words = Uint16Array.from({ length: bytes.length >> 1 }, (_, i) => (film.big ? (bytes[2 * i] << 8) | bytes[2 * i + 1] : bytes[2 * i] | (bytes[2 * i + 1] << 8)));
  const table = (bits <= 8 && words.length < count ? bytes : words).slice(0, count);
  if (!table.length) throw new Error("empty");
  if (first >= 32768 && values.some((value) => value < 0)) first -= 65536; // the first value has the pixels' sign
  return values.map((value) => table[Math.min(Math.max(rint(value) - first, 0), table.length - 1)]);
}

/** PS3.3 C.11.2: linear, linear exact or sigmoid. */
function window(values, center, width, film) {
  const [kind = "LINEAR"] = film.list("VOILUTFunction"), range = 2 ** film.bits - 1;
  if (!["LINEAR", "LINEAR_EXACT", "SIGMOID"].includes(kind) || !(width >= (kind === "LINEAR" ? 1 : Number.MIN_VALUE))) throw new Error("no window");
  if (kind === "SIGMOID") return values.map((value) => range / (1 + Math.exp((-4 * (value - center)) / width)));
  const [middle, wide] = kind === "LINEAR" ? [center - 0.5, width - 1] : [center, width];
  return values.map((value) => (value <= middle - wide / 2 ? 0 : value > middle + wide / 2 ? range : ((value - middle) / wide + 0.5) * range));
}
