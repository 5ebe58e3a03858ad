// Pictures with their merged patches as regions, as `atm-export visualize` draws them: a patch that
// stays a token of its own keeps its pixels; patches that share a token take the mean colour of their
// region, with an outline around it; dropped patches are dark.

const SHOWN = 448; // pixels of the shorter side, at least
const DIMMED = 5;

// Rows and columns of `patches` squares that fill height x width; null where there are none such.
export function gridOf(patches, [height, width]) {
  const side = Math.sqrt((height * width) / patches);
  const fits = Number.isInteger(side) && height % side === 0 && width % side === 0;
  return fits ? [height / side, width / side] : null;
}

// uint8 [height, width, channels] as the canvas's own picture; grey where there is one channel.
function imageOf(pixels, [height, width], channels) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = pixels[i * channels + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  return image;
}

// The picture on a canvas, small ones enlarged by whole pixels. Returns how many pixels one became.
export function drawPicture(canvas, pixels, size, channels) {
  const [height, width] = size;
  const scale = Math.max(1, Math.round(SHOWN / Math.min(height, width)));
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(imageOf(pixels, size, channels), 0, 0);
  [canvas.width, canvas.height] = [width * scale, height * scale];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return scale;
}

// The same with the regions of `map`, the token of each patch (-1: dropped), in `grid`.
export function drawRegions(canvas, pixels, size, channels, map, grid) {
  const scale = drawPicture(canvas, pixels, size, channels);
  const side = size[0] / grid[0];
  const context = canvas.getContext("2d");
  const means = meansOf(pixels, size, channels, map, grid);
  const step = side * scale;
  const shared = (token) => token >= 0 && means.get(token).count > 1;
  map.forEach((token, i) => {
    if (!shared(token) && token >= 0) return;
    const { sum, count } = means.get(token);
    const share = 1 / (count * side * side);
    context.fillStyle =
      token < 0 ? `rgb(0 0 0 / ${1 - 1 / DIMMED})` : `rgb(${sum.map((each) => Math.round(each * share)).join(" ")})`;
    context.fillRect((i % grid[1]) * step, Math.floor(i / grid[1]) * step, step, step);
  });
  outline(context, map, grid, step, shared);
}

function meansOf(pixels, [, width], channels, map, grid) {
  const side = width / grid[1];
  const means = new Map();
  map.forEach((token, i) => {
    if (!means.has(token)) means.set(token, { sum: [0, 0, 0], count: 0 });
    const mean = means.get(token);
    mean.count += 1;
    const [top, left] = [Math.floor(i / grid[1]) * side, (i % grid[1]) * side];
    for (let y = top; y < top + side; y += 1) {
      for (let x = left; x < left + side; x += 1) {
        const at = (y * width + x) * channels;
        for (let c = 0; c < 3; c += 1) mean.sum[c] += pixels[at + (channels === 3 ? c : 0)];
      }
    }
  });
  return means;
}

// Lines where two patches belong to different tokens, and one of them is shared.
function outline(context, map, [rows, columns], step, shared) {
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.beginPath();
  const between = (one, other) => map[one] !== map[other] && (shared(map[one]) || shared(map[other]));
  for (let y = 0; y < rows; y += 1) {
    for (let x = 0; x < columns; x += 1) {
      const i = y * columns + x;
      if (x + 1 < columns && between(i, i + 1)) line(context, (x + 1) * step, y * step, 0, step);
      if (y + 1 < rows && between(i, i + columns)) line(context, x * step, (y + 1) * step, step, 0);
    }
  }
  context.stroke();
}

function line(context, x, y, dx, dy) {
  context.moveTo(x, y);
  context.lineTo(x + dx, y + dy);
}

// Tokens after each block as bars, each with its number.
export function drawBars(box, tokens, most) {
  box.replaceChildren(
    ...tokens.map((count) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const share = (100 * count) / most;
      bar.setAttribute("viewBox", `0 0 100 ${Math.max(share, 1)}`);
      bar.setAttribute("preserveAspectRatio", "none");
      bar.setAttribute("height", `${Math.max(Math.round(share * 0.85), 1)}%`);
      const rectangle = document.createElementNS(bar.namespaceURI, "rect");
      for (const [name, value] of Object.entries({ width: "100", height: "100" })) {
        rectangle.setAttribute(name, value);
      }
      bar.append(rectangle);
      const column = document.createElement("div");
      column.append(String(count), bar);
      return column;
    }),
  );
  box.setAttribute("aria-label", `Tokens after each block: ${tokens.join(", ")}`);
}
