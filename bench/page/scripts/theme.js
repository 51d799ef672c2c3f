"use strict";
// A button for light and dark paper. Without one that was pressed the page follows the system.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.createElement("button");
  button.type = "button";
  button.id = "theme";
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  // A page opened as a file may be denied its storage.
  const stored = (action) => { try { return action(localStorage); } catch { return null; } };
  const before = stored((storage) => storage.getItem("theme"));
  if (before === "dark" || before === "light") root.dataset.theme = before;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    stored((storage) => storage.setItem("theme", root.dataset.theme));
    label();
  });
  system.addEventListener("change", label);
  label();
  document.querySelector("nav").append(button);
})();
