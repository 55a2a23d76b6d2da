// Runs before the first paint, so that a chosen appearance does not flash in the other one.
(() => {
  let chosen = "";
  try {
    chosen = JSON.parse(localStorage.getItem("mlcrt.theme")) ?? "";
  } catch {
    // no storage: the system decides
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
