"use strict";
(() => {
  const table = document.querySelector("#experiments table");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const filters = [...table.querySelectorAll("th input")];
  const shown = document.querySelector("#shown");

  // Sorting: numbers as numbers, texts as people read them; what is not there comes last either way.
  const key = (row, column) => row.cells[column].dataset.v;
  const sort = (column) => {
    const head = heads[column];
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const numeric = head.classList.contains("n");
    const order = (a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const ahead = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
      return descending ? -ahead : ahead;
    };
    body.append(...[...rows].sort(order));
  };
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => sort(column)));

  // Filtering: part of the text as shown; for numbers also >0.8, <=0.1, =64.
  const matches = (cell, wanted) => {
    const comparison = /^\s*(<=|>=|<|>|=)\s*(-?[\d.]+)\s*$/.exec(wanted);
    if (comparison) {
      const [value, limit] = [Number(cell.dataset.v), Number(comparison[2])];
      if (cell.dataset.v === "" || Number.isNaN(value)) return false;
      return { "<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit, "=": value === limit }[comparison[1]];
    }
    return cell.textContent.toLowerCase().includes(wanted.trim().toLowerCase());
  };
  const filter = () => {
    const wanted = filters.map((input) => [Number(input.dataset.column), input.value]).filter(([, text]) => text.trim() !== "");
    let visible = 0;
    rows.forEach((row) => {
      row.hidden = !wanted.every(([column, text]) => matches(row.cells[column], text));
      visible += row.hidden ? 0 : 1;
    });
    shown.textContent = `${visible} of ${rows.length} experiments`;
  };
  filters.forEach((input) => input.addEventListener("input", filter));
  filter();

  // Curves of one experiment, drawn on demand from the numbers in the page.
  const curves = JSON.parse(document.querySelector("#curves").textContent);
  const panel = document.querySelector("#panel");
  const svgElement = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([k, v]) => element.setAttribute(k, v));
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const [width, height, left, bottom] = [480, 240, 52, 36];
  const plot = (run, lines, label) => {
    const values = lines.flatMap(([name]) => run[name] || []).filter((v) => v !== null);
    if (!values.length) return null;
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (high === low) [low, high] = [low - 0.01, high + 0.01];
    const first = run.epochs[0];
    const span = Math.max(1, run.epochs[run.epochs.length - 1] - first);
    const x = (epoch) => left + ((epoch - first) / span) * (width - left - 12);
    const top = 8 + 15 * lines.length; // the legend stands above the curves
    const y = (value) => top + 8 + ((high - value) / (high - low)) * (height - bottom - top - 14);
    const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    svg.append(svgElement("path", { d: `M${left} ${top}V${height - bottom}H${width - 8}`, fill: "none", stroke: "#555" }));
    [low, (low + high) / 2, high].forEach((v) => svg.append(svgElement("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, v.toPrecision(3))));
    [...new Set([first, first + Math.round(span / 2), first + span])].forEach((e) => svg.append(svgElement("text", { x: x(e), y: height - bottom + 15, "text-anchor": "middle" }, e)));
    svg.append(svgElement("text", { x: (left + width) / 2, y: height - 5, "text-anchor": "middle" }, "epoch"));
    lines.forEach(([name, words, colour, dash], place) => {
      const points = run.epochs.map((e, i) => [e, (run[name] || [])[i]]).filter(([, v]) => v !== null && v !== undefined);
      svg.append(svgElement("polyline", { points: points.map(([e, v]) => `${x(e)},${y(v)}`).join(" "), fill: "none", stroke: colour, "stroke-width": 1.6, "stroke-dasharray": dash }));
      svg.append(svgElement("path", { d: `M${left + 4} ${10 + 15 * place}h30`, stroke: colour, "stroke-width": 1.6, "stroke-dasharray": dash }));
      svg.append(svgElement("text", { x: left + 40, y: 14 + 15 * place }, words));
    });
    if (run.best !== null && run.best !== undefined) {
      svg.append(svgElement("path", { d: `M${x(run.best)} ${top}V${height - bottom}`, stroke: "#111", "stroke-dasharray": "2 3" }));
    }
    return svg;
  };
  const open = (id) => {
    const row = document.getElementById(`run-${id}`);
    const run = curves[id];
    if (!row || !run) return;
    rows.forEach((other) => other.classList.toggle("open", other === row));
    const title = document.createElement("h3");
    title.textContent = row.dataset.title;
    const about = document.createElement("p");
    about.className = "soft";
    about.textContent = `Dotted: the epoch whose weights were kept (${run.best ?? "unknown"}). Ended by ${run.stopped}. Trained for ${run.time}.`;
    const plots = document.createElement("div");
    plots.className = "plots";
    const drawn = [
      plot(run, [["val", "selection loss", "#0072B2", "none"], ["train", "training loss", "#D55E00", "6 3"]], "losses by epoch"),
      plot(run, [["val_macro_f1", "selection macro F1", "#0072B2", "none"]], "macro F1 by epoch"),
    ];
    plots.append(...drawn.filter((svg) => svg !== null));
    panel.replaceChildren(title, about, plots);
    panel.hidden = false;
    panel.scrollIntoView({ block: "nearest" });
  };
  const follow = () => {
    const found = /^#curves-(\d+)$/.exec(location.hash);
    if (found) open(found[1]);
  };
  body.addEventListener("click", (event) => {
    // A second click on the link that is already in the address would change nothing there.
    const link = event.target.closest("a[href^='#curves-']");
    if (link && link.getAttribute("href") === location.hash) follow();
  });
  window.addEventListener("hashchange", follow);
  follow();
})();
