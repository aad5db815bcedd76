// The choice of a model family and of its checkpoint. The form shows only what applies to them.

import { make } from "./dom.js";
import { familyOf, loadModels } from "./models.js";

const MISSING = "(its weights are not on this server yet)";

export class ModelChoice {
  // `presetOf` gives the form's present value of the setting `preset`.
  constructor(form, presetOf) {
    this.form = form;
    this.presetOf = presetOf;
    this.find = (selector) => form.querySelector(selector);
    form.addEventListener("change", ({ target }) => ["model", "variant", "quality"].includes(target.name) && this.show());
  }

  async load() {
    if (this.listed) return;
    this.listed = await loadModels();
    const { families, auto } = this.listed;
    const server = `${familyOf(auto).title} on this server`;
    const radios = families.map(({ name, title, summary, variants }) => {
      const there = variants.some(({ installed }) => installed);
      return radio("model", name, title, there ? summary : `${summary} ${MISSING}`, false);
    });
    this.find(".model").append(radio("model", "auto", "Automatic", server, true), ...radios);
    this.find(".model").hidden = false;
    this.show();
  }

  // The settings that were chosen. Nothing is sent for "auto".
  settings() {
    if (!this.listed) return {};
    const { model, variant } = this.form.elements;
    return {
      ...(model.value === "auto" ? {} : { model: model.value }),
      ...(this.family.variants.length > 1 ? { variant: variant.value } : {}),
    };
  }

  get family() {
    return familyOf(this.form.elements.model.value);
  }

  show() {
    if (!this.listed) return;
    this.showVariants();
    const { foreign, prompt_example: example } = this.family;
    for (const part of this.form.querySelectorAll("[data-setting]")) {
      part.hidden = foreign.includes(part.dataset.setting);
    }
    this.showValues();
    const prompt = this.find(".prompt");
    this.find(example ? ".prompt-place" : ".fields").append(prompt);
    this.find(".prompt .note").hidden = !example;
    this.find(".prompt q").textContent = example ?? "";
    this.form.elements.prompt.placeholder = example ? "" : "the server’s";
  }

  showVariants() {
    const place = this.find(".variant");
    const { name, variants } = this.family;
    place.hidden = variants.length < 2;
    if (place.dataset.family === name) return;
    place.dataset.family = name;
    place.querySelectorAll("label").forEach((label) => label.remove());
    if (place.hidden) return;
    const least = Math.min(...variants.map(forwards));
    for (const one of variants) {
      const { sampling_steps: steps, guide_scale: guidance } = one.defaults;
      const slower = Math.round(forwards(one) / least);
      const speed = slower > 1 ? `${slower} times as slow` : "fast";
      const words = `${speed}: ${steps} steps${guidance > 1 ? ` with guidance ${guidance}` : ""}`;
      const missing = one.installed || !variants.some(({ installed }) => installed) ? "" : ` ${MISSING}`;
      const title = one.name[0].toUpperCase() + one.name.slice(1);
      place.append(radio("variant", one.name, title, words + missing, one.name === this.listed.variant));
    }
  }

  // The steps of each quality, and what fields that are left empty mean.
  showValues() {
    const { variants } = this.family;
    const chosen = this.form.elements.variant?.value;
    const { defaults, presets } = variants.find(({ name }) => name === chosen) ?? variants[0];
    for (const input of this.form.querySelectorAll("[name=quality]")) {
      const { sampling_steps: steps } = { ...defaults, ...presets[this.presetOf(input.value)] };
      input.labels[0].querySelector(".steps").textContent = `${steps} steps`;
    }
    const values = { ...defaults, ...presets[this.presetOf(this.form.elements.quality.value)] };
    for (const name of ["seed", "sampling_steps", "clip_len", "pose_strength", "face_strength"]) {
      this.form.elements[name].placeholder = values[name] ?? "";
    }
  }
}

const forwards = ({ defaults }) => defaults.sampling_steps * (defaults.guide_scale > 1 ? 2 : 1);

function radio(name, value, title, words, checked) {
  const input = make("input", { type: "radio", name, value, checked });
  return make("label", {}, input, " ", make("span", {}, make("strong", { textContent: title }), ` ${words}`));
}
