// The panel beside the tree: one gate, one place or one module, in full.

const LABELS = {
  value: "gates", signal: "signal", shape: "shape", parameters: "parameters", flops: "FLOPs", bytes: "bytes",
  where: "code",
};
const LAYER = {
  graph: "captured as a graph", layer: "a layer: one operation, kept whole", container: "holds modules, has no forward",
  shared: "shared", uncalled: "not called", refused: "not captured",
};
const panel = document.getElementById("panel");

function short(n) {
  const unit = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => n >= size);
  return unit ? `${(n / unit[0]).toPrecision(3)} ${unit[1]}` : String(n);
}

const exact = (n) => (n >= 1e4 ? `${n.toLocaleString("en")} (${short(n)})` : String(n));

function written(value) {
  if (Array.isArray(value)) return value.join(" \u00d7 ") || "a number";
  return typeof value === "number" ? exact(value) : String(value);
}

function showChip(chips, from) {
  const { data, type } = chips[0];
  const sites = chips.map((c) => c.data.site);
  present(from, type === "gate" ? gateHead(data) : placeHead(data));
  if (type === "gate") gateBody(chips.map((c) => c.data), sites);
  else facts([["module", place(sites)], ["verdict", data.verdict], ["why", data.why]]);
  members(sites);
}

function gateHead(data) {
  const head = make("h2", "", "");
  head.append(coloured(make("span", "chip gate", data.kind), data.kind), make("span", "", data.signal));
  return [head, make("p", "about", census.kinds[data.kind] || "")];
}

function gateBody(gates, sites) {
  for (const equation of several(gates.map((g) => g.equation || ""))) if (equation) panel.append(make("pre", "equation", equation));
  const known = Object.keys(gates[0]).filter((k) => !["kind", "equation", "site"].includes(k));
  const keys = [...Object.keys(LABELS).filter((k) => known.includes(k)), ...known.filter((k) => !(k in LABELS))];
  const rows = keys.map((k) => [LABELS[k] || k, several(gates.map((g) => written(g[k]))).join(", "), k]);
  facts([...rows, ["module", place(sites), "site"]]);
}

/** What equal gates do not share, in a few examples. */
function several(values) {
  const found = [...new Set(values)];
  return found.length > 3 ? [...found.slice(0, 3), `and ${found.length - 3} others`] : found;
}

function placeHead(data) {
  const pass = census.passes[data.pass] || {};
  const head = make("h2");
  head.append(make("span", `chip place ${data.verdict}`, `${MARKS[data.verdict]} ${data.pass}`), make("span", "", `place, ${data.verdict}`));
  return [head, make("p", "about", pass.summary || ""), make("p", "about", pass.born ? `born ${pass.born}` : "")];
}

function showModule(members_, from) {
  const entry = members_[0].entry;
  const paths = members_.map((m) => m.path);
  const head = make("h2");
  head.append(make("span", "", entry.class));
  present(from, [head]);
  const calls = `${entry.calls} in the recorded forward`;
  facts([
    ["module", place(paths)], ["code", entry.where], ["parameters", exact(entry.all)], ["of its own", exact(entry.own)],
    ["calls", calls], ["capture", LAYER[entry.capture] || entry.capture], ["why", members_[0].missed.map((x) => x.why).join("\n") || entry.why],
  ]);
  members(paths);
}

const place = (paths) => (paths.length > 1 ? `${spanned(paths)}  (${paths.length} equal)` : paths[0] || "(model)");

function facts(rows) {
  const list = make("dl", "facts");
  for (const [name, value, key] of rows.filter(([, v]) => v !== "" && v !== undefined)) {
    list.append(make("dt", "", name), make("dd", "", value, { "data-key": key || name }));
  }
  panel.append(list);
}

function members(paths) {
  if (paths.length < 2) return;
  const box = make("details");
  box.append(make("summary", "", `the ${paths.length} modules`));
  box.ontoggle = () => box.childElementCount < 2 && box.append(make("pre", "", paths.join("\n")));
  panel.append(box);
}

function present(from, parts) {
  document.querySelectorAll(".chosen").forEach((e) => e.classList.remove("chosen"));
  from.classList.add("chosen");
  const close = make("button", "close", "\u00d7", { "aria-label": "close" });
  close.onclick = () => (hint(), from.classList.remove("chosen"), from.querySelector(".name")?.focus() ?? from.focus());
  panel.replaceChildren(close, ...parts.filter((p) => p.textContent));
  panel.classList.add("open");
}

function hint() {
  panel.classList.remove("open");
  panel.replaceChildren(
    make("p", "hint", "Choose a gate, a place or a module to see what it computes, where it is written and what it costs."),
    make("p", "hint", "Equal modules are one row; \u00d7 with their number shows them one by one."),
    make("p", "hint", "Keys: arrows move, open and close; / searches; Escape closes."),
  );
}
