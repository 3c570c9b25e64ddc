// The viewer of a case page: three planes on canvas, linked by one position, for mouse, touch and keyboard.
//
// Axes are those of the program: 0 rises to the patient's left, 1 to posterior, 2 to superior. A volume is a
// Uint8Array in which axis 0 runs fastest. An image holds 0 for background and 1 to 255 from its lowest to its highest
// value; a label map holds ranks: 0 for background, then 1, 2, 3 in the order of `facts.tissues`.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const STRIDES = [1, facts.shape[0], facts.shape[0] * facts.shape[1]];
const MODALITIES = Object.keys(facts.images);
const COLOURS = ["", ...facts.tissues.map((tissue) => tissue.colour)]; // rank → CSS colour
const COMPARISONS = ["found", "reference", "both", "difference"];
const UNTIL_DRAG_PX = 4; // a pointer that moves less has clicked
const WINDOW_DRAG_PX = 250; // a drag as long as this widens the window by the range of the image

const volumes = {}; // modality, `found` or `reference` → Uint8Array, once unpacked
const state = {
  position: facts.shape.map((count) => count >> 1), // voxel of the crosshair
  modality: MODALITIES.includes("flair") ? "flair" : MODALITIES[0],
  windows: {}, // modality → [value shown black, value shown white]
  hidden: new Set(), // ranks
  style: "contour",
  opacity: 0.7,
  comparison: facts.reference ? "both" : "found",
  region: "WT",
  drag: "window",
  crosshair: true,
  main: "axial",
  active: "axial",
};
const planes = facts.planes.map((plane) => {
  const figure = document.getElementById(plane.name);
  return {
    ...plane,
    figure,
    canvas: figure.querySelector(".picture"),
    slider: figure.querySelector("input"),
    strip: figure.querySelector(".scroll canvas"),
    columns: facts.shape[plane.across],
    rows: facts.shape[plane.down],
    width_mm: facts.shape[plane.across] * facts.spacing_mm[plane.across],
    height_mm: facts.shape[plane.down] * facts.spacing_mm[plane.down],
    count: facts.shape[plane.axis],
  };
});

// --- volumes ---

async function unpack(name) {
  const packed = atob(document.getElementById(`volume-${name}`).textContent);
  const bytes = new Uint8Array(packed.length);
  for (let place = 0; place < packed.length; place++) bytes[place] = packed.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  volumes[name] = new Uint8Array(await new Response(stream).arrayBuffer());
}

// One slice as on the page, row by row: what `table` holds for each voxel's byte.
function cut(plane, volume, table) {
  const slice = new table.constructor(plane.columns * plane.rows);
  const step = STRIDES[plane.across];
  for (let row = 0, place = 0; row < plane.rows; row++) {
    let voxel = state.position[plane.axis] * STRIDES[plane.axis] + along(plane, row) * STRIDES[plane.down];
    for (let column = 0; column < plane.columns; column++, voxel += step) slice[place++] = table[volume[voxel]];
  }
  return slice;
}

// From a row on the page to the index along the axis that runs down it, and back: superior belongs at the top.
function along(plane, row) {
  return plane.down === 2 ? plane.rows - 1 - row : row;
}

// Voxels of each rank in every slice along an axis: [slice][rank].
function countTissues(volume, axis) {
  const counts = Array.from({ length: facts.shape[axis] }, () => COLOURS.map(() => 0));
  for (let voxel = 0; voxel < volume.length; voxel++) {
    const rank = volume[voxel];
    if (rank) counts[Math.floor(voxel / STRIDES[axis]) % facts.shape[axis]][rank]++;
  }
  return counts;
}

// --- drawing ---

// Where a slice lies on its canvas, in canvas pixels: as large as fits, in its true proportions.
function frameOf(plane) {
  const { width, height } = plane.canvas;
  const scale = Math.min(width / plane.width_mm, height / plane.height_mm);
  const size = [plane.width_mm * scale, plane.height_mm * scale];
  return { left: (width - size[0]) / 2, top: (height - size[1]) / 2, width: size[0], height: size[1] };
}

function rgba(css, alpha = 255) {
  const [red, green, blue] = css.match(/\d+/g).map(Number);
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function valueOf(modality, byte) {
  const { low, high } = facts.images[modality];
  return byte && low + ((byte - 1) * (high - low)) / 254;
}

// Byte → grey as the window shows it, as a pixel of an ImageData.
function greys(modality) {
  const [dark, bright] = state.windows[modality];
  const table = new Uint32Array(256).fill(rgba("0 0 0"));
  for (let byte = 1; byte < 256; byte++) {
    const share = (valueOf(modality, byte) - dark) / (bright - dark);
    const grey = Math.round(255 * Math.min(1, Math.max(0, share)));
    table[byte] = rgba(`${grey} ${grey} ${grey}`);
  }
  return table;
}

function paint(context, plane, pixels) {
  const sheet = new OffscreenCanvas(plane.columns, plane.rows);
  const bytes = new Uint8ClampedArray(pixels.buffer);
  sheet.getContext("2d").putImageData(new ImageData(bytes, plane.columns, plane.rows), 0, 0);
  const frame = frameOf(plane);
  context.drawImage(sheet, frame.left, frame.top, frame.width, frame.height);
}

// Lines between pixels of different values, each in the colour of the larger value; soft ones are wide and faint.
function outline(context, plane, values, colours, soft) {
  const { columns, rows } = plane;
  const frame = frameOf(plane);
  const paths = colours.map(() => new Path2D());
  const at = (row, column) => (row < 0 || column < 0 || row === rows || column === columns ? 0 : values[row * columns + column]);
  const line = (first, second, ...ends) => {
    if (first === second) return;
    const [x, y, toX, toY] = ends.map((end, i) =>
      i % 2 ? frame.top + (end * frame.height) / rows : frame.left + (end * frame.width) / columns);
    paths[Math.max(first, second)].moveTo(x, y);
    paths[Math.max(first, second)].lineTo(toX, toY);
  };
  for (let row = 0; row <= rows; row++) {
    for (let column = 0; column <= columns; column++) {
      const here = at(row, column);
      line(at(row, column - 1), here, column, row, column, row + 1);
      line(at(row - 1, column), here, column, row, column + 1, row);
    }
  }
  context.globalAlpha = state.opacity * (soft ? 0.5 : 1);
  context.lineWidth = (soft ? 5 : 1.6) * devicePixelRatio;
  context.lineCap = soft ? "butt" : "round"; // round ends would overlap and show as dots
  paths.forEach((path, value) => {
    context.strokeStyle = colours[value];
    if (value) context.stroke(path);
  });
}

// What lies over the image: slices of values, from the lowest to the topmost.
function layersOf(plane) {
  const shown = Uint8Array.from(COLOURS, (_, rank) => (state.hidden.has(rank) ? 0 : rank));
  const contour = state.style === "contour";
  const layer = (name, how) => volumes[name] && { values: cut(plane, volumes[name], shown), colours: COLOURS, contour, ...how };
  if (state.comparison === "difference") {
    if (!volumes.found || !volumes.reference) return [];
    const inside = Uint8Array.from(COLOURS, (_, rank) => facts.regions[state.region].includes(rank));
    const reference = cut(plane, volumes.reference, inside);
    const values = cut(plane, volumes.found, inside).map((found, i) => [0, 3, 2, 1][2 * found + reference[i]]);
    return [{ values, colours: ["", ...facts.difference.map((kind) => kind.colour)], contour }];
  }
  if (state.comparison !== "both") return [layer(state.comparison)].filter(Boolean);
  // The reference lies below thin contours as wide ones, and above filled labels as white ones.
  const found = layer("found");
  const below = contour && layer("reference", { soft: true });
  const above = !contour && layer("reference", { contour: true, colours: ["", "#fff", "#fff", "#fff"] });
  return [below, found, above].filter(Boolean);
}

function drawPlane(plane) {
  const { canvas } = plane;
  canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
  canvas.height = Math.round(canvas.clientHeight * devicePixelRatio);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  if (volumes[state.modality]) paint(context, plane, cut(plane, volumes[state.modality], greys(state.modality)));
  for (const { values, colours, contour, soft } of layersOf(plane)) {
    if (contour) {
      outline(context, plane, values, colours, soft);
    } else {
      context.globalAlpha = state.opacity;
      context.imageSmoothingEnabled = false;
      const palette = Uint32Array.from(colours, (colour) => (colour ? rgba(colour) : 0));
      paint(context, plane, Uint32Array.from(values, (value) => palette[value]));
    }
  }
  context.globalAlpha = 1;
  if (state.crosshair) drawCrosshair(context, plane);
  drawLetters(context, plane);
}

function drawCrosshair(context, plane) {
  const frame = frameOf(plane);
  const gap = 9 * devicePixelRatio;
  const x = frame.left + ((state.position[plane.across] + 0.5) * frame.width) / plane.columns;
  const y = frame.top + ((along(plane, state.position[plane.down]) + 0.5) * frame.height) / plane.rows;
  context.strokeStyle = "rgb(120 255 160 / 65%)";
  context.lineWidth = devicePixelRatio;
  context.beginPath();
  for (const [fromX, fromY, toX, toY] of [
    [frame.left, y, x - gap, y], [x + gap, y, frame.left + frame.width, y],
    [x, frame.top, x, y - gap], [x, y + gap, x, frame.top + frame.height],
  ]) {
    if (toX < fromX || toY < fromY) continue;
    context.moveTo(fromX, fromY);
    context.lineTo(toX, toY);
  }
  context.stroke();
}

function drawLetters(context, plane) {
  const { width, height } = plane.canvas;
  const edge = 12 * devicePixelRatio;
  context.font = `600 ${13 * devicePixelRatio}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 3 * devicePixelRatio;
  context.strokeStyle = "#000";
  context.fillStyle = "#e2e7ee";
  const places = [[edge, height / 2], [width - edge, height / 2], [width / 2, edge], [width / 2, height - edge]];
  places.forEach((place, i) => {
    context.strokeText(plane.edges[i], ...place);
    context.fillText(plane.edges[i], ...place);
  });
}

// Below a plane: a bar per slice, as high as the slice holds tumour, in the colours of the tissues.
function drawStrip(plane) {
  const { strip } = plane;
  strip.width = strip.clientWidth * devicePixelRatio;
  strip.height = strip.clientHeight * devicePixelRatio;
  const context = strip.getContext("2d");
  const highest = Math.max(1, ...plane.tissues.map((counts) => counts.reduce((sum, count) => sum + count)));
  const wide = strip.width / Math.max(1, plane.count - 1); // the first and last bar lie below the thumb's ends
  plane.tissues.forEach((counts, slice) => {
    let bottom = strip.height;
    counts.forEach((count, rank) => {
      const high = (0.94 * strip.height * count) / highest;
      context.fillStyle = COLOURS[rank];
      if (high) context.fillRect((slice - 0.5) * wide, bottom - high, wide + 0.5, high);
      bottom -= high;
    });
  });
}
