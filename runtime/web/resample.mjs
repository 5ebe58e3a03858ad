// After Pillow's Resample.c, as runtime/cpp/src/resample.cpp: coefficients in double, then integers
// with 22 fractional bits, a horizontal and a vertical pass, each rounded to 8 bits.

const BITS = 32 - 8 - 2;

function bilinear(x) {
  x = Math.abs(x);
  return x < 1 ? 1 - x : 0;
}

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
const lanczos = (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0);

const FILTERS = {
  bicubic: { weight: bicubic, support: 2 },
  bilinear: { weight: bilinear, support: 1 },
  lanczos: { weight: lanczos, support: 3 },
};

// The inputs that each of `length` outputs is made of: those from `first` on, and their weights.
function windowsOf(before, length, { weight, support }) {
  const scale = before / length;
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  return Array.from({ length }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - reach + 0.5), 0);
    const last = Math.min(Math.trunc(center + reach + 0.5), before);
    const weights = [];
    for (let k = first; k < last; k += 1) weights.push(weight((k - center + 0.5) / stretch));
    const sum = weights.reduce((total, each) => total + each, 0);
    const fixed = weights.map((each) => (sum !== 0 ? each / sum : each) * (1 << BITS));
    return { first, weights: Int32Array.from(fixed, (x) => Math.trunc(x < 0 ? x - 0.5 : x + 0.5)) };
  });
}

// Resample runs of pixels; step and stride lead from pixel to pixel and from run to run.
function resampled(from, to, windows, channels, { lines, step, stride, toStep, toStride }) {
  for (let line = 0; line < lines; line += 1) {
    for (let i = 0; i < windows.length; i += 1) {
      const { first, weights } = windows[i];
      for (let c = 0; c < channels; c += 1) {
        let sum = 1 << (BITS - 1);
        let at = line * stride + first * step + c;
        for (let k = 0; k < weights.length; k += 1, at += step) sum += weights[k] * from[at];
        to[line * toStride + i * toStep + c] = sum >> BITS; // clamped by the array
      }
    }
  }
}

function across(raster, width, filter) {
  const { height, channels: n } = raster;
  const pixels = new Uint8ClampedArray(width * height * n);
  const axis = { lines: height, step: n, stride: raster.width * n, toStep: n, toStride: width * n };
  resampled(raster.pixels, pixels, windowsOf(raster.width, width, filter), n, axis);
  return { width, height, channels: n, pixels };
}

function down(raster, height, filter) {
  const { width, channels: n } = raster;
  const row = width * n;
  const pixels = new Uint8ClampedArray(row * height);
  const axis = { lines: width, step: row, stride: n, toStep: row, toStride: n };
  resampled(raster.pixels, pixels, windowsOf(raster.height, height, filter), n, axis);
  return { width, height, channels: n, pixels };
}

// The inputs that nearest outputs show; Pillow adds step to step, so its roundings add up.
function nearestPlaces(before, length) {
  const step = before / length;
  let at = step * 0.5;
  return Array.from({ length }, () => {
    const place = Math.min(Math.trunc(at), before - 1);
    at += step;
    return place;
  });
}

function nearest(raster, width, height) {
  const { channels: n } = raster;
  const pixels = new Uint8ClampedArray(width * height * n);
  const columns = nearestPlaces(raster.width, width);
  let to = 0;
  for (const row of nearestPlaces(raster.height, height)) {
    for (const column of columns) {
      const at = (row * raster.width + column) * n;
      for (let c = 0; c < n; c += 1) pixels[to++] = raster.pixels[at + c];
    }
  }
  return { width, height, channels: n, pixels };
}

// Since its version 13 Pillow begins with the height where that shrinks by far more than the width;
// each pass rounds, so the order shows.
function heightFirst(raster, width, height) {
  const [less, narrower] = [raster.height - height, raster.width - width];
  return less > 0 && less > 2 * narrower;
}

// A raster {width, height, channels, pixels [height, width, channels]} in another size.
export function resize(raster, width, height, interpolation) {
  if (raster.width === width && raster.height === height) return raster;
  if (interpolation === "nearest") return nearest(raster, width, height);
  const filter = FILTERS[interpolation];
  const passes = [
    (each) => (each.width === width ? each : across(each, width, filter)),
    (each) => (each.height === height ? each : down(each, height, filter)),
  ];
  if (heightFirst(raster, width, height)) passes.reverse();
  return passes.reduce((each, pass) => pass(each), raster);
}
