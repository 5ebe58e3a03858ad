// What takes time, away from the page's own thread: loading runs, preprocessing, answers. A request is
// {id, method, given}; a reply {id, value} or {id, error}; {id, progress} may come before it.

import * as ort from "./ort/ort.wasm.min.mjs";
import { AtmError, folderAt, load } from "./atm_runtime.mjs";
import { withoutExif } from "./jpeg.mjs";
import { checkSize, LIMITS } from "./preprocess.mjs";

const MOST_HELD = 600e6; // bytes of graphs that stay loaded

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? 0 : 1; // threads need shared memory
ort.env.logLevel = "fatal";

const sessions = new Map(); // by folder, the one asked last at the end

async function opened({ folder, precision }, progress) {
  const loading = sessions.get(folder) ?? load(folderAt(new URL(folder, import.meta.url)), { ort, precision, progress });
  sessions.delete(folder);
  sessions.set(folder, loading);
  try {
    await loading;
  } catch (error) {
    sessions.delete(folder);
    throw error;
  }
  await releaseOldest(folder);
  return loading;
}

async function releaseOldest(kept) {
  const loaded = await Promise.all(Array.from(sessions, async ([folder, each]) => [folder, await each]));
  let held = loaded.reduce((sum, [, session]) => sum + session.bytes, 0);
  for (const [folder, session] of loaded) {
    if (held <= MOST_HELD || folder === kept) continue;
    sessions.delete(folder);
    held -= session.bytes;
    await session.release();
  }
}

// A file's pixels as Python sees them: orientation and colour profile are ignored.
async function decoded(blob) {
  if (blob.size > LIMITS.bytes) throw new AtmError(`the file has more than ${LIMITS.bytes} bytes`);
  let bitmap;
  try {
    const plain = new Blob(withoutExif(new Uint8Array(await blob.arrayBuffer())), { type: blob.type });
    bitmap = await createImageBitmap(plain, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new AtmError("this file is no picture that the browser can read");
  }
  const { width, height } = bitmap;
  checkSize(width, height);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { width, height, rgba: context.getImageData(0, 0, width, height).data };
}

const methods = {
  // The run's facts, its pictures, and PyTorch's answers for them.
  async open(given, progress) {
    const session = await opened(given, progress);
    const { facts } = session;
    const golden = facts.golden && (await session.golden()).get("images");
    return {
      model: facts.model,
      summary: facts.summary,
      policy: facts.policy,
      licence: facts.document.licence,
      pictures: facts.golden?.source,
      size: [facts.input.how.height, facts.input.how.width],
      channels: facts.input.how.mean.length,
      traced: facts.traced,
      file: session.file,
      bytes: session.bytes,
      samples: golden ? { count: golden.shape[0], pixels: golden.data } : { count: 0, pixels: null },
    };
  },

  // given: {folder, precision} and a picture, {blob} or {pixels} of the input's size.
  async ask(given, progress) {
    const session = await opened(given, progress);
    const answer = given.pixels
      ? await session.askPixels(given.pixels)
      : await session.ask(await decoded(given.blob));
    const { facts } = session;
    const { outputs, milliseconds, pixels } = answer;
    const numbers = (name) => outputs[name] && Array.from(outputs[name].data, Number);
    return {
      top: session.topK(outputs[facts.task.ranks].data, 5),
      tokens: numbers("tokens_per_block"),
      map: numbers("patch_to_token"),
      milliseconds,
      pixels,
    };
  },

  // Every golden vector.
  async prove(given, progress) {
    return (await opened(given, progress)).checkGolden();
  },
};

globalThis.onmessage = async ({ data: { id, method, given } }) => {
  try {
    const progress = (told) => postMessage({ id, progress: told });
    postMessage({ id, value: await methods[method](given, progress) });
  } catch (error) {
    postMessage({ id, error: error instanceof AtmError ? error.message : `${error?.message ?? error}` });
  }
};
