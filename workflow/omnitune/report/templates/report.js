"use strict";
// What the page does beyond showing: tables sort and filter, galleries filter, sort and search, a viewer compares two images.

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------- tables

function cellValue(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function sortRows(table, column, descending) {
  const order = (a, b) => {
    const [x, y] = [cellValue(a, column), cellValue(b, column)];
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // what has no value stays last
    const found = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return descending ? -found : found;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = head.ariaSort === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = descending ? "descending" : "ascending";
      sortRows(table, column, descending);
    });
  });
}

function makeTaskFilter(table) {
  const rows = [...table.tBodies[0].rows];
  const tasks = [...new Set(rows.map((row) => row.dataset.task))];
  if (tasks.length < 2) return;
  const choice = element("select", { className: "task" }, new Option("each", ""), ...tasks.map((t) => new Option(t, t)));
  const filter = () => rows.forEach((row) => { row.hidden = choice.value !== "" && row.dataset.task !== choice.value; });
  choice.value = tasks[0];
  choice.addEventListener("change", filter);
  filter();
  table.parentElement.before(element("p", { className: "tools" }, element("label", {}, "Task ", choice)));
}

// ---------------------------------------------------------------- curves

function makeWidening(plot) {
  const button = element("button", { type: "button", className: "widen", textContent: "larger", ariaPressed: "false" });
  button.addEventListener("click", () => { button.ariaPressed = String(plot.classList.toggle("wide")); });
  plot.querySelector("figcaption").prepend(button);
}

// Of x and y a plot says [where the axis begins, where it ends, the number there, the number here]; all are linear.
const placeAt = ([begin, end], [first, last], number) => begin + ((number - first) / (last - first)) * (end - begin);
const numberAt = ([begin, end], [first, last], place) => first + ((place - begin) / (end - begin)) * (last - first);
const wholeOf = (axes) => axes.map((axis) => axis.slice(2));

function ticksOf([first, last]) {
  const unit = 10 ** Math.floor(Math.log10((last - first) / 4));
  const step = [1, 2, 5, 10].map((times) => times * unit).find((size) => (last - first) / size <= 6);
  const ticks = [];
  for (let n = Math.ceil(first / step); n * step <= last; n++) ticks.push(Number((n * step).toPrecision(9)));
  return ticks;
}

function drawAxis(group, name, axis, shown) {
  const parts = [...group.children], ticks = parts.filter((part) => part.querySelector("use"));
  const old = Number(ticks[0].querySelector("use").getAttribute(name));
  for (const number of ticksOf(shown)) {
    const tick = ticks[0].cloneNode(true), by = placeAt(axis, shown, number) - old;
    tick.setAttribute("transform", `translate(${name === "x" ? by : 0} ${name === "y" ? by : 0})`);
    const size = Math.abs(number), text = size >= 1e5 || (size && size < 1e-3) ? number.toExponential() : String(number);
    tick.querySelector("text").textContent = text.replaceAll("-", "\u2212");
    group.insertBefore(tick, parts[0]);
  }
  parts.filter((part) => ticks.includes(part) || name === "y").forEach((part) => part.remove()); // of y a factor, too
}

function drawZoomed(svg, axes, shown) {
  const [x, y] = axes.map((axis, i) => (place) => placeAt(axis, shown[i], numberAt(axis, axis.slice(2), place)));
  for (const curve of svg.querySelectorAll("path[clip-path]")) {
    const d = curve.getAttribute("d").replace(/([ML]) (\S+) (\S+)/g, (_, to, a, b) => `${to} ${x(a)} ${y(b)}`);
    if (!curve.closest(".x-axis, .y-axis")) curve.setAttribute("d", d);
  }
  for (const mark of svg.querySelectorAll("[clip-path] use")) {
    mark.setAttribute("x", x(mark.getAttribute("x")));
    mark.setAttribute("y", y(mark.getAttribute("y")));
  }
  ["x", "y"].forEach((name, i) => drawAxis(svg.querySelector(`.${name}-axis`), name, axes[i], shown[i]));
}

function makeZoomable(plot) { // dragging over a part of a plot shows that alone, and again a part of it
  const svg = plot.querySelector("svg[data-axes]"), drawn = svg.innerHTML, axes = JSON.parse(svg.dataset.axes);
  const back = element("button", { type: "button", className: "whole", textContent: "whole", hidden: true });
  const frame = document.createElementNS(svg.namespaceURI, "rect");
  let shown = wholeOf(axes), from = null;
  const show = (numbers) => {
    svg.innerHTML = drawn;
    if (numbers) drawZoomed(svg, axes, numbers);
    shown = numbers ?? wholeOf(axes);
    back.hidden = !numbers;
  };
  const placeOf = (event) => { // inside of the axes
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    const place = [(event.clientX - box.x) * (view.width / box.width), (event.clientY - box.y) * (view.height / box.height)];
    return axes.map(([begin, end], i) => Math.min(Math.max(place[i], Math.min(begin, end)), Math.max(begin, end)));
  };
  const rangeTo = (event) => { // a level stroke leaves the height as it is; a dot is none
    const to = placeOf(event), far = to.map((place, i) => Math.abs(place - from[i]) > 8);
    return far[0] ? axes.map((axis, i) => far[i] ? [from[i], to[i]] : axis.slice(0, 2)) : null;
  };
  back.addEventListener("click", () => show(null));
  plot.querySelector("figcaption").prepend(back);
  svg.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.button) return; // fingers scroll the page
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    from = placeOf(event);
  });
  svg.addEventListener("pointermove", (event) => {
    const [x, y] = (from && rangeTo(event)) ?? [[0, 0], [0, 0]];
    for (const [name, [a, b]] of [["x", x], ["y", y]]) frame.setAttribute(name, Math.min(a, b));
    for (const [name, [a, b]] of [["width", x], ["height", y]]) frame.setAttribute(name, Math.abs(a - b));
    if (from) svg.append(frame);
  });
  svg.addEventListener("pointerup", (event) => {
    const range = from && rangeTo(event);
    from = null;
    frame.remove();
    if (range) show(range.map((ends, i) => ends.map((end) => numberAt(axes[i], shown[i], end)).sort((a, b) => a - b)));
  });
}

// ---------------------------------------------------------------- galleries

const FIRST = 12; // prompts that are shown before more are asked for

function setUpGallery(gallery) {
  const [list, tools, more] = [".examples", ".tools", ".more"].map((name) => gallery.querySelector(name));
  const [search, task, order, count] = ["input", ".task", ".order", "output"].map((name) => tools.querySelector(name));
  const examples = [...list.children];
  const changes = new Map(examples.map((example) => [example, JSON.parse(example.dataset.changes)]));
  let limit = FIRST;

  function sorted() {
    const [measure, sign] = order.value.split(" ");
    if (!measure) return examples;
    const change = (example) => changes.get(example)[measure] ?? -Infinity * sign;
    return [...examples].sort((a, b) => sign * (change(b) - change(a)) || 0);
  }

  function update() {
    const words = search.value.trim().toLowerCase();
    const fits = (example) =>
      (!task.value || example.dataset.task === task.value) &&
      (!words || `${example.dataset.key} ${example.querySelector(".instruction").textContent}`.toLowerCase().includes(words));
    const found = sorted().filter(fits);
    examples.forEach((example) => { example.hidden = true; });
    found.slice(0, limit).forEach((example) => { example.hidden = false; });
    list.append(...found);
    count.textContent = `${found.length} of ${examples.length} prompts`;
    more.hidden = found.length <= limit;
    more.textContent = `Show all ${found.length} prompts`;
  }

  [search, task, order].forEach((control) => control.addEventListener("input", update));
  more.addEventListener("click", () => { limit = Infinity; update(); });
  tools.hidden = false;
  update();
}

// ---------------------------------------------------------------- the viewer

const viewer = document.getElementById("viewer");
const part = (name) => viewer.querySelector(name);
const panes = [...viewer.querySelectorAll(".pane img")];
const choices = [...viewer.querySelectorAll(".bar select")];
const stage = part(".stage");
const view = { scale: 1, x: 0, y: 0 };
let current = null; // the example that is shown

const captionOf = (image) => image.closest("figure").querySelector("figcaption b").textContent;
const imagesOf = (example) => [...example.querySelectorAll("img")];

function fill(pane, image) {
  pane.onerror = () => { pane.onerror = null; pane.src = image.src; }; // the page was moved away from its images
  pane.src = image.closest("a")?.getAttribute("href") ?? image.src;
  pane.alt = image.alt;
  pane.className = image.className;
}

function place() {
  stage.style.setProperty("--scale", view.scale);
  stage.style.setProperty("--x", `${view.x}px`);
  stage.style.setProperty("--y", `${view.y}px`);
}

function zoom(factor, x = 0, y = 0) {
  const scale = Math.min(16, Math.max(1, view.scale * factor));
  const grown = scale / view.scale;
  Object.assign(view, { scale, x: x - grown * (x - view.x), y: y - grown * (y - view.y) });
  if (scale === 1) Object.assign(view, { x: 0, y: 0 });
  place();
}

function choose(names) {
  const images = imagesOf(current);
  const captions = images.map(captionOf);
  choices.forEach((select, side) => {
    select.replaceChildren(...captions.map((caption, number) => new Option(caption, number)));
    const wanted = captions.indexOf(names[side]);
    select.selectedIndex = wanted < 0 ? (side ? images.length - 1 : 0) : wanted;
    fill(panes[side], images[select.selectedIndex]);
  });
}

function open(example, names) {
  current = example;
  part(".instruction").textContent = example.querySelector(".instruction")?.textContent ?? "";
  part(".note").textContent = example.dataset.key;
  part(".copy-seed").hidden = !example.dataset.seed;
  part(".told").textContent = "";
  zoom(0);
  choose(names);
  if (!viewer.open) viewer.showModal();
}

function enlarge(image) {
  const example = image.closest(".example");
  const captions = imagesOf(example).map(captionOf);
  const clicked = captionOf(image);
  const rows = imagesOf(example).filter((i) => i.closest("figure").dataset.kind === "row").map(captionOf);
  const other = rows[0] === clicked ? rows.at(-1) : rows[0];
  open(example, [other ?? captions[0], clicked]);
}

function walk(direction) {
  const shown = [...document.querySelectorAll(".gallery .example:not([hidden])")];
  const from = viewer.open ? current : document.activeElement?.closest(".example");
  const next = shown[shown.indexOf(from) + direction];
  if (!next) return;
  if (viewer.open) open(next, choices.map((select) => select.selectedOptions[0].textContent));
  else { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    part(".told").textContent = "copied";
  } catch {
    part(".told").textContent = text; // to be copied by hand
  }
}

function setUpViewer() {
  document.addEventListener("click", (event) => {
    const image = event.target.closest?.("a.enlarge")?.querySelector("img");
    if (!image || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    enlarge(image);
  });
  choices.forEach((select, side) =>
    select.addEventListener("input", () => fill(panes[side], imagesOf(current)[select.selectedIndex])));
  part("input[type=range]").addEventListener("input", (event) => stage.style.setProperty("--at", `${event.target.value}%`));
  part("input[type=checkbox]").addEventListener("input", (event) => stage.classList.toggle("beside", event.target.checked));
  const actions = {
    ".previous": () => walk(-1), ".next": () => walk(1), ".closer": () => zoom(1.5), ".farther": () => zoom(1 / 1.5),
    ".copy-prompt": () => copy(part(".instruction").textContent), ".copy-seed": () => copy(current.dataset.seed),
    ".close": () => viewer.close(),
  };
  for (const [name, act] of Object.entries(actions)) part(name).addEventListener("click", act);
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pane = (event.target.closest(".pane") ?? stage).getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), event.clientX - pane.x - pane.width / 2, event.clientY - pane.y - pane.height / 2);
  }, { passive: false });
  stage.addEventListener("pointermove", (event) => {
    if (!event.buttons || view.scale === 1) return;
    Object.assign(view, { x: view.x + event.movementX, y: view.y + event.movementY });
    place();
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input:not([type=range]), select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = { j: () => walk(1), k: () => walk(-1) };
    if (viewer.open) Object.assign(keys, { "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0) });
    keys[event.key]?.();
  });
}

document.querySelectorAll("table.scores").forEach((table) => { makeSortable(table); makeTaskFilter(table); });
document.querySelectorAll(".plots .plot").forEach((plot) => { makeWidening(plot); makeZoomable(plot); });
document.querySelectorAll(".gallery").forEach(setUpGallery);
setUpViewer();
