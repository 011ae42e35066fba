"use strict";
// The census as a tree of modules, and the folding of equal ones. Nothing here touches the page.

const census = JSON.parse(document.getElementById("census").textContent);
const VERDICTS = { put: "places where it could be put", left: "places left alone, with the reason", near: "places with one obstacle" };

const modules = census.modules.map((entry, index) => ({
  entry, index, path: entry.path, name: entry.path.slice(entry.path.lastIndexOf(".") + 1),
  parent: null, children: [], chips: [], known: new Map(), missed: [], hit: true, inside: true, likeness: 0,
}));
const at = new Map(modules.map((m) => [m.path, m]));

/** The module of that path, or the nearest one around it. */
function home(path) {
  while (path && !at.has(path)) path = path.includes(".") ? path.slice(0, path.lastIndexOf(".")) : "";
  return at.get(path) || modules[0];
}

/** Equal finds at one module are one chip with their number. */
function hang(chip) {
  const m = home(chip.data.site);
  const text = JSON.stringify(chip.data);
  if (!m.known.has(text)) {
    m.known.set(text, { ...chip, count: 0 });
    m.chips.push(m.known.get(text));
  }
  m.known.get(text).count += 1;
}

for (const m of modules.slice(1)) {
  m.parent = home(m.path.includes(".") ? m.path.slice(0, m.path.lastIndexOf(".")) : "");
  m.parent.children.push(m);
}
census.gates.forEach((data) => hang({ type: "gate", group: data.kind, data }));
census.places.forEach((data) => hang({ type: "place", group: data.pass, data }));
census.missed.forEach((data) => home(data.path).missed.push(data));

/** What a chip counts under in the legend. */
const legendKey = (chip) => (chip.type === "gate" ? `gate ${chip.group}` : `place ${chip.group} ${chip.data.verdict}`);

/** Text that is the same for modules which differ in their path only. */
function relative(value, path) {
  const text = JSON.stringify(value);
  return /[a-z]/i.test(path) ? text.split(JSON.stringify(path).slice(1, -1)).join("\u0000") : text;
}

/** A gate is like another of its kind, signal, shape and source line: how its equation names things is no difference. */
function chipLikeness(chip, m) {
  const { site, kind, signal, shape, where, ...rest } = chip.data;
  const more = chip.type === "place" ? relative(rest, m.path) : [kind, signal, shape, where];
  return [chip.type, chip.count, site.slice(m.path.length), more];
}

/** Number modules so that equal ones, with all that is below them, have one number. */
function compare() {
  const known = new Map();
  for (let i = modules.length - 1; i >= 0; i--) {
    const m = modules[i];
    const { path, why, ...entry } = m.entry;
    const text = JSON.stringify([
      entry, relative(why, m.path), m.hit, m.chips.map((c) => chipLikeness(c, m)),
      m.missed.map((x) => relative(x.why, m.path)), m.children.map((c) => [c.name, c.likeness]),
    ]);
    if (!known.has(text)) known.set(text, known.size);
    m.likeness = known.get(text);
  }
}

const isIndex = (name) => /^(0|[1-9]\d*)$/.test(name);

/** Children of modules that are equal, as groups of equal modules: layers.0, layers.1 ... are one group. */
function groups(members) {
  const shown = members.map(visible);
  const count = new Map();
  for (const m of shown[0]) count.set(m.likeness, (count.get(m.likeness) || 0) + 1);
  const found = [];
  const open = new Map();
  shown[0].forEach((m, k) => {
    const all = shown.map((children) => children[k]);
    const group = open.get(m.likeness);
    const far = m.children.length > 0 && count.get(m.likeness) > 3; // every second layer, say
    if (group && isIndex(m.name) && (far || found[found.length - 1] === group)) group.push(...all);
    else {
      found.push(all);
      if (isIndex(m.name)) open.set(m.likeness, all);
    }
  });
  return found;
}

/** The children that a filter leaves; under a hit without hits inside, all of them. */
function visible(m) {
  const hits = m.children.filter((c) => c.inside);
  return hits.length || !m.hit ? hits : m.children;
}

/** Ascending numbers as runs: 0..31, 0..30:2 for every second one, 1,5. */
function span(numbers) {
  const texts = [];
  for (let i = 0; i < numbers.length; ) {
    const step = numbers[i + 1] - numbers[i];
    let end = i + 1;
    while (end < numbers.length && numbers[end] - numbers[end - 1] === step) end++;
    if (end - i < (step === 1 ? 3 : 4)) {
      end = i + 1;
      texts.push(`${numbers[i]}`);
    } else texts.push(`${numbers[i]}..${numbers[end - 1]}${step > 1 ? `:${step}` : ""}`);
    i = end;
  }
  return texts.join(",");
}

/** One path for modules that differ in their indices. */
function spanned(paths) {
  const parts = paths.map((p) => p.split("."));
  return parts[0].map((part, i) => {
    const found = [...new Set(parts.map((p) => p[i]))];
    return found.length > 1 ? span(found.map(Number).sort((a, b) => a - b)) : part;
  }).join(".");
}

/** Mark what a search and the chosen legend entries leave, and number anew. */
function filter(words, chosen) {
  for (const m of modules) {
    const chips = chosen.size ? m.chips.filter((c) => chosen.has(legendKey(c))) : m.chips;
    const kept = !chosen.size || chips.length > 0 || (chosen.has("missed") && m.missed.length > 0);
    m.hit = kept && words.every((w) => haystack(m).includes(w));
    m.inside = m.hit;
  }
  for (let i = modules.length - 1; i > 0; i--) if (modules[i].inside) modules[i].parent.inside = true;
  compare();
  return modules.filter((m) => m.hit).length;
}

function haystack(m) {
  m.text ??= [
    m.path || "(model)", m.entry.class, m.entry.where, m.entry.why,
    ...m.chips.map((c) => Object.values(c.data).join(" ")), ...m.missed.map((x) => x.why),
  ].join("\n").toLowerCase();
  return m.text;
}

/** Numbers of gates by kind, places for more and uncaptured modules below a module, itself left out. */
function below(m) {
  if (!m.below) {
    m.below = new Map();
    for (const c of m.children) {
      for (const chip of c.chips) add(m.below, legendKey(chip), chip.count);
      if (c.missed.length) add(m.below, "missed", 1);
      for (const [key, n] of below(c)) add(m.below, key, n);
    }
  }
  return m.below;
}

function add(counts, key, n) {
  counts.set(key, (counts.get(key) || 0) + n);
}
