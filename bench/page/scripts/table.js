"use strict";
// The table of all cells (or what else data.noun says): sorts, filters, hides columns, follows links to a row, copies as CSV.
const cellsTable = (data) => {
  const CHUNK = 150;
  const CHOICES = 12; // a column with no more different texts is filtered by a list, one with more by typing
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const scroller = table.parentElement;
  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  const place = (title) => data.columns.findIndex((column) => column.title === title);
  const [STATUS, PROVIDER, TIME] = ["status", "provider", "time µs"].map(place);
  let order = data.rows;
  let drawn = 0;
  let sorted = { column: -1, step: 1 };

  const element = (name, attributes = {}, ...inside) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...inside);
    return made;
  };
  const text = (value) => (Array.isArray(value) ? value[1] : value ?? "–");
  for (const row of data.rows) {
    row.words = [...row.is.map(text), row.why, row.id, data.commands?.[row.case]].join(" ").toLowerCase();
  }
  const visible = () => data.columns.map((_, column) => column).filter((column) => !data.columns[column].hidden);

  function draw(row) {
    const tr = element("tr");
    tr.dataset.cell = row.id;
    visible().forEach((column, at) => {
      const td = tr.insertCell();
      if (data.columns[column].numeric) td.className = "n";
      if (at === 0) {
        td.append(element("a", { href: "#cell=" + encodeURIComponent(row.id), className: "cell", textContent: text(row.is[column]) }));
      } else if (column === STATUS) {
        td.append(element("span", { className: "status " + row.is[column], textContent: row.is[column] }));
        if (row.why) td.append(element("span", { className: "why", textContent: row.why, title: row.why }));
      } else {
        td.textContent = text(row.is[column]);
      }
    });
    return tr;
  }

  function more(until = drawn + CHUNK) {
    const end = Math.min(order.length, until);
    body.append(...order.slice(drawn, end).map(draw));
    drawn = end;
  }

  function compare(column, step) {
    const numeric = data.columns[column].numeric;
    return (a, b) => {
      const [x, y] = [a.is[column], b.is[column]];
      if (x === null || y === null) return (x === null) - (y === null);
      return step * (numeric ? x[0] - y[0] : x.localeCompare(y, "en", { numeric: true }));
    };
  }

  // What a column's field asks for: of numbers `<1`, `>= 90` or `12`, of texts a part of them.
  function asks(column, asked) {
    if (!asked) return null;
    if (!data.columns[column].numeric) return (row) => text(row.is[column]).toLowerCase().includes(asked.toLowerCase());
    const [, sign, number] = asked.match(/^\s*(<=|>=|<|>|=)?\s*(-?[\d.]+(?:e[+-]?\d+)?)\s*$/) ?? [];
    if (number === undefined) return (row) => text(row.is[column]).includes(asked);
    const limit = Number(number);
    const holds = { "<": (x) => x < limit, ">": (x) => x > limit, "<=": (x) => x <= limit, ">=": (x) => x >= limit };
    const test = holds[sign] ?? ((x) => x === limit);
    return (row) => row.is[column] !== null && test(row.is[column][0]);
  }

  function refresh() {
    const terms = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const asked = fields.map((field, column) => asks(column, field.exact ? "" : field.value)).filter(Boolean);
    const chosen = fields.flatMap((field, column) => (field.exact && field.value ? [[column, field.value]] : []));
    order = data.rows.filter(
      (row) =>
        terms.every((term) => row.words.includes(term)) &&
        chosen.every(([column, value]) => text(row.is[column]) === value) &&
        asked.every((holds) => holds(row)),
    );
    if (sorted.column >= 0) order.sort(compare(sorted.column, sorted.step));
    heads.forEach((head, column) => {
      if (column === sorted.column) head.setAttribute("aria-sort", sorted.step > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    body.replaceChildren();
    drawn = 0;
    more();
    const all = data.rows.length.toLocaleString("en");
    const part = order.length === data.rows.length ? "" : order.length.toLocaleString("en") + " of ";
    shown.textContent = part + all + " " + data.noun + "s";
  }

  // Every figure of a cell, and its samples beside those of the others of its case.
  function detail(row) {
    const facts = element("dl", { className: "facts" });
    data.columns.forEach((column, at) => {
      if (row.is[at] === null) return;
      facts.append(element("div", {}, element("dt", { textContent: column.title }), element("dd", { textContent: text(row.is[at]) })));
    });
    const close = element("button", { type: "button", textContent: "Close" });
    close.addEventListener("click", () => {
      history.replaceState(null, "", location.pathname + location.search);
      const first = body.querySelector("tr.found a");
      unmark();
      first?.focus();
    });
    const inside = element("div", { className: "opened" }, close, facts);
    if (row.why) facts.before(element("p", { textContent: row.why }));
    const rows = data.rows.filter((other) => other.case === row.case && other.dots);
    if (rows.length) {
      const drawn = rows.map((other) => {
        const median = other.is[TIME][0];
        let part = 0;
        return { provider: other.is[PROVIDER], median, us: other.dots.map((step) => median * (1 + (part += step) / 1000)) };
      });
      const caption = element("figcaption", { textContent: "Samples of this case: a dot is a twentieth of a provider's, the line its median" });
      facts.before(element("figure", {}, caption, distribution(drawn, data.providers)));
    }
    if (data.commands) {
      const names = [...new Set([data.baseline, row.is[PROVIDER]])].filter(Boolean).join(",");
      const command = element("pre", { className: "command", textContent: data.commands[row.case] + " --providers " + names });
      const copy = element("button", { type: "button", className: "copy", textContent: "Copy" });
      copy.addEventListener("click", () => copyText(command.textContent, copy));
      inside.append(element("p", { className: "label", textContent: "To measure this cell alone:" }), copy, command);
    }
    return element("tr", { className: "more" }, element("td", { colSpan: visible().length }, inside));
  }

  function unmark() {
    body.querySelectorAll("tr.more").forEach((tr) => tr.remove());
    body.querySelectorAll("tr.found").forEach((tr) => tr.classList.remove("found"));
  }

  function follow() {
    if (!location.hash.startsWith("#cell=")) return;
    let id;
    try { id = decodeURIComponent(location.hash.slice(6)); } catch { return; }
    if (!data.rows.some((row) => row.id === id)) return;
    if (!order.some((row) => row.id === id)) {
      filter.value = "";
      fields.forEach((field) => { field.value = ""; });
      refresh();
    }
    unmark();
    more(Math.max(drawn, order.findLastIndex((row) => row.id === id) + 10));
    const found = [...body.rows].filter((tr) => tr.dataset.cell === id);
    const rows = order.filter((row) => row.id === id);
    found.forEach((tr, at) => {
      tr.classList.add("found");
      tr.after(detail(rows[at]));
    });
    // To the top of the table, below its head, so that what opens underneath is in view.
    scroller.scrollTop = found[0].offsetTop - table.tHead.offsetHeight;
    scroller.scrollIntoView({ block: "center" });
    found[0].querySelector("a").focus({ preventScroll: true });
  }

  function csv() {
    const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const columns = visible();
    // JSON has no infinity: what stands for it is too large to be a number, and its text is.
    const number = ([is, written]) => (Math.abs(is) < 1e300 ? String(is) : written);
    const value = (of) => (of === null ? "" : Array.isArray(of) ? number(of) : of);
    const lines = order.map((row) => [row.id, ...columns.map((column) => value(row.is[column]))]);
    return [[data.noun, ...columns.map((column) => data.columns[column].title)], ...lines]
      .map((line) => line.map(quoted).join(","))
      .join("\n") + "\n";
  }

  const heads = data.columns.map((column, at) => {
    const button = element("button", { type: "button", textContent: column.title });
    button.addEventListener("click", () => {
      sorted = { column: at, step: sorted.column === at ? -sorted.step : 1 };
      refresh();
    });
    return element("th", { className: column.numeric ? "n" : "", scope: "col" }, button);
  });
  const fields = data.columns.map((column, at) => {
    const label = "Filter " + column.title;
    const values = column.numeric ? [] : [...new Set(data.rows.map((row) => text(row.is[at])))];
    const exact = !column.numeric && values.length <= CHOICES;
    const field = exact
      ? element("select", {}, element("option", { value: "", textContent: "all" }), ...values.sort().map((value) => element("option", { value, textContent: value })))
      : element("input", { type: "search", placeholder: column.numeric ? "<1" : "", autocomplete: "off" });
    field.exact = exact;
    field.setAttribute("aria-label", label);
    field.addEventListener("input", refresh);
    return field;
  });
  function columnsAnew() {
    const now = visible();
    table.tHead.replaceChildren(
      element("tr", {}, ...now.map((column) => heads[column])),
      element("tr", { className: "fields" }, ...now.map((column) => element("td", {}, fields[column]))),
    );
    refresh();
  }
  document.getElementById("columns").append(
    ...data.columns.map((column) => {
      const box = element("input", { type: "checkbox", checked: !column.hidden });
      box.addEventListener("change", () => {
        column.hidden = !box.checked;
        if (visible().length) columnsAnew();
        else box.click(); // a table without columns is none
      });
      return element("label", {}, box, " " + column.title);
    }),
  );
  const copy = document.getElementById("csv");
  copy.addEventListener("click", () => copyText(csv(), copy));

  scroller.addEventListener("scroll", () => {
    if (scroller.scrollTop + 2 * scroller.clientHeight > scroller.scrollHeight) more();
  });
  filter.addEventListener("input", refresh);
  addEventListener("hashchange", follow);
  columnsAnew();
  follow();
  const rowAt = data.places && new Map(data.places.map((place, at) => [place, at]));
  // What charts ask for.
  globalThis.cellIdAt = (place) => data.rows[rowAt ? rowAt.get(place) : place]?.id;
};

unpackedTable("cells-data").then(cellsTable);
