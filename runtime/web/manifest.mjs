// A manifest, trusted only when its seal holds and every fact is one that this runtime knows (as
// atm_export/runs and runtime/cpp/src/run.cpp).

import { AtmError, must } from "./errors.mjs";

const FORMATS = [2, 3];
const MOST_BYTES = 16 << 20;
const SEAL = /"seal": "([0-9a-f]{64})"/;
const LARGEST_SIDE = 4096;
const MOST_LENGTH = 10_000_000;
const INTERPOLATIONS = ["bicubic", "bilinear", "lanczos", "nearest"];
const CLASSIFIER = { name: "classify", ranks: "logits", outputs: [{ name: "logits", agreement: "top1" }] };

// Hex digest of bytes. Browsers have it where pages come over https or from this machine.
export async function sha256(bytes) {
  const subtle = globalThis.crypto?.subtle;
  must(subtle, "this page cannot check the model's bytes: serve it over https, or from localhost");
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function sealHolds(bytes) {
  const found = SEAL.exec(new TextDecoder("latin1").decode(bytes)); // a character a byte
  if (!found) return false;
  const blank = bytes.slice();
  const at = found.index + '"seal": "'.length;
  blank.fill("0".charCodeAt(0), at, at + 64);
  return (await sha256(blank)) === found[1];
}

// What a manifest says, in the types that the runtime uses; AtmError for what cannot be meant.
export async function readManifest(bytes, where) {
  const document = parsed(bytes, where);
  must(
    FORMATS.includes(document.format),
    `${where} has run format ${document.format}, this runtime reads ${FORMATS.join(" and ")}; export again`,
  );
  must(await sealHolds(bytes), `${where} was changed after the export; export again`);
  must(document.status === "proven", `${where}: its parity with PyTorch was not proven; export again`);
  try {
    return factsOf(document);
  } catch (error) {
    throw new AtmError(`${where} is damaged (${error.message}); export again`);
  }
}

function parsed(bytes, where) {
  must(bytes.length <= MOST_BYTES, `${where} is too large`);
  try {
    const document = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    must(document !== null && typeof document === "object", "no object");
    return document;
  } catch (error) {
    throw new AtmError(`${where} is damaged (${error.message}); export again`);
  }
}

function factsOf(document) {
  const task = taskOf(document);
  const { labels } = document;
  const classes = task.outputs.find((each) => each.name === task.ranks)?.shape[1] ?? 0;
  must(labels === null || labels.length === classes, "labels");
  return {
    document,
    model: document.model,
    policy: known(document.method.merge, ["adaptive", "per-image", "frozen"]),
    summary: document.method.summary,
    files: filesOf(document.files),
    input: inputOf(document),
    task,
    classes,
    labels,
    traced: "patch_to_token" in document.interface.outputs,
    golden: document.golden,
    lowPrecision: document.low_precision ?? {},
  };
}

function filesOf(listed) {
  const files = new Map();
  for (const [name, facts] of Object.entries(listed)) {
    must(!/^\.{0,2}$|[/\\:\0]/.test(name), "a file name");
    must(whole(facts.bytes, 0, 2 ** 50) >= 0 && /^[0-9a-f]{64}$/.test(facts.sha256), name);
    files.set(name, facts);
  }
  must(files.has("model.onnx"), "no model.onnx");
  return files;
}

// A manifest without a word about its task is a classifier's.
function taskOf(document) {
  const { name, ranks, outputs } = document.task ?? CLASSIFIER;
  must(Array.isArray(outputs) && outputs.length > 0, "task.outputs");
  const found = outputs.map((each) => {
    const facts = document.interface.outputs[each.name];
    must(facts?.dtype === "float32" && facts.shape[0] === "batch", `interface.outputs.${each.name}`);
    facts.shape.slice(1).forEach((length) => whole(length, 1, MOST_LENGTH));
    const agreement = known(each.agreement, ["difference", "top1", "cosine"]);
    return { name: each.name, agreement, shape: facts.shape };
  });
  const ranked = (each) => each.name === ranks && each.agreement === "top1" && each.shape.length === 2;
  must(ranks === null || found.some(ranked), "task.ranks");
  return { name, ranks, outputs: found };
}

function inputOf(document) {
  const { name, dtype, shape } = document.interface.input;
  const how = preprocessingOf(document.preprocessing);
  const uint8 = known(dtype, ["float32", "uint8"]) === "uint8";
  const channels = how.mean.length;
  const own = uint8 ? [how.height, how.width, channels] : [channels, how.height, how.width];
  must(shape.length === 4 && own.every((length, i) => shape[i + 1] === length), "interface.input.shape");
  return { name, uint8, shape: own, how };
}

function preprocessingOf(facts) {
  const [height, width] = facts.size.map((side) => whole(side, 1, LARGEST_SIDE));
  const [coverHeight, coverWidth] = facts.resize.map((side) => whole(side, 1, LARGEST_SIDE));
  const covers = (shown, cover) => Math.floor(shown / facts.crop_pct) === cover;
  must(covers(height, coverHeight) && covers(width, coverWidth), "resize and crop_pct");
  const { mean, std } = facts;
  must(mean.length > 0 && mean.length === std.length, "mean and std");
  must([...mean, ...std].every(Number.isFinite) && std.every((x) => x > 0), "mean or std");
  return {
    height,
    width,
    coverHeight,
    coverWidth,
    interpolation: known(facts.interpolation, INTERPOLATIONS),
    squash: known(facts.crop_mode, ["center", "squash"]) === "squash",
    mean,
    std,
  };
}

function known(value, words) {
  must(words.includes(value), `'${value}' is not known to this runtime`);
  return value;
}

function whole(value, least, most) {
  const fits = Number.isSafeInteger(value) && value >= least && value <= most;
  must(fits, `a number from ${least} to ${most} is expected`);
  return value;
}
