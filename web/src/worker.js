// Segments films away from the page, so that it stays at hand. It gets {base} first, then {name, bytes, age,
// convention}, and answers {film, done}: the parts of a film as they come. {moved} says where lungs are computed from now on.
import { openNetworks } from "./network.js";
import { segmentFilm } from "./film.js";
import { useFiles } from "./codecs.js";

let ready, card = null, tail = Promise.resolve(); // films and the card's trial, one after the other

async function open(base) {
  const unpacked = async (name) => {
    const packed = await fetch(new URL(name, base));
    if (!packed.ok) throw new Error(`${name}: ${packed.status}`);
    return new Uint8Array(await new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
  };
  useFiles((name) => unpacked(`${name}.bin`));
  const [model, runtime, lungs, views] = await Promise.all([
    fetch(new URL("model.json", base)).then((answer) => answer.json()),
    ...["runtime.bin", "lungs.bin", "views.bin"].map(unpacked),
  ]);
  const networks = await openNetworks({ runtime, lungs, views, threads: new URL("threads.js", base).href }, model.size);
  const load = async () => (await import("./gpu.js")).openOnCard(await unpacked("gpu.bin"), lungs, model.size);
  findCard(new URL(base).searchParams.get("gpu"), model.size, load, networks).catch(() => {}); // the processor goes on
  return { model, networks };
}

/**
 * Loads the network for a graphics card, where the browser lends one and the reader doesn't save data.
 * @param wish - of a test: a "software" card will do, and one is "forced" to compute though it is slower.
 */
async function findCard(wish, side, load, networks) {
  if (!("Suspending" in WebAssembly) || navigator.connection?.saveData) return; // the runtime needs that of WebAssembly
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter || (adapter.info.isFallbackAdapter && !wish)) return;
  const compute = await load();
  await compute(new Float32Array(side * side)); // its programs are compiled, which takes seconds, while films come
  card = { compute, evenIfSlow: wish === "forced" };
  tail = tail.then(() => tryCard(networks));
}

/** Once there is a film: a card that loses is let go. */
async function tryCard(networks) {
  const before = networks.where(), isOver = card && (await networks.tryCard(card.compute, card.evenIfSlow).catch(() => true));
  if (isOver) card = null;
  if (networks.where() !== before) postMessage({ moved: networks.where() });
}

onmessage = async ({ data: { base, ...film } }) => {
  if (!base) return (tail = tail.then(() => segment(film)));
  ready = open(base);
  ready.then(({ networks }) => postMessage({ ready: networks.where() }), (error) => postMessage({ failed: String(error) }));
};

async function segment({ name, bytes, age, convention }) {
  const { model, networks } = await ready, before = networks.where();
  try {
    for await (const film of segmentFilm(name, new Uint8Array(bytes), age, convention, networks, model)) postMessage({ film, done: false }, ownedBy(film));
    postMessage({ film: {}, done: true });
  } catch (error) {
    const reason = "this browser's memory is too small for it, or it meets what it does not know";
    postMessage({ film: { name, error: reason, detail: String(error.stack ?? error), notes: [] }, done: true });
  }
  if (networks.where() !== before) postMessage({ moved: networks.where() });
  await tryCard(networks);
}

/** What is handed over instead of copied. */
function ownedBy({ upright, masks = {} }) {
  return [upright, ...Object.values(masks).map(({ mask }) => mask?.data.buffer)].filter(Boolean);
}
