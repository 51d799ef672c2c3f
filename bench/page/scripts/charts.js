"use strict";
// Charts answer: what was measured at the point under the pointer, or at the one that the arrow keys reach; a click or
// Enter leads to its cell. The legend's buttons hide a provider in every chart and show it again.
unpacked("points-data").then(({ providers, panels }) => {
  const SVG = "http://www.w3.org/2000/svg";
  const REACH = 26; // pixels from the pointer to the nearest point
  const hidden = new Set();
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  const ring = document.createElementNS(SVG, "circle");
  ring.setAttribute("class", "ring");
  ring.setAttribute("r", 7);

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const name = button.dataset.p;
      const gone = !hidden.delete(name);
      if (gone) hidden.add(name);
      button.setAttribute("aria-pressed", String(!gone));
      for (const drawn of document.querySelectorAll("g.series")) {
        if (drawn.dataset.p === name) drawn.style.display = gone ? "none" : "";
      }
    });
  }

  for (const figure of document.querySelectorAll("figure[data-points]")) {
    const svg = figure.querySelector("svg");
    const { x, y, who, said, at } = panels[figure.dataset.points];
    const name = (i) => providers[who[i]] ?? "";
    let shown = -1;
    const hide = () => { shown = -1; tip.hidden = true; ring.remove(); };
    // The order of the arrow keys: from left to right, of one place from top to bottom.
    const order = x.map((_, i) => i).sort((a, b) => x[a] - x[b] || y[a] - y[b]);
    const show = (i) => {
      shown = i;
      ring.setAttribute("cx", x[i]);
      ring.setAttribute("cy", y[i]);
      svg.append(ring);
      const id = at[i] === null ? undefined : globalThis.cellIdAt?.(at[i]);
      tip.textContent = [name(i) ? name(i) + ": " + said[i] : said[i], id].filter(Boolean).join(" · ");
      tip.hidden = false;
      const box = ring.getBoundingClientRect();
      const left = Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8);
      tip.style.left = Math.max(8, left) + "px";
      const above = box.top - tip.offsetHeight - 8;
      tip.style.top = (above > 8 ? above : box.bottom + 8) + "px";
    };
    const follow = () => {
      const id = shown >= 0 && at[shown] !== null && globalThis.cellIdAt?.(at[shown]);
      if (id) { hide(); location.hash = "#cell=" + encodeURIComponent(id); }
    };
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const [px, py] = [(event.clientX - box.left) / scale, (event.clientY - box.top) / scale];
      let [nearest, least] = [-1, (REACH / scale) ** 2];
      for (let i = 0; i < x.length; i++) {
        const far = (x[i] - px) ** 2 + (y[i] - py) ** 2;
        if (far < least && !hidden.has(name(i))) [nearest, least] = [i, far];
      }
      if (nearest < 0) hide();
      else if (nearest !== shown) show(nearest);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("click", follow);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const seen = order.filter((i) => !hidden.has(name(i)));
      if (step && seen.length) {
        const next = shown < 0 ? (step > 0 ? 0 : -1) : seen.indexOf(shown) + step;
        show(seen.at(next % seen.length));
        event.preventDefault();
      } else if (event.key === "Enter") follow();
      else if (event.key === "Escape") hide();
    });
  }
});
