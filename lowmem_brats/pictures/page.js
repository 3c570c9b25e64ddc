// What a case page says, and what mouse, touch and keys do; follows page_draw.js, which draws what `state` says.

const KEYS = {
  f: () => choose("style", state.style === "fill" ? "contour" : "fill"),
  c: () => choose("crosshair", !state.crosshair),
  l: toggleLabels,
  t: goToTumour,
  r: resetWindow,
  d: () => facts.reference && choose("comparison", COMPARISONS[(COMPARISONS.indexOf(state.comparison) + 1) % COMPARISONS.length]),
};
const STEPS = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };

// --- what the page says ---

function show(id, text) {
  const element = document.getElementById(id);
  if (element) element.textContent = text;
}

function written(modality, value) {
  const { low, high } = facts.images[modality];
  return value.toFixed(Math.min(8, Math.max(0, Math.ceil(-Math.log10((high - low) / 254)))));
}

function tellPosition() {
  const voxel = state.position.reduce((sum, index, axis) => sum + index * STRIDES[axis], 0);
  const place = facts.affine.map((row) => row[3] + state.position.reduce((sum, index, axis) => sum + index * row[axis], 0));
  show("position", place.map((mm, axis) => `${["LR", "PA", "IS"][axis][Number(mm >= 0)]} ${Math.abs(mm).toFixed(1)}`).join(" · ") + " mm");
  const inFile = [];
  facts.file_axes.forEach(({ axis, first, step }, own) => (inFile[axis] = first + step * state.position[own]));
  show("voxel", inFile.join(", "));
  for (const modality of MODALITIES) {
    const byte = volumes[modality] ? volumes[modality][voxel] : 0;
    const beyond = { 1: "≤ ", 255: "≥ " }[byte] ?? "";
    show(`value-${modality}`, byte ? beyond + written(modality, valueOf(modality, byte)) : "0");
  }
  for (const [id, name] of [["label", "found"], ["reference", "reference"]]) {
    const rank = volumes[name] ? volumes[name][voxel] : 0;
    show(id, rank ? facts.tissues[rank - 1].name : "–");
  }
  const [dark, bright] = state.windows[state.modality];
  show("window", `${written(state.modality, dark)} – ${written(state.modality, bright)}`);
  for (const plane of planes) {
    const at = state.position[plane.axis];
    plane.slider.value = at;
    const { first, step } = facts.file_axes[plane.axis];
    plane.figure.querySelector("output").textContent = `slice ${first + step * at}`;
    plane.slider.setAttribute("aria-valuetext", `slice ${first + step * at}`);
  }
}

function tellChoices() {
  for (const button of document.querySelectorAll("[data-set]")) {
    button.setAttribute("aria-pressed", state[button.dataset.set] === button.dataset.to);
  }
  for (const box of document.querySelectorAll("[data-rank]")) box.checked = !state.hidden.has(Number(box.dataset.rank));
  for (const part of document.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== state.comparison;
  for (const plane of planes) {
    plane.figure.classList.toggle("main", plane.name === state.main);
    plane.figure.classList.toggle("active", plane.name === state.active);
  }
}

// --- what changes the state ---

let waiting = false;

// Draw everything anew before the screen is next refreshed, however often it was asked for until then.
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    tellChoices();
    tellPosition();
    planes.forEach(drawPlane);
  });
}

function choose(name, value) {
  if (name === "modality" && !MODALITIES.includes(value)) return;
  state[name] = value;
  redraw();
}

function moveTo(axis, index) {
  state.position[axis] = Math.min(facts.shape[axis] - 1, Math.max(0, index));
  redraw();
}

function scroll(plane, slices) {
  state.active = plane.name;
  moveTo(plane.axis, state.position[plane.axis] + slices);
}

function toggleLabels() {
  const all = facts.tissues.map((_, i) => i + 1);
  state.hidden = new Set(state.hidden.size < all.length ? all : []);
  redraw();
}

// Each plane goes to the slice with the largest tumour; without tumour, to the middle.
function goToTumour() {
  for (const plane of planes) {
    const sums = plane.tissues.map((counts) => counts.reduce((sum, count) => sum + count));
    const largest = Math.max(...sums);
    moveTo(plane.axis, largest ? sums.indexOf(largest) : plane.count >> 1);
  }
}

function resetWindow() {
  for (const modality of MODALITIES) state.windows[modality] = [...facts.images[modality].window];
  redraw();
}

// Right: a wider window, less contrast. Up: a lower window, brighter.
function dragWindow(rightPx, downPx) {
  const { low, high } = facts.images[state.modality];
  const [dark, bright] = state.windows[state.modality];
  const perPx = (high - low) / WINDOW_DRAG_PX;
  const middle = Math.min(high, Math.max(low, (dark + bright) / 2 + downPx * perPx));
  const half = Math.min(high - low, Math.max((high - low) / 254, (bright - dark) / 2 + rightPx * perPx));
  state.windows[state.modality] = [middle - half, middle + half];
  redraw();
}

function placeCrosshair(plane, event) {
  const box = plane.canvas.getBoundingClientRect();
  const frame = frameOf(plane);
  const x = (event.clientX - box.left) * devicePixelRatio - frame.left;
  const y = (event.clientY - box.top) * devicePixelRatio - frame.top;
  const row = Math.min(plane.rows - 1, Math.max(0, Math.floor((y / frame.height) * plane.rows)));
  moveTo(plane.across, Math.floor((x / frame.width) * plane.columns));
  moveTo(plane.down, along(plane, row));
}

// --- mouse, touch and keys ---

function listenToPointer(plane) {
  let pressed = null; // the last event of the pointer that is down
  let dragging = false;
  plane.canvas.addEventListener("pointerdown", (event) => {
    pressed = { x: event.clientX, y: event.clientY, window: state.drag === "window" || event.button === 2 || event.shiftKey };
    dragging = false;
    plane.canvas.setPointerCapture(event.pointerId);
    choose("active", plane.name);
  });
  plane.canvas.addEventListener("pointermove", (event) => {
    if (!pressed) return;
    const [right, down] = [event.clientX - pressed.x, event.clientY - pressed.y];
    dragging ||= Math.hypot(right, down) >= UNTIL_DRAG_PX;
    if (!dragging) return;
    if (pressed.window) dragWindow(right, down);
    else placeCrosshair(plane, event);
    Object.assign(pressed, { x: event.clientX, y: event.clientY });
  });
  plane.canvas.addEventListener("pointerup", (event) => {
    if (pressed && !dragging && event.button !== 2) placeCrosshair(plane, event);
    pressed = null;
  });
  plane.canvas.addEventListener("pointercancel", () => (pressed = null));
  plane.canvas.addEventListener("contextmenu", (event) => event.preventDefault());
}

// A notch of a mouse wheel is a slice; the many small steps of a touch pad add up to one.
function listenToWheel(plane) {
  let turned = 0;
  plane.canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey) return; // zooms the page
    event.preventDefault();
    turned += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY / 50 : event.deltaY;
    const slices = Math.sign(turned) * Math.min(1, Math.floor(Math.abs(turned)));
    if (!slices) return;
    turned = 0;
    scroll(plane, -slices);
  }, { passive: false });
}

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = event.target.type === "range" ? 0 : STEPS[event.key];
    const order = ["t1", "t1ce", "t2", "flair"][Number(event.key) - 1];
    if (steps) scroll(planes.find((plane) => plane.name === state.active), steps);
    else if (order) choose("modality", order);
    else if (KEYS[event.key.toLowerCase()]) KEYS[event.key.toLowerCase()]();
    else return;
    event.preventDefault();
  });
}

function listen() {
  for (const plane of planes) {
    listenToPointer(plane);
    listenToWheel(plane);
    plane.canvas.addEventListener("focus", () => choose("active", plane.name));
    plane.slider.addEventListener("input", () => scroll(plane, plane.slider.valueAsNumber - state.position[plane.axis]));
    plane.figure.querySelector("button").addEventListener("click", () => choose("main", plane.name));
    new ResizeObserver(() => (drawStrip(plane), redraw())).observe(plane.figure);
  }
  for (const button of document.querySelectorAll("[data-set]")) {
    button.addEventListener("click", () => choose(button.dataset.set, button.dataset.to));
  }
  for (const box of document.querySelectorAll("[data-rank]")) {
    box.addEventListener("change", () => {
      state.hidden[box.checked ? "delete" : "add"](Number(box.dataset.rank));
      redraw();
    });
  }
  const opacity = document.getElementById("opacity");
  opacity.addEventListener("input", () => choose("opacity", opacity.valueAsNumber / 100));
  document.getElementById("reset").addEventListener("click", resetWindow);
  document.getElementById("tumour").addEventListener("click", goToTumour);
  listenToKeys();
}

async function start() {
  for (const swatch of document.querySelectorAll("[data-colour]")) swatch.style.background = swatch.dataset.colour;
  if (!("DecompressionStream" in window)) {
    show("message", "This browser cannot unpack the images: use Firefox 113, Chrome 80, Safari 16.4 or a newer one.");
    return;
  }
  await unpack("found");
  for (const plane of planes) {
    plane.tissues = countTissues(volumes.found, plane.axis);
    plane.slider.max = plane.count - 1;
    plane.canvas.style.aspectRatio = `${plane.width_mm} / ${plane.height_mm}`;
  }
  resetWindow();
  goToTumour();
  listen();
  const others = [state.modality, ...(facts.reference ? ["reference"] : []), ...MODALITIES.filter((each) => each !== state.modality)];
  for (const name of others) {
    await unpack(name);
    redraw();
  }
  show("message", "");
  document.getElementById("viewer").setAttribute("aria-busy", "false");
}

start().catch((error) => show("message", `The images cannot be shown: ${error.message}`));
