"use strict";
// distribution(rows, providers): the samples of one case as dots, a row a provider; each dot is a twentieth of them.
const distribution = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const [WIDTH, LEFT, RIGHT, ROW, BINS] = [640, 150, 16, 64, 70];
  const add = (parent, name, attributes, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const written = (us) => Number(us.toPrecision(3)).toLocaleString("en");

  // A tick every 1, 2 or 5 times a power of ten, some five in all.
  function ticks(low, high) {
    const rough = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((times) => times * power >= rough) * power;
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
    return found;
  }

  return (rows, providers) => {
    const all = rows.flatMap((row) => row.us);
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const spare = 0.03 * (most - least) || 0.05 * most;
    const [low, high] = [least - spare, most + spare];
    const x = (us) => LEFT + ((us - low) / (high - low)) * (WIDTH - LEFT - RIGHT);
    const height = rows.length * ROW + 44;
    const names = rows.map((row) => row.provider + " " + written(row.median) + " µs").join(", ");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "distribution of the samples; medians: " + names);
    const foot = rows.length * ROW + 8;
    for (const at of ticks(low, high)) {
      add(svg, "path", { d: `M${x(at)} 0V${foot}`, stroke: "var(--line)" });
      add(svg, "text", { x: x(at), y: foot + 14, "text-anchor": "middle", class: "tick" }, written(at));
    }
    add(svg, "text", { x: WIDTH - RIGHT, y: foot + 32, "text-anchor": "end", class: "tick" }, "µs a call");
    rows.forEach((row, place) => {
      const base = (place + 1) * ROW - 4;
      const { colour, path } = providers[row.provider];
      const group = add(svg, "g", { class: "dots", fill: colour });
      add(group, "path", { d: path, transform: `translate(0 ${base - 11})` });
      add(svg, "text", { x: 14, y: base - 2, class: "name" }, row.provider);
      add(svg, "path", { d: `M${x(row.median)} ${base}V${base - ROW + 12}`, stroke: colour, "stroke-width": 1.5 });
      const bins = new Map();
      for (const us of row.us) {
        const bin = Math.round(((us - low) / (high - low)) * BINS);
        bins.set(bin, [...(bins.get(bin) ?? []), us]);
      }
      // Dots that would lie on each other stand on each other; a high stack is pressed together.
      const step = Math.min(6, (ROW - 14) / Math.max(...[...bins.values()].map((stack) => stack.length)));
      for (const [bin, stack] of bins) {
        stack.forEach((_, level) => {
          add(group, "circle", { cx: x(low + (bin / BINS) * (high - low)), cy: base - 3 - level * step, r: 2.8 });
        });
      }
    });
    return svg;
  };
})();
