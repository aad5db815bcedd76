// The form for a new video.

import { showText } from "./dom.js";
import { upload } from "./http.js";
import { ModelChoice } from "./model_choice.js";

const QUALITY = {
  draft: { preset: "draft", preprocess: { resolution_area: 480 * 832 } },
  balanced: { preset: "balanced" },
  standard: {},
  careful: { retakes: 2 },
};

const NAMES = ["name", "seed", "sampling_steps", "clip_len", "pose_strength", "face_strength", "prompt"];

// Returns the choice of the model, which is to be loaded.
export function setUpForm(form, onSubmitted) {
  const model = new ModelChoice(form, (quality) => QUALITY[quality].preset ?? "exact");
  const error = form.querySelector(".error");
  const button = form.querySelector("#submit");
  const sending = form.querySelector("#sending");
  const drops = [...form.querySelectorAll(".drop")];
  const files = () => Object.fromEntries(drops.map((drop) => [drop.dataset.name, drop.querySelector("input").files[0]]));
  drops.forEach(setUpDropZone);
  form.addEventListener("change", () => showText(error, ""));

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { reference, driving } = files();
    if (!reference || !driving) {
      showText(error, `Choose ${!reference ? "a picture of the character" : "a video of a person moving"} first.`);
      form.querySelector(!reference ? "#reference" : "#driving").focus();
      return;
    }
    showText(error, "");
    button.disabled = true;
    sending.hidden = false;
    sending.value = 0;
    try {
      const job = await upload(formData(form, model.settings(), reference, driving), (fraction) => (sending.value = fraction));
      drops.forEach(clear);
      // The prompt described the character of this picture.
      for (const name of ["name", "prompt"]) form.elements[name].value = "";
      onSubmitted(job);
    } catch (problem) {
      showText(error, problem.message);
    } finally {
      button.disabled = false;
      sending.hidden = true;
    }
  });
  return model;
}

function formData(form, model, reference, driving) {
  const settings = { ...structuredClone(QUALITY[form.elements.quality.value]), ...model };
  // Parts of the form that do not apply to the model are hidden.
  const applies = (name) => !form.querySelector(`[name=${name}]`).closest("[data-setting][hidden]");
  for (const name of NAMES.filter(applies)) {
    const value = form.elements[name].value.trim();
    if (value) settings[name] = value;
  }
  if (applies("mode")) settings.mode = form.elements.mode.value;
  if (form.elements.review.checked) settings.review = true;
  const data = new FormData();
  for (const [name, value] of Object.entries(settings)) {
    data.set(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  data.set("reference", reference);
  data.set("driving", driving);
  return data;
}

function setUpDropZone(drop) {
  const input = drop.querySelector("input");
  const hint = drop.querySelector("label span");
  drop.dataset.hint = hint.textContent;
  input.addEventListener("change", () => showFile(drop));
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}

function showFile(drop) {
  const file = drop.querySelector("input").files[0];
  const old = drop.querySelector("img, video");
  if (old) URL.revokeObjectURL(old.src);
  old?.remove();
  drop.classList.toggle("full", Boolean(file));
  drop.querySelector("label span").textContent = file ? `${file.name}, ${size(file.size)}` : drop.dataset.hint;
  if (!file) return;
  const preview = document.createElement(drop.dataset.name === "driving" ? "video" : "img");
  preview.src = URL.createObjectURL(file);
  if (preview.tagName === "VIDEO") Object.assign(preview, { muted: true, loop: true, autoplay: true, playsInline: true });
  else preview.alt = "The chosen picture";
  // Browsers cannot show every format that the server accepts.
  preview.addEventListener("error", () => {
    URL.revokeObjectURL(preview.src);
    preview.remove();
  });
  drop.prepend(preview);
}

function clear(drop) {
  drop.querySelector("input").value = "";
  showFile(drop);
}

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
