// The settings panel: system prompt, model, sampling. A value that is wrong is named and not used.

import { byId, el } from "./dom.js";
import { LIMITS, problem } from "./conversation.js";
import { remembered } from "./api.js";

export class Settings {
  /** `onChange(settings)`: what is now set, blanks left out. */
  constructor(onChange) {
    this.onChange = onChange;
    this.form = byId("settings-form");
    this.system = byId("system");
    this.choice = byId("model-choice");
    this.inputs = {};
    for (const name of Object.keys(LIMITS)) byId("sampling").append(this.field(name));
    this.system.addEventListener("input", () => this.changed());
    this.choice.addEventListener("change", () => this.changed());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    byId("reset").addEventListener("click", () => {
      for (const name of Object.keys(LIMITS)) this.inputs[name].value = "";
      this.changed();
    });
    const theme = byId("theme");
    theme.value = remembered.get("theme") ?? "";
    theme.addEventListener("change", () => {
      remembered.set("theme", theme.value || null);
      if (theme.value) document.documentElement.dataset.theme = theme.value;
      else delete document.documentElement.dataset.theme;
    });
  }

  field(name) {
    const { label, min, max, step, whole, hint } = LIMITS[name];
    const input = el("input", {
      type: "number", id: `set-${name}`, min: String(min), max: String(max), step: whole ? String(step) : "any",
      inputmode: whole ? "numeric" : "decimal", placeholder: "default", "aria-describedby": `hint-${name}`,
      on: { input: () => this.changed() },
    });
    // Arrow keys move by a step of the setting's own size: with step="any" they would move by 1.
    input.addEventListener("keydown", (event) => {
      if (whole || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
      event.preventDefault();
      const from = input.value === "" ? (name === "temperature" || above(name) ? 1 : 0) : Number(input.value);
      const next = from + (event.key === "ArrowUp" ? step : -step);
      input.value = String(Math.min(max, Math.max(min, Math.round(next * 100) / 100)));
      this.changed();
    });
    this.inputs[name] = input;
    return el(
      "div",
      { class: "field inline" },
      el("label", { for: input.id, text: label }),
      input,
      el("p", { class: "hint", id: `hint-${name}`, text: hint }),
    );
  }

  models(list, chosen) {
    byId("model-field").hidden = list.length < 2;
    this.choice.replaceChildren(...list.map(({ id }) => el("option", { value: id, text: id })));
    if (list.some(({ id }) => id === chosen)) this.choice.value = chosen;
  }

  show(settings) {
    this.system.value = settings.system ?? "";
    for (const [name, input] of Object.entries(this.inputs)) {
      input.value = settings[name] ?? "";
      this.judge(name);
    }
    this.model = settings.model;
    if (settings.model) this.choice.value = settings.model;
  }

  changed() {
    const out = {};
    if (this.system.value.trim()) out.system = this.system.value;
    const model = this.choice.options.length > 1 ? this.choice.value : this.model; // the list may not have come yet
    if (model) out.model = model;
    for (const [name, input] of Object.entries(this.inputs)) {
      if (this.judge(name) && input.value !== "") out[name] = Number(input.value);
    }
    this.onChange(out);
  }

  /** Mark a field as right or wrong; true when its value can be used. */
  judge(name) {
    const input = this.inputs[name];
    const unreadable = input.validity.badInput ? `${LIMITS[name].label} must be a number.` : "";
    const wrong = unreadable || (input.value === "" ? "" : problem(name, Number(input.value)));
    const hint = byId(`hint-${name}`);
    if (hint) {
      hint.textContent = wrong ? `${wrong} It is not sent.` : LIMITS[name].hint;
      hint.classList.toggle("wrong", Boolean(wrong));
    }
    if (wrong) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
    return !wrong;
  }
}

const above = (name) => Boolean(LIMITS[name].above);
