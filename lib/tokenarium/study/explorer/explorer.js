// The tensor explorer: a state goes in, a picture comes out. The same module is the front end of the widget in JupyterLab,
// where Python serves the slices, and of the page in the report, which has the tensors inside itself.

const FACETS = 24; // more pictures than that are not looked at
const WIDEST = 640; // px
const ROLES = {
  rows: "rows",
  columns: "columns",
  tokens: "map of tokens",
  facets: "one picture each",
  slider: "slider",
  difference: "difference of two",
  mean: "mean",
  sum: "sum",
  largest: "index of the largest",
};
const ALONE = ["rows", "columns", "tokens", "facets", "difference", "largest"]; // roles that one dimension can have

// Arrays: {data, shape, dims}, row-major.

const count = (shape) => shape.reduce((a, b) => a * b, 1);

function strides(shape) {
  const steps = new Array(shape.length).fill(1);
  for (let axis = shape.length - 2; axis >= 0; axis--) steps[axis] = steps[axis + 1] * shape[axis + 1];
  return steps;
}

/** The part of an array where the dimensions of `index` have the given positions. */
export function select(array, index) {
  const steps = strides(array.shape);
  let start = 0;
  const axes = [];
  array.dims.forEach((dim, axis) => {
    if (dim in index) start += index[dim] * steps[axis];
    else axes.push(axis);
  });
  const shape = axes.map((axis) => array.shape[axis]);
  const data = new array.data.constructor(count(shape));
  const at = new Array(axes.length).fill(0);
  for (let place = 0, from = start; place < data.length; place++) {
    data[place] = array.data[from];
    for (let k = axes.length - 1; k >= 0; k--) {
      from += steps[axes[k]];
      if (++at[k] < shape[k]) break;
      from -= shape[k] * steps[axes[k]];
      at[k] = 0;
    }
  }
  return { data, shape, dims: axes.map((axis) => array.dims[axis]) };
}

/** An array without the dimension `dim`: `fold` makes one number of the values along it. */
function reduce(array, dim, fold) {
  const axis = array.dims.indexOf(dim);
  const inner = count(array.shape.slice(axis + 1));
  const length = array.shape[axis];
  const shape = array.shape.filter((_, k) => k !== axis);
  const data = new Float64Array(count(shape));
  const values = new Float64Array(length);
  for (let place = 0; place < data.length; place++) {
    const start = Math.floor(place / inner) * inner * length + (place % inner);
    for (let k = 0; k < length; k++) values[k] = array.data[start + k * inner];
    data[place] = fold(values);
  }
  return { data, shape, dims: array.dims.filter((_, k) => k !== axis) };
}

const sum = (values) => values.reduce((a, b) => a + b, 0);
const largest = (values) => values.reduce((best, value, k) => (value > values[best] ? k : best), 0);

/** The array with its dimensions in the order of `dims`; one that it lacks has length 1. */
function ordered(array, dims) {
  const steps = strides(array.shape);
  const axes = dims.map((dim) => array.dims.indexOf(dim));
  const shape = axes.map((axis) => (axis < 0 ? 1 : array.shape[axis]));
  const data = new Float64Array(count(shape));
  const at = new Array(shape.length).fill(0);
  for (let place = 0; place < data.length; place++) {
    data[place] = array.data[axes.reduce((from, axis, k) => from + (axis < 0 ? 0 : at[k] * steps[axis]), 0)];
    for (let k = shape.length - 1; k >= 0; k--) {
      if (++at[k] < shape[k]) break;
      at[k] = 0;
    }
  }
  return { data, shape, dims };
}

// States

/** The dimension with a role, or null. */
const having = (state, role) => Object.keys(state.roles).find((dim) => state.roles[dim] === role) ?? null;

/** The first state of a tensor. */
export function firstState(catalog, run, tensor) {
  const spec = catalog.runs[run].tensors[tensor];
  const zero = Object.fromEntries(spec.dims.map((dim) => [dim, 0]));
  const other = Object.fromEntries(spec.dims.map((dim, axis) => [dim, Math.min(1, spec.shape[axis] - 1)]));
  return { run, tensor, roles: { ...spec.roles }, index: zero, other, minus: "", opacity: 60, range: null };
}

/** The state after `dim` got `role`: what had it before takes the role that `dim` leaves. */
export function withRole(state, dim, role) {
  const roles = { ...state.roles };
  const left = roles[dim];
  if (ALONE.includes(role)) for (const each in roles) if (roles[each] === role) roles[each] = left;
  roles[dim] = role;
  if (role === "tokens") for (const each in roles) if (["rows", "columns"].includes(roles[each])) roles[each] = "slider";
  if (["rows", "columns"].includes(role)) for (const each in roles) if (roles[each] === "tokens") roles[each] = "slider";
  return { ...state, roles, range: null };
}

/** What a state shows: an array (facets, rows, columns), or (facets, tokens, 1) for a map. */
export async function view(source, state) {
  const [run, tensor] = [state.run, state.tensor];
  const shown = await single(source, run, tensor, state);
  if (!state.minus) return shown;
  if (having(state, "largest")) throw new Error("indices have no difference: choose another role for the largest");
  const [otherRun, otherTensor] = JSON.parse(state.minus);
  const subtrahend = await single(source, otherRun, otherTensor, state);
  if (subtrahend.shape.join() !== shown.shape.join())
    throw new Error(
      `no difference: ${tensor} is ${shown.shape.join(" x ")} here, ${otherTensor} ${subtrahend.shape.join(" x ")}`,
    );
  return { ...shown, data: shown.data.map((value, place) => value - subtrahend.data[place]) };
}

async function single(source, run, tensor, state) {
  const spec = source.catalog.runs[run]?.tensors[tensor];
  if (!spec) throw new Error(`${run} has no tensor ${tensor}`);
  const unknown = spec.dims.filter((dim) => !(dim in state.roles));
  if (unknown.length) throw new Error(`${tensor} has other dimensions: ${spec.dims.join(", ")}`);
  const index = {};
  spec.dims.forEach((dim, axis) => {
    if (state.roles[dim] === "slider") index[dim] = Math.min(state.index[dim] ?? 0, spec.shape[axis] - 1);
  });
  let array = await source.slice(run, tensor, index);
  const pair = having(state, "difference");
  if (pair && array.dims.includes(pair))
    array = reduce(array, pair, (values) => values[state.index[pair]] - values[state.other[pair]]);
  for (const dim of [...array.dims]) {
    if (state.roles[dim] === "mean") array = reduce(array, dim, (values) => sum(values) / values.length);
    if (state.roles[dim] === "sum") array = reduce(array, dim, sum);
  }
  const top = having(state, "largest");
  if (top && array.dims.includes(top)) array = reduce(array, top, largest);
  const tokens = having(state, "tokens");
  const [rows, columns] = tokens ? [tokens, null] : [having(state, "rows"), having(state, "columns")];
  return ordered(array, [having(state, "facets"), rows, columns]);
}

/** Side of the square that `length` tokens fill, and whether a class token comes before them; null if they do not. */
export function grid(length) {
  for (const skip of [0, 1]) {
    const side = Math.round(Math.sqrt(length - skip));
    if (side >= 4 && side * side === length - skip) return { side, skip };
  }
  return null;
}

// Numbers

function number(value) {
  if (Number.isNaN(value)) return "not a number";
  if (Number.isInteger(value)) return String(value);
  return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(3) : value.toPrecision(4);
}

/** Statistics and a histogram of the finite values. */
export function summary(data, bins = 40) {
  const found = { count: data.length, finite: 0, min: Infinity, max: -Infinity, mean: 0, sd: 0, zeros: 0 };
  for (const value of data) {
    if (!Number.isFinite(value)) continue;
    found.finite++;
    found.mean += value;
    found.zeros += value === 0;
    if (value < found.min) found.min = value;
    if (value > found.max) found.max = value;
  }
  found.mean /= found.finite;
  const heights = new Array(bins).fill(0);
  const width = (found.max - found.min) / bins || 1;
  for (const value of data) {
    if (!Number.isFinite(value)) continue;
    found.sd += (value - found.mean) ** 2;
    heights[Math.min(bins - 1, Math.floor((value - found.min) / width))]++;
  }
  found.sd = Math.sqrt(found.sd / found.finite);
  return { ...found, heights };
}

function rgb(hex) {
  return [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
}

/** value -> [r, g, b]: one colour per index, diverging around 0 where there are both signs, or sequential. */
function colouring(colours, low, high, categories) {
  const palette = (categories ? colours.categories : low < 0 && high > 0 ? colours.diverging : colours.sequential).map(rgb);
  if (categories) return (value) => palette[value % palette.length];
  const [from, to] = low < 0 && high > 0 ? [-Math.max(-low, high), Math.max(-low, high)] : [low, high];
  return (value) => {
    const place = (Math.min(1, Math.max(0, (value - from) / (to - from || 1))) * (palette.length - 1)) || 0;
    const [left, right, share] = [palette[Math.floor(place)], palette[Math.ceil(place)], place % 1];
    return left.map((each, k) => Math.round(each + share * (right[k] - each)));
  };
}

// Elements

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const choice = (value, label, selected) => make("option", { value, selected }, label);
let explorers = 0;

/** Put an explorer into `element`. changed(state) is called for what the reader does; returns {show(state)}. */
export function mount(element, source, state, changed = () => {}) {
  const { catalog } = source;
  const own = `explorer${++explorers}`;
  const controls = make("form", { className: "controls" });
  const pictures = make("div", { className: "pictures" });
  const legend = make("div", { className: "legend" });
  const value = make("output", { className: "value" });
  const said = make("p", { className: "note" });
  const numbers = make("div", { className: "numbers" });
  controls.setAttribute("aria-label", "what is shown");
  controls.addEventListener("submit", (event) => event.preventDefault());
  value.setAttribute("aria-live", "polite");
  said.setAttribute("role", "status");
  element.classList.add("tokenarium-explorer");
  element.replaceChildren(controls, make("div", { className: "shown" }, said, pictures, legend, value, numbers));
  let turn = 0;

  function set(next, redraw = true) {
    state = next;
    if (redraw) layControls();
    changed(state);
    return draw();
  }

  function labelled(key, text, control) {
    control.id = `${own}-${key}`;
    return make("div", { className: "field" }, make("label", { htmlFor: control.id }, text), control);
  }

  function layControls() {
    const focused = document.activeElement?.id;
    const spec = catalog.runs[state.run].tensors[state.tensor];
    const fields = [];
    if (Object.keys(catalog.runs).length > 1) {
      const runs = make("select", {}, ...Object.keys(catalog.runs).map((run) => choice(run, run, run === state.run)));
      runs.onchange = () => {
        const { tensors } = catalog.runs[runs.value];
        const same = tensors[state.tensor]?.dims.join() === spec.dims.join();
        const tensor = state.tensor in tensors ? state.tensor : Object.keys(tensors)[0];
        set(same ? { ...state, run: runs.value, range: null } : firstState(catalog, runs.value, tensor));
      };
      fields.push(labelled("run", "Run", runs));
    }
    const names = Object.keys(catalog.runs[state.run].tensors);
    const tensors = make("select", {}, ...names.map((name) => choice(name, name, name === state.tensor)));
    tensors.onchange = () => set(firstState(catalog, state.run, tensors.value));
    fields.push(labelled("tensor", "Tensor", tensors));
    const minus = make("select", {}, choice("", "nothing", !state.minus));
    for (const run in catalog.runs)
      for (const [name, other] of Object.entries(catalog.runs[run].tensors)) {
        if ((run === state.run && name === state.tensor) || other.dims.join() !== spec.dims.join()) continue;
        const key = JSON.stringify([run, name]);
        minus.append(choice(key, run === state.run ? name : `${name} of ${run}`, key === state.minus));
      }
    minus.onchange = () => set({ ...state, minus: minus.value, range: null });
    if (minus.length > 1) fields.push(labelled("minus", "Minus", minus));
    spec.dims.forEach((dim, axis) => fields.push(dimension(spec, dim, spec.shape[axis])));
    if (having(state, "tokens") && picturesOf()) fields.push(strength());
    const hold = make("input", { type: "checkbox", checked: state.range !== null });
    hold.onchange = () => set({ ...state, range: hold.checked ? lastRange : null });
    fields.push(labelled("hold", "Hold the colours", hold));
    controls.replaceChildren(...fields);
    if (focused?.startsWith(own)) document.getElementById(focused)?.focus();
  }

  function dimension(spec, dim, length) {
    const fits = grid(length) || typeof spec.coords[dim]?.[0] === "string";
    const offered = Object.keys(ROLES).filter((role) => role !== "tokens" || fits);
    const roles = make("select", {}, ...offered.map((role) => choice(role, ROLES[role], role === state.roles[dim])));
    roles.onchange = () => set(withRole(state, dim, roles.value));
    const field = labelled(`role-${dim}`, `${dim} (${length})`, roles);
    if (["slider", "difference"].includes(state.roles[dim])) field.append(slider(spec, dim, length, "index"));
    if (state.roles[dim] === "difference") field.append(slider(spec, dim, length, "other"));
    return field;
  }

  function slider(spec, dim, length, which) {
    const input = make("input", { type: "range", min: 0, max: length - 1, step: 1 });
    input.value = state[which][dim];
    input.id = `${own}-${which}-${dim}`;
    input.setAttribute("aria-label", which === "index" ? `${dim}` : `${dim} that is subtracted`);
    const shown = make("output", { htmlFor: input.id }, label(spec, dim, state[which][dim]));
    input.oninput = () => {
      shown.textContent = label(spec, dim, +input.value);
      set({ ...state, [which]: { ...state[which], [dim]: +input.value } }, false);
    };
    return make("div", { className: "slider" }, which === "other" ? "− " : "", input, shown);
  }

  function strength() {
    const input = make("input", { type: "range", min: 0, max: 100, step: 5 });
    input.value = state.opacity;
    input.oninput = () => set({ ...state, opacity: +input.value }, false);
    return labelled("opacity", "Map over picture", input);
  }

  const label = (spec, dim, position) => String(spec.coords[dim]?.[position] ?? position);

  function picturesOf() {
    const { pictures: found, tensors } = catalog.runs[state.run];
    return found && tensors[state.tensor].dims.includes(found.dim) ? found : null;
  }

  let lastRange = null;

  async function draw() {
    const mine = ++turn;
    const spec = catalog.runs[state.run].tensors[state.tensor];
    let shown;
    try {
      shown = await view(source, state);
    } catch (error) {
      if (mine !== turn) return;
      said.textContent = error.message;
      pictures.replaceChildren();
      legend.replaceChildren();
      numbers.replaceChildren();
      element.dataset.drawn = String(mine);
      return;
    }
    if (mine !== turn) return; // the reader is already somewhere else
    const unit = spec.unit ? ` [${spec.unit}]` : "";
    const [facets] = shown.shape;
    const cut = facets > FACETS ? ` The first ${FACETS} of ${facets} pictures.` : "";
    const left = spec.left_out ? ` Left out: ${spec.left_out}.` : "";
    said.textContent = `${state.tensor}: ${spec.note}${unit}.${cut}${left}`;
    const stats = summary(shown.data);
    const categories = having(state, "largest") !== null;
    lastRange = [stats.min, stats.max];
    const [low, high] = state.range ?? lastRange;
    const colour = colouring(catalog.colours, low, high, categories);
    value.textContent = "";
    const parts = [];
    for (let facet = 0; facet < Math.min(facets, FACETS); facet++) parts.push(panel(spec, shown, facet, colour));
    pictures.replaceChildren(...parts);
    drawLegend(low, high, colour, categories);
    drawNumbers(stats);
    element.dataset.drawn = String(mine);
  }

  function panel(spec, shown, facet, colour) {
    const [, height, width] = shown.shape;
    const [facetDim, rowDim, columnDim] = shown.dims;
    const at = (row, column) => shown.data[(facet * height + row) * width + column];
    const title = facetDim ? `${facetDim} ${label(spec, facetDim, facet)}` : "";
    const tokens = having(state, "tokens");
    const say = (row, column) => {
      const places = [[facetDim, facet], [rowDim, row], [columnDim, column]].filter(([dim]) => dim);
      const where = places.map(([dim, place]) => `${dim} ${label(spec, dim, place)}`).join(", ");
      return `${where}: ${number(at(row, column))}`;
    };
    if (tokens && typeof spec.coords[tokens]?.[0] === "string") return text(spec, tokens, at, say, colour, title);
    const square = tokens ? grid(height) : null;
    const [rows, columns] = square ? [square.side, square.side] : [height, width];
    const cell = square
      ? (row, column) => [square.skip + row * square.side + column, 0]
      : (row, column) => [row, column];
    const canvas = heat(rows, columns, (row, column) => at(...cell(row, column)), colour, square, facet);
    const what = [...new Set([title, state.tensor, tokens ?? rowDim, columnDim])].filter(Boolean).join(", ");
    canvas.setAttribute("aria-label", `${what}: heat map of ${rows} by ${columns}; arrow keys read its values`);
    listen(canvas, rows, columns, (row, column) => say(...cell(row, column)));
    const caption = [title];
    if (square?.skip) caption.push(`class token: ${number(at(0, 0))}`);
    if (!square && rowDim) caption.push(`${rowDim} down${columnDim ? `, ${columnDim} across` : ""}`);
    else if (!square && columnDim) caption.push(`${columnDim} across`);
    return make("figure", {}, canvas, make("figcaption", {}, caption.filter(Boolean).join("; ")));
  }

  /** A canvas with one cell per value, over the picture that the tokens came from where there is one. */
  function heat(rows, columns, at, colour, square, facet) {
    const small = make("canvas", { width: columns, height: rows });
    const pixels = new ImageData(columns, rows);
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) {
        const value_ = at(row, column);
        pixels.data.set(Number.isFinite(value_) ? [...colour(value_), 255] : [0, 0, 0, 0], 4 * (row * columns + column));
      }
    small.getContext("2d").putImageData(pixels, 0, 0);
    const found = square && picturesOf();
    const wanted = Math.max(1, Math.min(24, Math.floor((having(state, "facets") ? WIDEST / 3 : WIDEST) / columns)));
    const tall = rows === 1 ? 32 : Math.max(1, Math.min(wanted, Math.floor(WIDEST / rows)));
    const across = rows === 1 ? wanted : tall;
    const canvas = make("canvas", { width: columns * across, height: rows * tall, tabIndex: 0 });
    canvas.setAttribute("role", "application");
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    if (found) {
      const position = state.roles[found.dim] === "facets" ? facet : state.index[found.dim];
      if (["facets", "slider"].includes(state.roles[found.dim]) && position < found.shape[0]) {
        context.drawImage(pictureCanvas(found, position), 0, 0, canvas.width, canvas.height);
        context.globalAlpha = state.opacity / 100;
      }
    }
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  function pictureCanvas(found, position) {
    const [, height, width] = found.shape;
    found.bytes ??= bytesOf(found.data);
    const canvas = make("canvas", { width, height });
    const pixels = new ImageData(width, height);
    for (let place = 0; place < width * height; place++) {
      const grey = found.bytes[position * width * height + place];
      pixels.data.set([grey, grey, grey, 255], 4 * place);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  /** Pointer and arrow keys both read the value of a cell. */
  function listen(canvas, rows, columns, say) {
    const at = [0, 0];
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      at[0] = Math.max(0, Math.min(rows - 1, Math.floor(((event.clientY - box.top) / box.height) * rows)));
      at[1] = Math.max(0, Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns)));
      value.textContent = say(...at);
    });
    canvas.addEventListener("focus", () => (value.textContent = say(...at)));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation(); // JupyterLab would leave the cell
      at[0] = Math.max(0, Math.min(rows - 1, at[0] + step[0]));
      at[1] = Math.max(0, Math.min(columns - 1, at[1] + step[1]));
      value.textContent = say(...at);
    });
  }

  /** The words that the tokens are, each on the colour of its value. */
  function text(spec, dim, at, say, colour, title) {
    const words = spec.coords[dim].map((word, place) => {
      const [r, g, b] = colour(at(place, 0));
      const span = make("span", { tabIndex: 0 }, word || "·");
      span.style.background = `rgb(${r}, ${g}, ${b})`;
      span.style.color = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000" : "#fff";
      span.title = say(place, 0);
      span.onpointerenter = span.onfocus = () => (value.textContent = say(place, 0));
      return span;
    });
    return make("figure", {}, make("p", { className: "words" }, ...words), make("figcaption", {}, title));
  }

  function drawLegend(low, high, colour, categories) {
    if (categories || !Number.isFinite(low)) return legend.replaceChildren();
    const bar = make("canvas", { width: 256, height: 1 });
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", `colours from ${number(low)} to ${number(high)}`);
    const pixels = new ImageData(256, 1);
    for (let k = 0; k < 256; k++) pixels.data.set([...colour(low + ((high - low) * k) / 255), 255], 4 * k);
    bar.getContext("2d").putImageData(pixels, 0, 0);
    legend.replaceChildren(number(low), bar, number(high));
  }

  function drawNumbers(stats) {
    const rows = [
      ["values", stats.count],
      ["smallest", number(stats.min)],
      ["mean", number(stats.mean)],
      ["largest", number(stats.max)],
      ["standard deviation", number(stats.sd)],
      ["zeros", stats.zeros],
    ];
    if (stats.finite < stats.count) rows.push(["not finite", stats.count - stats.finite]);
    const table = make("dl", {}, ...rows.flatMap(([name, each]) => [make("dt", {}, name), make("dd", {}, String(each))]));
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 200 60");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `histogram from ${number(stats.min)} to ${number(stats.max)}`);
    const tallest = Math.max(1, ...stats.heights);
    stats.heights.forEach((height, bin) => {
      const bar = document.createElementNS(space, "rect");
      bar.setAttribute("x", bin * 5);
      bar.setAttribute("y", 60 - (58 * height) / tallest);
      bar.setAttribute("width", 4);
      bar.setAttribute("height", (58 * height) / tallest);
      svg.append(bar);
    });
    numbers.replaceChildren(svg, table);
  }

  layControls();
  const drawn = draw();
  return {
    drawn,
    show(next) {
      if (JSON.stringify(next) === JSON.stringify(state)) return;
      state = next;
      layControls();
      draw();
    },
  };
}

// Where slices come from

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

const READERS = { u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };

/** A float16 given by its bits. */
export function half(bits) {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

function typed(buffer, dtype) {
  if (dtype === "f2") return Float32Array.from(new Uint16Array(buffer), half);
  return new READERS[dtype](buffer);
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** Slices of the tensors that are in the page. */
export function embedded(catalog) {
  const whole = {};
  return {
    catalog,
    async slice(run, tensor, index) {
      const spec = catalog.runs[run].tensors[tensor];
      const key = JSON.stringify([run, tensor]);
      whole[key] ??= inflated(bytesOf(spec.data)).then((buffer) => typed(buffer, spec.dtype));
      return select({ data: await whole[key], shape: spec.shape, dims: spec.dims }, index);
    },
  };
}

/** Slices that Python reads from the file when they are asked for; the last ones are kept. */
export function served(model) {
  const waiting = new Map();
  const kept = new Map();
  let asked = 0;
  model.on("msg:custom", (answer, buffers) => {
    const [resolve, reject] = waiting.get(answer.id) ?? [];
    if (!resolve) return; // another view of the same widget asked
    waiting.delete(answer.id);
    if (answer.error) return reject(new Error(answer.error));
    const { buffer, byteOffset, byteLength } = buffers[0];
    resolve({ data: typed(buffer.slice(byteOffset, byteOffset + byteLength), answer.dtype), shape: answer.shape, dims: answer.dims });
  });
  const name = Math.random().toString(36).slice(2);
  return {
    catalog: model.get("catalog"),
    slice(run, tensor, index) {
      const key = JSON.stringify([run, tensor, index]);
      if (!kept.has(key)) {
        const id = `${name}-${++asked}`;
        const answer = new Promise((resolve, reject) => waiting.set(id, [resolve, reject]));
        answer.catch(() => kept.delete(key));
        kept.set(key, answer);
        if (kept.size > 32) kept.delete(kept.keys().next().value);
        model.send({ id, run, tensor, index });
      }
      return kept.get(key);
    },
  };
}

/** Start the explorers whose data stand in the page. */
export function start() {
  for (const element of document.querySelectorAll("[data-tokenarium]:not(.tokenarium-explorer)")) {
    const { catalog, state } = JSON.parse(document.getElementById(element.dataset.tokenarium).textContent);
    mount(element, embedded(catalog), state);
  }
}

export default {
  render({ model, el }) {
    const root = document.createElement("div");
    el.append(root);
    const explorer = mount(root, served(model), model.get("state"), (state) => {
      model.set("state", state);
      model.save_changes();
    });
    const follow = () => explorer.show(model.get("state"));
    model.on("change:state", follow);
    return () => model.off("change:state", follow);
  },
};
