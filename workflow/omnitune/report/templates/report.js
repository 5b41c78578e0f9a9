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
document.querySelectorAll(".plots .plot").forEach(makeWidening);
document.querySelectorAll(".gallery").forEach(setUpGallery);
setUpViewer();
