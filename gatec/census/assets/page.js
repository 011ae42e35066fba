// What stands around the tree: totals, legend, search, keys.

const chosen = new Set();
const search = document.getElementById("search");
const tree = document.getElementById("tree");

function totals() {
  const t = census.totals;
  const rows = [
    ["gates", t.gates], ["places for more", t.put], ["left", t.left], ["near", t.near], ["not captured", t.missed],
    ["modules", t.modules], ["parameters", t.parameters], ["regions", t.regions], ["bytes saved", t.bytes_saved],
  ];
  for (const [name, n] of rows) {
    const box = make("div", n ? "" : "none");
    box.append(make("dt", "", name), make("dd", "", n >= 1e6 ? short(n) : n.toLocaleString("en"), { title: String(n), "data-total": name }));
    document.getElementById("totals").append(box);
  }
}

function legend() {
  const counts = new Map();
  for (const m of modules) for (const chip of m.chips) add(counts, legendKey(chip), chip.count);
  const box = document.getElementById("legend");
  const part = (title, type) => {
    const keys = [...counts.keys()].filter((k) => k.startsWith(type)).sort();
    if (keys.length) box.append(make("span", "part", title), ...keys.map((k) => entry(k, counts.get(k))));
  };
  if (census.missed.length) counts.set("missed", census.missed.length);
  part("gates", "gate ");
  part("places", "place ");
  part("", "missed");
}

function entry(key, n) {
  const [type, group, verdict] = key.split(" ");
  const words = { gate: group, place: `${MARKS[verdict]} ${group} ${verdict}`, missed: "not captured" }[type];
  const title = { gate: census.kinds[group] || group, place: VERDICTS[verdict] || "", missed: "modules that could not be captured" }[type];
  const button = make("button", `chip ${type} ${verdict || ""}`, words, { "aria-pressed": "false", title, "data-key": key });
  button.append(make("span", "count", n.toLocaleString("en")));
  if (type === "gate") coloured(button, group);
  button.onclick = () => {
    if (!chosen.delete(key)) chosen.add(key);
    button.setAttribute("aria-pressed", String(chosen.has(key)));
    draw();
  };
  return button;
}

function draw() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const active = words.length > 0 || chosen.size > 0;
  const hits = filter(words, chosen);
  const root = row([modules[0]]);
  tree.replaceChildren(...(hits ? [root] : []));
  document.getElementById("hits").textContent = active ? `${hits.toLocaleString("en")} of ${modules.length.toLocaleString("en")} modules` : "";
  const nothing = document.getElementById("nothing");
  nothing.hidden = hits > 0;
  nothing.textContent = `No module has ${search.value ? `\u201c${search.value}\u201d` : "what is chosen"}.`;
  if (hits) unroll(root.node, active ? 200 : 80, (m) => (active ? m.children.some((c) => c.inside) : m === modules[0] || below(m).size > 0));
}

// -- keys --------------------------------------------------------------------------------------------------------------

function names() {
  return [...tree.querySelectorAll(".name")].filter((e) => e.offsetParent);
}

function step(event, name) {
  const node = name.closest("li").node;
  const all = names();
  const here = all.indexOf(name);
  const open = node.line.getAttribute("aria-expanded");
  const outer = node.item.parentElement.closest("li");
  const moves = {
    ArrowDown: () => all[here + 1]?.focus(),
    ArrowUp: () => all[here - 1]?.focus(),
    Home: () => all[0].focus(),
    End: () => all[all.length - 1].focus(),
    ArrowRight: () => (open === "false" ? expand(node) : open === "true" && all[here + 1]?.focus()),
    ArrowLeft: () => (open === "true" ? collapse(node) : outer?.querySelector(".name").focus()),
  };
  if (moves[event.key]) event.preventDefault(), moves[event.key]();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.classList.contains("name")) step(event, event.target);
  if (event.key === "/" && event.target !== search) event.preventDefault(), search.select(), search.focus();
  if (event.key === "ArrowDown" && event.target === search) event.preventDefault(), names()[0]?.focus();
  if (event.key === "Escape") panel.querySelector(".close")?.click();
});

let waiting = 0;
search.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(draw, 100);
});

const header = document.querySelector("header");
new ResizeObserver(() => document.documentElement.style.setProperty("--top", `${header.offsetHeight}px`)).observe(header);
document.getElementById("model").textContent = census.model;
totals();
legend();
hint();
draw();
