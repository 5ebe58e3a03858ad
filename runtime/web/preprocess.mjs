// From a picture's pixels to the graph's input, as Pillow and atm_export/preprocess.py do it.

import { AtmError, must } from "./errors.mjs";
import { resize } from "./resample.mjs";

// Limits of a picture, those of atm_export/pictures.py; a test compares them.
export const LIMITS = { pixels: 67108864, aspect: 32, resized: 67108864, bytes: 536870912 };

const GREY = 1;
const RGB = 3;
const RGBA = 4;

// Python's round: halves go to the even neighbour.
function rounded(x) {
  const near = Math.round(x);
  return near - x === 0.5 && near % 2 !== 0 ? near - 1 : near;
}

// AtmError where a picture has no pixels, too many, or is too long and thin.
export function checkSize(width, height) {
  const shape = `the image is ${width} x ${height} pixels`;
  must(width > 0 && height > 0, `${shape}: it is empty`);
  must(width * height <= LIMITS.pixels, `${shape}: ${LIMITS.pixels} in all at most; make it smaller`);
  const [long, short] = [Math.max(width, height), Math.min(width, height)];
  must(long <= LIMITS.aspect * short, `${shape}: too long and thin, ${LIMITS.aspect} to 1 at most; crop it`);
}

// Width and height after the resize, with the rounding of torchvision's and timm's rules.
function resizedSize({ width, height }, how) {
  const { coverWidth, coverHeight } = how;
  if (how.squash) return [coverWidth, coverHeight];
  if (coverHeight === coverWidth) {
    return width <= height
      ? [coverWidth, Math.trunc((coverWidth * height) / width)]
      : [Math.trunc((coverHeight * width) / height), coverHeight];
  }
  const ratio = Math.min(height / coverHeight, width / coverWidth);
  return [Math.max(rounded(width / ratio), 1), Math.max(rounded(height / ratio), 1)];
}

// A picture as a model of so many channels sees it; transparency is ignored, as in Python.
function rasterOf({ width, height, rgba }, channels) {
  const pixels = new Uint8ClampedArray(width * height * channels);
  for (let i = 0, from = 0; from < rgba.length; i += channels, from += RGBA) {
    const [r, g, b] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (channels === GREY) pixels[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; // Pillow's
    else [pixels[i], pixels[i + 1], pixels[i + 2]] = [r, g, b];
  }
  return { width, height, channels, pixels };
}

// {width, height, rgba} resized and centre-cropped: uint8 [height, width, channels] of the input.
export function crop(picture, how) {
  const channels = how.mean.length;
  must(
    channels === GREY || channels === RGB,
    `the model takes ${channels} channels, which no picture has; give arrays`,
  );
  checkSize(picture.width, picture.height);
  must(picture.rgba.length === picture.width * picture.height * RGBA, "a picture's bytes do not fit its size");
  const [width, height] = resizedSize(picture, how);
  if (width * height > LIMITS.resized) {
    throw new AtmError(
      `the image would be resized to ${width} x ${height} pixels: ${LIMITS.resized} in all at most; crop it`,
    );
  }
  return cropped(resize(rasterOf(picture, channels), width, height, how.interpolation), how);
}

function cropped(whole, how) {
  const { channels } = whole;
  const top = rounded((whole.height - how.height) / 2);
  const left = rounded((whole.width - how.width) / 2);
  const pixels = new Uint8ClampedArray(how.height * how.width * channels); // black beyond the picture
  const begin = Math.max(left, 0);
  const end = Math.min(left + how.width, whole.width);
  for (let y = 0; y < how.height; y += 1) {
    const row = top + y;
    if (row < 0 || row >= whole.height || begin >= end) continue;
    const line = whole.pixels.subarray((row * whole.width + begin) * channels, (row * whole.width + end) * channels);
    pixels.set(line, (y * how.width + begin - left) * channels);
  }
  return pixels;
}

// uint8 [n, height, width, channels] to normalised float32 [n, channels, height, width].
export function normalize(pixels, images, how) {
  const channels = how.mean.length;
  const area = how.height * how.width;
  const image = new Float32Array(images * channels * area);
  for (let c = 0; c < channels; c += 1) {
    const level = levels(Math.fround(how.mean[c]), Math.fround(how.std[c]));
    for (let i = 0; i < images; i += 1) {
      let from = i * area * channels + c;
      const to = (i * channels + c) * area;
      for (let p = 0; p < area; p += 1, from += channels) image[to + p] = level[pixels[from]];
    }
  }
  return image;
}

// What each of 256 levels becomes, in FP32 as NumPy computes it.
function levels(mean, std) {
  return Float32Array.from({ length: 256 }, (_, v) => Math.fround(Math.fround(v / 255) - mean) / std);
}
