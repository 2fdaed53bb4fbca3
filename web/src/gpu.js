// The network of lungs on a graphics card: loaded only where there is one, as its runtime is as large as all the rest.
import * as ort from "onnxruntime-web/jspi";

/**
 * @param runtime - the bytes of ONNX Runtime's WebAssembly that has WebGPU.
 * @param lungs - those of the graph.
 * @returns a function that gives the logits of pixels, as that of `network.js`.
 */
export async function openOnCard(runtime, lungs, size) {
  Object.assign(ort.env.wasm, { wasmBinary: runtime, numThreads: 1 });
  const net = await ort.InferenceSession.create(lungs, { executionProviders: ["webgpu"], logSeverityLevel: 3 });
  return async (pixels) => (await net.run({ films: new ort.Tensor("float32", pixels, [1, 1, size, size]) })).logits.data;
}
