// Elements, numbers, tables and charts. Texts get onto the page as text and in no other way.
"use strict";
const draw = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function el(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : String(value));
    }
    append(made, children);
    return made;
  }

  function append(made, children) {
    for (const child of children.flat(9)) {
      if (child === null || child === undefined || child === false) continue;
      made.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }

  function svg(name, attributes, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, String(value));
    append(made, children);
    return made;
  }

  // --- numbers

  const MISSING = "–";
  const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
  const count = (value) => (known(value) ? Math.round(value).toLocaleString("en") : MISSING);
  const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)}\u00a0%` : MISSING);
  const fixed = (value, digits = 2) => (known(value) ? value.toFixed(digits) : MISSING);
  const signed = (value, digits = 2) => (known(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits) : MISSING);
  const reward = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(2));

  function bytes(value) {
    if (!known(value)) return MISSING;
    for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (value >= size) return `${(value / size).toFixed(value >= 100 * size ? 0 : 1)}\u00a0${unit}`;
    return `${Math.round(value)} B`;
  }

  function seconds(value) {
    if (!known(value)) return MISSING;
    const whole = Math.round(value), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
    if (hours) return `${hours} h ${minutes % 60} min`;
    return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
  }

  const short = (hash) => (hash && hash.length > 16 ? `${hash.slice(0, 8)}…${hash.slice(-4)}` : hash || MISSING);

  // --- pieces

  const colours = new Map();
  function colour(name) {
    if (!colours.has(name)) colours.set(name, colours.size % 8);
    return colours.get(name);
  }

  const people = new Map(); // by name, whom it leads to

  // a name, which leads to what there is to show of whoever it is
  const name = (shown) => (people.has(shown) ? el("a", { class: "name", href: `#/node?of=${people.get(shown)}` }, shown) : shown);
  const who = (shown) => el("span", { class: "who" }, el("i", { class: `dot c${colour(shown)}`, "aria-hidden": "true" }), name(shown));
  const names = (list) => list.map((one, place) => [place ? ", " : "", name(one)]);

  function text(shown) {
    const cut = shown.of ? el("span", { class: "quiet" }, ` … cut: ${count(shown.of)} characters in all`) : null;
    return el("span", { class: "said" }, shown.text === "" ? el("em", {}, "nothing") : shown.text, cut);
  }

  // columns: [title, cell(row), {left, head}]
  function table(caption, columns, rows) {
    const head = el("tr", {}, columns.map(([title, , kind]) => el("th", { scope: "col", class: (kind || {}).left ? "left" : null }, title)));
    const body = rows.map((row) =>
      el("tr", {}, columns.map(([, cell, kind], place) => {
        const inside = cell(row);
        return place ? el("td", { class: (kind || {}).left ? "left" : null }, inside) : el("th", { scope: "row" }, inside);
      })),
    );
    const made = el("table", {}, el("caption", {}, el("span", {}, caption)), el("thead", {}, head), el("tbody", {}, body));
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
  }

  function section(title, ...children) {
    return el("section", {}, el("h2", {}, title), children);
  }

  function figure(title, value, below) {
    return el("div", { class: "figure" }, el("dt", {}, title), el("dd", {}, el("b", {}, value), below ? el("span", { class: "quiet" }, below) : null));
  }

  // --- charts

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // lines: [{name, points: [[x, y], ...], dash, strong, faint}]; options: percent, from, to, height
  function chart(title, lines, options = {}) {
    const kept = lines.filter((line) => line.points.length);
    const box = el("div", { class: "plot", "aria-hidden": "true" });
    const said = kept.map((line) => `${line.name}: ${(options.show || percent)(line.points[line.points.length - 1][1])}`).join("; ");
    const made = el("figure", { class: "chart" },
      el("figcaption", {}, title),
      el("p", { class: "unseen" }, kept.length ? `Latest values. ${said}` : "There are no values yet."),
      kept.length ? [box, legend(kept, options)] : el("p", { class: "quiet" }, options.none || "Nothing has been measured yet."));
    if (kept.length) requestAnimationFrame(() => plot(box, kept, options));
    return made;
  }

  function legend(lines, options) {
    const shown = lines.filter((line) => !line.faint);
    return el("ul", { class: "legend" }, shown.map((line) =>
      el("li", {}, el("i", { class: `key c${line.colour ?? colour(line.name)}${line.dash ? " dash" : ""}`, "aria-hidden": "true" }), line.shown || name(line.name), " ",
        el("b", {}, (options.show || percent)(line.points[line.points.length - 1][1])))));
  }

  function plot(box, lines, options) {
    if (!box.isConnected) return;
    const xs = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
    const at = new Map(xs.map((x, place) => [x, place]));
    const data = [xs, ...lines.map((line) => {
      const column = new Array(xs.length).fill(null);
      for (const [x, y] of line.points) column[at.get(x)] = y;
      return column;
    })];
    const ink = css("--quiet"), rule = css("--rule"), font = "12px system-ui, sans-serif";
    const axis = { stroke: ink, font, grid: { stroke: rule, width: 1 }, ticks: { show: false } };
    const top = Math.max(...lines.flatMap((line) => line.points.map((point) => point[1])));
    const range = options.percent ? [0, Math.max(options.to || 0, top) || 1] : null;
    const made = new uPlot({
      width: Math.max(box.clientWidth, 160), height: options.height || 200,
      padding: [8, 16, 0, 0], legend: { show: false }, cursor: { y: false, points: { size: 5 } },
      scales: { x: { time: false }, y: range ? { range: [range[0], range[1] * 1.03] } : {} },
      series: [{}, ...lines.map((line) => ({
        label: line.name, stroke: css(`--c${line.colour ?? colour(line.name)}`), width: line.strong ? 2.4 : line.faint ? 0.8 : 1.5,
        alpha: line.faint ? 0.35 : 1, dash: line.dash ? [5, 4] : undefined, spanGaps: true, points: { show: xs.length < 40 && !line.faint, size: 4 },
      }))],
      axes: [{ ...axis, size: 28 }, { ...axis, size: options.axis ? 66 : 52, values: (_, values) => values.map((value) => (options.percent ? `${Math.round(100 * value)} %` : options.axis ? options.axis(value) : String(value))) }],
    }, data, box);
    new ResizeObserver(() => box.clientWidth && made.setSize({ width: Math.max(box.clientWidth, 160), height: options.height || 200 })).observe(box);
    box.addEventListener("mousemove", () => hint(box, made, lines, options));
    box.addEventListener("mouseleave", () => box.querySelector(".hint")?.remove());
  }

  function hint(box, made, lines, options) {
    const place = made.cursor.idx;
    box.querySelector(".hint")?.remove();
    if (place === null || place === undefined) return;
    const rows = lines.map((line, number) => [line, made.data[number + 1][place]]).filter(([line, value]) => known(value) && !line.faint);
    box.append(el("div", { class: `hint${made.cursor.left > box.clientWidth / 2 ? " west" : ""}` }, el("b", {}, `round ${made.data[0][place]}`),
      rows.map(([line, value]) => el("div", {}, el("i", { class: `key c${line.colour ?? colour(line.name)}` }), `${line.name} ${(options.show || percent)(value)}`))));
  }

  // a bar for each span of rounds, cut into what each name has of it
  function stacked(title, names, columns, first, width, last) {
    const spans = Math.max(...columns.map((column) => column.length), 1), height = 120, wide = 720;
    const sums = Array.from({ length: spans }, (_, at) => columns.reduce((sum, column) => sum + (column[at] || 0), 0));
    const top = Math.max(...sums, 1), step = wide / spans, bars = [];
    for (let at = 0; at < spans; at++) {
      let y = height;
      const from = first + at * width, span = width === 1 ? `round ${from}` : `rounds ${from} to ${from + width - 1}`;
      columns.forEach((column, number) => {
        const tall = (height * (column[at] || 0)) / top;
        if (!tall) return;
        y -= tall;
        bars.push(svg("rect", { x: (at * step).toFixed(2), y: y.toFixed(2), width: Math.max(step - 1, 0.6).toFixed(2), height: tall.toFixed(2), class: `fill c${colour(names[number])}` },
          svg("title", {}, `${span}: ${count(column[at])} groups of ${names[number]}`)));
      });
    }
    const totals = names.map((name, number) => [name, columns[number].reduce((a, b) => a + b, 0)]).filter(([, sum]) => sum);
    const label = `${title}. ${totals.map(([name, sum]) => `${name}: ${count(sum)}`).join("; ")}`;
    return el("figure", { class: "chart" }, el("figcaption", {}, title),
      svg("svg", { viewBox: `0 0 ${wide} ${height + 18}`, role: "img", "aria-label": label, class: "flow", preserveAspectRatio: "none" }, bars,
        svg("line", { x1: 0, x2: wide, y1: height, y2: height, class: "rule" })),
      el("p", { class: "ends quiet" }, el("span", {}, `round ${first}`), el("span", {}, `round ${last ?? first + spans * width - 1}`)),
      el("ul", { class: "legend" }, totals.map(([author, sum]) => el("li", {}, el("i", { class: `key c${colour(author)}`, "aria-hidden": "true" }), name(author), " ", el("b", {}, count(sum))))));
  }

  // rows by columns; cell(row, column) -> {value, label, on} or null
  function matrix(caption, corner, rows, columns, cell) {
    const cells = rows.map((_, row) => columns.map((_, column) => cell(row, column)));
    const top = Math.max(1, ...cells.flat().filter((one) => one && !one.own).map((one) => one.value));
    const heat = (one) => `h${one.own || !one.value ? 0 : Math.max(1, Math.ceil((9 * one.value) / top))}`;
    const body = rows.map((name, row) => el("tr", {}, el("th", { scope: "row" }, who(name)), cells[row].map((one) => {
      if (!one) return el("td", { class: "h0" }, "");
      const shown = one.text ?? count(one.value);
      const inside = one.on && one.value ? el("button", { type: "button", "data-key": one.key, "aria-label": one.label, "aria-pressed": one.pressed ? "true" : "false", onclick: one.on }, shown) : shown;
      return el("td", { class: `${heat(one)}${one.own ? " own" : ""}${!one.own && one.value && one.value === Math.max(...cells[row].filter((other) => other && !other.own).map((other) => other.value)) && columns.length > 2 ? " most" : ""}` }, inside);
    })));
    const head = el("tr", {}, el("th", { scope: "col" }, corner), columns.map((name) => el("th", { scope: "col" }, who(name))));
    const made = el("table", { class: "matrix" }, el("caption", {}, el("span", {}, caption)), el("thead", {}, head), el("tbody", {}, body));
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
  }

  return { el, svg, count, percent, fixed, signed, reward, bytes, seconds, short, people, name, names, who, text, table, section, figure, chart, stacked, matrix, colour, known };
})();
