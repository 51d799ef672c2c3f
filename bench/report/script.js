"use strict";
(() => {
  const CHUNK = 150;
  const data = JSON.parse(document.getElementById("cells-data").textContent);
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  const STATUS = data.columns.findIndex((column) => column.title === "status");
  let order = data.rows;
  let drawn = 0;
  let sorted = { column: -1, step: 1 };

  const text = (value) => (Array.isArray(value) ? value[1] : value === null ? "–" : value);
  for (const row of data.rows) {
    row.words = [...row.is.map(text), row.why, row.id].join(" ").toLowerCase();
  }

  function draw(row) {
    const tr = document.createElement("tr");
    tr.dataset.cell = row.id;
    row.is.forEach((value, column) => {
      const td = tr.insertCell();
      if (data.columns[column].numeric) td.className = heads[column].className;
      if (column === 0) {
        const anchor = document.createElement("a");
        anchor.href = "#cell=" + encodeURIComponent(row.id);
        anchor.className = "cell";
        anchor.textContent = value;
        td.append(anchor);
        return;
      }
      if (column !== STATUS) { td.textContent = text(value); return; }
      const status = document.createElement("span");
      status.className = "status " + value;
      status.textContent = value;
      td.append(status);
      if (row.why) {
        const why = document.createElement("span");
        why.className = "why";
        why.textContent = why.title = row.why;
        td.append(why);
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

  function refresh() {
    const terms = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    order = data.rows.filter((row) => terms.every((term) => row.words.includes(term)));
    if (sorted.column >= 0) order.sort(compare(sorted.column, sorted.step));
    heads.forEach((head, column) => {
      if (column === sorted.column) head.setAttribute("aria-sort", sorted.step > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    body.replaceChildren();
    drawn = 0;
    more();
    const all = data.rows.length.toLocaleString("en");
    shown.textContent = order.length === data.rows.length ? all + " cells" : order.length.toLocaleString("en") + " of " + all + " cells";
  }

  function follow() {
    if (!location.hash.startsWith("#cell=")) return;
    let id;
    try { id = decodeURIComponent(location.hash.slice(6)); } catch { return; }
    if (!data.rows.some((row) => row.id === id)) return;
    if (!order.some((row) => row.id === id)) { filter.value = ""; refresh(); }
    more(Math.max(drawn, order.findLastIndex((row) => row.id === id) + 10));
    let first = null;
    for (const tr of body.rows) {
      const found = tr.dataset.cell === id;
      tr.classList.toggle("found", found);
      if (found && !first) first = tr;
    }
    first.scrollIntoView({ block: "center" });
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      sorted = { column, step: sorted.column === column ? -sorted.step : 1 };
      refresh();
    });
    head.replaceChildren(button);
  });
  const scroller = table.parentElement;
  scroller.addEventListener("scroll", () => {
    if (scroller.scrollTop + 2 * scroller.clientHeight > scroller.scrollHeight) more();
  });
  filter.addEventListener("input", refresh);
  addEventListener("hashchange", follow);
  refresh();
  follow();
})();
