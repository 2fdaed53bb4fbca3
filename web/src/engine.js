// The worker that segments, and the films that wait for it: one at a time.
const PATIENCE = 120_000; // ms; a 20-megapixel film takes some seconds, a damaged one may take a decoder any time
let worker, ready, told, tail = Promise.resolve();

/**
 * Starts the worker; resolves when the networks are loaded, with words for where they are computed.
 * @param moved - is called with such words when they are computed elsewhere from then on.
 */
export function start(moved = told) {
  told = moved;
  // Its source is a blob so that the page's own policy holds for it too.
  const source = `import ${JSON.stringify(new URL("worker.js", location.href).href)}`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  worker = new Worker(address, { type: "module" });
  ready = new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.ready ? resolve(data.ready) : reject(new Error(data.failed)));
    worker.onerror = (event) => reject(new Error(event.message || "the network can't be loaded"));
  });
  worker.addEventListener("message", ({ data }) => data.moved && moved(data.moved));
  worker.postMessage({ base: location.href });
  return ready;
}

/**
 * A film's masks.
 * @param film - {name, file, age}: the file is a Blob.
 * @param convention - whose mask comes first.
 * @param show - is called with what is there as soon as that first mask is.
 */
export function segment(film, convention, show = () => {}) {
  const next = tail.then(() => run(film, convention, show));
  tail = next.catch(() => {});
  return next;
}

async function run({ name, file, age = null }, convention, show) {
  await ready;
  let bytes;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    return { name, error: "the file can't be read: was it moved, or is it a folder?", notes: [] };
  }
  return new Promise((resolve) => {
    let found = {};
    const stop = setTimeout(() => {
      worker.terminate();
      start();
      resolve({ name, error: `it was not read in ${PATIENCE / 1000} s`, notes: [] });
    }, PATIENCE);
    worker.onmessage = ({ data: { film, done } }) => {
      if (!film) return;
      found = { ...found, ...film, masks: { ...found.masks, ...film.masks } };
      if (!done) return show(found);
      clearTimeout(stop);
      resolve(found);
    };
    worker.postMessage({ name, bytes, age, convention }, [bytes]);
  });
}
