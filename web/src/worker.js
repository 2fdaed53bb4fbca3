// Segments films away from the page, so that it stays at hand. It gets {base} first, then {name, bytes, age,
// convention}, and answers {film, done}: the parts of a film as they come.
import { openNetworks } from "./network.js";
import { segmentFilm } from "./film.js";
import { useFiles } from "./codecs.js";

let ready;

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
  return { model, networks: await openNetworks({ runtime, lungs, views, threads: new URL("threads.js", base).href }, model.size) };
}

onmessage = async ({ data: { base, name, bytes, age, convention } }) => {
  if (base) {
    ready = open(base);
    return ready.then(({ networks }) => postMessage({ ready: networks.where }), (error) => postMessage({ failed: String(error) }));
  }
  const { model, networks } = await ready;
  try {
    for await (const film of segmentFilm(name, new Uint8Array(bytes), age, convention, networks, model)) postMessage({ film, done: false }, ownedBy(film));
    postMessage({ film: {}, done: true });
  } catch (error) {
    const reason = "this browser's memory is too small for it, or it meets what it does not know";
    postMessage({ film: { name, error: reason, detail: String(error.stack ?? error), notes: [] }, done: true });
  }
};

/** What is handed over instead of copied. */
function ownedBy({ upright, masks = {} }) {
  return [upright, ...Object.values(masks).map(({ mask }) => mask?.data.buffer)].filter(Boolean);
}
