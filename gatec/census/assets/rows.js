// The rows of the tree. A row stands for one module or for several equal ones; what is below is made when it is opened.

const CHUNK = 300; // rows made at once
const CHIPS = 12; // chips drawn in one row
const MARKS = { put: "+", left: "\u2013", near: "\u2248" };

/** An element; text is only ever set as text. */
function make(tag, name, text, more = {}) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(more)) element.setAttribute(key, value);
  return element;
}

const KINDS = [...new Set(census.gates.map((g) => g.kind))].sort();

/** Kinds lie evenly on the circle of hues, from blue on, without the reds: those say what was not captured. */
function coloured(element, kind) {
  const turn = (310 * KINDS.indexOf(kind)) / KINDS.length;
  element.style.setProperty("--hue", String(45 + ((215 + turn) % 310)));
  return element;
}

/** `under`: how many equal modules the row above stands for, and whether labels need the whole path. */
function row(members, under = { count: 1 }) {
  const m = members[0];
  const item = make("li");
  const line = make("div", "row");
  item.append(line);
  const node = { item, line, members, list: null, apart: false };
  item.node = node;
  const openable = visible(m).length > 0;
  const twist = make("button", "twist", "", { tabindex: "-1", "aria-hidden": "true" });
  twist.disabled = !openable;
  const name = make("button", "name", label(members, under.paths));
  name.dataset.path = m.path;
  if (openable) line.setAttribute("aria-expanded", "false"), name.setAttribute("aria-expanded", "false");
  twist.onclick = () => toggle(node);
  name.onclick = () => (showModule(members, line), line.getAttribute("aria-expanded") === "false" && toggle(node));
  line.append(twist, name, make("span", "class", m.entry.class));
  if (members.length > under.count) line.append(times(node));
  line.append(...few(chips(members), line), ...reasons(members), ...summary(members));
  line.append(make("span", "size", m.entry.all ? short(m.entry.all * members.length) : "", { title: "parameters" }));
  if (!m.hit) line.classList.add("passed");
  return item;
}

/** Last parts of the paths; where one row stood for several parents only the whole path tells its parts from each other. */
function label(members, paths) {
  if (paths) return members[0].path;
  const names = [...new Set(members.map((m) => m.name))];
  return names.length > 1 ? span(names.map(Number).sort((a, b) => a - b)) : names[0] || "(model)";
}

function times(node) {
  const n = node.members.length;
  const button = make("button", "times", `\u00d7${n}`, { "aria-pressed": "false", title: `show the ${n} equal modules one by one` });
  button.onclick = () => {
    node.apart = !node.apart;
    button.setAttribute("aria-pressed", String(node.apart));
    if (node.list) node.list.remove();
    node.list = null;
    expand(node);
  };
  return button;
}

function chips(members) {
  return members[0].chips.map((chip, k) => {
    const all = members.map((m) => m.chips[k]);
    const number = all.length * chip.count;
    const many = number > 1 ? ` \u00d7${number}` : "";
    const { kind, signal, pass, verdict, why } = chip.data;
    const button = chip.type === "gate"
      ? coloured(make("button", "chip gate", `${kind} \u00b7 ${signal}${many}`, { title: chip.data.equation || kind }), kind)
      : make("button", `chip place ${verdict}`, `${MARKS[verdict]} ${pass}${many}`, { title: `${verdict}: ${why}` });
    button.dataset.key = legendKey(chip);
    button.classList.toggle("dimmed", chosen.size > 0 && !chosen.has(legendKey(chip)));
    button.onclick = () => showChip(all, button);
    return button;
  });
}

/** The first of many chips; a button shows the rest. */
function few(found, line) {
  line.classList.toggle("many", found.length > 5);
  if (found.length <= CHIPS) return found;
  const more = make("button", "more", `${found.length - CHIPS} more`);
  more.onclick = () => more.replaceWith(...found.slice(CHIPS));
  return [...found.slice(0, CHIPS), more];
}

function reasons(members) {
  return members[0].missed.slice(0, 1).map((x) => {
    const button = make("button", "reason", `not captured: ${x.why}`, { title: x.why });
    button.onclick = () => showModule(members, button);
    return button;
  });
}

/** What is below a row that is closed, as dots. */
function summary(members) {
  const box = make("span", "below");
  for (const [key, n] of [...below(members[0])].sort()) {
    const [type, group, verdict] = key.split(" ");
    if (type === "place" && verdict !== "put") continue;
    const total = n * members.length;
    const dot = make("span", `dot ${type}`, type === "place" ? `+ ${group} ${total}` : `${total}`);
    dot.title = type === "missed" ? `${total} not captured` : type === "gate" ? `${total} ${group}` : `${total} places for ${group}`;
    box.append(type === "gate" ? coloured(dot, group) : dot);
  }
  return box.childElementCount ? [box] : [];
}

// -- opening and closing ---------------------------------------------------------------------------------------------

function toggle(node) {
  if (node.line.getAttribute("aria-expanded") === "true") collapse(node);
  else expand(node);
}

function expand(node) {
  node.list ??= node.item.appendChild(make("ul"));
  if (!node.list.childElementCount) {
    if (node.apart) {
      const parents = new Set(node.members.map((m) => m.parent));
      fill(node.list, node.members.map((m) => [m]), { count: 1, paths: parents.size > 1 });
    } else fill(node.list, groups(node.members), { count: node.members.length });
  }
  node.list.hidden = false;
  mark(node, "true");
}

function collapse(node) {
  if (node.list) node.list.hidden = true;
  mark(node, "false");
}

function mark(node, open) {
  node.line.setAttribute("aria-expanded", open);
  node.line.querySelector(".name").setAttribute("aria-expanded", open);
}

function fill(list, parts, under, from = 0) {
  list.append(...parts.slice(from, from + CHUNK).map((members) => row(members, under)));
  if (from + CHUNK >= parts.length) return;
  const item = make("li");
  const more = make("button", "more", `${parts.length - from - CHUNK} more`);
  more.onclick = () => (item.remove(), fill(list, parts, under, from + CHUNK));
  item.append(more);
  list.append(item);
}

/** Open rows, the outer ones first, while they lead to something and the page stays short. */
function unroll(root, budget, wanted) {
  const waiting = [root];
  for (let shown = 1; waiting.length && shown < budget; ) {
    const node = waiting.shift();
    if (!wanted(node.members[0])) continue;
    expand(node);
    const next = [...node.list.children].map((item) => item.node).filter(Boolean);
    shown += next.length;
    waiting.push(...next);
  }
}
