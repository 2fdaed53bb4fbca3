// The two networks, as ONNX graphs: lungs, and the views of a film. That of lungs moves to a graphics card, if one does the same sooner.
import * as ort from "onnxruntime-web/wasm";
import { raster } from "./raster.js";
import { resize } from "./resize.js";

const MOST_THREADS = 4; // more share too little work
const SAME = 0.999; // Dice of two masks that are one

/** @param files - {runtime, lungs, views}: the bytes of ONNX Runtime's WebAssembly and of both graphs; threads: its address. */
export async function openNetworks({ runtime, lungs, views, threads }, size) {
  ort.env.wasm.wasmBinary = runtime;
  // Browsers share memory between threads only in a page that is isolated: see `offline.js`.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
  if (ort.env.wasm.numThreads > 1) ort.env.wasm.wasmPaths = { mjs: threads }; // each thread starts from that file
  const options = { executionProviders: ["wasm"] };
  const [net, viewNet] = [await ort.InferenceSession.create(lungs, options), await ort.InferenceSession.create(views, options)];
  const onProcessor = async (pixels) => (await net.run({ films: new ort.Tensor("float32", pixels, [1, 1, size, size]) })).logits.data;
  let compute = onProcessor, last = null;
  return {
    /** Where lungs are computed: for a reader. */
    where: () => (compute === onProcessor ? `on ${threadsOf(ort.env.wasm)} of this computer` : "on this computer's graphics card"),
    /** A function that gives the probabilities of lung at the network's own size, by one of its outputs. */
    async probabilities(film) {
      const pixels = normalise(resize(film, size, size)), start = performance.now();
      const logits = await compute(pixels).catch((error) => {
        if (compute === onProcessor) throw error;
        compute = onProcessor; // the card is gone: computers sleep, and drivers fail
        return compute(pixels);
      });
      last = { pixels, logits, took: performance.now() - start };
      return (channel) => raster(size, size, sigmoid(logits.subarray(channel * size * size, (channel + 1) * size * size)));
    },
    /**
     * Has a card compute the last film again, in at most the time that it took: if it finds the same lungs, it computes from then on.
     * @returns whether there was a film, and thus a trial.
     */
    async tryCard(onCard, evenIfSlow) {
      if (!last) return false;
      const late = new Promise((resolve) => setTimeout(resolve, evenIfSlow ? 1e9 : last.took, null));
      const logits = await Promise.race([onCard(last.pixels), late]);
      if (logits && dice(logits, last.logits) >= SAME) compute = onCard;
      return true;
    },
    /** Log odds that each of a thumbnail's views is an upright frontal chest film. */
    async viewOdds(all) {
      const side = all[0].width, data = new Float32Array(all.length * side * side);
      all.forEach((view, n) => data.set(view.data, n * side * side));
      const { logits } = await viewNet.run({ films: new ort.Tensor("float32", data, [all.length, 1, side, side]) });
      return Array.from(logits.data);
    },
  };
}

function threadsOf({ numThreads }) {
  return numThreads > 1 ? `${numThreads} threads` : "one thread";
}

/** Dice of what two networks' logits say is lung; 0 where neither finds any. */
function dice(logits, others) {
  let [both, sum] = [0, 0];
  for (let i = 0; i < logits.length; i++) {
    both += logits[i] > 0 && others[i] > 0;
    sum += (logits[i] > 0) + (others[i] > 0);
  }
  return (2 * both) / Math.max(sum, 1);
}

/** Zero mean and unit deviation of the film: `data.normalise`. */
function normalise({ data }) {
  const n = data.length, out = new Float32Array(n);
  let [sum, squares] = [0, 0];
  for (let i = 0; i < n; i++) (sum += data[i]), (squares += data[i] * data[i]);
  const mean = sum / n, deviation = Math.max(Math.sqrt(Math.max(squares / n - mean * mean, 0)), 1e-3);
  for (let i = 0; i < n; i++) out[i] = (data[i] - mean) / deviation;
  return out;
}

function sigmoid(logits) {
  const prob = new Float32Array(logits.length);
  for (let i = 0; i < prob.length; i++) prob[i] = 1 / (1 + Math.exp(-logits[i]));
  return prob;
}
