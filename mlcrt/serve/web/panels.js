// Side panels: columns on a wide window, drawers over the page on a narrow one, where the rest is out of reach meanwhile.

import { byId } from "./dom.js";

const NARROW = window.matchMedia("(max-width: 60rem)");

export class Panels {
  constructor() {
    this.panels = {
      sidebar: { element: byId("sidebar"), opener: byId("open-sidebar"), first: byId("new"), open: !NARROW.matches },
      settings: { element: byId("settings"), opener: byId("open-settings"), first: byId("settings-title"), open: false },
    };
    for (const [name, panel] of Object.entries(this.panels)) {
      panel.opener.addEventListener("click", () => this.toggle(name));
      byId(`close-${name}`).addEventListener("click", () => this.set(name, false));
    }
    NARROW.addEventListener("change", () => {
      this.panels.sidebar.open = !NARROW.matches;
      this.panels.settings.open = false;
      this.apply();
    });
    document.addEventListener("pointerdown", (event) => {
      if (NARROW.matches && event.target.closest(".panel") === null && this.drawer) this.set(this.drawer, false);
    });
    window.visualViewport?.addEventListener("resize", () => this.fit());
    this.fit();
    this.apply();
  }

  /** The drawer that covers the page, or null. */
  get drawer() {
    return NARROW.matches ? (Object.keys(this.panels).find((name) => this.panels[name].open) ?? null) : null;
  }

  toggle(name) {
    this.set(name, !this.panels[name].open);
  }

  set(name, open) {
    const panel = this.panels[name];
    if (panel.open === open) return;
    if (open && NARROW.matches) for (const other of Object.values(this.panels)) other.open = false;
    panel.open = open;
    const inside = panel.element.contains(document.activeElement);
    this.apply();
    if (open) panel.first.focus();
    else if (inside || NARROW.matches) panel.opener.focus();
  }

  apply() {
    for (const { element, opener, open } of Object.values(this.panels)) {
      element.hidden = !open;
      opener.setAttribute("aria-expanded", String(open));
    }
    byId("stage").inert = this.drawer !== null;
  }

  search() {
    this.set("sidebar", true);
    byId("search").focus();
    byId("search").select();
  }

  closeDrawer() {
    if (this.drawer) this.set(this.drawer, false);
  }

  /** Close the drawer or the settings; false when nothing was open. */
  closeTop() {
    const name = this.drawer ?? (this.panels.settings.open ? "settings" : null);
    if (name) this.set(name, false);
    return name !== null;
  }

  /** On-screen keyboards of some browsers cover the page instead of shrinking it: its height is then set here. */
  fit() {
    const view = window.visualViewport;
    if (!view) return;
    const covered = window.innerHeight - view.height * view.scale > 80;
    document.documentElement.style.setProperty("--height", covered ? `${view.height}px` : "100dvh");
  }
}
