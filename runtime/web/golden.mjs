// Golden vectors: pictures and PyTorch's answers for them, in the safetensors format (8 bytes of
// header length, a JSON header, the arrays' bytes), and when a browser's answers are the same.

import { AtmError, must } from "./errors.mjs";

const KINDS = { U8: Uint8Array, F32: Float32Array };

// Arrays of type U8 and F32 by name: {shape, data}; AtmError for damaged bytes.
export function tensorsOf(bytes) {
  try {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const start = 8 + Number(view.getBigUint64(0, true));
    must(start <= bytes.length, "length");
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
    const room = bytes.slice(start);
    const found = new Map();
    for (const [name, facts] of Object.entries(header)) {
      if (facts.dtype in KINDS) found.set(name, tensorOf(facts, room));
    }
    return found;
  } catch (error) {
    throw new AtmError(`the golden vectors are damaged (${error.message}); export again`);
  }
}

function tensorOf({ dtype, shape, data_offsets: [from, to] }, room) {
  must(0 <= from && from <= to && to <= room.length, "offsets");
  const data = new KINDS[dtype](room.buffer.slice(from, to));
  must(data.length === shape.reduce((product, n) => product * n, 1), "shape");
  return { shape, data };
}

const argmax = (row) => row.reduce((best, value, i) => (value > row[best] ? i : best), 0);

// A first choice whose lead is within the tolerance is a tie: either class is right.
function sameChoice(ours, theirs, allowed) {
  const best = argmax(theirs);
  if (argmax(ours) === best) return true;
  return theirs.some((value, k) => k !== best && theirs[best] - value <= 2 * allowed);
}

function largestDifference(ours, theirs) {
  let most = 0;
  for (let i = 0; i < theirs.length; i += 1) {
    const difference = Math.abs(ours[i] - theirs[i]);
    if (!(difference <= most)) most = difference; // NaN stays
    if (Number.isNaN(most)) break;
  }
  return most;
}

function widestAngle(ours, theirs, length) {
  let most = 0;
  for (let at = 0; at < theirs.length; at += length) {
    let [product, one, two] = [0, 0, 0];
    for (let k = at; k < at + length; k += 1) {
      product += ours[k] * theirs[k];
      one += ours[k] * ours[k];
      two += theirs[k] * theirs[k];
    }
    const angle = 1 - product / Math.sqrt(one * two);
    if (!(angle <= most)) most = angle;
    if (Number.isNaN(most)) break;
  }
  return most;
}

// Answers [images, ...] by their output's agreement, or by the angle; NaN anywhere says no.
export function compared(what, ours, theirs, { agreement, shape }, allowed) {
  const fits = ours.length === theirs.length && theirs.length > 0;
  const row = shape.slice(1).reduce((product, n) => product * n, 1);
  const byAngle = agreement === "cosine";
  let difference = NaN;
  if (fits) difference = byAngle ? widestAngle(ours, theirs, shape.at(-1)) : largestDifference(ours, theirs);
  let same = fits;
  for (let at = 0; fits && agreement === "top1" && at < theirs.length; at += row) {
    same = same && sameChoice(ours.subarray(at, at + row), theirs.subarray(at, at + row), allowed);
  }
  return { what: byAngle ? `${what} (1 - cosine)` : what, difference, allowed, ok: difference <= allowed && same };
}
