// The two networks, as ONNX graphs: lungs, and the views of a film.
import * as ort from "onnxruntime-web/wasm";
import { raster } from "./raster.js";
import { resize } from "./resize.js";

const MOST_THREADS = 4; // more share too little work

/** @param files - {runtime, lungs, views}: the bytes of ONNX Runtime's WebAssembly and of both graphs; threads: its address. */
export async function openNetworks({ runtime, lungs, views, threads }, size) {
  ort.env.wasm.wasmBinary = runtime;
  // Browsers share memory between threads only in a page that is isolated: see `offline.js`.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
  if (ort.env.wasm.numThreads > 1) ort.env.wasm.wasmPaths = { mjs: threads }; // each thread starts from that file
  const options = { executionProviders: ["wasm"] };
  const [net, viewNet] = [await ort.InferenceSession.create(lungs, options), await ort.InferenceSession.create(views, options)];
  return {
    /** Where they are computed: for a reader. */
    where: ort.env.wasm.numThreads > 1 ? `on ${ort.env.wasm.numThreads} threads` : "on one thread",
    /** A function that gives the probabilities of lung at the network's own size, by one of its outputs. */
    async probabilities(film) {
      const { logits } = await net.run({ films: new ort.Tensor("float32", normalise(resize(film, size, size)), [1, 1, size, size]) });
      return (channel) => raster(size, size, sigmoid(logits.data.subarray(channel * size * size, (channel + 1) * size * size)));
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
