"use strict";
// Tables of class "sortable": a click on a head sorts by what is written there, or by data-v; a field filters the rows.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const of = (row, column) => row.cells[column].dataset.v ?? row.cells[column].innerText.trim();
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const step = head.ariaSort === "ascending" ? -1 : 1;
      heads.forEach((other) => { other.ariaSort = null; });
      head.ariaSort = step > 0 ? "ascending" : "descending";
      rows.sort((a, b) => step * of(a, column).localeCompare(of(b, column), "en", { numeric: true }));
      body.append(...rows);
    });
  });
  const field = document.createElement("input");
  field.type = "search";
  field.autocomplete = "off";
  const label = document.createElement("label");
  label.append("Filter ", field);
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(label);
  table.parentElement.before(tools);
  field.addEventListener("input", () => {
    const terms = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !terms.every((term) => row.textContent.toLowerCase().includes(term));
  });
}
