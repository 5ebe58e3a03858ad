// A run folder of atm-export with onnxruntime-web: checked, loaded, asked. The same in a page, in a
// worker and in Node; the caller brings onnxruntime-web.
//
//   import * as ort from "./ort/ort.wasm.min.mjs";
//   const session = await load(folderAt("runs/1/"), { ort });
//   const answer = await session.ask({ width, height, rgba });
//   session.topK(answer.outputs.logits.data, 5);
//
// Every failure is an AtmError.

import { AtmError, must } from "./errors.mjs";
import { compared, tensorsOf } from "./golden.mjs";
import { readManifest, sha256 } from "./manifest.mjs";
import { crop, normalize } from "./preprocess.mjs";

export { AtmError };

const FP32 = "fp32";
const GRAPH = "model.onnx";

// A folder that is served: read(name, progress) gives a file's bytes. progress: told of bytes come in.
export function folderAt(url) {
  return {
    name: String(url),
    async read(name, progress = () => {}) {
      let response;
      try {
        response = await fetch(new URL(encodeURIComponent(name), url), { cache: "no-cache" });
      } catch (error) {
        throw new AtmError(`${name} cannot be fetched (${error.message})`);
      }
      must(response.ok, `${name} cannot be fetched (status ${response.status})`);
      return collected(response, progress);
    },
  };
}

async function collected(response, progress) {
  const parts = [];
  let bytes = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    bytes += value.length;
    progress(bytes);
  }
  const whole = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

// The bytes of a listed file, hashed as they were read: what is checked is what is used.
async function readChecked(folder, facts, name, progress) {
  const listed = facts.files.get(name);
  must(listed, `${folder.name} has no file '${name}'`);
  const bytes = await folder.read(name, progress);
  const same = bytes.length === listed.bytes && (await sha256(bytes)) === listed.sha256;
  must(same, `${name} was changed after the export (sha256 differs); export again`);
  return bytes;
}

// The graph in this precision, and what the manifest says of it (null: of the FP32 one).
function graphOf(facts, precision) {
  if (precision === FP32) return { name: GRAPH, low: null };
  const found = Object.entries(facts.lowPrecision).find(
    ([, each]) => each.backend === "onnxruntime" && each.precision === precision,
  );
  must(
    found,
    `the run has no graph in ${precision}; export it with --backend onnxruntime --precision ${precision}`,
  );
  const [name, low] = found;
  const source = facts.files.get(low.source.file);
  must(source?.sha256 === low.source.sha256, `${name} was made of another ${low.source.file}; export it again`);
  return { name, low };
}

// Check a run folder and load its graph. ort: onnxruntime-web; precision: fp32 or int8; warmUp:
// compare a golden picture first, so that a browser that computes something else is refused;
// progress: told {bytes, of} while the graph comes in.
export async function load(folder, { ort, precision = FP32, warmUp = true, progress = () => {} }) {
  const facts = await readManifest(await folder.read("manifest.json"), "manifest.json");
  const { name, low } = graphOf(facts, precision);
  const beside = `${name}.data`;
  const names = facts.files.has(beside) ? [name, beside] : [name];
  const of = names.reduce((sum, each) => sum + facts.files.get(each).bytes, 0);
  let before = 0;
  const files = [];
  for (const each of names) {
    files.push(await readChecked(folder, facts, each, (bytes) => progress({ bytes: before + bytes, of })));
    before += files.at(-1).length;
  }
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all", logSeverityLevel: 4 };
  if (files[1]) options.externalData = [{ path: beside, data: files[1] }];
  let graph;
  try {
    graph = await ort.InferenceSession.create(files[0], options);
  } catch (error) {
    throw new AtmError(`onnxruntime-web does not load ${name}: ${error.message ?? error}`);
  }
  const session = new Session(folder, facts, { ort, graph, name, low, bytes: of });
  if (warmUp && facts.golden) (await session.checkGolden({ most: 1 })).forEach(requireOk);
  return session;
}

function requireOk(found) {
  const line = `${found.what} differ from PyTorch's by ${found.difference}, ${found.allowed} at most`;
  must(found.ok, `${line}; this browser does not compute what was exported`);
}

class Session {
  #ort;
  #graph;
  #folder;
  #low;
  #golden = null;
  #last = Promise.resolve();

  constructor(folder, facts, { ort, graph, name, low, bytes }) {
    Object.assign(this, { facts, file: name, bytes });
    this.precision = low?.precision ?? FP32;
    [this.#folder, this.#ort, this.#graph, this.#low] = [folder, ort, graph, low];
  }

  // {width, height, rgba} as the graph sees it: uint8 [height, width, channels].
  prepare(picture) {
    return crop(picture, this.facts.input.how);
  }

  // A picture of any size, alone in its batch: {outputs: by name {dims, data}, milliseconds, pixels}.
  async ask(picture) {
    return this.askPixels(this.prepare(picture), 1);
  }

  // The same of pictures that have the input's size: uint8 [images, height, width, channels].
  async askPixels(pixels, images = 1) {
    const answer = await this.#run(pixels, images);
    for (const { name } of this.facts.task.outputs) {
      must(answer.outputs[name].data.every(Number.isFinite), `the ${name} are not finite (NaN or infinity)`);
    }
    return { ...answer, pixels };
  }

  // onnxruntime-web runs one request at a time.
  #run(pixels, images) {
    const run = this.#last.then(() => this.#runNow(pixels, images));
    this.#last = run.catch(() => {});
    return run;
  }

  async #runNow(pixels, images) {
    const { name, uint8, shape, how } = this.facts.input;
    const data = uint8 ? Uint8Array.from(pixels) : normalize(pixels, images, how);
    const tensor = new this.#ort.Tensor(uint8 ? "uint8" : "float32", data, [images, ...shape]);
    const begin = performance.now();
    let made;
    try {
      made = await this.#graph.run({ [name]: tensor });
    } catch (error) {
      throw new AtmError(`onnxruntime-web failed: ${error.message ?? error}`);
    }
    const milliseconds = performance.now() - begin;
    const outputs = {};
    for (const [key, { dims, data: values }] of Object.entries(made)) outputs[key] = { dims, data: values };
    return { outputs, milliseconds };
  }

  // The k likeliest classes of one row of the output that ranks them: [{index, name, probability}].
  topK(row, k = 5) {
    must(this.facts.classes > 0, `the task '${this.facts.task.name}' ranks no classes`);
    const order = Array.from(row.keys()).sort((a, b) => row[b] - row[a] || a - b);
    const sum = row.reduce((total, value) => total + Math.exp(value - row[order[0]]), 0);
    return order.slice(0, k).map((index) => ({
      index,
      name: this.facts.labels?.[index] ?? String(index),
      probability: Math.exp(row[index] - row[order[0]]) / sum,
    }));
  }

  // The golden pictures, uint8 [images, height, width, channels], with PyTorch's answers by output.
  async golden() {
    must(this.facts.golden, "the run holds no golden vectors; export again");
    this.#golden ??= tensorsOf(await readChecked(this.#folder, this.facts, this.facts.golden.file));
    const images = this.#golden.get("images");
    must(images && this.facts.task.outputs.every(({ name }) => this.#golden.has(name)), "no golden images");
    return this.#golden;
  }

  // Golden vectors against this machine's answers: each of the first `most` images alone, and, where
  // all are asked for, a batch: [{what, difference, allowed, ok}].
  async checkGolden({ most = Infinity } = {}) {
    const golden = await this.golden();
    const { shape, data } = golden.get("images");
    const [count, step] = [Math.min(shape[0], most), data.length / shape[0]];
    const found = [];
    for (let i = 0; i < count; i += 1) {
      const { outputs } = await this.#run(data.subarray(i * step, (i + 1) * step), 1);
      found.push(...this.#judged(outputs, golden, "", i, i + 1, `of image ${i + 1}`));
    }
    if (count === shape[0]) {
      const batch = golden.get(`batch_${this.facts.task.outputs[0].name}`).shape[0];
      const { outputs } = await this.#run(data.subarray(0, batch * step), batch);
      found.push(...this.#judged(outputs, golden, "batch_", 0, batch, `of a batch of ${batch}`));
    }
    return found;
  }

  // By the output's agreement; of a graph in low precision, which rounds more, by the angle.
  #judged(outputs, golden, kind, begin, end, what) {
    return this.facts.task.outputs.map((output) => {
      const { shape, data } = golden.get(kind + output.name);
      const row = data.length / shape[0];
      const theirs = data.subarray(begin * row, end * row);
      const [rule, allowed] = this.#rule(output);
      return compared(`${output.name} ${what}`, outputs[output.name].data, theirs, rule, allowed);
    });
  }

  #rule(output) {
    if (this.#low === null) return [output, this.facts.golden.tolerance[output.name]];
    const least = this.#low.validation.tolerance[`min_cosine_${this.facts.task.outputs[0].name}`];
    return [{ ...output, agreement: "cosine" }, 1 - least];
  }

  async release() {
    await this.#last;
    await this.#graph.release();
  }
}
