// DICOM radiographs to 8-bit gray, with the tags' spacing, lie and remarks: `dicom/read.py`.
import dicomParser from "dicom-parser";
import { luminance } from "./gray.js";
import { decodePixels, bitsOf } from "./codecs.js";
import { show } from "./windows.js";
import { Refusal, checkSize } from "./refusal.js";

export const TAGS = {
  TransferSyntaxUID: "x00020010", Modality: "x00080060", PatientAge: "x00101010", PatientOrientation: "x00200020",
  ViewPosition: "x00185101", BurnedInAnnotation: "x00280301", NumberOfFrames: "x00280008", Rows: "x00280010",
  Columns: "x00280011", BitsAllocated: "x00280100", BitsStored: "x00280101", HighBit: "x00280102",
  PixelRepresentation: "x00280103", SamplesPerPixel: "x00280002", PlanarConfiguration: "x00280006",
  PhotometricInterpretation: "x00280004", PixelSpacing: "x00280030", ImagerPixelSpacing: "x00181164",
  NominalScannedPixelSpacing: "x00182010", ModalityLUTSequence: "x00283000", RescaleSlope: "x00281053",
  RescaleIntercept: "x00281052", VOILUTSequence: "x00283010", WindowCenter: "x00281050", WindowWidth: "x00281051",
  VOILUTFunction: "x00281056", PixelPaddingValue: "x00280120", PixelPaddingRangeLimit: "x00280121",
  ShutterShape: "x00181600", ShutterLeftVerticalEdge: "x00181602", ShutterRightVerticalEdge: "x00181604",
  ShutterUpperHorizontalEdge: "x00181606", ShutterLowerHorizontalEdge: "x00181608", CollimatorShape: "x00181700",
  CollimatorLeftVerticalEdge: "x00181702", CollimatorRightVerticalEdge: "x00181704",
  CollimatorUpperHorizontalEdge: "x00181706", CollimatorLowerHorizontalEdge: "x00181708",
};
const PIXELS = "x7fe00010", IMPLICIT = "1.2.840.10008.1.2", EXPLICIT = "1.2.840.10008.1.2.1", BIG = "1.2.840.10008.1.2.2";
const DEFLATED = "1.2.840.10008.1.2.1.99", WHOLE = new Set(["US", "SS", "UL", "SL"]);
const SPACINGS = ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"];
const REQUIRED = ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel"];
const TEXTS = new Set(["TransferSyntaxUID", "Modality", "PatientAge", "PatientOrientation", "ViewPosition", "BurnedInAnnotation",
  "NumberOfFrames", "PhotometricInterpretation", ...SPACINGS, "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
  "VOILUTFunction", "ShutterShape", "CollimatorShape", ...edges("Shutter"), ...edges("Collimator")]);
// By what rows run to and what columns run to: mirrored, and the quarters that turn it upright.
const LIES = { LF: [0, 0], HL: [0, 1], RH: [0, 2], FR: [0, 3], RF: [1, 0], FL: [1, 1], LH: [1, 2], HR: [1, 3] };

export function edges(name) {
  return ["UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical"].map((edge) => `${name}${edge}Edge`);
}

/** "DICM" after the preamble, or a plausible first element in little endian. */
export function isDicom(bytes) {
  const text = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  if (text(128, 132) === "DICM") return true;
  if (bytes.length < 16 || ![2, 8].includes(bytes[0]) || bytes[1] || bytes[3]) return false;
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true);
  return /^(UL|CS|UI|OB|DA|TM|SH|LO)$/.test(text(4, 6)) || (0 < length && length <= 64);
}

export async function readDicom(bytes, { mostPixels, notFilms }) {
  try {
    const film = parse(bytes);
    check(film, mostPixels, notFilms);
    const notes = correctBits(film), pixels = await decodePixels(film), { rows: height, columns: width } = film;
    const colour = pixels.channels === 3 ? { data: pixels.data, width, height, channels: 3 } : null;
    const image = colour ? { data: luminance(pixels.data, 3), width, height } : show(pixels.data, film, notes);
    const spacing = readSpacing(film, notes), lie = LIES[film.list("PatientOrientation").map((side) => side[0]?.toUpperCase()).join("")];
    remark(film, lie, notes);
    return { image, colour, spacing, lie: lie ? { mirrored: !!lie[0], quarters: lie[1] } : null, age: readAge(film), notes: notes.map((note) => note.replaceAll(";", ",")) };
  } catch (error) {
    if (error instanceof Refusal && error.isWhole) throw error;
    throw error instanceof Refusal ? new Refusal(`damaged DICOM: ${error.message}`) : new Refusal("damaged DICOM: it can't be read to its end");
  }
}

/** The file is as it should be, but no film that is read here. */
export function notAFilm(reason) {
  return Object.assign(new Refusal(reason), { isWhole: true });
}

function parse(bytes) {
  const whole = String.fromCharCode(...bytes.subarray(128, 132)) === "DICM";
  const explicit = /^[A-Z]{2}$/.test(String.fromCharCode(...bytes.subarray(4, 6)));
  const data = dicomParser.parseDicom(bytes, whole ? {} : { TransferSyntaxUID: explicit ? EXPLICIT : IMPLICIT });
  const film = {
    data,
    bytes,
    /** An element's values: none, one or many. */
    list(name) {
      const tag = TAGS[name], element = data.elements[tag];
      if (!element || !element.length) return [];
      if (TEXTS.has(name)) return (data.string(tag) ?? "").split("\\").map((value) => value.trim()).filter((value, _, all) => value || all.length > 1);
      const signed = element.vr === "SS" || (!WHOLE.has(element.vr) && name.startsWith("PixelPadding") && film.signed);
      return Array.from({ length: element.length / 2 }, (_, i) => (signed ? data.int16(tag, i) : data.uint16(tag, i)));
    },
    number: (name) => film.list(name)[0],
    numbers: (name) => film.list(name).map(Number),
    pixels: data.elements[PIXELS],
    big: false,
  };
  film.syntax = film.list("TransferSyntaxUID")[0] ?? (whole || explicit ? EXPLICIT : IMPLICIT);
  film.big = film.syntax === BIG;
  film.encapsulated = ![IMPLICIT, EXPLICIT, BIG].includes(film.syntax);
  film.signed = film.number("PixelRepresentation") === 1;
  return film;
}

function check(film, mostPixels, notFilms) {
  if (film.syntax === DEFLATED) throw notAFilm("a deflated DICOM data set is not read: convert it (dcmconv +te)");
  if (!film.pixels) throw notAFilm("DICOM without an image in it");
  const [modality] = film.list("Modality");
  if (notFilms.includes(modality)) throw notAFilm(`DICOM of modality ${modality}, a radiograph has CR or DX`);
  const missing = REQUIRED.filter((name) => film.list(name).length !== 1);
  if (missing.length) throw new Refusal(`no valid ${missing.join(" and no ")}`);
  const [rows, columns, allocated, stored, representation, samples] = REQUIRED.map(film.number);
  checkSize(rows, columns, mostPixels);
  const frames = Number(film.number("NumberOfFrames") ?? 1);
  if (frames !== 1) throw notAFilm(`DICOM of ${frames} frames, a film has one`);
  const photometric = film.list("PhotometricInterpretation").join("");
  const gray = ["MONOCHROME1", "MONOCHROME2"].includes(photometric) && samples === 1, colour = /^(RGB|YBR_)/.test(photometric) && samples === 3 && allocated === 8;
  if (!gray && !colour)
    throw notAFilm(`DICOM of ${samples} samples per pixel, ${photometric || "of no photometric interpretation"}: MONOCHROME1, MONOCHROME2 and 8-bit RGB are read`);
  if (![8, 16].includes(allocated) || stored < 1 || stored > allocated || ![0, 1].includes(representation))
    throw notAFilm(`DICOM of ${stored} bits in ${allocated}: up to 16 in 8 or 16 are read`);
  Object.assign(film, { rows, columns, allocated, bits: stored, samples, photometric });
}

/** Of a compressed image the bits that its own head says; a note where the tags say others. */
function correctBits(film) {
  const bits = bitsOf(film);
  if (!bits || bits === film.bits) return [];
  const note = `its image has ${bits} bits, though BitsStored says ${film.bits}`;
  film.bits = bits;
  return [note];
}

function readSpacing(film, notes) {
  const wrong = [];
  for (const name of SPACINGS) {
    const values = film.numbers(name);
    if (values.length === 2 && values.every((value) => 0 < value && value < 10)) {
      notes.push(`spacing from ${name}`);
      return values;
    }
    if (values.length) wrong.push(name);
  }
  notes.push(wrong.length ? `no spacing: ${wrong.join(" and ")} ${wrong.length > 1 ? "are" : "is"} not that of a film` : "no spacing");
  return null;
}

function readAge(film) {
  const found = /^(\d{1,3})([DWMY])$/.exec(film.list("PatientAge").join(""));
  return found ? Number(found[1]) / { D: 365.25, W: 365.25 / 7, M: 12, Y: 1 }[found[2]] : null;
}

function remark(film, lie, notes) {
  const view = film.list("ViewPosition").join(""), sides = film.list("PatientOrientation").slice(0, 2).join("\\");
  if (view && !["PA", "AP"].includes(view)) notes.push(`view ${view}: not frontal`);
  if (lie && (lie[0] || lie[1])) notes.push(`stored ${wordsOf(lie)} (PatientOrientation ${sides})`);
  if (!lie && sides) notes.push(`PatientOrientation ${sides}: not that of a frontal film`);
  if (film.list("BurnedInAnnotation").includes("YES")) notes.push("burned-in annotation");
}

function wordsOf([mirrored, quarters]) {
  return [mirrored && "mirrored", ["", "on its side", "upside down", "on its side"][quarters]].filter(Boolean).join(" and ");
}
