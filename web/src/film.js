// From a file's bytes to its masks: read, checked, segmented, judged, measured. `infer.segment_films` for one film.
import { above, raster } from "./raster.js";
import { resize, resizeMask, runsAbove } from "./resize.js";
import { runsOf, cleanMask, count, findOutlines } from "./regions.js";
import { checkFilm, checkLungs, undo } from "./checks.js";
import { landmarks } from "./shape.js";
import { estimateQuality } from "./quality.js";
import { measure, splitLungs, checkHeight } from "./measure.js";
import { readFilm, Refusal } from "./read.js";

/**
 * @param networks - of `network.js`.
 * @param model - the package's constants.
 * @param first - the convention whose mask is wanted first.
 * @yields the film with a mask for the first convention, then each other one's mask; or {error}, or masks with errors.
 *   Its `upright` is an ImageBitmap, to be closed when it is shown no longer.
 */
export async function* segmentFilm(name, bytes, age, first, networks, model) {
  let read;
  try {
    read = await readFilm(bytes, model);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return yield { name, error: error.message, notes: [] };
  }
  const checked = await checkFilm(read.image, read.colour, read.lie, networks.viewOdds, model.checks);
  const notes = [...read.notes, ...checked.notes], { width, height } = read.image;
  const film = { name, width, height, notes };
  if (checked.problems.length) return yield { ...film, error: `refused: ${checked.problems.join("; ")}` };
  const turned = checked.lie.quarters % 2, spacing = read.spacing && turned ? [read.spacing[1], read.spacing[0]] : read.spacing;
  const conventions = Object.entries(model.conventions).sort(([name]) => (name === first ? -1 : 0));
  const [probabilities, upright] = await Promise.all([networks.probabilities(checked.image), picture(checked.image)]);
  const facts = { spacing, age: age ?? read.age, notes };
  for (const [n, [convention, { channel, fit }]] of conventions.entries()) {
    const mask = judge(probabilities(channel), checked, { ...facts, fit }, model);
    yield { ...(n ? {} : { ...film, upright, spacing, sides: checked.sides }), masks: { [convention]: mask } };
  }
}

function judge(prob, checked, { spacing, age, notes, fit }, model) {
  const { width, height } = checked.image;
  const mask = cleanMask(lungRuns(prob, width, height, model.threshold), { width, height });
  const side = model.estimate.side, small = resizeMask(mask, side, side), points = landmarks(small, model.shape.parts);
  const strange = checkLungs(mask, points, model.checks, model.lungShape);
  if (checked.doubtful && strange.length) return { error: `refused: ${model.checks.words.noChest}`, notes: [...notes, ...strange] };
  const quality = estimateQuality(prob, small, points, fit, model);
  const all = [...notes, ...strange, ...checkHeight(mask, spacing, age, model.height)];
  const lungs = splitLungs(mask), lying = undo(mask, checked.lie);
  return {
    notes: quality ? all : [...all, model.whyNoEstimate],
    quality,
    measured: measure(mask, spacing, lungs),
    lungPx: count(mask),
    mask: raster(lying.width, lying.height, lying.data), // without its runs, which would be copied to the page
    outlines: { right: findOutlines(lungs[0]), left: findOutlines(lungs[1]) },
  };
}

/** The runs of lung of a film, from the probabilities at the network's size. */
function lungRuns(prob, width, height, threshold) {
  const grows = width >= prob.width && height >= prob.height;
  return grows ? runsAbove(prob, width, height, threshold) : runsOf(above(resize(prob, width, height), threshold));
}

/** A film as canvases draw it. */
function picture({ data, width, height }) {
  const rgba = new Uint32Array(data.length); // bytes of red, green, blue and alpha: browsers' machines are little-endian
  for (let i = 0; i < data.length; i++) rgba[i] = 0xff000000 | (data[i] * 0x10101);
  const plain = { premultiplyAlpha: "none", colorSpaceConversion: "none" }; // gray and opaque: there is nothing to convert
  return createImageBitmap(new ImageData(new Uint8ClampedArray(rgba.buffer), width, height), plain);
}
