// The two networks, as ONNX graphs: lungs, and the views of a film.
import * as ort from "onnxruntime-web/wasm";
import { map, raster } from "./raster.js";
import { resize } from "./resize.js";

/** @param files - {runtime, lungs, views}: the bytes of ONNX Runtime's WebAssembly and of both graphs. */
export async function openNetworks({ runtime, lungs, views }, size) {
  ort.env.wasm.wasmBinary = runtime;
  ort.env.wasm.numThreads = 1; // threads need a server that sends headers of cross-origin isolation
  const options = { executionProviders: ["wasm"] };
  const [net, viewNet] = [await ort.InferenceSession.create(lungs, options), await ort.InferenceSession.create(views, options)];
  return {
    /** Probabilities of lung at the network's own size, of some of its outputs. */
    async probabilities(film, channels) {
      const input = normalise(resize(film, size, size)), pixels = size * size;
      const { logits } = await net.run({ films: new ort.Tensor("float32", input.data, [1, 1, size, size]) });
      return channels.map((channel) => {
        const prob = new Float32Array(pixels), start = channel * pixels;
        for (let i = 0; i < pixels; i++) prob[i] = 1 / (1 + Math.exp(-logits.data[start + i]));
        return raster(size, size, prob);
      });
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
function normalise(film) {
  const n = film.data.length, mean = film.data.reduce((a, b) => a + b) / n;
  const deviation = Math.max(Math.sqrt(film.data.reduce((sum, level) => sum + (level - mean) ** 2, 0) / n), 1e-3);
  return map(film, (level) => (level - mean) / deviation, Float32Array);
}
