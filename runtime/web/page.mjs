// The page: a picture in; the answer and the merged regions out; a slider over the runs that it shows.

import { drawBars, drawPicture, drawRegions, gridOf } from "./draw.mjs";

const at = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
const waiting = new Map();
let site;
let runs = []; // what `open` told of each run, once it did
let chosen = 0; // which run
let picture = null; // {blob} or {pixels}
let turn = 0; // of the last request; what comes for an earlier one is old

worker.onmessage = ({ data: { id, value, error, progress } }) => {
  if (progress) return showProgress(progress);
  const { done, failed } = waiting.get(id);
  waiting.delete(id);
  return error === undefined ? done(value) : failed(new Error(error));
};
worker.onerror = (event) => fail(new Error(event.message || "this browser runs no module workers"));

function call(method, given = {}) {
  const { folder, precision } = site.runs[given.run ?? chosen];
  const id = `${method}-${(turn += 1)}`;
  return new Promise((done, failed) => {
    waiting.set(id, { done, failed });
    worker.postMessage({ id, method, given: { folder, precision, ...given } });
  });
}

function say(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
  at("progress").hidden = true;
  document.body.dataset.state = kind === "bad" ? "failed" : text ? "busy" : "ready";
}

function fail(error) {
  at("result").classList.remove("busy");
  say(error.message, "bad");
}

function showProgress({ bytes, of }) {
  at("status").textContent = `Loading the model: ${megabytes(bytes)} of ${megabytes(of)} MB`;
  Object.assign(at("progress"), { hidden: false, max: of, value: bytes });
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function start() {
  const response = await fetch("site.json", { cache: "no-cache" });
  if (!response.ok) throw new Error("site.json is missing: write this folder anew with atm-export web");
  site = await response.json();
  document.title = `${site.model}: token merging in your browser`;
  document.querySelector("h1").textContent = `${site.model}: token merging in your browser`;
  at("point").hidden = site.runs.length < 2;
  at("slider").max = String(site.runs.length - 1);
  say("Loading the model");
  await choose(0);
  samples(runs[0]);
  at("prove").disabled = runs[0].samples.count === 0;
  if (picture !== null || runs[0].samples.count === 0) say("");
  else await show({ pixels: sample(runs[0], 0) }, 0);
}

async function choose(index) {
  chosen = index;
  const { title, gflops, unmerged_gflops: unmerged, precision } = site.runs[index];
  const cost = gflops === null ? "" : `; ${gflops.toFixed(2)} of ${unmerged.toFixed(2)} GFLOPs an image on average`;
  at("point-name").textContent = `${index + 1} of ${site.runs.length}: ${title}${cost}${precision === "fp32" ? "" : `; ${precision}`}`;
  at("slider").setAttribute("aria-valuetext", title);
  runs[index] ??= await call("open", { run: index });
  if (index === chosen) about(runs[index]);
}

function about({ summary, licence, pictures, file, bytes }) {
  const parts = [
    `${summary}. ${file}, ${megabytes(bytes)} MB`,
    `ONNX Runtime Web ${site.onnxruntime_web} (MIT licence)`,
    licence && `weights: ${licence}`,
    pictures && `pictures: ${pictures}`,
    `made with atm-export ${site.atm_export}`,
  ];
  at("facts").textContent = `${parts.filter(Boolean).join(" · ")}.`;
}

const sample = ({ samples: { count, pixels } }, i) =>
  pixels.slice((i * pixels.length) / count, ((i + 1) * pixels.length) / count);

function samples(run) {
  const buttons = Array.from({ length: run.samples.count }, (_, i) => {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    drawPicture(canvas, sample(run, i), run.size, run.channels);
    button.type = "button";
    button.setAttribute("aria-label", `Picture ${i + 1} of the run`);
    button.append(canvas);
    button.onclick = () => show({ pixels: sample(run, i) }, i);
    return button;
  });
  at("samples").replaceChildren(...buttons);
}

// Answer a picture, or the same one again at another operating point.
async function show(next = picture, index = null) {
  if (next !== picture) {
    [...at("samples").children].forEach((each, i) => each.setAttribute("aria-pressed", String(i === index)));
  }
  picture = next;
  if (picture === null) return;
  const mine = (show.last = (show.last ?? 0) + 1);
  at("result").classList.add("busy");
  say("Merging and answering");
  try {
    const run = chosen;
    await choose(run);
    const answer = await call("ask", { run, ...picture });
    if (mine !== show.last) return;
    drawn(answer, runs[run]);
    at("result").hidden = false;
    at("result").classList.remove("busy");
    say("");
  } catch (error) {
    if (mine === show.last) fail(error);
  }
}

function drawn({ top, tokens, map, milliseconds, pixels }, run) {
  drawPicture(at("picture"), pixels, run.size, run.channels);
  const grid = map && gridOf(map.length, run.size);
  at("regions").hidden = !grid;
  document.querySelector(".views").classList.toggle("one", !grid);
  if (grid) drawRegions(at("regions"), pixels, run.size, run.channels, map, grid);
  at("regions-caption").textContent = map ? told(map, grid) : "Export the run with --trace to see what merges.";
  at("tokens-section").hidden = !tokens;
  if (tokens) drawBars(at("tokens"), tokens, Math.max(...tokens, map?.length ?? 0));
  at("answer").replaceChildren(...top.map(row));
  at("time").textContent = `${Math.round(milliseconds)} ms in this browser, one picture.`;
}

function told(map, grid) {
  const kept = new Set(map.filter((token) => token >= 0)).size;
  const dropped = map.filter((token) => token < 0).length;
  const drawn = grid ? "" : "; their grid is no picture";
  return `${map.length} patches in ${kept} tokens${dropped ? `, ${dropped} dropped` : ""}${drawn}`;
}

function row({ name, probability }) {
  const [item, label, share, meter] = ["li", "span", "span", "meter"].map((tag) => document.createElement(tag));
  [label.className, label.textContent] = ["name", name];
  [share.className, share.textContent] = ["share", percent(probability)];
  meter.value = probability;
  item.append(label, share, meter);
  return item;
}

async function prove() {
  at("prove").disabled = true;
  at("proof").textContent = "comparing with PyTorch's answers";
  at("proof").className = "";
  try {
    const found = await call("prove");
    const bad = found.filter(({ ok }) => !ok);
    const worst = Math.max(...found.map(({ difference }) => difference));
    const what = found[0].what.includes("cosine") ? "1 - cosine" : "largest difference";
    at("proof").className = bad.length ? "bad" : "good";
    at("proof").textContent = bad.length
      ? bad.map((each) => `${each.what} differ by ${each.difference}`).join("; ")
      : `${found.length} comparisons with PyTorch's answers hold (${what} ${worst.toExponential(1)}, ${found[0].allowed.toPrecision(1)} allowed)`;
  } catch (error) {
    [at("proof").className, at("proof").textContent] = ["bad", error.message];
  }
  at("prove").disabled = false;
}

function take(files) {
  const file = [...(files ?? [])][0];
  if (file) show({ blob: file });
}

at("file").onchange = ({ target }) => {
  take(target.files);
  target.value = ""; // the same file may be chosen again
};
at("drop").onkeydown = (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    at("file").click();
  }
};
addEventListener("paste", (event) => take(event.clipboardData?.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer?.files);
  });
}
at("slider").oninput = ({ target }) => {
  chosen = Number(target.value);
  at("proof").textContent = "";
  show();
};
at("prove").onclick = prove;

start().catch(fail);
