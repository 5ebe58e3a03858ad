// node ask.mjs PACKAGE, one request a line on standard input as JSON, one answer a line:
//   {crop: {how, pictures}}            pictures {width, height, rgba in base64}: their crops in base64
//   {run, precision, pixels, images}   golden comparisons, and all outputs of pixels (base64)
//   {limits: true}
// A failure is {error}.

import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { webcrypto } from "node:crypto";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

globalThis.crypto ??= webcrypto; // Node 18 has it, but not by this name
const runtime = new URL("../../runtime/web/", import.meta.url);
const { AtmError, load } = await import(new URL("atm_runtime.mjs", runtime));
const { crop, LIMITS } = await import(new URL("preprocess.mjs", runtime));

let ort = null;
async function onnxruntime() {
  if (ort === null) {
    ort = await import(pathToFileURL(join(process.argv[2], "dist/ort.wasm.min.mjs")));
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "fatal";
  }
  return ort;
}

const bytesOf = (text) => new Uint8Array(Buffer.from(text, "base64"));
const textOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");

async function ask({ run, precision, pixels, images }) {
  const folder = { name: run, read: async (name) => new Uint8Array(await readFile(join(run, name))) };
  const session = await load(folder, { ort: await onnxruntime(), precision });
  const golden = session.facts.golden ? await session.checkGolden() : null;
  const answer = { file: session.file, precision: session.precision, golden };
  if (pixels) {
    const { outputs } = await session.askPixels(bytesOf(pixels), images);
    answer.outputs = Object.fromEntries(
      Object.entries(outputs).map(([name, { dims, data }]) => [name, { dims, kind: data.constructor.name, data: textOf(data) }]),
    );
    answer.top = session.facts.classes && session.topK(outputs[session.facts.task.ranks].data.subarray(0, session.facts.classes), 3);
  }
  await session.release();
  return answer;
}

async function answered(request) {
  if (request.limits) return LIMITS;
  if (request.crop) {
    const { how, pictures } = request.crop;
    return pictures.map((each) => textOf(crop({ ...each, rgba: bytesOf(each.rgba) }, how)));
  }
  return ask(request);
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = await answered(JSON.parse(line));
  } catch (error) {
    answer = { error: error.message, expected: error instanceof AtmError };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
